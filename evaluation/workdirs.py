"""Items and answers that lie beside the judgements of a workdir, which a report shows."""

import dataclasses
from collections.abc import Sequence
from pathlib import PurePath
from typing import Any

import numpy as np
from etils.epath import Path

from contract import jsonl
from contract.jsonl import Record
from datagen import records
from evaluation.verdicts import Verdicts

REMEDY = "use the workdirs of one version of the files, or judge again in a new --workdir"


@dataclasses.dataclass(frozen=True)
class Item:
    instruction: str
    input: str
    topic: str  # "" where it is not known
    difficulty: int | None  # 1 to 5


@dataclasses.dataclass(frozen=True)
class Output:
    text: str
    finish_reason: str  # "" where it is not known; length: cut at a limit
    num_tokens: int | None


@dataclasses.dataclass(frozen=True)
class Texts:
    items: dict[tuple[str, str], Item]  # (benchmark, id)
    outputs: dict[tuple[str, str], dict[str, Output]]  # (benchmark, generator) -> id

    def lengths(self, benchmark: str, generator: str, ids: Sequence[str]) -> np.ndarray:
        """[ids] characters of each answer; 0 where there is none."""
        outputs = self.outputs.get((benchmark, generator), {})
        return np.array([len(outputs[i].text) if i in outputs else 0 for i in ids])


def read(workdirs: Sequence[str | PurePath], verdicts: Verdicts) -> Texts:
    """The items and answers that `verdicts` speak of.

    Raises:
      FileNotFoundError: a workdir lacks items.jsonl or outputs.jsonl.
      ValueError: two workdirs tell different texts, or a text is missing; the remedy is named.
    """
    items: dict[tuple[str, str], Item] = {}
    outputs: dict[tuple[str, str], dict[str, Output]] = {}
    for workdir in map(Path, workdirs):
        for where, record in jsonl.read(workdir / "items.jsonl"):
            key = _text(where, record, "benchmark"), _text(where, record, "id")
            item = _item(where, record)
            if items.setdefault(key, item) != item:
                raise ValueError(f"{where}: another text for id {key[1]!r} of {key[0]}; {REMEDY}")
        for where, record in jsonl.read(workdir / "outputs.jsonl"):
            key = _text(where, record, "benchmark"), _text(where, record, "generator")
            name, output = _text(where, record, "id"), _output(where, record)
            mine = outputs.setdefault(key, {})
            if mine.setdefault(name, output) != output:
                raise ValueError(
                    f"{where}: another answer by {key[1]} to id {name!r} of {key[0]}; {REMEDY}"
                )
    texts = Texts(items, outputs)
    _check(texts, verdicts)
    return texts


def _text(where: str, record: Record, field: str) -> str:
    if not jsonl.text(where, record, field):
        raise ValueError(f"{where}: field {field!r} is missing")
    return record[field]


def _item(where: str, record: Record) -> Item:
    instruction, given, topic = (
        jsonl.text(where, record, field) for field in ("instruction", "input", "topic")
    )
    return Item(instruction, given, topic, records.difficulty(record.get("difficulty")))


def _output(where: str, record: Record) -> Output:
    tokens: Any = record.get("num_tokens")
    return Output(
        jsonl.text(where, record, "output"),
        jsonl.text(where, record, "finish_reason"),
        tokens if isinstance(tokens, int) else None,
    )


def _check(texts: Texts, verdicts: Verdicts) -> None:
    for benchmark, names in verdicts.ids.items():
        for name in names:
            if (benchmark, name) not in texts.items:
                raise ValueError(f"items.jsonl lacks id {name!r} of {benchmark}; {REMEDY}")
    for cell, table in verdicts.cells.items():
        judged = np.flatnonzero(table[:, 0] >= 0)
        for generator in (cell.generator, cell.reference):
            have = texts.outputs.get((cell.benchmark, generator), {})
            for item in judged:
                if (name := verdicts.ids[cell.benchmark][item]) not in have:
                    raise ValueError(
                        f"outputs.jsonl lacks the answer of {generator} to id {name!r} of "
                        f"{cell.benchmark}; {REMEDY}"
                    )
