"""Requests at half price: collected, submitted as a batch, polled and stored, across many runs.

Guarantees: a request is in at most one batch, and while it is in one, it is not sent in any other
way. A batch is on disk before its submission. If a submission got no reply, the batch is searched
for at the provider, and only if it is still missing after SETTLE_SECONDS are its requests sent
again; `find` in batch/protocols.py documents what that proves. Every answer is stored once, with
its charge.
"""

import asyncio
import collections
import contextlib
import copy
import json
import time
from collections.abc import Callable, Coroutine, Mapping
from typing import Any

from datagen.chat import prices
from datagen.chat.batch.log import Batch, BatchLog, BatchState, PendingRequest
from datagen.chat.batch.protocols import BATCH_PROTOCOLS
from datagen.chat.config import ChatConfig, same_server
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
from datagen.chat.replies import UNUSABLE, ChatAnswer
from datagen.chat.store import AnswerStore, Charge

QUIET_SECONDS = 5.0
"""A batch is submitted once it is full or no request has been added for this long."""

SETTLE_SECONDS = 900.0
"""How long after a submission without a reply a batch may still appear at the provider.

Neither provider documents a bound; a batch is usually listed within seconds of its submission.
"""

OUTAGE_SECONDS = 3600.0
"""How long a provider may give no usable reply before the run ends; the batch continues there."""

INITIAL_RESUBMIT_BACKOFF, MAX_RESUBMIT_BACKOFF = 30.0, 1800.0
"""Seconds before a batch that was not accepted is resubmitted, doubled each time, and the most."""


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
        self._price, self._log = price, BatchLog(store)
        self._protocol = BATCH_PROTOCOLS[config.provider](connection)
        self._max_requests = min(config.batch_requests, self._protocol.max_requests)
        self._open: dict[str, Batch] = {}  # by name
        # Keys of the requests in open batches, not read from the log: while it is written, a
        # request must not be queued twice.
        self._in_batches: set[str] = set()
        self._futures: dict[str, asyncio.Future[ChatAnswer]] = {}  # answers awaited, by key
        self._pending: collections.deque[PendingRequest] = collections.deque()
        self._pending_bytes = 0
        self._changed = asyncio.Event()
        self._last_added = 0.0
        self._submit_after = 0.0  # monotonic time; the last batch was not accepted
        self._not_accepted = 0  # batches in a row
        self._reported_unknown: set[str] = set()  # names of batches
        self._busy = asyncio.Lock()  # held while a batch is submitted or stored
        self._tasks: set[asyncio.Task] = set()
        self._abandoned: FatalProviderError | None = None  # why a batch is no longer polled
        self._broken: BaseException | None = None  # a full disk, or a bug

    async def start(self) -> None:
        """Resumes the batches of earlier runs: those that have ended are stored at once.

        Raises:
          FatalProviderError: the status of such a batch cannot be read.
        """
        for batch in self._log.open():
            server = same_server(batch.base_url)
            if (batch.provider, server) != (
                self.config.provider,
                same_server(self.config.base_url),
            ):
                self.budget.set_aside(batch.usd, batch.tokens)
                self.report(f"{batch} is left open: this run uses another provider")
                continue
            self.budget.hold(batch.usd, batch.tokens)
            self._open[batch.name] = batch
            self._in_batches.update(self._log.keys(batch))
            self.report(f"{batch} was left open by an earlier run")
            try:
                finished = await self._check(batch)
            except RetryableError:
                finished = False
            if not finished:
                self._run(self._poll(batch))
        self._not_accepted, self._submit_after = 0, 0.0  # of this run
        self._run(self._submit_pending())

    async def close(self) -> None:
        """Stops waiting; a submission or the storing of results in progress is completed."""
        self.stop("the run has ended")
        async with self._busy:
            for task in self._tasks:
                task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._broken:
            raise self._broken

    def stop(self, reason: str) -> None:
        """Submits nothing more; whoever awaits an answer gets the reason instead."""
        self._drop_pending()
        for key in list(self._futures):
            self._fail(key, FatalProviderError(reason))

    def __contains__(self, key: str) -> bool:
        """Whether a request is in a batch at the provider."""
        return key in self._in_batches

    def describe_open(self) -> str:
        """What remains at the provider, as a sentence; "" for nothing."""
        if not self._open:
            return ""
        requests = sum(batch.requests for batch in self._open.values())
        return (
            f"batches continue at {self.config.provider} ({len(self._open)} with {requests:,} "
            "requests); the next run collects their results"
        )

    async def ask(self, key: str, body: Mapping[str, Any]) -> ChatAnswer:
        """The stored answer from the batch that already has the request, or from a new one.

        Raises:
          RetryableError, RejectedRequestError, FatalProviderError: why there is none.
          BudgetReachedError: the request does not fit, and no batch is open.
        """
        if self._broken:
            raise self._broken
        if self._abandoned and key in self._in_batches:
            raise copy.copy(self._abandoned)
        future = self._futures[key] = asyncio.get_running_loop().create_future()
        if key not in self._in_batches:
            self._enqueue(key, json.dumps(body, ensure_ascii=False))
        return await future

    def _enqueue(self, key: str, body: str) -> None:
        size = len(body.encode()) + self._protocol.line_bytes
        most = prices.most(key, self.config.model, self._price, json.loads(body))
        request = PendingRequest(key, body, size, most.usd or 0.0, most.tokens)
        self._pending.append(request)
        self._pending_bytes += request.size
        self._last_added = time.monotonic()
        self._changed.set()

    def _drop_pending(self) -> list[str]:
        """The keys of the requests that are no longer sent."""
        keys = [request.key for request in self._pending]
        self._pending.clear()
        self._pending_bytes = 0
        return keys

    # Submitting.

    async def _submit_pending(self) -> None:
        while True:
            await self._changed.wait()
            self._changed.clear()
            if not self._pending:
                continue
            while (seconds := self._seconds_to_wait()) > 0:
                # Not wait_for, which could swallow a cancellation before Python 3.12.
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(seconds):
                        await self._changed.wait()
                self._changed.clear()
            if requests := self._take_pending():
                await self._submit(requests)
                self._changed.set()  # there may be more
            elif not self._open:
                for key in self._drop_pending():
                    self._fail(key, BudgetReachedError())

    def _seconds_to_wait(self) -> float:
        full = len(self._pending) >= self._max_requests
        full = full or self._pending_bytes >= self._protocol.max_bytes
        quiet = 0.0 if full else self._last_added + QUIET_SECONDS
        return max(quiet, self._submit_after) - time.monotonic()

    def _take_pending(self) -> list[PendingRequest]:
        """As many pending requests as fit into one batch and the budget, which is reserved."""
        taken: list[PendingRequest] = []
        total = 0
        while self._pending and len(taken) < self._max_requests:
            request = self._pending[0]
            total += request.size
            if taken and total > self._protocol.max_bytes:
                break
            if not self.budget.try_reserve(request.usd, request.tokens):
                break
            taken.append(self._pending.popleft())
            self._pending_bytes -= request.size
        return taken

    async def _submit(self, requests: list[PendingRequest]) -> None:
        batch = Batch.new(self.config, self._price, requests)
        self._open[batch.name] = batch
        self._in_batches.update(request.key for request in requests)
        async with self._busy:
            await self._log.record(batch, requests)
            requests.clear()  # the submission reads them from disk
            try:
                id = await self._protocol.submit(batch, self._log.requests(batch))
                await self._log.record_id(batch, id)
                self.report(f"{batch} submitted; it may take up to 24 hours")
            except NotSubmittedError as error:
                return await self._requeue(batch, error)
            except RetryableError as error:
                self.report(f"{batch}: no reply to the submission ({error}); searching for it")
            except (RejectedRequestError, FatalProviderError) as error:
                failure = FatalProviderError(f"{error} (batch submission; try batch=False)")
                return await self._finish(batch, "not accepted", {}, failure)
        self._run(self._poll(batch))

    async def _requeue(self, batch: Batch, reason: NotSubmittedError) -> None:
        """Queues the awaited requests of a batch that is certainly not at the provider again."""
        other_batches_fill_the_queue = reason.queue_full and len(self._open) > 1
        self._not_accepted += not other_batches_fill_the_queue
        if self._not_accepted >= self.config.attempts:
            failure = f"no batch was accepted in {self._not_accepted} attempts: {reason}"
            return await self._finish(batch, "not sent", {}, FatalProviderError(failure))
        self.report(f"{batch} was not accepted ({reason}); its requests will be resubmitted")
        requests = list(self._log.requests(batch))
        await self._close(batch, "not sent")
        seconds = MAX_RESUBMIT_BACKOFF
        if not other_batches_fill_the_queue:
            seconds = min(seconds, INITIAL_RESUBMIT_BACKOFF * 2 ** (self._not_accepted - 1))
        self._submit_after = time.monotonic() + max(seconds, reason.retry_after or 0.0)
        for key, body in requests:
            self._in_batches.discard(key)
            if key in self._futures:
                self._enqueue(key, body)

    # Polling.

    async def _poll(self, batch: Batch) -> None:
        """Checks a batch until it is finished, or for an hour without a usable reply."""
        last_reply = time.monotonic()
        while True:
            await asyncio.sleep(self.config.poll_seconds)
            try:
                if await self._check(batch):
                    return
                last_reply = time.monotonic()
            except RetryableError as error:
                if time.monotonic() - last_reply > OUTAGE_SECONDS:
                    failure = FatalProviderError(f"{batch} cannot be read: {error}")
                    return self._abandon(batch, failure)
            except FatalProviderError as error:
                return self._abandon(batch, error)

    async def _check(self, batch: Batch) -> bool:
        """Handles the current status of a batch; returns whether it is finished now."""
        if batch.id is None and not await self._locate(batch):
            return batch.name not in self._open
        try:
            state = await self._protocol.state(batch)
        except NotFoundError as error:
            raise FatalProviderError(
                f"{batch} does not exist ({error}); use the API key it was submitted with or, if "
                f"it was deleted, discard it: {self._log.discard_command(batch)}"
            ) from None
        if not state.ended:
            return False
        if isinstance(state.failure, NotSubmittedError):
            await self._requeue(batch, state.failure)
        elif state.failure:
            await self._finish(batch, "failed", {}, state.failure)
        elif state.results_deleted:
            await self._write_off(batch)
        else:
            async with self._busy:
                await self._collect(batch, state)
        return True

    async def _locate(self, batch: Batch) -> bool:
        """Searches for a batch whose submission got no reply, until it can no longer appear."""
        try:
            id = await self._protocol.find(batch, self._log.ids())
        except SubmissionUnknownError as error:
            if batch.name not in self._reported_unknown:
                self._reported_unknown.add(batch.name)
                self.report(f"{batch}: its submission got no reply; {error}")
            return False
        if id is not None:
            await self._log.record_id(batch, id)
            self.report(f"{batch} was found")
        elif time.time() - batch.sent >= SETTLE_SECONDS:
            await self._requeue(batch, NotSubmittedError("it was never received"))
        return id is not None

    # Storing results.

    async def _collect(self, batch: Batch, state: BatchState) -> None:
        try:
            async with contextlib.aclosing(self._protocol.results(state)) as results:
                failures = await self._log.store_results(batch, state, results, self._deliver)
        except NotFoundError:
            return await self._write_off(batch)
        missing = RetryableError("the results of its batch do not include it")
        await self._finish(batch, "collected", failures, missing)
        self._not_accepted, self._submit_after = 0, 0.0  # there is room now
        self._changed.set()

    def _deliver(self, charge: Charge, answer: ChatAnswer) -> None:
        self.budget.charge(charge)
        self.counts["answered"] += charge.is_answer
        self.counts["no usage reported"] += not answer.usage_reported
        if not charge.is_answer:
            self._in_batches.discard(charge.key)
            failure = RetryableError(UNUSABLE[charge.kind], unusable=charge.kind)
            return self._fail(charge.key, failure)
        future = self._futures.pop(charge.key, None)
        if future and not future.done():
            future.set_result(answer)

    async def _write_off(self, batch: Batch) -> None:
        """The provider has deleted the results: they cost at most what was reserved."""
        share = len(self._log.keys(batch)) / batch.requests
        usd, tokens = batch.usd * share, round(batch.tokens * share)
        lost = Charge(batch.name, batch.model, "lost", tokens, 0, usd if batch.price else None)
        self.budget.charge(lost)
        self.report(f"{batch}: its results were deleted; counted at their maximum cost")
        deleted = RetryableError("the results of its batch were deleted")
        await self._finish(batch, "lost", {}, deleted, lost)

    # Finishing.

    async def _finish(
        self,
        batch: Batch,
        state: str,
        failures: Mapping[str, Exception],
        default: Exception,
        lost: Charge | None = None,
    ) -> None:
        """Closes a batch; `default` is the failure of requests with neither result nor failure."""
        keys = {*failures, *self._log.keys(batch)}
        await self._close(batch, state, lost)
        self._in_batches -= keys
        for key in keys:
            self._fail(key, failures.get(key, default))
        self.report(f"{batch}: {state}, {len(keys):,} without an answer")

    async def _close(self, batch: Batch, state: str, lost: Charge | None = None) -> None:
        await self._log.close(batch, state, lost)
        del self._open[batch.name]
        await self.budget.release(batch.usd, batch.tokens)
        self._changed.set()

    def _abandon(self, batch: Batch, reason: FatalProviderError) -> None:
        """Leaves a batch open for a later run."""
        self._abandoned = reason
        for key in self._log.keys(batch):
            self._fail(key, reason)

    def _fail(self, key: str, reason: BaseException) -> None:
        future = self._futures.pop(key, None)
        if future and not future.done():
            # A copy for each: a traceback grows with each raise.
            future.set_exception(copy.copy(reason))

    def _run(self, coroutine: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._task_done)

    def _task_done(self, task: asyncio.Task) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()):
            self._broken = self._broken or error
            for key in list(self._futures):
                self._fail(key, error)
