"""An engine's programs, compiled once for each of a few numbers of rows."""

import concurrent.futures
import dataclasses
import os
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from alpacare_jax.inference import rows
from alpacare_jax.inference.programs import BURST, Programs, State
from alpacare_jax.inference.rows import PIECE, halves
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
      all_rows, whole_chunks: the only size of a decode step is all slots, of a chunk its largest.
    """

    def __init__(
        self,
        programs: Programs,
        slots: int,
        max_length: int,
        chunk: int | None,
        all_rows: bool,
        whole_chunks: bool,
    ):
        usual = ON_CPU if programs.platform == "cpu" else ON_ACCELERATOR
        most = min(-(-(chunk or usual.chunk) // PIECE), slots * -(-max_length // PIECE))
        self.rows = halves(slots, slots if all_rows else usual.least_rows)
        self.pieces = halves(most, most if whole_chunks else usual.least_pieces)
        self.programs, self._done = programs, dict[tuple[str, int], Any]()

    def compile(self, name: str, size: int, *arguments: Any) -> Any:
        """The program for `size` rows; arguments may be abstract."""
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

    def compile_all(self, params: Params, state: State, say: Callable[[str], None]) -> None:
        """Compiles every program for every size, in parallel, and reports each to `say`."""
        model, slot = (params, state), np.int32(0)
        needed: list[tuple[Any, ...]] = [
            ("copy_row", 0, state, slot, slot),
            ("set_row", 0, state, slot, *self.programs.blank_vocabulary()),
            ("score", self.pieces[0], *model, rows.piece_arrays([], self.pieces[0])),
        ]
        needed += [("prefill", n, *model, rows.piece_arrays([], n)) for n in self.pieces]
        needed += [("decode", n, *model, *_burst(n)) for n in self.rows]
        with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as threads:
            started = [threads.submit(self.compile, *each) for each in needed]
            for done, future in enumerate(concurrent.futures.as_completed(started), start=1):
                future.result()
                say(f"compiled {done} of {len(needed)} programs")

    def trace(self, params: Params) -> tuple[jax.stages.Traced, jax.stages.Traced]:
        """See `Engine.trace`."""
        state, jitted = self.programs.empty.eval_shape(), self.programs.jitted
        pieces = rows.piece_arrays([], self.pieces[0])
        return (
            jitted["prefill"].trace(params, state, pieces),
            jitted["decode"].trace(params, state, *_burst(self.rows[0])),
        )


def _burst(size: int) -> tuple[Any, ...]:
    """Arguments of a decode step of no row."""
    return rows.burst_arrays({}, size), np.int32(BURST), np.int32(0)
