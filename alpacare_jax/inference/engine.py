"""Continuous batching: a fixed number of slots, each refilled as soon as its answer ends.

A static batch that waits for its longest answer spends most of its compute on finished rows. Here
a finished row admits the next prompt immediately, and once the queue is empty the batch shrinks.

No answer depends on its neighbours: prompts are prefilled one at a time, rows of a decode step
never mix, and a sampled token depends on (seed, request, position) alone. Only rounding remains:
with a different number of rows XLA may sum in a different order, which can flip a near tie in
bfloat16.
"""

import collections
import dataclasses
import functools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from alpacare_jax.distributed import sharding
from alpacare_jax.inference.sampling import Sampling, penalise, sample
from alpacare_jax.model.config import LlamaConfig
from alpacare_jax.model.llama import Llama, Params

LENGTH_BUCKET = 64
"""Prompts are padded, and the cache grows, to this times a power of two: few compilations."""

BURST = 16
"""Maximum decode steps between two checks for finished answers."""

DECODE = "decode"
"""Name scope of the loop over decode steps in compiled programs; `plan` searches for it."""


@dataclasses.dataclass(frozen=True)
class Request:
    """A prompt to answer; its random numbers are derived from `index`."""

    index: int
    prompt: Sequence[int]
    max_new_tokens: int

    def __post_init__(self):
        if not len(self.prompt) or self.max_new_tokens < 1:
            raise ValueError(
                f"request {self.index} requires a prompt of at least one token and max_new_tokens "
                "of at least 1"
            )


@dataclasses.dataclass(frozen=True)
class Answer:
    """Generated ids without EOS, and why generation ended: `stop` (EOS) or `length`."""

    index: int
    ids: list[int]
    finish_reason: str


def _bucket(length: int) -> int:
    """The smallest LENGTH_BUCKET * 2**n that is at least `length`."""
    size = LENGTH_BUCKET
    while size < length:
        size *= 2
    return size


class Engine:
    """Answers up to `slots` requests at a time.

    Args:
      params, config, dtype: as for `Llama`.
      eos_ids: any of them ends an answer.
      max_length: maximum tokens of prompt and answer together.
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
        sampling: Sampling,
        mesh: Mesh | None = None,
        rules: Mapping[str, str] | None = None,
    ):
        self.params, self.config, self.dtype = params, config, dtype
        self.eos_ids, self.max_length, self.slots = tuple(eos_ids), max_length, slots
        self.sampling = sampling
        self._groups = sharding.batch_groups(mesh) if mesh else 1
        if slots % self._groups:
            raise ValueError(
                f"{slots} slots cannot be split evenly over {self._groups} groups of devices (mesh "
                f"axes {' and '.join(sharding.BATCH_AXES)}); choose a multiple of {self._groups}"
            )
        if mesh and not rules:
            raise ValueError("an engine on a mesh requires the sharding rules of its params")
        self._shardings = shardings = _state_shardings(mesh, rules) if mesh and rules else None
        self._empty = jax.jit(self._empty_state, static_argnums=(0, 1), out_shardings=shardings)
        self._prefill = jax.jit(self._prefill_step)
        self._insert = jax.jit(
            _insert_row,
            donate_argnums=0,
            in_shardings=(shardings, None, None),
            out_shardings=shardings,
        )
        self._decode = jax.jit(
            self._decode_steps,
            donate_argnums=1,
            in_shardings=(None, shardings, None, None),
            out_shardings=shardings,
        )

    def run(
        self,
        requests: Iterable[Request],
        stop_early: Callable[[list[int]], bool] = lambda ids: False,
        burst: int = BURST,
    ) -> Iterator[Answer]:
        """Yields answers as they finish, in any order.

        Args:
          stop_early: called with the ids of each unfinished answer after every burst; True ends
            the answer, with finish_reason `stop`.
          burst: see `BURST`.

        Raises:
          ValueError: a prompt leaves no room within `max_length`, or `burst` is below 1.
        """
        if burst < 1:
            raise ValueError("burst must be at least 1")
        queue = collections.deque(requests)
        for request in queue:
            if len(request.prompt) >= self.max_length:
                raise ValueError(
                    f"prompt {request.index} is {len(request.prompt):,} tokens, which leaves no "
                    f"room within max_length {self.max_length:,}; raise it or shorten the prompt"
                )
        rows = min(self.slots, len(queue))
        slots: list[Request | None] = [None] * (-(-rows // self._groups) * self._groups)
        state = self._empty(len(slots), LENGTH_BUCKET)
        while queue or any(slots):
            for slot, request in enumerate(slots):
                if request is None and queue:
                    slots[slot] = admitted = queue.popleft()
                    state = self._admit(state, slot, admitted)
            state, slots = self._shrink(state, slots)
            busy = [i for i, request in enumerate(slots) if request]
            last = int(np.asarray(state["positions"])[busy].max())
            state = self._lengthen(state, last + burst + 1)
            state = self._decode(self.params, state, burst, bool(queue))
            yield from self._collect(state, slots, stop_early)

    def trace(self, prompt_tokens: int) -> tuple[jax.stages.Traced, jax.stages.Traced]:
        """Traces the prefill of one prompt and `BURST` decode steps with all slots in use.

        The cache has its maximum length. Nothing is allocated: `params` may be abstract.
        """
        state = self._empty.eval_shape(self.slots, _bucket(self.max_length))
        prompt = jax.ShapeDtypeStruct((_bucket(prompt_tokens),), np.int32)
        prefill = self._prefill.trace(self.params, prompt, prompt_tokens, 0)
        return prefill, self._decode.trace(self.params, state, BURST, True)

    # Device state, rows B = slots:
    #   k, v [L, B, S, K, H]    the cache; index = position
    #   tokens [B]              last token of each row, not yet in the cache
    #   positions [B]           its position
    #   active [B]              whether the row's answer is unfinished
    #   output [B, O], count [B], limit [B]   generated ids, their number and its maximum
    #   requests [B]            request index, for the random numbers
    #   seen [B, V]             tokens of prompt and answer; V is 1 without a repetition penalty

    @property
    def _seen_size(self) -> int:
        return self.config.vocab_size if self.sampling.repetition_penalty != 1 else 1

    def _empty_state(self, rows: int, length: int) -> dict[str, Any]:
        c = self.config
        cache = (c.num_hidden_layers, rows, length, c.num_key_value_heads, c.head_dim)
        names = ("tokens", "positions", "count", "limit", "requests")
        return {
            "k": jnp.zeros(cache, self.dtype),
            "v": jnp.zeros(cache, self.dtype),
            "active": jnp.zeros(rows, bool),
            "output": jnp.zeros((rows, self.max_length), jnp.int32),
            "seen": jnp.zeros((rows, self._seen_size), bool),
        } | {name: jnp.zeros(rows, jnp.int32) for name in names}

    def _admit(self, state: dict[str, Any], slot: int, request: Request) -> dict[str, Any]:
        """Prefills a prompt and inserts it, with its first generated token, into a slot."""
        n = len(request.prompt)
        state = self._lengthen(state, n + 1)
        prompt = np.zeros(_bucket(n), np.int32)
        prompt[:n] = request.prompt
        limit = min(request.max_new_tokens, self.max_length - n)
        row = self._prefill(self.params, prompt, n, request.index)
        return self._insert(state, slot, row | {"limit": limit, "requests": request.index})

    def _prefill_step(self, params, prompt_T, n, request):
        """The state of one row after its first token; compiled once per padded length T."""
        T = len(prompt_T)
        model = Llama(params, self.config, self.dtype)
        positions = jnp.arange(T)
        segments = (positions < n).astype(jnp.int32)
        hidden, k, v = model.prefill(prompt_T[None], positions[None], segments[None])
        seen = jnp.zeros(self._seen_size, bool)
        if self.sampling.repetition_penalty != 1:
            seen = seen.at[jnp.where(segments, prompt_T, len(seen))].set(True, mode="drop")
        logits_V = model.logits(hidden[0, n - 1])
        token, seen = self._next(logits_V[None], seen[None], request[None], n[None])
        return {
            "k": k[:, 0].astype(self.dtype),
            "v": v[:, 0].astype(self.dtype),
            "tokens": token[0],
            "positions": n,
            "active": ~self._is_eos(token[0]),
            "seen": seen[0],
        }

    def _next(self, logits_BV, seen_BV, requests_B, positions_B):
        """The token at `positions_B` of each row, and `seen` including it."""
        if self.sampling.repetition_penalty != 1:
            logits_BV = penalise(logits_BV, seen_BV, self.sampling.repetition_penalty)
        root = jax.random.key(self.sampling.seed)
        fold = jax.vmap(lambda r, p: jax.random.fold_in(jax.random.fold_in(root, r), p))
        token_B = sample(logits_BV, fold(requests_B, positions_B), self.sampling)
        if self.sampling.repetition_penalty != 1:
            seen_BV = seen_BV.at[jnp.arange(len(token_B)), token_B].set(True)
        return token_B, seen_BV

    def _is_eos(self, tokens: jax.Array) -> jax.Array:
        return jnp.isin(tokens, jnp.array(self.eos_ids, jnp.int32))

    def _decode_steps(self, params, state, burst, waiting):
        """Up to `burst` tokens for each active row; ends early when a slot can be refilled."""
        model = Llama(params, self.config, self.dtype)
        rows = jnp.arange(len(state["tokens"]))

        def step(carry):
            i, s = carry
            hidden, s["k"], s["v"] = model.decode(s["tokens"], s["positions"], s["k"], s["v"])
            positions = s["positions"] + s["active"]
            token, seen = self._next(model.logits(hidden), s["seen"], s["requests"], positions)
            s["tokens"] = jnp.where(s["active"], token, s["tokens"])
            s["seen"] = jnp.where(s["active"][:, None], seen, s["seen"])
            at = jnp.where(s["active"], s["count"], self.max_length)
            s["output"] = s["output"].at[rows, at].set(token, mode="drop")
            s["count"] = s["count"] + s["active"]
            s["positions"] = positions
            s["active"] = s["active"] & ~self._is_eos(token) & (s["count"] < s["limit"])
            return i + 1, s

        def unfinished(carry):
            i, s = carry
            active = jnp.sum(s["active"])
            return (i < burst) & (active > 0) & ~(waiting & (active < len(rows)))

        with jax.named_scope(DECODE):
            return jax.lax.while_loop(unfinished, step, (0, state))[1]

    def _collect(self, state, slots, stop_early):
        """Removes finished answers from their slots, and from the active rows; returns them."""
        active, count, output = jax.device_get((state["active"], state["count"], state["output"]))
        answers, active = [], active.copy()
        for i, request in enumerate(slots):
            if request is None:
                continue
            ids = output[i, : count[i]].tolist()
            stopped = ids[-1] in self.eos_ids
            early = not stopped and stop_early(ids)
            if active[i] and not early:
                continue
            reason = "stop" if stopped or early else "length"
            answers.append(Answer(request.index, ids[:-1] if stopped else ids, reason))
            slots[i], active[i] = None, False
        state["active"] = jnp.asarray(active)
        return answers

    def _shrink(self, state, slots):
        """Halves the rows while at most half of them are busy: the queue is empty by then."""
        busy = [i for i, request in enumerate(slots) if request]
        rows = len(slots)
        while busy and rows > self._groups and len(busy) <= rows // 2:
            rows = -(-rows // 2 // self._groups) * self._groups
        if not busy or rows == len(slots):
            return state, slots
        chosen = (busy + [i for i, request in enumerate(slots) if not request])[:rows]
        return self._place(_take_rows(state, np.array(chosen))), [slots[i] for i in chosen]

    def _lengthen(self, state, length: int):
        """Lengthens the cache to hold `length` tokens of each row, at most `max_length`."""
        missing = _bucket(min(length, self.max_length)) - state["k"].shape[2]
        return self._place(_pad_cache(state, missing)) if missing > 0 else state

    def _place(self, state):
        """Restores the shardings of the state, which eager operations may have changed."""
        return jax.device_put(state, self._shardings) if self._shardings else state


def _state_shardings(mesh: Mesh, rules: Mapping[str, str]) -> dict[str, NamedSharding]:
    """The cache is sharded; everything else is small, read by every process, and replicated."""
    heads = rules["kv_heads"] or None
    cache = NamedSharding(mesh, PartitionSpec(None, sharding.BATCH_AXES, None, heads, None))
    names = ("tokens", "positions", "active", "output", "count", "limit", "requests", "seen")
    return {"k": cache, "v": cache} | dict.fromkeys(names, sharding.replicated(mesh))


def _insert_row(state, slot, row):
    """Writes a prefilled prompt and its first token into a slot."""
    for name in ("k", "v"):
        end = min(row[name].shape[1], state[name].shape[2])
        state[name] = state[name].at[:, slot, :end].set(row[name][:, :end])
    for name in ("tokens", "positions", "limit", "requests", "seen"):
        state[name] = state[name].at[slot].set(row[name])
    state["output"] = state["output"].at[slot, 0].set(row["tokens"])
    state["count"] = state["count"].at[slot].set(1)
    state["active"] = state["active"].at[slot].set(row["active"] & (row["limit"] > 1))
    return state


@jax.jit
def _take_rows(state, rows):
    return {
        name: jnp.take(array, rows, axis=1 if name in ("k", "v") else 0)
        for name, array in state.items()
    }


@functools.partial(jax.jit, static_argnums=1)
def _pad_cache(state, extra: int):
    widths = ((0, 0), (0, 0), (0, extra), (0, 0), (0, 0))
    return state | {name: jnp.pad(state[name], widths) for name in ("k", "v")}
