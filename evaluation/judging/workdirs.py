"""Items and answers that lie beside the judgements of a workdir, which a report shows."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from common import jsonl, records
from common.jsonl import Record
from evaluation.inputs.benchmarks import Item
from evaluation.inputs.outputs import ModelOutput
from evaluation.judging.verdicts import Verdicts

ITEMS, OUTPUTS = "items.jsonl", "outputs.jsonl"

REMEDY = "report workdirs that judged the same files, or judge again in a new --workdir"

Outputs = dict[str, ModelOutput]  # by the id of the item


@dataclasses.dataclass(frozen=True)
class Texts:
    items: dict[tuple[str, str], Item]  # (benchmark, id)
    outputs: dict[tuple[str, str], Outputs]  # (benchmark, generator)

    def lengths(self, benchmark: str, generator: str, ids: Sequence[str]) -> np.ndarray:
        """[ids] characters of each answer; 0 where there is none."""
        outputs = self.outputs[benchmark, generator]
        return np.array([len(outputs[i].output) if i in outputs else 0 for i in ids])


def read(workdirs: Sequence[str | Path], verdicts: Verdicts) -> Texts:
    """The items and answers that `verdicts` speak of.

    Raises:
      FileNotFoundError: a workdir lacks items.jsonl or outputs.jsonl.
      ValueError: two workdirs tell different texts, or a text is missing; the remedy is named.
    """
    items: dict[tuple[str, str], Item] = {}
    outputs: dict[tuple[str, str], Outputs] = {}
    for workdir in map(Path, workdirs):
        for where, record in jsonl.read(workdir / ITEMS):
            item = _item(where, record)
            if items.setdefault((item.benchmark, item.id), item) != item:
                raise ValueError(
                    f"{where}: another text of id {item.id!r} of {item.benchmark}; {REMEDY}"
                )
        for where, record in jsonl.read(workdir / OUTPUTS):
            output = _output(where, record)
            mine = outputs.setdefault((output.benchmark, output.generator), {})
            if mine.setdefault(output.id, output).output != output.output:
                raise ValueError(
                    f"{where}: another answer by {output.generator} to id {output.id!r} of "
                    f"{output.benchmark}; {REMEDY}"
                )
    texts = Texts(items, outputs)
    _check(texts, verdicts)
    return texts


def _name(where: str, record: Record, field: str) -> str:
    if not (name := jsonl.text(where, record, field)):
        raise ValueError(f"{where}: field {field!r} is missing")
    return name


def _item(where: str, record: Record) -> Item:
    return Item(
        id=_name(where, record, "id"),
        benchmark=_name(where, record, "benchmark"),
        instruction=jsonl.text(where, record, "instruction"),
        input=jsonl.text(where, record, "input"),
        topic=jsonl.text(where, record, "topic"),
        difficulty=records.difficulty(record.get("difficulty")),
    )


def _output(where: str, record: Record) -> ModelOutput:
    number = record.get("num_tokens")
    return ModelOutput(
        benchmark=_name(where, record, "benchmark"),
        id=_name(where, record, "id"),
        generator=_name(where, record, "generator"),
        output=jsonl.text(where, record, "output"),
        finish_reason=jsonl.text(where, record, "finish_reason"),
        num_tokens=number if isinstance(number, int) else None,
    )


def _check(texts: Texts, verdicts: Verdicts) -> None:
    for benchmark, names in verdicts.ids.items():
        for name in names:
            if (benchmark, name) not in texts.items:
                raise ValueError(f"{ITEMS} lacks id {name!r} of {benchmark}; {REMEDY}")
    for cell, table in verdicts.cells.items():
        judged = np.flatnonzero(table[:, 0] >= 0)
        for generator in (cell.generator, cell.reference):
            have = texts.outputs.get((cell.benchmark, generator), {})
            for item in judged:
                if (name := verdicts.ids[cell.benchmark][item]) not in have:
                    raise ValueError(
                        f"{OUTPUTS} lacks the answer of {generator} to id {name!r} of "
                        f"{cell.benchmark}; {REMEDY}"
                    )
