"""The device mesh, and where each array lies on it."""

import dataclasses
import difflib
import math
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from alpacare_jax.model import attention, params
from alpacare_jax.model.config import LlamaConfig
from alpacare_jax.model.llama import Params, Placement

AXES = ("data", "fsdp", "tensor")
BATCH_AXES = ("data", "fsdp")
"""Rows of a batch are spread over both: `fsdp` differs from `data` in sharding weights too."""


WEIGHT_AXES = ("fsdp", "tensor")
"""What spreads weights; `data` is there to copy them."""

MAX_REPLICATED_ELEMENTS = 2**24
"""Most elements that a device may hold of a weight that is copied over an axis of WEIGHT_AXES.

Weight, gradient and two moments in float32 take 16 bytes an element: 256 MiB at this size, 1.6 % of
the smallest TPU. Every vector and the matrices of the smallest models stay below.
"""


@dataclasses.dataclass(frozen=True)
class ShardingConfig:
    """Sizes of the mesh axes, one of which may be -1: whatever is left, and the sharding rules."""

    data: int
    fsdp: int
    tensor: int
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
        known = [weight.path for weight in params.WEIGHTS]
        for path in self.replicated_weights:
            if path not in known:
                near = difflib.get_close_matches(path, known, n=1, cutoff=0)[0]
                raise ValueError(
                    f"sharding.allow_replicated names no weight {path!r}; did you mean {near!r}?"
                )

    @property
    def replicated_weights(self) -> tuple[str, ...]:
        """Paths of the weights that are meant to be copied."""
        return tuple(filter(None, map(str.strip, self.allow_replicated.split(","))))


def make_mesh(config: ShardingConfig, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """A mesh over all devices, axes `data, fsdp, tensor`, laid out along the network's links.

    Several slices of TPUs talk to each other over the slow network of the data centre: the axis
    `data` goes over them, and only its gradients do.
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
    slices = len({getattr(device, "slice_index", 0) for device in devices})
    types = (AxisType.Auto,) * 3
    if len({getattr(device, "core_on_chip", 0) for device in devices}) > 1:
        # Only a v4 that is described, not there, has two devices a chip; JAX cannot arrange them.
        return Mesh(np.array(devices).reshape(sizes), AXES, axis_types=types)
    if slices == 1:
        return jax.make_mesh(tuple(sizes), AXES, axis_types=types, devices=devices)
    if sizes[0] % slices:
        raise ValueError(
            f"sharding.data is {sizes[0]}; over {slices} slices it must be a multiple of {slices}"
        )
    within = (sizes[0] // slices, *sizes[1:])
    grid = mesh_utils.create_hybrid_device_mesh(within, (slices, 1, 1), devices=list(devices))
    return Mesh(grid, AXES, axis_types=types)


def param_shardings(config: LlamaConfig, mesh: Mesh, how: ShardingConfig) -> Params:
    """The NamedSharding of each weight.

    Raises:
      ValueError: a logical axis has no rule, its length is not divisible by the size of its mesh
        axis, or a weight over MAX_REPLICATED_ELEMENTS is replicated without permission.
    """
    rules = how.rules

    def leaf(weight: params.WeightSpec) -> NamedSharding:
        spec = []
        for axis, size in zip(
            weight.axes.split(), params.weight_shape(weight, config), strict=True
        ):
            if axis not in rules:
                raise ValueError(f"sharding.rules lack logical axis {axis!r} of {weight.path}")
            mesh_axis = rules[axis]
            if mesh_axis and size % mesh.shape[mesh_axis]:
                raise ValueError(
                    f"{weight.path}: axis {axis!r} of length {size} does not divide over mesh axis "
                    f"{mesh_axis!r} of size {mesh.shape[mesh_axis]}; choose a divisor or set "
                    f"sharding.rules.{axis} to empty"
                )
            if mesh_axis and mesh_axis in spec:
                other = weight.axes.split()[spec.index(mesh_axis)]
                raise ValueError(
                    f"{weight.path}: sharding.rules put both {other!r} and {axis!r} on mesh axis "
                    f"{mesh_axis!r}"
                )
            spec.append(mesh_axis or None)
        sharding = NamedSharding(mesh, PartitionSpec(*spec))
        if weight.path not in how.replicated_weights:
            _check_not_copied(weight, config, sharding, rules)
        return sharding

    return params.build_tree(config, leaf)


def moment_sharding(shape: Sequence[int], of_weight: NamedSharding) -> NamedSharding:
    """Where a moment of a weight lies: as the weight does, on the axes that it is no mean over."""
    spec = (None if size == 1 else axis for size, axis in zip(shape, of_weight.spec, strict=True))
    return NamedSharding(of_weight.mesh, PartitionSpec(*spec))


def _check_not_copied(
    weight: params.WeightSpec, config: LlamaConfig, spread: NamedSharding, rules: Mapping[str, str]
) -> None:
    mesh, shape = spread.mesh, params.weight_shape(weight, config)
    share = math.prod(spread.shard_shape(shape))
    over = [axis for axis in WEIGHT_AXES if mesh.shape[axis] > 1 and axis not in spread.spec]
    if share <= MAX_REPLICATED_ELEMENTS or not over:
        return
    copies = math.prod(mesh.shape[axis] for axis in over)
    asked = ", ".join(f"{axis}={rules[axis]!r}" for axis in weight.axes.split())
    raise ValueError(
        f"{weight.path} ({math.prod(shape):,} elements) would have {copies} copies, {share:,} "
        f"elements on each device, by sharding.rules {asked}; put one of them on "
        f"{' or '.join(map(repr, over))}, or name the weight in sharding.allow_replicated"
    )


def describe(mesh: Mesh) -> str:
    """`8 TPU v5 lite devices (fsdp 8), 2 processes`."""
    kind = mesh.devices.flat[0].device_kind
    devices = f"{mesh.size} {kind} devices" if mesh.size > 1 else f"one {kind} device"
    axes = ", ".join(f"{name} {size}" for name, size in mesh.shape.items() if size > 1)
    processes = len({device.process_index for device in mesh.devices.flat})
    return (
        devices
        + (f" ({axes})" if axes else "")
        + (f", {processes} processes" if processes > 1 else "")
    )


def put_batch(arrays: Mapping[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
    """Global arrays [A, R, T] from each process's own rows: nothing but those leaves the host."""
    spread = batch_sharding(mesh)
    return {
        name: jax.make_array_from_callback(array.shape, spread, lambda index, a=array: a[index])
        for name, array in arrays.items()
    }


def put_flag(flag: bool, mesh: Mesh) -> jax.Array:
    """[devices] of 0 or 1, each process's own answer on its devices."""
    return jax.make_array_from_callback(
        (mesh.size,), flag_sharding(mesh), lambda _: np.array([flag], np.float32)
    )


def flag_sharding(mesh: Mesh) -> NamedSharding:
    return NamedSharding(mesh, PartitionSpec(AXES))


def placement(
    config: LlamaConfig, mesh: Mesh, how: ShardingConfig, dtype: jnp.dtype, kernel: str
) -> Placement:
    """Rows stay where they are; weights come to them, and their gradients go back.

    Left to itself XLA moves activations instead, or gathers a weight in sixteen pieces with a small
    matrix product each. Here each layer's weights are gathered over `fsdp` as a whole, in the
    compute dtype, and gradients are reduced straight into their shards (arXiv:2004.13336,
    arXiv:1910.02054 stage 3).
    """
    shardings = param_shardings(config, mesh, how)

    def rows(x: jax.Array) -> jax.Array:
        spec = PartitionSpec(BATCH_AXES, *[None] * (x.ndim - 1))
        return jax.lax.with_sharding_constraint(x, NamedSharding(mesh, spec))

    def layer(weights: Params) -> Params:
        def gather(weight, sharding):
            return _gather(weight.astype(dtype) if weight.ndim > 1 else weight, sharding, 1)

        return jax.tree.map(gather, weights, shardings["layers"])

    head = shardings["embed_tokens" if config.tie_word_embeddings else "lm_head"]
    kernels = {
        "xla": attention.xla,
        "cudnn": attention.cudnn,
        "splash": attention.splash(mesh, BATCH_AXES, how.rules["heads"] or None),
    }
    return Placement(rows, layer, lambda head_VD: _gather(head_VD, head, 0), kernels[kernel])


def _gather(weight: jax.Array, sharding: NamedSharding, skip: int) -> jax.Array:
    """Whole over the batch axes on the way forward; its gradient is spread on the way back.

    `skip`: leading axes of `sharding` that `weight` has no more, for it is one layer's.
    """
    spec = PartitionSpec(*sharding.spec[skip:])
    whole = PartitionSpec(*[None if axis in BATCH_AXES else axis for axis in spec])
    if spec == whole:
        return weight
    mesh = sharding.mesh

    @jax.custom_vjp
    def gather(x):
        return jax.lax.with_sharding_constraint(x, NamedSharding(mesh, whole))

    def backward(_, gradient):
        return (jax.lax.with_sharding_constraint(gradient, NamedSharding(mesh, spec)),)

    gather.defvjp(lambda x: (gather(x), None), backward)
    return gather(jax.lax.with_sharding_constraint(weight, NamedSharding(mesh, spec)))


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """[A, R, T]: rows over the batch axes."""
    return NamedSharding(mesh, PartitionSpec(None, BATCH_AXES, None))


def replicated(mesh: Mesh) -> NamedSharding:
    return NamedSharding(mesh, PartitionSpec())


def batch_groups(mesh: Mesh) -> int:
    """Over how many devices the rows of a batch are spread."""
    return math.prod(mesh.shape[axis] for axis in BATCH_AXES)
