"""The questions and answers behind the verdicts, which a report shows."""

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from common import data_file, jsonl, records
from common.jsonl import Record
from evaluation.inputs.benchmarks import Item
from evaluation.inputs.outputs import ModelOutput
from evaluation.judgements.foreign import ForeignJudgements
from evaluation.judgements.verdicts import Matchup, Verdicts

ITEMS_FILE, OUTPUTS_FILE = "items.jsonl", "outputs.jsonl"

REMEDY = "report workdirs that judged the same files, or judge again in a new --workdir"

Outputs = dict[str, ModelOutput]  # by the id of the item


@dataclasses.dataclass(frozen=True)
class ReportTexts:
    """The texts behind the verdicts."""

    items: dict[tuple[str, str], Item]  # (benchmark, id)
    outputs: dict[tuple[str, str], Outputs]  # (benchmark, generator)

    def lengths(self, benchmark: str, generator: str, ids: Sequence[str]) -> np.ndarray:
        """[ids] characters of each answer; 0 where there is none."""
        outputs = self.outputs[benchmark, generator]
        return np.array([len(outputs[i].output) if i in outputs else 0 for i in ids])

    def cover(self, matchup: Matchup, ids: Sequence[str]) -> bool:
        """Whether both answers to all of `ids` are known; those from elsewhere may not be."""
        generators = matchup.generator, matchup.reference
        known = [self.outputs.get((matchup.benchmark, name), {}).keys() for name in generators]
        return all(keys >= set(ids) for keys in known)


def read(sources: Sequence[str | Path | ForeignJudgements], verdicts: Verdicts) -> ReportTexts:
    """The items and answers that `verdicts` refer to; of those from elsewhere, what they hold.

    Raises:
      FileNotFoundError: a workdir lacks items.jsonl or outputs.jsonl.
      ValueError: two sources have different texts, or a text is missing; the remedy is named.
    """
    items: dict[tuple[str, str], Item] = {}
    outputs: dict[tuple[str, str], Outputs] = {}
    for source in sources:
        for location, item in _items(source):
            if items.setdefault((item.benchmark, item.id), item) != item:
                raise ValueError(
                    f"{location}: id {item.id!r} of {item.benchmark} has another text in another "
                    f"workdir; {REMEDY}"
                )
        for location, output in _outputs(source):
            known = outputs.setdefault((output.benchmark, output.generator), {})
            if known.setdefault(output.id, output).output != output.output:
                raise ValueError(
                    f"{location}: {output.generator} has another answer to id {output.id!r} of "
                    f"{output.benchmark} in another workdir; {REMEDY}"
                )
    texts = ReportTexts(items, outputs)
    _check(texts, verdicts)
    for benchmark, names in verdicts.ids.items():
        for name in names:  # from elsewhere, where questions may be missing
            items.setdefault((benchmark, name), Item(name, benchmark, "", ""))
    return texts


def _items(source: str | Path | ForeignJudgements) -> Iterator[tuple[str, Item]]:
    if isinstance(source, ForeignJudgements):
        yield from ((str(source.path), item) for item in source.items)
        return
    for location, record in data_file.read(Path(source) / ITEMS_FILE):
        yield location, _item(location, record)


def _outputs(source: str | Path | ForeignJudgements) -> Iterator[tuple[str, ModelOutput]]:
    if isinstance(source, ForeignJudgements):
        yield from ((str(source.path), output) for output in source.outputs)
        return
    for location, record in data_file.read(Path(source) / OUTPUTS_FILE):
        yield location, _output(location, record)


def _name(location: str, record: Record, field: str) -> str:
    if not (name := jsonl.text(location, record, field)):
        raise ValueError(f"{location}: field {field!r} is missing")
    return name


def _item(location: str, record: Record) -> Item:
    return Item(
        id=_name(location, record, "id"),
        benchmark=_name(location, record, "benchmark"),
        instruction=jsonl.text(location, record, "instruction"),
        input=jsonl.text(location, record, "input"),
        topic=jsonl.text(location, record, "topic"),
        difficulty=records.difficulty(record.get("difficulty")),
    )


def _output(location: str, record: Record) -> ModelOutput:
    number = record.get("num_tokens")
    return ModelOutput(
        benchmark=_name(location, record, "benchmark"),
        id=_name(location, record, "id"),
        generator=_name(location, record, "generator"),
        output=jsonl.text(location, record, "output"),
        finish_reason=jsonl.text(location, record, "finish_reason"),
        num_tokens=number if isinstance(number, int) else None,
    )


def _check(texts: ReportTexts, verdicts: Verdicts) -> None:
    """Requires a text for everything that was judged in a workdir."""
    for matchup in verdicts.tables:
        if verdicts.is_foreign(matchup):
            continue
        names = verdicts.judged(matchup)
        for name in names:
            if (matchup.benchmark, name) not in texts.items:
                raise ValueError(f"{ITEMS_FILE} lacks id {name!r} of {matchup.benchmark}; {REMEDY}")
        for generator in (matchup.generator, matchup.reference):
            answered = texts.outputs.get((matchup.benchmark, generator), {})
            for name in names:
                if name not in answered:
                    raise ValueError(
                        f"{OUTPUTS_FILE} lacks the answer of {generator} to id {name!r} of "
                        f"{matchup.benchmark}; {REMEDY}"
                    )
