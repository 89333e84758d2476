"""Runs the stacked layers, and accumulates their gradients over micro-batches in place.

Naive accumulation holds two gradient trees, the running sum and the next addend: 27 GB each for a
7B model in float32. Under remat `full`, the backward pass here adds each layer's gradient to the
running sum in place, so only one tree exists.

It does so by returning sum + gradient as "the gradient" of the stacked parameters. For two layers
x -> w * x, applied to x = 1 (a test repeats the columns):

    layer              =   0   1
    stacked            = [ 2,  3]    the parameters w; the output is 3 * 2 * 1 = 6
    inputs             = [ 1,  2]    of each layer; all that the forward pass keeps
    gradient           = [ 3,  2]    of the output with respect to w
    accumulated_grads  = [10, 20]    of the preceding micro-batches
    returned by grad   = [13, 22]
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

REMAT_POLICIES = {
    "none": None,
    "full": jax.checkpoint_policies.nothing_saveable,
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
}
"""What is saved of each layer for the backward pass: everything, nothing, or projection outputs."""

Layer = Callable[..., jax.Array]
"""(x_MD, one layer's parameters, and of each further tree one layer's part) -> x_MD"""


def run(
    layer: Layer,
    x_MD: jax.Array,
    stacked: Any,
    remat: str,
    accumulated_grads: Any = None,
    frozen: tuple[Any, ...] = (),
) -> jax.Array:
    """Applies `layer` with each of the stacked parameters [L, ...] in turn.

    Args:
      remat: key of REMAT_POLICIES.
      accumulated_grads: gradients of the preceding micro-batches, a tree like `stacked`. They are
        added to the gradient that differentiation returns for `stacked`.
      frozen: further trees [L, ...] that `layer` takes; they get no gradient.
    """
    if accumulated_grads is not None and remat == "full":
        return _run_accumulating(layer, x_MD, stacked, accumulated_grads, frozen)
    if accumulated_grads is not None:
        stacked = _add_to_gradient(stacked, accumulated_grads)
    if remat != "none":
        layer = jax.checkpoint(layer, policy=REMAT_POLICIES[remat], prevent_cse=False)
    return _scan(layer, x_MD, stacked, frozen)


def _scan(layer: Layer, x_MD: jax.Array, stacked: Any, frozen: tuple[Any, ...]) -> jax.Array:
    return jax.lax.scan(lambda x, each: (layer(x, *each), None), x_MD, (stacked, *frozen))[0]


@jax.custom_vjp
def _add_to_gradient(stacked, accumulated_grads):
    """Identity on `stacked`, whose gradient comes back with `accumulated_grads` added."""
    del accumulated_grads
    return stacked


_add_to_gradient.defvjp(
    lambda stacked, accumulated_grads: (stacked, accumulated_grads),
    lambda accumulated_grads, gradient: (jax.tree.map(jnp.add, accumulated_grads, gradient), None),
)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _run_accumulating(layer, x_MD, stacked, accumulated_grads, frozen):
    del accumulated_grads
    return _scan(layer, x_MD, stacked, frozen)


def _forward_rule(layer, x_MD, stacked, accumulated_grads, frozen):
    scanned = (stacked, *frozen)
    x_MD, inputs_LMD = jax.lax.scan(lambda x, each: (layer(x, *each), x), x_MD, scanned)
    return x_MD, (inputs_LMD, stacked, accumulated_grads, frozen)


def _backward_rule(layer, residuals, gradient_MD):
    inputs_LMD, stacked, accumulated_grads, frozen = residuals

    def step(carry, scanned):
        gradient_MD, accumulated = carry
        x_MD, params, others, i = scanned
        _, vjp = jax.vjp(lambda x, params: layer(x, params, *others), x_MD, params)
        gradient_MD, param_grads = vjp(gradient_MD)
        # Carried, not scanned over, so that XLA updates it in place.
        accumulated = jax.tree.map(lambda acc, g: acc.at[i].add(g), accumulated, param_grads)
        return (gradient_MD, accumulated), None

    scanned = (inputs_LMD, stacked, frozen, jnp.arange(len(inputs_LMD)))
    start = (gradient_MD, accumulated_grads)
    (gradient_MD, accumulated_grads), _ = jax.lax.scan(step, start, scanned, reverse=True)
    return gradient_MD, accumulated_grads, None, None


_run_accumulating.defvjp(_forward_rule, _backward_rule)
