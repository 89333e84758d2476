"""Moments that wait in the host's memory and visit the devices one layer at a time."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import optax
from jax.sharding import Mesh, NamedSharding

from alpacare_jax.model.llama import Params

HOST = "pinned_host"
"""JAX's name for memory of the host that devices read and write directly."""


def check_supported(mesh: Mesh, rules: Mapping[str, str]) -> None:
    """Raises ValueError where the devices have no part in their host's memory, or of a layer."""
    if rules["layers"]:
        raise ValueError(
            f"optimizer.offload takes one layer at a time, and sharding.rules.layers="
            f"{rules['layers']!r} spreads them; set it to empty"
        )
    device = mesh.devices.flat[0]
    kinds = [memory.kind for memory in device.addressable_memories()]
    if HOST not in kinds:
        raise ValueError(
            f"optimizer.offload needs memory of kind {HOST}, and {device.device_kind} has "
            f"{', '.join(kinds) or 'none that is known'}; set it to False"
        )


def update_by_layer(
    update: optax.GradientTransformationExtraArgs,
    grads: Params,
    opt_state: Any,
    weights: Params,
    grad_norm: jax.Array,
    shardings: Any,
) -> tuple[Params, Any]:
    """New weights and state, as `update.update` and `optax.apply_updates` give them together.

    All moments at once would need the memory on the devices that they were moved away from. In
    this loop the compiler writes one layer's back into the host's array in place.

    Args:
      grad_norm: of all gradients; clipping needs it, and a layer does not know it.
      shardings: of `opt_state`, which say what is in memory of kind HOST.
    """

    def step(names, grads, opt_state, weights):
        where = _part(names, shardings)
        opt_state = _of_moments(_move(jax.memory.Space.Device), opt_state, where)
        updates, opt_state = update.update(grads, opt_state, weights, grad_norm=grad_norm)
        opt_state = _of_moments(_move(jax.memory.Space.Host), opt_state, where)
        return optax.apply_updates(weights, updates), opt_state

    layers, rest = ["layers"], [name for name in weights if name != "layers"]
    grads_of_layers = _part(layers, grads)

    def one_layer(i, so_far):
        weights, state = so_far
        at = lambda x: jax.lax.dynamic_slice_in_dim(x, i, 1)  # noqa: E731
        into = lambda x, new: jax.lax.dynamic_update_slice_in_dim(x, new, i, 0)  # noqa: E731
        new_weights, new_state = step(
            layers,
            jax.tree.map(at, grads_of_layers),
            _of_moments(at, state),
            jax.tree.map(at, weights),
        )
        return jax.tree.map(into, weights, new_weights), _of_moments(into, state, new_state)

    num_layers = len(jax.tree.leaves(grads_of_layers)[0])
    stacked = (_part(layers, weights), _part(layers, opt_state))
    stacked_weights, stacked_state = jax.lax.fori_loop(0, num_layers, one_layer, stacked)
    new_weights, new_state = step(
        rest, _part(rest, grads), _part(rest, opt_state), _part(rest, weights)
    )
    # Counts have gone on by one in `new_state`, and not in `stacked_state`.
    joined = jax.tree.map(
        lambda a, b: a | b if _is_tree(a) else a, new_state, stacked_state, is_leaf=_is_tree
    )
    return new_weights | stacked_weights, joined


def _move(space: jax.memory.Space) -> Callable[[jax.Array, NamedSharding], jax.Array]:
    return lambda x, where: jax.device_put(x, space) if where.memory_kind == HOST else x


def _is_tree(node: Any) -> bool:
    """In an optax state every dict is shaped as the weights are; all else is counts."""
    return isinstance(node, dict)


def _part(names: list[str], state: Any) -> Any:
    """Only these weights, in each tree of a state."""
    return jax.tree.map(
        lambda node: {name: node[name] for name in names} if _is_tree(node) else node,
        state,
        is_leaf=_is_tree,
    )


def _of_moments(f: Callable[..., jax.Array], state: Any, *others: Any) -> Any:
    """Applies `f` to moments and leaves counts as they are."""
    return jax.tree.map(
        lambda node, *rest: jax.tree.map(f, node, *rest) if _is_tree(node) else node,
        state,
        *others,
        is_leaf=_is_tree,
    )
