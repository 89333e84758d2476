"""Requests at half price: gathered, sent as one batch, waited for, and collected, over many runs.

What is guaranteed: a request is in one batch at most, and while it is in one, it is sent by no
other way. A batch is on disk before it is sent. One whose submission got no reply is looked for at
the provider, and only where it is still not there after SETTLE_SECONDS are its requests sent again;
`find` in batch_protocols.py tells what that proves. Every answer is stored, with its charge, once.
"""

import asyncio
import collections
import contextlib
import copy
import json
import time
import uuid
from collections.abc import Callable, Coroutine, Mapping
from typing import Any

from datagen.chat import protocols
from datagen.chat.batch_log import Batch, BatchLog
from datagen.chat.batch_protocols import BATCHES, BatchState
from datagen.chat.batch_results import BatchResults
from datagen.chat.config import ChatConfig
from datagen.chat.connection import Connection
from datagen.chat.errors import (
    BudgetReachedError,
    FatalProviderError,
    NotFoundError,
    NotSubmittedError,
    RejectedRequestError,
    RetryableError,
    SubmissionUnknownError,
)
from datagen.chat.prices import Budget, Price
from datagen.chat.store import AnswerStore, Charge, ChatAnswer

QUIET_SECONDS = 5.0
"""A batch is sent when nothing has been added for this long, or when it is full."""

SETTLE_SECONDS = 900.0
"""How long after a submission without a reply a batch may still turn up at the provider.

Neither provider documents a bound; a batch is usually listed within seconds of its submission.
"""

OUTAGE_SECONDS = 3600.0
"""How long a provider may give no usable reply before the run ends; the batch goes on."""

INITIAL_RESUBMIT_BACKOFF, MAX_RESUBMIT_BACKOFF = 30.0, 1800.0
"""Seconds before a batch that was not taken is sent again, doubled each time, and the longest."""


class Batches:
    """The batches of one client. `start` before the first `ask`; `close` at the end."""

    def __init__(
        self,
        config: ChatConfig,
        store: AnswerStore,
        connection: Connection,
        budget: Budget,
        price: Price | None,
        counts: collections.Counter[str],
        report: Callable[[str], None],
    ):
        self.config, self.budget, self.counts, self.report = config, budget, counts, report
        self._price, self._store, self._log = price, store, BatchLog(store)
        self._protocol = BATCHES[config.provider](connection)
        self._results = BatchResults(config.provider, self._protocol, connection, self._log)
        self._most = min(config.batch_requests, self._protocol.most_requests)
        self._open: dict[str, Batch] = {}  # by name
        self._out: set[str] = set()  # keys that are in open batches
        self._futures: dict[str, asyncio.Future[ChatAnswer]] = {}  # of what was asked for, by key
        self._gathered: collections.deque[tuple[str, str, int]] = collections.deque()
        self._bytes = 0  # of what is gathered
        self._changed = asyncio.Event()
        self._last_added = 0.0
        self._not_before = 0.0  # monotonic time; the provider took no batch
        self._not_taken = 0  # batches in a row
        self._undecided: set[str] = set()  # batches that were told to be so
        self._busy = asyncio.Lock()  # held while a batch is sent or collected
        self._tasks: set[asyncio.Task] = set()
        self._left: FatalProviderError | None = None  # why some batch is not waited for any more
        self._broken: BaseException | None = None  # a full disk, or a mistake of ours

    async def start(self) -> None:
        """Takes up what earlier runs left: what has ended is collected at once.

        Raises:
          FatalProviderError: such a batch cannot be looked at.
        """
        for batch in self._log.open():
            if (batch.provider, batch.base_url) != (self.config.provider, self.config.base_url):
                self.budget.set_aside(batch.usd, batch.tokens)
                self.report(f"{_describe(batch)} stays there: this run asks another provider")
                continue
            self.budget.hold(batch.usd, batch.tokens)
            self._open[batch.name] = batch
            self._out.update(self._log.keys(batch))
            self.report(f"{_describe(batch)} was left by an earlier run")
            try:
                settled = await self._looked_at(batch)
            except RetryableError:
                settled = False
            if not settled:
                self._run(self._follow(batch))
        self._not_taken, self._not_before = 0, 0.0  # of this run
        self._run(self._send_gathered())

    async def close(self) -> None:
        """Ends waiting. What is being sent or collected is brought to its end."""
        self.stop("the run has ended")
        async with self._busy:
            for task in self._tasks:
                task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._broken:
            raise self._broken

    def stop(self, why: str) -> None:
        """Sends nothing more; who waits for an answer is told why it does not come."""
        self._drop_gathered()
        for key in list(self._futures):
            self._fail(key, FatalProviderError(why))

    def __contains__(self, key: str) -> bool:
        """Whether a request is in a batch at the provider."""
        return key in self._out

    def left_open(self) -> str:
        """What is at the provider, in words; "" for nothing."""
        if not self._open:
            return ""
        requests = sum(batch.requests for batch in self._open.values())
        count = f"{len(self._open)} with {requests:,} requests"
        return f"batches at {self.config.provider} go on ({count}), and the next run collects them"

    async def ask(self, key: str, body: Mapping[str, Any]) -> ChatAnswer:
        """The answer, stored, from the batch that the request is in already or from a new one.

        Raises:
          RetryableError, RejectedRequestError, FatalProviderError: why there is none.
          BudgetReachedError: it does not fit, and nothing is out.
        """
        if self._broken or (self._left and key in self._out):
            raise self._broken or copy.copy(self._left)
        future = self._futures[key] = asyncio.get_running_loop().create_future()
        if key not in self._out:
            self._gather(key, json.dumps(body, ensure_ascii=False))
        return await future

    def _gather(self, key: str, body: str) -> None:
        size = len(body.encode())
        self._gathered.append((key, body, size))
        self._bytes += size + self._protocol.line_bytes
        self._last_added = time.monotonic()
        self._changed.set()

    def _drop_gathered(self) -> list[str]:
        """The keys of what is not sent any more."""
        keys = [key for key, _, _ in self._gathered]
        self._gathered.clear()
        self._bytes = 0
        return keys

    # Sending.

    async def _send_gathered(self) -> None:
        while True:
            await self._changed.wait()
            self._changed.clear()
            if not self._gathered:
                continue
            while (wait := self._seconds_to_wait()) > 0:
                # Not wait_for, which before Python 3.12 may swallow a cancellation.
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(wait):
                        await self._changed.wait()
                self._changed.clear()
            requests = self._take()
            if requests:
                await self._send(requests)
                self._changed.set()  # there may be more
            elif not self._open:
                for key in self._drop_gathered():
                    self._fail(key, BudgetReachedError())

    def _seconds_to_wait(self) -> float:
        full = len(self._gathered) >= self._most or self._bytes >= self._protocol.most_bytes
        quiet = 0.0 if full else self._last_added + QUIET_SECONDS
        return max(quiet, self._not_before) - time.monotonic()

    def _worst(self, size: int) -> tuple[float, int]:
        worst = size, self.config.max_tokens
        return self._price.usd(*worst) if self._price else 0.0, sum(worst)

    def _take(self) -> list[tuple[str, str, int]]:
        """As many of the gathered requests as one batch and the budget hold; reserved for."""
        taken, total = [], 0
        while self._gathered and len(taken) < self._most:
            size = self._gathered[0][2]
            total += size + self._protocol.line_bytes
            if taken and total > self._protocol.most_bytes:
                break
            if not self.budget.reserve_now(*self._worst(size)):
                break
            taken.append(self._gathered.popleft())
            self._bytes -= size + self._protocol.line_bytes
        return taken

    async def _send(self, requests: list[tuple[str, str, int]]) -> None:
        worst = [self._worst(size) for _, _, size in requests]
        batch = Batch(
            name=uuid.uuid4().hex,
            provider=self.config.provider,
            base_url=self.config.base_url,
            model=self.config.model,
            price=self._price,
            requests=len(requests),
            usd=sum(usd for usd, _ in worst),
            tokens=sum(tokens for _, tokens in worst),
            sent=time.time(),
        )
        self._open[batch.name] = batch
        self._out.update(key for key, _, _ in requests)
        async with self._busy:
            await self._log.intend(batch, [(key, body) for key, body, _ in requests])
            requests.clear()  # what is sent is read from the disk
            try:
                id = await self._protocol.send(batch, self._log.requests(batch))
                await self._log.arrived(batch, id)
                self.report(f"{_describe(batch)} is sent; it may take 24 hours")
            except NotSubmittedError as error:
                return await self._put_back(batch, error)
            except RetryableError as error:
                self.report(
                    f"{_describe(batch)}: no reply to its submission ({error}); looking for it"
                )
            except (RejectedRequestError, FatalProviderError) as error:
                why = f"{error} (the reply to a batch; batch=False asks without)"
                return await self._end(batch, "not taken", {}, FatalProviderError(why))
        self._run(self._follow(batch))

    async def _put_back(self, batch: Batch, why: NotSubmittedError) -> None:
        """It is certainly not at the provider: what still matters of it is gathered again."""
        waits = why.queue_full and len(self._open) > 1  # for another batch to make room
        self._not_taken += not waits
        if self._not_taken >= self.config.attempts:
            error = FatalProviderError(f"no batch was taken in {self._not_taken} attempts: {why}")
            return await self._end(batch, "not sent", {}, error)
        self.report(f"{_describe(batch)} was not taken ({why}); what is asked of it is sent again")
        requests = list(self._log.requests(batch))
        await self._close(batch, "not sent")
        wait = (
            MAX_RESUBMIT_BACKOFF if waits else INITIAL_RESUBMIT_BACKOFF * 2 ** (self._not_taken - 1)
        )
        wait = max(min(wait, MAX_RESUBMIT_BACKOFF), why.retry_after or 0.0)
        self._not_before = time.monotonic() + wait
        for key, body in requests:
            self._out.discard(key)
            if key in self._futures:
                self._gather(key, body)

    # Waiting.

    async def _follow(self, batch: Batch) -> None:
        """Looks at a batch until it is settled, or for an hour without a usable reply."""
        good = time.monotonic()
        while True:
            await asyncio.sleep(self.config.poll_seconds)
            try:
                if await self._looked_at(batch):
                    return
                good = time.monotonic()
            except RetryableError as error:
                if time.monotonic() - good > OUTAGE_SECONDS:
                    return self._leave(
                        batch, FatalProviderError(f"{_describe(batch)} cannot be read: {error}")
                    )
            except FatalProviderError as error:
                return self._leave(batch, error)

    async def _looked_at(self, batch: Batch) -> bool:
        """Whether the batch is settled now."""
        if batch.id is None and not await self._found(batch):
            return batch.name not in self._open
        try:
            state = await self._protocol.state(batch)
        except NotFoundError as error:
            give_up = (
                f"DELETE FROM batch_requests WHERE batch = '{batch.name}'; "
                f"DELETE FROM batches WHERE name = '{batch.name}'"
            )
            raise FatalProviderError(
                f"{_describe(batch)} does not exist ({error}); use the API key it was submitted "
                f'with or, if it was deleted, discard it: sqlite3 {self._store.path} "{give_up}"'
            ) from None
        if not state.ended:
            return False
        if isinstance(state.failed, NotSubmittedError):
            await self._put_back(batch, state.failed)
        elif state.failed:
            await self._end(batch, "failed", {}, state.failed)
        elif state.gone:
            await self._lose(batch)
        else:
            async with self._busy:
                await self._collect(batch, state)
        return True

    async def _found(self, batch: Batch) -> bool:
        """Looks for a batch whose submission got no reply; gives it up once it cannot turn up."""
        try:
            id = await self._protocol.find(batch, self._log.ids())
        except SubmissionUnknownError as error:
            if batch.name not in self._undecided:
                self._undecided.add(batch.name)
                self.report(f"{_describe(batch)}: no reply came to its submission; {error}")
            return False
        if id is None and time.time() - batch.sent >= SETTLE_SECONDS:
            await self._put_back(batch, NotSubmittedError("it never arrived"))
        if id is not None:
            await self._log.arrived(batch, id)
            self.report(f"{_describe(batch)} is found")
        return id is not None

    # Collecting.

    async def _collect(self, batch: Batch, state: BatchState) -> None:
        try:
            failures = await self._results.store_all(batch, state, self._deliver)
        except NotFoundError:
            return await self._lose(batch)
        await self._end(
            batch, "collected", failures, RetryableError("its batch brought no result for it")
        )
        self._not_taken, self._not_before = 0, 0.0  # there is room, now that it is closed
        self._changed.set()

    def _deliver(self, charge: Charge, answer: ChatAnswer) -> None:
        self.budget.charge(charge.usd, charge.input_tokens + charge.output_tokens)
        self.counts["answered"] += charge.is_answer
        self.counts["no usage reported"] += not answer.usage_reported
        if not charge.is_answer:
            self._out.discard(charge.key)
            return self._fail(charge.key, RetryableError(protocols.BLOCKED_BY_FILTER))
        future = self._futures.pop(charge.key, None)
        if future and not future.done():
            future.set_result(answer)

    async def _lose(self, batch: Batch) -> None:
        """The provider has deleted the results: paid at most what was reserved, never seen."""
        share = len(self._log.keys(batch)) / batch.requests
        usd, tokens = batch.usd * share, round(batch.tokens * share)
        self.budget.charge(usd, tokens)
        self.report(
            f"{_describe(batch)}: its results are deleted there; counted at its highest cost"
        )
        lost = Charge(batch.name, batch.model, "lost", tokens, 0, usd if batch.price else None)
        await self._end(batch, "lost", {}, RetryableError("its batch's results are deleted"), lost)

    # Ending.

    async def _end(
        self,
        batch: Batch,
        state: str,
        failures: Mapping[str, Exception],
        rest: Exception,
        lost: Charge | None = None,
    ) -> None:
        """Closes a batch; `rest` is why requests without a result or a failure have none."""
        keys = {*failures, *self._log.keys(batch)}
        await self._close(batch, state, lost)
        self._out -= keys
        for key in keys:
            self._fail(key, failures.get(key, rest))
        self.report(f"{_describe(batch)}: {state}, {len(keys):,} without an answer")

    async def _close(self, batch: Batch, state: str, lost: Charge | None = None) -> None:
        await self._log.close(batch, state, lost)
        del self._open[batch.name]
        await self.budget.release(batch.usd, batch.tokens)
        self._changed.set()

    def _leave(self, batch: Batch, why: FatalProviderError) -> None:
        """Leaves a batch open, for a later run."""
        self._left = why
        for key in self._log.keys(batch):
            self._fail(key, why)

    def _fail(self, key: str, why: Exception) -> None:
        future = self._futures.pop(key, None)
        if future and not future.done():
            # One of its own for each: a traceback grows with each raise.
            future.set_exception(copy.copy(why))

    def _run(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._is_done)

    def _is_done(self, task: asyncio.Task) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()):
            self._broken = self._broken or error
            for key in list(self._futures):
                self._fail(key, error)


def _describe(batch: Batch) -> str:
    where = f" ({batch.id})" if batch.id else ""
    return f"batch {batch.name[:8]}{where} of {batch.requests:,} requests at {batch.provider}"
