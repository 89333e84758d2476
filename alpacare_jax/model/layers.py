"""Runs the stacked layers, and accumulates their gradients over micro-batches in place.

Naive accumulation holds two gradient trees, the running sum and the next addend: 27 GB each for a
7B model in float32. The backward pass here adds each layer's gradient to the running sum in place,
so only one tree exists, whatever is kept of the forward pass.

It does so by returning sum + gradient as "the gradient" of the stacked parameters. For two layers
x -> w * x, applied to x = 1 (a test repeats the columns):

    layer              =   0   1
    stacked            = [ 2,  3]    the parameters w; the output is 3 * 2 * 1 = 6
    inputs             = [ 1,  2]    of each layer; under remat `full` all that is kept
    gradient           = [ 3,  2]    of the output with respect to w
    accumulated_grads  = [10, 20]    of the preceding micro-batches
    returned by grad   = [13, 22]
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.extend.core import Literal

PROJECTED = "projected"
"""Name of a layer's projections where the backward pass needs them; see `keep`."""

ATTENDED = "attended"
"""Name of the output of attention, and of the softmax statistics its kernel keeps."""

_named = jax.checkpoint_policies.save_only_these_names
_FUSED_ATTENTION = ("dot_product_attention_fwd", "dot_product_attention_fwd_wrapper")


def _keeps_context(primitive, *inputs, **parameters):
    """cuDNN's kernel names none of its outputs, so it is known by its primitives."""
    named = _named(PROJECTED, ATTENDED)(primitive, *inputs, **parameters)
    return primitive.name in _FUSED_ATTENTION or named


REMAT_POLICIES = {
    "none": jax.checkpoint_policies.everything_saveable,
    "context": _keeps_context,
    "dots": _named(PROJECTED),
    "full": jax.checkpoint_policies.nothing_saveable,
}
"""What is kept of each layer for the backward pass, from most memory to least: everything;
projections and what attention returns, so that its forward pass never runs twice; projections;
only the layer's input."""

Layer = Callable[..., jax.Array]
"""(x_MD, one layer's parameters, and of each further tree one layer's part) -> x_MD"""


def keep(x: jax.Array, name: str) -> jax.Array:
    """`x`, kept for the backward pass by the policies that know the name."""
    return checkpoint_name(x, name)


def run(
    layer: Layer,
    x_MD: jax.Array,
    stacked: Any,
    remat: str,
    accumulated_grads: Any = None,
    frozen: tuple[Any, ...] = (),
    unroll: bool = False,
) -> jax.Array:
    """Applies `layer` with each of the stacked parameters [L, ...] in turn.

    Args:
      remat: key of REMAT_POLICIES.
      accumulated_grads: gradients of the preceding micro-batches, a tree like `stacked`. They are
        added to the gradient that differentiation returns for `stacked`.
      frozen: further trees [L, ...] that `layer` takes; they get no gradient.
      unroll: compile each layer by itself instead of a loop over them.
    """
    if remat != "none":
        layer = jax.checkpoint(layer, policy=REMAT_POLICIES[remat], prevent_cse=False)
    if accumulated_grads is None:
        return _scan(layer, unroll, x_MD, (stacked, *frozen))
    return _run_accumulating(layer, unroll, x_MD, stacked, accumulated_grads, frozen)


UNSTACKED_ON = ("gpu", "cpu")
"""Platforms whose XLA copies what it slices out of a stack: decoding would read the weights, write
them and read them again at each step."""


def unstack(stacked: Any) -> list[Any]:
    """A tree of its own arrays for each layer; the stacked ones are freed one after the other."""
    leaves, structure = jax.tree.flatten(stacked)
    take_apart, found = jax.jit(list), []
    for leaf in leaves:
        found.append(take_apart(leaf))
        leaf.delete()
    return [structure.unflatten(each) for each in zip(*found, strict=True)]


def _loop(
    step: Callable[..., tuple[Any, Any]],
    carry: Any,
    stacked: Any,
    outputs: Any = None,
    *,
    unroll: bool,
    reverse: bool = False,
) -> tuple[Any, Any]:
    """Carries through `step(carry, stacked, output, number) -> carry, output` of each layer.

    Args:
      outputs: of an earlier loop, passed on layer by layer. Those of a loop that is unrolled are a
        list, which spares stacking them, else they are stacked.
    """
    length = len(jax.tree.leaves(stacked)[0])
    if not unroll:
        scanned = stacked, outputs, jnp.arange(length)
        return jax.lax.scan(lambda carry, each: step(carry, *each), carry, scanned, reverse=reverse)
    found = []
    for i in reversed(range(length)) if reverse else range(length):
        part = jax.tree.map(lambda x, i=i: x[i], stacked)
        carry, output = step(carry, part, outputs[i] if outputs else None, i)
        found.append(output)
    return carry, found


def _scan(layer: Layer, unroll: bool, x_MD: jax.Array, stacked: tuple[Any, ...]) -> jax.Array:
    def step(x_MD, each, *_):
        return layer(x_MD, *each), None

    return _loop(step, x_MD, stacked, unroll=unroll)[0]


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _run_accumulating(layer, unroll, x_MD, stacked, accumulated_grads, frozen):
    del accumulated_grads
    return _scan(layer, unroll, x_MD, (stacked, *frozen))


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["kept", "constants"],
    meta_fields=["structure", "sources"],
)
@dataclasses.dataclass
class _Pullbacks:
    """The backward functions of all layers, without what the layers were given anyway.

    A backward function is a tree whose leaves are arrays. Those that are parameters of its layer
    would be a second copy of them, those that are the same for all layers a copy for each.
    """

    kept: Any  # what each layer computed: outputs of `_loop`
    constants: list[jax.Array]  # of all layers, such as rotary angles
    structure: Any  # of the tree
    sources: tuple[tuple[str, int], ...]  # of each leaf: ("kept" | "constant" | "given", number)

    def of_layer(self, kept: list[jax.Array], given: list[jax.Array]) -> Callable[..., Any]:
        """The backward function of the layer with these leaves."""
        leaves = {"kept": kept, "constant": self.constants, "given": given}
        return self.structure.unflatten([leaves[kind][i] for kind, i in self.sources])


def _forward_rule(layer, unroll, x_MD, stacked, accumulated_grads, frozen):
    scanned = (stacked, *frozen)
    structure = None

    def linearised(x_MD, given):
        nonlocal structure
        params, *others = given
        x_MD, pullback = jax.vjp(lambda x, params: layer(x, params, *others), x_MD, params)
        leaves, structure = jax.tree.flatten(pullback)
        return x_MD, leaves

    # Traced once by itself, to see where each leaf comes from.
    first = jax.tree.map(lambda leaf: jax.typeof(leaf[0]), scanned)
    traced = jax.make_jaxpr(linearised)(x_MD, first)
    inputs = traced.jaxpr.invars[1:]  # the layer's input differs from layer to layer
    sources, constants, kept = [], [], []
    for number, leaf in enumerate(traced.jaxpr.outvars[1:]):
        if isinstance(leaf, Literal):
            sources.append(("constant", len(constants)))
            constants.append(jnp.asarray(leaf.val))
        elif leaf in traced.jaxpr.constvars:
            sources.append(("constant", len(constants)))
            constants.append(traced.consts[traced.jaxpr.constvars.index(leaf)])
        elif leaf in inputs:
            sources.append(("given", inputs.index(leaf)))
        else:
            sources.append(("kept", len(kept)))
            kept.append(number)

    def step(x_MD, given, *_):
        x_MD, leaves = linearised(x_MD, given)
        return x_MD, [leaves[number] for number in kept]

    x_MD, outputs = _loop(step, x_MD, scanned, unroll=unroll)
    pullbacks = _Pullbacks(outputs, constants, structure, tuple(sources))
    return x_MD, (pullbacks, stacked, accumulated_grads, frozen)


def _backward_rule(layer, unroll, residuals, gradient_MD):
    del layer
    pullbacks, stacked, accumulated_grads, frozen = residuals

    def step(carry, given, kept, i):
        gradient_MD, accumulated = carry
        if unroll:
            # Else XLA would find the recomputation in the forward pass, and keep what remat drops.
            gradient_MD, kept, i = jax.lax.optimization_barrier((gradient_MD, kept, jnp.int32(i)))
        pullback = pullbacks.of_layer(kept, jax.tree.leaves(given))
        gradient_MD, param_grads = pullback(gradient_MD)
        # Carried, not scanned over, so that XLA updates it in place.
        accumulated = jax.tree.map(lambda acc, g: acc.at[i].add(g), accumulated, param_grads)
        return (gradient_MD, accumulated), None

    start = (gradient_MD, accumulated_grads)
    (gradient_MD, accumulated_grads), _ = _loop(
        step, start, (stacked, *frozen), pullbacks.kept, unroll=unroll, reverse=True
    )
    return gradient_MD, accumulated_grads, None, None


_run_accumulating.defvjp(_forward_rule, _backward_rule)
