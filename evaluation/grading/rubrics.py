"""Rubrics in HealthBench's published form, and physicians' labels of single criteria.

    {"prompt_id": "a1", "prompt": [{"role": "user", "content": "..."}],
     "example_tags": ["theme:hedging"],
     "rubrics": [{"criterion": "...", "points": 5, "tags": ["axis:accuracy"]}]}

    {"prompt_id": "a1", "prompt": [...], "completion": "...", "rubric": "...", "category": "...",
     "binary_labels": [true, false], "anonymized_physician_ids": ["P1", "P2"]}

The second form, of its meta-evaluation, is recognised by `binary_labels`. Other fields are skipped;
`id` may stand for `prompt_id`, and one text for the turns of `prompt`. A met criterion of negative
points lowers the score.
"""

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from common import data_file, jsonl, records
from common.jsonl import Record
from common.text import conversations
from common.text.conversations import Turn
from evaluation.inputs.benchmarks import Item

Parsed = TypeVar("Parsed")


@dataclasses.dataclass(frozen=True)
class Criterion:
    """What an answer shall do, or with negative points shall not."""

    text: str
    points: float
    tags: tuple[str, ...]  # such as axis:accuracy

    def __str__(self) -> str:
        """As the grader sees it; HealthBench's grader sees the points, too."""
        return f"[{self.points}] {self.text}"


@dataclasses.dataclass(frozen=True)
class RubricExample:
    """A conversation that ends with a question, and what its answer is graded by."""

    id: str
    turns: tuple[Turn, ...]
    criteria: tuple[Criterion, ...]
    tags: tuple[str, ...]  # such as theme:emergency_referrals

    def item(self, benchmark: str) -> Item:
        """The last question, as an item that answers are matched to."""
        return Item(self.id, benchmark, self.turns[-1].text, "")


@dataclasses.dataclass(frozen=True)
class LabelledAnswer:
    """One criterion on one answer, with the labels of several physicians: met or not."""

    conversation: str  # the id of the prompt
    turns: tuple[Turn, ...]
    answer: str
    criterion: str
    category: str  # "" where there is none
    labels: tuple[bool, ...]
    physicians: tuple[str, ...]  # who gave each label


def read(path: Path) -> list[RubricExample] | list[LabelledAnswer]:
    """The examples of a file, all of the form of its first record.

    Raises:
      FileNotFoundError, ValueError: the file cannot be read, or a record is malformed: the error
        counts those, and says what is wrong with the first.
    """
    rows = list(data_file.read(path))
    if not rows:
        raise ValueError(f"{path}: contains no records")
    if "binary_labels" in rows[0][1]:
        return _all(path, rows, _labelled_answer)
    examples = _all(path, rows, _example)
    ids = [example.id for example in examples]
    records.require_unique_ids(path, ids, "answers are matched by id")
    return examples


def _all(
    path: Path, rows: Sequence[tuple[str, Record]], parse: Callable[[str, Record], Parsed]
) -> list[Parsed]:
    parsed, errors = [], []
    for location, record in rows:
        try:
            parsed.append(parse(location, record))
        except ValueError as error:
            errors.append(error)
    if errors:
        count = f"{path}: {len(errors):,} of {len(rows):,} records are malformed; the first: "
        raise ValueError(f"{count if len(errors) > 1 else ''}{errors[0]}")
    return parsed


def _example(location: str, record: Record) -> RubricExample:
    rubrics = record.get("rubrics")
    if not isinstance(rubrics, list) or not rubrics:
        raise ValueError(f"{location}: field 'rubrics' must be a list of criteria, not empty")
    criteria = tuple(
        _criterion(f"{location}, criterion {number}", criterion)
        for number, criterion in enumerate(rubrics)
    )
    if not any(criterion.points > 0 for criterion in criteria):
        raise ValueError(
            f"{location}: no criterion has positive points, so the rubric has no score; add one"
        )
    return RubricExample(
        _identity(location, record),
        _turns(location, record),
        criteria,
        _tags(location, "example_tags", record.get("example_tags")),
    )


def _criterion(location: str, criterion: Any) -> Criterion:
    if not isinstance(criterion, dict):
        raise ValueError(f"{location}: must be an object, not {criterion!r:.40}")
    text, points = jsonl.text(location, criterion, "criterion"), criterion.get("points")
    if not text.strip():
        raise ValueError(f"{location}: field 'criterion' is missing or empty")
    if not isinstance(points, int | float) or jsonl.number(points) is None:
        raise ValueError(f"{location}: field 'points' must be a number, not {points!r:.40}")
    return Criterion(text, points, _tags(location, "tags", criterion.get("tags")))


def _tags(location: str, field: str, value: Any) -> tuple[str, ...]:
    tags = [] if value is None else value
    if not isinstance(tags, list) or not all(isinstance(tag, str) and tag for tag in tags):
        raise ValueError(f"{location}: field {field!r} must be a list of texts, not {value!r:.40}")
    if len(set(tags)) < len(tags):
        raise ValueError(f"{location}: field {field!r} has a tag twice: {', '.join(tags)}")
    return tuple(tags)


def _identity(location: str, record: Record) -> str:
    name = "prompt_id" if "prompt_id" in record else "id"
    if not (found := jsonl.identity(location, {"id": record.get(name)})):
        raise ValueError(f"{location}: field 'prompt_id' (or 'id') is missing")
    return found


def _turns(location: str, record: Record) -> tuple[Turn, ...]:
    prompt = record.get("prompt")
    if isinstance(prompt, str) and prompt.strip():
        return (Turn("user", jsonl.text(location, record, "prompt")),)
    if not isinstance(prompt, list) or not prompt:
        raise ValueError(f"{location}: field 'prompt' must be a list of turns, not {prompt!r:.40}")
    turns = tuple(
        conversations.read_turn(f"{location}: field 'prompt', turn {number}", turn)
        for number, turn in enumerate(prompt)
    )
    if turns[-1].role != "user":
        raise ValueError(f"{location}: field 'prompt' must end with a turn of the user")
    return turns


def _labelled_answer(location: str, record: Record) -> LabelledAnswer:
    labels, people = record.get("binary_labels"), record.get("anonymized_physician_ids")
    if not isinstance(labels, list) or not labels or not all(isinstance(x, bool) for x in labels):
        raise ValueError(f"{location}: field 'binary_labels' must be a list of true and false")
    people = [f"physician {number}" for number in range(len(labels))] if people is None else people
    if not isinstance(people, list) or len(people) != len(labels):
        raise ValueError(
            f"{location}: field 'anonymized_physician_ids' must name who gave each label"
        )
    texts = {name: jsonl.text(location, record, name) for name in ("completion", "rubric")}
    if missing := [name for name, text in texts.items() if not text.strip()]:
        raise ValueError(f"{location}: field {missing[0]!r} is missing or empty")
    return LabelledAnswer(
        conversation=_identity(location, record),
        turns=_turns(location, record),
        answer=texts["completion"],
        criterion=texts["rubric"],
        category=jsonl.text(location, record, "category"),
        labels=tuple(labels),
        physicians=tuple(map(str, people)),
    )
