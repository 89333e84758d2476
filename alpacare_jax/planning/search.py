"""Which settings of a run are best on given devices: plans many and ranks them."""

import dataclasses
import itertools
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from alpacare_jax.distributed import sharding
from alpacare_jax.model.config import VARIANTS
from alpacare_jax.planning import generation as plan_generation
from alpacare_jax.planning import training as plan_training
from alpacare_jax.planning.topologies import Topology
from alpacare_jax.training import optimizers as optimizer_lib
from alpacare_jax.training.config import RunConfig
from alpacare_jax.training.optimizers import OptimizerConfig

Plan = dict[str, Any]

TENSOR = (1, 2, 4)
REMAT = ("full", "dots")  # from the least memory to the most, as the next ones
MICROBATCH_TOKENS = (2048, 4096, 8192)
OPTIMIZERS = (
    {"name": "adamw", "first_moment": "float32", "offload": False},
    {"name": "adamw", "first_moment": "bfloat16", "offload": False},
    {"name": "adamw", "first_moment": "float32", "offload": True},
    {"name": "adafactor", "offload": False},
)
"""After the config's own, from what changes a run least: to rounding, to slower, to another."""

replace = dataclasses.replace


def training(
    config: RunConfig, where: Topology, work: plan_training.Workload, price: float | None
) -> Iterator[Plan]:
    """Plans of meshes, remat policies, micro-batch sizes and optimisers around a config's.

    An optimiser hardly changes how long a step takes, but what fits: each is tried only where none
    before it fits. Nothing is compiled that takes more memory than what did not fit.
    """
    sizes = [tensor for tensor in TENSOR if len(where.devices) % tensor == 0]
    meshes = [_of_mesh(config, where, work, tensor) for tensor in sizes]
    # Of each shape one program fits, and an optimiser fails once for each remat policy at most.
    most = sum(min(len(s) * len(o), len(s) + len(REMAT) * len(o)) for s, o in meshes)
    _say(f"at most {most} programs to compile")
    too_large: list[RunConfig] = []
    for shapes, optimizers in meshes:
        for shape in shapes:
            for optimizer in optimizers:
                candidate = replace(shape, optimizer=optimizer)
                if any(_takes_more(candidate, other) for other in too_large):
                    continue
                plan = attempt(
                    _changes(candidate), plan_training.make_plan, candidate, where, work, price
                )
                if plan:
                    yield plan
                if not plan or plan["fits"]:
                    break
                too_large.append(candidate)


def _of_mesh(
    config: RunConfig, where: Topology, work: plan_training.Workload, tensor: int
) -> tuple[list[RunConfig], list[OptimizerConfig]]:
    """What to try on one mesh: shapes, those that plan alike once, and optimisers that may fit."""
    model = VARIANTS[config.model.variant]
    config = replace(config, sharding=replace(config.sharding, fsdp=-1, tensor=tensor))
    try:
        mesh = sharding.make_mesh(config.sharding, where.devices)
        sharding.param_shardings(model, mesh, config.sharding)
    except ValueError as error:  # heads that do not divide, and the like
        _say(f"tensor {tensor}: {error}")
        return [], []
    shapes: dict[Any, RunConfig] = {}
    for tokens, remat in itertools.product(MICROBATCH_TOKENS, REMAT):
        train = replace(config.train, microbatch_tokens=tokens)
        shape = replace(config, model=replace(config.model, remat=remat), train=train)
        rows = plan_training.typical_batch(shape, model, mesh, work).arrays["tokens"].shape
        shapes.setdefault((rows, remat), shape)
    all_of_them = [replace(config.optimizer, **changes) for changes in ({}, *OPTIMIZERS)]
    optimizers = []
    for optimizer in dict.fromkeys(all_of_them):
        what = f"tensor {tensor}, {optimizer_lib.describe(optimizer)}"
        try:
            least = plan_training.least_bytes(replace(config, optimizer=optimizer), model, mesh)
        except ValueError as error:  # no host memory that the devices reach
            _say(f"{what}: {error}")
            continue
        if least > where.hbm_bytes:
            _say(
                f"{what}: does not fit: weights, moments and gradients alone take "
                f"{least / 2**30:.1f} of {where.hbm_bytes / 2**30:.1f} GiB a device"
            )
            continue
        optimizers.append(optimizer)
    return list(shapes.values()), optimizers


def _changes(config: RunConfig) -> dict[str, Any]:
    """What the search sets of a run."""
    found = {
        "tensor": config.sharding.tensor,
        "remat": config.model.remat,
        "microbatch_tokens": config.train.microbatch_tokens,
        "optimizer": config.optimizer.name,
    }
    if config.optimizer.name == "adamw":
        found["first_moment"] = config.optimizer.first_moment
    return found | ({"offload": True} if config.optimizer.offload else {})


def _takes_more(a: RunConfig, b: RunConfig) -> bool:
    """Whether a program of `a` needs the memory of one of `b` at least."""
    same = a.sharding == b.sharding and a.optimizer == b.optimizer
    return (
        same
        and REMAT.index(a.model.remat) >= REMAT.index(b.model.remat)
        and a.train.microbatch_tokens >= b.train.microbatch_tokens
    )


def generation(
    config: RunConfig, where: Topology, work: plan_generation.Workload, price: float | None
) -> Iterator[Plan]:
    """Plans of meshes of `data` and `tensor`, and numbers of slots from the given one up."""
    for tensor, more in itertools.product((1, 2, 4, 8, 16, 32), (1, 4, 16)):
        if len(where.devices) % tensor:
            continue
        spread = replace(config.sharding, data=-1, fsdp=1, tensor=tensor)
        slots = more * work.slots
        plan = attempt(
            {"tensor": tensor, "slots": slots},
            plan_generation.make_plan,
            replace(config, sharding=spread),
            where,
            replace(work, slots=slots),
            price,
        )
        if plan:
            yield plan


def attempt(changes: dict[str, Any], make: Callable[..., Plan], *args: Any) -> Plan | None:
    """`make(*args)` with what differs from the config; None where that does not go together."""
    try:
        return {"changes": changes} | make(*args)
    except ValueError as error:  # heads that do not divide, and the like
        _say(f"{changes}: {error}")
        return None


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def rank(plans: Iterable[Plan]) -> list[Plan]:
    """Those that fit come first, and of them the fastest; each is shown as soon as it is made."""
    found = []
    for plan in plans:
        found.append(plan)
        _say(f"{len(found)}: {summary(plan)}")
    return sorted(found, key=lambda p: (not p["fits"], -p.get("tokens_per_second", 0.0)))


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
