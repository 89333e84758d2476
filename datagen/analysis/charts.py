"""The three charts of `datagen.stats`: bars, histograms and the sunburst, as drawings."""

import math
from collections.abc import Sequence

from common.reports.drawing import (
    ON_WEDGE,
    WEDGES,
    Drawing,
    Line,
    Point,
    Polygon,
    Text,
    box,
    shortened,
)

OTHER = "other ("  # begins the label that stands for a tail
LEGEND_LINE = 14.0
WIDTH = 360  # fits a phone at full size
DASHES = (None, (6, 3), (2, 2), (8, 3), (4, 2), (1, 2))


def share(count: float, total: float) -> str:
    """A percentage that neither hides a count nor rounds one up to all.

    >>> share(1, 52000), share(1, 8), share(51999, 52000), share(0, 0)
    ('< 0.1 %', '12.5 %', '> 99.9 %', '0 %')
    """
    percent = 100 * count / total if total else 0.0
    if 0 < percent < 0.1:
        return "< 0.1 %"
    if 99.9 < percent < 100:
        return "> 99.9 %"
    return f"{percent:.1f} %" if percent % 1 else f"{percent:.0f} %"


def legend(names: Sequence[str], shown: Sequence[int]) -> list[Polygon | Text]:
    """One line for each set shown, with the colour of its series; none for a single set."""
    shapes: list[Polygon | Text] = []
    for line, i in enumerate(shown if len(names) > 1 else ()):
        y = 10 + LEGEND_LINE * line
        shapes.append(Polygon(box(0, y - 8, 10, 8), f"series{i}"))
        shapes.append(Text(15, y, shortened(names[i], WIDTH - 20, 11), colour="muted"))
    return shapes


def bars(
    title: str,
    rows: Sequence[tuple[str, Sequence[int]]],
    names: Sequence[str],
    totals: Sequence[int],
) -> Drawing:
    """Horizontal bars: for each label a bar a set, as long as its share of the set's labels.

    A set whose total is 0 has no bars.
    """
    shown = [i for i, total in enumerate(totals) if total]
    left, longest, thick = 140, 110, 15 if len(shown) == 1 else 11
    most = max((counts[i] / totals[i] for _, counts in rows for i in shown), default=0) or 1
    shapes: list[Polygon | Line | Text] = [*legend(names, shown)]
    top = LEGEND_LINE * len(shown) + 8 if shapes else 0.0
    y = top
    for label, counts in rows:
        opacity = 0.4 if label.startswith(OTHER) else 1.0
        middle = y + thick * len(shown) / 2
        shapes.append(Text(left - 8, middle + 4, shortened(label, left - 8, 11), anchor="end"))
        for i in shown:
            length = longest * counts[i] / totals[i] / most
            value = f"{counts[i]:,} ({share(counts[i], totals[i])})"
            place = box(left, y + 1, length, thick - 2)
            shapes.append(Polygon(place, f"series{i}", f"{label} | {names[i]}: {value}", opacity))
            size = 10.5 if len(shown) == 1 else 9
            shapes.append(Text(left + length + 4, y + thick - 3.5, value, size, "muted"))
            y += thick
        y += 6
    shapes.append(Line([(left, max(top - 4, 0)), (left, y)], "grid"))
    return Drawing(title, WIDTH, y + 4, shapes)


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
    """Shares by bin, one stepped line a set. Bin i reaches from edges[i] to the next edge.

    `open_end`: the last bin has no end and is as wide as the others here. `mark`: a value and its
    name, drawn as an upright line. A set without values has no line.
    """
    totals = [sum(row) for row in counts]
    shown = [i for i, total in enumerate(totals) if total]
    shapes: list[Polygon | Line | Text] = [*legend(names, shown)]
    left, width, height = 38, 310, 150
    top = 18 + (LEGEND_LINE * len(shown) if shapes else 0)
    ends = [*edges[1:], edges[-1] + edges[1] - edges[0]]
    most = max((count / totals[i] for i in shown for count in counts[i]), default=0) or 1

    def place(value: float, part: float) -> Point:
        across = left + width * (value - edges[0]) / (ends[-1] - edges[0])
        return across, top + height * (1 - part / most)

    for part in (0, most / 2, most):
        shapes.append(Line([place(edges[0], part), place(ends[-1], part)], "grid"))
        label = f"{100 * part:.0f} %" if most >= 0.05 else f"{100 * part:.1f} %"
        shapes.append(Text(left - 4, place(0, part)[1] + 4, label, 10, "muted", "end"))
    for i in shown:
        line = [place(edges[0], 0)]
        for first, end, count in zip(edges, ends, counts[i], strict=True):
            part = count / totals[i]
            where = f"{first:g} to {end:g}"
            if open_end and first == edges[-1]:
                where = f"{first:g} or more"
            tip = f"{where} {unit} | {names[i]}: {count:,} ({share(count, totals[i])})"
            corners = [place(first, part), place(end, part), place(end, 0), place(first, 0)]
            shapes.append(Polygon(corners, f"series{i}", tip, 0.35 if len(shown) == 1 else 0.12))
            line += corners[:2]
        line.append(place(ends[-1], 0))
        shapes.append(Line(line, f"series{i}", 1.8, DASHES[i % len(DASHES)]))
    for edge in edges[:: max(1, math.ceil(len(edges) / 6))]:
        shapes.append(
            Text(place(edge, 0)[0], top + height + 14, f"{edge:g}", 10, "muted", "middle")
        )
    shapes.append(Text(left + width / 2, top + height + 30, unit, 11, "muted", "middle"))
    if mark:
        shapes.append(Line([place(mark[0], 0), place(mark[0], most)], "ink", 1, (3, 3)))
        shapes.append(Text(place(mark[0], 0)[0], top - 5, mark[1], 10, "ink", "middle"))
    return Drawing(title, WIDTH, top + height + 36, shapes)


def sunburst(title: str, verbs: Sequence[dict], pairs: int) -> Drawing:
    """Root verbs in the inner ring, their objects in the outer one, clockwise by frequency.

    Each of `verbs` holds verb, count and objects (noun: count). Angles are counts of the objects
    drawn, as in Self-Instruct's and AlpaCare's figures; the centre says how many of all `pairs`
    those are.
    """
    centre, radii = WIDTH / 2, (36.0, 102.0, 177.0)
    total = sum(sum(verb["objects"].values()) for verb in verbs)
    shapes: list[Polygon | Line | Text] = []

    def wedge(first: int, count: int, ring: int, label: str, fill: str, tip: str) -> None:
        start, end = (2 * math.pi * n / total for n in (first, first + count))
        inner, outer = radii[ring], radii[ring + 1]
        points, opacity = _ring(centre, inner, outer, start, end), 0.6 if ring else 1.0
        shapes.append(Polygon(points, fill, tip, opacity, gap=True))
        room = (end - start) * (inner + outer) / 2
        if room > 8:
            size = min(10.5, room * 0.9)
            text = shortened(label, outer - inner - 5, size)
            shapes.append(_radial(centre, (inner + outer) / 2, (start + end) / 2, text, size))

    at = 0
    for i, verb in enumerate(verbs):
        name, fill, first = verb["verb"], f"wedge{i % WEDGES}", at
        for noun, count in verb["objects"].items():
            wedge(at, count, 1, noun, fill, f"{name} {noun}: {count:,} ({share(count, pairs)})")
            at += count
        tip = f"{name}: {verb['count']:,} ({share(verb['count'], pairs)})"
        wedge(first, at - first, 0, name, fill, tip)
    shapes.append(Text(centre, centre, f"{total:,}", 15, "ink", "middle", bold=True))
    shapes.append(Text(centre, centre + 14, f"of {pairs:,}", 10, "muted", "middle"))
    return Drawing(title, WIDTH, WIDTH, shapes)


def _ring(centre: float, inner: float, outer: float, start: float, end: float) -> list[Point]:
    """A sector of a ring; angles in radians from the top, clockwise."""
    steps = max(2, math.ceil((end - start) / 0.03))
    angles = [start + (end - start) * i / steps for i in range(steps + 1)]
    place = lambda radius, a: (centre + radius * math.sin(a), centre - radius * math.cos(a))  # noqa: E731
    return [place(outer, a) for a in angles] + [place(inner, a) for a in reversed(angles)]


def _radial(centre: float, radius: float, angle: float, text: str, size: float) -> Text:
    """Text that reads outwards on the right half and inwards on the left one: never upside down."""
    turn = math.degrees(angle) - 90
    if angle > math.pi:
        turn -= 180
    x, y = centre + radius * math.sin(angle), centre - radius * math.cos(angle)
    down = size * 0.35  # from the middle of the letters to their baseline
    x, y = x - down * math.sin(math.radians(turn)), y + down * math.cos(math.radians(turn))
    return Text(x, y, text, size, ON_WEDGE, "middle", turn)
