"""The plan of generation: `Engine`'s own programs, compiled for described devices.

A decode step reads all parameters, and of the cache what the longest answer has for all slots (on
GPUs what each has), for one token per slot: more slots are almost free until the cache is as large
as the parameters. Prompts are prefilled in chunks in between.
"""

import dataclasses
import math
import re
from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from alpacare_jax.checkpoints.frozen import FrozenBase
from alpacare_jax.distributed import sharding
from alpacare_jax.inference.cache import BLOCKS, Cache, access
from alpacare_jax.inference.engine import Engine
from alpacare_jax.inference.programs import BURST, DECODE
from alpacare_jax.inference.ragged_attention import KERNEL, KERNEL_KEYS
from alpacare_jax.inference.rows import PIECE
from alpacare_jax.model import layers, llama, params
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
    weights: str = ""  # form of the projections, one of `quantised.FORMATS`; "": the compute dtype


def abstract_engine(
    run_config: RunConfig, model_config: LlamaConfig, mesh: Mesh, workload: GenerationWorkload
) -> Engine:
    """The engine with abstract parameters.

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
    base = FrozenBase(model_config, mesh, run_config.sharding, dtype, workload.weights)
    abstract_params = base.abstract()
    if mesh.devices.flat[0].platform in layers.UNSTACKED_ON:
        abstract_params |= {"layers": _taken_apart(abstract_params["layers"])}
    return Engine(
        abstract_params,
        model_config,
        dtype=dtype,
        eos_ids=model_config.eos_token_ids,
        max_length=length,
        slots=workload.slots,
        mesh=mesh,
        rules=run_config.sharding.rules,
    )


def _taken_apart(stacked: params.Params) -> list[params.Params]:
    """As `layers.unstack` does it with arrays."""

    def first(leaf: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
        spec = PartitionSpec(*leaf.sharding.spec[1:])
        placed = NamedSharding(leaf.sharding.mesh, spec)
        return jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype, sharding=placed)

    return [jax.tree.map(first, stacked)] * jax.tree.leaves(stacked)[0].shape[0]


def loop_trips(keys: int, block: int) -> Callable[[str], float | None]:
    """The loop over decode steps runs a whole burst, attention reads the blocks of so many keys.

    Args:
      block: keys of one of XLA's; the kernel of GPUs has its own.
    """

    def trips(op_name: str) -> float | None:
        if re.search(rf"\b{BLOCKS}/while$", op_name):
            return -(-keys // block)
        if re.search(rf"\b{KERNEL}/.*while$", op_name):
            return -(-keys // KERNEL_KEYS)
        return BURST if re.search(rf"\b{DECODE}/while$", op_name) else None

    return trips


def kernel_bytes(cache: Cache, rows: int, keys: int, mesh: Mesh) -> dict[str, float]:
    """What a device reads in a layer with the kernel of GPUs: blocks of keys up to each row's end.

    Args:
      cache: the engine's.
    """
    (_, _, K, _, H), dtype = cache["k"].shape, cache["k"].dtype
    blocks = -(-keys // KERNEL_KEYS)
    return {KERNEL: 2 * rows * blocks * KERNEL_KEYS * K * H * dtype.itemsize / mesh.size}


def weight_bytes(engine: Engine) -> int:
    """Bytes of the parameters on one device."""
    return sum(
        math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
        for leaf in jax.tree.leaves(engine.params)
    )


def make_plan(
    run_config: RunConfig, topology: Topology, workload: GenerationWorkload
) -> dict[str, Any]:
    """Compiles a chunk of prefill and a burst of decode steps; returns what answering needs.

    A prefill is replicated over the axis `data`. A decode step that a chunk takes along is counted
    as one of its own, which is slower.
    """
    model_config = run_config.model.shape()
    mesh = sharding.make_mesh(run_config.sharding, topology.devices)
    engine = abstract_engine(run_config, model_config, mesh, workload)
    plan = roofline.device_summary(topology, mesh) | {
        "parameters": params.count(model_config),
        **dataclasses.asdict(workload),
    }
    found, prompt = [], workload.prompt_tokens
    for program, num_sharing, steps, rows, keys in zip(
        engine.trace(),
        (mesh.size // mesh.shape["data"], mesh.size),
        (engine.chunk / (-(-prompt // PIECE) * PIECE), BURST),  # a chunk prefills several prompts
        (engine.chunk // PIECE, engine.slots),
        (prompt, prompt + workload.new_tokens // 2),
        strict=True,
    ):
        needs = roofline.measure(
            program,
            topology,
            mesh,
            loop_trips(keys, access(mesh.devices.flat[0].platform, spread=False).keys),
            num_sharing,
            steps,
            kernel_bytes(program.out_info[0], rows, keys, mesh),
            {"cache": f"{BLOCKS}|{KERNEL}"},
        )
        found.append(needs)
        if "needed_bytes" not in found[-1]:
            return plan | found[-1]
    prefill, decode = found
    weights = weight_bytes(engine)
    # Prefill makes the first token.
    decode_seconds = (workload.new_tokens - 1) * decode["step_seconds"]
    answer_seconds = prefill["step_seconds"] + decode_seconds / workload.slots
    rounds = -(-workload.prompts // workload.slots)
    seconds = workload.prompts * prefill["step_seconds"] + rounds * decode_seconds
    memory = roofline.memory_use(
        topology.hbm_bytes,
        weight=weights,
        cache=decode["argument_bytes"] - weights,
        temporary=max(decode["temporary_bytes"], prefill["temporary_bytes"]),
        code=prefill["code_bytes"] + decode["code_bytes"],
    )
    return plan | {
        **memory,
        "compile_seconds": prefill["compile_seconds"] + decode["compile_seconds"],
        "prefill": prefill,
        "decode": decode,
        "tokens_per_second": workload.new_tokens / answer_seconds,
        "prefill_share": prefill["step_seconds"] / answer_seconds,
        "hours": seconds / 3600,
    }
