"""The thread that owns the engine, and the queue in front of it.

Only this thread calls the engine. Requests and cancellations reach it through an inbox; progress
goes back to the event loop, into a queue of each answer's own, so that nobody waits for a reader.
"""

import asyncio
import itertools
import math
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace

from alpacare_jax.inference.engine import Engine
from alpacare_jax.inference.requests import Progress, Request
from alpacare_jax.serving.errors import ApiError
from common import exits

MAX_RETRY_SECONDS = 60

FAILED = "the engine has failed; the server stops, and must be started again"


class Job:
    """The answers to one call; what `updates` yields is (number of the answer, its progress)."""

    def __init__(self, indices: Sequence[int]):
        self.indices = indices  # of the engine's requests, by number
        self.updates: asyncio.Queue[tuple[int, Progress] | ApiError] = asyncio.Queue()
        self.submitted = time.monotonic()
        self.has_begun = False  # whether any token has arrived


class EngineThread:
    """Submits requests to an engine from an event loop, in which it is made and used.

    Args:
      capacity: answers under way and waiting at the same time.
      observe: called in the event loop with each job and its progress.
    """

    def __init__(self, engine: Engine, capacity: int, observe: Callable[[Job, Progress], None]):
        self._engine, self.capacity, self._observe = engine, capacity, observe
        self._live: dict[int, tuple[Job, int]] = {}
        self._indices = itertools.count()
        self._inbox: list[Callable[[], object]] = []
        self._wake, self._closing = threading.Condition(), False
        self._loop = asyncio.get_running_loop()
        self._seconds = 1.0  # of an answer, averaged
        self.failed, self.failure = asyncio.Event(), ""  # of the engine, and why
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._thread.start()

    @property
    def running(self) -> int:
        """Answers that the engine works on."""
        return min(len(self._live), self._engine.slots)

    @property
    def waiting(self) -> int:
        """Answers that wait for a slot."""
        return len(self._live) - self.running

    def submit(self, requests: Sequence[Request]) -> Job:
        """Queues requests, all of them or none; each gets an index of its own.

        Raises:
          ApiError: the queue has no room, or the engine has failed.
        """
        if self.failed.is_set():
            raise ApiError(503, FAILED)
        self.require_possible(len(requests))
        if len(self._live) + len(requests) > self.capacity:
            rounds = 1 + self.waiting / self._engine.slots
            seconds = min(max(1, math.ceil(self._seconds * rounds)), MAX_RETRY_SECONDS)
            raise ApiError(
                429,
                f"the server is busy: {len(self._live):,} answers are under way or waiting; "
                f"try again in {seconds} s",
                code="queue_full",
                headers={"retry-after": str(seconds)},
            )
        numbered = [replace(request, index=next(self._indices)) for request in requests]
        job = Job([request.index for request in numbered])
        self._live |= {index: (job, number) for number, index in enumerate(job.indices)}
        self._send(lambda: [self._engine.submit(request) for request in numbered])
        return job

    def require_possible(self, answers: int) -> None:
        """Raises ApiError if a call asks for more answers than there is ever room for."""
        if answers > self.capacity:
            raise ApiError(
                400,
                f"a request for {answers:,} answers is more than the server takes at once, "
                f"{self.capacity:,}; send smaller batches",
            )

    def cancel(self, indices: Sequence[int]) -> None:
        """Ends answers that nobody waits for; those that have ended already are no error."""
        if live := [index for index in indices if self._live.pop(index, None)]:
            self._send(lambda: [self._engine.cancel(index) for index in live])

    def close(self) -> None:
        """Ends the thread; answers that are under way are lost."""
        with self._wake:
            self._closing = True
            self._wake.notify()
        self._thread.join()

    def _send(self, action: Callable[[], object]) -> None:
        with self._wake:
            self._inbox.append(action)
            self._wake.notify()

    def _run(self) -> None:
        try:
            while True:
                with self._wake:
                    while not (self._inbox or self._closing or self._engine.busy):
                        self._wake.wait()
                    if self._closing:
                        return
                    actions, self._inbox = self._inbox, []
                for action in actions:
                    action()
                if self._engine.busy and (found := self._engine.step()):
                    self._loop.call_soon_threadsafe(self._deliver, found)
        except Exception as error:  # noqa: BLE001 - whatever it is, clients must not wait for ever
            self._loop.call_soon_threadsafe(self._fail, exits.unexpected(error))

    def _deliver(self, found: Sequence[Progress]) -> None:
        for progress in found:
            if progress.index not in self._live:
                continue  # cancelled meanwhile
            job, number = self._live[progress.index]
            if progress.finish_reason:
                del self._live[progress.index]
                seconds = time.monotonic() - job.submitted
                self._seconds += 0.1 * (seconds - self._seconds)
            self._observe(job, progress)
            job.updates.put_nowait((number, progress))

    def _fail(self, reason: str) -> None:
        for job, _ in self._live.values():
            job.updates.put_nowait(ApiError(500, FAILED))
        self._live.clear()
        self.failure = reason
        self.failed.set()
