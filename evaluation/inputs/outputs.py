"""Answers to a test set, of models and references alike, each paired with the item it answers.

Read are our own model outputs (alpaca_eval's format) and the forms of the published files:

    instruction, output, generator, id, input, finish_reason, num_tokens   ours: by id and text
    instruction, [input,] output                             no id: by text
    instruction, [input,] raw_output, response[, output]     `id` is the row, `output` another's
    instruction "", input, output                            by the input alone
    instruction, input "", response                          claude-2
    prompt "Human: ...\\n\\nAssistant:", response             claude-2, by the prompt
    instruction, gpt-4-answer, claude-2, ...                 a column: FILE#gpt-4-answer

Line numbers pair nothing. Texts are equal where they differ in white space only.
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from common import jsonl
from common.jsonl import Record
from evaluation.inputs import published
from evaluation.inputs.benchmarks import Item, check_name, split_source

SHOWN = 60
"""Characters of a text in an error."""


@dataclasses.dataclass(frozen=True)
class ModelOutput:
    """One answer to one item, as it is: outer white space too."""

    benchmark: str
    id: str  # the item's
    generator: str  # the model that wrote it
    output: str
    finish_reason: str = ""  # stop, length (cut), refusal, ...; "" where it is not known
    num_tokens: int | None = None  # None where it is not known

    def record(self) -> Record:
        return dataclasses.asdict(self)


def model_output_record(item: Item, output: ModelOutput) -> Record:
    """A line of a file of model outputs, which alpaca_eval and `load` read."""
    return {
        "instruction": item.instruction,
        "output": output.output,
        "generator": output.generator,
        "id": output.id,
        "input": item.input,
        "dataset": output.benchmark,
        "finish_reason": output.finish_reason,
        "num_tokens": output.num_tokens,
    }


def load(source: str, items: Sequence[Item], data: Path) -> list[ModelOutput]:
    """One answer to each item, in the items' order.

    Args:
      source: FILE, NAME=FILE or, for published files, NAME; a file's column is FILE#COLUMN.
      items: all of the test set, also where only some of them will be used.
      data: folder of the published files; names are looked for in it.

    Raises:
      FileNotFoundError: there is no such file, or nothing under that name.
      ValueError: a record is malformed, answers no item or one that is answered already; an item
        has no answer; who wrote them is not known.
    """
    path, column = locate(source, items, data)
    rows = [_row(where, record, column) for where, record in jsonl.read(path)]
    generator = check_name(str(path), split_source(source)[0] or _generator(path, rows))
    answers = _pair(path, rows, items)
    return [
        ModelOutput(
            item.benchmark, item.id, generator, row.output, row.finish_reason, row.num_tokens
        )
        for item, row in zip(items, answers, strict=True)
    ]


def locate(source: str, items: Sequence[Item], data: Path) -> tuple[Path, str]:
    """(file, column) that `load` reads; "" where the file holds one model's answers."""
    name, place = split_source(source)
    if not place:
        return published.find(name, items[0].benchmark, data)
    file, _, column = place.partition("#")
    return Path(file), column


# Records.


class Row(NamedTuple):
    """A record of any of the forms, without its item."""

    where: str
    id: str  # "": to be joined by text
    text: str  # what was asked, white space collapsed
    has_instruction: bool
    generator: str
    output: str
    finish_reason: str
    num_tokens: int | None


def _row(where: str, record: Record, column: str) -> Row:
    """What a record says, whichever of the module's forms it has.

    Raises:
      ValueError: the record is none of the forms.
    """
    is_published = "response" in record
    field = column or ("response" if is_published else "output")
    if field not in record:
        raise ValueError(f"{where}: has no field {field!r}; name the answers' one: FILE#FIELD")
    prompt, instruction, given = (
        jsonl.text(where, record, name) for name in ("prompt", "instruction", "input")
    )
    if prompt and not (instruction or given):
        instruction = prompt.strip().removeprefix("Human:").removesuffix("Assistant:")
    text = " ".join(f"{instruction} {given}".split())
    if not text:
        raise ValueError(
            f"{where}: holds no instruction, input or prompt; answers are paired with items by "
            "text too: write them into the record"
        )
    number = record.get("num_tokens")
    if not (number is None or isinstance(number, int)):
        raise ValueError(f"{where}: field 'num_tokens' must be a whole number, not {number!r:.40}")
    # The ids of published files are rows, and their generator is the reference's.
    is_ours = not (is_published or column)
    return Row(
        where=where,
        id=jsonl.identity(where, record) if is_ours else "",
        text=text,
        has_instruction=bool(instruction.strip()),
        generator=jsonl.text(where, record, "generator") if is_ours else "",
        output=jsonl.text(where, record, field),
        finish_reason=jsonl.text(where, record, "finish_reason"),
        num_tokens=number,
    )


def _generator(path: Path, rows: Sequence[Row]) -> str:
    name = rows[0].generator if rows else ""
    if not name:
        raise ValueError(f"{path}: does not say who wrote the answers; give NAME={path}")
    for row in rows:
        if row.generator != name:
            raise ValueError(
                f"{row.where}: is by {row.generator!r}, the first record by {name!r}; give each "
                "model a file of its own"
            )
    return name


# Pairing.


class _Items:
    """Finds the item that a row answers."""

    def __init__(self, items: Sequence[Item]):
        self.items = items
        self.benchmark = items[0].benchmark
        self.texts = [_collapsed(item.text) for item in items]
        self.inputs = [_collapsed(item.input) for item in items]
        self._by_id = {item.id: place for place, item in enumerate(items)}
        self._by_text = _places(self.texts)
        self._by_input = _places(self.inputs)

    def place(self, row: Row, number: int) -> int:
        """Position of the item that row `number` answers.

        Raises:
          ValueError: it answers none, or one of several.
        """
        return self._with_id(row) if row.id else self._with_text(row, number)

    def _with_id(self, row: Row) -> int:
        place = self._by_id.get(row.id)
        if place is None:
            raise ValueError(
                f"{row.where}: {self.benchmark} has no item {row.id!r} ({_short(row.text)}); give "
                "the --benchmark that the answers are for"
            )
        text = self.texts[place]
        if row.text != text and (row.has_instruction or row.text != self.inputs[place]):
            raise ValueError(
                f"{row.where}: item {row.id!r} of {self.benchmark} asks {_short(text)}, the record "
                f"{_short(row.text)}; give the --benchmark that it is for, or records without ids: "
                "those are joined by text"
            )
        return place

    def _with_text(self, row: Row, number: int) -> int:
        places = (self._by_text if row.has_instruction else self._by_input).get(row.text, [])
        if len(places) > 1:
            ids = " and ".join(repr(self.items[place].id) for place in places[:2])
            raise ValueError(
                f"{row.where}: items {ids} of {self.benchmark} both ask {_short(row.text)}, so "
                "that text pairs nothing here; give the records the items' ids"
            )
        if not places:
            near = min(number, len(self.items) - 1)
            raise ValueError(
                f"{row.where}: no item of {self.benchmark} asks {_short(row.text)}; item "
                f"{self.items[near].id!r}, there in the same place, asks "
                f"{_short(self.texts[near])}; give the --benchmark that the answers are for"
            )
        return places[0]


def _pair(path: Path, rows: Sequence[Row], items: Sequence[Item]) -> list[Row]:
    """The row that answers each item."""
    finder, answers = _Items(items), [None] * len(items)
    for number, row in enumerate(rows):
        place = finder.place(row, number)
        if earlier := answers[place]:
            raise ValueError(
                f"{row.where}: answers item {items[place].id!r} ({_short(row.text)}) as "
                f"{earlier.where} does; keep one of them"
            )
        answers[place] = row
    missing = [item for item, answer in zip(items, answers, strict=True) if not answer]
    if missing:
        raise ValueError(
            f"{path}: {len(missing):,} of {len(items):,} items of {items[0].benchmark} have no "
            f"answer, the first {missing[0].id!r} ({_short(missing[0].text)}); give a file with all"
        )
    return answers


def _places(texts: Sequence[str]) -> dict[str, list[int]]:
    places: dict[str, list[int]] = {}
    for place, text in enumerate(texts):
        places.setdefault(text, []).append(place)
    return places


def _collapsed(text: str) -> str:
    return " ".join(text.split())


def _short(text: str) -> str:
    text = _collapsed(text)
    return repr(text if len(text) <= SHOWN else text[:SHOWN] + "...")
