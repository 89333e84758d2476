"""`report.json`: every number of a report, from verdicts and texts."""

import dataclasses
import itertools
from collections import Counter
from typing import Any

import numpy as np

from evaluation.judging.verdicts import MODEL, REFERENCE, Cell, Verdicts, natural
from evaluation.judging.workdirs import Texts
from evaluation.scoring import agreement, intervals, lengths, score, signals, significance

AVERAGE = "average"
"""Stands where a reference's name would: the mean over all references, an item at a time."""

FEW = 10
"""Items that a topic must have to get a rate of its own."""

Results = dict[str, Any]
Key = tuple[str, str, str]  # judge, benchmark, reference


def measure(verdicts: Verdicts, people: Verdicts | None, texts: Texts, *, seed: int) -> Results:
    """All numbers. Lists hold one record a row, and say in fields what they are of."""
    panels = all_panels(verdicts)
    rates = win_rates(verdicts, panels, seed)
    return {
        "settings": {"seed": seed, "level": intervals.LEVEL},
        "verdicts": verdicts.count,
        "benchmarks": {name: _benchmark(verdicts, texts, name) for name in sorted(verdicts.ids)},
        "references": sorted(verdicts.names("reference"), key=natural),
        "systems": _ranked(rates),
        "judges": {judge: _judge(verdicts, judge, seed) for judge in verdicts.names("judge")},
        "win_rates": rates,
        "by_difficulty": _by_label(verdicts, panels, texts, "difficulty", seed),
        "by_topic": _by_label(verdicts, panels, texts, "topic", seed),
        "comparisons": [row for key, panel in panels.items() for row in _compare(key, panel)],
        "by_length": _by_length(verdicts, texts, seed),
        "agreement": _agreements(verdicts, people, seed),
        "signals": signals.measure(verdicts, texts),
    }


@dataclasses.dataclass(frozen=True)
class Panel:
    """What one judge said on one benchmark against one reference, or against their average."""

    parts: dict[str, list[np.ndarray]]  # generator -> bounds [2, items] against each reference
    references: int = 1

    @property
    def steps(self) -> int:
        return score.STEPS * self.references

    def scores(self, generator: str) -> np.ndarray:
        """[items]: averaged over the references, NaN where not judged or invalid."""
        return score.item_scores(score.average(self.parts[generator]))


def all_panels(verdicts: Verdicts) -> dict[Key, Panel]:
    """The bounds of every cell, a panel for each judge, benchmark and reference, and averages.

    Raises:
      ValueError: a reference is called as the average is.
    """
    panels: dict[Key, Panel] = {}
    for cell, table in verdicts.cells.items():
        if cell.reference == AVERAGE:
            raise ValueError(f"a reference is called {AVERAGE!r}; give it another name")
        panel = panels.setdefault((cell.judge, cell.benchmark, cell.reference), Panel({}))
        panel.parts[cell.generator] = [score.item_bounds(table)]
    for judge, benchmark in sorted({key[:2] for key in panels}):
        mine = [p.parts for key, p in panels.items() if key[:2] == (judge, benchmark)]
        if len(mine) > 1:
            everywhere = sorted(set.intersection(*map(set, mine)))
            together = {name: [parts[name][0] for parts in mine] for name in everywhere}
            panels[judge, benchmark, AVERAGE] = Panel(together, len(mine))
    return {key: panels[key] for key in sorted(panels)}


def headline(keys: Any, judge: str, benchmark: str) -> Key | None:
    """The panel that stands for a judge on a benchmark: the average, or the only reference."""
    mine = [key for key in keys if key[:2] == (judge, benchmark)]
    averages = [key for key in mine if key[2] == AVERAGE]
    return (averages or mine or [None])[0]


def _of(key: Key, generator: str) -> dict[str, str]:
    return Cell(*key, generator)._asdict()


def win_rates(verdicts: Verdicts, panels: dict[Key, Panel], seed: int) -> list[dict[str, Any]]:
    rows = []
    for key, panel in panels.items():
        for generator, parts in panel.parts.items():
            rate = score.mean_rate(parts, seed=seed)
            row = _of(key, generator) | rate.record()
            if key[2] != AVERAGE:
                table = verdicts.cells[Cell(*key, generator)]
                row["position"] = score.position(table).record()
            rows.append(row)
    return rows


def _ranked(rates: list[dict[str, Any]]) -> list[str]:
    """Systems, the best first: by the mean of their rates over all cells."""
    found: dict[str, list[float]] = {}
    for row in rates:
        mine = found.setdefault(row["generator"], [])
        if row["reference"] != AVERAGE and row["rate"] is not None:
            mine.append(row["rate"])
    return sorted(found, key=lambda name: (-np.mean(found[name] or [0.0]), natural(name)))


def _labels(verdicts: Verdicts, texts: Texts, benchmark: str, field: str) -> list[Any]:
    return [getattr(texts.items[benchmark, i], field) for i in verdicts.ids[benchmark]]


def _benchmark(verdicts: Verdicts, texts: Texts, benchmark: str) -> dict[str, Any]:
    """How many items there are, and of which difficulty and topic where that is known."""
    counts = {
        field: Counter(label for label in _labels(verdicts, texts, benchmark, field) if label)
        for field in ("difficulty", "topic")
    }
    return {
        "items": len(verdicts.ids[benchmark]),
        "difficulty": {str(level): n for level, n in sorted(counts["difficulty"].items())},
        "topic": dict(sorted(counts["topic"].items(), key=lambda item: (-item[1], item[0]))),
    }


def _by_label(
    verdicts: Verdicts,
    panels: dict[Key, Panel],
    texts: Texts,
    field: str,
    seed: int,
) -> list[dict[str, Any]]:
    """Win rates of the items with each label; of topics only those with `FEW` items or more.

    Of the average of the references only: against one of them few items of a label are judged.
    """
    rows = []
    for key, panel in panels.items():
        if key != headline(panels, *key[:2]):
            continue
        labels = np.array([str(x or "") for x in _labels(verdicts, texts, key[1], field)])
        counts = Counter(labels.tolist())
        least = 1 if field == "difficulty" else FEW
        for label in sorted(counts, key=natural):
            if not label or counts[label] < least:
                continue
            for generator, parts in panel.parts.items():
                rate = score.mean_rate(parts, labels == label, seed=seed)
                rows.append(_of(key, generator) | {field: label} | rate.record())
    return rows


def _compare(key: Key, panel: Panel) -> list[dict[str, Any]]:
    """All pairs of systems of a panel, which is the family of Holm's correction."""
    scores = {name: panel.scores(name) for name in panel.parts}
    rows = []
    for one, other in itertools.combinations(sorted(scores, key=natural), 2):
        both = ~np.isnan(scores[one]) & ~np.isnan(scores[other])
        if not both.any():
            continue
        a, b = scores[one][both], scores[other][both]
        low, high = intervals.of_difference(a, b, panel.steps)
        rows.append(
            dict(zip(("judge", "benchmark", "reference"), key, strict=True))
            | {"one": one, "other": other, "items": int(both.sum())}
            | {"difference": float((a - b).mean()), "low": low, "high": high}
            | {"p": significance.paired(a, b, panel.steps)}
        )
    for row, adjusted in zip(rows, significance.holm([row["p"] for row in rows]), strict=True):
        row["p_holm"] = adjusted
    return rows


def _judge(verdicts: Verdicts, judge: str, seed: int) -> dict[str, Any]:
    """What a judge is like over all that it judged; shares have intervals by items."""
    tables = {cell: table for cell, table in verdicts.cells.items() if cell.judge == judge}
    total = sum(map(score.position, tables.values()), score.NO_POSITION)
    first, named = [], []
    for benchmark in sorted({cell.benchmark for cell in tables}):
        mine = np.stack([table for cell, table in tables.items() if cell.benchmark == benchmark])
        for_first = (mine == [MODEL, REFERENCE]).sum(axis=(0, 2))
        for_second = (mine == [REFERENCE, MODEL]).sum(axis=(0, 2))
        first.append(for_first)
        named.append(for_first + for_second)
    sums, counts = np.concatenate(first)[:, None], np.concatenate(named)[:, None]
    low = high = None
    if counts.sum():
        _, ends = intervals.bootstrap_ratios(sums, counts, seed=seed)
        low, high = map(float, ends[:, 0])
    return {
        "prompt_version": verdicts.prompts[judge],
        "position": total.record() | {"first_preference_low": low, "first_preference_high": high},
    }


def _by_length(verdicts: Verdicts, texts: Texts, seed: int) -> list[dict[str, Any]]:
    """By stratum of length for each system; `generator` None: all systems of the judge together."""
    ratios: dict[tuple[str, str, str], np.ndarray] = {}
    rows = []
    for judge, benchmark in sorted({cell[:2] for cell in verdicts.cells}):
        ids = verdicts.ids[benchmark]
        bounds: dict[str, list[np.ndarray]] = {}
        ratio: dict[str, list[np.ndarray]] = {}
        for cell, table in verdicts.cells.items():
            if cell[:2] != (judge, benchmark):
                continue
            pair = (benchmark, cell.generator, cell.reference)
            if pair not in ratios:
                sizes = (texts.lengths(benchmark, name, ids) for name in pair[1:])
                ratios[pair] = lengths.ratios(*sizes)
            bounds.setdefault(cell.generator, []).append(score.item_bounds(table))
            ratio.setdefault(cell.generator, []).append(ratios[pair])
        for generator in sorted(bounds, key=natural):
            mine = np.stack(bounds[generator]), np.stack(ratio[generator])
            rows.append(
                {"judge": judge, "benchmark": benchmark, "generator": generator}
                | lengths.by_length(*mine, seed=seed)
            )
        together = [np.concatenate([np.stack(x) for x in y.values()]) for y in (bounds, ratio)]
        rows.append(
            {"judge": judge, "benchmark": benchmark, "generator": None}
            | lengths.by_length(*together, seed=seed)
        )
    return rows


def _agreements(verdicts: Verdicts, people: Verdicts | None, seed: int) -> list[dict[str, Any]]:
    """Each pair of judges, people too, on each benchmark, over the pairs of answers both judged."""
    scores: dict[str, dict[tuple[str, ...], np.ndarray]] = {}
    for source in filter(None, (verdicts, people)):
        for cell, table in source.cells.items():
            of = score.either_order if source is people else score.item_bounds
            scores.setdefault(cell.judge, {})[cell[1:]] = score.item_scores(of(table))
    rows = []
    for one, other in itertools.combinations(sorted(scores), 2):
        for benchmark in sorted(verdicts.ids):
            shared = [c for c in scores[one] if c[0] == benchmark and c in scores[other]]
            if not shared:
                continue
            sides = [np.stack([scores[judge][c] for c in shared], axis=1) for judge in (one, other)]
            found = agreement.between(*sides, seed=seed)
            rows.append({"one": one, "other": other, "benchmark": benchmark} | found.record())
    return rows
