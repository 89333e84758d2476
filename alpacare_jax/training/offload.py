"""Optimizer moments in host memory, fetched to the devices one layer at a time."""

import functools
import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import optax
from jax.sharding import Mesh

from alpacare_jax.distributed.sharding import HOST_MEMORY
from alpacare_jax.model.llama import Params


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

    def moved(space: Any, opt_state: Any, locations: Any) -> Any:
        def move(array, sharding):
            return jax.device_put(array, space) if sharding.memory_kind == HOST_MEMORY else array

        return _map_moments(move, opt_state, locations)

    def update(names, grads, opt_state, params):
        locations = _select(names, shardings)
        opt_state = moved(jax.memory.Space.Device, opt_state, locations)
        updates, opt_state = optimizer.update(grads, opt_state, params, grad_norm=grad_norm)
        opt_state = moved(jax.memory.Space.Host, opt_state, locations)
        return optax.apply_updates(params, updates), opt_state

    layers, rest = ["layers"], [name for name in params if name != "layers"]
    layer_grads = _select(layers, grads)

    def update_layer(i, carry):
        params, state = carry

        def read(stacked):
            return jax.lax.dynamic_slice_in_dim(stacked, i, 1)

        def write(stacked, new):
            return jax.lax.dynamic_update_slice_in_dim(stacked, new, i, 0)

        layer = jax.tree.map(read, (layer_grads, params))
        new_params, new_state = update(layers, layer[0], _map_moments(read, state), layer[1])
        return jax.tree.map(write, params, new_params), _map_moments(write, state, new_state)

    num_layers = len(jax.tree.leaves(layer_grads)[0])
    stacked = (_select(layers, params), _select(layers, opt_state))
    stacked_params, stacked_state = jax.lax.fori_loop(0, num_layers, update_layer, stacked)
    others = [_select(rest, tree) for tree in (grads, opt_state, params)]
    new_params, new_state = update(rest, *others)
    # Counts are incremented in `new_state`, and not in `stacked_state`.
    return new_params | stacked_params, _map_trees(operator.or_, new_state, stacked_state)


def _map_trees(f: Callable[..., Any], state: Any, *others: Any) -> Any:
    """Applies `f` to the trees of moments, and leaves counts as they are.

    In an optax state every dict is a tree like the parameters; all else is counts.
    """
    return jax.tree.map(
        lambda node, *rest: f(node, *rest) if isinstance(node, dict) else node,
        state,
        *others,
        is_leaf=lambda node: isinstance(node, dict),
    )


def _map_moments(f: Callable[..., jax.Array], state: Any, *others: Any) -> Any:
    return _map_trees(functools.partial(jax.tree.map, f), state, *others)


def _select(names: Sequence[str], state: Any) -> Any:
    """These parameters only, in each tree of a state."""
    return _map_trees(lambda tree: {name: tree[name] for name in names}, state)
