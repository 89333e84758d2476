"""Requests to the teacher: the examples it sees, the wording, and the layout of its reply."""

import dataclasses
import json
import random
from collections.abc import Sequence
from typing import Any

from common.prompt_file import Prompt
from common.records import MAX_DIFFICULTY, Task
from datagen.chat.config import ChatRequest
from datagen.writing.config import LAYOUTS, TasksConfig

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
