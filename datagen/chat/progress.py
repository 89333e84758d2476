"""What a run will take and how far it has come: the estimate before it, the status line in it."""

import asyncio
import collections
import dataclasses
import time
from collections.abc import Callable, Sequence

from common import messages
from datagen.chat.config import ChatConfig
from datagen.chat.prices import Price

BYTES_PER_TOKEN = 4
"""English text, in estimates (OpenAI's rule of thumb). Budgets count one token per byte."""

TOKENS_PER_SECOND = 50
"""Generation speed assumed until an answer has been timed: typical of hosted models."""

FIRST_TOKEN_SECONDS = 1.0
"""Time to first token assumed likewise; it dominates verdicts of one word."""

BATCH_SECONDS = 24 * 3600.0
"""The longest a batch takes, at both providers."""

RATE_UPDATES = 60
"""Window of the displayed rate, in seconds: long enough to be steady, short enough to change."""


@dataclasses.dataclass(frozen=True)
class Estimate:
    """What a run will take, before anything is sent."""

    requests: int  # not stored yet
    stored: int
    input_tokens: int
    output_tokens: int
    usd: float | None  # None: the price is unknown
    seconds: float  # upper bound for batches
    waiting: int = 0  # in batches at the provider, paid for
    batch: bool = False

    def __str__(self) -> str:
        price = "price unknown" if self.usd is None else f"${self.usd:,.2f}"
        waiting = f", {self.waiting:,} in batches at the provider" if self.waiting else ""
        bound = "in batches, at most " if self.batch else ""
        return (
            f"{self.requests:,} requests to send{waiting}, {self.stored:,} answers stored; about "
            f"{self.input_tokens:,} input and {self.output_tokens:,} output tokens, {price}, "
            f"{bound}{messages.duration(self.seconds)}"
        )


def estimate(
    config: ChatConfig,
    sizes: Sequence[int],
    stored: int,
    waiting: int,
    price: Price | None,
    output_tokens: float,
    seconds: float | None,
) -> Estimate:
    """What requests take.

    Args:
      sizes: bytes of each request to send.
      output_tokens: of a typical answer; 0: `max_tokens` of the config.
      seconds: of a typical request; None: unknown.
    """
    output = output_tokens or config.max_tokens
    seconds = seconds or FIRST_TOKEN_SECONDS + output / TOKENS_PER_SECOND
    tokens = sum(sizes) // BYTES_PER_TOKEN, round(len(sizes) * output)
    return Estimate(
        requests=len(sizes),
        stored=stored,
        input_tokens=tokens[0],
        output_tokens=tokens[1],
        usd=price.usd(*tokens) if price else None,
        seconds=BATCH_SECONDS
        if config.batch and sizes
        else -(-len(sizes) // config.concurrency) * seconds,
        waiting=waiting,
        batch=config.batch,
    )


def status_text(done: int, failed: int, total: int | None, spent: str, rate: float) -> str:
    """The status line; `rate` in requests per second, 0 while it is unknown.

    >>> status_text(1200, 3, 52002, "$12.3000, 4,100,000 tokens", 31.5)
    '1,200/52,002 done, 3 failed | $12.3000, 4,100,000 tokens | 31.5/s | 26m53s left'
    >>> status_text(7, 0, None, "price unknown, 70 tokens", 0.25)
    '7 done, 0 failed | price unknown, 70 tokens | 15.0/min'
    >>> status_text(0, 0, 40, "$0.0000, 0 tokens", 0.0)
    '0/40 done, 0 failed | $0.0000, 0 tokens'
    """
    of_total = "" if total is None else f"/{total:,}"
    parts = [f"{done:,}{of_total} done, {failed:,} failed", spent]
    if rate:
        parts.append(f"{rate:.1f}/s" if rate >= 1 else f"{60 * rate:.1f}/min")
        if total is not None:
            parts.append(f"{messages.duration((total - done - failed) / rate)} left")
    return " | ".join(parts)


class StreamProgress:
    """Shows the progress of a stream until it is closed; count outcomes in `done` and `failed`.

    Args:
      total: requests in the stream, or the current estimate of it; None: unknown.
      stored: answers read from the store so far; they do not count towards the rate.
      spent: money and tokens so far, as text.
    """

    def __init__(
        self,
        total: int | Callable[[], int] | None,
        stored: Callable[[], int],
        spent: Callable[[], str],
    ):
        self.done = self.failed = 0
        self._total, self._stored, self._spent = total, stored, spent
        self._stored_before = stored()
        # (time, outcomes that were not stored before), one per second
        self._samples = collections.deque([(time.monotonic(), 0)], maxlen=RATE_UPDATES + 1)
        self._line = messages.StatusLine()
        self._schedule()

    def close(self) -> None:
        """Erases the line."""
        self._timer.cancel()
        self._line.close()

    def _schedule(self) -> None:
        loop = asyncio.get_running_loop()
        self._timer = loop.call_later(messages.TERMINAL_INTERVAL, self._update)

    def _update(self) -> None:
        finished, stored = self.done + self.failed, self._stored() - self._stored_before
        self._samples.append((time.monotonic(), max(0, finished - stored)))
        (start, count_at_start), (now, count) = self._samples[0], self._samples[-1]
        rate = (count - count_at_start) / (now - start)
        if self._line.due():
            total = self._total() if callable(self._total) else self._total
            self._line.show(status_text(self.done, self.failed, total, self._spent(), rate))
        self._schedule()
