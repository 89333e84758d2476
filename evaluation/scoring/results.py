"""The numbers of a report, indexed once for its figures and tables; `record` is report.json."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from evaluation.judgements.verdicts import Matchup
from evaluation.scoring.lengths import LengthEffect
from evaluation.scoring.people import PeopleResults
from evaluation.scoring.score import Position, WinRate
from evaluation.scoring.signals import Contamination, SystemSignals
from evaluation.statistics.agreement import Agreement
from evaluation.statistics.intervals import LEVEL
from evaluation.statistics.leaderboard import Leaderboard

AVERAGE = "average"
"""Used in place of a reference's name: the mean over all references, item by item."""

ITEM_LABELS = ("difficulty", "topic")
"""Fields of items by whose values win rates are broken down."""

Panel = tuple[str, str]  # (judge, benchmark): the subject of one panel of a figure
SheetKey = tuple[str, str, str]  # (judge, benchmark, reference)


@dataclasses.dataclass(frozen=True)
class BenchmarkSummary:
    """The items of a benchmark, and how many have each label of ITEM_LABELS."""

    items: int
    labels: Mapping[str, Mapping[str, int]]


@dataclasses.dataclass(frozen=True)
class JudgeSummary:
    """A judge over all its verdicts."""

    prompt_version: str
    position: Position
    low: float | None  # 95 % interval of position.first_preference
    high: float | None
    one_order: bool  # each pair was judged once


@dataclasses.dataclass(frozen=True)
class Difference:
    """Win rate of one system minus another's, on the items that are valid for both."""

    items: int
    difference: float
    low: float  # 95 % interval
    high: float
    p: float  # of the paired permutation test
    p_holm: float  # corrected for all pairs of systems of the judge, benchmark and reference
    p_report: float  # corrected for all comparisons of the report

    @property
    def is_significant(self) -> bool:
        """Whether it is more than chance, among all that a reader of the report compares."""
        return self.p_report < 1 - LEVEL

    def __neg__(self) -> "Difference":
        return dataclasses.replace(
            self, difference=-self.difference, low=-self.high, high=-self.low
        )


@dataclasses.dataclass(frozen=True)
class Results:
    """All numbers of a report; mappings keep the order of report.json.

    `headline` is the reference that represents a judge on a benchmark: AVERAGE, or the only one.
    """

    seed: int
    verdicts: int
    benchmarks: Mapping[str, BenchmarkSummary]
    references: list[str]
    systems: list[str]  # best first
    judges: Mapping[str, JudgeSummary]
    headline: Mapping[Panel, str]
    rates: Mapping[Matchup, WinRate]  # averages too
    positions: Mapping[Matchup, Position]  # without averages
    rates_by_label: Mapping[str, Mapping[SheetKey, Mapping[tuple[str, str], WinRate]]]
    """Field -> panel and its headline reference -> (generator, label) -> rate."""
    differences: Mapping[SheetKey, Mapping[tuple[str, str], Difference]]  # by (one, other)
    lengths: Mapping[Panel, Mapping[str | None, LengthEffect]]  # by generator; None: all together
    agreement: Mapping[tuple[str, str, str], Agreement]  # (one judge, another, benchmark)
    signals: Mapping[str, Mapping[str, SystemSignals]]  # benchmark -> generator
    contamination: Mapping[str, Contamination]  # by benchmark; {} without training data
    people: PeopleResults
    leaderboards: Mapping[Panel, Leaderboard]

    def references_of(self, judge: str, benchmark: str) -> list[str]:
        """The references of a judge's rates on a benchmark; their average comes last."""
        known = {m.reference for m in self.rates if m[:2] == (judge, benchmark)}
        return [name for name in (*self.references, AVERAGE) if name in known]

    def record(self) -> dict[str, Any]:
        """The content of report.json: lists of rows, whose fields name what they are about."""
        rates = _rows(self.rates, *Matchup._fields)
        for matchup, row in zip(self.rates, rates, strict=True):
            if matchup in self.positions:
                row["position"] = self.positions[matchup].record()
        panel = "judge", "benchmark"
        by_label = {
            field: _rows(self.rates_by_label[field], *panel, "reference", "generator", field)
            for field in ITEM_LABELS
        }
        return {
            "settings": {"seed": self.seed, "level": LEVEL},
            "verdicts": self.verdicts,
            "benchmarks": {
                name: {"items": summary.items, **summary.labels}
                for name, summary in self.benchmarks.items()
            },
            "references": self.references,
            "systems": self.systems,
            "judges": {
                name: {
                    "prompt_version": judge.prompt_version,
                    "one_order": judge.one_order,
                    "position": judge.position.record()
                    | {"first_preference_low": judge.low, "first_preference_high": judge.high},
                }
                for name, judge in self.judges.items()
            },
            "win_rates": rates,
            "by_difficulty": by_label["difficulty"],
            "by_topic": by_label["topic"],
            "comparisons": _rows(self.differences, *panel, "reference", "one", "other"),
            "by_length": _rows(self.lengths, *panel, "generator"),
            "agreement": _rows(self.agreement, "one", "other", "benchmark"),
            "people": {
                "agreement": _rows(self.people.agreement, "question", "benchmark"),
                "win_rates": _rows(self.people.rates, "question", *Matchup._fields[1:]),
                "corrected": _rows(self.people.corrections, *Matchup._fields),
            },
            "leaderboards": [
                {"judge": judge, "benchmark": benchmark, "misfit": board.misfit}
                | {"standings": _rows(board.standings, "generator")}
                for (judge, benchmark), board in self.leaderboards.items()
            ],
            "signals": [
                {"benchmark": benchmark, "generator": name, "is_reference": found.is_reference}
                | dataclasses.asdict(found.texts)
                | {"rouge": found.rouge, "safety": dataclasses.asdict(found.safety)}
                for benchmark, generators in self.signals.items()
                for name, found in generators.items()
            ],
            "contamination": _rows(self.contamination, "benchmark"),
        }


def _rows(numbers: Mapping[Any, Any], *fields: str) -> list[dict[str, Any]]:
    """A row for each dataclass in mappings of mappings: its keys, named `fields`, and its fields.

    >>> _rows({("a", "b"): {"x": BenchmarkSummary(9, {})}}, "one", "other", "name")
    [{'one': 'a', 'other': 'b', 'name': 'x', 'items': 9, 'labels': {}}]
    """
    rows = []
    for key, found in numbers.items():
        keys = key if isinstance(key, tuple) else (key,)
        named = dict(zip(fields, keys, strict=False))
        inside = isinstance(found, Mapping)
        below = _rows(found, *fields[len(keys) :]) if inside else [dataclasses.asdict(found)]
        rows += [named | row for row in below]
    return rows
