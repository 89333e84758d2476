"""Plans for people: the tables of training and of generation."""

from collections.abc import Mapping, Sequence
from typing import Any

from common import messages

TableRows = list[tuple[str, str]]


def training_table(plan: Mapping[str, Any]) -> str:
    """The plan of a training run."""
    rows = _machine(plan) + [
        ("batch", f"{plan['micro_batches']} micro-batches of rows {plan['rows']} (A x R x T)"),
        ("real tokens", f"{plan['real_token_share']:.1%}"),
        ("optimizer", plan["optimizer"]),
        ("remat", plan["remat"]),
    ]
    if plan["fp8"]:
        rows.append(("fp8", "projections, at twice the rate; MFU is of the bfloat16 peak"))
    if plan["base"]:
        adapter = f"{plan['trained_parameters']:,} parameters trained, on a frozen base"
        rows.append(("LoRA", f"{adapter} ({plan['base']})"))
    if "needed_bytes" not in plan:
        return _aligned([*rows, ("fits", f"NO: {plan['reason']}")])
    ratio = plan["hardware_flops"] / plan["model_flops"]
    rows += _memory(plan, "argument", "temporary", "code")
    rows += [
        ("model FLOPs", f"{plan['model_flops']:.3g} per step"),
        ("hardware FLOPs", f"{plan['hardware_flops']:.3g} per step ({ratio:.2f} x)"),
        *_traffic(plan),
        ("MFU ceiling", f"{plan['mfu_ceiling']:.1%}"),
        ("tokens/s", f"{plan['tokens_per_second']:,.0f}"),
    ]
    return _aligned(rows + _cost(plan, f"{plan['steps']:,} steps"))


def generation_table(plan: Mapping[str, Any]) -> str:
    """The plan of generation."""
    rows = _machine(plan) + [
        (
            "answers",
            f"{plan['slots']} slots; prompts of {plan['prompt_tokens']:,} tokens, answers of "
            f"{plan['new_tokens']:,}",
        )
    ]
    if "needed_bytes" not in plan:
        return _aligned([*rows, ("fits", f"NO: {plan['reason']}")])
    rows += _memory(plan, "weight", "cache", "temporary", "code")
    rows += [("A DECODE STEP", f"one token for each of {plan['slots']} slots")]
    rows += _traffic(plan["decode"], plan["cache_bytes"])
    rows += [("A PREFILL", f"one prompt; {plan['prefill_share']:.0%} of the time")]
    rows += _traffic(plan["prefill"], plan["cache_bytes"])
    rows += [
        ("WHOLE RUN", ""),
        ("time per token", f"{_seconds(plan['decode']['step_seconds'])} in each answer"),
        ("tokens/s", f"{plan['tokens_per_second']:,.0f} over all slots, prefills included"),
    ]
    return _aligned(rows + _cost(plan, f"{plan['prompts']:,} prompts"))


def _machine(plan: Mapping[str, Any]) -> TableRows:
    mesh = ", ".join(f"{axis} {size}" for axis, size in plan["mesh"].items()) or "one device"
    return [
        ("topology", f"{plan['topology']}: {plan['chips']} chips, {plan['devices']} devices"),
        ("mesh", mesh),
    ]


MEMORY_PARTS = {
    "argument": "arguments",
    "weight": "parameters",
    "cache": "KV cache",
    "temporary": "temporaries",
    "code": "generated code",
}


def _memory(plan: Mapping[str, Any], *parts: str) -> TableRows:
    headroom = 1 - plan["needed_bytes"] / plan["available_bytes"]
    verdict = f"yes, {headroom:.0%} headroom" if plan["fits"] else "NO"
    needs = f"{_gib(plan['needed_bytes'])} of {_gib(plan['available_bytes'])}"
    rows = [("fits", f"{verdict} ({needs} per device)")]
    rows += [(f"  {MEMORY_PARTS[part]}", _gib(plan[f"{part}_bytes"])) for part in parts]
    if plan.get("host_bytes"):
        rows.append(("host memory", f"{_gib(plan['host_bytes'])} per device"))
    return [*rows, ("compile time", f"{plan['compile_seconds']:.0f} s")]


def _traffic(run: Mapping[str, Any], cache_bytes: float = 0) -> TableRows:
    rows = [("HBM traffic", f"{_bytes(run['hbm_traffic_bytes'])} per device")]
    if moved := run.get("cache_traffic_bytes"):
        rows.append(("  of the cache", f"{_bytes(moved)}: {moved / cache_bytes:.0%} of its size"))
    if "traffic_error" in run:
        rows = [("traffic", f"unknown: {run['traffic_error']}")]
    for c in run["collectives"]:
        network = "DCN, between slices" if c["between_slices"] else f"{c['group']} devices"
        sent = f"{_bytes(c['num_bytes'])} sent per device over {c['axes']} ({network})"
        rows.append((f"  {c['kind']}", f"{sent}, {c['count']:,.0f} times"))
    rows += [(f"  {name} time", _seconds(seconds)) for name, seconds in run["seconds"].items()]
    return [*rows, ("bound by", run["bound"])]


def _cost(plan: Mapping[str, Any], workload: str) -> TableRows:
    rows = [("whole run", f"{workload}, {messages.duration(3600 * plan['hours'])}")]
    return rows + ([("cost", f"{plan['cost']:,.2f} at the given price")] if "cost" in plan else [])


def _gib(number: float) -> str:
    return f"{number / 2**30:.2f} GiB"


def _bytes(number: float) -> str:
    return f"{number / 1e9:,.2f} GB" if number >= 1e8 else f"{number / 1e6:,.2f} MB"


def _seconds(seconds: float) -> str:
    return f"{seconds:.3f} s" if seconds >= 0.1 else f"{1e3 * seconds:.3f} ms"


def _aligned(rows: Sequence[tuple[str, str]]) -> str:
    return "\n".join(f"{name:<22}{value}".rstrip() for name, value in rows)
