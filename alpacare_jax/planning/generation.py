"""The plan of generation: `Engine`'s own programs, compiled for described devices.

A step of decoding reads all weights and the whole cache for one token a slot, so more slots are
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
from alpacare_jax.model.config import VARIANTS, LlamaConfig
from alpacare_jax.planning import roofline
from alpacare_jax.planning.topologies import Topology
from alpacare_jax.training.config import RunConfig


@dataclasses.dataclass(frozen=True)
class Workload:
    """What is generated."""

    prompts: int
    prompt_tokens: int  # of each
    new_tokens: int  # of each answer
    slots: int  # answers under way at a time


def abstract_engine(config: RunConfig, shape: LlamaConfig, mesh: Mesh, work: Workload) -> Engine:
    """The engine with described weights, greedy.

    Raises:
      ValueError: prompt and answer are longer than the model's positions.
    """
    length = work.prompt_tokens + work.new_tokens
    if length > shape.max_position_embeddings:
        raise ValueError(
            f"--prompt_tokens and --new_tokens are {length:,} together, over the model's "
            f"max_position_embeddings {shape.max_position_embeddings:,}; lower them"
        )
    dtype = llama.compute_dtype(config.model.dtype, mesh.devices.flat[0].platform)
    weights = jax.tree.map(
        lambda leaf, spread: jax.ShapeDtypeStruct(leaf.shape, dtype, sharding=spread),
        params.abstract(shape),
        sharding.param_shardings(shape, mesh, config.sharding),
    )
    return Engine(
        weights,
        shape,
        dtype=dtype,
        eos_ids=shape.eos_token_ids,
        max_length=length,
        slots=work.slots,
        sampling=Sampling(),
        mesh=mesh,
        rules=config.sharding.rules,
    )


def loop_trips(op_name: str) -> float | None:
    """The loop over decode steps runs a whole burst."""
    return BURST if re.search(rf"\b{DECODE}/while$", op_name) else None


def a_step(burst: dict[str, Any]) -> dict[str, Any]:
    """One decode step's share of a burst."""
    share = 1 / BURST
    moved = [
        c | {"count": c["count"] * share, "num_bytes": c["num_bytes"] * share}
        for c in burst["collectives"]
    ]
    numbers = ("hardware_flops", "hbm_traffic_bytes", "step_seconds")
    return burst | {
        "collectives": moved,
        "seconds": {name: share * s for name, s in burst["seconds"].items()},
        **{name: share * burst[name] for name in numbers},
    }


def peak(prefill: dict[str, Any], decode: dict[str, Any], available: float) -> dict[str, Any]:
    """Bytes that a device needs at most, from what both programs need.

    Weights and cache are there all the time. On top comes the largest of: what decoding works
    with; what a prefill works with, and its result; or the cache of half the length while it is
    copied into the one that takes its place.
    """
    weights = prefill["argument_bytes"]
    cache = decode["argument_bytes"] - weights
    working = max(
        decode["temporary_bytes"], prefill["temporary_bytes"] + prefill["result_bytes"], cache // 2
    )
    code = prefill["code_bytes"] + decode["code_bytes"]
    needed = weights + cache + working + code
    return {
        "fits": needed <= available,
        "available_bytes": available,
        "needed_bytes": needed,
        "weight_bytes": weights,
        "cache_bytes": cache,
        "temporary_bytes": working,
        "code_bytes": code,
    }


def make_plan(
    config: RunConfig, where: Topology, work: Workload, price: float | None
) -> dict[str, Any]:
    """Compiles one prompt's prefill and the decode steps, and works out what answering needs.

    Every part of the axis `data` repeats a prefill: one prompt has no rows to spread.
    """
    shape = VARIANTS[config.model.variant]
    mesh = sharding.make_mesh(config.sharding, where.devices)
    programs = abstract_engine(config, shape, mesh, work).trace(work.prompt_tokens)
    plan = roofline.machine(where, mesh) | {
        "parameters": params.count(shape),
        **dataclasses.asdict(work),
    }
    sharing = (mesh.size // mesh.shape["data"], mesh.size)
    found = []
    for program, devices in zip(programs, sharing, strict=True):
        found.append(roofline.measure(program, where, mesh, loop_trips, devices))
        if "needed_bytes" not in found[-1]:
            return plan | found[-1]
    prefill, decode = found[0], a_step(found[1])
    decoding_one = (work.new_tokens - 1) * decode["step_seconds"]  # prefill makes the first token
    answer = prefill["step_seconds"] + decoding_one / work.slots
    rounds = -(-work.prompts // work.slots)
    return plan | {
        **peak(prefill, decode, where.hbm_bytes),
        "compile_seconds": prefill["compile_seconds"] + decode["compile_seconds"],
        "prefill": prefill,
        "decode": decode,
        "tokens_per_second": work.new_tokens / answer,
        "prefill_share": prefill["step_seconds"] / answer,
        **roofline.bill(
            where, work.prompts * prefill["step_seconds"] + rounds * decoding_one, price
        ),
    }
