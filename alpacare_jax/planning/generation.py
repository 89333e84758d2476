"""The plan of generation: `Engine`'s own programs, compiled for described devices.

A decode step reads all parameters and the whole cache for one token per slot, so more slots are
almost free until the cache fills the memory. Prompts are prefilled one at a time in between.
"""

import dataclasses
import re
from typing import Any

import jax
from jax.sharding import Mesh

from alpacare_jax.distributed import sharding
from alpacare_jax.inference.engine import BURST, DECODE, Engine
from alpacare_jax.inference.sampling import Sampling
from alpacare_jax.model import llama, params
from alpacare_jax.model.config import LlamaConfig
from alpacare_jax.planning import roofline
from alpacare_jax.planning.topologies import Topology
from alpacare_jax.training.config import RunConfig


@dataclasses.dataclass(frozen=True)
class GenerationWorkload:
    """What is generated."""

    prompts: int
    prompt_tokens: int  # of each
    new_tokens: int  # of each answer
    slots: int  # answers generated at a time


def abstract_engine(
    run_config: RunConfig, model_config: LlamaConfig, mesh: Mesh, workload: GenerationWorkload
) -> Engine:
    """The engine with abstract parameters and greedy sampling.

    Raises:
      ValueError: prompt and answer together exceed the model's positions.
    """
    length = workload.prompt_tokens + workload.new_tokens
    if length > model_config.max_position_embeddings:
        raise ValueError(
            f"--prompt_tokens and --new_tokens are {length:,} together, over the model's "
            f"max_position_embeddings {model_config.max_position_embeddings:,}; lower them"
        )
    dtype = llama.compute_dtype(run_config.model.dtype, mesh.devices.flat[0].platform)
    abstract_params = jax.tree.map(
        lambda leaf, s: jax.ShapeDtypeStruct(leaf.shape, dtype, sharding=s),
        params.abstract(model_config),
        sharding.param_shardings(model_config, mesh, run_config.sharding),
    )
    return Engine(
        abstract_params,
        model_config,
        dtype=dtype,
        eos_ids=model_config.eos_token_ids,
        max_length=length,
        slots=workload.slots,
        sampling=Sampling(),
        mesh=mesh,
        rules=run_config.sharding.rules,
    )


def loop_trips(op_name: str) -> float | None:
    """The loop over decode steps runs a whole burst."""
    return BURST if re.search(rf"\b{DECODE}/while$", op_name) else None


def peak_memory(
    prefill: dict[str, Any], decode: dict[str, Any], available: float
) -> dict[str, Any]:
    """A device's peak memory in bytes, from what both programs need.

    Parameters and cache are always held. On top comes the largest of: the temporaries of decoding;
    those of a prefill, and its result; or the cache of half the length while it is copied into its
    replacement.
    """
    cache = decode["argument_bytes"] - prefill["argument_bytes"]
    prefill_bytes = prefill["temporary_bytes"] + prefill["result_bytes"]
    return roofline.memory_use(
        available,
        weight=prefill["argument_bytes"],
        cache=cache,
        temporary=max(decode["temporary_bytes"], prefill_bytes, cache // 2),
        code=prefill["code_bytes"] + decode["code_bytes"],
    )


def make_plan(
    run_config: RunConfig, topology: Topology, workload: GenerationWorkload
) -> dict[str, Any]:
    """Compiles one prompt's prefill and a burst of decode steps; returns what answering needs.

    A prefill is replicated over the axis `data`: one prompt has no rows to shard.
    """
    model_config = run_config.model.shape()
    mesh = sharding.make_mesh(run_config.sharding, topology.devices)
    engine = abstract_engine(run_config, model_config, mesh, workload)
    prefill_program, decode_program = engine.trace(workload.prompt_tokens)
    plan = roofline.device_summary(topology, mesh) | {
        "parameters": params.count(model_config),
        **dataclasses.asdict(workload),
    }
    found = []
    for program, num_sharing, steps in (
        (prefill_program, mesh.size // mesh.shape["data"], 1),
        (decode_program, mesh.size, BURST),
    ):
        found.append(roofline.measure(program, topology, mesh, loop_trips, num_sharing, steps))
        if "needed_bytes" not in found[-1]:
            return plan | found[-1]
    prefill, decode = found
    # Prefill makes the first token.
    decode_seconds = (workload.new_tokens - 1) * decode["step_seconds"]
    answer_seconds = prefill["step_seconds"] + decode_seconds / workload.slots
    rounds = -(-workload.prompts // workload.slots)
    seconds = workload.prompts * prefill["step_seconds"] + rounds * decode_seconds
    return plan | {
        **peak_memory(prefill, decode, topology.hbm_bytes),
        "compile_seconds": prefill["compile_seconds"] + decode["compile_seconds"],
        "prefill": prefill,
        "decode": decode,
        "tokens_per_second": workload.new_tokens / answer_seconds,
        "prefill_share": prefill["step_seconds"] / answer_seconds,
        "hours": seconds / 3600,
    }
