"""Has enough tasks written, and keeps of each reply, in the order of the requests, what is good."""

import collections
import dataclasses
import math
from collections.abc import Iterator, Sequence
from typing import Any

from common.messages import format_counts
from common.records import Task, read_tasks
from datagen.chat.client import Failure
from datagen.chat.config import ChatRequest
from datagen.chat.store import ChatAnswer
from datagen.near_duplicates import NearDuplicates
from datagen.writing import parser
from datagen.writing.config import TasksConfig
from datagen.writing.filters import Filters
from datagen.writing.parser import ParsedTask
from datagen.writing.requests import Teacher

PARSERS = {"text": parser.parse, "json": parser.parse_json}

FIRST_YIELD = 0.7
"""Share of the asked-for tasks that are kept, in estimates before any reply has come."""

SURE_AFTER = 10
"""Replies that weigh as much as that first guess."""

FRUITLESS = 40
"""Replies in a row without a task that is kept: more of them would only cost money."""


class Pool:
    """The tasks kept so far, and what was rejected; deterministic in the order of `add`."""

    def __init__(self, config: TasksConfig, filters: Filters, seeds: Sequence[Task]):
        self.kept: list[Task] = []
        self.rejected: list[dict[str, Any]] = []
        self._filters = filters
        self._near = None
        if config.threshold:
            self._near = NearDuplicates(config.threshold, config.tokenizer)
            known = [(task, f"seed {task.id}") for task in seeds]
            for path in filter(None, map(str.strip, config.against.split(","))):
                known += [(task, f"{path} {task.id}") for task in read_tasks(path)]
            self._near.learn(task.instruction for task, _ in known)
            for task, name in known:
                self._near.add(task.instruction, name)

    def add(self, task: Task) -> None:
        reason, nearest = self._filters.reason(task), {}
        if not reason and self._near:
            if match := self._near.nearest(task.instruction):
                reason, nearest = "near-duplicate", {"nearest": match._asdict()}
            else:
                self._near.add(task.instruction, task.id)
        if reason:
            self.rejected.append({"reason": reason} | task.record() | nearest)
        else:
            self.kept.append(task)

    def reject(self, reason: str, text: str, source: dict[str, Any]) -> None:
        self.rejected.append({"reason": reason, "text": text, "source": source})

    def reasons(self) -> dict[str, int]:
        counted = collections.Counter(record["reason"] for record in self.rejected)
        return dict(counted.most_common())


class Writing:
    """Makes requests as long as tasks are missing, and reads the replies in order."""

    def __init__(self, config: TasksConfig, teacher: Teacher, pool: Pool, *, gap: int = 0):
        """
        Args:
          gap: offline, the most replies in a row that an earlier run may have left out of the
            store with others behind them; 0: not offline.
        """
        self.config = config
        self.teacher = teacher
        self.pool = pool
        self.offline = gap > 0
        self.patience = max(gap, FRUITLESS)
        self.missing = 0  # replies that are not stored, when offline
        self.sent = 0
        self.read = 0  # replies, the first ones without a gap
        self._examples: dict[int, list[Task]] = {}  # of requests that are not read yet
        self._arrived: dict[int, ChatAnswer | Failure] = {}
        self._kept_after: list[int] = []  # tasks kept once reply i was read
        self._last_useful = 0
        self._ended = False
        self.surplus = 0  # tasks of a reply after the last one that was missing

    @property
    def is_done(self) -> bool:
        return self._ended or len(self.pool.kept) >= self.config.num_tasks

    def expected(self) -> int:
        """Requests that the run should come to, as it looks now."""
        missing = (
            self.config.num_tasks - len(self.pool.kept) - (self.sent - self.read) * self._yield()
        )
        return self.sent + max(0, math.ceil(missing / self._yield()))

    @property
    def unused(self) -> int:
        """Replies that came when there were tasks enough."""
        return len(self._arrived)

    def requests(self) -> Iterator[tuple[int, ChatRequest] | None]:
        while not self.is_done:
            if self.sent > self.read and self._may_be_enough():
                yield None
                continue
            examples = self.teacher.examples(self.sent, self._machine_tasks())
            self._examples[self.sent] = examples
            self.sent += 1
            yield self.sent - 1, self.teacher.request(examples)

    def _may_be_enough(self) -> bool:
        """Whether what is on its way should do, or has to be read first."""
        waits = self.config.machine_tasks_per_request and (
            self.sent - self.read >= self.config.machine_lag
        )
        return waits or self.expected() <= self.sent

    def _yield(self) -> float:
        """Tasks that a reply is expected to add."""
        guessed = SURE_AFTER * self.config.tasks_per_request * FIRST_YIELD
        return (len(self.pool.kept) + guessed) / (self.read + SURE_AFTER)

    def _machine_tasks(self) -> list[Task]:
        """What the next request may show of the teacher's own: a lag behind, so that it does not
        depend on how many replies have come by now."""
        if not self.config.machine_tasks_per_request or self.sent < self.config.machine_lag:
            return []
        return self.pool.kept[: self._kept_after[self.sent - self.config.machine_lag]]

    def take(self, index: int, outcome: ChatAnswer | Failure) -> None:
        """Takes a reply in; those that now stand in order are read.

        Raises:
          ValueError: many replies in a row held nothing of use.
        """
        self._arrived[index] = outcome
        while not self.is_done and self.read in self._arrived:
            kept = len(self.pool.kept)
            self._read(self.read, self._arrived.pop(self.read))
            self._kept_after.append(len(self.pool.kept))
            self.read += 1
            if len(self.pool.kept) > kept:
                self._last_useful = self.read
            elif self.read - self._last_useful < self.patience:
                continue
            elif self.offline:
                self._ended = True
            else:
                raise ValueError(
                    f"the last {FRUITLESS} replies gave no task to keep; rejected so far: "
                    f"{format_counts(self.pool.reasons())}. Change the prompt, the filters or the "
                    "model"
                )

    def _read(self, index: int, outcome: ChatAnswer | Failure) -> None:
        seeds = [task.id for task in self._examples.pop(index)]
        source = {"request": index, "seeds": seeds, "prompt_version": self.teacher.prompt.version}
        if isinstance(outcome, Failure) and self.offline:
            self.missing += 1
            return None
        if isinstance(outcome, Failure):
            return self.pool.reject("no reply", outcome.reason, source)
        source |= {"model": outcome.model, "reply": outcome.id}
        if outcome.finish_reason not in ("stop", "length"):
            return self.pool.reject(
                f"the reply ends with {outcome.finish_reason}", outcome.text, source
            )
        cut = outcome.finish_reason == "length"
        parsed, rejected = PARSERS[self.teacher.reply](outcome.text, cut=cut)
        for position, task in enumerate(parsed):
            if self.is_done:
                self.surplus += 1
                continue
            self.pool.add(_task(task, f"task-{index}-{position}", source))
        for piece in rejected:
            self.pool.reject(piece.reason, piece.text, source)
        return None


def _task(parsed: ParsedTask, name: str, source: dict[str, Any]) -> Task:
    return Task(id=name, source=source, **dataclasses.asdict(parsed))
