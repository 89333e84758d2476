"""Continuous batching: a fixed number of slots, each refilled as soon as its answer ends.

A static batch that waits for its longest answer spends most of its compute on finished rows. Here
a finished row admits the next prompt immediately. Prompts are prefilled many at a time, in chunks
between bursts of decode steps, so running answers wait for one chunk at most; a prefix that a slot
holds already is copied, not computed.

No answer depends on its neighbours: rows never mix, and a sampled token depends on (seed, request,
position) alone. Only rounding remains: with a different number of rows XLA may sum in a different
order, which can flip a near tie in bfloat16. `invariant` excludes that, too.
"""

import collections
import concurrent.futures
import dataclasses
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from alpacare_jax.distributed import sharding
from alpacare_jax.inference.programs import BURST, PIECE, Programs
from alpacare_jax.inference.requests import Answer, Progress, Request, TokenLogprobs
from alpacare_jax.inference.sampling import IN_PROMPT, Rows, Sampling, settings_of
from alpacare_jax.model.config import LlamaConfig
from alpacare_jax.model.llama import Params
from common.sections import UsageError

CHUNK = 512
"""Prompt tokens that are prefilled in one call, at most."""

LEAST_ROWS = {True: 1, False: 16}
LEAST_PIECES = {True: 1, False: 4}
"""The smallest numbers of rows and pieces that programs are compiled for, on CPU or not: an
accelerator computes a few rows as fast as one."""

USUAL = Sampling()


@dataclasses.dataclass
class _Row:
    """An unfinished answer in its slot."""

    request: Request
    sampling: Sampling
    prompt: np.ndarray
    limit: int  # most ids
    placed: bool = False  # its prefix was looked for
    prefilled: int = 0  # tokens of the prompt in the cache
    ids: list[int] = dataclasses.field(default_factory=list)
    scored: list[TokenLogprobs | None] = dataclasses.field(default_factory=lambda: [None])

    @property
    def draw(self) -> int:
        return self.request.index if self.request.draw is None else self.request.draw

    @property
    def decoding(self) -> bool:
        return self.prefilled == len(self.prompt)


class Engine:
    """Answers up to `slots` requests at a time. One thread calls its methods.

    Args:
      params, config, dtype: as for `Llama`.
      eos_ids: any of them ends an answer.
      max_length: maximum tokens of prompt and answer together.
      sampling: of requests that have none of their own.
      chunk, burst: most tokens of a chunk, and most decode steps of a burst, at most BURST.
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
        chunk: int = CHUNK,
        burst: int = BURST,
        invariant: bool = False,
        mesh: Mesh | None = None,
        rules: Mapping[str, str] | None = None,
    ):
        self.params, self.config = params, config
        self.eos_ids, self.max_length, self.slots = tuple(eos_ids), max_length, slots
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
        self._programs = Programs(config, dtype, eos_ids, slots, max_length, mesh, rules)
        on_cpu = (mesh.devices.flat[0].platform if mesh else jax.default_backend()) == "cpu"
        self._row_sizes = _sizes(slots, LEAST_ROWS[on_cpu], invariant or groups > 1)
        most = min(-(-chunk // PIECE), slots * -(-max_length // PIECE))
        self._piece_sizes = _sizes(most, LEAST_PIECES[on_cpu], invariant)
        self.chunk = self._piece_sizes[0] * PIECE
        self._state: Any = None
        self._queue: collections.deque[Request] = collections.deque()
        self._rows: dict[int, _Row] = {}  # slot -> row, in order of admission
        self._held = [np.zeros(0, np.int64)] * slots  # the ids whose keys each slot holds

    @property
    def busy(self) -> bool:
        """Whether a step would do anything."""
        return bool(self._queue or self._rows)

    def submit(self, request: Request) -> None:
        """Queues a request; `step` reports what becomes of it.

        Raises:
          ValueError: its prompt leaves no room within `max_length`, or its ids are not the model's.
        """
        n = len(request.prompt)
        if n + (request.max_new_tokens > 0) > self.max_length:
            raise UsageError(
                f"prompt {request.index} is {n:,} tokens, which leaves no room within max_length "
                f"{self.max_length:,}; raise it or shorten the prompt"
            )
        named = [*request.prompt, *(request.sampling or self.sampling).logit_bias]
        if not 0 <= min(named) <= max(named) < self.config.vocab_size:
            raise UsageError(
                f"request {request.index} names a token id outside 0 to "
                f"{self.config.vocab_size - 1:,}"
            )
        self._queue.append(request)

    def cancel(self, index: int) -> None:
        """Forgets a request, wherever it is; it is not reported any more."""
        self._queue = collections.deque(r for r in self._queue if r.index != index)
        for slot in [s for s, row in self._rows.items() if row.request.index == index]:
            self._release(slot)

    def step(self, fill: bool = False) -> list[Progress]:
        """Runs one chunk of prefill, if prompts wait, and one burst of decode steps.

        Args:
          fill: fill all slots before the next burst. Answers wait for longer, but more are
            generated at a time.
        """
        self._admit()
        found = self._prefill()
        waiting = any(not row.decoding for row in self._rows.values())
        if not (fill and (waiting or (self._queue and len(self._rows) < self.slots))):
            found += self._decode()
        return found

    def run(
        self,
        requests: Iterable[Request],
        stop_early: Callable[[list[int]], bool] = lambda ids: False,
        burst: int | None = None,
    ) -> Iterator[Answer]:
        """Yields answers as they finish, in any order.

        Args:
          stop_early: called with the ids of each answer without EOS after every step that added to
            them; True ends the answer, with finish_reason `stop`.
          burst: see the class.

        Raises:
          ValueError: as of `submit`, before anything is answered.
        """
        if burst is not None and not 1 <= burst <= BURST:
            raise ValueError(f"burst must be at least 1 and at most {BURST}")
        usual, self.burst = self.burst, burst or self.burst
        answers: dict[int, list[int]] = {}
        try:
            for request in requests:
                self.submit(request)
                answers[request.index] = []
            while self.busy:
                for progress in self.step(fill=True):
                    ids, reason = answers[progress.index], progress.finish_reason
                    ids += progress.ids
                    if reason != "stop" and progress.ids and stop_early(ids):
                        self.cancel(progress.index)
                        reason = "stop"
                    if reason:
                        yield Answer(progress.index, answers.pop(progress.index), reason)
        finally:
            self.burst = usual
            for index in answers:
                self.cancel(index)

    def compile(self, say: Callable[[str], None]) -> None:
        """Compiles every program for every number of rows; `say` hears of each."""
        state, slot = self._device_state(), np.int32(0)
        model = self.params, state
        programs: list[tuple[str, int, tuple[Any, ...]]] = [
            (name, size, (*model, self._piece_arrays([], size)))
            for name in ("prefill", "score")
            for size in self._piece_sizes[: None if name == "prefill" else 1]
        ]
        for size in self._row_sizes:
            programs.append(("decode", size, (*model, *self._burst_arrays({}, size))))
        counts = np.zeros(self.config.vocab_size, np.int32)
        programs.append(("copy_row", 0, (state, slot, slot)))
        programs.append(("set_row", 0, (state, slot, counts, counts.astype(np.float32))))
        with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as threads:
            started = [
                threads.submit(self._programs.compile, name, size, *arguments)
                for name, size, arguments in programs
            ]
            for done, _ in enumerate(concurrent.futures.as_completed(started), start=1):
                say(f"compiled {done} of {len(programs)} programs")
            for future in started:
                future.result()

    def trace(self) -> tuple[jax.stages.Traced, jax.stages.Traced]:
        """Traces the prefill of a whole chunk, and BURST decode steps with all slots in use.

        Nothing is allocated: `params` may be abstract.
        """
        state, jitted = self._programs.empty.eval_shape(), self._programs.jitted
        pieces = self._piece_arrays([], self._piece_sizes[0])
        rows = self._burst_arrays({}, self.slots)
        return (
            jitted["prefill"].trace(self.params, state, pieces),
            jitted["decode"].trace(self.params, state, *rows),
        )

    # Scheduling

    def _admit(self) -> None:
        """Gives the first requests of the queue a slot each, low ones first."""
        while self._queue and len(self._rows) < self.slots:
            request = self._queue.popleft()
            slot = next(s for s in range(self.slots) if s not in self._rows)
            prompt = np.asarray(request.prompt, np.int64)
            limit = min(request.max_new_tokens, self.max_length - len(prompt))
            self._rows[slot] = _Row(request, request.sampling or self.sampling, prompt, limit)

    def _release(self, slot: int) -> None:
        """Frees a slot; what it holds may still be the prefix of another prompt."""
        del self._rows[slot]

    def _update(self, name: str, *arguments: Any) -> None:
        self._state = self._programs(name, 0, self._device_state(), *arguments)

    def _device_state(self) -> Any:
        if self._state is None:
            self._state = self._programs.empty()
        return self._state

    def _prefill(self) -> list[Progress]:
        """Prefills one chunk of the prompts that wait, in order of admission."""
        pieces: list[tuple[int, int]] = []  # (slot, start)
        most = self._piece_sizes[0]
        for slot, row in self._rows.items():
            if row.decoding or not (row.placed or self._place(slot, row)):
                continue
            starts = range(row.prefilled, len(row.prompt), PIECE)
            pieces += [(slot, start) for start in starts[: most - len(pieces)]]
        if not pieces:
            return []
        scored = any(self._rows[slot].request.prompt_logprobs for slot, _ in pieces)
        name, size = "score", most
        if not scored:
            name, size = "prefill", _fit(self._piece_sizes, len(pieces))
        self._state, out = self._programs(
            name, size, self.params, self._device_state(), self._piece_arrays(pieces, size)
        )
        out, found = jax.device_get(out), []
        for i, (slot, start) in enumerate(pieces):
            row = self._rows[slot]
            row.prefilled = min(start + PIECE, len(row.prompt))
            self._held[slot] = row.prompt[: row.prefilled]
            if row.request.prompt_logprobs:
                scored = {name: values[i] for name, values in out["scored"].items()}
                count = min(row.prefilled, len(row.prompt) - 1) - start
                row.scored += _logprobs(scored, count, row.request.logprobs or 0)
            if row.decoding:
                first = {name: values[i : i + 1] for name, values in out["first"].items()}
                ids = out["tokens"][i : i + 1].tolist() if row.limit else []
                found.append(self._progress(slot, ids, first))
        return found

    def _place(self, slot: int, row: _Row) -> bool:
        """Prepares a slot for its row: copies what another slot holds of the prompt.

        False if that is still being computed.
        """
        order, (shared, source) = list(self._rows), self._longest_prefix(slot, row)
        other = self._rows.get(source)
        if other and not other.decoding and other.prefilled < shared:
            if order.index(source) < order.index(slot):
                return False
        elif shared:
            self._update("copy_row", np.int32(source), np.int32(slot))
            row.prefilled = shared
        if row.sampling.adjusts:
            counts = np.zeros(self.config.vocab_size, np.int32)
            counts[row.prompt] = IN_PROMPT
            bias = np.zeros(self.config.vocab_size, np.float32)
            bias[list(row.sampling.logit_bias)] = list(row.sampling.logit_bias.values())
            self._update("set_row", np.int32(slot), counts, bias)
        row.placed = True
        return True

    def _longest_prefix(self, slot: int, row: _Row) -> tuple[int, int]:
        """(tokens, slot) of the longest prefix of the prompt, in whole pieces, that another slot
        holds or will hold when its own prompt is prefilled."""
        best = 0, slot
        for other, held in enumerate(self._held):
            running = self._rows.get(other)
            ids = running.prompt if running and not running.decoding else held
            if other != slot and not row.request.prompt_logprobs:
                shared = _shared(row.prompt[:-1], ids) // PIECE * PIECE
                best = max(best, (shared, other), key=lambda found: found[0])
        return best

    def _piece_arrays(self, pieces: Sequence[tuple[int, int]], size: int) -> Rows:
        """The argument `pieces` of `Programs.prefill`."""
        pieces = [*pieces, *([pieces[0]] if pieces else []) * (size - len(pieces))]  # repeated
        rows = [self._rows[slot] for slot, _ in pieces]
        arrays = self._settings(rows, size) | _blank(size, "start", "count", "slot")
        arrays |= {name: np.zeros((size, PIECE), np.int32) for name in ("tokens", "targets")}
        arrays["ends"] = np.zeros(size, bool)
        for i, (row, (slot, start)) in enumerate(zip(rows, pieces, strict=True)):
            tokens = row.prompt[start : start + PIECE]
            targets = row.prompt[start + 1 : start + 1 + PIECE]
            arrays["tokens"][i, : len(tokens)] = tokens
            arrays["targets"][i, : len(targets)] = targets
            arrays["start"][i], arrays["count"][i], arrays["slot"][i] = start, len(tokens), slot
            arrays["ends"][i] = start + len(tokens) == len(row.prompt)
        return arrays

    def _settings(self, rows: Sequence[_Row | None], size: int) -> Rows:
        """Settings of these rows, those of a greedy row for others up to `size`."""
        padded = [*rows, *[None] * (size - len(rows))]
        draws = [row.draw if row else 0 for row in padded]
        settings = settings_of([row.sampling if row else USUAL for row in padded], draws)
        wanted = [row is not None and row.request.logprobs is not None for row in padded]
        return settings | {"logprobs": np.array(wanted)}

    def _decode(self) -> list[Progress]:
        """Runs a burst of decode steps for the answers that are past their prompt."""
        self._compact()
        active = {slot: row for slot, row in self._rows.items() if row.decoding}
        if not active:
            return []
        size = _fit(self._row_sizes, max(active) + 1)
        self._state, out = self._programs(
            "decode", size, self.params, self._device_state(), *self._burst_arrays(active, size)
        )
        out, found = jax.device_get(out), []
        for slot in active:
            count = out["count"][slot]
            scores = {name: out[name][slot, :count] for name in ("logprob", "top_ids", "top")}
            found.append(self._progress(slot, out["tokens"][slot, :count].tolist(), scores))
        return found

    def _burst_arrays(self, active: Mapping[int, _Row], size: int) -> tuple[Any, ...]:
        """The arguments of `Programs.decode` after the state."""
        rows = [active.get(slot) for slot in range(size)]
        arrays = self._settings(rows, size) | _blank(size, "tokens", "positions", "left")
        arrays["active"] = np.array([row is not None for row in rows])
        for slot, row in active.items():
            arrays["tokens"][slot] = row.ids[-1]
            arrays["positions"][slot] = len(row.prompt) + len(row.ids) - 1
            arrays["left"][slot] = row.limit - len(row.ids)
        return arrays, np.int32(self.burst), np.int32(len(active) if self._queue else 0)

    def _progress(self, slot: int, ids: list[int], scores: dict[str, np.ndarray]) -> Progress:
        """Adds ids to a row, frees its slot at the end, and reports both."""
        row = self._rows[slot]
        row.ids += ids
        written = [] if self._invariant else row.ids[:-1]  # decoded keys are rounded otherwise
        self._held[slot] = np.concatenate([row.prompt, written]).astype(np.int64)
        stopped = bool(ids) and ids[-1] in self.eos_ids
        reason = "stop" if stopped else "length" if len(row.ids) == row.limit else None
        if reason:
            self._release(slot)
        new = ids[:-1] if stopped else ids
        asked = row.request.logprobs
        logprobs = [] if asked is None else _logprobs(scores, len(ids), asked)
        prompt = row.scored if row.request.prompt_logprobs and len(row.ids) == len(ids) else None
        eos = ids[-1] if stopped else None
        return Progress(row.request.index, new, logprobs, prompt, reason, eos)

    def _compact(self) -> None:
        """Moves rows to lower slots where fewer rows then decode; no request waits by then."""
        size = _fit(self._row_sizes, len(self._rows))
        if self._queue or not self._rows or max(self._rows) < size:
            return
        free = (slot for slot in range(size) if slot not in self._rows)
        for source in [slot for slot in self._rows if slot >= size]:
            target = next(free)
            self._update("copy_row", np.int32(source), np.int32(target))
            self._held[target] = self._held[source]
            self._rows = {target if s == source else s: row for s, row in self._rows.items()}


def _sizes(most: int, least: int, only: bool) -> list[int]:
    """The numbers of rows that programs are compiled for: `most`, and halves down to `least`."""
    sizes = [most]
    while sizes[-1] > least and not only:
        sizes.append(-(-sizes[-1] // 2))
    return sizes


def _fit(sizes: Sequence[int], count: int) -> int:
    """The smallest of the sizes that holds so many."""
    return min(size for size in sizes if size >= count)


def _blank(size: int, *names: str) -> Rows:
    return {name: np.zeros(size, np.int32) for name in names}


def _shared(a: np.ndarray, b: np.ndarray) -> int:
    """The number of ids that both begin with."""
    n = min(len(a), len(b))
    differ = np.flatnonzero(a[:n] != b[:n])
    return int(differ[0]) if len(differ) else n


def _logprobs(scores: Mapping[str, np.ndarray], count: int, top: int) -> list[TokenLogprobs]:
    """The first `count` of these scores, with so many of the most likely tokens."""
    own = scores["logprob"][:count].tolist()
    ids, values = (scores[name][:count, :top].tolist() for name in ("top_ids", "top"))
    tops = (tuple(zip(*each, strict=True)) for each in zip(ids, values, strict=True))
    return [TokenLogprobs(*each) for each in zip(own, tops, strict=True)]
