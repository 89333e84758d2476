"""Tasks and Examples: the records that instruction data consists of, and the files of them."""

import collections
import dataclasses
import json
import re
import shlex
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import PurePath
from typing import Any, Self

from etils import epath

from common import data_file, jsonl, messages
from common.jsonl import Record
from common.text import conversations
from common.text.conversations import Turn

MAX_DIFFICULTY = 5

MISSING_VALUES = frozenset({"nan", "<na>", "null"})
"""Texts that programs write where a value is missing. They are kept, and counted."""

OTHER_NAMES = {
    "instruction": ("question", "prompt", "query", "problem"),
    "input": ("context",),
    "output": ("answer", "response", "completion", "target"),
}
"""Our fields -> what other data sets call them."""


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

    @classmethod
    def from_record(cls, record: Record) -> Self:
        """The task of a record of `read_records`, without fields that a Task does not have."""
        return cls(
            id=record["id"],
            instruction=record["instruction"],
            input=record["input"],
            difficulty=difficulty(record.get("difficulty")),
            source=record.get("source"),
            **{name: str(record.get(name) or "") for name in ("type", "topic", "view")},
        )

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
    history: tuple[Turn, ...] = ()  # of a conversation, what precedes this question
    further: tuple[str, ...] = ()  # questions to ask one after the other, after the answer

    def following(self, output: str) -> "Example":
        """The conversation with this answer, at the first of its further questions."""
        question = Turn("user", join_text(self.instruction, self.input))
        history = (*self.history, question, Turn("assistant", output))
        return Example(self.id, self.further[0], "", "", history, self.further[1:])


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
    >>> [difficulty(x) for x in ("3 (on a scale of 1-5)", "2 out of 5", "2-3", "4/10", "2.5")]
    [3, 2, None, None, None]
    """
    if text is None or isinstance(text, bool):
        return None
    without_scale = re.sub(rf"\b1 ?(?:-|–|to) ?{MAX_DIFFICULTY}\b", "", str(text))
    named = re.sub(rf"(?:/|\bout of|\bof) ?{MAX_DIFFICULTY}\b", "", without_scale)
    numbers = set(re.findall(r"\d+", named))
    value = int(numbers.pop()[:9]) if len(numbers) == 1 else 0  # int() refuses 5,000 digits
    return value if 1 <= value <= MAX_DIFFICULTY else None


def _read(
    path: str | PurePath,
    required: Sequence[str],
    report: Callable[[str], None],
    convert: Callable[[str, Record], Record] = lambda _, record: record,
) -> Iterator[tuple[str, Record]]:
    """(location, record) of each record, with checked texts and an `id`; counts go to `report`."""
    number, words = -1, collections.Counter()
    for number, (location, found) in enumerate(data_file.read(path)):
        record = convert(location, found)
        if not record.keys() >= set(required) or isinstance(record["instruction"], list | dict):
            raise ValueError(f"{location}: {_explain(record, required, path)}")
        texts = {name: jsonl.text(location, record, name) for name in ("input", *required)}
        if not (texts["instruction"].strip() or texts["input"].strip()):
            raise ValueError(f"{location}: field 'instruction' is empty")
        for name, text in texts.items():
            given = (record.get(name) or "").strip()
            if given and (not text or given.lower() in MISSING_VALUES):
                words[bool(text), f"{given!r} as {name}"] += 1
        id_ = jsonl.identity(location, record) or str(number)
        yield location, {"id": id_} | record | {"id": id_} | texts
    if number < 0:
        raise ValueError(f"{path}: contains no records")
    for is_kept, outcome in (
        (False, "read as none"),
        (True, 'kept as text; write "" where it stands for a missing value'),
    ):
        if counts := {name: count for (kept, name), count in words.items() if kept == is_kept}:
            report(f"{path}: {messages.format_counts(counts)}: {outcome}")


def describe_turns(record: Record, path: str | PurePath) -> str:
    """What a record of turns is, and a command that takes one question and one answer of it.

    "" if it is none of: a conversation, a question or an answer of FastChat.
    """
    for name, value in record.items():
        if data_file.is_conversation(value):
            role, text = ("from", "value") if "value" in value[0] else ("role", "content")
            command = _conversion(
                path,
                f'"instruction": t[0]["{text}"], "output": t[1]["{text}"]',
                f" for t in [r[{json.dumps(name)}]] if len(t) == 2",
            )
            return (
                f"a conversation (field {name!r}: a list of {role!r} and {text!r}), not a record "
                "with 'instruction' and 'output'; train, tokenizer and generate read conversations "
                "in a field messages or conversations. To take those of one question and one "
                f"answer: {command}"
            )
    asked = '"id": str(r["question_id"]), "instruction"'
    if "question_id" in record and isinstance(record.get("turns"), list):
        command = _conversion(path, f'{asked}: r["turns"][0]')
        return (
            f"a question of FastChat (the record has {', '.join(record):.200}); to take the first "
            f"of its turns: {command}"
        )
    if "question_id" in record and isinstance(record.get("choices"), list):
        command = _conversion(
            path,
            f'{asked}: q[r["question_id"]], "output": r["choices"][0]["turns"][0]',
            setup='q = {r["question_id"]: r["turns"][0] for _, r in '
            'data_file.read("question.jsonl")}; ',
        )
        return (
            f"an answer of FastChat (the record has {', '.join(record):.200}); to join the first "
            f"of its turns with question.jsonl: {command}"
        )
    return ""


def _explain(record: Record, required: Sequence[str], path: str | PurePath) -> str:
    """What a record that lacks required fields is instead, and a command that converts the file."""
    if turns := describe_turns(record, path):
        return turns
    lists = [
        name
        for name, value in record.items()
        if value and isinstance(value, list) and all(isinstance(item, dict) for item in value)
    ]
    if len(lists) > 1:
        loop = f" for t in r[{json.dumps(lists[0])}]"
        return (
            f"several lists of records in one object ({', '.join(lists):.200}); to take the "
            f"first: {_conversion(path, '**t', loop)}"
        )
    if isinstance(record.get("instruction"), list | dict):
        return (
            "columns, not records: field 'instruction' is a list or an object; with pandas: "
            "df.to_json(NEW, orient='records', lines=True)"
        )
    named = {name.strip().lower(): name for name in record}
    found = {
        field: next(named[name] for name in (field, *others) if name in named)
        for field, others in OTHER_NAMES.items()
        if field not in record and any(name in named for name in (field, *others))
    }
    missing = [field for field in required if field not in record]
    text = (
        f"field {missing[0]!r} is missing; the record has {', '.join(record) or 'no fields':.200}"
    )
    if not found.keys() >= set(missing):
        return text
    renamed = (f'"{field}": r[{json.dumps(name)}]' for field, name in found.items())
    return f"{text}; to rename: {_conversion(path, ', '.join(['**r', *renamed]))}"


def _conversion(path: str | PurePath, fields: str, loop: str = "", setup: str = "") -> str:
    """A shell command that makes of each record `r` one with new `fields`."""
    code = (
        f"import json; from common import data_file; {setup}[print(json.dumps({{{fields}}})) "
        f"for _, r in data_file.read({json.dumps(str(path))}){loop}]"
    )
    return f"python -c {shlex.quote(code)} > NEW.jsonl"


def read_records(
    path: str | PurePath,
    *,
    answered: bool = False,
    report: Callable[[str], None] = messages.log,
) -> list[Record]:
    """All records of a file with every field they have.

    A record without an `id`, or with an empty one, gets its position, from 0. `input` is "" where
    it only says "no input".

    Args:
      path: of any form that `data_file.read` knows.
      answered: whether `output` is required.
      report: receives a line about texts that mean none or stand for a missing value, if any do.

    Raises:
      FileNotFoundError: the file does not exist.
      ValueError: a record is malformed (file, line and field are named), or there is none.
    """
    required = ("instruction", "output") if answered else ("instruction",)
    records = []
    for location, record in _read(path, required, report):
        for field, value in record.items():
            try:  # a record is written again, after its answer has been paid for
                json.dumps(value, ensure_ascii=False, allow_nan=False).encode()
            except UnicodeEncodeError:
                raise ValueError(
                    f"{location}: field {field!r} is not valid Unicode: half a surrogate pair"
                ) from None
            except (TypeError, ValueError, RecursionError):
                raise ValueError(
                    f"{location}: field {field!r} has a value that JSON cannot hold: {value!r:.40}"
                ) from None
        records.append(record)
    return records


def read_tasks(path: str | PurePath) -> list[Task]:
    """The tasks of a file.

    Raises:
      FileNotFoundError, ValueError: as `read_records`.
    """
    return list(map(Task.from_record, read_records(path)))


def read_examples(
    path: str | PurePath,
    *,
    answered: bool = True,
    report: Callable[[str], None] = messages.log,
) -> list[Example]:
    """The examples of a file; with `answered=False` its prompts, whose `output` may be missing.

    Records may be conversations. Their last question and answer are those of the example; a
    question at the end, that has no answer, is left out and counted, if `answered`; else the
    first of several is the example's, and `further` has the others.

    Raises:
      FileNotFoundError, ValueError: as `read_records`.
    """
    required = ("instruction", "output") if answered else ("instruction",)
    examples, unanswered = [], 0
    around: dict[str, Any] = {}  # the other turns of the record that was read last

    def as_record(location: str, record: Record) -> Record:
        nonlocal unanswered, around
        record = conversations.of_text(record)
        turns = None if "instruction" in record else conversations.of_record(location, record)
        if turns is None:
            around = {}
            return record
        unanswered += answered and turns[-1].role == "user"
        parts = conversations.split(location, turns, answered)
        around = {"history": parts.history, "further": parts.further}
        return record | {"instruction": parts.question, "output": parts.answer}

    for location, record in _read(path, required, report, as_record):
        examples.append(
            Example(
                id=record["id"],
                instruction=record["instruction"],
                input=record["input"],
                output=jsonl.text(location, record, "output"),
                **around,
            )
        )
    if unanswered:
        report(f"{path}: {unanswered:,} conversations end with a question, which is left out")
    return examples


def require_kept(
    paths: Iterable[PurePath], tasks: Iterable[tuple[str, str]], source: str | PurePath
) -> None:
    """Checks that a run repeats or extends what the files of its workdir hold.

    Args:
      paths: the files that the run will replace; those that do not exist are fine.
      tasks: the id and the text of each task of the run.
      source: where the tasks are from, named in the error.

    Raises:
      ValueError: a file holds a task that the run lacks, or has with another text.
    """
    known = dict(tasks)
    for path in map(epath.Path, paths):
        held = list(data_file.read(path)) if path.exists() else []
        lost = [
            (location, record.get("id"))
            for location, record in held
            if known.get(str(record.get("id")))
            != join_text(*(jsonl.text(location, record, name) for name in ("instruction", "input")))
        ]
        if lost:
            location, id_ = lost[0]
            raise ValueError(
                f"{location}: {source} has no task {id_!r} with this text ({len(lost):,} of "
                f"{len(held):,} would be lost); choose another --workdir, or delete {path.name}: "
                "its answers stay in answers.sqlite"
            )


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
