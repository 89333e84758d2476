"""The three charts of `datagen.stats`: bars, histograms and the sunburst, as drawings."""

import math
import unicodedata
from collections.abc import Sequence

from datagen.drawing import ON_WEDGE, WEDGES, Drawing, Line, Point, Polygon, Text, box

OTHER = "other ("  # begins the label that stands for a tail
WIDTH = 360  # fits a phone at full size
DASHES = (None, (6, 3), (2, 2), (8, 3), (4, 2), (1, 2))


def text_width(text: str, size: float) -> float:
    """About as wide as a browser draws it."""
    wide = sum(unicodedata.east_asian_width(letter) in "WF" for letter in text)
    return size * (0.52 * (len(text) - wide) + wide)


def shortened(text: str, width: float, size: float) -> str:
    """The text on one line; cut with "…" where it is wider than `width`."""
    text = " ".join(text.split())
    if text_width(text, size) <= width:
        return text
    while text and text_width(text + "…", size) > width:
        text = text[:-1]
    return text + "…"


def share(count: float, total: float) -> str:
    """A percentage that neither hides a count nor rounds one up to all.

    >>> share(1, 52000), share(1, 8), share(0, 0)
    ('< 0.1 %', '12.5 %', '0 %')
    """
    percent = 100 * count / total if total else 0.0
    if 0 < percent < 0.1:
        return "< 0.1 %"
    return f"{percent:.1f} %" if percent % 1 else f"{percent:.0f} %"


def legend(names: Sequence[str], y: float) -> list[Polygon | Text]:
    """One line a name, with the colour of its series; none for a single set."""
    shapes: list[Polygon | Text] = []
    for i, name in enumerate(names if len(names) > 1 else ()):
        shapes.append(Polygon(box(0, y + 14 * i - 8, 10, 8), f"series{i}"))
        shapes.append(Text(15, y + 14 * i, shortened(name, WIDTH - 20, 11), colour="muted"))
    return shapes


def bars(
    title: str,
    rows: Sequence[tuple[str, Sequence[int]]],
    names: Sequence[str],
    totals: Sequence[int],
) -> Drawing:
    """Horizontal bars: for each label a bar a set, as long as its share of the set's labels."""
    left, longest, thick = 140, 110, 15 if len(names) == 1 else 11
    most = max(
        (n / t for _, counts in rows for n, t in zip(counts, totals, strict=True) if t), default=1
    )
    shapes: list[Polygon | Line | Text] = [*legend(names, 10)]
    y = 14.0 * len(names) + 8 if len(names) > 1 else 0.0
    for label, counts in rows:
        fade = 0.4 if label.startswith(OTHER) else 1.0
        middle = y + thick * len(names) / 2
        cut = shortened(label, left - 8, 11)
        shapes.append(Text(left - 8, middle + 4, cut, anchor="end"))
        for i, (count, total) in enumerate(zip(counts, totals, strict=True)):
            length = longest * count / total / most if total and most else 0
            value = f"{count:,} ({share(count, total)})"
            tip = f"{label} | {names[i]}: {value}"
            top = y + thick * i
            shapes.append(Polygon(box(left, top + 1, length, thick - 2), f"series{i}", tip, fade))
            size = 10.5 if len(names) == 1 else 9
            shapes.append(Text(left + length + 4, top + thick - 3.5, value, size, "muted"))
        y += thick * len(names) + 6
    shapes.append(Line([(left, 14.0 * len(names) + 4 if len(names) > 1 else 0), (left, y)], "grid"))
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
    name, drawn as an upright line.
    """
    left, top, width, height = 38, 14.0 * (len(names) if len(names) > 1 else 0) + 18, 310, 150
    step = edges[1] - edges[0] if len(edges) > 1 else 1
    ends = [*edges[1:], edges[-1] + step]
    span = ends[-1] - edges[0]
    totals = [sum(row) for row in counts]
    most = (
        max((n / t for row, t in zip(counts, totals, strict=True) if t for n in row), default=1)
        or 1
    )
    across = lambda value: left + width * (value - edges[0]) / span  # noqa: E731
    upward = lambda part: top + height * (1 - part / most)  # noqa: E731
    shapes: list[Polygon | Line | Text] = [*legend(names, 10)]
    for part in (0, most / 2, most):
        shapes.append(Line([(left, upward(part)), (left + width, upward(part))], "grid"))
        label = f"{100 * part:.0f} %" if most >= 0.05 else f"{100 * part:.1f} %"
        shapes.append(Text(left - 4, upward(part) + 4, label, 10, "muted", "end"))
    for i, (row, total) in enumerate(zip(counts, totals, strict=True)):
        line: list[Point] = [(across(edges[0]), upward(0))]
        for first, end, count in zip(edges, ends, row, strict=True):
            part = count / total if total else 0
            last = open_end and first == edges[-1]
            where = f"{first:g} or more" if last else f"{first:g} to {end:g}"
            tip = f"{where} {unit} | {names[i]}: {count:,} ({share(count, total)})"
            corners = box(
                across(first), upward(part), across(end) - across(first), height * part / most
            )
            shapes.append(Polygon(corners, f"series{i}", tip, 0.35 if len(names) == 1 else 0.12))
            line += [(across(first), upward(part)), (across(end), upward(part))]
        if total:
            line.append((across(ends[-1]), upward(0)))
            shapes.append(Line(line, f"series{i}", 1.8, DASHES[i % len(DASHES)]))
    for i in range(0, len(edges), max(1, math.ceil(len(edges) / 6))):
        shapes.append(
            Text(across(edges[i]), top + height + 14, f"{edges[i]:g}", 10, "muted", "middle")
        )
    shapes.append(Text(left + width / 2, top + height + 30, unit, 11, "muted", "middle"))
    if mark:
        shapes.append(
            Line([(across(mark[0]), top), (across(mark[0]), top + height)], "ink", 1, (3, 3))
        )
        shapes.append(Text(across(mark[0]) + 4, top - 5, mark[1], 10, "ink", "middle"))
    return Drawing(title, WIDTH, top + height + 36, shapes)


def sunburst(title: str, verbs: Sequence[dict], others: int) -> Drawing:
    """Root verbs in the inner ring, their objects in the outer one, clockwise by count.

    Each of `verbs` holds verb, count, objects (noun: count) and other_objects; `others` counts the
    pairs of all further verbs. Angles are counts: nothing that was counted is left out.
    """
    centre, radii = WIDTH / 2, (36.0, 102.0, 177.0)
    total = sum(verb["count"] for verb in verbs) + others
    shapes: list[Polygon | Line | Text] = []
    at = 0

    def wedge(
        count: int, first: int, ring: int, label: str, fill: str, tip: str, opacity: float = 1
    ):
        start, end = (2 * math.pi * n / total for n in (first, first + count))
        inner, outer = radii[ring], radii[ring + 1]
        shapes.append(
            Polygon(_ring(centre, inner, outer, start, end), fill, tip, opacity, gap=True)
        )
        middle, room = (start + end) / 2, (end - start) * (inner + outer) / 2
        if label and room > 8:
            size = min(10.5, room * 0.9)
            text = shortened(label, outer - inner - 5, size)
            shapes.append(_radial(centre, (inner + outer) / 2, middle, text, size))

    for i, verb in enumerate(verbs):
        name, count, fill = verb["verb"], verb["count"], f"wedge{i % WEDGES}"
        wedge(count, at, 0, name, fill, f"{name}: {count:,} ({share(count, total)})")
        inside = at
        for noun, number in verb["objects"].items():
            tip = f"{name} {noun}: {number:,} ({share(number, total)})"
            wedge(number, inside, 1, noun, fill, tip, 0.6)
            inside += number
        if rest := verb["other_objects"]:
            wedge(rest, inside, 1, "", "rest", f"{name}, other objects: {rest:,}", 0.5)
        at += count
    if others:
        tip = f"other verbs: {others:,} ({share(others, total)})"
        wedge(others, at, 0, "other verbs", "rest", tip, 0.7)
    shapes.append(Text(centre, centre + 1, f"{total:,}", 15, "ink", "middle", bold=True))
    shapes.append(Text(centre, centre + 16, "pairs", 11, "muted", "middle"))
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
        turn += 180
    x, y = centre + radius * math.sin(angle), centre - radius * math.cos(angle)
    down = size * 0.35  # from the middle of the letters to their baseline
    x, y = x - down * math.sin(math.radians(turn)), y + down * math.cos(math.radians(turn))
    return Text(x, y, text, size, ON_WEDGE, "middle", turn)
