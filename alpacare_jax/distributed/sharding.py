"""The device mesh, and how each array is sharded over it."""

import dataclasses
import math
from collections.abc import Mapping, Sequence

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from jax.typing import DTypeLike

from alpacare_jax.model import attention, params
from alpacare_jax.model.llama import Params, Placement
from alpacare_jax.model.quantised import Quantised
from common import messages

AXES = ("data", "fsdp", "tensor")
BATCH_AXES = ("data", "fsdp")
"""Rows of a batch are sharded over both; `fsdp` shards the weights too."""

WEIGHT_AXES = ("fsdp", "tensor")
"""Weights are sharded over these and replicated over `data`."""

MAX_REPLICATED_ELEMENTS = 2**24
"""The largest piece of a weight that a device may hold replicated over an axis of WEIGHT_AXES.

Weight, gradient and two moments in float32 take 16 bytes per element: 256 MiB at this size, 1.6 %
of the smallest TPU. Every vector and all matrices of the smallest models are below it.
"""

RANK_AXIS = "rank"
"""The logical axis of adapters that no rule is for: a handful of columns, replicated."""

HOST_MEMORY = "pinned_host"
"""JAX's memory kind of host memory that devices read and write directly."""


@dataclasses.dataclass(frozen=True)
class ShardingConfig:
    """The mesh and the sharding rules. One axis size may be -1: all remaining devices."""

    data: int  # mesh axis: batch rows sharded, parameters replicated; -1: all remaining devices
    fsdp: int  # mesh axis: batch rows and parameters sharded; -1: all remaining devices
    tensor: int  # mesh axis: heads and ffn sharded; -1: all remaining devices
    rules: Mapping[str, str]  # logical axis of params.WEIGHTS -> mesh axis; "" replicates
    allow_replicated: str  # comma-separated weight paths exempt from MAX_REPLICATED_ELEMENTS

    def __post_init__(self):
        sizes = [self.data, self.fsdp, self.tensor]
        if sizes.count(-1) > 1 or any(size < 1 and size != -1 for size in sizes):
            raise ValueError(f"sharding sizes are {sizes}; give positive sizes, one may be -1")
        if unknown := set(self.rules.values()) - {*AXES, ""}:
            raise ValueError(
                f"sharding.rules name mesh axes {sorted(unknown)}; choose from {', '.join(AXES)}"
            )
        known = [spec.path for spec in params.WEIGHTS]
        for path in self.replicated_weights:
            if path not in known:
                raise ValueError(
                    f"sharding.allow_replicated names no weight {path!r}; "
                    + messages.suggestion(path, known)
                )

    @property
    def replicated_weights(self) -> tuple[str, ...]:
        """Paths of the weights that may be replicated whatever their size."""
        return tuple(filter(None, map(str.strip, self.allow_replicated.split(","))))


def make_mesh(
    config: ShardingConfig,
    devices: Sequence[jax.Device] | None = None,  # pyright: ignore[reportInvalidTypeForm] - no stub
) -> Mesh:
    """A mesh over all devices, axes `data, fsdp, tensor`, that follows the interconnect's topology.

    With several TPU slices, the axis `data` crosses the slow data-centre network between them, so
    that only its gradient reductions do.

    Raises:
      ValueError: the axis sizes do not multiply to the number of devices, or `data` is not a
        multiple of the number of slices.
    """
    if devices is None:
        devices = jax.devices()[: jax.device_count()]
    sizes = [config.data, config.fsdp, config.tensor]
    known = math.prod(size for size in sizes if size != -1)
    sizes = [len(devices) // known if size == -1 else size for size in sizes]
    if math.prod(sizes) != len(devices):
        raise ValueError(
            f"mesh {dict(zip(AXES, sizes, strict=True))} does not cover {len(devices)} devices; "
            "set one of sharding.data, .fsdp, .tensor to -1"
        )
    num_slices = len({getattr(device, "slice_index", 0) for device in devices})
    types = (AxisType.Auto,) * 3
    if len({getattr(device, "core_on_chip", 0) for device in devices}) > 1:
        # Only ahead-of-time descriptions of a v4 have two devices per chip, and JAX's own layout
        # does not support those.
        return Mesh(np.array(devices).reshape(sizes), AXES, axis_types=types)
    if num_slices == 1:
        return jax.make_mesh(tuple(sizes), AXES, axis_types=types, devices=devices)
    if sizes[0] % num_slices:
        raise ValueError(
            f"sharding.data is {sizes[0]}; over {num_slices} slices it must be a multiple of "
            f"{num_slices}"
        )
    within = (sizes[0] // num_slices, *sizes[1:])
    grid = mesh_utils.create_hybrid_device_mesh(within, (num_slices, 1, 1), devices=list(devices))
    return Mesh(grid, AXES, axis_types=types)


def param_shardings(config: params.Weighted, mesh: Mesh, sharding_config: ShardingConfig) -> Params:
    """The NamedSharding of each weight, as a parameter tree; an adapter's rank is replicated.

    Raises:
      ValueError: a logical axis has no rule, its length is not divisible by the size of its mesh
        axis, two axes of a weight map to one mesh axis, or a weight over MAX_REPLICATED_ELEMENTS
        is replicated without permission.
    """

    def leaf(weight: params.WeightSpec) -> NamedSharding:
        sharding = _weight_sharding(weight, config, mesh, sharding_config.rules)
        exempt = isinstance(config, params.Adapter)  # its weights are small
        if not exempt and weight.path not in sharding_config.replicated_weights:
            _check_not_replicated(weight, config, sharding, sharding_config.rules)
        return sharding

    return params.build_tree(config, leaf)


def _weight_sharding(
    weight: params.WeightSpec, config: params.Weighted, mesh: Mesh, rules: Mapping[str, str]
) -> NamedSharding:
    spec: list[str | None] = []
    logical_axes = weight.axes.split()
    for axis, size in zip(logical_axes, params.weight_shape(weight, config), strict=True):
        if axis not in rules and axis != RANK_AXIS:
            raise ValueError(f"sharding.rules lack logical axis {axis!r} of {weight.path}")
        mesh_axis = rules[axis] if axis != RANK_AXIS else ""
        if mesh_axis and size % mesh.shape[mesh_axis]:
            raise ValueError(
                f"{weight.path}: axis {axis!r} of length {size} is not divisible by the size "
                f"{mesh.shape[mesh_axis]} of mesh axis {mesh_axis!r}; choose a divisor, or "
                f"replicate it: sharding.rules.{axis}=''"
            )
        if mesh_axis and mesh_axis in spec:
            other = logical_axes[spec.index(mesh_axis)]
            raise ValueError(
                f"{weight.path}: sharding.rules map both {other!r} and {axis!r} to mesh axis "
                f"{mesh_axis!r}"
            )
        spec.append(mesh_axis or None)
    return NamedSharding(mesh, PartitionSpec(*spec))


def _check_not_replicated(
    weight: params.WeightSpec,
    config: params.Weighted,
    sharding: NamedSharding,
    rules: Mapping[str, str],
) -> None:
    mesh, shape = sharding.mesh, params.weight_shape(weight, config)
    elements = math.prod(sharding.shard_shape(shape))
    over = [axis for axis in WEIGHT_AXES if mesh.shape[axis] > 1 and axis not in sharding.spec]
    if elements <= MAX_REPLICATED_ELEMENTS or not over:
        return
    copies = math.prod(mesh.shape[axis] for axis in over)
    current = ", ".join(f"{axis}={rules[axis]!r}" for axis in weight.axes.split())
    raise ValueError(
        f"sharding.rules {current} replicate {weight.path} ({math.prod(shape):,} elements) "
        f"{copies} times, {elements:,} elements on each device; map one of its axes to "
        f"{' or '.join(map(repr, over))}, or list the weight in sharding.allow_replicated"
    )


def moment_sharding(shape: Sequence[int], param_sharding: NamedSharding) -> NamedSharding:
    """Sharding of an optimizer moment: the parameter's, with reduced axes (size 1) replicated."""
    axes = zip(shape, param_sharding.spec, strict=True)
    spec = PartitionSpec(*(None if size == 1 else axis for size, axis in axes))
    return NamedSharding(param_sharding.mesh, spec)


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Of arrays [A, R, T]: rows over the batch axes."""
    return NamedSharding(mesh, PartitionSpec(None, BATCH_AXES, None))


def flag_sharding(mesh: Mesh) -> NamedSharding:
    """Of an array [devices]: one element on each."""
    return NamedSharding(mesh, PartitionSpec(AXES))


def replicated(mesh: Mesh) -> NamedSharding:
    """Of an array that every device holds in full."""
    return NamedSharding(mesh, PartitionSpec())


def batch_groups(mesh: Mesh) -> int:
    """The number of shards of a batch's rows."""
    return math.prod(mesh.shape[axis] for axis in BATCH_AXES)


def describe(mesh: Mesh) -> str:
    """`8 TPU v5 lite devices (fsdp 8), 2 processes`."""
    kind = mesh.devices.flat[0].device_kind
    text = f"{mesh.size} {kind} devices" if mesh.size > 1 else f"one {kind} device"
    if axes := ", ".join(f"{name} {size}" for name, size in mesh.shape.items() if size > 1):
        text += f" ({axes})"
    processes = len({device.process_index for device in mesh.devices.flat})
    return text + (f", {processes} processes" if processes > 1 else "")


def put_batch(arrays: Mapping[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
    """Global arrays [A, R, T]; each process transfers only its own rows to its devices."""
    sharding = batch_sharding(mesh)
    return {
        name: jax.make_array_from_callback(array.shape, sharding, array.__getitem__)
        for name, array in arrays.items()
    }


def put_flag(flag: bool, mesh: Mesh) -> jax.Array:
    """float32 [devices]: each process's own flag, 0 or 1, on its devices."""
    return jax.make_array_from_callback(
        (mesh.size,), flag_sharding(mesh), lambda _: np.array([flag], np.float32)
    )


def placement(
    shardings: Params, mesh: Mesh, dtype: DTypeLike, kernel: attention.Kernel
) -> Placement:
    """Activations stay where they are; weights are all-gathered, gradients reduce-scattered.

    Left to itself, XLA moves activations instead, or gathers a weight in sixteen pieces with a
    small matrix product each. Here each layer's weights are gathered over `fsdp` in one piece, in
    the compute dtype, and their gradients are reduced straight into the shards (arXiv:2004.13336,
    arXiv:1910.02054 stage 3).

    Args:
      shardings: of all weights that the model has, those of an adapter included.
    """
    head = shardings.get("lm_head", shardings["embed_tokens"])

    def constrain_rows(x: jax.Array) -> jax.Array:
        spec = PartitionSpec(BATCH_AXES, *[None] * (x.ndim - 1))
        return jax.lax.with_sharding_constraint(x, NamedSharding(mesh, spec))

    def gather_layer(layer_params: Params) -> Params:
        def gather(weight, sharding):
            if isinstance(weight, Quantised):  # gathered as it is, which is fewer bytes
                return jax.tree.map(lambda x, s: _all_gather(x, s, 1), weight, sharding)
            # Vectors are few bytes, and norms use them in float32.
            if weight.ndim > 1 and not _is_whole(sharding):
                weight = weight.astype(dtype)
            return _all_gather(weight, sharding, 1)

        return jax.tree.map(
            gather,
            layer_params,
            shardings["layers"],
            is_leaf=lambda node: isinstance(node, Quantised),
        )

    return Placement(
        constrain_rows,
        gather_layer,
        gather_head=lambda head_VD: _all_gather(head_VD, head, 0),
        kernel=kernel,
        unroll=_unrolls(mesh, shardings),
    )


def _unrolls(mesh: Mesh, shardings: Params) -> bool:
    """Whether layers are compiled one by one: on one GPU.

    There a loop copies what is kept of each layer to a stack and back. TPUs use stacks in place,
    and a CPU is slow to compile. Unrolled, XLA keeps each layer's weights as the forward pass has
    them for the backward pass: in the compute dtype, which is wanted, but also gathered or
    dequantised, which is not.
    """
    quantised = any(
        isinstance(node, Quantised)
        for node in jax.tree.leaves(shardings, is_leaf=lambda node: isinstance(node, Quantised))
    )
    on_gpu = mesh.devices.flat[0].platform in ("gpu", "cuda")
    return on_gpu and mesh.size == 1 and not quantised


def _is_whole(sharding: NamedSharding) -> bool:
    """Whether a device holds a weight in full as far as the batch axes go."""
    return not any(sharding.mesh.shape[axis] > 1 for axis in BATCH_AXES if axis in sharding.spec)


def _all_gather(weight: jax.Array, sharding: NamedSharding, num_dropped: int) -> jax.Array:
    """All-gathers over the batch axes; the backward pass shards the gradient again.

    num_dropped: leading axes of `sharding` that `weight` lacks, being one layer of a stack.
    """
    if _is_whole(sharding):
        return weight
    sharded = PartitionSpec(*sharding.spec[num_dropped:])
    gathered = PartitionSpec(*[None if axis in BATCH_AXES else axis for axis in sharded])
    mesh = sharding.mesh

    @jax.custom_vjp
    def gather(x):
        return jax.lax.with_sharding_constraint(x, NamedSharding(mesh, gathered))

    def backward(_, gradient):
        return (jax.lax.with_sharding_constraint(gradient, NamedSharding(mesh, sharded)),)

    gather.defvjp(lambda x: (gather(x), None), backward)
    return gather(jax.lax.with_sharding_constraint(weight, NamedSharding(mesh, sharded)))
