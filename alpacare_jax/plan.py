"""Compiles a run for machines that are not there: does it fit, how fast could it be, what it costs.

    python -m alpacare_jax.plan --config=configs/alpacare.py:llama-7b --topology=v5e-16

The training step itself is compiled by the TPU's own compiler, which runs on any Linux machine
(extra [tpu]), with nothing allocated; `--topology=local` takes the devices that are there. Ceilings
assume that computing, memory and network overlap perfectly and each run at its data sheet's rate:
no run is faster; a good one is within a third.
"""

import dataclasses
import itertools
import math
import os
import re
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from absl import flags
from jax.extend import core as jax_core
from jax.sharding import Mesh

from alpacare_jax import (
    data,
    hlo,
    llama,
    loss,
    metrics,
    optimizer,
    params,
    sharding,
    topology,
    train,
    train_step,
)
from alpacare_jax.llama_config import LlamaConfig
from alpacare_jax.run_config import RunConfig
from contract import cli, provenance, sections


@dataclasses.dataclass(frozen=True)
class Workload:
    """What is trained on, as far as a plan has to know it."""

    num_examples: int
    example_tokens: int  # mean length; lengths are spread evenly from half of it to 1.5 times
    answer_share: float  # share of tokens that carry loss


def typical_batch(config: RunConfig, shape: LlamaConfig, mesh: Mesh, work: Workload) -> data.Step:
    """One step's batch as training would make it, of examples with the workload's lengths."""
    count = config.train.batch_size
    lengths = np.linspace(0.5, 1.5, count) * work.example_tokens
    lengths = np.clip(lengths.round().astype(int), 2, config.data.max_length)
    examples = [
        data.Encoded(np.zeros(n, np.int32), max(1, round(n * (1 - work.answer_share))))
        for n in lengths.tolist()
    ]
    return train.make_batcher(examples, count, config, shape, mesh).batch(0)


def trace_step(
    config: RunConfig, shape: LlamaConfig, mesh: Mesh, batch: data.Step
) -> jax.stages.Traced:
    """The real training step, traced for abstract arguments."""
    update = optimizer.make(
        config.optimizer, 1000, params.decay_mask(shape), params.matrix_axes(shape)
    )
    step, _ = train_step.make_steps(shape, config, update, mesh)
    spread = sharding.of_batch(mesh)
    arrays = {
        name: jax.ShapeDtypeStruct(array.shape, array.dtype, sharding=spread)
        for name, array in batch.arrays.items()
    }
    return step.trace(
        train_step.abstract_state(shape, config, update, mesh),
        arrays,
        jax.ShapeDtypeStruct((), np.int32),
        jax.ShapeDtypeStruct((mesh.size,), np.float32, sharding=sharding.of_flags(mesh)),
    )


def loop_trips(config: RunConfig, mesh: Mesh, batch: data.Step) -> Callable[[str], float | None]:
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


def make_plan(
    config: RunConfig, where: topology.Topology, work: Workload, price: float | None
) -> dict[str, Any]:
    """Compiles one training step and works out what it needs and how fast it could be."""
    shape = llama.VARIANTS[config.model.variant]
    mesh = sharding.make_mesh(config.sharding, where.devices)
    batch = typical_batch(config, shape, mesh, work)
    traced = trace_step(config, shape, mesh, batch)
    A, R, T = batch.arrays["tokens"].shape
    plan = {
        "topology": where.name,
        "chips": where.chips,
        "devices": mesh.size,
        "mesh": {axis: size for axis, size in mesh.shape.items() if size > 1},
        "rows": f"{A} x {R} x {T}",
        "micro_batches": batch.num_micro,
        "real_token_share": batch.num_tokens / batch.num_computed,
        "parameters": params.count(shape),
        "optimizer": optimizer.describe(config.optimizer),
    }
    began = time.perf_counter()
    try:
        compiled = traced.lower().compile()
    except jax.errors.JaxRuntimeError as error:
        text = str(error)
        if "RESOURCE_EXHAUSTED" not in text:
            raise
        return plan | {"fits": False, "why": text.splitlines()[0]}
    plan["compile_seconds"] = time.perf_counter() - began
    plan |= memory(compiled.memory_analysis(), where.hbm_bytes)
    trips = loop_trips(config, mesh, batch)
    program = hlo.parse(compiled.as_text(), trips)
    moved = hlo.collectives(program, mesh.shape)
    plan |= {
        "model_flops": metrics.train_flops(
            shape, batch.num_tokens, batch.num_pairs, batch.num_targets
        ),
        "hardware_flops": matmul_flops(traced.jaxpr.jaxpr, trips),
        "hbm_traffic_bytes": hlo.hbm_bytes(program),
        "collectives": [dataclasses.asdict(c) for c in moved],
    }
    plan |= roofline(plan, where, batch.num_tokens)
    steps = work.num_examples // config.train.batch_size * config.train.epochs
    hours = steps * plan["step_seconds"] / 3600
    plan |= {"steps": steps, "hours": hours}
    if price is not None:
        plan["cost"] = hours * where.chips * price
    return plan


def search(
    config: RunConfig, where: topology.Topology, work: Workload, price: float | None
) -> list[dict[str, Any]]:
    """Plans meshes, remat policies and micro-batch sizes around a config's; best ceiling first."""
    shape, plans, seen = llama.VARIANTS[config.model.variant], [], set()
    replace = dataclasses.replace
    for tensor, remat, tokens in itertools.product((1, 2, 4), ("dots", "full"), (2048, 4096, 8192)):
        changes = {"tensor": tensor, "remat": remat, "microbatch_tokens": tokens}
        candidate = replace(
            config,
            sharding=replace(config.sharding, data=config.sharding.data, fsdp=-1, tensor=tensor),
            model=replace(config.model, remat=remat),
            train=replace(config.train, microbatch_tokens=tokens),
        )
        try:
            mesh = sharding.make_mesh(candidate.sharding, where.devices)
            rows = typical_batch(candidate, shape, mesh, work).arrays["tokens"].shape
            if (same := (tensor, remat, rows)) in seen:
                continue  # the limit is not what decides
            seen.add(same)
            plan = make_plan(candidate, where, work, price)
        except ValueError as error:  # heads that do not divide, and the like
            print(f"{changes}: {error}", file=sys.stderr)
            continue
        plans.append({"changes": changes} | plan)
        print(f"{len(plans)}: {summary(plans[-1])}", file=sys.stderr, flush=True)
    return sorted(plans, key=lambda p: (not p["fits"], -p.get("mfu_ceiling", 0.0)))


def summary(plan: Mapping[str, Any]) -> str:
    """A candidate of `search` in one line."""
    changes = ", ".join(f"{key} {value}" for key, value in plan["changes"].items())
    if not plan["fits"]:
        return f"does not fit | {changes}"
    headroom = 1 - plan["needed_bytes"] / plan["available_bytes"]
    return (
        f"MFU ceiling {plan['mfu_ceiling']:.1%} | {plan['step_seconds']:.3f} s a step, bound by "
        f"{plan['bound']} | {headroom:.0%} headroom | {changes}"
    )


def memory(found: Any, available: float) -> dict[str, Any]:
    """Bytes on one device; results that take the place of donated arguments need none."""
    needed = (
        found.argument_size_in_bytes
        + found.output_size_in_bytes
        - found.alias_size_in_bytes
        + found.temp_size_in_bytes
        + found.generated_code_size_in_bytes
    )
    return {
        "fits": needed <= available,
        "available_bytes": available,
        "needed_bytes": needed,
        "argument_bytes": found.argument_size_in_bytes,
        "temporary_bytes": found.temp_size_in_bytes,
        "code_bytes": found.generated_code_size_in_bytes,
        "host_bytes": found.host_argument_size_in_bytes + found.host_temp_size_in_bytes,
    }


def roofline(plan: Mapping[str, Any], where: topology.Topology, tokens: int) -> dict[str, Any]:
    """The least seconds of a step for each resource, and what the largest of them allows."""
    seconds = {
        "compute": plan["hardware_flops"] / plan["devices"] / where.flops,
        "memory": plan["hbm_traffic_bytes"] / where.hbm_rate,
        "network": sum(c["num_bytes"] for c in plan["collectives"]) / where.ici_rate,
    }
    if plan["host_bytes"]:  # moments come, and go at the same time
        seconds["host"] = plan["host_bytes"] / where.host_rate
    bound = max(seconds, key=seconds.get)
    step = seconds[bound]
    return {
        "seconds": seconds,
        "bound": bound,
        "step_seconds": step,
        "mfu_ceiling": plan["model_flops"] / (step * plan["devices"] * where.flops),
        "tokens_per_second": tokens / step,
    }


def table(plan: Mapping[str, Any]) -> str:
    """The plan for people."""
    giga = lambda n: f"{n / 2**30:.2f} GiB"  # noqa: E731
    mesh = ", ".join(f"{axis} {size}" for axis, size in plan["mesh"].items()) or "one device"
    rows = [
        ("topology", f"{plan['topology']}: {plan['chips']} chips, {plan['devices']} devices"),
        ("mesh", mesh),
        ("batch", f"{plan['micro_batches']} micro-batches of rows {plan['rows']} (A x R x T)"),
        ("real tokens", f"{plan['real_token_share']:.1%}"),
        ("optimizer", plan["optimizer"]),
    ]
    if "needed_bytes" not in plan:
        return _aligned([*rows, ("fits", f"NO: {plan['why']}")])
    headroom = 1 - plan["needed_bytes"] / plan["available_bytes"]
    verdict = f"yes, {headroom:.0%} headroom" if plan["fits"] else "NO"
    rows += [
        ("fits", f"{verdict} ({giga(plan['needed_bytes'])} of {giga(plan['available_bytes'])})"),
        ("  arguments", giga(plan["argument_bytes"])),
        ("  temporaries", giga(plan["temporary_bytes"])),
        ("  generated code", giga(plan["code_bytes"])),
        ("host memory", f"{giga(plan['host_bytes'])} a device"),
        ("compile time", f"{plan['compile_seconds']:.0f} s"),
        ("model FLOPs", f"{plan['model_flops']:.3g} a step"),
        (
            "hardware FLOPs",
            f"{plan['hardware_flops']:.3g} a step "
            f"({plan['hardware_flops'] / plan['model_flops']:.2f} x)",
        ),
        ("HBM traffic", f"{plan['hbm_traffic_bytes'] / 1e9:,.0f} GB a device and step"),
    ]
    rows += [
        (
            f"  {c['kind']}",
            f"{c['num_bytes'] / 1e9:,.2f} GB sent a device over {c['axes']} ({c['group']}), "
            f"{c['count']:,.0f} times",
        )
        for c in plan["collectives"]
    ]
    rows += [(f"{name} time", f"{s:.3f} s a step") for name, s in plan["seconds"].items()]
    rows += [
        ("bound by", plan["bound"]),
        ("MFU ceiling", f"{plan['mfu_ceiling']:.1%}"),
        ("tokens/s", f"{plan['tokens_per_second']:,.0f}"),
        ("whole run", f"{plan['steps']:,} steps, {metrics.duration(3600 * plan['hours'])}"),
    ]
    if "cost" in plan:
        rows.append(("cost", f"{plan['cost']:,.2f} at the price given"))
    return _aligned(rows)


def _aligned(rows: Sequence[tuple[str, str]]) -> str:
    return "\n".join(f"{name:<18}{value}" for name, value in rows)


def main(argv: Sequence[str]) -> None:
    del argv
    FLAGS = flags.FLAGS
    config = sections.build(RunConfig, FLAGS.config.to_dict())
    work = Workload(FLAGS.num_examples, FLAGS.example_tokens, FLAGS.answer_share)
    where = topology.describe(FLAGS.topology)
    print(f"compiling for {where.name} (minutes)", file=sys.stderr)
    if FLAGS.search:
        plans = search(config, where, work, FLAGS.price)
        if not plans:
            raise ValueError(f"no mesh that was tried suits {where.name}")
        print(*map(summary, plans), "", sep="\n")
    else:
        plans = [make_plan(config, where, work, FLAGS.price)]
    print(table(plans[0]))
    if FLAGS.output:
        record = provenance.describe(config=dataclasses.asdict(config), plan=plans[0])
        if FLAGS.search:
            record["ranked"] = plans
        provenance.write_json(FLAGS.output, record | {"end": provenance.now()})


if __name__ == "__main__":
    from ml_collections import config_flags

    config_flags.DEFINE_config_file("config", help_string="Config file, with its argument.")
    flags.DEFINE_string("topology", None, "Slice to plan for: v5e-16, v5p-8, 2xv6e-256, or local.")
    flags.DEFINE_integer("num_examples", 52_002, "Training examples of the run.", lower_bound=1)
    flags.DEFINE_integer("example_tokens", 300, "Their mean length in tokens.", lower_bound=2)
    flags.DEFINE_float("answer_share", 0.6, "Share of their tokens that are answers.")
    flags.DEFINE_float("price", None, "Money a chip-hour.", lower_bound=0.0)
    flags.DEFINE_bool("search", False, "Try meshes, remat policies and micro-batches; rank them.")
    flags.DEFINE_string("output", "plan.json", "Where the plan goes for programs; empty: nowhere.")
    flags.mark_flags_as_required(["config", "topology"])
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    cli.run(main)
