"""Asks models: every answer is on disk before it is used, and is never paid for twice.

    with AnswerStore(workdir / "answers.sqlite") as store:
        async with Client(config, store) as client:
            async for tag, outcome in client.stream((task.id, request(task)) for task in tasks):
                ...  # outcome is a ChatAnswer or a Failure

Works with OpenAI, with any server that has its protocol (`base_url`) and with Anthropic.
"""

import asyncio
import collections
import dataclasses
import random
import signal
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from typing import Any, Self, TypeVar

from common import exits, messages
from datagen.chat import prices, progress, protocols, replies
from datagen.chat.batch.batches import Batches
from datagen.chat.batch.log import BatchLog
from datagen.chat.config import ChatConfig, ChatRequest
from datagen.chat.connection import Connection
from datagen.chat.errors import (
    BudgetReachedError,
    FatalProviderError,
    RejectedRequestError,
    RetryableError,
    RunStoppedError,
)
from datagen.chat.prices import Budget, Price
from datagen.chat.progress import Estimate
from datagen.chat.rate_limit import RateLimit
from datagen.chat.replies import ChatAnswer
from datagen.chat.store import AnswerStore

Tag = TypeVar("Tag")
Result = TypeVar("Result")

MAX_INITIAL_FAILURES = 3
"""The run ends if this many requests are rejected, or get no reply, before any is answered."""

MAX_WAITING = 100_000
"""Requests of a run that may wait in batches; each takes some 8 kB of memory plus its text."""

INITIAL_BACKOFF, MAX_BACKOFF = 0.5, 60.0
"""Seconds before the second attempt, doubled each time, and the most; half of it is random."""


@dataclasses.dataclass(frozen=True)
class Failure:
    """Why a request has no answer. It is not stored: the next run tries again."""

    reason: str


class Client:
    """Asks one model. Use it as an async context manager, one per store and run.

    Raises:
      ValueError: a budget in USD is set but the price is unknown; no API key.
    """

    def __init__(
        self, config: ChatConfig, store: AnswerStore, report: Callable[[str], None] = messages.log
    ):
        self.config = config
        self.store = store
        self.report = report
        if config.price_input is None or config.price_output is None:
            self.price = prices.look_up(config.model)
        else:
            self.price = Price(config.price_input, config.price_output)
        if config.batch and self.price:
            self.price = self.price.in_batch()
        if config.budget_usd and not self.price:
            raise ValueError(
                f"budget_usd is set, but {config.model!r} has no price in datagen/prices.json; "
                "set price_input and price_output"
            )
        self.budget = Budget(config.budget_usd, config.budget_tokens, store.total_spent())
        self.counts: collections.Counter[str] = collections.Counter()  # outcomes, for the summary
        self.stop_reason = ""  # why nothing more is sent
        self._limit = RateLimit(config.concurrency)
        self._in_flight: dict[str, asyncio.Task[ChatAnswer]] = {}  # by key
        self._connection: Connection | None = None
        self._batches: Batches | None = None

    async def __aenter__(self) -> Self:
        config, store = self.config, self.store
        if config.offline:
            return self
        connection = self._connection = Connection(config)
        # Without batch=True too: requests in a batch of an earlier run must not be sent again.
        if config.batch or BatchLog(store).open():
            self._batches = Batches(
                config, store, connection, self.budget, self.price, self.counts, self.report
            )
            try:
                await self._batches.start()
            except BaseException:
                await self.__aexit__()
                raise
        return self

    async def __aexit__(self, *_: object) -> None:
        for task in self._in_flight.values():
            task.cancel()
        await asyncio.gather(*self._in_flight.values(), return_exceptions=True)
        try:
            if self._batches:
                await self._batches.close()
        finally:
            if self._connection:
                await self._connection.close()

    @property
    def window(self) -> int:
        """How many requests `stream` keeps in progress, so that no slot is ever idle."""
        return MAX_WAITING if self.config.batch else 2 * self.config.concurrency

    def stop(self, reason: str) -> None:
        """Sends nothing more; replies in flight are still stored, but batches are not awaited."""
        if self.stop_reason:
            return
        open_batches = self._batches.describe_open() if self._batches else ""
        self.stop_reason = f"{reason}; {open_batches}" if open_batches else reason
        if self._batches:
            self._batches.stop(self.stop_reason)

    async def ask(self, request: ChatRequest) -> ChatAnswer:
        """The answer from the store, or from the model once it is stored.

        Raises:
          RejectedRequestError: the model rejected this request, or all its attempts failed.
          RunStoppedError: the budget is reached, `stop` was called, or no request can be answered.
        """
        content = protocols.body(self.config, request)
        key = protocols.key(self.config, request, content)
        if key in self._in_flight:  # the same request twice at once
            return await asyncio.shield(self._in_flight[key])
        if stored := self.store.get(key):
            self.counts["stored"] += 1
            return self._without_thoughts(stored)
        if self.config.offline:
            raise RejectedRequestError("offline, and the answer is not stored")
        task = self._in_flight[key] = asyncio.ensure_future(self._answer(key, content))
        try:
            return await asyncio.shield(task)
        finally:
            if task.done():
                del self._in_flight[key]

    async def stream(
        self,
        requests: Iterable[tuple[Tag, ChatRequest] | None],
        total: int | Callable[[], int] | None = None,
    ) -> AsyncIterator[tuple[Tag, ChatAnswer | Failure]]:
        """The outcomes in the order of arrival; requests are drawn as slots become free.

        A None among the requests: nothing more to ask until another outcome has arrived.

        Args:
          total: the number of requests, or a function for its current estimate; for the status
            line.

        Raises:
          RunStoppedError: as `ask`, after the outcomes of all requests in flight.
        """
        remaining = iter(requests)
        tags: dict[asyncio.Task[ChatAnswer], Tag] = {}
        done: asyncio.Queue[asyncio.Task[ChatAnswer]] = asyncio.Queue()
        stopped: RunStoppedError | None = None
        shown = progress.StreamProgress(total, lambda: self.counts["stored"], self.describe_spent)
        try:
            while True:
                while not stopped and len(tags) < self.window and (item := next(remaining, None)):
                    tag, request = item
                    task = asyncio.ensure_future(self.ask(request))
                    task.add_done_callback(done.put_nowait)
                    tags[task] = tag
                if not tags:
                    break
                task = await done.get()
                tag, error = tags.pop(task), task.exception()
                if isinstance(error, RunStoppedError):
                    stopped = stopped or error
                elif isinstance(error, RejectedRequestError):
                    self.counts["failed"] += 1
                    shown.failed += 1
                    yield tag, Failure(str(error))
                else:
                    shown.done += 1
                    yield tag, task.result()
        finally:
            shown.close()
            for task in tags:
                task.cancel()
        if stopped:
            raise stopped

    async def ask_all(self, requests: Sequence[ChatRequest]) -> list[ChatAnswer | Failure]:
        """The outcomes in the order of the requests. Raises: as `stream`."""
        outcomes: list[Any] = [None] * len(requests)
        async for index, outcome in self.stream(enumerate(requests), len(requests)):
            outcomes[index] = outcome
        return outcomes

    def estimate(self, requests: Iterable[ChatRequest], output_tokens: int = 0) -> Estimate:
        """Tokens, cost and time of the requests that are not stored, from stored answers if any.

        Args:
          output_tokens: of a typical answer, until one is stored; 0: `max_tokens` of the config.
        """
        config, log, stored, waiting, sizes = self.config, BatchLog(self.store), 0, 0, []
        for request in requests:
            content = protocols.body(config, request)
            key = protocols.key(config, request, content)
            if self.store.get(key):
                stored += 1
            elif not config.offline and key in log:
                waiting += 1
            else:
                sizes.append(protocols.size(content))
        seconds, output = self.store.typical(config.model)
        output = output or output_tokens or config.max_tokens
        seconds = seconds or progress.FIRST_TOKEN_SECONDS + output / progress.TOKENS_PER_SECOND
        rounds = -(-len(sizes) // config.concurrency)
        tokens = sum(sizes) // progress.BYTES_PER_TOKEN, round(len(sizes) * output)
        return Estimate(
            requests=len(sizes),
            stored=stored,
            input_tokens=tokens[0],
            output_tokens=tokens[1],
            usd=self.price.usd(*tokens) if self.price else None,
            seconds=progress.BATCH_SECONDS if config.batch and sizes else rounds * seconds,
            waiting=waiting,
            batch=config.batch,
        )

    async def _answer(self, key: str, content: dict[str, Any]) -> ChatAnswer:
        failure = RetryableError("")
        for attempt in range(self.config.attempts):
            if attempt and not self.config.batch:  # waiting for the next batch is enough
                await self._back_off(attempt, failure.retry_after)
            if self.stop_reason:
                raise RunStoppedError(self.stop_reason)
            try:
                return await self._attempt(key, content)
            except BudgetReachedError:
                self.stop(f"the budget is reached: {self.describe_spent()}; raise it and rerun")
                raise RunStoppedError(self.stop_reason) from None
            except RetryableError as error:
                failure = error
                self.counts["retried"] += 1
            except RejectedRequestError as error:
                self._count_failure("rejected by the server", error)
                raise
            except FatalProviderError as error:
                self.stop(str(error))
                raise RunStoppedError(self.stop_reason) from None
        attempts = self.config.attempts
        error = RejectedRequestError(f"no answer in {attempts} attempts; the last: {failure}")
        if not self.config.batch and replies.UNUSABLE["content_filter"] not in str(failure):
            self._count_failure("given up", error)
        raise error

    def _count_failure(self, kind: str, error: RejectedRequestError) -> None:
        """Ends the run if all requests so far failed in this way."""
        self.counts[kind] += 1
        works = self.counts["answered"] or self.counts["stored"]  # with this same configuration
        if self.counts[kind] >= MAX_INITIAL_FAILURES and not works:
            self.stop(f"every request so far is {kind}: {error}")
            raise RunStoppedError(self.stop_reason) from None

    async def _attempt(self, key: str, content: dict[str, Any]) -> ChatAnswer:
        if self._batches:
            if stored := self.store.get(key):  # its batch may have been collected meanwhile
                return stored
            if self.config.batch or key in self._batches:
                return await self._batches.ask(key, content)
        cost = prices.worst_case(self.price, protocols.size(content), self.config.max_tokens)
        await self.budget.reserve(*cost)
        try:
            return await self._send(key, content)
        finally:
            await self.budget.release(*cost)

    async def _send(self, key: str, content: dict[str, Any]) -> ChatAnswer:
        assert self._connection, "use the client as an async context manager"
        request = self._connection.prepare(content)  # before waiting for a slot
        sent = await self._limit.enter()
        try:
            if self.stop_reason:
                raise RunStoppedError(self.stop_reason)
            reply, headers = await self._connection.send(request)
        except BaseException as error:
            if isinstance(error, RetryableError) and error.throttled:
                self._limit.throttled(sent, error.retry_after)
            else:
                self._limit.leave(success=False)
            raise
        seconds = time.monotonic() - sent
        self._limit.leave(success=True, headers=headers)
        answer = replies.read_reply(self.config.provider, content, reply)
        charge = prices.charge(key, self.config.model, self.price, answer)
        self.budget.charge(charge)
        try:
            await self.store.put(charge, content, answer, seconds)
        except OSError as error:
            self.stop(str(error))
            raise
        self.counts["answered"] += charge.is_answer
        self.counts["no usage reported"] += not answer.usage_reported
        if not charge.is_answer:
            detail = f": {replies.describe(reply)}" if charge.kind == "malformed" else ""
            raise RetryableError(replies.UNUSABLE[charge.kind] + detail)
        return self._without_thoughts(answer)

    def _without_thoughts(self, answer: ChatAnswer) -> ChatAnswer:
        if answer.thoughts:
            self.counts["with thoughts, which are left out"] += 1
        return answer

    async def _back_off(self, attempt: int, retry_after: float | None) -> None:
        seconds = min(MAX_BACKOFF, INITIAL_BACKOFF * 2 ** (attempt - 1))
        await asyncio.sleep(max(retry_after or 0.0, seconds * random.uniform(0.5, 1.0)))

    def describe_spent(self) -> str:
        """Money and tokens spent in the store so far."""
        money = f"${self.budget.usd:,.4f}" if self.price else "price unknown"
        return f"{money}, {self.budget.tokens:,} tokens"

    def summary(self) -> str:
        """Counts and costs in one line."""
        return f"{messages.format_counts(self.counts)}; spent so far {self.describe_spent()}"


def run_until_done(client: Client, job: Callable[[], Awaitable[Result]]) -> Result:
    """Runs `job` in the client's context and returns its result.

    The first Ctrl-C or SIGTERM stores the replies in flight and stops; the second stops at once.

    Raises:
      RunStoppedError: the job did not complete.
      ValueError: offline, and none of the answers is stored.
    """

    previous_handlers = {s: signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)}

    async def run_job() -> Result:
        loop = asyncio.get_running_loop()
        for name in previous_handlers:
            loop.add_signal_handler(name, stop, name)
        async with client:
            return await job()

    def stop(name: signal.Signals) -> None:
        if client.stop_reason:
            raise KeyboardInterrupt  # the second time: at once
        exits.Ending.received = name
        if not client.config.batch:
            client.report(f"{name.name}: waiting for the replies in flight")
        client.stop("stopped by a signal; rerun to resume")

    if client.config.budget_usd and (unpriced := client.store.total_spent().unpriced):
        client.report(
            f"{unpriced:,} replies so far have no known price; budget_usd does not count them"
        )
    try:
        result = asyncio.run(run_job())
    finally:
        for name, handler in previous_handlers.items():  # asyncio has set the default ones
            signal.signal(name, handler)
        client.report(client.summary())
    if client.config.offline and client.counts["failed"] and not client.counts["stored"]:
        raise ValueError(
            "offline, and none of the answers is stored; set the provider, base_url, model and "
            "prompt they were requested with, or unset offline"
        )
    return result
