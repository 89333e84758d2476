"""The figures of a report: for its page, and as one PNG and one SVG each."""

import dataclasses
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from common.reports import charts, drawing
from common.reports.charts import HeatField, RateBar, percent
from common.reports.drawing import SERIES, Drawing
from evaluation.judging.verdicts import Matchup
from evaluation.reporting.systems import Systems
from evaluation.scoring.lengths import Stratum
from evaluation.scoring.results import AVERAGE, Difference, Results
from evaluation.scoring.score import WinRate

MAX_TOPICS = 12
"""Topics in a figure; the tables have all."""


OUTCOMES = {  # of an item judged in both orders, a field of Position: name, colour
    "consistent": ("same winner in both orders", "series2"),
    "mixed": ("a tie in one order", "rest"),
    "for_first": ("whichever came first", "series1"),
    "for_second": ("whichever came second", "series3"),
}


@dataclasses.dataclass(frozen=True)
class ReportFigure:
    """Drawings under a heading."""

    heading: str
    text: str
    drawings: list[Drawing]


def build(results: Results, systems: Systems) -> dict[str, ReportFigure]:
    """The figures by file name, without those for which there are no verdicts.

    Raises:
      ValueError: there are more judges, references or methods than colours.
    """
    _require_colours("judges", results.judges)
    _require_colours("references", results.references)
    figures = {}
    for judge in results.judges:
        suffix = file_suffix(judge, results.judges)
        figures[f"win_rates{suffix}"] = _win_rates(results, systems, judge)
        figures[f"backbones{suffix}"] = _backbones(results, systems, judge)
        figures[f"comparisons{suffix}"] = _comparisons(results, systems, judge)
        figures[f"difficulty{suffix}"] = _by_label(results, systems, judge, "difficulty")
        figures[f"topics{suffix}"] = _by_label(results, systems, judge, "topic")
    figures["judges"] = _judges(results, systems)
    figures["position"] = _position(results)
    figures["lengths"] = _lengths(results)
    return {name: figure for name, figure in figures.items() if figure.drawings}


def write(directory: Path, figures: dict[str, ReportFigure]) -> set[str]:
    """Writes one PNG and one SVG each; returns the characters that no font can draw in a PNG."""
    directory.mkdir(parents=True, exist_ok=True)
    missing: set[str] = set()
    for name, figure in figures.items():
        whole = drawing.beside(figure.heading, figure.drawings, min(2, len(figure.drawings)))
        missing |= drawing.write_png(directory / f"{name}.png", whole)
        drawing.write_svg(directory / f"{name}.svg", whole)
    return missing


def _require_colours(kind: str, names: Iterable[str]) -> None:
    """Raises ValueError where there are more names than colours."""
    if (count := len(list(names))) > SERIES:
        raise ValueError(f"{count} {kind} do not fit in a figure; report at most {SERIES}")


def file_suffix(judge: str, judges: Iterable[str]) -> str:
    """Distinguishes the files of a judge's figures; "" for the only judge.

    >>> file_suffix("a/b", ["a/b"]), file_suffix("a/b", ["a/b", "c"])
    ('', '-a_b')
    >>> [file_suffix(judge, ["a/b", "a b"]) for judge in ("a/b", "a b")]
    ['-a_b-1', '-a_b-2']
    """
    judges = list(judges)
    if len(judges) == 1:
        return ""
    safe_names = [re.sub(r"[^A-Za-z0-9.]+", "_", name) for name in judges]
    own = safe_names[judges.index(judge)]
    return f"-{own}" if safe_names.count(own) == 1 else f"-{own}-{judges.index(judge) + 1}"


def _colours(names: Iterable[str], everything: Iterable[str]) -> list[str]:
    """The colour of each name, the same in all panels: by its position; the average is grey."""
    colours = {name: f"series{i}" for i, name in enumerate(everything)} | {AVERAGE: "muted"}
    return [colours[name] for name in names]


def rate_bar(rate: WinRate | Stratum | None, label: str, reference: str = "") -> RateBar | None:
    """The bar of a rate; None where there is no rate."""
    if rate is None or rate.rate is None or rate.low is None or rate.high is None:
        return None
    interval = f"[{percent(rate.low)}, {percent(rate.high)}]"
    tip = f"{label}: {percent(rate.rate)} % {interval}, {_counted(rate, reference)}"
    return RateBar(rate.rate, rate.low, rate.high, tip)


def _counted(rate: WinRate | Stratum, reference: str) -> str:
    if isinstance(rate, Stratum):
        return f"{rate.pairs:,} pairs of {rate.items:,} items"
    invalid = rate.items - rate.valid
    if invalid and reference == AVERAGE:
        return f"{rate.items:,} items, {rate.valid:,} of them valid against all references"
    return f"{rate.valid:,} items" + (f", {invalid:,} more invalid" if invalid else "")


def _panel_title(benchmark: str, results: Results, reference: str = "") -> str:
    title = f"{benchmark} ({results.benchmarks[benchmark].items:,} items)"
    return f"{title}, {_against(reference)}" if reference else title


def _against(reference: str) -> str:
    return "average of the references" if reference == AVERAGE else f"against {reference}"


def _rate_groups(
    results: Results, bars: Iterable[tuple[str, str, Matchup]]
) -> list[tuple[str, list[RateBar | None]]]:
    """The (label, tip, matchup) of each bar grouped by label, without labels that have no rate."""
    groups: dict[str, list[tuple[WinRate | None, str, str]]] = {}
    for label, tip, matchup in bars:
        bar = results.rates.get(matchup), tip, matchup.reference
        groups.setdefault(label, []).append(bar)
    rated = {label: group for label, group in groups.items() if any(rate for rate, *_ in group)}
    return [(label, [rate_bar(*bar) for bar in group]) for label, group in rated.items()]


def _win_rates(results: Results, systems: Systems, judge: str) -> ReportFigure:
    drawings = []
    for benchmark in results.benchmarks:
        references = results.references_of(judge, benchmark)
        bars = (
            (s.label, f"{s.label} against {name}", Matchup(judge, benchmark, name, generator))
            for generator, s in systems.items()
            for name in references
        )
        if groups := _rate_groups(results, bars):
            only = references[0] if len(references) == 1 else ""  # no legend names it
            title = _panel_title(benchmark, results, only)
            colours = _colours(references, results.references)
            drawings.append(charts.rate_bars(title, groups, references, colours))
    orders = "averaged over both orders of the two answers and"
    if results.judges[judge].one_order:
        orders = "in the one order in which the judge saw the two answers, averaged"
    text = (
        f"Judge: {judge}. A win counts 1, a tie 0.5, a loss 0, {orders} over the items with valid "
        "verdicts. Lines are 95 % intervals, items resampled whole."
    )
    return ReportFigure(f"Win rates, {judge}", text, drawings)


def _backbones(results: Results, systems: Systems, judge: str) -> ReportFigure:
    """The headline rates, a group for each backbone and in it a bar for each method."""
    generators = {(s.backbone, s.name): name for name, s in systems.items() if s.backbone}
    backbones = list(dict.fromkeys(backbone for backbone, _ in generators))
    methods = list(dict.fromkeys(method for _, method in generators))
    text = f"Judge: {judge}. The same methods on different base models; lines are 95 % intervals."
    figure = ReportFigure(f"Backbones, {judge}", text, [])
    if len(backbones) < 2:
        return figure
    _require_colours("methods with a backbone", methods)
    grid = [(backbone, method) for backbone in backbones for method in methods]
    for benchmark in results.benchmarks:
        panel = judge, benchmark, results.headline.get((judge, benchmark), "")
        bars = (
            (pair[0], f"{pair[1]} on {pair[0]}", Matchup(*panel, generators.get(pair, "")))
            for pair in grid
        )
        groups = [group for group in _rate_groups(results, bars) if any(group[1])]
        if len(groups) >= 2:
            title = _panel_title(benchmark, results, panel[2])
            colours = _colours(methods, methods)
            figure.drawings.append(charts.rate_bars(title, groups, methods, colours))
    return figure


def _judges(results: Results, systems: Systems) -> ReportFigure:
    judges = list(results.judges)
    drawings = []
    for benchmark in results.benchmarks if len(judges) > 1 else ():
        headline = [(j, benchmark, results.headline.get((j, benchmark), "")) for j in judges]
        bars = (
            (system.label, f"{system.label}, {panel[0]}", Matchup(*panel, generator))
            for generator, system in systems.items()
            for panel in headline
        )
        if groups := _rate_groups(results, bars):
            title = _panel_title(benchmark, results)
            drawings.append(charts.rate_bars(title, groups, judges, _colours(judges, judges)))
    text = (
        "The same pairs of answers, judged by each, averaged over the references. Judges may "
        "differ in level and still agree on which system is better."
    )
    return ReportFigure("Judges compared", text, drawings)


def _position(results: Results) -> ReportFigure:
    names, colours = zip(*OUTCOMES.values(), strict=True)
    rows = []
    for judge, summary in results.judges.items():
        if items := summary.position.items:
            counts = [getattr(summary.position, field) for field in OUTCOMES]
            parts = [
                (count / items, f"{judge}: {name}, {count:,} of {items:,}")
                for count, name in zip(counts, names, strict=True)
            ]
            rows.append((judge, parts))
    text = (
        "Each pair of answers is judged twice, with the order swapped. A judge that considers only "
        "the answers names the same winner both times; one that is influenced by the order names "
        "the first, or the second, twice. That counts as half a win, so it pulls every rate "
        "towards 50 %."
    )
    chart = charts.shares("Pairs judged in both orders", rows, names, colours)
    return ReportFigure("Does the order of the answers matter?", text, [chart] if rows else [])


def _comparisons(results: Results, systems: Systems, judge: str) -> ReportFigure:
    drawings = []
    for benchmark in results.benchmarks:
        reference = results.headline.get((judge, benchmark), "")
        differences = results.differences.get((judge, benchmark, reference), {})
        order = [name for name in systems if any(name in pair for pair in differences)]
        if len(order) < 2:
            continue
        negated = {(other, one): -found for (one, other), found in differences.items()}
        both_ways = negated | {**differences}
        labels = {name: systems[name].label for name in order}
        rows = []
        for one, label in labels.items():
            fields = [
                _difference_field(both_ways.get((one, other)), f"{label} - {labels[other]}")
                for other in order
            ]
            rows.append((label, fields))
        counts = [found.items for found in differences.values()]
        compared = _compared_items(counts, results.benchmarks[benchmark].items)
        title = f"{benchmark} ({compared}), {_against(reference)}"
        drawings.append(charts.heat(title, list(labels.values()), rows))
    text = (
        f"Judge: {judge}. Percentage points by which the row's rate is above the column's, on the "
        "same items. Bold and coloured: p below 0.05 by an exact paired permutation test, after "
        "Holm's correction for all pairs of the table."
    )
    return ReportFigure(f"Which differences are more than chance? {judge}", text, drawings)


def _compared_items(counts: Sequence[int], total: int) -> str:
    """The items that the differences are based on: fewer than all where verdicts are invalid.

    >>> _compared_items([9, 9], 9), _compared_items([7, 8], 9)
    ('9 items', 'pairs on 7 to 8 of 9 items')
    """
    if min(counts) == total:
        return f"{total:,} items"
    start = f"{min(counts):,} to " if min(counts) < max(counts) else ""
    return f"pairs on {start}{max(counts):,} of {total:,} items"


def _difference_field(found: Difference | None, label: str) -> HeatField | None:
    if found is None:
        return None
    points, p = 100 * found.difference, found.p_holm
    tip = (
        f"{label}: {points:+.1f} points [{100 * found.low:+.1f}, {100 * found.high:+.1f}], "
        f"{p_text(p)} after Holm, {found.items:,} items"
    )
    text = f"{points:+.0f}".replace("-", "−") if abs(points) >= 0.5 else "0"
    return HeatField(points / 40 if p < 0.05 else 0.0, text, tip, bold=p < 0.05)


def p_text(p: float) -> str:
    """A p-value as text.

    >>> p_text(0.0321), p_text(1e-9), p_text(1)
    ('p = 0.032', 'p < 0.001', 'p = 1.000')
    """
    return "p < 0.001" if p < 0.001 else f"p = {p:.3f}"


def _by_label(results: Results, systems: Systems, judge: str, field: str) -> ReportFigure:
    drawings = []
    for benchmark, summary in results.benchmarks.items():
        reference = results.headline.get((judge, benchmark), "")
        rates = results.rates_by_label[field].get((judge, benchmark, reference), {})
        rated = {label for _, label in rates}
        labels = [label for label in summary.labels[field] if label in rated]
        if field == "topic":
            labels = labels[:MAX_TOPICS]
        if len(labels) < 2:
            continue
        rows = []
        for generator, system in systems.items():
            fields = [
                _rate_field(rates.get((generator, label)), label, reference) for label in labels
            ]
            if any(fields):
                rows.append((system.label, fields))
        heads = [f"{label} ({summary.labels[field][label]:,})" for label in labels]
        drawings.append(charts.heat(_panel_title(benchmark, results, reference), heads, rows))
    text = (
        f"Judge: {judge}. Win rates in per cent, of the items of each {field}, whose number is "
        "given in brackets; blue is above 50, orange below."
    )
    return ReportFigure(f"By {field}, {judge}", text, drawings)


def _rate_field(rate: WinRate | None, label: str, reference: str) -> HeatField | None:
    bar = rate_bar(rate, label, reference)
    return bar and HeatField((bar.rate - 0.5) / 0.4, percent(bar.rate, 0), bar.tip)


def _lengths(results: Results) -> ReportFigure:
    drawings = []
    for benchmark in results.benchmarks:
        strata = {
            judge: results.lengths[judge, benchmark][None].strata
            for judge in results.judges
            if (judge, benchmark) in results.lengths
        }
        if not strata:
            continue
        groups = [
            (name, [rate_bar(found[name], f"{name}, {judge}") for judge, found in strata.items()])
            for name in next(iter(strata.values()))
        ]
        title, colours = _panel_title(benchmark, results), _colours(strata, results.judges)
        drawings.append(charts.rate_bars(title, groups, list(strata), colours))
    text = (
        "Win rates of all systems together, by the length of the answer in characters relative to "
        "its reference. Nothing is corrected: systems that write more may also write better. The "
        "tables show each system."
    )
    return ReportFigure("Do longer answers win?", text, drawings)
