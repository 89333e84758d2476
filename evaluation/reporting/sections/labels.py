"""Win rates by difficulty and by topic."""

import functools
import itertools
from collections.abc import Iterator

from common.reports import charts
from common.reports.charts import HeatField, percent
from common.reports.drawing import Drawing
from evaluation.reporting.content import ReportContent, ReportFigure
from evaluation.reporting.figures import (
    MAX_COLUMNS,
    MAX_ROWS,
    by_judge,
    numbered,
    panel_title,
    parts,
    rate_bar,
)
from evaluation.reporting.table_formats import Table, interval
from evaluation.scoring.results import Panel
from evaluation.scoring.score import WinRate


def _figures(content: ReportContent, field: str) -> Iterator[tuple[str, ReportFigure]]:
    """A heat map of systems by labels for each test set that has any."""
    text = (
        f"Win rates in per cent, of the items of each {field}, whose number is given in brackets; "
        "blue is above 50, orange below."
    )
    draw = functools.partial(_drawings, content, field)
    return by_judge(content.results, f"By {field},", text, draw)


def _drawings(content: ReportContent, field: str, panel: Panel) -> list[Drawing]:
    results = content.results
    counts = results.benchmarks[panel[1]].labels[field]
    reference = results.headline.get(panel, "")
    rates = results.rates_by_label[field].get((*panel, reference), {})
    rated = {label for _, label in rates}
    labels = [label for label in counts if label in rated]
    if len(labels) < 2:
        return []
    rows = [
        (system.label, [_field(rates.get((name, label)), label, reference) for label in labels])
        for name, system in content.systems.items()
    ]
    rows = [row for row in rows if any(row[1])]
    grid = list(itertools.product(parts(rows, MAX_ROWS), parts(range(len(labels)), MAX_COLUMNS)))
    drawings = []
    for number, (own, places) in enumerate(grid, start=1):
        heads = [f"{labels[i]} ({counts[labels[i]]:,})" for i in places]
        shown = [(name, [fields[i] for i in places]) for name, fields in own]
        title = numbered(panel_title(panel[1], results, reference), number, len(grid))
        drawings.append(charts.heat(title, heads, shown))
    return drawings


def _field(rate: WinRate | None, label: str, reference: str) -> HeatField | None:
    bar = rate_bar(rate, label, reference)
    return bar and HeatField((bar.rate - 0.5) / 0.4, percent(bar.rate, 0), bar.tip)


def _tables(content: ReportContent, field: str) -> Iterator[Table]:
    """All labels with intervals."""
    results, systems = content.results, content.systems
    for (judge, benchmark, reference), rates in results.rates_by_label[field].items():
        rated = {label for _, label in rates}
        counts = results.benchmarks[benchmark].labels[field]
        generators = [name for name in systems if any(name == key[0] for key in rates)]
        lines = [
            [f"{label} ({count:,})", *(interval(rates[name, label]) for name in generators)]
            for label, count in counts.items()
            if label in rated
        ]
        caption = (
            f"Win rates on {benchmark} by {field} (items), {judge}, reference: {reference}; per "
            "cent, with 95 % intervals."
        )
        head = [field.capitalize(), *(systems[name].label for name in generators)]
        yield Table(caption, head, lines)


by_difficulty = functools.partial(_figures, field="difficulty")
by_topic = functools.partial(_figures, field="topic")
difficulty_tables = functools.partial(_tables, field="difficulty")
topic_tables = functools.partial(_tables, field="topic")
