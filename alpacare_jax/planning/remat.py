"""What a training step recomputes under `model.remat=auto`: the fastest policy that fits.

Which policy is faster is reckoned from the traced gradient of one micro-batch: its matrix products,
and the time in which memory takes and gives back what is kept for the backward pass. So the policy
that keeps most need not be the fastest. One that keeps more than a faster one is never compiled;
the others are, fastest first, until one fits by the compiler's own count.
"""

import collections
import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import Any

import jax
import numpy as np

from alpacare_jax.distributed import processes
from alpacare_jax.model.layers import REMAT_POLICIES
from alpacare_jax.model.llama import Params
from alpacare_jax.planning import programs, roofline
from alpacare_jax.planning.topologies import Topology
from alpacare_jax.training.train_step import TrainingProgram

Arrays = Mapping[str, np.ndarray]
"""The arrays of a batch, [A, R, T]; only shapes and dtypes count."""

HEADROOM = 0.02
"""Share of the memory that stays free unless nothing else fits: on an H200 7B took 1.4 % more than
its plan."""

SAVES_MEMORY = (
    "lower train.microbatch_tokens, or set optimizer.offload=True, "
    "optimizer.first_moment=bfloat16 or lora.rank; `alpacare plan --search` ranks what fits"
)


@dataclasses.dataclass(frozen=True)
class Candidate:
    """A policy, by reckoning, of one micro-batch on one device."""

    policy: str
    kept_bytes: float  # for the backward pass, beside the weights
    flops: float  # of matrix products, recomputed ones included
    cost: float  # FLOPs, those included that would fit into the time that memory takes


@dataclasses.dataclass(frozen=True)
class Choice:
    """The policy of a run, and why; bytes are of one device."""

    policy: str
    fits: bool
    needed_bytes: float  # by the compiler
    available_bytes: float
    too_large: dict[str, float]  # faster policies -> what they need; estimated if not `compiled`
    compiled: tuple[str, ...]
    slower: tuple[str, ...]  # policies that keep more and are slower by reckoning
    compile_seconds: float

    def __str__(self) -> str:
        text = (
            f"remat {self.policy} (auto): {_gib(self.needed_bytes)} of "
            f"{_gib(self.available_bytes)} GiB per device"
        )
        if self.too_large:
            policy, needed = list(self.too_large.items())[-1]
            about = "" if policy in self.compiled else "about "
            return f"{text}; {policy}, which is faster, needs {about}{_gib(needed)}"
        slower = f", {' and '.join(self.slower)} would keep more and take longer"
        return f"{text}; the fastest by reckoning{slower if self.slower else ''}"

    def check(self) -> None:
        """Raises ValueError, which names the remedies, where nothing fits."""
        if not self.fits:
            raise ValueError(
                f"a training step needs {_gib(self.needed_bytes)} GiB per device even with remat "
                f"{self.policy}, and {_gib(self.available_bytes)} are available; {SAVES_MEMORY}"
            )


def reckon(program: TrainingProgram, arrays: Arrays, topology: Topology) -> list[Candidate]:
    """Every policy, the fastest first.

    What is kept is counted by tracing, as if it could be spread over all devices of the mesh.
    """
    state, base = program.abstract_state(), program.abstract_base()
    weights = _weights(state["params"], base)
    micro = {n: jax.ShapeDtypeStruct(of.shape[1:], of.dtype) for n, of in arrays.items()}

    def candidate(policy: str) -> Candidate:
        loss = with_policy(program, policy).mean_loss

        def gradient(params, micro, base):
            # jax.vjp returns a tree that holds what is kept.
            step = jax.numpy.int32(0)  # else it would not be the loss of training
            value, vjp = jax.vjp(lambda p: loss(p, micro, base=base, step=step)[0], params)
            return vjp(jax.numpy.ones_like(value)), vjp

        traced = jax.jit(gradient).trace(state["params"], micro, base)
        kept = collections.Counter(map(_kind, jax.tree.leaves(traced.out_info[1]))) - weights
        size = sum(n * math.prod(shape) * dtype.itemsize for (shape, dtype), n in kept.items())
        flops = roofline.traced_flops(traced, lambda loop: 1.0)
        flops, size = flops / program.mesh.size, size / program.mesh.size
        return Candidate(policy, size, flops, flops + 2 * size * topology.flops_per_byte)

    return sorted(map(candidate, REMAT_POLICIES), key=lambda c: (c.cost, c.kept_bytes))


def worth_trying(candidates: Sequence[Candidate]) -> list[Candidate]:
    """Of candidates, the fastest first, those that keep less than each one before."""
    found = [candidates[0]]
    for candidate in candidates[1:]:
        if candidate.kept_bytes < found[-1].kept_bytes:
            found.append(candidate)
    return found


def choose(
    program: TrainingProgram,
    arrays: Arrays,
    topology: Topology,
    compiling: Callable[[str], AbstractContextManager[Any]] = lambda policy: nullcontext(),
) -> tuple[TrainingProgram, Choice]:
    """The program under the fastest policy that fits, already compiled for `arrays`.

    All processes of a run choose alike. Where nothing fits, the choice is what takes least.

    Args:
      compiling: what to do around the compilation for a policy.
    """
    available = processes.smallest_of_all(topology.hbm_bytes)
    reckoned = reckon(program, arrays, topology)
    candidates = worth_trying(reckoned)
    rest: float = programs.least_bytes(program)  # beside what is kept, at least
    needed, seconds, compiled = {}, 0.0, []
    for candidate in candidates:
        policy, last = candidate.policy, candidate is candidates[-1]
        room = available * (1 if last else 1 - HEADROOM)
        needed[policy] = rest + candidate.kept_bytes
        if needed[policy] > room and not last:
            continue
        program = with_policy(program, policy)
        with compiling(policy):
            _, needs = roofline.compile_traced(programs.trace_step(program, arrays), available)
        seconds += needs["compile_seconds"]
        if "needed_bytes" in needs:
            compiled.append(policy)
            needed[policy] = needs["needed_bytes"]
        else:  # the compiler gave up, and did not count
            needed[policy] = max(needed[policy], math.nextafter(available, math.inf))
        needed[policy] = -processes.smallest_of_all(-needed[policy])
        if needed[policy] <= room:
            break
        rest = needed[policy] - candidate.kept_bytes
    *too_large, policy = needed
    return program, Choice(
        policy=policy,
        fits=needed[policy] <= available,
        needed_bytes=needed[policy],
        available_bytes=available,
        too_large={name: needed[name] for name in too_large},
        compiled=tuple(compiled),
        slower=tuple(c.policy for c in reckoned if c.kept_bytes > reckoned[0].kept_bytes),
        compile_seconds=seconds,
    )


def with_policy(program: TrainingProgram, policy: str) -> TrainingProgram:
    """The same program under another policy."""
    config = program.run_config
    return replace(program, run_config=replace(config, model=replace(config.model, remat=policy)))


def _weights(*trees: Params) -> collections.Counter[tuple[tuple[int, ...], np.dtype]]:
    """How many arrays of each shape and dtype are weights, stacked or of a single layer."""
    found = collections.Counter(map(_kind, jax.tree.leaves(trees)))
    for leaf in jax.tree.leaves([tree.get("layers", {}) for tree in trees]):
        (layers, *shape), dtype = _kind(leaf)
        found[tuple(shape), dtype] += layers
    return found


def _kind(leaf: Any) -> tuple[tuple[int, ...], np.dtype]:
    return leaf.shape, np.dtype(leaf.dtype)


def _gib(number: float) -> str:
    return f"{number / 2**30:.1f}"
