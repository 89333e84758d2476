"""What an engine is asked and what it reports: requests, their progress, answers."""

import dataclasses
from collections.abc import Iterable, Sequence

from alpacare_jax.inference.sampling import Sampling
from common.sections import UsageError

MAX_LOGPROBS = 20
"""Most alternatives to a token whose log-probabilities a request may ask for."""


NOT_FINITE = "not_finite"
"""The finish reason of an answer whose logits are NaN or infinite."""

NOT_FINITE_MESSAGE = (
    "the model's logits are NaN or infinite: its weights are damaged, or overflow in this dtype; "
    "convert them again, or compute in float32"
)


@dataclasses.dataclass(frozen=True)
class Request:
    """A prompt to answer.

    Log-probabilities are the model's own, before penalties, bias and temperature.
    """

    index: int  # its name; no two that are unfinished share one
    prompt: Sequence[int]
    max_new_tokens: int  # 0 only with prompt_logprobs
    sampling: Sampling | None = None  # None: the engine's
    logprobs: int | None = None  # of each token, and of so many of the most likely; None: none
    prompt_logprobs: bool = False  # of the prompt's tokens, too
    draw: int | None = None  # its random numbers derive from sampling.seed and this; None: index

    def __post_init__(self):
        if not len(self.prompt) or self.max_new_tokens < (0 if self.prompt_logprobs else 1):
            raise UsageError(
                f"request {self.index} requires a prompt of at least one token and max_new_tokens "
                "of at least 1"
            )
        if not 0 <= (self.logprobs or 0) <= MAX_LOGPROBS:
            raise UsageError(f"logprobs is {self.logprobs}; it must be from 0 to {MAX_LOGPROBS}")

    def require_possible(self, max_length: int, vocabulary: int, adjusted: Iterable[int]) -> None:
        """Raises UsageError if there is no room for an answer, or an id is not the model's.

        Args:
          adjusted: ids whose logits the request changes.
        """
        if len(self.prompt) + (self.max_new_tokens > 0) > max_length:
            raise UsageError(
                f"prompt {self.index} is {len(self.prompt):,} tokens, which leaves no room within "
                f"max_length {max_length:,}; raise it or shorten the prompt"
            )
        named = [*self.prompt, *adjusted]
        if not 0 <= min(named) <= max(named) < vocabulary:
            raise UsageError(
                f"request {self.index} names a token id outside 0 to {vocabulary - 1:,}"
            )


@dataclasses.dataclass(frozen=True)
class TokenLogprobs:
    """The log-probability of a token, and those of the most likely tokens, falling."""

    logprob: float
    top: tuple[tuple[int, float], ...]  # (token id, log-probability)


@dataclasses.dataclass(frozen=True)
class Progress:
    """What a step added to the answer of one request; the last has a `finish_reason`.

    A step may add nothing but the end.
    """

    index: int
    ids: list[int]
    logprobs: list[TokenLogprobs]  # one for each id and for EOS, where asked for
    prompt_logprobs: list[TokenLogprobs | None] | None  # once; the first token has None
    finish_reason: str | None  # `stop` (EOS), `length` or NOT_FINITE
    eos_id: int | None = None  # the token that ended it, which is not among the ids

    def require_finite(self) -> None:
        """Raises ValueError if the answer ended because its logits mean nothing."""
        if self.finish_reason == NOT_FINITE:
            raise ValueError(f"answer {self.index}: {NOT_FINITE_MESSAGE}")


@dataclasses.dataclass(frozen=True)
class Answer:
    """Generated ids without EOS, and why generation ended: `stop` (EOS) or `length`."""

    index: int
    ids: list[int]
    finish_reason: str
