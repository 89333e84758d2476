"""An engine's programs, compiled once for each of a few sizes."""

import concurrent.futures
import dataclasses
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from alpacare_jax.inference import rows
from alpacare_jax.inference.programs import Programs, State
from alpacare_jax.inference.rows import BLANK, PIECE, Piece, Row, halves
from alpacare_jax.inference.sampling import Rows
from alpacare_jax.model.llama import Params
from common.messages import heartbeat


@dataclasses.dataclass(frozen=True)
class Sizes:
    """What programs are compiled for, by default."""

    chunk: int  # most tokens that are prefilled in one call
    least_pieces: int  # of a chunk
    least_rows: int  # of a decode step


ON_CPU, ON_ACCELERATOR = Sizes(256, 1, 1), Sizes(512, 4, 16)
"""An accelerator computes a few rows as fast as one."""

CPU_OPTIONS = {"xla_backend_optimization_level": 1}
"""LLVM's level: products are a library's, so 1 runs as fast as 3 and compiles in two thirds."""


class Compiled:
    """Runs programs, which are compiled before their first use.

    Args:
      slots, max_length, chunk: see `Engine`.
      all_rows: the only size of a decode step is all slots.
      invariant: the only size of a chunk is its largest, and no row decodes beside it.
    """

    def __init__(
        self,
        programs: Programs,
        slots: int,
        max_length: int,
        chunk: int | None,
        all_rows: bool,
        invariant: bool,
    ):
        usual = ON_CPU if programs.platform == "cpu" else ON_ACCELERATOR
        most = min(-(-(chunk or usual.chunk) // PIECE), slots * -(-max_length // PIECE))
        self.rows = halves(slots, slots if all_rows else usual.least_rows)
        self.pieces = halves(most, most if invariant else usual.least_pieces)
        self.beside = 0 if invariant else slots
        self.programs, self._done = programs, dict[tuple[str, int], Any]()

    def chunk_arguments(
        self, pieces: Sequence[Piece], size: int, active: Mapping[int, Row]
    ) -> tuple[Rows, Rows | None]:
        """The last arguments of a chunk of `size` pieces, and of the rows that decode beside it."""
        beside = rows.burst_arrays(active, self.beside) if self.beside else None
        return rows.piece_arrays(pieces, size), beside

    def compile(self, name: str, size: int, *arguments: Any) -> Any:
        """The program of this size; arguments may be abstract."""
        if (name, size) not in self._done:
            lowered = self.programs.jitted[name].lower(*arguments)
            options = CPU_OPTIONS if self.programs.platform == "cpu" else {}
            self._done[name, size] = lowered.compile(compiler_options=options)
        return self._done[name, size]

    def __call__(self, name: str, size: int, *arguments: Any) -> Any:
        """Runs a program; a status line says so while it is compiled first."""
        if (name, size) not in self._done:
            with heartbeat(f"compiling {name}{f' of {size} rows' if size else ''}"):
                self.compile(name, size, *arguments)
        return self._done[name, size](*arguments)

    def compile_all(self, params: Params, state: State, say: Callable[[str], None]) -> State:
        """Compiles every program for every size, in parallel, and reports each to `say`.

        Each runs once, because first runs are slow: 0.3 s longer for 135M parameters on a CPU.
        Row 0 of the returned state holds nothing of use.
        """
        abstract, slot, model = self.programs.empty.eval_shape(), np.int32(0), (params,)
        needed: list[tuple[str, int, tuple[Any, ...], tuple[Any, ...]]] = [
            ("copy_row", 0, (), (slot, slot, slot)),
            ("set_row", 0, (), (slot, *self.programs.blank_vocabulary())),
            ("score", self.pieces[0], model, self.chunk_arguments([], self.pieces[0], {})),
            *[("prefill", n, model, self.chunk_arguments([], n, {})) for n in self.pieces],
            *[("decode", n, model, _blank_burst(n)) for n in self.rows],
        ]

        def compile_one(name: str, size: int, before: Sequence[Any], after: Sequence[Any]) -> None:
            self.compile(name, size, *before, abstract, *after)

        with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as threads:
            started = {threads.submit(compile_one, *each): each for each in needed}
            for done, future in enumerate(concurrent.futures.as_completed(started), start=1):
                future.result()
                name, size, before, after = started[future]
                result = self(name, size, *before, state, *after)
                state = result[0] if before else result
                say(f"compiled {done} of {len(needed)} programs")
        return state

    def trace(self, params: Params) -> tuple[jax.stages.Traced, jax.stages.Traced]:
        """See `Engine.trace`."""
        state, jitted = self.programs.empty.eval_shape(), self.programs.jitted
        return (
            jitted["prefill"].trace(params, state, rows.piece_arrays([], self.pieces[0]), None),
            jitted["decode"].trace(params, state, *_blank_burst(self.rows[0])),
        )


def _blank_burst(size: int) -> tuple[Any, ...]:
    """Arguments of one decode step of row 0."""
    return rows.burst_arrays({0: BLANK}, size), np.int32(1), np.int32(0)
