"""Asks models: every answer is on disk before it is used, and is never paid for twice.

    with AnswerStore(workdir / "answers.sqlite") as store:
        async with Client(config, store) as client:
            async for tag, outcome in client.stream((task.id, request(task)) for task in tasks):
                ...  # outcome is a ChatAnswer or a Failure

Works with OpenAI, with any server that has its protocol (`base_url`) and with Anthropic.
"""

import asyncio
import collections
import signal
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from typing import Any, Self, TypeVar

from common import exits, messages
from datagen.chat import prices, progress
from datagen.chat.attempts import Attempts
from datagen.chat.batch.batches import Batches
from datagen.chat.batch.log import BatchLog
from datagen.chat.config import ChatConfig, ChatRequest, RequestKey, environment_notes, size
from datagen.chat.connection import Connection
from datagen.chat.errors import (
    BudgetReachedError,
    Failure,
    FatalProviderError,
    RejectedRequestError,
    RunStoppedError,
)
from datagen.chat.prices import Budget
from datagen.chat.progress import Estimate
from datagen.chat.replies import KNOWN_ENDS, ChatAnswer
from datagen.chat.store import AnswerStore

Tag = TypeVar("Tag")
Result = TypeVar("Result")

MAX_WAITING = 100_000
"""Requests of a run that may wait in batches; each takes some 8 kB of memory plus its text."""


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
        self.price = prices.of(config)
        self.budget = Budget(config.budget_usd, config.budget_tokens, store.total_spent())
        self.counts: collections.Counter[str] = collections.Counter()  # outcomes, for the summary
        self.stop_reason = ""  # why nothing more is sent
        shared = config, store, self.budget, self.price, self.counts, report
        self._attempts = Attempts(*shared, stop=self.stop, check_running=self._check_running)
        self._in_flight: dict[str, asyncio.Task[ChatAnswer]] = {}  # by key
        self._connection: Connection | None = None
        self._batches: Batches | None = None

    async def __aenter__(self) -> Self:
        config, store = self.config, self.store
        if config.offline:
            return self
        for line in environment_notes(config):
            self.report(line)
        if left := store.without_reply():
            self.report(f"{left:,} requests of earlier runs without a reply count at the most")
        connection = self._connection = self._attempts.connection = Connection(config)
        # Without batch=True too: requests in a batch of an earlier run must not be sent again.
        if config.batch or BatchLog(store).open():
            shared = self.budget, self.price, self.counts, self.report
            self._batches = Batches(config, store, connection, *shared)
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
        self._attempts.end()
        if self._batches:
            self._batches.stop(self.stop_reason)

    async def ask(self, request: ChatRequest) -> ChatAnswer:
        """The answer from the store, or from the model once it is stored.

        Raises:
          RejectedRequestError: the model rejected this request, or all its attempts failed.
          RunStoppedError: the budget is reached, `stop` was called, or no request can be answered.
        """
        content = request.body(self.config)
        stored_key = request.key(self.config, content)
        key = stored_key.key
        if key in self._in_flight:  # the same request twice at once
            return await asyncio.shield(self._in_flight[key])
        if stored := self.store.get(stored_key):
            self.counts["stored"] += 1
            return self._counted(stored)
        if self.config.offline:
            raise RejectedRequestError("offline, and the answer is not stored")
        task = self._in_flight[key] = asyncio.ensure_future(self._answer(stored_key, content))
        try:
            return await asyncio.shield(task)
        finally:
            if task.done():
                del self._in_flight[key]

    def stored(self, request: ChatRequest) -> ChatAnswer | None:
        """The answer from the store; None: the model would be asked."""
        return self.store.get(request.key(self.config, request.body(self.config)))

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
                    yield tag, Failure(str(error), error.own)
                else:
                    shown.done += 1
                    yield tag, task.result()
        finally:
            shown.close()
            for task in tags:
                task.cancel()
        if stopped:
            raise stopped
        if reason := self._attempts.without_answers():
            raise RunStoppedError(reason)

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
            content = request.body(config)
            key = request.key(config, content)
            if self.store.get(key):
                stored += 1
            elif not config.offline and key.key in log:
                waiting += 1
            else:
                sizes.append(size(content))
        seconds, typical = self.store.typical(config.model)
        return progress.estimate(
            config, sizes, stored, waiting, self.price, typical or output_tokens, seconds
        )

    async def _answer(self, key: RequestKey, content: dict[str, Any]) -> ChatAnswer:
        try:
            answer = await self._attempts.answer(key.key, lambda: self._attempt(key, content))
        except BudgetReachedError:
            self.stop(f"the budget is reached: {self.describe_spent()}; raise it and rerun")
            raise RunStoppedError(self.stop_reason) from None
        except FatalProviderError as error:
            self.stop(str(error))
            raise RunStoppedError(self.stop_reason) from None
        except OSError as error:  # of the store
            self.stop(str(error))
            raise
        return self._counted(answer)

    async def _attempt(self, key: RequestKey, content: dict[str, Any]) -> ChatAnswer:
        self._check_running()
        if self._batches:
            if stored := self.store.get(key):  # its batch may have been collected meanwhile
                return stored
            if self.config.batch or key.key in self._batches:
                return await self._batches.ask(key.key, content)
        return await self._attempts.send(key.key, content)

    def _check_running(self) -> None:
        if self.stop_reason:
            raise RunStoppedError(self.stop_reason)

    def _counted(self, answer: ChatAnswer) -> ChatAnswer:
        if answer.thoughts:
            self.counts["with thoughts, which are left out"] += 1
        if answer.finish_reason not in KNOWN_ENDS:
            self.counts[f"ending with {answer.finish_reason!r}"] += 1
        return answer

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
