"""Optimizer moments in host memory, fetched to the devices one layer at a time."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import optax
from jax.sharding import Mesh, NamedSharding

from alpacare_jax.model.llama import Params

HOST_MEMORY = "pinned_host"
"""JAX's memory kind of host memory that devices read and write directly."""


def check_supported(mesh: Mesh, rules: Mapping[str, str]) -> None:
    """Raises ValueError if layers are sharded, or the devices cannot reach host memory."""
    if rules["layers"]:
        raise ValueError(
            f"optimizer.offload takes one layer at a time, and sharding.rules.layers="
            f"{rules['layers']!r} shards them; set it to empty"
        )
    device = mesh.devices.flat[0]
    kinds = [memory.kind for memory in device.addressable_memories()]
    if HOST_MEMORY not in kinds:
        raise ValueError(
            f"optimizer.offload needs memory of kind {HOST_MEMORY}, and {device.device_kind} has "
            f"{', '.join(kinds) or 'none that is known'}; set it to False"
        )


def update_by_layer(
    optimizer: optax.GradientTransformationExtraArgs,
    grads: Params,
    opt_state: Any,
    params: Params,
    grad_norm: jax.Array,
    shardings: Any,
) -> tuple[Params, Any]:
    """New parameters and state, the same as `optimizer.update` and `optax.apply_updates` give.

    Fetching all moments at once would need the device memory that offloading saves. In this loop
    the compiler writes one layer's moments back into the host's array in place.

    Args:
      grad_norm: of all gradients; clipping needs it, and one layer cannot compute it.
      shardings: of `opt_state`; their memory kind says what is on the host.
    """

    def update(names, grads, opt_state, params):
        locations = _select(names, shardings)
        opt_state = _map_moments(_move_hosted(jax.memory.Space.Device), opt_state, locations)
        updates, opt_state = optimizer.update(grads, opt_state, params, grad_norm=grad_norm)
        opt_state = _map_moments(_move_hosted(jax.memory.Space.Host), opt_state, locations)
        return optax.apply_updates(params, updates), opt_state

    layers, rest = ["layers"], [name for name in params if name != "layers"]
    layer_grads = _select(layers, grads)

    def update_layer(i, carry):
        params, state = carry

        def read(stacked):
            return jax.lax.dynamic_slice_in_dim(stacked, i, 1)

        def write(stacked, new):
            return jax.lax.dynamic_update_slice_in_dim(stacked, new, i, 0)

        new_params, new_state = update(
            layers,
            jax.tree.map(read, layer_grads),
            _map_moments(read, state),
            jax.tree.map(read, params),
        )
        return jax.tree.map(write, params, new_params), _map_moments(write, state, new_state)

    num_layers = len(jax.tree.leaves(layer_grads)[0])
    stacked = (_select(layers, params), _select(layers, opt_state))
    stacked_params, stacked_state = jax.lax.fori_loop(0, num_layers, update_layer, stacked)
    new_params, new_state = update(
        rest, _select(rest, grads), _select(rest, opt_state), _select(rest, params)
    )
    # Counts are incremented in `new_state`, and not in `stacked_state`.
    joined = jax.tree.map(
        lambda a, b: a | b if _is_moments(a) else a, new_state, stacked_state, is_leaf=_is_moments
    )
    return new_params | stacked_params, joined


def _move_hosted(
    space: jax.memory.Space,  # pyright: ignore[reportInvalidTypeForm]
) -> Callable[[jax.Array, NamedSharding], jax.Array]:
    def move(array, sharding):
        return jax.device_put(array, space) if sharding.memory_kind == HOST_MEMORY else array

    return move


def _is_moments(node: Any) -> bool:
    """In an optax state every dict is a tree like the parameters; all else is counts."""
    return isinstance(node, dict)


def _select(names: Sequence[str], state: Any) -> Any:
    """These parameters only, in each tree of a state."""
    return jax.tree.map(
        lambda node: {name: node[name] for name in names} if _is_moments(node) else node,
        state,
        is_leaf=_is_moments,
    )


def _map_moments(f: Callable[..., jax.Array], state: Any, *others: Any) -> Any:
    """Applies `f` to moments and leaves counts as they are."""
    return jax.tree.map(
        lambda node, *rest: jax.tree.map(f, node, *rest) if _is_moments(node) else node,
        state,
        *others,
        is_leaf=_is_moments,
    )
