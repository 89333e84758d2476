"""Differences between systems, and which of them are more than chance."""

import functools
import itertools
from collections.abc import Iterator, Sequence

from common.reports import charts
from common.reports.charts import HeatField
from common.reports.drawing import Drawing
from evaluation.reporting.content import ReportContent, ReportFigure
from evaluation.reporting.figures import (
    MAX_COLUMNS,
    MAX_ROWS,
    against,
    by_judge,
    numbered,
    parts,
)
from evaluation.reporting.table_formats import Table, number_of_p, p_text, points
from evaluation.scoring.results import Difference, Panel


def figures(content: ReportContent) -> Iterator[tuple[str, ReportFigure]]:
    """Each system's rate minus each other's, a heat map for each test set."""
    results = content.results
    family = sum(map(len, results.differences.values()))
    text = (
        "Percentage points by which the row's rate is above the column's, on the same items. "
        "Coloured, with an asterisk: p below 0.05 by an exact paired permutation test, after "
        f"Holm's correction for all {family:,} comparisons of this report: of every judge, test "
        "set and reference."
    )
    draw = functools.partial(_drawings, content)
    return by_judge(results, "Which differences are more than chance?", text, draw)


def _drawings(content: ReportContent, panel: Panel) -> list[Drawing]:
    results = content.results
    reference = results.headline.get(panel, "")
    differences = results.differences.get((*panel, reference), {})
    order = [name for name in content.systems if any(name in pair for pair in differences)]
    if len(order) < 2:
        return []
    negated = {(other, one): -found for (one, other), found in differences.items()}
    both_ways = negated | {**differences}
    labels = {name: content.systems[name].label for name in order}
    counts = [found.items for found in differences.values()]
    compared = compared_items(counts, results.benchmarks[panel[1]].items)
    title = f"{panel[1]} ({compared}), {against(reference)}"
    grid = list(itertools.product(parts(order, MAX_ROWS), parts(order, MAX_COLUMNS)))
    drawings = []
    for place, (ones, others) in enumerate(grid, start=1):
        rows = []
        for one in ones:
            pairs = [(both_ways.get((one, b)), f"{labels[one]} - {labels[b]}") for b in others]
            rows.append((labels[one], [_field(*pair) for pair in pairs]))
        heads = [labels[name] for name in others]
        drawings.append(charts.heat(numbered(title, place, len(grid)), heads, rows))
    return drawings


def compared_items(counts: Sequence[int], total: int) -> str:
    """The items that the differences are based on: fewer than all where verdicts are invalid.

    >>> compared_items([9, 9], 9), compared_items([7, 8], 9)
    ('9 items', 'pairs on 7 to 8 of 9 items')
    """
    if min(counts) == total:
        return f"{total:,} items"
    start = f"{min(counts):,} to " if min(counts) < max(counts) else ""
    return f"pairs on {start}{max(counts):,} of {total:,} items"


def _field(found: Difference | None, label: str) -> HeatField | None:
    if found is None:
        return None
    difference = 100 * found.difference
    tip = (
        f"{label}: {points(found)} points, {p_text(found.p_report)} after Holm over the report, "
        f"{found.items:,} items"
    )
    text = f"{difference:+.0f}".replace("-", "−") if abs(difference) >= 0.5 else "0"
    shade = difference / 40 if found.is_significant else 0.0
    return HeatField(shade, text + "*" * found.is_significant, tip)


def tables(content: ReportContent) -> Iterator[Table]:
    """Every pair of systems against the average of the references, or the only one."""
    results, systems = content.results, content.systems
    family = sum(map(len, results.differences.values()))
    for (judge, benchmark), reference in results.headline.items():
        lines = [
            [f"{systems[one].label} – {systems[other].label}", f"{found.items:,}", points(found)]
            + [number_of_p(p) for p in (found.p, found.p_holm, found.p_report)]
            for (one, other), found in results.differences[judge, benchmark, reference].items()
        ]
        caption = (
            f"Differences of win rates on {benchmark} by {judge}, reference: {reference}, in "
            "percentage points with 95 % intervals; exact paired permutation test, with Holm's "
            f"correction for all rows of this table, and for all {family:,} comparisons of this "
            "report (every judge, test set, reference and pair of systems)."
        )
        head = ["Systems", "Items", "Difference", "p", "p (Holm, table)", "p (Holm, report)"]
        yield Table(caption, head, lines)
