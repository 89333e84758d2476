"""Charts as drawings: bars with intervals or counts, shares, heat maps, histograms."""

import dataclasses
import math
from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar

from common.reports.drawing import (
    Drawing,
    Line,
    Point,
    Polygon,
    Shape,
    Text,
    box,
)
from common.reports.lettering import shortened, text_width, wrapped

WIDTH = 360  # fits a phone at full size
LINE = 13.0  # of a label that is broken
LEGEND_LINE = 15.0
ROW_LABELS = 128.0  # of WIDTH, at most, for the names on the left
CELL = 34.0  # of a heat map
DASHES = (None, (6, 3), (2, 2), (8, 3), (4, 2), (1, 2))

OTHER = "other ("  # starts the label of a tail

_Bar = TypeVar("_Bar")


def percent(share: float | None, digits: int = 1) -> str:
    """A share as a number of per cent.

    >>> percent(0.6134), percent(None)
    ('61.3', '–')
    """
    return "–" if share is None else f"{100 * share:.{digits}f}"


def percentage(count: float, total: float) -> str:
    """A percentage that neither rounds a count to nothing nor an incomplete one to all.

    >>> percentage(1, 52000), percentage(1, 8), percentage(51999, 52000), percentage(0, 0)
    ('< 0.1 %', '12.5 %', '> 99.9 %', '0 %')
    """
    share = 100 * count / total if total else 0.0
    if 0 < share < 0.1:
        return "< 0.1 %"
    if 99.9 < share < 100:
        return "> 99.9 %"
    return f"{share:.1f} %" if share % 1 else f"{share:.0f} %"


def legend(
    names: Sequence[str], colours: Sequence[str], width: float = WIDTH
) -> tuple[list[Shape], float]:
    """(shapes, height): the names beside their colours, as many in a line as fit.

    A single name needs no legend: no shapes, and no height.
    """
    if len(names) < 2:
        return [], 0.0
    shapes: list[Shape] = []
    x, y = 0.0, 10.0
    for name, colour in zip(names, colours, strict=True):
        lines = wrapped(name, width - 15, 11)
        needed = 15 + max(text_width(line, 11) for line in lines) + 14
        if x and x + needed - 14 > width:
            x, y = 0.0, y + LEGEND_LINE
        shapes.append(Polygon(box(x, y - 8, 10, 9), colour))
        for line in lines:
            shapes.append(Text(x + 15, y, line, colour="muted"))
            y += LINE
        x, y = x + needed, y - LINE
    return shapes, y + 10


@dataclasses.dataclass(frozen=True)
class RateBar:
    """A rate with its interval, shares from 0 to 1."""

    rate: float
    low: float
    high: float
    tip: str


def rate_bars(
    title: str,
    groups: Sequence[tuple[str, Sequence[RateBar | None]]],
    names: Sequence[str],
    colours: Sequence[str],
) -> Drawing:
    """Horizontal bars from 0 to 100 %: a group for each label, and in it a bar for each name.

    A thin line on each bar is its interval. The place of a bar that is None stays empty.
    """
    shapes, top = legend(names, colours)
    thickness = {1: 16, 2: 13}.get(len(names), 11)
    left, right = _label_room(label for label, _ in groups), WIDTH - 40.0
    top += 16

    def across(share: float) -> float:
        return left + (right - left) * share

    def draw(bar: RateBar | None, name: int, y: float) -> list[Shape]:
        if bar is None:
            return []
        centre = y + thickness / 2
        ends = [(across(bar.low), centre), (across(bar.high), centre)]
        caps = [[(x, centre - 2.5), (x, centre + 2.5)] for x, _ in ends]
        area = box(across(0), y + 1, across(bar.rate) - across(0), thickness - 2)
        return [
            Polygon(area, colours[name], bar.tip, 0.8),
            *(Line(line, "ink", 1.1, tip=bar.tip) for line in (ends, *caps)),
            Text(WIDTH, centre + 3.5, percent(bar.rate), 10, "ink", "end"),
        ]

    rows, bottom = _bar_groups(groups, top, left, thickness, 8, draw)
    for share in (0, 0.25, 0.75, 1):
        shapes.append(Line([(across(share), top - 4), (across(share), bottom)], "grid"))
    shapes += rows
    shapes.append(Line([(across(0.5), top - 4), (across(0.5), bottom)], "ink", 1, (3, 3)))
    tie = "as good as the reference"
    shapes.append(Text(across(0.5), top - 8, tie, 10, "muted", "middle"))
    for share in (0, 0.25, 0.5, 0.75, 1):
        label = f"{100 * share:.0f} %"
        shapes.append(Text(across(share), bottom + 13, label, 10, "muted", "middle"))
    return Drawing(title, WIDTH, bottom + 18, shapes)


def _label_room(labels: Iterable[str]) -> float:
    """The width of the column of labels, in lines of at most ROW_LABELS."""
    lines = [line for label in labels for line in wrapped(label, ROW_LABELS - 8, 11)]
    return 8 + max((text_width(line, 11) for line in lines), default=0.0)


def count_bars(
    title: str,
    rows: Sequence[tuple[str, Sequence[int]]],
    names: Sequence[str],
    totals: Sequence[int],
) -> Drawing:
    """Horizontal bars: for each label a bar for each set, as long as its share of the set's total.

    A set whose total is 0 has no bars, and a very long label is shortened.
    """
    shown = [i for i, total in enumerate(totals) if total]
    left, longest, thickness = 140, 110, 15 if len(shown) == 1 else 11
    shapes, top = legend([names[i] for i in shown], [f"series{i}" for i in shown])
    highest = max((counts[i] / totals[i] for _, counts in rows for i in shown), default=0) or 1

    def draw(bar: tuple[str, int], number: int, y: float) -> list[Shape]:
        label, count = bar
        i = shown[number]
        length = longest * count / totals[i] / highest
        value = f"{count:,} ({percentage(count, totals[i])})"
        area = box(left, y + 1, length, thickness - 2)
        opacity = 0.4 if label.startswith(OTHER) else 1.0
        size = 10.5 if len(shown) == 1 else 9
        return [
            Polygon(area, f"series{i}", f"{label} | {names[i]}: {value}", opacity),
            Text(left + length + 4, y + thickness - 3.5, value, size, "muted"),
        ]

    groups = [
        (shortened(label, 2 * (left - 8), 11), [(label, counts[i]) for i in shown])
        for label, counts in rows
    ]
    bars, bottom = _bar_groups(groups, top, left, thickness, 6, draw)
    axis = Line([(left, max(top - 4, 0)), (left, bottom)], "grid")
    return Drawing(title, WIDTH, bottom + 4, [*shapes, *bars, axis])


def _bar_groups(
    groups: Sequence[tuple[str, Sequence[_Bar]]],
    top: float,
    left: float,
    thickness: float,
    gap: float,
    draw: Callable[[_Bar, int, float], list[Shape]],
) -> tuple[list[Shape], float]:
    """(shapes, bottom): each group's whole label left of `left`, its bars from top to bottom.

    `draw` is called with each bar, its position in the group, and its upper edge.
    """
    shapes: list[Shape] = []
    y = top
    for label, bars in groups:
        lines = wrapped(label, left - 8, 11)
        height = max(thickness * len(bars), LINE * len(lines))
        shapes += _label(lines, left - 8, y + height / 2)
        start = y + (height - thickness * len(bars)) / 2
        for i, bar in enumerate(bars):
            shapes += draw(bar, i, start + thickness * i)
        y += height + gap
    return shapes, y


def _label(lines: Sequence[str], right: float, middle: float) -> list[Shape]:
    """Lines that end at `right`, centred on `middle`."""
    baseline = middle + 4 - LINE / 2 * (len(lines) - 1)
    return [Text(right, baseline + LINE * i, line, anchor="end") for i, line in enumerate(lines)]


def shares(
    title: str,
    rows: Sequence[tuple[str, Sequence[tuple[float, str]]]],
    names: Sequence[str],
    colours: Sequence[str],
) -> Drawing:
    """Under each label one bar of the whole width, made of parts (share, tip) that add up to 1."""
    shapes, top = legend(names, colours)
    thickness, y = 20, top + 8
    for label, parts in rows:
        for line in wrapped(label, WIDTH, 11):
            shapes.append(Text(0, y + 8, line))
            y += LINE
        y += 1
        x = 0.0
        for (share, tip), colour in zip(parts, colours, strict=True):
            width = share * WIDTH
            shapes.append(Polygon(box(x, y, width, thickness), colour, tip, 0.55, gap=True))
            if width > 18:
                shapes.append(Text(x + width / 2, y + 14, percent(share, 0), 10, anchor="middle"))
            x += width
        y += thickness + 12
    return Drawing(title, WIDTH, y, shapes)


@dataclasses.dataclass(frozen=True)
class HeatField:
    """A field of a heat map: `shade` from -1 (one colour) through 0 (none) to 1 (the other)."""

    shade: float
    text: str
    tip: str


def heat(
    title: str, columns: Sequence[str], rows: Sequence[tuple[str, Sequence[HeatField | None]]]
) -> Drawing:
    """A table of numbers on colours that only repeat what the numbers show."""
    shapes: list[Shape] = []
    left = _label_room(label for label, _ in rows)
    wide = min(58.0, max(CELL, (WIDTH - left) / len(columns)))
    turned = max(text_width(name, 10.5) for name in columns) > wide - 4
    heads = [wrapped(name, 130 if turned else wide, 10.5) for name in columns]
    longest = max(text_width(line, 10.5) for lines in heads for line in lines)
    slanted = longest * 0.71 + 10 if turned else 0.0  # up, and to the right of the last column
    if turned:  # lines of a name lie side by side
        wide = max(wide, 15.0 * max(map(len, heads)) + 8)
    y = top = 14 + slanted
    for i, lines in enumerate(heads):
        x = left + wide * (i + 0.5)
        for number, line in enumerate(lines):
            if turned:
                shapes.append(Text(x + 15 * number, top - 6, line, 10.5, angle=-45))
            else:
                shapes.append(Text(x, top - 6, line, 10.5, anchor="middle"))
    for label, fields in rows:
        lines = wrapped(label, left - 8, 11)
        height = max(22.0, LINE * len(lines) + 4)
        shapes += _label(lines, left - 8, y + height / 2)
        for i, field in enumerate(fields):
            if field:
                area = box(left + wide * i, y, wide, height)
                colour = "series0" if field.shade > 0 else "series1"
                strength = 0.55 * min(1.0, abs(field.shade))
                shapes.append(Polygon(area, colour, field.tip, strength, gap=True))
                middle = left + wide * (i + 0.5), y + height / 2 + 4
                shapes.append(Text(*middle, field.text, 10.5, anchor="middle"))
        y += height
    return Drawing(title, max(WIDTH, left + wide * len(columns) + slanted), y + 4, shapes)


def text_block(title: str, note: str, text: str) -> Drawing:
    """A text in lines, as wide as other drawings, under a note in grey."""
    size, height = 10.5, 14.0
    shapes: list[Shape] = []
    paragraphs = [(note, "muted"), *((line, "ink") for line in text.strip().split("\n"))]
    y = 0.0
    for paragraph, colour in paragraphs if note else paragraphs[1:]:
        for line in wrapped(paragraph, WIDTH, size):
            y += height
            shapes.append(Text(0, y, line, size, colour))
        y += 3
    return Drawing(title, WIDTH, y + 6, shapes)


def histogram(
    title: str,
    edges: Sequence[float],
    counts: Sequence[Sequence[int]],
    names: Sequence[str],
    *,
    unit: str,
    open_end: bool,
    mark: tuple[float, str] | None = None,
) -> Drawing:
    """Shares by bin, one stepped line for each set. Bin i is from edges[i] to the next edge.

    `open_end`: the last bin has no upper edge and is drawn as wide as the others. `mark`: a value
    and its name, drawn as a vertical line. A set without values has no line.
    """
    totals = [sum(row) for row in counts]
    shown = [i for i, total in enumerate(totals) if total]
    shapes, top = legend([names[i] for i in shown], [f"series{i}" for i in shown])
    left, width, height = 38, 310, 150
    top += 14 if shapes else 18
    ends = [*edges[1:], edges[-1] + edges[1] - edges[0]]
    highest = max((count / totals[i] for i in shown for count in counts[i]), default=0) or 1

    def point(value: float, share: float) -> Point:
        across = left + width * (value - edges[0]) / (ends[-1] - edges[0])
        return across, top + height * (1 - share / highest)

    for share in (0, highest / 2, highest):
        shapes.append(Line([point(edges[0], share), point(ends[-1], share)], "grid"))
        label = f"{100 * share:.0f} %" if highest >= 0.05 else f"{100 * share:.1f} %"
        shapes.append(Text(left - 4, point(0, share)[1] + 4, label, 10, "muted", "end"))
    for i in shown:
        line = [point(edges[0], 0)]
        for start, end, count in zip(edges, ends, counts[i], strict=True):
            share = count / totals[i]
            bin_name = f"{start:g} to {end:g}"
            if open_end and start == edges[-1]:
                bin_name = f"{start:g} or more"
            tip = f"{bin_name} {unit} | {names[i]}: {count:,} ({percentage(count, totals[i])})"
            corners = [point(start, share), point(end, share), point(end, 0), point(start, 0)]
            shapes.append(Polygon(corners, f"series{i}", tip, 0.35 if len(shown) == 1 else 0.12))
            line += corners[:2]
        line.append(point(ends[-1], 0))
        shapes.append(Line(line, f"series{i}", 1.8, DASHES[i % len(DASHES)]))
    for edge in edges[:: max(1, math.ceil(len(edges) / 6))]:
        shapes.append(
            Text(point(edge, 0)[0], top + height + 14, f"{edge:g}", 10, "muted", "middle")
        )
    shapes.append(Text(left + width / 2, top + height + 30, unit, 11, "muted", "middle"))
    if mark:
        shapes.append(Line([point(mark[0], 0), point(mark[0], highest)], "ink", 1, (3, 3)))
        shapes.append(Text(point(mark[0], 0)[0], top - 5, mark[1], 10, "ink", "middle"))
    return Drawing(title, WIDTH, top + height + 36, shapes)
