"""Computes the Results of a report from verdicts and texts."""

import dataclasses
import itertools
from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np

from common.records import Example
from evaluation.judgements.verdicts import Matchup, VerdictCode, Verdicts, natural
from evaluation.judgements.workdirs import ReportTexts
from evaluation.scoring import score
from evaluation.scoring.lengths import LengthEffect, by_length, ratios
from evaluation.scoring.people import PREFERENCE, measure_people
from evaluation.scoring.results import (
    AVERAGE,
    ITEM_LABELS,
    BenchmarkSummary,
    Difference,
    JudgeSummary,
    Panel,
    Results,
    SheetKey,
)
from evaluation.scoring.score import WinRate
from evaluation.scoring.signals import benchmark_signals, contaminated
from evaluation.statistics import leaderboard
from evaluation.statistics.agreement import Agreement, between
from evaluation.statistics.intervals import difference_interval, share
from evaluation.statistics.leaderboard import Leaderboard
from evaluation.statistics.significance import holm, paired

MIN_TOPIC_ITEMS = 10
"""Items that a topic needs for a rate of its own."""

Pair = tuple[str, str]  # of systems

Sheet = dict[str, list[np.ndarray]]
"""Generator -> bounds [2, items] against each reference: one, or those of an average."""


def measure(
    verdicts: Verdicts,
    people: Verdicts | None,
    texts: ReportTexts,
    *,
    seed: int,
    other_questions: Mapping[str, Verdicts] | None = None,
    training: Sequence[Example] = (),
) -> Results:
    """All numbers of a report; ValueError where a reference is named as their average.

    `people` prefer an answer, as judges do; `other_questions` are what else they were asked;
    `training` is what some of the systems were trained on.
    """
    sheets = score_sheets(verdicts)
    rates = {
        Matchup(*key, generator): score.mean_rate(parts)
        for key, sheet in sheets.items()
        for generator, parts in sheet.items()
    }
    panels = sorted({key[:2] for key in sheets})
    headline = {panel: _headline(sheets, panel) for panel in panels}
    benchmarks = sorted(verdicts.ids)
    asked = {PREFERENCE: people} if people else {}
    return Results(
        seed=seed,
        verdicts=verdicts.count,
        benchmarks={name: _benchmark(verdicts, texts, name) for name in benchmarks},
        references=sorted(verdicts.names("reference"), key=natural),
        systems=_ranked(rates),
        judges={judge: _judge(verdicts, judge) for judge in verdicts.names("judge")},
        headline=headline,
        rates=rates,
        positions={key: score.position(table) for key, table in verdicts.tables.items()},
        rates_by_label={
            field: {
                (*panel, reference): _by_label(
                    sheets[*panel, reference],
                    _labels(verdicts, texts, panel[1], field),
                    least,
                )
                for panel, reference in headline.items()
            }
            for field, least in zip(ITEM_LABELS, (1, MIN_TOPIC_ITEMS), strict=True)
        },
        differences=_differences(sheets),
        lengths={
            panel: effects for panel in panels if (effects := _lengths(verdicts, texts, panel))
        },
        agreement=_agreement(verdicts, people, seed),
        signals={name: benchmark_signals(verdicts, texts, name) for name in benchmarks},
        contamination=contaminated(verdicts, texts, training),
        people=measure_people(asked | dict(other_questions or {}), sheets, seed=seed),
        leaderboards={panel: _leaderboard(sheets, panel) for panel in panels},
    )


def score_sheets(verdicts: Verdicts) -> dict[SheetKey, Sheet]:
    """One for each judge, benchmark and reference, and for the average of several references."""
    sheets: dict[SheetKey, Sheet] = {}
    for matchup, table in verdicts.tables.items():
        if matchup.reference == AVERAGE:
            raise ValueError(f"a reference is named {AVERAGE!r}; give it another name")
        sheet = sheets.setdefault(matchup[:3], {})
        sheet[matchup.generator] = [score.item_bounds(table, verdicts.scores.get(matchup))]
    for judge, benchmark in sorted({key[:2] for key in sheets}):
        each = [sheet for key, sheet in sheets.items() if key[:2] == (judge, benchmark)]
        everywhere = sorted(set.intersection(*map(set, each)))
        if len(each) > 1 and everywhere:
            sheets[judge, benchmark, AVERAGE] = {
                name: [sheet[name][0] for sheet in each] for name in everywhere
            }
    return {key: sheets[key] for key in sorted(sheets)}


def _leaderboard(sheets: dict[SheetKey, Sheet], panel: Panel) -> Leaderboard:
    """All systems and references of a panel, from their pairs."""
    return leaderboard.rank(
        {
            (generator, key[2]): score.item_scores(bounds[0])
            for key, sheet in sheets.items()
            if key[:2] == panel and key[2] != AVERAGE
            for generator, bounds in sheet.items()
        }
    )


def _headline(sheets: dict[SheetKey, Sheet], panel: Panel) -> str:
    """The reference that represents all: the average, or the only one."""
    references = [key[2] for key in sheets if key[:2] == panel]
    return AVERAGE if AVERAGE in references else references[0]


def _ranked(rates: dict[Matchup, WinRate]) -> list[str]:
    """Systems, the best first: by the mean of their rates over all matchups."""
    known: dict[str, list[float]] = {}
    for matchup, rate in rates.items():
        own = known.setdefault(matchup.generator, [])
        if matchup.reference != AVERAGE and rate.rate is not None:
            own.append(rate.rate)
    return sorted(known, key=lambda name: (-np.mean(known[name] or [0.0]), natural(name)))


def _labels(verdicts: Verdicts, texts: ReportTexts, benchmark: str, field: str) -> list[str]:
    """The label of each item, "" where it has none."""
    items = (texts.items[benchmark, name] for name in verdicts.ids[benchmark])
    return [str(getattr(item, field) or "") for item in items]


def _benchmark(verdicts: Verdicts, texts: ReportTexts, benchmark: str) -> BenchmarkSummary:
    """Difficulties by value, topics by frequency."""
    difficulties, topics = (
        Counter(filter(None, _labels(verdicts, texts, benchmark, field))) for field in ITEM_LABELS
    )
    labels = {
        "difficulty": dict(sorted(difficulties.items())),
        "topic": dict(sorted(topics.items(), key=lambda pair: (-pair[1], pair[0]))),
    }
    return BenchmarkSummary(len(verdicts.ids[benchmark]), labels)


def _by_label(
    sheet: Sheet, item_labels: list[str], min_items: int
) -> dict[tuple[str, str], WinRate]:
    """(generator, label) -> win rate, for labels of at least `min_items` items."""
    labels, counts = np.array(item_labels), Counter(item_labels)
    return {
        (generator, label): score.mean_rate(parts, labels == label)
        for label in sorted(counts, key=natural)
        if label and counts[label] >= min_items
        for generator, parts in sheet.items()
    }


def _differences(sheets: dict[SheetKey, Sheet]) -> dict[SheetKey, dict[Pair, Difference]]:
    """All pairs of systems of all sheets: each sheet is a family of Holm's correction, and all."""
    found = {key: _sheet_differences(sheet) for key, sheet in sheets.items()}
    everything = iter(holm([row.p for rows in found.values() for row in rows.values()]))
    return {
        key: {
            pair: dataclasses.replace(row, p_report=next(everything)) for pair, row in rows.items()
        }
        for key, rows in found.items()
    }


def _sheet_differences(sheet: Sheet) -> dict[Pair, Difference]:
    scores = {name: score.item_scores(score.average(parts)) for name, parts in sheet.items()}
    rows = {}
    for one, other in itertools.combinations(sorted(scores, key=natural), 2):
        both = ~np.isnan(scores[one]) & ~np.isnan(scores[other])
        if not both.any():
            continue
        a, b = scores[one][both], scores[other][both]
        steps = score.grid(np.concatenate([a, b]), len(sheet[one]))
        low, high = difference_interval(a, b)
        p = paired(a, b, steps)
        rows[one, other] = Difference(int(both.sum()), float((a - b).mean()), low, high, p, p, p)
    adjusted = holm([row.p for row in rows.values()])
    return {
        pair: dataclasses.replace(row, p_holm=p)
        for (pair, row), p in zip(rows.items(), adjusted, strict=True)
    }


def _judge(verdicts: Verdicts, judge: str) -> JudgeSummary:
    """A judge over everything it judged; the interval takes items whole."""
    model, reference = VerdictCode.MODEL, VerdictCode.REFERENCE
    tables = {key: table for key, table in verdicts.tables.items() if key.judge == judge}
    total = score.position(np.concatenate(list(tables.values())))
    first, decided = [], []
    for benchmark in sorted({matchup.benchmark for matchup in tables}):
        own = np.stack([table for key, table in tables.items() if key.benchmark == benchmark])
        own = np.where((own == VerdictCode.MISSING).any(axis=2, keepdims=True), -1, own)
        for_first = (own == [model, reference]).sum(axis=(0, 2))
        for_second = (own == [reference, model]).sum(axis=(0, 2))
        first.append(for_first)
        decided.append(for_first + for_second)
    sums, counts = np.concatenate(first)[:, None], np.concatenate(decided)[:, None]
    low = high = None
    if counts.sum():
        _, low, high = share(sums, counts)
    is_one_order = judge in verdicts.one_order
    return JudgeSummary(verdicts.prompts[judge], total, low, high, is_one_order)


def _lengths(
    verdicts: Verdicts, texts: ReportTexts, panel: Panel
) -> dict[str | None, LengthEffect]:
    """The effect of length for each system, and under None for all of them together.

    Matchups from elsewhere without all texts are left out; {} where none is left.
    """
    benchmark = panel[1]
    ids = verdicts.ids[benchmark]
    bounds: dict[str, list[np.ndarray]] = {}
    ratio: dict[str, list[np.ndarray]] = {}
    for matchup, table in verdicts.tables.items():
        if matchup[:2] != panel or not texts.cover(matchup, verdicts.judged(matchup)):
            continue
        model = texts.lengths(benchmark, matchup.generator, ids)
        reference = texts.lengths(benchmark, matchup.reference, ids)
        scored = score.item_bounds(table, verdicts.scores.get(matchup))
        bounds.setdefault(matchup.generator, []).append(scored)
        ratio.setdefault(matchup.generator, []).append(ratios(model, reference))
    effects: dict[str | None, LengthEffect] = {
        name: by_length(np.stack(bounds[name]), np.stack(ratio[name]))
        for name in sorted(bounds, key=natural)
    }
    if not effects:
        return {}
    everything = (np.concatenate([np.stack(x) for x in y.values()]) for y in (bounds, ratio))
    return effects | {None: by_length(*everything)}


def _agreement(
    verdicts: Verdicts, people: Verdicts | None, seed: int
) -> dict[tuple[str, str, str], Agreement]:
    """Each pair of judges, people first, on each benchmark, over what both judged."""
    scores: dict[str, dict[tuple[str, ...], np.ndarray]] = {}
    for source in filter(None, (verdicts, people)):
        for matchup, table in source.tables.items():
            own = scores.setdefault(matchup.judge, {})
            bounds = score.item_bounds(table, source.scores.get(matchup))
            own[matchup[1:]] = score.item_scores(bounds)
    found = {}
    known = set(people.names("judge")) if people else set()
    for one, other in itertools.combinations(sorted(scores, key=lambda n: (n not in known, n)), 2):
        for benchmark in sorted(verdicts.ids):
            shared = [c for c in scores[one] if c[0] == benchmark and c in scores[other]]
            if shared:
                a, b = (
                    np.stack([scores[name][c] for c in shared], axis=1) for name in (one, other)
                )
                found[one, other, benchmark] = between(a, b, seed=seed)
    return found
