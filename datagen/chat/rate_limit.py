"""How many requests are in flight at once: as many as the provider accepts, found by probing."""

import asyncio
import collections
import datetime
import email.utils
import math
import re
import time
from collections.abc import Mapping

INITIAL_LIMIT = 32
"""Concurrent requests at the start; doubles with every round of answers until the first 429."""

DECREASE = 0.85
"""Factor of the limit at a 429: a stray one costs little, a real limit is reached in rounds."""

MAX_PAUSE = 600.0
"""Seconds; a longer wait requested by the server is cut to this."""

REMAINING_HEADERS = (
    ("x-ratelimit-remaining-requests", "x-ratelimit-reset-requests"),
    ("x-ratelimit-remaining-tokens", "x-ratelimit-reset-tokens"),
    ("anthropic-ratelimit-requests-remaining", "anthropic-ratelimit-requests-reset"),
    ("anthropic-ratelimit-tokens-remaining", "anthropic-ratelimit-tokens-reset"),
    ("anthropic-ratelimit-input-tokens-remaining", "anthropic-ratelimit-input-tokens-reset"),
    ("anthropic-ratelimit-output-tokens-remaining", "anthropic-ratelimit-output-tokens-reset"),
)
"""Both providers' headers: the remaining quota, and when it is reset."""


class RateLimit:
    """A gate: `await enter()` before a request, then exactly one of `leave` and `throttled`.

    The limit grows by one with each success until the first 429, then by one per round, and is
    cut at a 429, once for all requests in flight when it came (AIMD, Chiu and Jain 1989).
    """

    def __init__(self, max_concurrency: int):
        self._max = max_concurrency
        self._limit = float(min(INITIAL_LIMIT, max_concurrency))
        self._in_flight = 0
        self._was_throttled = False
        self._cut_at = -float("inf")
        self._paused_until = 0.0
        self._waiting: collections.deque[asyncio.Future] = collections.deque()
        self._timer: asyncio.TimerHandle | None = None

    async def enter(self) -> float:
        """Waits for a free slot; returns the time of sending, which `throttled` takes."""
        if self._waiting or not self._free():
            slot = asyncio.get_running_loop().create_future()
            self._waiting.append(slot)
            self._admit()
            try:
                await slot
            except asyncio.CancelledError:
                if slot.done() and not slot.cancelled():
                    self._in_flight -= 1  # admitted in the same moment
                self._admit()
                raise
        else:
            self._in_flight += 1
        return time.monotonic()

    def leave(self, *, success: bool, headers: Mapping[str, str] | None = None) -> float:
        """Ends a request that was not throttled; returns the seconds until another may be sent."""
        self._in_flight -= 1
        if success:
            growth = 1 / self._limit if self._was_throttled else 1
            self._limit = min(self._max, self._limit + growth)
        headers = headers or {}
        for remaining, reset in REMAINING_HEADERS:
            if headers.get(remaining) == "0":
                self._pause(seconds_until(headers.get(reset, "")))
        self._admit()
        return max(0.0, self._paused_until - time.monotonic())

    def throttled(self, sent: float, retry_after: float | None) -> None:
        """Ends a request that the provider answered with "too many requests"."""
        self._in_flight -= 1
        self._was_throttled = True
        if sent > self._cut_at:
            self._cut_at = time.monotonic()
            self._limit = max(1.0, self._limit * DECREASE)
        self._pause(retry_after)
        self._admit()

    def open(self) -> None:
        """Admits everyone at once."""
        self._limit, self._paused_until = float(2**31), 0.0
        self._admit()

    def _free(self) -> bool:
        return self._in_flight < int(self._limit) and time.monotonic() >= self._paused_until

    def _pause(self, seconds: float | None) -> None:
        until = time.monotonic() + min(seconds or 0.0, MAX_PAUSE)
        self._paused_until = max(self._paused_until, until)

    def _admit(self) -> None:
        while self._waiting and self._free():
            slot = self._waiting.popleft()
            if not slot.done():
                self._in_flight += 1
                slot.set_result(None)
        pause = self._paused_until - time.monotonic()
        if self._waiting and pause > 0 and self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(pause, self._resume)

    def _resume(self) -> None:
        self._timer = None
        self._admit()


def seconds_until(text: str) -> float | None:
    """Seconds from a header: a number, "1m30.5s", "120ms", an HTTP date or an RFC 3339 time.

    >>> [seconds_until(x) for x in ("2", "1m30.5s", "120ms", "6h0m1s", "", "soon", "inf")]
    [2.0, 90.5, 0.12, 21601.0, None, None, None]
    """
    try:
        return max(0.0, float(text)) if math.isfinite(float(text)) else None
    except ValueError:
        pass
    if text and re.fullmatch(r"(?:[\d.]+(?:ms|h|m|s))+", text):
        units = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}
        return sum(float(n) * units[u] for n, u in re.findall(r"([\d.]+)(ms|h|m|s)", text))
    for parse in (datetime.datetime.fromisoformat, email.utils.parsedate_to_datetime):
        try:
            moment = parse(text)
        except ValueError:
            continue
        return max(0.0, moment.timestamp() - time.time())
    return None
