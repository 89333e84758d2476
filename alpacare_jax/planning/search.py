"""Which settings of a run are best on given devices: plans many and ranks them."""

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any

from alpacare_jax.distributed import sharding
from alpacare_jax.planning import generation as plan_generation
from alpacare_jax.planning import programs, remat
from alpacare_jax.planning import training as plan_training
from alpacare_jax.planning.generation import GenerationWorkload
from alpacare_jax.planning.topologies import Topology
from alpacare_jax.planning.training import TrainingWorkload
from alpacare_jax.training import optimizers as optimizer_lib
from alpacare_jax.training.config import RunConfig
from alpacare_jax.training.optimizers import OptimizerConfig
from common.messages import log

Plan = dict[str, Any]

TENSOR_SIZES = (1, 2, 4)
MICROBATCH_TOKENS = (2048, 4096, 8192)
OPTIMIZER_CHANGES = (
    {"name": "adamw", "first_moment": "float32", "offload": False},
    {"name": "adamw", "first_moment": "bfloat16", "offload": False},
    {"name": "adamw", "first_moment": "float32", "offload": True},
    {"name": "adafactor", "offload": False},
)
"""Tried after the config's own, from what changes a run least (rounding) over slower steps to
another optimizer."""


def training_plans(
    run_config: RunConfig, topology: Topology, workload: TrainingWorkload
) -> Iterator[Plan]:
    """Plans of meshes, remat policies, micro-batch sizes and optimizers around a config's.

    An optimizer hardly changes the time of a step, but decides what fits: each is tried only where
    none before it fits. Nothing is compiled that needs more memory than what did not fit, nor what
    cannot fit, nor a policy that keeps more than a faster one.
    """
    sizes = [tensor for tensor in TENSOR_SIZES if len(topology.devices) % tensor == 0]
    meshes = [_candidates(run_config, topology, workload, tensor) for tensor in sizes]
    # Of each layout one program fits, and an optimizer fails at most once per remat policy.
    limit = 0
    for shapes, optimizers in meshes:
        num_layouts, num_policies = sum(map(len, shapes)), max(map(len, shapes), default=0)
        limit += min(num_layouts * len(optimizers), num_layouts + num_policies * len(optimizers))
    log(f"at most {limit} programs to compile")
    for shapes, optimizers in meshes:
        too_large: set[tuple[str, OptimizerConfig]] = set()  # (remat, optimizer)
        # Micro-batches never become smaller, and of one shape each layout keeps more.
        for layouts, i in [(found, i) for found in shapes for i in range(len(found))]:
            layout, kept = layouts[i]
            for optimizer, least in optimizers:
                hopeless = least + kept > topology.hbm_bytes
                if hopeless or (layout.model.remat, optimizer) in too_large:
                    continue
                candidate = replace(layout, optimizer=optimizer)
                make_plan = plan_training.make_plan
                plan = attempt(_changes(candidate), make_plan, candidate, topology, workload)
                if plan:
                    yield plan
                if not plan or plan["fits"]:
                    break
                too_large |= {(larger.model.remat, optimizer) for larger, _ in layouts[i:]}


def _candidates(
    run_config: RunConfig, topology: Topology, workload: TrainingWorkload, tensor: int
) -> tuple[list[list[tuple[RunConfig, float]]], list[tuple[OptimizerConfig, float]]]:
    """What to try on one mesh: layouts of each batch shape, and optimizers that may fit.

    A layout comes with the bytes that its policy keeps, an optimizer with those it needs at least.
    """
    sizes = replace(run_config.sharding, fsdp=-1, tensor=tensor)
    run_config = replace(run_config, sharding=sizes)
    try:
        program = programs.make_program(run_config, topology.devices)
        sharding.param_shardings(program.model_config, program.mesh, sizes)
    except ValueError as error:  # heads that do not divide, and the like
        log(f"tensor {tensor}: {error}")
        return [], []
    layouts: dict[Any, list[tuple[RunConfig, float]]] = {}
    for tokens in MICROBATCH_TOKENS:
        train = replace(run_config.train, microbatch_tokens=tokens)
        changed = replace(program, run_config=replace(run_config, train=train))
        arrays = plan_training.typical_batch(changed, workload).arrays
        if arrays["tokens"].shape not in layouts:
            layouts[arrays["tokens"].shape] = [
                (remat.with_policy(changed, found.policy).run_config, found.kept_bytes)
                for found in reversed(remat.worth_trying(remat.reckon(changed, arrays, topology)))
            ]
    configs = [replace(run_config.optimizer, **changes) for changes in ({}, *OPTIMIZER_CHANGES)]
    optimizers = []
    for optimizer in dict.fromkeys(configs):
        name = f"tensor {tensor}, {optimizer_lib.describe(optimizer)}"
        try:
            changed = replace(run_config, optimizer=optimizer)
            least = programs.least_bytes(replace(program, run_config=changed))
        except ValueError as error:  # no host memory that the devices reach
            log(f"{name}: {error}")
            continue
        if least > topology.hbm_bytes:
            log(
                f"{name}: does not fit: parameters, moments and gradients alone take "
                f"{least / 2**30:.1f} of {topology.hbm_bytes / 2**30:.1f} GiB per device"
            )
            continue
        optimizers.append((optimizer, least))
    return list(layouts.values()), optimizers


def _changes(run_config: RunConfig) -> dict[str, Any]:
    """The settings that the search chose."""
    found = {
        "tensor": run_config.sharding.tensor,
        "remat": run_config.model.remat,
        "microbatch_tokens": run_config.train.microbatch_tokens,
        "optimizer": run_config.optimizer.name,
    }
    if run_config.optimizer.name == "adamw":
        found["first_moment"] = run_config.optimizer.first_moment
    return found | ({"offload": True} if run_config.optimizer.offload else {})


def generation_plans(
    run_config: RunConfig, topology: Topology, workload: GenerationWorkload
) -> Iterator[Plan]:
    """Plans of meshes of `data` and `tensor`, and numbers of slots from the given one up."""
    for tensor, factor in itertools.product((1, 2, 4, 8, 16, 32), (1, 4, 16)):
        if len(topology.devices) % tensor:
            continue
        mesh = replace(run_config.sharding, data=-1, fsdp=1, tensor=tensor)
        slots = factor * workload.slots
        plan = attempt(
            {"tensor": tensor, "slots": slots},
            plan_generation.make_plan,
            replace(run_config, sharding=mesh),
            topology,
            replace(workload, slots=slots),
        )
        if plan:
            yield plan


def attempt(changes: dict[str, Any], make: Callable[..., Plan], *args: Any) -> Plan | None:
    """`make(*args)` with its changes to the config; None if the settings are incompatible."""
    try:
        return {"changes": changes} | make(*args)
    except ValueError as error:  # heads that do not divide, and the like
        log(f"{changes}: {error}")
        return None


def rank(plans: Iterable[Plan]) -> list[Plan]:
    """Plans that fit first, and of them the fastest; each is printed as soon as it is made."""
    found = []
    for plan in plans:
        found.append(plan)
        log(f"{len(found)}: {summary(plan)}")
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
        f"{ceiling}{plan['tokens_per_second']:,.0f} tokens/s | {step['step_seconds']:.4f} s per "
        f"step, bound by {step['bound']} | {headroom:.0%} headroom | {changes}"
    )
