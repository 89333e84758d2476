"""The compiled programs of an engine: a chunk of prefill with a decode step, a burst of such steps.

The device keeps the cache and, of rows that adjust their logits, counts of tokens and biases:

    k, v                     see `cache.py`
    counts, bias [B, V]      see `sampling.adjust`

Everything else is a few numbers a row, which the host sends with every call.
"""

import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jax.typing import DTypeLike

from alpacare_jax.distributed import sharding
from alpacare_jax.inference import cache, ragged_attention
from alpacare_jax.inference.requests import MAX_LOGPROBS
from alpacare_jax.inference.sampling import Rows, sample
from alpacare_jax.model.config import LlamaConfig
from alpacare_jax.model.llama import Llama, Params
from common import messages

BURST = 16
"""Maximum decode steps between two looks at the answers."""

DECODE = "decode"
"""Name scope of the loop over decode steps in compiled programs; `plan` searches for it."""

State = dict[str, jax.Array]

Group = tuple[jax.Array, jax.Array, jax.Array | None]
"""Tokens [R, T] that continue rows of the cache: with `starts_R` and `rows_R` of `cache.attend`."""


class Programs:
    """The functions to compile, which update the state in place.

    Args:
      rows, length: slots, and the most tokens of each.
      mesh, rules: see `Engine`.
    """

    def __init__(
        self,
        config: LlamaConfig,
        dtype: DTypeLike,
        eos_ids: Sequence[int],
        rows: int,
        length: int,
        mesh: Mesh | None,
        rules: Mapping[str, str] | None,
    ):
        self.config, self.dtype, self.eos_ids = config, dtype, tuple(eos_ids)
        small = placed = None
        self._ragged = ragged_attention.attend
        if mesh and rules:
            small = sharding.replicated(mesh)
            placed = cache.placement(mesh, rules) | dict.fromkeys(("counts", "bias"), small)
            self._ragged = ragged_attention.on_mesh(mesh, rules["kv_heads"] or None)
        self.platform = mesh.devices.flat[0].platform if mesh else jax.default_backend()
        on_gpu = self.platform in ("gpu", "cuda")
        self._ragged = self._ragged if on_gpu and self._trusts_kernel() else None
        spread = mesh is not None and sharding.batch_groups(mesh) > 1
        self._access = cache.access(self.platform, spread)
        self.empty = jax.jit(functools.partial(self._empty, rows, length), out_shardings=placed)

        def jit(function: Callable, arguments: int, has_params: bool) -> Any:
            ins = (*[None] * has_params, placed, *[small] * arguments)
            outs = (placed, small) if has_params else placed
            placing = {"in_shardings": ins, "out_shardings": outs} if mesh else {}
            return jax.jit(function, donate_argnums=int(has_params), **placing)

        self.jitted = {
            "prefill": jit(functools.partial(self._prefill, False), 2, True),
            "score": jit(functools.partial(self._prefill, True), 2, True),
            "decode": jit(self._decode, 3, True),
            "copy_row": jit(_copy_row, 3, False),
            "set_row": jit(_set_row, 3, False),
        }

    def blank_vocabulary(self) -> tuple[np.ndarray, np.ndarray]:
        """Counts and biases of a row that adjusts nothing."""
        size = self.config.vocab_size
        return np.zeros(size, np.int32), np.zeros(size, np.float32)

    def _empty(self, rows: int, length: int) -> State:
        vocabulary = (rows, self.config.vocab_size)
        return cache.empty(self.config, rows, length, self.dtype) | {
            "counts": jnp.zeros(vocabulary, jnp.int32),
            "bias": jnp.zeros(vocabulary, jnp.float32),
        }

    def _prefill(
        self, scores: bool, params: Params, state: State, pieces: Rows, rows: Rows | None
    ) -> tuple[State, dict[str, Any]]:
        """Runs pieces of prompts, and one decode step: both read the weights once.

        Returns [P, 1] the token after each piece, and [R, 1] the next of each row.

        Args:
          scores: return log-probabilities of all `targets`, too.
          pieces: settings of each piece's row, and
            tokens, targets [P, PIECE]   ids, and the ids that follow them
            start, count [P]             position of the first token, and the number of tokens;
                                         the rest is overwritten later
            slot [P]                     the row that is prefilled
            ends [P]                     whether the prompt ends here
            logprobs [P]                 whether they are asked for
          rows: as of `_decode`; None: no decode step.
        """
        model = Llama(params, self.config, self.dtype)
        groups = [(pieces["tokens"], pieces["start"], pieces["slot"])]
        if rows is not None:
            groups.append(_next(rows["tokens"], rows["positions"], rows["active"]))
        hidden, state = self._extend(model, state, *groups)
        P = len(pieces["tokens"])
        last_PD = hidden[0][jnp.arange(P), jnp.maximum(pieces["count"] - 1, 0)]
        logits = model.logits(jnp.concatenate([last_PD, *(h_RTD[:, 0] for h_RTD in hidden[1:])]))
        following = pieces["start"] + pieces["count"]
        state, first = _draw(state, logits[:P], pieces, pieces["slot"], following, pieces["ends"])
        out: dict[str, Any] = {"first": first}
        if rows is not None:
            following = rows["positions"] + 1
            state, out["next"] = _draw(state, logits[P:], rows, None, following, rows["active"])
        out = jax.tree.map(lambda x: x[:, None], out)
        if scores:
            out["scored"] = jax.lax.map(
                lambda piece: _scores(model.logits(piece[0]), piece[1]),
                (hidden[0], pieces["targets"]),
            )
        return state, out

    def _decode(
        self, params: Params, state: State, rows: Rows, burst: jax.Array, full: jax.Array
    ) -> tuple[State, dict[str, Any]]:
        """Up to `burst` tokens for each active row.

        Args:
          rows: settings of the first R rows, and
            tokens, positions [R]     last token of each, not yet in the cache, and its position
            left [R]                  most tokens still to generate
            active, logprobs [R]      whether it is unfinished, and wants log-probabilities
          full: end early when fewer rows than this are active, so that others take their place.
        """
        model = Llama(params, self.config, self.dtype)
        R = len(rows["tokens"])

        def step(carry):
            i, state, tokens, positions, active, out = carry
            (hidden_RTD,), state = self._extend(model, state, _next(tokens, positions, active))
            logits = model.logits(hidden_RTD[:, 0])
            state, new = _draw(state, logits, rows, None, positions + 1, active)
            out = {
                **{name: out[name].at[:, i].set(values) for name, values in new.items()},
                "count": out["count"] + active,
            }
            active &= ~jnp.isin(new["tokens"], jnp.array(self.eos_ids, jnp.int32))
            active &= out["count"] < rows["left"]
            return i + 1, state, new["tokens"], positions + 1, active, out

        def unfinished(carry):
            i, active = carry[0], jnp.sum(carry[4])
            return (i < burst) & (active > 0) & ((i == 0) | (active >= full))

        _, shapes = jax.eval_shape(
            lambda logits: _draw(state, logits, rows, None, rows["positions"], rows["active"]),
            jax.ShapeDtypeStruct((R, self.config.vocab_size), jnp.float32),
        )
        out = {name: jnp.zeros((R, BURST, *x.shape[1:]), x.dtype) for name, x in shapes.items()}
        out["count"] = jnp.zeros(R, jnp.int32)
        start = (0, state, rows["tokens"], rows["positions"], rows["active"], out)
        with jax.named_scope(DECODE):
            _, state, _, _, _, out = jax.lax.while_loop(unfinished, step, start)
        return state, out

    def _trusts_kernel(self) -> bool:
        """Whether the kernel of GPUs attends as XLA does here; of described GPUs it is assumed."""
        if jax.default_backend() != "gpu":
            return True
        sizes = self.config.sizes
        fault = ragged_attention.fault(sizes["N"], sizes["K"], sizes["H"], self.dtype)
        if fault:
            messages.log(f"decoding attends by XLA's operations: the kernel of GPUs {fault}")
        return not fault

    def _extend(self, model: Llama, state: State, *groups: Group) -> tuple[list[jax.Array], State]:
        """Hidden states [R, T, D] of each group, and the state with their keys and values."""
        shapes = [tokens_RT.shape for tokens_RT, *_ in groups]
        own = [jnp.arange(len(tokens)) if rows is None else rows for tokens, _, rows in groups]

        def split(x_M: jax.Array) -> list[jax.Array]:
            parts = jnp.split(x_M, np.cumsum([R * T for R, T in shapes])[:-1])
            return [x.reshape(*RT, *x.shape[1:]) for x, RT in zip(parts, shapes, strict=True)]

        def join(parts: Iterable[jax.Array]) -> jax.Array:
            return jnp.concatenate([x_RT.reshape(-1, *x_RT.shape[2:]) for x_RT in parts])

        def attend(layer, q_MNH, k_MKH, v_MKH, held):
            each = list(zip(groups, own, *map(split, (q_MNH, k_MKH, v_MKH)), strict=True))
            for (_, starts, _), rows, _, k, v in each:
                held = cache.extend(held, layer, rows, starts, self._access, k=k, v=v)
            if self._ragged:
                k, v = held["k"], held["v"]
                out = [self._ragged(q, k, v, layer, r, starts) for (_, starts, _), r, q, *_ in each]
            else:
                out = [
                    cache.attend(q, held, layer, rows, starts, self._access)
                    for (_, starts, rows), _, q, *_ in each
                ]
            return join(out), held

        kept = {name: state[name] for name in ("k", "v")}
        positions = [
            jnp.maximum(starts, 0)[:, None] + jnp.arange(T)
            for (_, starts, _), (_, T) in zip(groups, shapes, strict=True)
        ]
        tokens_M = join(tokens for tokens, *_ in groups)
        hidden_MD, kept = model.extend(tokens_M, join(positions), kept, attend)
        return split(hidden_MD), state | kept


def _next(tokens_R: jax.Array, positions_R: jax.Array, active_R: jax.Array) -> Group:
    """The group of the first rows, one token each, where they are active."""
    return tokens_R[:, None], jnp.where(active_R, positions_R, -1), None


def _draw(
    state: State,
    logits_RV: jax.Array,
    settings: Rows,
    rows_R: jax.Array | None,
    positions_R: jax.Array,
    wanted_R: jax.Array,
) -> tuple[State, dict[str, jax.Array]]:
    """The state with the tokens drawn at these positions counted where they are wanted; the tokens,
    whether the largest logits are finite, as they are not where any is NaN, and their scores where
    they are asked for.

    Args:
      rows_R: of the state; None: its first R.
    """
    R = len(logits_RV)
    rows, at = (slice(R), jnp.arange(R)) if rows_R is None else (rows_R, rows_R)
    tokens = sample(logits_RV, positions_R, state["counts"][rows], state["bias"][rows], settings)
    counted = state["counts"].at[at, tokens].add(wanted_R & settings["adjusts"])
    asked = settings["logprobs"] & wanted_R
    scores = _if_any(asked, lambda: _scores(logits_RV, tokens))
    finite = jnp.isfinite(jnp.max(logits_RV, axis=-1))
    return state | {"counts": counted}, scores | {"tokens": tokens, "finite": finite}


def _scores(logits: jax.Array, tokens: jax.Array) -> dict[str, jax.Array]:
    """Log-probabilities of the tokens, and the most likely ones."""
    total = jax.nn.logsumexp(logits, axis=-1, keepdims=True)
    own = jnp.take_along_axis(logits, tokens[..., None], axis=-1) - total
    top, ids = jax.lax.top_k(logits, min(MAX_LOGPROBS, logits.shape[-1]))
    return {"logprob": own[..., 0], "top_ids": ids, "top": top - total}


def _if_any(wanted: jax.Array, compute):
    """What `compute` returns, or zeros where no row wants it."""
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(compute))
    return jax.lax.cond(jnp.any(wanted), compute, lambda: zeros)


def _copy_row(state: State, source: jax.Array, target: jax.Array, count: jax.Array) -> State:
    """The state with one row's first keys and values, counts and bias overwritten by another's."""
    kept = {name: state[name] for name in ("k", "v")}
    copied = {name: state[name].at[target].set(state[name][source]) for name in ("counts", "bias")}
    return state | cache.copy_row(kept, source, target, count) | copied


def _set_row(state: State, slot: jax.Array, counts_V: jax.Array, bias_V: jax.Array) -> State:
    """The state with the counts and biases of a row that adjusts its logits."""
    return state | {
        "counts": state["counts"].at[slot].set(counts_V),
        "bias": state["bias"].at[slot].set(bias_V),
    }
