"""Curves over steps as drawings: axes with round numbers, several curves, marks, values as tips."""

import bisect
import dataclasses
import itertools
import math
from collections.abc import Sequence

from common.reports import charts
from common.reports.drawing import Drawing, Line, Point, Polygon, Shape, Text, box

HEIGHT = 170.0  # of the plot, without title, legend and axis
LEFT, RIGHT = 46.0, 10.0  # margins of the plot within charts.WIDTH
MAX_POINTS = 160
"""A longer curve is drawn as the mean of this many intervals, on a band from least to most."""

MAX_TIPS = 80


@dataclasses.dataclass(frozen=True)
class Curve:
    """Points of finite coordinates, x ascending."""

    name: str
    points: Sequence[Point]
    colour: str  # a name of drawing.COLOURS
    dots: bool = False  # mark each point: few values, far apart
    dash: tuple[float, float] | None = None
    group: str = ""  # its name in the legend, where several share a colour


@dataclasses.dataclass(frozen=True)
class Mark:
    """A vertical line, and what happened there."""

    x: float
    text: str


@dataclasses.dataclass(frozen=True)
class Scale:
    """From values to a length in the drawing; `log`: by orders of magnitude."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def __call__(self, value: float) -> float:
        """The place of a value."""
        low, high = self.low, self.high
        if self.log:
            low, high, value = math.log10(low), math.log10(high), math.log10(value)
        return self.start + (self.end - self.start) * (value - low) / (high - low)

    def ticks(self, count: int) -> list[float]:
        """At most about `count` round values within the scale."""
        if self.log:
            powers = range(math.ceil(math.log10(self.low)), math.floor(math.log10(self.high)) + 1)
            return [10.0**power for power in powers[:: max(1, math.ceil(len(powers) / count))]]
        rough = (self.high - self.low) / count
        unit = 10 ** math.floor(math.log10(rough))
        step = next(
            unit * factor for factor in (1, 2, 2.5, 5, 10) if unit * factor >= rough * 0.999
        )
        first, last = math.ceil(self.low / step - 1e-9), math.floor(self.high / step + 1e-9)
        return [step * i for i in range(first, last + 1)]


def short(value: float) -> str:
    """A number for an axis.

    >>> [short(x) for x in (0, 0.25, 0.00025, 1500, 12000, 2_500_000, 5e28)]
    ['0', '0.25', '2.5e-4', '1,500', '12k', '2.5M', '5e28']
    """
    if 1e9 > abs(value) >= 1e6:
        return f"{value / 1e6:.4g}M"
    if 1e6 > abs(value) >= 1e4:
        return f"{value / 1e3:.4g}k"
    if 1e4 > abs(value) >= 1000:
        return f"{value:,.0f}"
    if 0 < abs(value) < 1e-3 or abs(value) >= 1e9:
        digits, _, power = f"{value:.3e}".partition("e")
        return f"{float(digits):g}e{int(power)}"
    return f"{value:.4g}"


def condensed(points: Sequence[Point]) -> tuple[list[Point], list[Point]]:
    """(line, band): a long curve as means of intervals, and the area from least to most value.

    A curve of at most MAX_POINTS is its own line, and has no band.
    """
    if len(points) <= MAX_POINTS:
        return list(points), []
    groups = [
        points[len(points) * i // MAX_POINTS : len(points) * (i + 1) // MAX_POINTS]
        for i in range(MAX_POINTS)
    ]
    middles = [sum(x for x, _ in group) / len(group) for group in groups]
    means = [sum(y for _, y in group) / len(group) for group in groups]
    upper = [max(y for _, y in group) for group in groups]
    lower = [min(y for _, y in group) for group in groups]
    # The line begins and ends where the points do.
    middles[0], middles[-1] = points[0][0], points[-1][0]
    around = [*zip(middles, upper, strict=True), *reversed([*zip(middles, lower, strict=True)])]
    return list(zip(middles, means, strict=True)), around


def chart(
    title: str,
    curves: Sequence[Curve],
    *,
    last_x: float = 0,
    unit: str = "step",
    marks: Sequence[Mark] = (),
    log: bool = False,
    share: bool = False,
    legend: bool = True,
) -> Drawing:
    """Curves over a common x axis from 0.

    Args:
      last_x: where the axis ends, if that is beyond the last point: the end of a running run.
      log: a logarithmic y axis; every value must be positive.
      share: values are shares, shown in per cent of 0 to 100.
      legend: name the curves, each colour once.
    """
    curves = [curve for curve in curves if curve.points]
    values = [y for curve in curves for _, y in curve.points]
    named = {curve.colour: curve.group or curve.name for curve in curves if legend}
    shapes, top = charts.legend(list(named.values()), list(named))
    top += 8
    ends = [curve.points[-1][0] for curve in curves]
    across = Scale(0, max([last_x, *ends, 1]), LEFT, charts.WIDTH - RIGHT)
    up = _vertical(values, top, log, share)
    for tick in up.ticks(5):
        y, label = up(tick), f"{100 * tick:.0f} %" if share else short(tick)
        shapes.append(Line([(LEFT, y), (charts.WIDTH - RIGHT, y)], "grid"))
        shapes.append(Text(LEFT - 5, y + 3.5, label, 10, "muted", "end"))
    bottom = top + HEIGHT
    for tick in across.ticks(6):
        if tick == int(tick):
            anchor = "end" if across(tick) > charts.WIDTH - RIGHT - 12 else "middle"
            shapes.append(Text(across(tick), bottom + 14, short(tick), 10, "muted", anchor))
    shapes.append(Text((LEFT + charts.WIDTH) / 2, bottom + 28, unit, 10, "muted", "middle"))
    for mark in marks:
        line = [(across(mark.x), top), (across(mark.x), bottom)]
        shapes.append(Line(line, "muted", 1, (3, 3), mark.text))
    for curve in curves:
        shapes += _drawn(curve, across, up)
    shapes += _tips(curves, across, top, unit, share)
    return Drawing(title, charts.WIDTH, bottom + 34, shapes)


def _vertical(values: Sequence[float], top: float, log: bool, share: bool) -> Scale:
    """The y scale: a little more than the values need, and never empty."""
    low, high = min(values, default=0.0), max(values, default=1.0)
    if share:
        low, high = 0.0, 1.0
    elif log and low > 0:
        low, high = 10 ** math.floor(math.log10(low)), 10 ** math.ceil(math.log10(high))
        high = high if high > low else 10 * low
    else:
        log = False
        room = 0.06 * (high - low) or 0.1 * abs(high) or 1.0
        low, high = (0.0 if 0 <= low < 0.4 * high else low - room), high + room
    return Scale(low, high, top + HEIGHT, top, log)


def _drawn(curve: Curve, across: Scale, up: Scale) -> list[Shape]:
    line, band = condensed(curve.points)
    shapes: list[Shape] = []
    if band:
        shapes.append(Polygon([(across(x), up(y)) for x, y in band], curve.colour, opacity=0.2))
    placed = [(across(x), up(y)) for x, y in line]
    if len(placed) > 1:
        shapes.append(Line(placed, curve.colour, 1.8, curve.dash))
    if curve.dots or len(placed) == 1:
        for x, y in placed:
            diamond = [(x, y - 4), (x + 4, y), (x, y + 4), (x - 4, y)]
            shapes.append(Polygon(diamond, curve.colour, gap=True))
    return shapes


def _tips(
    curves: Sequence[Curve], across: Scale, top: float, unit: str, share: bool
) -> list[Shape]:
    """Invisible columns whose tips name the value of every curve there."""
    steps = sorted({x for curve in curves for x, _ in curve.points})
    if not steps:
        return []
    chosen = steps[:: math.ceil(len(steps) / MAX_TIPS)]
    edges = [(across(a) + across(b)) / 2 for a, b in itertools.pairwise(chosen)]
    edges = [across.start, *edges, across.end]
    shapes: list[Shape] = []
    for x, (left, right) in zip(chosen, itertools.pairwise(edges), strict=True):
        parts = [f"{unit} {x:,g}"]
        for curve in curves:
            at = bisect.bisect(curve.points, x, key=lambda point: point[0]) - 1
            if at >= 0:
                where, y = curve.points[at]
                shown = f"{100 * y:.1f} %" if share else f"{y:.4g}"
                parts.append(f"{curve.name} {shown}" + (f" (at {where:,g})" if where != x else ""))
        area = box(left, top, right - left, HEIGHT)
        shapes.append(Polygon(area, "paper", "\n".join(parts), opacity=0))
    return shapes
