"""The plan of a training run: its step, compiled for described devices with nothing allocated."""

import dataclasses
import math
import re
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import optax
from jax.sharding import Mesh

from alpacare_jax.data import batches, encoding
from alpacare_jax.distributed import sharding
from alpacare_jax.model import loss, params
from alpacare_jax.model.config import VARIANTS, LlamaConfig
from alpacare_jax.planning import roofline
from alpacare_jax.planning.topologies import Topology
from alpacare_jax.training import batching, metrics, offload, optimizers, train_step
from alpacare_jax.training.config import RunConfig


@dataclasses.dataclass(frozen=True)
class Workload:
    """What is trained on, as far as a plan has to know it."""

    num_examples: int
    example_tokens: int  # mean length; lengths are spread evenly from half of it to 1.5 times
    answer_share: float  # share of tokens that carry loss


def typical_batch(
    config: RunConfig, shape: LlamaConfig, mesh: Mesh, work: Workload
) -> batches.Step:
    """One step's batch as training would make it, of examples with the workload's lengths."""
    count = config.train.batch_size
    lengths = np.linspace(0.5, 1.5, count) * work.example_tokens
    lengths = np.clip(lengths.round().astype(int), 2, config.data.max_length)
    examples = [
        encoding.EncodedExample(np.zeros(n, np.int32), max(1, round(n * (1 - work.answer_share))))
        for n in lengths.tolist()
    ]
    return batching.make_batcher(examples, count, config, shape, mesh).batch(0)


def _update(config: RunConfig, shape: LlamaConfig) -> optax.GradientTransformation:
    num_steps = 1000  # any: programs differ in a number only
    return optimizers.make(
        config.optimizer, num_steps, params.decay_mask(shape), params.matrix_axes(shape)
    )


def least_bytes(config: RunConfig, shape: LlamaConfig, mesh: Mesh) -> int:
    """Bytes that a device needs whatever the compiler does, known without it.

    Weights, moments that are not in the host's memory, and all gradients: no weight is updated
    before the norm of all of them is known.

    Raises:
      ValueError: a length does not divide over the mesh, or the host's memory is out of reach.
    """
    state = train_step.abstract_state(shape, config, _update(config, shape), mesh)
    held = lambda leaf: (  # noqa: E731
        math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
        if leaf.sharding.memory_kind != offload.HOST_MEMORY
        else 0
    )
    return sum(map(held, jax.tree.leaves(state) + jax.tree.leaves(state["params"])))


def trace_step(
    config: RunConfig, shape: LlamaConfig, mesh: Mesh, batch: batches.Step
) -> jax.stages.Traced:
    """The real training step, traced for abstract arguments."""
    update = _update(config, shape)
    step, _ = train_step.make_steps(shape, config, update, mesh)
    spread = sharding.batch_sharding(mesh)
    arrays = {
        name: jax.ShapeDtypeStruct(array.shape, array.dtype, sharding=spread)
        for name, array in batch.arrays.items()
    }
    return step.trace(
        train_step.abstract_state(shape, config, update, mesh),
        arrays,
        jax.ShapeDtypeStruct((), np.int32),
        jax.ShapeDtypeStruct((mesh.size,), np.float32, sharding=sharding.flag_sharding(mesh)),
    )


def loop_trips(config: RunConfig, mesh: Mesh, batch: batches.Step) -> Callable[[str], float | None]:
    """How often the loops run whose number of trips is in the data, by their name in a program."""
    rows = batch.arrays["tokens"].shape[1] // sharding.batch_groups(mesh)
    chunk = max(1, config.model.loss_tokens // rows)
    most = max(np.count_nonzero(batch.arrays["weights"][: batch.num_micro], axis=-1).flat)
    known = {train_step.ACCUMULATE: batch.num_micro, loss.CHUNKS: -(-int(most) // chunk)}

    def trips(op_name: str) -> float | None:
        # jit(train_step)/accumulate/while, .../jvp(loss_chunks)/while
        scope = re.search(r"(\w+)\)*/while$", op_name)
        return known.get(scope[1]) if scope else None

    return trips


def make_plan(
    config: RunConfig, where: Topology, work: Workload, price: float | None
) -> dict[str, Any]:
    """Compiles one training step and works out what it needs and how fast it could be."""
    shape = VARIANTS[config.model.variant]
    mesh = sharding.make_mesh(config.sharding, where.devices)
    batch = typical_batch(config, shape, mesh, work)
    traced = trace_step(config, shape, mesh, batch)
    A, R, T = batch.arrays["tokens"].shape
    plan = roofline.machine(where, mesh) | {
        "rows": f"{A} x {R} x {T}",
        "micro_batches": batch.num_micro,
        "real_token_share": batch.num_tokens / batch.num_computed,
        "parameters": params.count(shape),
        "optimizer": optimizers.describe(config.optimizer),
    }
    plan |= roofline.measure(traced, where, mesh, loop_trips(config, mesh, batch), mesh.size)
    if "needed_bytes" not in plan:
        return plan
    step = plan["step_seconds"]
    model = metrics.train_flops(shape, batch.num_tokens, batch.num_pairs, batch.num_targets)
    steps = work.num_examples // config.train.batch_size * config.train.epochs
    return (
        plan
        | {
            "model_flops": model,
            "mfu_ceiling": model / (step * mesh.size * where.flops),
            "tokens_per_second": batch.num_tokens / step,
            "steps": steps,
        }
        | roofline.bill(where, steps * step, price)
    )
