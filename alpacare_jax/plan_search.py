"""Which settings of a run are best on given devices: plans many and ranks them."""

import dataclasses
import itertools
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from alpacare_jax import llama, plan_generation, plan_training, sharding
from alpacare_jax.run_config import RunConfig
from alpacare_jax.topology import Topology

Candidate = tuple[dict[str, Any], Callable[[], dict[str, Any]]]
"""What differs from the config, and the plan of it, which may raise ValueError."""


def training(
    config: RunConfig, where: Topology, work: plan_training.Workload, price: float | None
) -> Iterator[Candidate]:
    """Meshes, remat policies and micro-batch sizes around a config's."""
    replace, seen = dataclasses.replace, set()
    shape = llama.VARIANTS[config.model.variant]

    def make(candidate: RunConfig) -> dict[str, Any]:
        mesh = sharding.make_mesh(candidate.sharding, where.devices)
        rows = plan_training.typical_batch(candidate, shape, mesh, work).arrays["tokens"].shape
        same = (candidate.sharding.tensor, candidate.model.remat, rows)
        if same in seen:
            raise ValueError("as with fewer micro-batch tokens")
        seen.add(same)
        return plan_training.make_plan(candidate, where, work, price)

    for tensor, remat, tokens in itertools.product((1, 2, 4), ("dots", "full"), (2048, 4096, 8192)):
        candidate = replace(
            config,
            sharding=replace(config.sharding, fsdp=-1, tensor=tensor),
            model=replace(config.model, remat=remat),
            train=replace(config.train, microbatch_tokens=tokens),
        )
        changes = {"tensor": tensor, "remat": remat, "microbatch_tokens": tokens}
        yield changes, lambda candidate=candidate: make(candidate)


def generation(
    config: RunConfig, where: Topology, work: plan_generation.Workload, price: float | None
) -> Iterator[Candidate]:
    """Meshes of `data` and `tensor`, and numbers of slots from the given one up."""
    replace = dataclasses.replace
    for tensor, more in itertools.product((1, 2, 4, 8, 16, 32), (1, 4, 16)):
        if len(where.devices) % tensor:
            continue
        spread = replace(config.sharding, data=-1, fsdp=1, tensor=tensor)
        arguments = (
            replace(config, sharding=spread),
            where,
            replace(work, slots=more * work.slots),
        )
        changes = {"tensor": tensor, "slots": more * work.slots}
        yield changes, lambda a=arguments: plan_generation.make_plan(*a, price)


def rank(candidates: Iterable[Candidate]) -> list[dict[str, Any]]:
    """Plans all; those that fit come first, and of them the fastest."""
    plans = []
    for changes, make in candidates:
        try:
            plans.append({"changes": changes} | make())
        except ValueError as error:  # heads that do not divide, and the like
            print(f"{changes}: {error}", file=sys.stderr)
            continue
        print(f"{len(plans)}: {summary(plans[-1])}", file=sys.stderr, flush=True)
    return sorted(plans, key=lambda p: (not p["fits"], -p.get("tokens_per_second", 0.0)))


def summary(plan: Mapping[str, Any]) -> str:
    """A candidate in one line."""
    changes = ", ".join(f"{key} {value}" for key, value in plan["changes"].items())
    if not plan["fits"]:
        return f"does not fit | {changes}"
    headroom = 1 - plan["needed_bytes"] / plan["available_bytes"]
    step = plan.get("decode", plan)
    ceiling = f"MFU ceiling {plan['mfu_ceiling']:.1%} | " if "mfu_ceiling" in plan else ""
    return (
        f"{ceiling}{plan['tokens_per_second']:,.0f} tokens/s | {step['step_seconds']:.4f} s a "
        f"step, bound by {step['bound']} | {headroom:.0%} headroom | {changes}"
    )
