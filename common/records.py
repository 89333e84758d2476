"""Tasks and Examples: the records between the stages of data generation, as JSONL."""

import dataclasses
import re
from pathlib import Path
from typing import Any

from common import jsonl
from common.jsonl import Record

MAX_DIFFICULTY = 5


@dataclasses.dataclass(frozen=True)
class Task:
    """One instruction without its answer."""

    id: str
    instruction: str
    input: str  # "" when there is none
    type: str = ""  # "" where it is not known, as the next three
    topic: str = ""
    view: str = ""
    difficulty: int | None = None  # 1 to 5
    source: Any = None  # teacher model, request, seeds, prompt version; or a plain text

    @property
    def text(self) -> str:
        """Instruction and input as one text, the way a person would send them."""
        return f"{self.instruction}\n\n{self.input}" if self.input else self.instruction

    def record(self) -> Record:
        return dataclasses.asdict(self)


def difficulty(text: object) -> int | None:
    """1 to 5 as teachers write it; None where it says no such number.

    >>> [difficulty(x) for x in (3, "4", "3/5", "Level 2", "**5**", "7", "hard", None)]
    [3, 4, 3, 2, 5, None, None, None]
    """
    if text is None or isinstance(text, bool):
        return None
    number = re.search(r"\d+", str(text))
    value = int(number.group()[:9]) if number else 0  # int() refuses 5,000 digits
    return value if 1 <= value <= MAX_DIFFICULTY else None


def read_records(path: str | Path, *, answered: bool = False) -> list[Record]:
    """All records of a file with every field they have; texts are checked, `id` is filled in.

    A record without `id`, or with an empty one, gets its position, from 0. `input` is "" where it
    says "no input".

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: a record is malformed (file, line and field are named) or there is none at all.
    """
    records = []
    for where, record in jsonl.read(path):
        needed = ("instruction", "output") if answered else ("instruction",)
        for field in needed:
            if field not in record:
                raise ValueError(f"{where}: field {field!r} is missing")
        texts = {name: jsonl.text(where, record, name) for name in ("input", *needed)}
        if not (texts["instruction"].strip() or texts["input"].strip()):
            raise ValueError(f"{where}: field 'instruction' is empty")
        name = jsonl.identity(where, record) or str(len(records))
        records.append({"id": name} | record | {"id": name} | texts)
        for field, value in record.items():
            try:  # whatever a record holds is written again, after answers are paid for
                jsonl.line({field: value}).encode()
            except UnicodeEncodeError:
                raise ValueError(
                    f"{where}: field {field!r} is not valid Unicode: half a surrogate"
                ) from None
    if not records:
        raise ValueError(f"{path}: holds no record")
    return records


def read_tasks(path: str | Path) -> list[Task]:
    """The tasks of a file: what `read_records` gives, less the fields that a Task has not.

    Raises:
      FileNotFoundError, ValueError: as `read_records`.
    """
    tasks = []
    for record in read_records(path):
        labels = {name: str(record.get(name) or "") for name in ("type", "topic", "view")}
        tasks.append(
            Task(
                id=record["id"],
                instruction=record["instruction"],
                input=record["input"],
                difficulty=difficulty(record.get("difficulty")),
                source=record.get("source"),
                **labels,
            )
        )
    return tasks
