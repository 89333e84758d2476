"""Sends a request until it is answered, rejected or given up, and accounts for each attempt.

What a request can cost is reserved in the budget and in the store before it is sent. Then

    a reply of status 200   is charged as it reports, or at the most; whether it is an answer or not
    an error of the server  costs nothing, unless it is a gateway's
    anything else           (no reply, a kill) stays counted at the most

Some errors are known to concern the run, and end it (see `meanings`). Of others only their number
shows it: the first requests all fail in one way, or one after the other finds no server. What is
on its way when that is suspected may prove it wrong, so it is waited for, and nothing else is sent.
"""

import asyncio
import collections
import contextlib
import json
import random
import time
from collections.abc import Awaitable, Callable
from typing import Any
from urllib.request import getproxies_environment

from common import messages
from datagen.chat import prices, replies
from datagen.chat.config import ChatConfig
from datagen.chat.connection import Connection
from datagen.chat.errors import (
    AttemptError,
    FatalProviderError,
    RejectedRequestError,
    RetryableError,
    RunStoppedError,
    status_error,
)
from datagen.chat.prices import Budget, Price
from datagen.chat.rate_limit import RateLimit
from datagen.chat.replies import ChatAnswer
from datagen.chat.store import AnswerStore, Charge

MAX_INITIAL_FAILURES = {"rejected": 10, "odd": 3, "given up": 3}
"""The run ends if the first requests fail in one way: so many, and all sent before the last.

A rejection costs nothing, and may be for a reason of the request that no row of `meanings` knows.
"""

MIN_REJECTED = 3
"""So many are enough where there are no other requests to send."""

MAX_TURNED_AWAY = 3
"""Requests in a row that are given up for want of a server or of its rate limit: the run ends."""

MAX_WITHOUT_TEXT = 3
"""Replies without text to one request that are paid for before it is given up."""

INITIAL_BACKOFF, MAX_BACKOFF = 0.5, 60.0
"""Seconds before the second attempt, doubled each time, and the most; half of it is random."""

ANNOUNCED_WAIT, ANNOUNCED_EVERY = 5.0, 30.0
"""Seconds of a wait that is reported, and between two reports."""


class Attempts:
    """The requests of one client that are not sent in batches.

    Args:
      stop: ends the run for a reason.
      check_running: raises RunStoppedError once the run has ended.
    """

    def __init__(
        self,
        config: ChatConfig,
        store: AnswerStore,
        budget: Budget,
        price: Price | None,
        counts: collections.Counter[str],
        report: Callable[[str], None],
        stop: Callable[[str], None],
        check_running: Callable[[], None],
    ):
        self.config, self.store, self.budget, self.counts = config, store, budget, counts
        self.connection: Connection | None = None
        self._price, self._report = price, report
        self._stop, self._check_running = stop, check_running
        self._limit = RateLimit(config.concurrency)
        self._undecided: set[str] = set()  # keys of the requests on their way
        self._doubts: dict[str, set[str]] = {}  # why all may fail -> keys that may refute it
        self._no_doubt = asyncio.Event()  # a doubt holds new requests back
        self._no_doubt.set()
        self._ended = asyncio.Event()
        self._failed: collections.Counter[str] = collections.Counter()
        self._turned_away = 0  # in a row
        self._rejection = ""  # reason of the last one
        self._last_report = -ANNOUNCED_EVERY
        self._connected = False  # whether there was any reply

    def end(self) -> None:
        """Wakes whoever waits: nothing more is sent."""
        self._ended.set()
        self._no_doubt.set()
        self._limit.open()

    async def answer(self, key: str, attempt: Callable[[], Awaitable[ChatAnswer]]) -> ChatAnswer:
        """The answer that `attempt`, called up to `attempts` times, returns.

        Raises:
          RejectedRequestError: the server rejected the request, or all attempts failed.
          FatalProviderError: no request will be answered.
          BudgetReachedError: the request does not fit.
          RunStoppedError: the run has ended.
        """
        await self._no_doubt.wait()
        self._check_running()
        self._undecided.add(key)
        try:
            try:
                return await self._answer(key, attempt)
            finally:
                self._decide(key)
        except RejectedRequestError:
            self._check_running()  # this may have been the last that could be answered
            raise

    async def _answer(self, key: str, attempt: Callable[[], Awaitable[ChatAnswer]]) -> ChatAnswer:
        failure, without_text, number = RetryableError(""), 0, 0
        for number in range(self.config.attempts):
            if number and not self.config.batch:  # waiting for the next batch is enough
                await self._back_off(number, failure)
            try:
                answer = await attempt()
            except RetryableError as error:
                failure = error
                self.counts["retried"] += 1
                without_text += error.unusable == "no_text"
                if without_text == MAX_WITHOUT_TEXT:
                    break
                if error.unsent and number and not self._connected:
                    raise self._no_server(f"cannot be reached: {error}") from None
            except RejectedRequestError as error:
                self.counts["rejected by the server"] += 1
                if not error.own:
                    self._rejection = str(error)
                    self._doubt("rejected", f"request so far is rejected: {error}")
                raise
            else:
                if end := _odd_end(answer):
                    self._doubt("odd", f"answer so far {end}")
                return answer
        reason = f"no answer in {number + 1} attempts; the last: {failure}"
        blocked = failure.unusable == "content_filter"
        if not self.config.batch and not blocked:
            self._give_up(failure, reason)
        raise RejectedRequestError(reason, own=blocked)

    def _give_up(self, failure: RetryableError, reason: str) -> None:
        self.counts["given up"] += 1
        self._doubt("given up", f"request so far is given up: {reason}")
        turned_away = failure.throttled or failure.unsent
        self._turned_away = self._turned_away + 1 if turned_away else 0
        if self._turned_away == MAX_TURNED_AWAY:
            raise self._no_server(f"answers no more: {reason}")

    def _no_server(self, reason: str) -> FatalProviderError:
        address = self.config.base_url or self.config.provider
        proxy = ", HTTP_PROXY and its kin" if getproxies_environment() else ""
        return FatalProviderError(f"{address} {reason}; check the server, base_url{proxy}")

    def _doubt(self, kind: str, reason: str) -> None:
        """Ends the run if the first requests all failed so, and no other proves it wrong."""
        self._failed[kind] += 1
        first = self._failed[kind] >= MAX_INITIAL_FAILURES[kind] and not self._any_good()
        if first and not self._doubts:
            self._doubts[f"every {reason}"] = set(self._undecided)
            self._no_doubt.clear()

    def _decide(self, key: str) -> None:
        self._undecided.discard(key)
        good = self._any_good()
        for reason, undecided in self._doubts.items():
            undecided.discard(key)
            if not undecided and not good:
                self._stop(reason)
            if not undecided or good:
                self._doubts = {}
                self._no_doubt.set()

    def without_answers(self) -> str:
        """Why all requests of a run have failed, now that the last has ended; "" if not."""
        hopeless = self._failed["rejected"] >= MIN_REJECTED and not self._any_good()
        return f"every request so far is rejected: {self._rejection}" if hopeless else ""

    def _any_good(self) -> bool:
        return self.counts["answered"] + self.counts["stored"] > self._failed["odd"]

    async def send(self, key: str, content: dict[str, Any]) -> ChatAnswer:
        """The answer of one attempt, stored with its charge. Raises: as `answer`."""
        most = prices.most(key, self.config.model, self._price, content)
        await self.budget.reserve(most)
        try:
            return await self._send(most, content)
        finally:
            await self.budget.release(most.usd or 0.0, most.tokens)

    async def _send(self, most: Charge, content: dict[str, Any]) -> ChatAnswer:
        assert self.connection, "use the client as an async context manager"
        request = self.connection.prepare(content)  # before waiting for a slot
        sent = await self._limit.enter()
        number = 0
        try:
            self._check_running()
            number = await self.store.reserve(most)
            self._check_running()
            sent = time.monotonic()
            reply, headers = await self.connection.send(request)
        except BaseException as error:
            if isinstance(error, RetryableError) and error.throttled:
                self._limit.throttled(sent, error.retry_after)
            else:
                self._limit.leave(success=False)
            unsent = isinstance(error, RetryableError) and error.unsent
            self._connected |= isinstance(error, AttemptError) and not unsent
            if number:
                await self._account(number, most, error)
            raise
        seconds = time.monotonic() - sent
        self._connected = True
        if pause := self._limit.leave(success=True, headers=headers):
            self._announce(pause, "the rate limit is reached")
        return await self._store(number, most, content, reply, seconds)

    async def _account(self, number: int, most: Charge, error: BaseException) -> None:
        """Keeps the reservation of a failed attempt where its outcome is unknown."""
        costs_nothing = not error.billed if isinstance(error, AttemptError) else False
        if costs_nothing or isinstance(error, RunStoppedError):
            await self.store.release(number)
        else:
            self.budget.charge(most)
            self.counts["without a reply, counted at the most"] += 1

    async def _store(
        self, number: int, most: Charge, content: dict[str, Any], reply: Any, seconds: float
    ) -> ChatAnswer:
        answer = replies.read_reply(self.config.provider, content, reply)
        charge = prices.charge(most.key, self.config.model, self._price, answer)
        self.budget.charge(charge)
        await self.store.put(number, charge, content, answer, seconds)
        if charge.is_answer:
            self.counts["answered"] += 1
            self._turned_away = 0
        self.counts["no usage reported"] += not answer.usage_reported
        over = charge.output_tokens > most.output_tokens or charge.input_tokens > most.input_tokens
        if over and self.budget.is_limited:
            self._stop(
                f"a reply took {charge.input_tokens:,} input and {charge.output_tokens:,} output "
                f"tokens, though its request allows {most.input_tokens:,} and "
                f"{most.output_tokens:,}: the budget would not hold; raise max_tokens to what the "
                "server really uses"
            )
        if charge.is_answer:
            return answer
        if charge.kind == "no_likelihoods":
            raise FatalProviderError(
                f"{self.config.base_url} returns {replies.UNUSABLE[charge.kind]}, which `echo` and "
                f"`logprobs` ask for (alpacare serve and vLLM do); {replies.describe(reply)}"
            )
        if failure := replies.failure(reply):
            raise status_error(self.config, 200, json.dumps({"error": failure}))
        detail = f": {replies.describe(reply)}" if charge.kind == "malformed" else ""
        raise RetryableError(replies.UNUSABLE[charge.kind] + detail, unusable=charge.kind)

    async def _back_off(self, number: int, failure: RetryableError) -> None:
        seconds = min(MAX_BACKOFF, INITIAL_BACKOFF * 2 ** (number - 1))
        seconds = max(failure.retry_after or 0.0, seconds * random.uniform(0.5, 1.0))
        self._announce(seconds, str(failure))
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._ended.wait()
        self._check_running()

    def _announce(self, seconds: float, reason: str) -> None:
        now = time.monotonic()
        if seconds >= ANNOUNCED_WAIT and now - self._last_report >= ANNOUNCED_EVERY:
            self._last_report = now
            self._report(f"waiting {messages.duration(seconds)}: {reason}")


def _odd_end(answer: ChatAnswer) -> str:
    """What is wrong with how an answer ended, if all end so; "" for nothing."""
    if answer.finish_reason not in replies.KNOWN_ENDS:
        return (
            f"ends with {answer.finish_reason!r}, a word of the server that is not known here; if "
            "it means a complete answer, add it to datagen/chat/replies.py"
        )
    if answer.finish_reason == "length" and not answer.text:
        return "is cut before its text begins; raise max_tokens, or ask for less reasoning"
    return ""
