"""How a stream of requests goes: one line on stderr, on a terminal written over and over."""

import asyncio
import collections
import shutil
import sys
import time
from collections.abc import Callable

EVERY, EVERY_IN_A_LOG = 1.0, 30.0
"""Seconds between two lines on a terminal, and where each of them stays."""

RECENT = 60.0
"""Seconds that the rate is taken over: long enough to be calm, short enough to see a change."""

CLEAR = "\r\x1b[K"
"""ANSI: back to the start of the line, and erase it."""


def to_stderr(text: str) -> None:
    """Prints a line that stays; on a terminal in place of the progress line, which comes again."""
    print((CLEAR if sys.stderr.isatty() else "") + text, file=sys.stderr, flush=True)


def duration(seconds: float) -> str:
    """
    >>> duration(42), duration(130), duration(9000)
    ('42 s', '2 min 10 s', '2 h 30 min')
    """
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def line(done: int, failed: int, total: int | None, spent: str, rate: float) -> str:
    """One line for people; `rate` in requests a second, 0 where it is not known.

    >>> line(1200, 3, 52002, "$12.3000, 4,100,000 tokens", 31.5)
    '1,200/52,002 done, 3 failed | $12.3000, 4,100,000 tokens | 31.5 a second | 26 min 53 s left'
    >>> line(7, 0, None, "price not known, 70 tokens", 0.25)
    '7 done, 0 failed | price not known, 70 tokens | 15.0 a minute'
    >>> line(0, 0, 40, "$0.0000, 0 tokens", 0.0)
    '0/40 done, 0 failed | $0.0000, 0 tokens'
    """
    of_total = "" if total is None else f"/{total:,}"
    parts = [f"{done:,}{of_total} done, {failed:,} failed", spent]
    if rate:
        parts.append(f"{rate:.1f} a second" if rate >= 1 else f"{60 * rate:.1f} a minute")
        if total is not None:
            parts.append(f"{duration((total - done - failed) / rate)} left")
    return " | ".join(parts)


class RecentRate:
    """Events a second over the last `RECENT` seconds.

    >>> rate = RecentRate(at=0.0)
    >>> [rate.at(second, 10 * second) for second in (1.0, 2.0, 60.0)]
    [10.0, 10.0, 10.0]
    >>> rate.at(120.0, 600)  # nothing more in the last minute
    0.0
    """

    def __init__(self, at: float):
        self._seen = collections.deque([(at, 0)])

    def at(self, now: float, count: int) -> float:
        """The rate, told that there were `count` events until `now`."""
        self._seen.append((now, count))
        while len(self._seen) > 2 and self._seen[1][0] <= now - RECENT:
            self._seen.popleft()
        then, before = self._seen[0]
        return (count - before) / (now - then)


class Progress:
    """Shows how a stream goes until it is closed; count its outcomes in `done` and `failed`.

    Args:
      total: requests that the stream will have, or how many it looks like now; None: unknown.
      stored: answers that came from the store so far; they tell nothing of the rate.
      spent: money and tokens so far, in words.
      report: takes lines that stay.
    """

    def __init__(
        self,
        total: int | Callable[[], int] | None,
        stored: Callable[[], int],
        spent: Callable[[], str],
        report: Callable[[str], None],
    ):
        self.done = self.failed = 0
        self._total, self._stored, self._spent, self._report = total, stored, spent, report
        self._rewrites = report is to_stderr and sys.stderr.isatty()
        self._loop = asyncio.get_running_loop()
        self._told = time.monotonic()
        self._rate, self._stored_before = RecentRate(self._told), stored()
        self._timer = self._loop.call_later(EVERY, self._tick)

    def close(self) -> None:
        self._timer.cancel()
        if self._rewrites:
            print(CLEAR, end="", file=sys.stderr, flush=True)

    def _tick(self) -> None:
        self._timer = self._loop.call_later(EVERY, self._tick)
        now, stored = time.monotonic(), self._stored() - self._stored_before
        rate = self._rate.at(now, max(0, self.done + self.failed - stored))
        if not self._rewrites and now - self._told < EVERY_IN_A_LOG:
            return
        self._told = now
        total = self._total() if callable(self._total) else self._total
        text = line(self.done, self.failed, total, self._spent(), rate)
        if self._rewrites:
            fits = shutil.get_terminal_size().columns - 1  # a line that wraps cannot be erased
            print(CLEAR + text[:fits], end="", file=sys.stderr, flush=True)
        else:
            self._report(text)
