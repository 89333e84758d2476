"""Charts: lengths and angles are the counts."""

import doctest
import math

import pytest

from common.reports.drawing import Line, Polygon, Text, text_width
from datagen.analysis import charts


def test_examples_of_the_docstrings():
    assert doctest.testmod(charts).failed == 0


def polygons(drawing):
    return [shape for shape in drawing.shapes if isinstance(shape, Polygon) and shape.tip]


def texts(drawing):
    return [shape.text for shape in drawing.shapes if isinstance(shape, Text)]


def area(points) -> float:
    around = zip(points, [*points[1:], points[0]], strict=True)
    return abs(sum(a[0] * b[1] - b[0] * a[1] for a, b in around)) / 2


def test_bars_are_as_long_as_their_shares():
    drawing = charts.bars("T", [("x", [30, 1]), ("y", [10, 3])], ["A", "B"], [40, 4])
    lengths = [shape.points[1][0] - shape.points[0][0] for shape in polygons(drawing)]
    assert lengths == pytest.approx([110, 110 / 3, 110 / 3, 110])
    assert "x | A: 30 (75 %)" in [shape.tip for shape in polygons(drawing)]
    assert texts(drawing)[:2] == ["A", "B"]


def test_a_set_without_labels_has_no_bars():
    drawing = charts.bars("T", [("x", [0, 1])], ["A", "B"], [0, 1])
    assert [shape.tip for shape in polygons(drawing)] == ["x | B: 1 (100 %)"]
    assert "A" not in texts(drawing)


def test_long_and_wide_labels_are_cut():
    drawing = charts.bars("T", [("long " * 50, [1]), ("医" * 99, [1])], ["A"], [2])
    cut = [text for text in texts(drawing) if text.endswith("…")]
    assert len(cut) == 2
    assert all(text_width(text, 11) <= 132 for text in cut)


def test_histogram_areas_are_the_shares():
    kept = {"unit": "words", "open_end": True}
    drawing = charts.histogram("T", [0, 5, 10], [[1, 3, 4], [0, 0, 0]], ["A", "B"], **kept)
    areas = [area(shape.points) for shape in polygons(drawing)]
    assert [a / sum(areas) for a in areas] == pytest.approx([1 / 8, 3 / 8, 4 / 8])
    assert polygons(drawing)[-1].tip == "10 or more words | A: 4 (50 %)"
    assert all(shape.colour != "series1" for shape in drawing.shapes if isinstance(shape, Line))


def test_sunburst_areas_are_the_counts():
    verbs = [
        {"verb": "write", "count": 9, "objects": {"summary": 4, "note": 2}},
        {"verb": "list", "count": 2, "objects": {"drug": 2}},
    ]
    drawing = charts.sunburst("T", verbs, pairs=20)
    areas = {shape.tip: area(shape.points) for shape in polygons(drawing)}
    ring = math.pi * (177**2 - 102**2)
    assert areas["write summary: 4 (20 %)"] == pytest.approx(ring * 4 / 8, rel=1e-3)
    assert areas["list drug: 2 (10 %)"] == pytest.approx(ring * 2 / 8, rel=1e-3)
    assert areas["write: 9 (45 %)"] == pytest.approx(math.pi * (102**2 - 36**2) * 6 / 8, rel=1e-3)
    assert texts(drawing)[-2:] == ["8", "of 20"]


def test_no_text_of_the_sunburst_is_upside_down():
    verbs = [{"verb": f"v{i}", "count": 1, "objects": {"n": 1}} for i in range(20)]
    for shape in charts.sunburst("T", verbs, 20).shapes:
        if isinstance(shape, Text):
            assert -90 <= shape.angle <= 90
