"""The report's charts: lengths and colours are the numbers."""

import doctest

import pytest

from common.reports.drawing import Line, Polygon, Text
from evaluation.reporting import charts
from evaluation.reporting.charts import Bar, Field


def test_examples_of_the_docstrings():
    assert doctest.testmod(charts).failed == 0


def texts(drawing):
    return [shape.text for shape in drawing.shapes if isinstance(shape, Text)]


def test_bars_and_their_intervals_are_as_long_as_their_shares():
    groups = [("A", [Bar(0.5, 0.25, 1.0, "tip"), None]), ("B", [None, Bar(1.0, 1.0, 1.0, "other")])]
    drawing = charts.bars("T", groups, ["x", "y"], ["series0", "series1"])
    lengths = {
        shape.tip: shape.points[1][0] - shape.points[0][0]
        for shape in drawing.shapes
        if isinstance(shape, Polygon) and shape.tip
    }
    assert lengths["other"] == pytest.approx(2 * lengths["tip"])
    whisker = next(s for s in drawing.shapes if isinstance(s, Line) and s.tip == "tip")
    (low, _), (high, _) = whisker.points
    assert high - low == pytest.approx(0.75 * lengths["other"])
    assert {"x", "y", "A", "B", "50.0", "100.0"} <= set(texts(drawing))


def test_one_series_needs_no_legend():
    drawing = charts.bars("T", [("A", [Bar(0.5, 0.4, 0.6, "")])], ["only"], ["series0"])
    assert "only" not in texts(drawing)


def test_a_wide_label_has_two_lines_where_there_is_room():
    label = "AlpaCare with a name (LLaMA-2 13B)"
    bar = Bar(0.5, 0.4, 0.6, "")
    tall = charts.bars("T", [(label, [bar] * 3)], list("abc"), ["series0"] * 3)
    assert {"AlpaCare with a name", "(LLaMA-2 13B)"} <= set(texts(tall))
    low = charts.bars("T", [(label, [bar])], ["a"], ["series0"])
    assert any(text.endswith("…") for text in texts(low))


def test_shares_fill_the_whole_width():
    parts = [(0.7, "a"), (0.3, "b")]
    drawing = charts.shares("T", [("J", parts)], ["A", "B"], ["series0", "series1"])
    found = [s for s in drawing.shapes if isinstance(s, Polygon) and s.tip]
    assert found[0].points[0][0] == 0
    assert found[1].points[1][0] == pytest.approx(charts.WIDTH)
    assert found[0].points[1][0] == pytest.approx(0.7 * charts.WIDTH)


def test_a_heat_map_shows_its_numbers():
    fields = [Field(1.0, "+9", "more", bold=True), Field(-0.5, "−4", "less"), None]
    drawing = charts.heat("T", ["a", "b", "c"], [("row", fields)])
    more, less = (s for s in drawing.shapes if isinstance(s, Polygon))
    assert (more.fill, less.fill) == ("series0", "series1")
    assert more.opacity == 2 * less.opacity
    assert {"+9", "−4", "a", "c", "row"} <= set(texts(drawing))
    many = charts.heat("T", ["a long name"] * 14, [("row", [Field(0, "0", "")] * 14)])
    right = max(x for s in many.shapes if isinstance(s, Polygon) for x, _ in s.points)
    assert right <= many.width
