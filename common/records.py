"""Tasks and Examples: the records that instruction data consists of, read from JSONL or JSON."""

import dataclasses
import re
from collections.abc import Iterable, Iterator
from pathlib import PurePath
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
    type: str = ""  # "" where unknown, as are the next three
    topic: str = ""
    view: str = ""
    difficulty: int | None = None  # 1 to 5
    source: Any = None  # teacher model, request, seeds, prompt version; or plain text

    @property
    def text(self) -> str:
        """The task as one text; see `join_text`."""
        return join_text(self.instruction, self.input)

    def record(self) -> Record:
        """The task as a JSON object."""
        return dataclasses.asdict(self)


@dataclasses.dataclass(frozen=True)
class Example:
    """One instruction with its answer; `output` is "" where only a prompt is needed."""

    id: str
    instruction: str
    input: str  # "" when there is none
    output: str


def join_text(instruction: str, input: str) -> str:
    """Instruction and input as one text, the way a person would send them.

    >>> join_text("Summarize.", "The note."), join_text("Summarize.", ""), join_text("", "Why?")
    ('Summarize.\\n\\nThe note.', 'Summarize.', 'Why?')
    """
    return "\n\n".join(filter(None, (instruction, input)))


def difficulty(text: object) -> int | None:
    """A difficulty from 1 to 5, read from the spellings that teachers use; None for anything else.

    >>> [difficulty(x) for x in (3, "4", "3/5", "Level 2", "**5**", "7", "hard", None)]
    [3, 4, 3, 2, 5, None, None, None]
    """
    if text is None or isinstance(text, bool):
        return None
    number = re.search(r"\d+", str(text))
    value = int(number.group()[:9]) if number else 0  # int() refuses 5,000 digits
    return value if 1 <= value <= MAX_DIFFICULTY else None


def _read(path: str | PurePath, required: tuple[str, ...]) -> Iterator[tuple[str, Record]]:
    """(location, record) of each record, with checked texts and an `id`."""
    number = -1
    for number, (location, record) in enumerate(jsonl.read(path)):
        for field in required:
            if field not in record:
                raise ValueError(f"{location}: field {field!r} is missing")
        texts = {name: jsonl.text(location, record, name) for name in ("input", *required)}
        if not (texts["instruction"].strip() or texts["input"].strip()):
            raise ValueError(f"{location}: field 'instruction' is empty")
        id_ = jsonl.identity(location, record) or str(number)
        yield location, {"id": id_} | record | {"id": id_} | texts
    if number < 0:
        raise ValueError(f"{path}: contains no records")


def read_records(path: str | PurePath, *, answered: bool = False) -> list[Record]:
    """All records of a file with every field they have.

    A record without an `id`, or with an empty one, gets its position, from 0. `input` is "" where
    it only says "no input".

    Args:
      path: JSONL or a JSON array, gzipped or not.
      answered: whether `output` is required.

    Raises:
      FileNotFoundError: the file does not exist.
      ValueError: a record is malformed (file, line and field are named), or there is none.
    """
    records = []
    for location, record in _read(
        path, ("instruction", "output") if answered else ("instruction",)
    ):
        for field, value in record.items():
            try:  # a record is written again, after its answer has been paid for
                jsonl.line({field: value}).encode()
            except UnicodeEncodeError:
                raise ValueError(
                    f"{location}: field {field!r} is not valid Unicode: half a surrogate pair"
                ) from None
        records.append(record)
    return records


def read_tasks(path: str | PurePath) -> list[Task]:
    """The tasks of a file: `read_records` without the fields that a Task does not have.

    Raises:
      FileNotFoundError, ValueError: as `read_records`.
    """
    return [
        Task(
            id=record["id"],
            instruction=record["instruction"],
            input=record["input"],
            difficulty=difficulty(record.get("difficulty")),
            source=record.get("source"),
            **{name: str(record.get(name) or "") for name in ("type", "topic", "view")},
        )
        for record in read_records(path)
    ]


def read_examples(path: str | PurePath, *, answered: bool = True) -> list[Example]:
    """The examples of a file; with `answered=False` its prompts, whose `output` may be missing.

    Raises:
      FileNotFoundError, ValueError: as `read_records`.
    """
    required = ("instruction", "output") if answered else ("instruction",)
    return [
        Example(
            id=record["id"],
            instruction=record["instruction"],
            input=record["input"],
            output=jsonl.text(location, record, "output"),
        )
        for location, record in _read(path, required)
    ]


def require_unique_ids(source: str | PurePath, ids: Iterable[str], purpose: str) -> None:
    """Checks that no two records of a file share an id.

    Args:
      source: the file, named in the error.
      ids: in the order of the records.
      purpose: what needs the ids, as in "answers are matched by id".

    Raises:
      ValueError: two records share an id; both positions are named.
    """
    first: dict[str, int] = {}
    for position, id_ in enumerate(ids):
        if id_ in first:
            raise ValueError(
                f"{source}: records {first[id_]} and {position} (from 0) share the id {id_!r}; "
                f"{purpose}: give every record a unique id, or none"
            )
        first[id_] = position
