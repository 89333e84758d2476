"""The plan of a training run: its step, compiled for described devices with nothing allocated."""

import dataclasses
import re
from collections.abc import Callable
from typing import Any

import numpy as np

from alpacare_jax.data import encoding, token_store
from alpacare_jax.distributed import sharding
from alpacare_jax.model import loss, params
from alpacare_jax.planning import programs, remat, roofline
from alpacare_jax.planning.topologies import Topology
from alpacare_jax.training import batching, metrics, optimizers
from alpacare_jax.training.config import RunConfig
from alpacare_jax.training.train_step import ACCUMULATE, TrainingProgram


@dataclasses.dataclass(frozen=True)
class TrainingWorkload:
    """What a plan has to know of the training data."""

    num_examples: int
    example_tokens: int  # mean length; lengths are uniform from half of it to 1.5 times
    answer_share: float  # share of tokens that carry loss


def typical_batch(program: TrainingProgram, workload: TrainingWorkload) -> token_store.Step:
    """One step's batch, laid out as in training, of examples with the workload's lengths."""
    run_config = program.run_config
    size = run_config.train.batch_size
    count = size * run_config.preference.answers
    lengths = np.linspace(0.5, 1.5, count) * workload.example_tokens
    lengths = np.clip(lengths.round().astype(int), 2, run_config.data.max_length)
    prompt_share = 1 - workload.answer_share
    examples = [
        encoding.EncodedExample(np.zeros(n, np.int32), max(1, round(n * prompt_share)))
        for n in lengths.tolist()
    ]
    batcher = batching.make_batcher(examples, size, run_config, program.model_config, program.mesh)
    return batcher.batch(0)


def loop_trips(program: TrainingProgram, batch: token_store.Step) -> Callable[[str], float | None]:
    """Trip counts that depend on the data, as a function of a loop's name in the program."""
    rows = batch.arrays["tokens"].shape[1] // sharding.batch_groups(program.mesh)
    chunk = max(1, program.run_config.model.loss_tokens // rows)
    targets = np.count_nonzero(batch.arrays["weights"][: batch.num_micro], axis=-1).max()
    known = {ACCUMULATE: batch.num_micro, loss.CHUNKS: -(-int(targets) // chunk)}

    def trips(op_name: str) -> float | None:
        # jit(train_step)/accumulate/while, .../jvp(loss_chunks)/while
        scope = re.search(r"(\w+)\)*/while$", op_name)
        return known.get(scope[1]) if scope else None

    return trips


def make_plan(
    run_config: RunConfig, topology: Topology, workload: TrainingWorkload
) -> dict[str, Any]:
    """Compiles one training step; returns what it needs and how fast it could be."""
    program = programs.make_program(run_config, topology.devices)
    model_config, mesh = program.model_config, program.mesh
    batch, choice = typical_batch(program, workload), None
    if run_config.model.remat == "auto":
        program, choice = remat.choose(program, batch.arrays, topology)
    A, R, T = batch.arrays["tokens"].shape
    plan = roofline.device_summary(topology, mesh) | {
        "rows": f"{A} x {R} x {T}",
        "micro_batches": batch.num_micro,
        "real_token_share": batch.num_tokens / batch.num_computed,
        "parameters": params.count(model_config),
        "trained_parameters": params.count(program.trained),
        "base": run_config.lora.base if program.adapter else "",
        "optimizer": optimizers.describe(run_config.optimizer),
        "remat": str(choice or run_config.model.remat),
        "fp8": run_config.train.fp8,
    }
    trips = loop_trips(program, batch)
    traced = programs.trace_step(program, batch.arrays)
    plan |= roofline.measure(traced, topology, mesh, trips, mesh.size)
    if choice:
        plan |= {"compile_seconds": choice.compile_seconds, "choice": dataclasses.asdict(choice)}
    if "needed_bytes" not in plan:
        return plan
    step = plan["step_seconds"]
    model_flops = metrics.train_flops(
        model_config, batch.num_tokens, batch.num_pairs, batch.num_targets, program.adapter
    )
    steps = workload.num_examples // run_config.train.batch_size * run_config.train.epochs
    return plan | {
        "model_flops": model_flops,
        "mfu_ceiling": model_flops / (step * mesh.size * topology.flops),
        "tokens_per_second": batch.num_tokens / step,
        "steps": steps,
        "hours": steps * step / 3600,
    }
