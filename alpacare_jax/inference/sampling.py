"""Drawing a token from the logits, each row with settings of its own.

Settings are arrays with one entry a row, so that no request compiles anything; work that no row
asks for is skipped.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

from common.sections import UsageError

LEAST, MOST = 1e-6, 1e6
"""Of temperature, top_p and penalty: beyond these, float32 has zeros and infinities."""

IN_PROMPT = 2**20
"""Added to the count of a token that the prompt contains; answers are shorter."""

Rows = dict[str, Any]
"""The settings of the rows of a batch, see `settings_of`."""


@dataclasses.dataclass(frozen=True)
class Sampling:
    """Sampling settings, with the order and meaning they have in transformers: repetition penalty,
    temperature, top-k, top-p. The other penalties and the bias are OpenAI's, and come first."""

    temperature: float = 0.0  # 0: greedy, the most likely token
    top_k: int = 0  # keep the k most likely; 0: all
    top_p: float = 1.0  # keep the fewest most likely tokens of total probability p; 1: all
    repetition_penalty: float = 1.0  # > 1: tokens of prompt and answer become less likely
    seed: int = 0
    presence_penalty: float = 0.0  # subtracted from the logits of the answer's tokens
    frequency_penalty: float = 0.0  # subtracted as often as the answer has the token
    logit_bias: Mapping[int, float] = dataclasses.field(default_factory=dict, hash=False)

    def __post_init__(self):
        if not (self.temperature == 0 or LEAST <= self.temperature <= MOST):
            raise UsageError(f"temperature must be 0, for greedy, or from {LEAST} to {MOST:,.0f}")
        if self.top_k < 0:
            raise UsageError("top_k must be at least 0; 0 keeps all tokens")
        if not LEAST <= self.top_p <= 1:
            raise UsageError(f"top_p must be from {LEAST} to 1; 1 keeps all tokens")
        if not LEAST <= self.repetition_penalty <= MOST:
            raise UsageError(
                f"repetition_penalty must be from {LEAST} to {MOST:,.0f}; 1 disables it"
            )
        if not 0 <= self.seed < 2**32:
            raise UsageError(f"seed is {self.seed}; it must be from 0 to 2^32 - 1")
        added = {
            "presence_penalty": self.presence_penalty,
            "frequency_penalty": self.frequency_penalty,
            **{f"logit_bias of token {token}": bias for token, bias in self.logit_bias.items()},
        }
        for name, value in added.items():
            if not (math.isfinite(value) and abs(value) <= MOST):
                raise UsageError(f"{name} is {value}; it must be from -{MOST:,.0f} to {MOST:,.0f}")

    @property
    def adjusts(self) -> bool:
        """Whether logits depend on more than the model: penalties, bias."""
        return bool(
            self.repetition_penalty != 1
            or self.presence_penalty
            or self.frequency_penalty
            or self.logit_bias
        )


def define_flags() -> None:
    """Defines the flags of `Sampling`, for commands with one sampling for all answers."""
    flags.DEFINE_float("temperature", 0.0, "0: greedy, always the most likely token.")
    flags.DEFINE_integer("top_k", 0, "Sample from the k most likely tokens; 0: all.")
    flags.DEFINE_float("top_p", 1.0, "Sample from the fewest tokens of total probability p.")
    flags.DEFINE_float("repetition_penalty", 1.0, "Above 1: penalise repeated tokens.")
    flags.DEFINE_integer("seed", 0, "Seed of the sampling.")


def from_flags(given: flags.FlagValues) -> Sampling:
    """The sampling that the flags of `define_flags` ask for."""
    return Sampling(
        given.temperature, given.top_k, given.top_p, given.repetition_penalty, given.seed
    )


def settings_of(samplings: Sequence[Sampling], draws: Sequence[int]) -> Rows:
    """The settings of each row as arrays; `draws` number the rows' streams of random numbers."""

    def column(name: str, dtype: type) -> np.ndarray:
        return np.array([getattr(each, name) for each in samplings], dtype)

    floats = ("temperature", "top_p", "repetition_penalty", "presence_penalty", "frequency_penalty")
    return {name: column(name, np.float32) for name in floats} | {
        "top_k": np.minimum(column("top_k", np.int64), 2**31 - 1).astype(np.int32),
        "seed": column("seed", np.uint32),
        "draw": np.array(draws, np.int64).astype(np.uint32),
        "adjusts": column("adjusts", np.bool_),
    }


def sample(
    logits_BV: jax.Array,
    positions_B: jax.Array,
    counts_BV: jax.Array,
    bias_BV: jax.Array,
    rows: Rows,
) -> jax.Array:
    """Draws the token at `positions_B` of each row, int32 [B]: see `adjust` for the arguments.

    A draw depends on the row's seed, its stream and the position alone.
    """
    logits_BV = jax.lax.cond(
        jnp.any(rows["adjusts"]),
        lambda: jnp.where(
            rows["adjusts"][:, None], adjust(logits_BV, counts_BV, bias_BV, rows), logits_BV
        ),
        lambda: logits_BV,
    )
    greedy_B = jnp.argmax(logits_BV, axis=-1).astype(jnp.int32)

    def draw() -> jax.Array:
        def key(seed, stream, position):
            return jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), stream), position)

        keys_B = jax.vmap(key)(rows["seed"], rows["draw"], positions_B)
        drawn_B = jax.vmap(jax.random.categorical)(keys_B, drawable(logits_BV, rows))
        return jnp.where(rows["temperature"] > 0, drawn_B.astype(jnp.int32), greedy_B)

    return jax.lax.cond(jnp.any(rows["temperature"] > 0), draw, lambda: greedy_B)


def adjust(logits_BV: jax.Array, counts_BV: jax.Array, bias_BV: jax.Array, rows: Rows) -> jax.Array:
    """Logits with bias and penalties.

    A repetition penalty divides positive logits of seen tokens and multiplies negative ones
    (arXiv:1909.05858, in the form that transformers gives it).

    Args:
      counts_BV: how often each token is in the answer, plus IN_PROMPT if the prompt has it.
      bias_BV: added first.
    """
    own = {name: values[:, None] for name, values in rows.items()}
    answered_BV = counts_BV % IN_PROMPT
    logits_BV = logits_BV + bias_BV - own["frequency_penalty"] * answered_BV
    logits_BV -= own["presence_penalty"] * (answered_BV > 0)
    penalty = own["repetition_penalty"]
    penalised_BV = jnp.where(logits_BV > 0, logits_BV / penalty, logits_BV * penalty)
    return jnp.where((counts_BV > 0) & (penalty != 1), penalised_BV, logits_BV)


def drawable(logits_BV: jax.Array, rows: Rows) -> jax.Array:
    """Logits at each row's temperature, -inf for the tokens that top-k and top-p leave out."""
    temperature = jnp.where(rows["temperature"] > 0, rows["temperature"], 1)
    logits_BV = logits_BV / temperature[:, None]
    top_k, top_p = rows["top_k"], rows["top_p"]

    def most_likely() -> jax.Array:
        count = jnp.where(top_k > 0, jnp.minimum(top_k, logits_BV.shape[-1]), 1)
        bits_BV = _ordered(logits_BV)
        least = _threshold(bits_BV, jnp.ones_like(logits_BV), count.astype(jnp.float32))
        kept = (bits_BV >= least) | (top_k == 0)[:, None]
        return jnp.where(kept, logits_BV, -jnp.inf)

    logits_BV = jax.lax.cond(jnp.any(top_k > 0), most_likely, lambda: logits_BV)

    def of_total_probability() -> jax.Array:
        probs_BV = jax.nn.softmax(logits_BV, axis=-1)
        bits_BV = _ordered(probs_BV)
        least = _threshold(bits_BV, probs_BV, top_p)
        # Of equally likely tokens at the threshold, the first in order are kept.
        above = jnp.sum(jnp.where(bits_BV > least, probs_BV, 0), axis=-1, keepdims=True)
        tied = bits_BV == least
        before = above + probs_BV * (jnp.cumsum(tied, axis=-1) - 1)
        kept = (bits_BV > least) | (tied & (before < top_p[:, None])) | (top_p >= 1)[:, None]
        return jnp.where(kept, logits_BV, -jnp.inf)

    return jax.lax.cond(jnp.any(top_p < 1), of_total_probability, lambda: logits_BV)


def _ordered(values: jax.Array) -> jax.Array:
    """uint32 in the order of these floats."""
    bits = jax.lax.bitcast_convert_type(values + 0.0, jnp.uint32)  # -0 becomes 0
    sign = jnp.uint32(1 << 31)
    return jnp.where(bits >= sign, ~bits, bits | sign)


def _threshold(bits_BV: jax.Array, weights_BV: jax.Array, target_B: jax.Array) -> jax.Array:
    """The largest t [B, 1] for which the weights where bits >= t add up to the target at least.

    It is found bit by bit: 32 sums are many times faster than sorting a vocabulary.
    """

    def step(i, found):
        higher = found | (jnp.uint32(1 << 31) >> i.astype(jnp.uint32))
        mass = jnp.sum(jnp.where(bits_BV >= higher, weights_BV, 0), axis=-1, keepdims=True)
        return jnp.where(mass >= target_B[:, None], higher, found)

    return jax.lax.fori_loop(0, 32, step, jnp.zeros((len(bits_BV), 1), jnp.uint32))
