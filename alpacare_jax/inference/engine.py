"""Continuous batching: a fixed number of slots, each refilled as soon as its answer ends.

Prompts are prefilled many at a time, in chunks. Answers under way decode a token with each chunk,
which reads the weights for both (arXiv:2308.16369), and in bursts where no prompt waits. A prefix
that a slot holds already is copied, not computed.

No answer depends on its neighbours: rows never mix, and a sampled token depends on (seed, request,
position) alone. Only rounding remains: with a different number of rows XLA may sum in a different
order, which can flip a near tie in bfloat16. `invariant` excludes that, too.
"""

import collections
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from alpacare_jax.distributed import sharding
from alpacare_jax.inference import cache, rows
from alpacare_jax.inference.compiled import Compiled
from alpacare_jax.inference.programs import BURST, Programs
from alpacare_jax.inference.requests import NOT_FINITE, Answer, Progress, Request
from alpacare_jax.inference.rows import PIECE, USUAL, Piece, Row, fit, logprobs_of
from alpacare_jax.inference.sampling import Sampling
from alpacare_jax.model.config import LlamaConfig
from alpacare_jax.model.llama import Params


class Engine:
    """Answers up to `slots` requests at a time. One thread calls its methods.

    Args:
      params, config, dtype: as for `Llama`.
      eos_ids: any of them ends an answer.
      max_length: maximum tokens of prompt and answer together.
      sampling: of requests that have none of their own.
      chunk: most tokens that are prefilled in one call; None: as `Sizes` has it.
      burst: most decode steps between two looks at the answers, up to BURST.
      invariant: every step has the same shape, whatever is to do: an answer is the same to the bit
        alone and among others, for the price of full batches.
      mesh, rules: mesh and sharding rules of `params`; both, or neither for a single device. The
        cache's rows are sharded over the batch axes, its heads like those of the weights.

    Raises:
      ValueError: `slots` is not a multiple of the mesh's batch groups, or `mesh` has no `rules`.
    """

    def __init__(
        self,
        params: Params,
        config: LlamaConfig,
        *,
        dtype: jnp.dtype,
        eos_ids: Sequence[int],
        max_length: int,
        slots: int,
        sampling: Sampling = USUAL,
        chunk: int | None = None,
        burst: int = BURST,
        invariant: bool = False,
        mesh: Mesh | None = None,
        rules: Mapping[str, str] | None = None,
    ):
        self.config, self.eos_ids = config, tuple(eos_ids)
        self.max_length, self.slots = max_length, slots
        self.sampling, self.burst, self._invariant = sampling, burst, invariant
        groups = sharding.batch_groups(mesh) if mesh else 1
        if slots % groups:
            raise ValueError(
                f"{slots} slots cannot be split evenly over {groups} groups of devices (mesh "
                f"axes {' and '.join(sharding.BATCH_AXES)}); choose a multiple of {groups}"
            )
        if mesh and not rules:
            raise ValueError("an engine on a mesh requires the sharding rules of its params")
        if not 1 <= burst <= BURST:
            raise ValueError(f"burst must be at least 1 and at most {BURST}")
        programs = Programs(config, dtype, eos_ids, slots, max_length, mesh, rules)
        one_size = invariant or groups > 1
        self._programs = Compiled(programs, slots, max_length, chunk, one_size, invariant)
        self.chunk = self._programs.pieces[0] * PIECE
        self._state: Any = None
        self._queue: collections.deque[Request] = collections.deque()
        self._rows: dict[int, Row] = {}  # slot -> row, in order of admission
        self._burst_next = False  # before a further chunk
        self.use(params)

    def use(self, params: Params) -> None:
        """Answers with these weights from now on; keys of earlier ones are of no use to them."""
        self.params = params
        self._held = [np.zeros(0, np.int64)] * self.slots  # the ids whose keys each slot holds

    @property
    def busy(self) -> bool:
        """Whether a step would do anything."""
        return bool(self._queue or self._rows)

    def submit(self, request: Request) -> None:
        """Queues a request; `step` reports what becomes of it.

        Raises:
          ValueError: its prompt leaves no room within `max_length`, or its ids are not the model's.
        """
        adjusted = (request.sampling or self.sampling).logit_bias
        request.require_possible(self.max_length, self.config.vocab_size, adjusted)
        self._queue.append(request)

    def cancel(self, index: int) -> None:
        """Forgets a request, wherever it is; it is not reported any more."""
        self._queue = collections.deque(r for r in self._queue if r.index != index)
        self._rows = {s: row for s, row in self._rows.items() if row.request.index != index}

    def step(self) -> list[Progress]:
        """Runs one program, and reports what it added to the answers.

        That is a chunk of the prompts that wait, with one decode step, or else a burst of them;
        with `invariant` decode steps are apart from chunks, and bursts take turns with them.
        """
        self._admit()
        pieces = [] if self._burst_next else self._next_pieces()
        self._burst_next = self._invariant and bool(pieces)
        return self._prefill(pieces) if pieces else self._decode()

    def run(
        self,
        requests: Iterable[Request],
        stop_early: Callable[[list[int]], bool] = lambda ids: False,
    ) -> Iterator[Answer]:
        """Yields answers as they finish, in any order.

        Args:
          stop_early: called with the ids of each answer without EOS after every step that added to
            them; True ends the answer, with finish_reason `stop`.

        Raises:
          ValueError: as of `submit`, before anything is answered; or logits are not finite.
        """
        answers: dict[int, list[int]] = {}
        try:
            for request in requests:
                self.submit(request)
                answers[request.index] = []
            while self.busy:
                for progress in self.step():
                    progress.require_finite()
                    ids, reason = answers[progress.index], progress.finish_reason
                    ids += progress.ids
                    if reason != "stop" and progress.ids and stop_early(ids):
                        self.cancel(progress.index)
                        reason = "stop"
                    if reason:
                        yield Answer(progress.index, answers.pop(progress.index), reason)
        finally:
            for index in answers:
                self.cancel(index)

    def compile(self, say: Callable[[str], None]) -> None:
        """Compiles every program and runs it once, before any request; `say` hears of each."""
        self._state = self._programs.compile_all(self.params, self._device_state(), say)

    def trace(self) -> tuple[jax.stages.Traced, jax.stages.Traced]:
        """Traces the prefill of a whole chunk, alone, and a burst with all slots in use.

        Nothing is allocated: `params` may be abstract.
        """
        return self._programs.trace(self.params)

    def _admit(self) -> None:
        """Gives the first requests of the queue a slot each, low ones first."""
        while self._queue and len(self._rows) < self.slots:
            request = self._queue.popleft()
            slot = next(s for s in range(self.slots) if s not in self._rows)
            prompt = np.asarray(request.prompt, np.int64)
            limit = min(request.max_new_tokens, self.max_length - len(prompt))
            self._rows[slot] = Row(request, request.sampling or self.sampling, prompt, limit)

    def _run(self, name: str, size: int, *arguments: Any) -> dict[str, Any]:
        """What a program of the model returns, besides the state."""
        self._state, out = self._programs(name, size, self.params, self._device_state(), *arguments)
        return jax.device_get(out)

    def _update(self, name: str, *arguments: Any) -> None:
        self._state = self._programs(name, 0, self._device_state(), *arguments)

    def _copy_row(self, source: int, target: int, count: int) -> None:
        self._update("copy_row", *map(np.int32, (source, target, count)))

    def _device_state(self) -> Any:
        if self._state is None:
            self._state = self._programs.programs.empty()
        return self._state

    def _next_pieces(self) -> list[Piece]:
        """The next chunk of the prompts that wait, in order; if it can, it fills a program."""
        pieces: list[Piece] = []
        sizes, last = self._programs.pieces, cache.capacity(self.max_length) - PIECE
        for slot, row in self._rows.items():
            if row.decoding or not (row.placed or self._place(slot, row)):
                continue
            starts = range(row.prefilled, len(row.prompt), PIECE)
            pieces += [(slot, min(start, last), row) for start in starts]
        scores = any(row.request.prompt_logprobs for _, _, row in pieces[: sizes[0]])
        return pieces[: sizes[0] if scores else rows.fill(sizes, len(pieces))]

    def _prefill(self, pieces: Sequence[Piece]) -> list[Progress]:
        """Prefills pieces of prompts, with a decode step of the answers under way."""
        active = {} if self._invariant else self._decoding()
        scores = any(row.request.prompt_logprobs for _, _, row in pieces)
        size = self._programs.pieces[0] if scores else fit(self._programs.pieces, len(pieces))
        arguments = self._programs.chunk_arguments(pieces, size, active)
        out, found = self._run("score" if scores else "prefill", size, *arguments), []
        for i, (slot, start, row) in enumerate(pieces):
            row.prefilled = min(start + PIECE, len(row.prompt))
            self._held[slot] = row.prompt[: row.prefilled]
            if row.request.prompt_logprobs:
                count = min(row.prefilled, len(row.prompt) - 1) - start
                scored = rows.of_row(out["scored"], i)
                row.scored += logprobs_of(scored, count, row.request.logprobs or 0)
            if row.decoding:
                found.append(self._progress(slot, rows.of_row(out["first"], i), min(1, row.limit)))
        return found + [self._progress(slot, rows.of_row(out["next"], slot), 1) for slot in active]

    def _place(self, slot: int, row: Row) -> bool:
        """Prepares a slot for its row: copies what another slot holds of the prompt.

        False if a piece more of that is still being computed.
        """
        held = computed = 0
        source = slot
        if not row.request.prompt_logprobs:  # which need the whole prompt
            before = itertools.takewhile(lambda other: other != slot, self._rows)
            pending = [self._rows[other] for other in before if not self._rows[other].decoding]
            unit = PIECE if self._invariant else 1  # else another rounding
            computed, _ = rows.longest_prefix(row, [other.prompt for other in pending], unit)
            held, source = rows.longest_prefix(row, self._held, unit)
        if computed - held >= PIECE:
            return False
        if held:
            if source != slot:
                self._copy_row(source, slot, held)
            row.prefilled = held
            self._held[slot] = row.prompt[:held]
        if row.sampling.adjusts:
            start = rows.counts_and_bias(row, self.config.vocab_size)
            self._update("set_row", np.int32(slot), *start)
        row.placed = True
        return True

    def _decoding(self) -> dict[int, Row]:
        """The answers that are past their prompt, by slot."""
        return {slot: row for slot, row in self._rows.items() if row.decoding}

    def _decode(self) -> list[Progress]:
        """Runs a burst of decode steps."""
        self._compact()
        active = self._decoding()
        if not active:
            return []
        size = fit(self._programs.rows, max(active) + 1)
        full = np.int32(len(active) if self._queue else 0)
        out = self._run("decode", size, rows.burst_arrays(active, size), np.int32(self.burst), full)
        counts = out.pop("count")
        return [self._progress(slot, rows.of_row(out, slot), counts[slot]) for slot in active]

    def _progress(self, slot: int, new: dict[str, np.ndarray], count: int) -> Progress:
        """Adds the first `count` new tokens to a row, frees its slot at the end; reports both."""
        row, ids = self._rows[slot], new["tokens"][:count].tolist()
        if not new["finite"][:count].all():
            del self._rows[slot]
            self._held[slot] = np.zeros(0, np.int64)
            self._copy_row(-1, slot, self.max_length)  # NaN times a weight of zero is NaN
            return Progress(row.request.index, [], [], None, NOT_FINITE)
        row.ids += ids
        written = [] if self._invariant else row.ids[:-1]  # decoded keys are rounded otherwise
        self._held[slot] = np.concatenate([row.prompt, written]).astype(np.int64)
        stopped = bool(ids) and ids[-1] in self.eos_ids
        reason = "stop" if stopped else "length" if len(row.ids) == row.limit else None
        if reason:
            del self._rows[slot]
        added, eos = (ids[:-1], ids[-1]) if stopped else (ids, None)
        asked = row.request.logprobs
        logprobs = [] if asked is None else logprobs_of(new, count, asked)
        prompt = row.scored if row.request.prompt_logprobs and len(row.ids) == len(ids) else None
        return Progress(row.request.index, added, logprobs, prompt, reason, eos)

    def _compact(self) -> None:
        """Moves rows to lower slots where fewer rows then decode; no request waits by then."""
        size = fit(self._programs.rows, len(self._rows))
        if self._queue or not self._rows or max(self._rows) < size:
            return
        free = (slot for slot in range(size) if slot not in self._rows)
        for source in [slot for slot in self._rows if slot >= size]:
            target = next(free)
            row = self._rows[source]
            self._copy_row(source, target, len(row.prompt) + len(row.ids))
            self._held[target] = self._held[source]
            self._rows = {target if s == source else s: row for s, row in self._rows.items()}
