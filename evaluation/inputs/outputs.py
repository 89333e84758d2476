"""Answers to a test set, of models and references alike, each matched to the item it answers.

Reads our own model outputs (alpaca_eval's format) and the forms of the published files:

    instruction, output, generator, id, input, finish_reason, num_tokens   ours: by id and text
    instruction, [input,] output                             no id: by text
    instruction, [input,] raw_output, response[, output]     `id` is the row, `output` a reference
    instruction "", input, output                            by the input alone
    instruction, input "", response                          claude-2
    prompt "Human: ...\\n\\nAssistant:", response             claude-2, by the prompt
    instruction, gpt-4-answer, claude-2, ...                 a column: FILE#gpt-4-answer

Answers are never matched by line number. Texts that differ only in white space are equal. Published
answers have names: AlpaCare's files and columns of models and references.
"""

import dataclasses
import glob
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from common import data_file, jsonl, records
from common.jsonl import Record
from evaluation.inputs import benchmarks
from evaluation.inputs.benchmarks import Item, check_name, split_source

QUOTED_CHARACTERS = 60
"""Of a text in an error."""


@dataclasses.dataclass(frozen=True)
class ModelOutput:
    """One answer to one item, verbatim, including outer white space."""

    benchmark: str
    id: str  # the item's
    generator: str  # the model that wrote it
    output: str
    finish_reason: str = ""  # stop, length (truncated), refusal, ...; "" where unknown
    num_tokens: int | None = None  # None where unknown


def model_output_record(item: Item, output: ModelOutput) -> Record:
    """A line of a file of model outputs, as alpaca_eval and `load` read it."""
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
      items: all items of the test set, even if only some of them will be used.
      data: folder of the published files, in which names are looked up.

    Raises:
      FileNotFoundError: the file does not exist, or nothing is published under that name.
      ValueError: a record is malformed, or answers no item or one that has an answer; an item has
        no answer; the generator is unknown.
    """
    path, column = locate(source, items, data)
    rows = [_row(path, location, record, column) for location, record in data_file.read(path)]
    generator = check_name(str(path), split_source(source)[0] or _generator(path, rows))
    answers = _match(path, rows, items)
    return [
        ModelOutput(
            item.benchmark, item.id, generator, row.output, row.finish_reason, row.num_tokens
        )
        for item, row in zip(items, answers, strict=True)
    ]


def locate(source: str, items: Sequence[Item], data: Path) -> tuple[Path, str]:
    """(file, column) that `load` reads; "" where the file contains one model's answers."""
    name, file = split_source(source)
    if not file:
        return find(name, items[0].benchmark, data)
    file, _, column = file.partition("#")
    return Path(file), column


def find(name: str, benchmark: str, data: Path) -> tuple[Path, str]:
    """(file, column) of the answers by model or reference `name`; "" for a separate file."""
    if path := next(benchmarks.published(data, _patterns(glob.escape(name), benchmark)), None):
        return path, ""
    path, columns = _columns(benchmark, data)
    if name in columns:
        return path, columns[name]
    known = ", ".join(names(benchmark, data)) or "nothing"
    raise FileNotFoundError(
        f"{data}/ has no answers of {name!r} to {benchmark}, only of {known}; give one of these, "
        "or NAME=FILE"
    )


def names(benchmark: str, data: Path) -> list[str]:
    """The models and references whose answers to `benchmark` are below `data`."""
    _, columns = _columns(benchmark, data)
    found = set(columns)
    for pattern in _patterns("*", benchmark):
        depth = pattern.split("/").index("*")
        for path in benchmarks.published(data, [pattern]):
            found.add(path.relative_to(data).parts[depth])
    return sorted(found)


def _patterns(name: str, benchmark: str) -> list[str]:
    known = benchmarks.BENCHMARKS.get(benchmark)
    return [
        pattern
        for published_name in (known.published_names if known else (glob.escape(benchmark),))
        for pattern in (
            f"model_outputs/{name}/{published_name}.json",
            f"references/{name}/{published_name}.jsonl",
            f"references/{name}/{published_name}.json",
            f"model_ouputs/{name}/{published_name}/seed_0.json",  # sic
            f"reference_outputs/{name}/{published_name}_output.jsonl",
        )
    ]


def _columns(benchmark: str, data: Path) -> tuple[Path, dict[str, str]]:
    """The test set's file, and the fields of the models whose answers it contains, by name."""
    known = benchmarks.BENCHMARKS.get(benchmark)
    path = next(benchmarks.published(data, known.files), None) if known else None
    if not known or not path:
        return data, {}
    _, first = next(data_file.read(path), ("", {}))
    return path, {name: field for name, field in known.columns.items() if field in first}


class _Answer(NamedTuple):
    """A record of any of the forms, not yet matched to its item."""

    location: str
    id: str  # "": to be matched by text
    text: str  # of the item, white space collapsed
    has_instruction: bool
    generator: str
    output: str
    finish_reason: str
    num_tokens: int | None


def _row(path: Path, location: str, record: Record, column: str) -> _Answer:
    """The answer of a record in any of the module's forms."""
    is_published = "response" in record
    field = column or ("response" if is_published else "output")
    if field not in record:
        if turns := records.describe_turns(record, path):
            raise ValueError(f"{location}: {turns}")
        raise ValueError(
            f"{location}: field {field!r} is missing; the record has {', '.join(record)}; name the "
            "field of the answers: FILE#FIELD"
        )
    prompt, instruction, given = (
        jsonl.text(location, record, name) for name in ("prompt", "instruction", "input")
    )
    if prompt and not (instruction or given):
        instruction = prompt.strip().removeprefix("Human:").removesuffix("Assistant:")
    text = " ".join(f"{instruction} {given}".split())
    if not text:
        raise ValueError(
            f"{location}: instruction, input or prompt is missing; answers are also matched to "
            "items by text, so the record must contain it"
        )
    number = record.get("num_tokens")
    if not (number is None or isinstance(number, int)):
        raise ValueError(f"{location}: field 'num_tokens' must be an integer, not {number!r:.40}")
    # In published files ids are row numbers, and the generator is the reference's.
    is_ours = not (is_published or column)
    return _Answer(
        location=location,
        id=jsonl.identity(location, record) if is_ours else "",
        text=text,
        has_instruction=bool(instruction.strip()),
        generator=jsonl.text(location, record, "generator") if is_ours else "",
        output=jsonl.text(location, record, field),
        finish_reason=jsonl.text(location, record, "finish_reason"),
        num_tokens=number,
    )


def _generator(path: Path, rows: Sequence[_Answer]) -> str:
    name = rows[0].generator if rows else ""
    if not name:
        raise ValueError(f"{path}: field 'generator' is missing; give NAME={path}")
    for row in rows:
        if row.generator != name:
            raise ValueError(
                f"{row.location}: generator is {row.generator!r}, in the first record {name!r}; "
                "use a separate file for each model"
            )
    return name


def _match(path: Path, rows: Sequence[_Answer], items: Sequence[Item]) -> list[_Answer]:
    """The row that answers each item."""
    benchmark = items[0].benchmark
    position_of_id = {item.id: position for position, item in enumerate(items)}
    texts = [_collapsed(item.text) for item in items]
    inputs = [_collapsed(item.input) for item in items]
    by_text, by_input = _positions(texts), _positions(inputs)
    answers: dict[int, _Answer] = {}
    for number, row in enumerate(rows):
        if row.id:
            position = position_of_id.get(row.id)
            if position is None:
                raise ValueError(
                    f"{row.location}: {benchmark} has no item {row.id!r} ({_short(row.text)}); "
                    "give the --benchmark of the answers"
                )
            text = texts[position]
            if row.text != text and (row.has_instruction or row.text != inputs[position]):
                raise ValueError(
                    f"{row.location}: the text of item {row.id!r} of {benchmark} is "
                    f"{_short(text)}, in the record {_short(row.text)}; give the --benchmark of "
                    "the answers, or records without ids, which are matched by text"
                )
        else:
            found = (by_text if row.has_instruction else by_input).get(row.text, [])
            if len(found) > 1:
                ids = " and ".join(repr(items[position].id) for position in found[:2])
                raise ValueError(
                    f"{row.location}: items {ids} of {benchmark} both have the text "
                    f"{_short(row.text)}, so the text is ambiguous; give the records the items' ids"
                )
            if not found:
                near = min(number, len(items) - 1)
                raise ValueError(
                    f"{row.location}: no item of {benchmark} has the text {_short(row.text)}; "
                    f"item {items[near].id!r}, at the same position, has {_short(texts[near])}; "
                    "give the --benchmark of the answers"
                )
            (position,) = found
        if earlier := answers.get(position):
            raise ValueError(
                f"{row.location}: answers item {items[position].id!r} ({_short(row.text)}), as "
                f"{earlier.location} does; keep one of them"
            )
        answers[position] = row
    missing = [item for position, item in enumerate(items) if position not in answers]
    if missing:
        raise ValueError(
            f"{path}: {len(missing):,} of {len(items):,} items of {benchmark} have no answer, the "
            f"first {missing[0].id!r} ({_short(missing[0].text)}); give a complete file"
        )
    return [answers[position] for position in range(len(items))]


def _positions(texts: Sequence[str]) -> dict[str, list[int]]:
    positions: dict[str, list[int]] = {}
    for position, text in enumerate(texts):
        positions.setdefault(text, []).append(position)
    return positions


def _collapsed(text: str) -> str:
    return " ".join(text.split())


def _short(text: str) -> str:
    text = _collapsed(text)
    return repr(text if len(text) <= QUOTED_CHARACTERS else text[:QUOTED_CHARACTERS] + "...")
