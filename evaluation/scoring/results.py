"""The numbers of a report, indexed once for its figures and tables; `record` is report.json."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from evaluation.judging.verdicts import Matchup
from evaluation.scoring.agreement import Agreement
from evaluation.scoring.intervals import LEVEL
from evaluation.scoring.lengths import LengthEffect
from evaluation.scoring.score import Position, WinRate
from evaluation.scoring.signals import SystemSignals

AVERAGE = "average"
"""Used in place of a reference's name: the mean over all references, item by item."""

ITEM_LABELS = ("difficulty", "topic")
"""Fields of items by whose values win rates are broken down."""

Panel = tuple[str, str]  # (judge, benchmark): the subject of one panel of a figure


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
    interval: tuple[float, float] | None  # of position.first_preference

    def record(self) -> dict[str, Any]:
        """The entry of report.json."""
        low, high = self.interval or (None, None)
        ends = {"first_preference_low": low, "first_preference_high": high}
        return {
            "prompt_version": self.prompt_version,
            "position": self.position.record() | ends,
        }


@dataclasses.dataclass(frozen=True)
class Difference:
    """Win rate of one system minus another's, on the items that are valid for both."""

    items: int
    difference: float
    low: float  # 95 % interval
    high: float
    p: float  # of the paired permutation test
    p_holm: float  # corrected for all pairs of systems of the judge, benchmark and reference

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
    rates_by_label: Mapping[str, Mapping[Panel, Mapping[tuple[str, str], WinRate]]]
    """Field -> panel -> (generator, label) -> rate against the headline reference."""
    differences: Mapping[tuple[str, str, str], Mapping[tuple[str, str], Difference]]
    """(judge, benchmark, reference) -> (one, other) -> difference."""
    lengths: Mapping[Panel, Mapping[str | None, LengthEffect]]  # by generator; None: all together
    agreement: Mapping[tuple[str, str, str], Agreement]  # (one judge, another, benchmark)
    signals: Mapping[str, Mapping[str, SystemSignals]]  # benchmark -> generator

    def references_of(self, judge: str, benchmark: str) -> list[str]:
        """The references of a judge's rates on a benchmark; their average comes last."""
        known = {m.reference for m in self.rates if m[:2] == (judge, benchmark)}
        return [name for name in (*self.references, AVERAGE) if name in known]

    def record(self) -> dict[str, Any]:
        """The content of report.json: lists of rows, whose fields name what they are about."""
        asdict = dataclasses.asdict
        rates = [
            matchup._asdict()
            | asdict(rate)
            | ({"position": found.record()} if (found := self.positions.get(matchup)) else {})
            for matchup, rate in self.rates.items()
        ]
        by_label = {
            field: [
                Matchup(*panel, self.headline[panel], generator)._asdict()
                | {field: label}
                | asdict(rate)
                for panel, rates in self.rates_by_label[field].items()
                for (generator, label), rate in rates.items()
            ]
            for field in ITEM_LABELS
        }
        comparisons = [
            {"judge": judge, "benchmark": benchmark, "reference": reference}
            | {"one": one, "other": other}
            | asdict(difference)
            for (judge, benchmark, reference), pairs in self.differences.items()
            for (one, other), difference in pairs.items()
        ]
        lengths = [
            {"judge": judge, "benchmark": benchmark, "generator": generator} | asdict(effect)
            for (judge, benchmark), effects in self.lengths.items()
            for generator, effect in effects.items()
        ]
        agreement = [
            {"one": one, "other": other, "benchmark": benchmark} | asdict(found)
            for (one, other, benchmark), found in self.agreement.items()
        ]
        signals = [
            {"benchmark": benchmark, "generator": generator} | found.record()
            for benchmark, generators in self.signals.items()
            for generator, found in generators.items()
        ]
        return {
            "settings": {"seed": self.seed, "level": LEVEL},
            "verdicts": self.verdicts,
            "benchmarks": {
                name: {"items": summary.items, **summary.labels}
                for name, summary in self.benchmarks.items()
            },
            "references": self.references,
            "systems": self.systems,
            "judges": {name: summary.record() for name, summary in self.judges.items()},
            "win_rates": rates,
            "by_difficulty": by_label["difficulty"],
            "by_topic": by_label["topic"],
            "comparisons": comparisons,
            "by_length": lengths,
            "agreement": agreement,
            "signals": signals,
        }
