"""Requests to the teacher: the examples it sees, the wording, and the layout of its reply."""

import dataclasses
import json
import random
from collections.abc import Sequence
from typing import Any

from common import sections
from common.records import MAX_DIFFICULTY, Task
from common.text.prompt_file import Prompt
from common.text.rouge import TOKENIZERS
from datagen.chat.config import ChatRequest

LAYOUTS = {
    "text": (
        "Begin every task with a line that holds ### alone. Then write its number and its fields, "
        "each on a new line with its name and a colon, in the order of the examples: Type, Topic, "
        "View, Difficulty, Instruction, Input. Write plain text, without Markdown."
    ),
    "json": (
        "Answer with one JSON object whose field tasks is a list of the tasks, each with the "
        "fields of the examples."
    ),
}
"""Layout of replies: `text` is the paper's and works with every model; `json` requires a model with
structured outputs."""

EMPTY_INPUT = "<noinput>"

TASK_FIELDS = ("type", "topic", "view", "difficulty", "instruction", "input")
"""The fields of a task in requests and replies, in order."""


def _strict_object(properties: dict[str, Any]) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": properties,
        "required": [*properties],
        "additionalProperties": False,
    }


_LEVEL = {"type": "integer", "enum": [*range(1, MAX_DIFFICULTY + 1)]}

REPLY_SCHEMA = _strict_object(
    {
        "tasks": {
            "type": "array",
            "items": _strict_object(
                {name: {"type": "string"} for name in TASK_FIELDS} | {"difficulty": _LEVEL}
            ),
        }
    }
)
"""JSON schema of a `json` reply, within what both providers' strict modes accept."""


@dataclasses.dataclass(frozen=True)
class TasksConfig:
    """What the teacher writes, and what it is shown."""

    num_tasks: int  # to keep
    max_requests: int  # after which a run ends with the tasks that it has; 0: no limit
    seeds: str  # file of seed tasks
    prompt: str  # name in datagen/prompts, or the path of a .txt file
    reply: str  # text or json; json requires a model with structured outputs
    tasks_per_request: int  # asked for in one request
    seeds_per_request: int  # shown as examples in one request
    machine_tasks_per_request: int  # kept tasks also shown as examples, once there are any
    machine_lag: int  # requests before a kept task may be shown; limits the requests in flight
    seed: int  # of the random choice of examples
    threshold: float  # ROUGE-L F above which a task is a near-duplicate; 0: no such filter
    tokenizer: str  # rouge (a to z and digits) or unicode (any script)
    against: str  # comma-separated files, besides the seeds, that no task may be near: test sets

    def __post_init__(self):
        sections.choice("tasks.reply", self.reply, LAYOUTS)
        sections.choice("tasks.tokenizer", self.tokenizer, TOKENIZERS)
        for name in ("num_tasks", "tasks_per_request", "seeds_per_request", "machine_lag"):
            if getattr(self, name) < 1:
                raise ValueError(f"tasks.{name} must be at least 1, not {getattr(self, name)}")
        for name in ("machine_tasks_per_request", "max_requests"):
            if getattr(self, name) < 0:
                raise ValueError(f"tasks.{name} must be at least 0")
        if not 0 <= self.threshold < 1:
            raise ValueError(f"tasks.threshold {self.threshold} must be at least 0 and below 1")


@dataclasses.dataclass(frozen=True)
class Teacher:
    """Builds the requests.

    The examples of request number `index` depend only on the seed, the index and the tasks they are
    drawn from.
    """

    config: TasksConfig
    prompt: Prompt
    seeds: Sequence[Task]

    def examples(self, index: int, machine_tasks: Sequence[Task]) -> list[Task]:
        """A shuffled mix of seeds and, if there are any, tasks that the teacher wrote itself."""
        generator = random.Random(f"{self.config.seed} {index}")
        wanted = self.config.machine_tasks_per_request
        own = generator.sample(machine_tasks, min(len(machine_tasks), wanted))
        seeds = generator.sample(self.seeds, self.config.seeds_per_request + wanted - len(own))
        chosen = [*seeds, *own]
        generator.shuffle(chosen)
        return chosen

    def request(self, examples: Sequence[Task]) -> ChatRequest:
        """The request that shows these examples."""
        system, user = self.prompt.fill(
            number=str(self.config.tasks_per_request),
            layout=LAYOUTS[self.config.reply],
            examples=_as_text(examples) if self.config.reply == "text" else _as_json(examples),
        )
        schema = REPLY_SCHEMA if self.config.reply == "json" else None
        return ChatRequest(system, user, self.prompt.version, schema=schema)


def _fields(task: Task) -> dict[str, str | int]:
    fields = {name: getattr(task, name) for name in TASK_FIELDS}
    return fields | {"input": task.input or EMPTY_INPUT}


def _as_text(tasks: Sequence[Task]) -> str:
    """
    >>> print(_as_text([Task("1", "Define sepsis.", "", "Open Q&A", "Infection", "Nurse", 2)]))
    ###
    1. Type: Open Q&A
    Topic: Infection
    View: Nurse
    Difficulty: 2
    Instruction: Define sepsis.
    Input: <noinput>
    """
    shown = []
    for number, task in enumerate(tasks, start=1):
        lines = [f"{name.capitalize()}: {value}" for name, value in _fields(task).items()]
        shown.append(f"###\n{number}. " + "\n".join(lines))
    return "\n".join(shown)


def _as_json(tasks: Sequence[Task]) -> str:
    return json.dumps({"tasks": [*map(_fields, tasks)]}, indent=1, ensure_ascii=False)
