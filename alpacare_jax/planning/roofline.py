"""What one run of a compiled program needs, and its minimum time, for `plan`.

The bounds assume that compute, memory and network overlap perfectly, each at its data sheet's
rate, with no latency: no run is faster; a good one is within a third.
"""

import dataclasses
import functools
import math
import time
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import jax
from jax.extend import core as jax_core
from jax.interpreters import partial_eval
from jax.sharding import Mesh

from alpacare_jax.planning import collectives, hlo
from alpacare_jax.planning.topologies import Topology
from common import messages


def measure(
    traced: jax.stages.Traced,
    topology: Topology,
    mesh: Mesh,
    trips: Callable[[str], float | None],
    num_sharing: int,
    steps: float = 1,
    kernels: Mapping[str, float] = MappingProxyType({}),
    scopes: Mapping[str, str] = MappingProxyType({}),
) -> dict[str, Any]:
    """Compiles a traced program; returns what one step needs.

    Args:
      trips: trip counts of loops that depend on data; see `hlo.parse`.
      num_sharing: devices that share the matrix products; the others repeat them.
      steps: steps in a run of the program, which share its FLOPs and traffic.
      kernels: see `hlo.hbm_bytes`.
      scopes: patterns of op_names whose part of the traffic is asked for, as `NAME_traffic_bytes`.

    Returns:
      What `compile_traced` counts, FLOPs of all devices that share, HBM and network bytes of one
      device, and its minimum seconds. Without traffic, for which `traffic_error` gives the reason,
      if the program's text could not be parsed.
    """
    compiled, needs = compile_traced(traced, topology.hbm_bytes)
    if compiled is None:
        return needs
    needs["hardware_flops"] = traced_flops(traced, trips) / steps
    try:
        program = hlo.parse(compiled.as_text() or "", trips)
        moved = collectives.find(program, mesh.shape, topology.slices)
        for name, scope in ({"hbm": ""} | dict(scopes)).items():
            needs[f"{name}_traffic_bytes"] = hlo.hbm_bytes(program, kernels, scope) / steps
        needs["collectives"] = [dataclasses.asdict(c.scaled(1 / steps)) for c in moved]
    except (ValueError, LookupError, TypeError) as error:  # another version of XLA writes it so
        messages.log(
            f"the compiled program could not be parsed ({error}), so the plan has memory and FLOPs "
            f"but no traffic; it was tested with jax {hlo.TESTED_WITH}, this is {jax.__version__}"
        )
        needs |= {"traffic_error": str(error), "hbm_traffic_bytes": 0.0, "collectives": []}
    return needs | least_seconds(needs, topology, num_sharing)


def compile_traced(
    traced: jax.stages.Traced, available: float
) -> tuple[jax.stages.Compiled | None, dict[str, Any]]:
    """A compiled program, the seconds that it took, and `memory_needs`.

    Or None, if the compiler ran out of memory, with `fits` and `reason` in place of the needs.
    """
    start, compiled, needs = time.perf_counter(), None, {}
    try:
        compiled = traced.lower().compile()
        needs = memory_needs(compiled.memory_analysis(), available)
    except jax.errors.JaxRuntimeError as error:
        text = str(error)
        if "RESOURCE_EXHAUSTED" not in text:
            raise
        needs = {"fits": False, "reason": text.splitlines()[0]}
    return compiled, needs | {"compile_seconds": time.perf_counter() - start}


def least_seconds(needs: Mapping[str, Any], topology: Topology, num_sharing: int) -> dict[str, Any]:
    """The minimum seconds of a run by each resource, and which of them bounds it."""
    sent = dict.fromkeys((False, True), 0.0)
    for moved in needs["collectives"]:
        sent[moved["between_slices"]] += moved["num_bytes"]
    seconds = {"compute": needs["hardware_flops"] / num_sharing / topology.flops}
    if "traffic_error" not in needs:
        seconds["memory"] = needs["hbm_traffic_bytes"] / topology.hbm_rate
        seconds["network"] = sent[False] / topology.ici_rate
    if needs["host_bytes"]:  # moments come in and go out at the same time
        seconds["host"] = needs["host_bytes"] / topology.host_rate
    if topology.slices > 1:
        seconds["between slices"] = sent[True] / topology.dcn_rate
    bound = max(seconds, key=lambda resource: seconds[resource])
    return {"seconds": seconds, "bound": bound, "step_seconds": seconds[bound]}


def device_summary(topology: Topology, mesh: Mesh) -> dict[str, Any]:
    """The part of a plan that describes its devices."""
    return {
        "topology": topology.name,
        "chips": topology.chips,
        "devices": mesh.size,
        "mesh": {axis: size for axis, size in mesh.shape.items() if size > 1},
    }


def run_cost(plan: Mapping[str, Any], price: float | None) -> dict[str, float]:
    """What a planned run costs, if its hours and a price per chip-hour are known."""
    if price is None or "hours" not in plan:
        return {}
    return {"cost": plan["hours"] * plan["chips"] * price}


def memory_needs(analysis: Any, available: float) -> dict[str, Any]:
    """Bytes on one device; results that reuse the memory of donated arguments need none."""
    device = memory_use(
        available,
        argument=analysis.argument_size_in_bytes,
        result=analysis.output_size_in_bytes - analysis.alias_size_in_bytes,
        temporary=analysis.temp_size_in_bytes,
        code=analysis.generated_code_size_in_bytes,
    )
    host = analysis.host_argument_size_in_bytes + analysis.host_temp_size_in_bytes
    return device | {"host_bytes": host}


def memory_use(available: float, **parts: int) -> dict[str, Any]:
    """Whether parts of a device's memory, in bytes, fit together; each as `NAME_bytes`."""
    needed = sum(parts.values())
    sizes = {"available": available, "needed": needed} | parts
    return {"fits": needed <= available} | {f"{name}_bytes": n for name, n in sizes.items()}


CUDNN_PRODUCTS = {
    "dot_product_attention_fwd_wrapper": 2,
    "dot_product_attention_bwd_wrapper": 5,
}
"""Matrix products of T x S x H inside cuDNN's attention: scores and values; backward the scores
again, and gradients of all four operands (arXiv:2205.14135)."""


def traced_flops(traced: jax.stages.Traced, trips: Callable[[str], float | None]) -> float:
    """`matmul_flops` of a traced program, without what no result depends on.

    Under a remat policy JAX traces a kernel's forward pass again even where all that the backward
    pass takes of it is kept; the compiler drops it.
    """
    jaxpr = traced.jaxpr.jaxpr
    needed, _ = partial_eval.dce_jaxpr(jaxpr, [True] * len(jaxpr.outvars))
    return matmul_flops(needed, trips)


def matmul_flops(jaxpr: jax_core.Jaxpr, trips: Callable[[str], float | None]) -> float:
    """FLOPs of all matrix products of a traced program, loops and recomputation included.

    Those of 8-bit operands count half: GPUs do twice as many a second.

    Raises:
      ValueError: `trips` does not know a loop whose trip count depends on data.
    """
    total = 0.0
    for equation in jaxpr.eqns:
        name = equation.primitive.name
        avals: list[Any] = [each.aval for each in (*equation.invars, *equation.outvars)]
        shapes: list[Any] = [getattr(aval, "shape", ()) for aval in avals]
        if name == "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            inner = math.prod(shapes[0][i] for i in contracted)
            rate = 2 if avals[0].dtype.itemsize == 1 else 1
            total += 2.0 / rate * inner * math.prod(shapes[-1])
            continue
        if name in CUDNN_PRODUCTS:
            (B, T, N, H), (_, S, *_) = shapes[:2]
            total += CUDNN_PRODUCTS[name] * 2.0 * B * N * T * S * H
            continue
        times: float | None = 1.0
        scope, trips_inside = str(equation.source_info.name_stack), trips
        if name == "pallas_call":
            times = math.prod(equation.params["grid_mapping"].grid)
            trips_inside = functools.partial(_trips_within, trips, scope)
        elif name == "shard_map":  # written for one device
            times = equation.params["mesh"].size
        elif name == "scan":
            times = equation.params["length"]
        elif name == "while":
            times = trips(f"{scope}/while")
        if times is None:
            raise ValueError(f"a loop at {scope} has no known length")
        subs = jax_core.jaxprs_in_params(equation.params)
        inside = [matmul_flops(sub, trips_inside) for sub in subs]
        total += times * (max(inside, default=0.0) if name == "cond" else sum(inside))
    return total


def _trips_within(trips: Callable[[str], float | None], scope: str, op_name: str) -> float | None:
    """Trip counts of the loops in a kernel, whose names begin anew."""
    return trips(f"{scope}/{op_name}")
