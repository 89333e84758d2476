"""How many requests are out at once: as many as the provider takes, found out as we go."""

import asyncio
import collections
import datetime
import email.utils
import re
import time
from collections.abc import Mapping

FIRST = 32
"""Requests out at the start; doubles with every round of answers until the first refusal."""

CUT = 0.85
"""What a refusal leaves of the limit: a stray one costs little, a real limit is met in rounds."""

REMAINING = (
    ("x-ratelimit-remaining-requests", "x-ratelimit-reset-requests"),
    ("x-ratelimit-remaining-tokens", "x-ratelimit-reset-tokens"),
    ("anthropic-ratelimit-requests-remaining", "anthropic-ratelimit-requests-reset"),
    ("anthropic-ratelimit-tokens-remaining", "anthropic-ratelimit-tokens-reset"),
    ("anthropic-ratelimit-input-tokens-remaining", "anthropic-ratelimit-input-tokens-reset"),
    ("anthropic-ratelimit-output-tokens-remaining", "anthropic-ratelimit-output-tokens-reset"),
)
"""Headers of both providers: what is left, and when it is full again."""

MAX_PAUSE = 600.0
"""Seconds; a server that asks for more is taken to mean this."""


class RateLimit:
    """A gate: `await enter()` before a request, then exactly one of `leave` and `refused`.

    The limit grows by one with each success until the first refusal, then by one a round, and is
    cut at a refusal, once for all requests that were out when it came (AIMD, Chiu and Jain 1989).
    """

    def __init__(self, most: int):
        self.most = most
        self.limit = float(min(FIRST, most))
        self.out = 0
        self.refusals = 0
        self._cut_at = -float("inf")
        self._paused_until = 0.0
        self._waiting: collections.deque[asyncio.Future] = collections.deque()
        self._timer: asyncio.TimerHandle | None = None

    async def enter(self) -> float:
        """Waits for a free place; returns the time of sending, which `refused` wants back."""
        if self._waiting or not self._free():
            place = asyncio.get_running_loop().create_future()
            self._waiting.append(place)
            self._admit()
            try:
                await place
            except asyncio.CancelledError:
                if place.done() and not place.cancelled():
                    self.out -= 1  # admitted in the same moment
                self._admit()
                raise
        else:
            self.out += 1
        return time.monotonic()

    def leave(self, *, success: bool, headers: Mapping[str, str] | None = None) -> None:
        """Ends a request that was not refused for its rate."""
        self.out -= 1
        if success:
            grown = self.limit + (1 / self.limit if self.refusals else 1)
            self.limit = min(self.most, grown)
        for left, reset in REMAINING if headers else ():
            if headers.get(left) == "0":
                self._pause(seconds_until(headers.get(reset, "")))
        self._admit()

    def refused(self, sent: float, retry_after: float | None) -> None:
        """Ends a request that the provider answered with "too many"."""
        self.out -= 1
        self.refusals += 1
        if sent > self._cut_at:
            self._cut_at = time.monotonic()
            self.limit = max(1.0, self.limit * CUT)
        self._pause(retry_after)
        self._admit()

    def _free(self) -> bool:
        return self.out < int(self.limit) and time.monotonic() >= self._paused_until

    def _pause(self, seconds: float | None) -> None:
        until = time.monotonic() + min(seconds or 0.0, MAX_PAUSE)
        self._paused_until = max(self._paused_until, until)

    def _admit(self) -> None:
        while self._waiting and self._free():
            place = self._waiting.popleft()
            if not place.done():
                self.out += 1
                place.set_result(None)
        left = self._paused_until - time.monotonic()
        if self._waiting and left > 0 and (self._timer is None or self._timer.cancelled()):
            self._timer = asyncio.get_running_loop().call_later(left, self._resume)

    def _resume(self) -> None:
        self._timer = None
        self._admit()


def seconds_until(text: str) -> float | None:
    """Seconds from a header: a number, "1m30.5s", "120ms", an HTTP date or an RFC 3339 time.

    >>> [seconds_until(x) for x in ("2", "1m30.5s", "120ms", "6h0m1s", "", "soon")]
    [2.0, 90.5, 0.12, 21601.0, None, None]
    """
    try:
        return max(0.0, float(text))
    except ValueError:
        pass
    if text and re.fullmatch(r"(?:[\d.]+(?:ms|h|m|s))+", text):
        units = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}
        return sum(float(n) * units[u] for n, u in re.findall(r"([\d.]+)(ms|h|m|s)", text))
    for parse in (datetime.datetime.fromisoformat, email.utils.parsedate_to_datetime):
        try:
            at = parse(text)
        except ValueError:
            continue
        return max(0.0, at.timestamp() - time.time())
    return None
