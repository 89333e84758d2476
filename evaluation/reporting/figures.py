"""What the figures of a report share: bars of rates, colours, splitting, and their files."""

import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

from common.reports import charts, drawing
from common.reports.charts import RateBar, percent
from common.reports.drawing import SERIES, Drawing
from evaluation.judgements.verdicts import Matchup
from evaluation.reporting.content import ReportFigure
from evaluation.scoring.lengths import Stratum
from evaluation.scoring.results import AVERAGE, Panel, Results
from evaluation.scoring.score import WinRate

PANEL_HEIGHT = 900
"""Of a drawing, about: rows that do not fit are another drawing."""

FILE_HEIGHT = 3600
"""Of the drawings in one file; those that do not fit are in another."""

MAX_COLUMNS, MAX_ROWS = 12, 24
"""Of a heat map; more are further drawings."""

Name = TypeVar("Name")


def write(directory: Path, figures: Mapping[str, ReportFigure]) -> set[str]:
    """Writes PNG and SVG files; returns the characters that no font can draw in a PNG.

    A figure that is too high has several files, whose names end in -1, -2, ...
    """
    directory.mkdir(parents=True, exist_ok=True)
    missing: set[str] = set()
    for name, figure in figures.items():
        pages = _pages(figure)
        for number, drawings in enumerate(pages, start=1):
            stem = name if len(pages) == 1 else f"{name}-{number}"
            columns = min(figure.columns, len(drawings))
            whole = drawing.beside(figure.heading, drawings, columns)
            missing |= drawing.write_png(directory / f"{stem}.png", whole)
            drawing.write_svg(directory / f"{stem}.svg", whole)
    return missing


def _pages(figure: ReportFigure) -> list[list[Drawing]]:
    """The drawings of each file: whole rows of about FILE_HEIGHT."""
    pages: list[list[Drawing]] = [[]]
    height = 0.0
    for first in range(0, len(figure.drawings), figure.columns):
        row = figure.drawings[first : first + figure.columns]
        needed = max(one.height for one in row) + 60
        if pages[-1] and height + needed > FILE_HEIGHT:
            pages.append([])
            height = 0.0
        pages[-1] += row
        height += needed
    return pages


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


def parts(names: Sequence[Name], most: int) -> list[Sequence[Name]]:
    """Consecutive parts of about the same size, at most `most`.

    >>> parts([1, 2, 3, 4, 5, 6, 7], 6)
    [[1, 2, 3, 4], [5, 6, 7]]
    """
    count = math.ceil(len(names) / most)
    size = math.ceil(len(names) / count) if count else 1
    return [names[first : first + size] for first in range(0, len(names), size)]


def numbered(title: str, number: int, total: int) -> str:
    """The title of one of several parts.

    >>> numbered("iCliniq", 1, 1), numbered("iCliniq", 2, 3)
    ('iCliniq', 'iCliniq, part 2 of 3')
    """
    return title if total == 1 else f"{title}, part {number} of {total}"


def by_judge(
    results: Results, heading: str, text: str, draw: Callable[[Panel], Iterable[Drawing]]
) -> Iterator[tuple[str, ReportFigure]]:
    """A figure for each judge, named at the end of its heading: what `draw` makes of its panels."""
    for judge in results.judges:
        drawings = [one for benchmark in results.benchmarks for one in draw((judge, benchmark))]
        figure = ReportFigure(f"{heading} {judge}", f"Judge: {judge}. {text}", drawings)
        yield file_suffix(judge, results.judges), figure


def rate_panels(
    results: Results,
    title: str,
    rows: Mapping[str, str],
    names: Sequence[str],
    matchup: Callable[[str, str], Matchup],
    *,
    order: Sequence[str] = (),
) -> list[Drawing]:
    """Bars of rates: a group for each of `rows`, {key: label}, and in it one for each of `names`.

    As many drawings as there are colours and room for; the average is in each of them. A name has
    the same colour wherever it is: by its place in `order`, all names that such figures have.
    """
    order = [name for name in order or names if name != AVERAGE]
    blocks = [[name for name in part if name in names] for part in parts(order, SERIES)]
    rated = {
        key: label
        for key, label in rows.items()
        if any(results.rates.get(matchup(key, name)) for name in names)
    }
    shown = []
    for colours, block in zip(parts(order, SERIES), blocks, strict=True):
        if not block:
            continue
        block = [*block, *(name for name in names if name == AVERAGE)]
        fills = ["muted" if n == AVERAGE else f"series{colours.index(n)}" for n in block]
        room = max(4, int(PANEL_HEIGHT / (11 * len(block) + 8)))
        for keys in parts(list(rated), room):
            groups = []
            for key in keys:
                label = rated[key]
                bars = [(results.rates.get(matchup(key, name)), name) for name in block]
                tips = [f"{label}, {against(n) if n == AVERAGE else n}" for n in block]
                drawn = [rate_bar(r, t, n) for (r, n), t in zip(bars, tips, strict=True)]
                groups.append((label, drawn))
            shown.append((groups, block, fills))
    return [
        charts.rate_bars(numbered(title, i, len(shown)), *panel)
        for i, panel in enumerate(shown, start=1)
    ]


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


def panel_title(benchmark: str, results: Results, reference: str = "") -> str:
    """The title of a drawing: the benchmark, its items, and the only reference, if it is."""
    title = f"{benchmark} ({results.benchmarks[benchmark].items:,} items)"
    return f"{title}, {against(reference)}" if reference else title


def against(reference: str) -> str:
    """A reference, or their average, in a title."""
    return "average of the references" if reference == AVERAGE else f"against {reference}"
