"""Verdicts as arrays: what the judgements of one or several workdirs say.

A matchup is one judge on one system against one reference on one benchmark.
"""

import dataclasses
import json
import re
from collections.abc import Collection, Mapping
from enum import IntEnum, StrEnum
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np

JUDGEMENTS_FILE = "judgements.jsonl"
MODEL_FIRST, REFERENCE_FIRST = ORDERS = ("model_first", "reference_first")

Side = TypeVar("Side")


def shown(order: str, model: Side, reference: Side) -> tuple[Side, Side]:
    """What stands first and second in an order, for something of each side."""
    return (model, reference) if order == MODEL_FIRST else (reference, model)


class Verdict(StrEnum):
    """Whose answer a judgement prefers, as judgements.jsonl spells it."""

    MODEL = "model"
    REFERENCE = "reference"
    TIE = "tie"
    INVALID = "invalid"  # the reply states no verdict


class VerdictCode(IntEnum):
    """Verdicts as the numbers that arrays hold."""

    MISSING = -1  # not judged
    MODEL = 0
    REFERENCE = 1
    TIE = 2
    INVALID = 3


CODE_OF_VERDICT: dict[str, int] = {v.value: VerdictCode[v.name].value for v in Verdict}


class Matchup(NamedTuple):
    """One judge on one system (`generator`) against one reference on one benchmark."""

    judge: str
    benchmark: str
    reference: str
    generator: str

    def __str__(self) -> str:
        return f"{self.judge} on {self.generator} against {self.reference}, {self.benchmark}"


@dataclasses.dataclass(frozen=True)
class Verdicts:
    """All judgements that were read."""

    ids: dict[str, list[str]]  # of each benchmark, in the order of the files
    tables: dict[Matchup, np.ndarray]  # [items of the benchmark, 2 ORDERS] int8: VerdictCode
    prompts: dict[str, str]  # judge -> prompt version
    paths: list[Path]
    spans: dict[Matchup, np.ndarray]  # [items, 2, 3] int64: path, first byte, bytes; -1: MISSING
    scores: dict[Matchup, np.ndarray]  # [items, 2] 0 to 1 of graded verdicts, NaN for others
    foreign: dict[int, list[str]]  # number in `paths` -> replies; spans: path, reply, 0
    one_order: frozenset[str]  # judges that saw each pair once
    unordered: frozenset[Matchup]  # of these, in an order that is unknown: the first column

    @property
    def count(self) -> int:
        """Judgements in all."""
        return sum(int((table != VerdictCode.MISSING).sum()) for table in self.tables.values())

    def names(self, field: str) -> list[str]:
        """All judges, benchmarks, references or generators, in alphabetical order."""
        return sorted({getattr(matchup, field) for matchup in self.tables})

    def judged(self, matchup: Matchup) -> list[str]:
        """The ids of the items of a matchup."""
        found = (self.tables[matchup] != VerdictCode.MISSING).any(axis=1)
        return [self.ids[matchup.benchmark][item] for item in np.flatnonzero(found)]

    def is_foreign(self, matchup: Matchup) -> bool:
        """Whether a matchup is from elsewhere, so that it may lack an order, items and texts."""
        return int(self.spans[matchup][..., 0].max()) in self.foreign


def only(
    verdicts: Verdicts, keep: Collection[Matchup], kept_items: Mapping[str, np.ndarray]
) -> Verdicts:
    """The verdicts of some matchups on some items, {benchmark: mask}; numbers of files stay."""
    tables = {key: None for key in verdicts.tables if key in keep}

    def rows(found: dict[Matchup, np.ndarray]) -> dict[Matchup, np.ndarray]:
        return {key: found[key][kept_items[key.benchmark]] for key in tables if key in found}

    judges = {key.judge for key in tables}
    return dataclasses.replace(
        verdicts,
        ids={
            name: [one for one, kept in zip(verdicts.ids[name], mask, strict=True) if kept]
            for name, mask in kept_items.items()
        },
        tables=rows(verdicts.tables),
        spans=rows(verdicts.spans),
        scores=rows(verdicts.scores),
        prompts={judge: text for judge, text in verdicts.prompts.items() if judge in judges},
        one_order=verdicts.one_order & judges,
        unordered=verdicts.unordered & tables.keys(),
    )


def replies(verdicts: Verdicts, spans: np.ndarray) -> list[str]:
    """The judges' raw replies, "" where there is none, of `spans` [n, 3] as in `Verdicts.spans`."""
    texts = [""] * len(spans)
    for number, path in enumerate(verdicts.paths):
        in_file = np.flatnonzero(spans[:, 0] == number)
        if number in verdicts.foreign:
            for row in in_file:
                texts[row] = verdicts.foreign[number][spans[row, 1]]
        elif len(in_file):
            with path.open("rb") as lines:
                for row in in_file[np.argsort(spans[in_file, 1])]:
                    lines.seek(spans[row, 1])
                    texts[row] = json.loads(lines.read(spans[row, 2])).get("raw") or ""
    return texts


def natural(name: str) -> list[tuple[int, int | str]]:
    """A sort key that puts "7" before "10", and "7B" before "13B".

    >>> natural("a-13B")
    [(1, 'a-'), (0, 13), (1, 'B')]
    """
    parts = enumerate(re.split(r"(\d+)", name))  # text and numbers alternate
    return [(0, int(part)) if place % 2 else (1, part) for place, part in parts if part]
