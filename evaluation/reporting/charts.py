"""The three charts of a report, as drawings: bars with intervals, shares that add up, heat maps."""

import dataclasses
from collections.abc import Sequence

from common.reports.drawing import Drawing, Line, Polygon, Text, box, shortened, text_width

WIDTH = 420  # nearly fits a phone at full size
LABELS = 128  # of it, for the names on the left
LEGEND_LINE = 15.0

Shapes = list[Polygon | Line | Text]


@dataclasses.dataclass(frozen=True)
class Bar:
    """A rate with its interval, shares from 0 to 1."""

    rate: float
    low: float
    high: float
    tip: str


def percent(share: float | None, digits: int = 1) -> str:
    """
    >>> percent(0.6134), percent(None)
    ('61.3', '–')
    """
    return "–" if share is None else f"{100 * share:.{digits}f}"


def legend(
    names: Sequence[str], colours: Sequence[str], width: float = WIDTH
) -> tuple[Shapes, float]:
    """(shapes, height): the names beside their colours, as many in a line as fit."""
    shapes: Shapes = []
    x, y = 0.0, 10.0
    for name, colour in zip(names, colours, strict=True):
        text = shortened(name, width - 20, 11)
        needed = 15 + text_width(text, 11) + 14
        if x and x + needed - 14 > width:
            x, y = 0.0, y + LEGEND_LINE
        shapes.append(Polygon(box(x, y - 8, 10, 9), colour))
        shapes.append(Text(x + 15, y, text, colour="muted"))
        x += needed
    return shapes, y + 10


def bars(
    title: str,
    groups: Sequence[tuple[str, Sequence[Bar | None]]],
    names: Sequence[str],
    colours: Sequence[str],
    *,
    middle: str = "as good as the reference",
) -> Drawing:
    """Horizontal bars from 0 to 100 %, a group for each label and in it one bar a name.

    A thin line on each bar is its interval; the line at 50 % is called `middle`. A bar that is None
    leaves its place empty.
    """
    shapes, top = legend(names, colours) if len(names) > 1 else ([], 0.0)
    thick = {1: 16, 2: 13}.get(len(names), 11)
    left, right = float(LABELS), WIDTH - 40.0
    across = lambda share: left + (right - left) * share  # noqa: E731
    top += 16
    height = sum(thick * len(found) + 8 for _, found in groups)
    bottom = top + height
    for share in (0, 0.25, 0.75, 1):
        shapes.append(Line([(across(share), top - 4), (across(share), bottom)], "grid"))
    y = top
    for label, found in groups:
        lines = _lines(label, left - 8, thick * len(found))
        centre = y + thick * len(found) / 2 + 4 - 6.5 * (len(lines) - 1)
        for i, line in enumerate(lines):
            shapes.append(Text(left - 8, centre + 13 * i, line, anchor="end"))
        for bar, colour in zip(found, colours, strict=True):
            if bar:
                shapes += _bar(bar, colour, across, y, thick)
            y += thick
        y += 8
    shapes.append(Line([(across(0.5), top - 4), (across(0.5), bottom)], "ink", 1, (3, 3)))
    shapes.append(Text(across(0.5), top - 8, middle, 10, "muted", "middle"))
    for share in (0, 0.25, 0.5, 0.75, 1):
        label = f"{100 * share:.0f} %"
        shapes.append(Text(across(share), bottom + 13, label, 10, "muted", "middle"))
    return Drawing(title, WIDTH, bottom + 18, shapes)


def _lines(label: str, width: float, height: float) -> list[str]:
    """The label in one line, or in two where it is wide and there is room; cut at their ends."""
    words = label.split()
    if text_width(label, 11) > width and height >= 26 and len(words) > 1:
        for end in range(len(words) - 1, 0, -1):
            if text_width(" ".join(words[:end]), 11) <= width:
                return [" ".join(words[:end]), shortened(" ".join(words[end:]), width, 11)]
    return [shortened(label, width, 11)]


def _bar(bar: Bar, colour: str, across, y: float, thick: float) -> Shapes:
    middle = y + thick / 2
    ends = [(across(bar.low), middle), (across(bar.high), middle)]
    caps = [[(x, middle - 2.5), (x, middle + 2.5)] for x, _ in ends]
    place = box(across(0), y + 1, across(bar.rate) - across(0), thick - 2)
    return [
        Polygon(place, colour, bar.tip, 0.8),
        *(Line(line, "ink", 1.1, tip=bar.tip) for line in (ends, *caps)),
        Text(WIDTH, middle + 3.5, percent(bar.rate), 10, "ink", "end"),
    ]


def shares(
    title: str,
    rows: Sequence[tuple[str, Sequence[tuple[float, str]]]],
    names: Sequence[str],
    colours: Sequence[str],
) -> Drawing:
    """Under each label one bar over the whole width, of parts (share, tip) that add up to 1."""
    shapes, top = legend(names, colours)
    thick, y = 20, top + 8
    for label, parts in rows:
        shapes.append(Text(0, y + 8, shortened(label, WIDTH, 11)))
        y += 14
        x = 0.0
        for (share, tip), colour in zip(parts, colours, strict=True):
            width = share * WIDTH
            shapes.append(Polygon(box(x, y, width, thick), colour, tip, 0.55, gap=True))
            if width > 18:
                shapes.append(Text(x + width / 2, y + 14, percent(share, 0), 10, anchor="middle"))
            x += width
        y += thick + 12
    return Drawing(title, WIDTH, y, shapes)


@dataclasses.dataclass(frozen=True)
class Field:
    """A field of a heat map: `shade` from -1 (one colour) over 0 (none) to 1 (the other)."""

    shade: float
    text: str
    tip: str
    bold: bool = False


def heat(
    title: str, columns: Sequence[str], rows: Sequence[tuple[str, Sequence[Field | None]]]
) -> Drawing:
    """A table of numbers on colours, which never say more than the numbers do."""
    shapes: Shapes = []
    wide = max(30.0, min(58.0, (WIDTH - LABELS) / len(columns)))
    longest = max(text_width(name, 10.5) for name in columns)
    turned = longest > wide - 4
    top = 20 + min(longest * 0.72, 90) if turned else 18.0
    for i, name in enumerate(columns):
        x = LABELS + wide * (i + 0.5)
        if turned:
            shapes.append(Text(x, top - 6, shortened(name, 120, 10.5), 10.5, angle=-45))
        else:
            shapes.append(Text(x, top - 6, name, 10.5, anchor="middle"))
    y = top
    for label, fields in rows:
        shapes.append(Text(LABELS - 8, y + 15, shortened(label, LABELS - 8, 11), anchor="end"))
        for i, field in enumerate(fields):
            if field:
                place = box(LABELS + wide * i, y, wide, 22)
                colour = "series0" if field.shade > 0 else "series1"
                strength = 0.55 * min(1.0, abs(field.shade))
                shapes.append(Polygon(place, colour, field.tip, strength, gap=True))
                middle = LABELS + wide * (i + 0.5)
                shapes.append(
                    Text(middle, y + 15, field.text, 10.5, anchor="middle", bold=field.bold)
                )
        y += 22
    slanted = 60 if turned else 0  # the last name leans out
    return Drawing(title, max(WIDTH, LABELS + wide * len(columns) + slanted), y + 4, shapes)
