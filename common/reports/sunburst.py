"""A sunburst of verbs and their objects, as a drawing."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from common.reports.charts import WIDTH, percentage
from common.reports.drawing import ON_WEDGE, WEDGES, Drawing, Point, Polygon, Shape, Text
from common.reports.lettering import shortened

RADII = (36.0, 102.0, 177.0)
"""Of the circles that bound the two rings."""


def sunburst(title: str, verbs: Sequence[Mapping[str, Any]], pairs: int) -> Drawing:
    """Root verbs in the inner ring, their objects in the outer one, clockwise by frequency.

    Each of `verbs` has verb, count and objects (noun: count). Angles are proportional to the counts
    of the objects drawn, as in Self-Instruct's and AlpaCare's figures; the centre shows how many of
    all `pairs` those are.
    """
    centre = WIDTH / 2
    total = sum(sum(verb["objects"].values()) for verb in verbs)
    shapes: list[Shape] = []

    def wedge(first: int, count: int, ring: int, label: str, fill: str, tip: str) -> None:
        start, end = (2 * math.pi * n / total for n in (first, first + count))
        inner, outer = RADII[ring], RADII[ring + 1]
        points, opacity = _ring(centre, inner, outer, start, end), 0.6 if ring else 1.0
        shapes.append(Polygon(points, fill, tip, opacity, gap=True))
        room = (end - start) * (inner + outer) / 2
        if room > 8:
            size = min(10.5, room * 0.9)
            text = shortened(label, outer - inner - 5, size)
            shapes.append(_radial(centre, (inner + outer) / 2, (start + end) / 2, text, size))

    position = 0
    for i, verb in enumerate(verbs):
        name, fill, first = verb["verb"], f"wedge{i % WEDGES}", position
        for noun, count in verb["objects"].items():
            tip = f"{name} {noun}: {count:,} ({percentage(count, pairs)})"
            wedge(position, count, 1, noun, fill, tip)
            position += count
        tip = f"{name}: {verb['count']:,} ({percentage(verb['count'], pairs)})"
        wedge(first, position - first, 0, name, fill, tip)
    shapes.append(Text(centre, centre, f"{total:,}", 15, "ink", "middle", bold=True))
    shapes.append(Text(centre, centre + 14, f"of {pairs:,}", 10, "muted", "middle"))
    return Drawing(title, WIDTH, WIDTH, shapes)


def _ring(centre: float, inner: float, outer: float, start: float, end: float) -> list[Point]:
    """A sector of a ring; angles in radians from the top, clockwise."""
    steps = max(2, math.ceil((end - start) / 0.03))
    angles = [start + (end - start) * i / steps for i in range(steps + 1)]
    return [_point(centre, outer, angle) for angle in angles] + [
        _point(centre, inner, angle) for angle in reversed(angles)
    ]


def _point(centre: float, radius: float, angle: float) -> Point:
    return centre + radius * math.sin(angle), centre - radius * math.cos(angle)


def _radial(centre: float, radius: float, angle: float, text: str, size: float) -> Text:
    """Text that runs outwards in the right half and inwards in the left one: never upside down."""
    turn = math.degrees(angle) - 90
    if angle > math.pi:
        turn -= 180
    x, y = _point(centre, radius, angle)
    down = size * 0.35  # from the middle of the letters to the baseline
    x, y = x - down * math.sin(math.radians(turn)), y + down * math.cos(math.radians(turn))
    return Text(x, y, text, size, ON_WEDGE, "middle", turn)
