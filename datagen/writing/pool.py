"""Collects tasks until there are enough, filtering replies in the order of their requests."""

import collections
import dataclasses
import math
from collections.abc import Iterator, Sequence
from typing import Any

from common.messages import format_counts, log
from common.records import Task, read_tasks
from common.text.near_duplicates import NearDuplicates
from datagen.chat.config import ChatRequest
from datagen.chat.errors import Failure
from datagen.chat.replies import ChatAnswer
from datagen.writing import parser
from datagen.writing.filters import Filters
from datagen.writing.requests import TasksConfig, Teacher

REPLY_PARSERS = {"text": parser.parse, "json": parser.parse_json}

INITIAL_YIELD = 0.7
"""Share of the requested tasks that is kept, assumed until replies have arrived."""

INITIAL_YIELD_WEIGHT = 10
"""Number of replies that this assumption counts for while a run decides how many to ask for."""

FIRST_REPLIES = 10
"""Replies from the first on without a task to keep, after which one of them is shown."""

MAX_USELESS_REPLIES = 40
"""Replies in a row without a task to keep, after which the run ends: more would only cost money."""


class Pool:
    """Kept tasks and rejected pieces; both depend on the order of `add` only."""

    def __init__(self, config: TasksConfig, filters: Filters, seeds: Sequence[Task]):
        self.kept: list[Task] = []
        self.rejected: list[dict[str, Any]] = []
        self._filters = filters
        self._index = None
        if config.threshold:
            self._index = NearDuplicates(config.threshold, config.tokenizer)
            known = [(task, f"seed {task.id}") for task in seeds]
            for path in filter(None, map(str.strip, config.against.split(","))):
                known += [(task, f"{path} {task.id}") for task in read_tasks(path)]
            self._index.learn(task.instruction for task, _ in known)
            for task, name in known:
                self._index.add(task.instruction, name)

    def add(self, task: Task) -> None:
        """Keeps the task, or rejects it by a filter or as a near-duplicate."""
        reason = self._filters.reason(task)
        match = self._index.nearest(task.instruction) if self._index and not reason else None
        if match:
            nearest = {"nearest": match._asdict()}
            self.rejected.append({"reason": "near-duplicate"} | task.record() | nearest)
        elif reason:
            self.rejected.append({"reason": reason} | task.record())
        else:
            self.kept.append(task)
            if self._index:
                self._index.add(task.instruction, task.id)

    def reject(self, reason: str, text: str, source: dict[str, Any]) -> None:
        """Records a piece of a reply that is no task."""
        self.rejected.append({"reason": reason, "text": text, "source": source})

    def reasons(self) -> dict[str, int]:
        """Rejections by reason, most frequent first."""
        counted = collections.Counter(record["reason"] for record in self.rejected)
        return dict(counted.most_common())


class TaskCollector:
    """Issues requests while tasks are missing, and processes the replies in order.

    Replies arrive in any order, but a reply waits until all earlier ones have been read:

        arrived   0  2  3  1
        read      0  .  .  1, 2, 3

    Args:
      gap: offline, the longest run of replies that may be missing from the store although later
        ones are stored; 0: not offline.
    """

    def __init__(self, teacher: Teacher, pool: Pool, *, gap: int = 0):
        self.config = teacher.config
        self.teacher = teacher
        self.pool = pool
        self.offline = gap > 0
        self.max_requests = self.config.max_requests or math.inf
        self.max_useless = max(gap, MAX_USELESS_REPLIES)
        self.missing = 0  # offline: replies that are not stored
        self.failures: list[Failure] = []  # of requests without a reply
        self.num_sent = 0
        self.num_read = 0  # replies read so far, without gaps from the first on
        self.surplus = 0  # tasks left over in the last reply that was needed
        self._examples: dict[int, list[Task]] = {}  # of the requests not read yet
        self._arrived: dict[int, ChatAnswer | Failure] = {}  # but not read yet
        self._kept_after: list[int] = []  # number of tasks kept once reply i was read
        self._last_useful = 0
        self._ended = False

    @property
    def is_done(self) -> bool:
        """Whether no more requests are needed."""
        enough = len(self.pool.kept) >= self.config.num_tasks
        return self._ended or enough or self.num_read >= self.max_requests

    @property
    def unused(self) -> int:
        """Replies that arrived when there were enough tasks."""
        return len(self._arrived)

    def expected(self) -> int:
        """Estimated total of requests."""
        in_flight = self.num_sent - self.num_read
        tasks_per_reply = self._yield(self.num_read, INITIAL_YIELD_WEIGHT)
        missing = self.config.num_tasks - len(self.pool.kept) - in_flight * tasks_per_reply
        expected = self.num_sent + max(0, math.ceil(missing / tasks_per_reply))
        return int(min(expected, self.max_requests))

    def forecast(self) -> int:
        """How many more requests the tasks that are still missing take, by the replies so far."""
        replies = self.num_read - self.missing
        tasks_per_reply = self._yield(replies, weight=1)
        missing = math.ceil((self.config.num_tasks - len(self.pool.kept)) / tasks_per_reply)
        return max(0, int(min(missing, self.max_requests - replies)))

    def requests(self) -> Iterator[tuple[int, ChatRequest] | None]:
        """(index, request) of each request; None: the next one depends on replies in flight."""
        while not self.is_done and self.num_sent < self.max_requests:
            if self.num_sent > self.num_read and self._must_wait():
                yield None
                continue
            examples = self.teacher.examples(self.num_sent, self._machine_tasks())
            self._examples[self.num_sent] = examples
            self.num_sent += 1
            yield self.num_sent - 1, self.teacher.request(examples)

    def _must_wait(self) -> bool:
        """Whether the requests in flight may suffice, or the next one needs their tasks."""
        needs_tasks = self.config.machine_tasks_per_request and (
            self.num_sent - self.num_read >= self.config.machine_lag
        )
        return needs_tasks or self.expected() <= self.num_sent

    def _yield(self, replies: int, weight: int) -> float:
        """Expected tasks kept per reply, after so many; the assumption counts for `weight` more."""
        assumed = weight * self.config.tasks_per_request * INITIAL_YIELD
        return (len(self.pool.kept) + assumed) / (replies + weight)

    def _machine_tasks(self) -> list[Task]:
        """The kept tasks that the next request may show.

        Only those of replies at least `machine_lag` requests ago, so that the choice does not
        depend on how many replies have arrived by now.
        """
        if not self.config.machine_tasks_per_request or self.num_sent < self.config.machine_lag:
            return []
        return self.pool.kept[: self._kept_after[self.num_sent - self.config.machine_lag]]

    def add(self, index: int, outcome: ChatAnswer | Failure) -> None:
        """Takes the outcome of request `index` and reads all replies that are next in order.

        Raises:
          ValueError: `MAX_USELESS_REPLIES` in a row contained no task to keep.
        """
        self._arrived[index] = outcome
        while not self.is_done and self.num_read in self._arrived:
            num_kept = len(self.pool.kept)
            self._read(self.num_read, self._arrived.pop(self.num_read))
            self._kept_after.append(len(self.pool.kept))
            self.num_read += 1
            if len(self.pool.kept) > num_kept:
                self._last_useful = self.num_read
            elif self.num_read - self._last_useful < self.max_useless:
                if self.num_read == FIRST_REPLIES and not (self.pool.kept or self.missing):
                    first = f"the first {FIRST_REPLIES} replies contained no task to keep"
                    log(f"{first}: {self._why()}")
            elif self.offline:
                self._ended = True
            else:
                raise ValueError(
                    f"the last {MAX_USELESS_REPLIES} replies contained no task to keep; "
                    f"{self._why()}; change the prompt, the filters or the model"
                )

    def _why(self) -> str:
        """Rejections by reason, and the beginning of the last reply without a task."""
        counts = f"rejected so far: {format_counts(self.pool.reasons())}"
        texts = [record["text"] for record in self.pool.rejected if record.get("text")]
        return f"{counts}; one of them begins: {texts[-1][:200]!r}" if texts else counts

    def _read(self, index: int, outcome: ChatAnswer | Failure) -> None:
        seeds = [seed.id for seed in self._examples.pop(index)]
        source = {"request": index, "seeds": seeds, "prompt_version": self.teacher.prompt.version}
        if isinstance(outcome, Failure):
            if self.offline:
                self.missing += 1
            else:
                self.failures.append(outcome)
                self.pool.reject("no reply", outcome.reason, source)
            return
        source |= {"model": outcome.model, "reply": outcome.id}
        finish = outcome.finish_reason
        if finish not in ("stop", "length"):
            self.pool.reject(f"the reply ends with {finish}", outcome.text, source)
            return
        tasks, rejected = REPLY_PARSERS[self.config.reply](outcome.text, cut=finish == "length")
        for position, task in enumerate(tasks):
            if self.is_done:
                self.surplus += 1
                continue
            id_ = f"task-{index}-{position}"
            self.pool.add(dataclasses.replace(task, id=id_, source=source))
        for piece in rejected:
            self.pool.reject(piece.reason, piece.text, source)
