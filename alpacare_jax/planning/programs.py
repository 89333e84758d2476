"""The program of a training run, for described devices: traced, with nothing allocated."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from alpacare_jax.distributed import sharding
from alpacare_jax.training import batching
from alpacare_jax.training.config import RunConfig
from alpacare_jax.training.train_step import TrainingProgram


def make_program(run_config: RunConfig, devices: Sequence[Any]) -> TrainingProgram:
    """The program of a config, for as many steps as any: programs differ in a constant only.

    Raises:
      ValueError: the mesh does not divide the devices, or they have no fp8 that is asked for.
    """
    mesh = sharding.make_mesh(run_config.sharding, devices)
    if run_config.train.fp8:
        batching.check_fp8(mesh)
    return TrainingProgram(run_config.model.shape(), run_config, 1000, mesh)


def least_bytes(program: TrainingProgram) -> int:
    """Bytes that a device needs whatever the compiler does, known without compiling.

    Parameters, frozen ones too, moments that are not in host memory, and all gradients: no
    parameter is updated before the norm of all gradients is known.

    Raises:
      ValueError: a length does not divide over the mesh, or offloading is not supported.
    """
    state = program.abstract_state()

    def device_bytes(leaf: jax.ShapeDtypeStruct) -> int:
        if leaf.sharding.memory_kind == sharding.HOST_MEMORY:
            return 0
        return math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize

    base, gradients = program.abstract_base(), state["params"]
    return sum(map(device_bytes, jax.tree.leaves((state, base, gradients))))


def trace_step(program: TrainingProgram, arrays: Mapping[str, np.ndarray]) -> jax.stages.Traced:
    """The real training step, traced for abstract arguments; `arrays` are those of a batch.

    jax.jit keeps what is compiled of it: a run that calls `program.steps` compiles no second time.
    """
    step, _ = program.steps
    rows, flags = sharding.batch_sharding(program.mesh), sharding.flag_sharding(program.mesh)
    return step.trace(
        program.abstract_state(),
        {
            name: jax.ShapeDtypeStruct(array.shape, array.dtype, sharding=rows)
            for name, array in arrays.items()
        },
        jax.ShapeDtypeStruct((), np.int32),
        jax.ShapeDtypeStruct((program.mesh.size,), np.float32, sharding=flags),
        program.abstract_base(),
    )
