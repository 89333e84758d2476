"""Running the stacked layers, and adding their gradients to what is there already.

Summed over micro-batches in the plain way, gradients take two trees: the sum and the addend, 27 GB
each for a 7B model in float32. Under remat `full` the backward pass here adds each layer's gradient
to the sum in place, so that there is one.
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
"""What the backward pass keeps of each layer: everything, nothing, or the projections' outputs."""

Layer = Callable[[jax.Array, Any], jax.Array]
"""(x_MD, one layer's weights) -> x_MD"""


def run(layer: Layer, x_MD: jax.Array, stacked: Any, remat: str, sums: Any = None) -> jax.Array:
    """Applies `layer` with each of the stacked weights [L, ...] in turn.

    Args:
      remat: key of REMAT_POLICIES.
      sums: gradients of the micro-batches before, a tree like `stacked`. The gradient that comes
        back for `stacked` is then that of this call plus `sums`.
    """
    if sums is not None and remat == "full":
        return _run_adding(layer, x_MD, stacked, sums)
    if sums is not None:
        stacked = _add_on_the_way_back(stacked, sums)
    if remat != "none":
        layer = jax.checkpoint(layer, policy=REMAT_POLICIES[remat], prevent_cse=False)
    return jax.lax.scan(lambda x, weights: (layer(x, weights), None), x_MD, stacked)[0]


@jax.custom_vjp
def _add_on_the_way_back(stacked, sums):
    return stacked


_add_on_the_way_back.defvjp(
    lambda stacked, sums: (stacked, sums),
    lambda sums, gradient: (jax.tree.map(jnp.add, sums, gradient), None),
)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _run_adding(layer, x_MD, stacked, sums):
    return jax.lax.scan(lambda x, weights: (layer(x, weights), None), x_MD, stacked)[0]


def _forward(layer, x_MD, stacked, sums):
    # Only the input of each layer is kept.
    x_MD, inputs_LMD = jax.lax.scan(lambda x, weights: (layer(x, weights), x), x_MD, stacked)
    return x_MD, (inputs_LMD, stacked, sums)


def _backward(layer, kept, gradient_MD):
    inputs_LMD, stacked, sums = kept
    numbers = jnp.arange(len(inputs_LMD))

    def step(carry, scanned):
        gradient_MD, sums = carry
        x_MD, weights, i = scanned
        _, pull = jax.vjp(layer, x_MD, weights)
        gradient_MD, of_weights = pull(gradient_MD)
        # The sums are carried, not scanned over, so that XLA updates them in place.
        return (gradient_MD, jax.tree.map(lambda s, g: s.at[i].add(g), sums, of_weights)), None

    scanned = (inputs_LMD, stacked, numbers)
    (gradient_MD, sums), _ = jax.lax.scan(step, (gradient_MD, sums), scanned, reverse=True)
    return gradient_MD, sums, None


_run_adding.defvjp(_forward, _backward)
