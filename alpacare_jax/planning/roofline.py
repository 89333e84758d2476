"""What one run of a compiled program needs, and the least time it takes, for `plan`.

Ceilings assume that computing, memory and network overlap perfectly, each at its data sheet's rate,
and that messages set out at once: no run is faster; a good one is within a third.
"""

import dataclasses
import math
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
from jax.extend import core as jax_core
from jax.sharding import Mesh

from alpacare_jax.planning import collectives, hlo
from alpacare_jax.planning.topologies import Topology


def measure(
    traced: jax.stages.Traced,
    where: Topology,
    mesh: Mesh,
    trips: Callable[[str], float | None],
    sharing: int,
) -> dict[str, Any]:
    """Compiles a traced program and works out what one run of it needs.

    Args:
      trips: how often loops run where data decide that; see `hlo.parse`.
      sharing: devices that share the matrix products; the others repeat them.

    Returns:
      `memory`'s bytes, FLOPs of all devices that share, HBM and network bytes of one device, and
      its least seconds; only `fits` and `why` where the compiler gave up for want of memory.
    """
    began = time.perf_counter()
    try:
        compiled = traced.lower().compile()
    except jax.errors.JaxRuntimeError as error:
        text = str(error)
        if "RESOURCE_EXHAUSTED" not in text:
            raise
        return {"fits": False, "why": text.splitlines()[0]}
    needs = {"compile_seconds": time.perf_counter() - began}
    needs |= memory(compiled.memory_analysis(), where.hbm_bytes)
    program = hlo.parse(compiled.as_text(), trips)
    moved = collectives.find(program, mesh.shape, where.slices)
    needs |= {
        "hardware_flops": matmul_flops(traced.jaxpr.jaxpr, trips),
        "hbm_traffic_bytes": hlo.hbm_bytes(program),
        "collectives": [dataclasses.asdict(c) for c in moved],
    }
    return needs | least_seconds(needs, where, sharing)


def least_seconds(needs: Mapping[str, Any], where: Topology, sharing: int) -> dict[str, Any]:
    """The least seconds of a run for each resource, and which of them bounds it."""
    sent = dict.fromkeys((False, True), 0.0)
    for moved in needs["collectives"]:
        sent[moved["between_slices"]] += moved["num_bytes"]
    seconds = {
        "compute": needs["hardware_flops"] / sharing / where.flops,
        "memory": needs["hbm_traffic_bytes"] / where.hbm_rate,
        "network": sent[False] / where.ici_rate,
    }
    if needs["host_bytes"]:  # moments come, and go at the same time
        seconds["host"] = needs["host_bytes"] / where.host_rate
    if where.slices > 1:
        seconds["between slices"] = sent[True] / where.dcn_rate
    bound = max(seconds, key=seconds.get)
    return {"seconds": seconds, "bound": bound, "step_seconds": seconds[bound]}


def machine(where: Topology, mesh: Mesh) -> dict[str, Any]:
    """What a plan says of its devices."""
    return {
        "topology": where.name,
        "chips": where.chips,
        "devices": mesh.size,
        "mesh": {axis: size for axis, size in mesh.shape.items() if size > 1},
    }


def bill(where: Topology, seconds: float, price: float | None) -> dict[str, float]:
    """Hours, and what they cost at a price a chip-hour."""
    hours = seconds / 3600
    return {"hours": hours} | ({} if price is None else {"cost": hours * where.chips * price})


def memory(found: Any, available: float) -> dict[str, Any]:
    """Bytes on one device; results that take the place of donated arguments need none."""
    result = found.output_size_in_bytes - found.alias_size_in_bytes
    needed = (
        found.argument_size_in_bytes
        + result
        + found.temp_size_in_bytes
        + found.generated_code_size_in_bytes
    )
    return {
        "fits": needed <= available,
        "available_bytes": available,
        "needed_bytes": needed,
        "argument_bytes": found.argument_size_in_bytes,
        "result_bytes": result,
        "temporary_bytes": found.temp_size_in_bytes,
        "code_bytes": found.generated_code_size_in_bytes,
        "host_bytes": found.host_argument_size_in_bytes + found.host_temp_size_in_bytes,
    }


CUDNN_PRODUCTS = {
    "dot_product_attention_fwd_wrapper": 2,
    "dot_product_attention_bwd_wrapper": 5,
}
"""Matrix products of T x S x H inside cuDNN's attention: scores and values; backward the scores
again, and gradients of all four operands (arXiv:2205.14135)."""


def matmul_flops(jaxpr: jax_core.Jaxpr, trips: Callable[[str], float | None]) -> float:
    """FLOPs of all matrix products of a traced program, loops and recomputation included."""
    total = 0.0
    for equation in jaxpr.eqns:
        name = equation.primitive.name
        if name == "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            left = equation.invars[0].aval.shape
            inner = math.prod(left[i] for i in contracted)
            total += 2.0 * inner * math.prod(equation.outvars[0].aval.shape)
            continue
        if name in CUDNN_PRODUCTS:
            (B, T, N, H), (_, S, *_) = (v.aval.shape for v in equation.invars[:2])
            total += CUDNN_PRODUCTS[name] * 2.0 * B * N * T * S * H
            continue
        times = 1.0
        if name == "pallas_call":
            times = math.prod(equation.params["grid_mapping"].grid)
        elif name == "shard_map":  # written for one device
            times = equation.params["mesh"].size
        elif name == "scan":
            times = equation.params["length"]
        elif name == "while":
            times = trips(f"{equation.source_info.name_stack}/while")
            if times is None:
                raise ValueError(f"a loop at {equation.source_info.name_stack} has no known length")
        inside = [matmul_flops(sub, trips) for sub in jax_core.jaxprs_in_params(equation.params)]
        total += times * (max(inside, default=0.0) if name == "cond" else sum(inside))
    return total
