"""Axes, condensed curves, tips and legends of curves."""

import doctest

import pytest

from common.reports import charts, curves
from common.reports.curves import MAX_POINTS, Curve, Mark, Scale, chart, condensed
from common.reports.drawing import Line, Polygon, Text


def test_the_examples_in_the_docstrings_are_true():
    result = doctest.testmod(curves)
    assert result.attempted and not result.failed


@pytest.mark.parametrize(
    ("low", "high", "log", "ticks"),
    [
        (0, 1, False, [0, 0.2, 0.4, 0.6, 0.8, 1]),
        (2.9, 6.3, False, [3, 4, 5, 6]),
        (0, 2.2e-5, False, [0, 5e-6, 1e-5, 1.5e-5, 2e-5]),
        (-3, 12, False, [0, 5, 10]),
        (0.1, 1000, True, [0.1, 1, 10, 100, 1000]),
        (1e-6, 1e6, True, [1e-6, 1e-3, 1, 1e3, 1e6]),
    ],
)
def test_ticks_are_round(low, high, log, ticks):
    scale = Scale(low, high, 100, 0, log)
    assert scale.ticks(5) == pytest.approx(ticks)
    assert scale(low) == 100 and scale(high) == pytest.approx(0)


def test_a_short_curve_is_its_own_line():
    points = [(float(i), i**0.5) for i in range(MAX_POINTS)]
    assert condensed(points) == (points, [])


def test_a_long_curve_is_a_mean_within_a_band():
    points = [(float(i), float(i % 2)) for i in range(1, 10 * MAX_POINTS + 1)]
    line, band = condensed(points)
    assert len(line) == MAX_POINTS and len(band) == 2 * MAX_POINTS
    assert (line[0][0], line[-1][0]) == (1, 10 * MAX_POINTS)
    assert {y for _, y in line} == {0.5}
    assert [y for _, y in band] == [1] * MAX_POINTS + [0] * MAX_POINTS


def points_of(drawing, kind, colour):
    return [
        list(shape.points)
        for shape in drawing.shapes
        if isinstance(shape, kind)
        and (shape.colour if isinstance(shape, Line) else shape.fill) == colour
    ]


def test_values_are_where_the_axes_say():
    loss = Curve("loss", [(0, 4.0), (50, 2.0)], "series0")
    drawing = chart("Loss", [loss], last_x=100)
    ((first, last),) = points_of(drawing, Line, "series0")
    labels = {shape.text: shape for shape in drawing.shapes if isinstance(shape, Text)}
    left, right = curves.LEFT, charts.WIDTH - curves.RIGHT
    assert first == pytest.approx((left, labels["4"].y - 3.5))
    assert last == pytest.approx(((left + right) / 2, labels["2"].y - 3.5)), "of 100 steps"
    for shape in drawing.shapes:
        spots = [(shape.x, shape.y)] if isinstance(shape, Text) else shape.points
        assert all(0 <= x <= drawing.width and 0 <= y <= drawing.height for x, y in spots)


def test_tips_name_the_step_and_every_value():
    loss = Curve("loss", [(1, 2.5), (2, 2.25)], "series0")
    held_out = Curve("held out", [(1, 2.75)], "series1", dots=True)
    drawing = chart("Loss", [loss, held_out])
    tips = [s.tip for s in drawing.shapes if isinstance(s, Polygon) and s.opacity == 0]
    assert tips == [
        "step 1\nloss 2.5\nheld out 2.75",
        "step 2\nloss 2.25\nheld out 2.75 (at 1)",
    ]


def test_shares_are_in_per_cent_of_everything():
    drawing = chart("Real", [Curve("real", [(1, 0.5)], "series0")], share=True)
    texts = {shape.text for shape in drawing.shapes if isinstance(shape, Text)}
    assert {"0 %", "100 %"} <= texts


@pytest.mark.parametrize("values", [[3.0, 3.0], [0.0, 0.0], [-1.0], [1e-12, 1e12], []])
@pytest.mark.parametrize("log", [False, True])
def test_any_values_can_be_drawn(values, log):
    curve = Curve("x", [(float(i), y) for i, y in enumerate(values)], "series0")
    chart("X", [curve], log=log, marks=[Mark(0, "resumed")])


def test_curves_of_one_colour_share_a_name_in_the_legend():
    some = [Curve("a", [(0, 1.0)], "series0")]
    some += [Curve(name, [(0, 2.0)], "rest", group="others") for name in "bc"]

    def texts(**options):
        return [s.text for s in chart("X", some, **options).shapes if isinstance(s, Text)]

    assert texts().count("others") == 1 and "a" in texts()
    assert not {"a", "others"} & {*texts(legend=False)}
