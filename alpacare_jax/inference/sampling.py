"""Drawing a token from the logits: repetition penalty, temperature, top-k, top-p."""

import dataclasses

import jax
import jax.numpy as jnp

from common.sections import UsageError

LEAST, MOST = 1e-6, 1e6
"""Of temperature, top_p and penalty: beyond these, float32 has zeros and infinities."""


@dataclasses.dataclass(frozen=True)
class Sampling:
    """Sampling settings, with the order and meaning they have in transformers: repetition penalty,
    temperature, top-k, top-p."""

    temperature: float = 0.0  # 0: greedy, the most likely token
    top_k: int = 0  # keep the k most likely; 0: all
    top_p: float = 1.0  # keep the fewest most likely tokens of total probability p; 1: all
    repetition_penalty: float = 1.0  # > 1: tokens of prompt and answer become less likely
    seed: int = 0

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


def penalise(logits_BV: jax.Array, seen_BV: jax.Array, penalty: float) -> jax.Array:
    """Divides positive logits of seen tokens by the penalty and multiplies negative ones by it.

    From CTRL (arXiv:1909.05858), in the form that transformers gives it.
    """
    penalised = jnp.where(logits_BV > 0, logits_BV / penalty, logits_BV * penalty)
    return jnp.where(seen_BV, penalised, logits_BV)


def sample(logits_BV: jax.Array, keys_B: jax.Array, sampling: Sampling) -> jax.Array:
    """Draws one token per row, int32 [B], from logits that include the repetition penalty."""
    if sampling.temperature == 0:
        return jnp.argmax(logits_BV, axis=-1).astype(jnp.int32)
    logits_BV = logits_BV / sampling.temperature
    if sampling.top_k:
        kth = jax.lax.top_k(logits_BV, min(sampling.top_k, logits_BV.shape[-1]))[0][:, -1:]
        logits_BV = jnp.where(logits_BV < kth, -jnp.inf, logits_BV)
    if sampling.top_p < 1:
        order = jnp.argsort(-logits_BV, axis=-1)
        sorted_probs = jax.nn.softmax(jnp.take_along_axis(logits_BV, order, axis=-1), axis=-1)
        before = jnp.cumsum(sorted_probs, axis=-1) - sorted_probs  # [.6, .3, .1] -> [0, .6, .9]
        kept = jnp.take_along_axis(before < sampling.top_p, jnp.argsort(order, axis=-1), axis=-1)
        logits_BV = jnp.where(kept, logits_BV, -jnp.inf)
    return jax.vmap(jax.random.categorical)(keys_B, logits_BV).astype(jnp.int32)
