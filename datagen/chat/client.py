"""Asks models, once: every answer is on disk before it is used, and is never paid for again.

    with AnswerStore(workdir / "answers.sqlite") as store:
        async with Client(config, store) as client:
            async for tag, outcome in client.stream((task.id, request(task)) for task in tasks):
                ...  # outcome is a ChatAnswer or a Failure

Works with OpenAI, with any server that speaks its protocol (`base_url`) and with Anthropic.
"""

import asyncio
import collections
import dataclasses
import random
import signal
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from typing import Any, Self, TypeVar

from common import messages
from datagen.chat import prices, protocols
from datagen.chat.batch_log import BatchLog
from datagen.chat.batches import Batches
from datagen.chat.config import ChatConfig, ChatRequest
from datagen.chat.connection import Connection
from datagen.chat.errors import (
    BudgetReachedError,
    FatalProviderError,
    RejectedRequestError,
    RetryableError,
    RunStoppedError,
)
from datagen.chat.prices import Budget
from datagen.chat.progress import Estimate, StreamProgress, estimate
from datagen.chat.rate_limit import RateLimit
from datagen.chat.store import AnswerStore, Charge, ChatAnswer

Tag, Result = TypeVar("Tag"), TypeVar("Result")

MAX_INITIAL_FAILURES = 3
"""Requests that a server may refuse, or never reply to, before any is answered: then all would."""

MAX_WAITING = 100_000
"""Requests that a run has in batches at once; each takes some 8 kB of memory beside its text."""

INITIAL_BACKOFF, MAX_BACKOFF = 0.5, 60.0
"""Seconds before the second attempt, doubled each time, and the longest; half of it is random."""


@dataclasses.dataclass(frozen=True)
class Failure:
    """Why a request has no answer. It is not stored: the next run asks again."""

    reason: str


class Client:
    """Asks one model. Use as an async context; one for a store and run.

    Raises:
      ValueError: a budget is set and the price is not known; no key.
    """

    def __init__(
        self, config: ChatConfig, store: AnswerStore, report: Callable[[str], None] = messages.log
    ):
        self.config = config
        self.store = store
        self.report = report
        self.price = (
            prices.look_up(config.model)
            if config.price_input is None
            else prices.Price(config.price_input, config.price_output)
        )
        if config.batch and self.price:
            self.price = self.price.in_batch()
        if config.budget_usd and not self.price:
            raise ValueError(
                f"budget_usd is set, but {config.model!r} has no price in datagen/prices.json; "
                "give price_input and price_output"
            )
        self.budget = Budget(config.budget_usd, config.budget_tokens, store.total_spent())
        self.counts: collections.Counter[str] = collections.Counter()
        self.stop_reason = ""
        self._limit = RateLimit(config.concurrency)
        self._asked: dict[str, asyncio.Task[ChatAnswer]] = {}
        self._connection: Connection | None = None
        self._batches: Batches | None = None

    async def __aenter__(self) -> Self:
        if not self.config.offline:
            self._connection = Connection(self.config)
            await self._take_up_batches()
        return self

    async def _take_up_batches(self) -> None:
        # Without batch=True too: what is in a batch of an earlier run must not be sent again.
        if not self.config.batch and not BatchLog(self.store).open():
            return
        given = self.config, self.store, self._connection, self.budget, self.price
        self._batches = Batches(*given, self.counts, self.report)
        try:
            await self._batches.start()
        except BaseException:
            await self.__aexit__()
            raise

    async def __aexit__(self, *_: object) -> None:
        for task in self._asked.values():
            task.cancel()
        await asyncio.gather(*self._asked.values(), return_exceptions=True)
        try:
            if self._batches:
                await self._batches.close()
        finally:
            if self._connection:
                await self._connection.close()

    @property
    def window(self) -> int:
        """Requests worth having on their way at a time: enough that no place stays empty."""
        if self.config.batch:
            return MAX_WAITING
        return 2 * self.config.concurrency

    def stop(self, why: str) -> None:
        """Sends nothing more; what is out may still come, but batches are not waited for."""
        if self.stop_reason:
            return
        left = self._batches.left_open() if self._batches else ""
        self.stop_reason = f"{why}; {left}" if left else why
        if self._batches:
            self._batches.stop(self.stop_reason)

    async def ask(self, request: ChatRequest) -> ChatAnswer:
        """The answer from the store, or from the model once it is stored.

        Raises:
          RejectedRequestError: the model will not answer this request, or not within the attempts.
          RunStoppedError: the budget is reached, the run is to end, or no request can be answered.
        """
        content = protocols.body(self.config, request)
        key = protocols.key(self.config, request, content)
        if key in self._asked:  # the same question twice at once
            return await asyncio.shield(self._asked[key])
        if stored := self.store.get(key):
            self.counts["stored"] += 1
            return stored
        if self.config.offline:
            raise RejectedRequestError("offline, and the answer is not in the store")
        task = asyncio.ensure_future(self._answer(key, content))
        self._asked[key] = task
        try:
            return await asyncio.shield(task)
        finally:
            if task.done():
                del self._asked[key]

    async def stream(
        self,
        requests: Iterable[tuple[Tag, ChatRequest] | None],
        total: int | Callable[[], int] | None = None,
    ) -> AsyncIterator[tuple[Tag, ChatAnswer | Failure]]:
        """Each request's outcome as it comes, in any order; requests are drawn as places free up.

        A None among the requests: nothing more to ask before another outcome has come.

        Args:
          total: how many there are, or how many it looks like now; for the progress line.

        Raises:
          RunStoppedError: as `ask`, once what was out has come.
        """
        left, out = iter(requests), {}
        done: asyncio.Queue[asyncio.Task[ChatAnswer]] = asyncio.Queue()
        ended: ValueError | None = None
        progress = StreamProgress(total, lambda: self.counts["stored"], self.describe_spent)
        try:
            while True:
                while not ended and len(out) < self.window and (item := next(left, None)):
                    task = asyncio.ensure_future(self.ask(item[1]))
                    task.add_done_callback(done.put_nowait)
                    out[task] = item[0]
                if not out:
                    break
                task = await done.get()
                tag, error = out.pop(task), task.exception()
                if isinstance(error, RunStoppedError):
                    ended = ended or error
                elif isinstance(error, RejectedRequestError):
                    self.counts["failed"] += 1
                    progress.failed += 1
                    yield tag, Failure(str(error))
                else:
                    progress.done += 1
                    yield tag, task.result()
        finally:
            progress.close()
            for task in out:
                task.cancel()
        if ended:
            raise ended

    async def ask_all(self, requests: Sequence[ChatRequest]) -> list[ChatAnswer | Failure]:
        """The outcomes, in the order of the requests.

        Raises:
          RunStoppedError: as `ask`, once what was out has come.
        """
        outcomes: list[Any] = [None] * len(requests)
        async for index, outcome in self.stream(enumerate(requests), len(requests)):
            outcomes[index] = outcome
        return outcomes

    def estimate(self, requests: Iterable[ChatRequest], output_tokens: int = 0) -> Estimate:
        """What is left to send; see `estimates.estimate`."""
        return estimate(self.config, self.store, self.price, requests, output_tokens)

    async def _answer(self, key: str, body: dict[str, Any]) -> ChatAnswer:
        failed = RetryableError("")
        for attempt in range(self.config.attempts):
            if attempt and not self.config.batch:  # the next batch is wait enough
                await self._wait(attempt, failed.retry_after)
            if self.stop_reason:
                raise RunStoppedError(self.stop_reason)
            try:
                return await self._once(key, body)
            except BudgetReachedError:
                self.stop(f"the budget is reached: {self.describe_spent()}; raise it and run again")
                raise RunStoppedError(self.stop_reason) from None
            except RetryableError as error:
                failed = error
                self.counts["tried again"] += 1
            except RejectedRequestError as error:
                self._without_answer("refused by the server", error)
                raise
            except FatalProviderError as error:
                self.stop(str(error))
                raise RunStoppedError(self.stop_reason) from None
        error = RejectedRequestError(
            f"no answer in {self.config.attempts} attempts, the last time: {failed}"
        )
        if not self.config.batch and str(failed) != protocols.BLOCKED_BY_FILTER:
            self._without_answer("given up", error)
        raise error

    async def _once(self, key: str, body: dict[str, Any]) -> ChatAnswer:
        if self._batches:
            if stored := self.store.get(key):  # its batch may have been collected meanwhile
                return stored
            if self.config.batch or key in self._batches:
                return await self._batches.ask(key, body)
        worst = protocols.size(body), self.config.max_tokens
        reserved = self.price.usd(*worst) if self.price else 0.0, sum(worst)
        await self.budget.reserve(*reserved)
        try:
            return await self._attempt(key, body)
        finally:
            await self.budget.release(*reserved)

    def _without_answer(self, what: str, error: RejectedRequestError) -> None:
        """Counts it, and ends the run where all requests so far went that way."""
        self.counts[what] += 1
        works = self.counts["answered"] or self.counts["stored"]  # with this very configuration
        if self.counts[what] >= MAX_INITIAL_FAILURES and not works:
            self.stop(f"every request so far is {what}: {error}")
            raise RunStoppedError(self.stop_reason) from None

    async def _attempt(self, key: str, body: dict[str, Any]) -> ChatAnswer:
        request = self._connection.prepare(body)  # while others wait for the server
        sent = await self._limit.enter()
        try:
            if self.stop_reason:
                raise RunStoppedError(self.stop_reason)
            reply, headers = await self._connection.send(request)
        except RetryableError as failed:
            if failed.throttled:
                self._limit.refused(sent, failed.retry_after)
            else:
                self._limit.leave(success=False)
            raise
        except BaseException:
            self._limit.leave(success=False)
            raise
        seconds = time.monotonic() - sent
        self._limit.leave(success=True, headers=headers)
        answer = protocols.read_reply(self.config.provider, body, reply)
        charge = prices.charge(key, self.config.model, self.price, answer)
        await self._store(charge, body, answer, seconds)
        if not charge.is_answer:
            raise RetryableError(protocols.BLOCKED_BY_FILTER)
        return answer

    async def _store(
        self, charge: Charge, body: dict[str, Any], answer: ChatAnswer, seconds: float
    ) -> None:
        self.budget.charge(charge.usd, charge.input_tokens + charge.output_tokens)
        try:
            await self.store.put(charge, body, answer if charge.is_answer else None, seconds)
        except OSError as error:
            self.stop(str(error))
            raise
        self.counts["answered"] += charge.is_answer
        self.counts["no usage reported"] += not answer.usage_reported

    async def _wait(self, attempt: int, after: float | None) -> None:
        longest = min(MAX_BACKOFF, INITIAL_BACKOFF * 2 ** (attempt - 1))
        await asyncio.sleep(max(after or 0.0, longest * random.uniform(0.5, 1.0)))

    def describe_spent(self) -> str:
        money = f"${self.budget.usd:,.4f}" if self.price else "price unknown"
        return f"{money}, {self.budget.tokens:,} tokens"

    def summary(self) -> str:
        """Counts and costs, in one line."""
        told = ", ".join(f"{count:,} {name}" for name, count in self.counts.items() if count)
        return f"{told or 'nothing asked'}; spent so far {self.describe_spent()}"


def run_until_done(client: Client, work: Callable[[], Awaitable[Result]]) -> Result:
    """The result of `work`, brought to its end.

    The first Ctrl-C or SIGTERM lets what is out come in and stops.

    Raises:
      RunStoppedError: it did not come to its end.
      ValueError: offline, and the store holds none of the answers.
    """

    async def guarded() -> Result:
        loop = asyncio.get_running_loop()
        for name in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(name, stop, name)
        async with client:
            return await work()

    def stop(name: signal.Signals) -> None:
        if client.stop_reason:
            raise KeyboardInterrupt  # the second time: at once
        if not client.config.batch:
            client.report(f"{name.name}: waiting for the answers that are on their way")
        client.stop("stopped by a signal; run again to go on")

    if client.config.budget_usd and (unpriced := client.store.total_spent().unpriced):
        client.report(
            f"{unpriced:,} replies so far have no known price; budget_usd leaves them out"
        )
    try:
        result = asyncio.run(guarded())
    finally:
        client.report(client.summary())
    if client.config.offline and client.counts["failed"] and not client.counts["stored"]:
        raise ValueError(
            "offline, and none of the answers is stored; set the provider, base_url, model and "
            "prompt with which they were asked for, or leave offline out"
        )
    return result
