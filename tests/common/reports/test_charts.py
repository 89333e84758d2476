"""Charts: lengths, areas and colours are the numbers."""

import itertools

import pytest

from common.reports import charts
from common.reports.charts import HeatField, RateBar
from common.reports.drawing import Line, Polygon, Text
from common.reports.lettering import text_width


def polygons(drawing):
    return [shape for shape in drawing.shapes if isinstance(shape, Polygon) and shape.tip]


def texts(drawing):
    return [shape.text for shape in drawing.shapes if isinstance(shape, Text)]


def area(points) -> float:
    around = zip(points, [*points[1:], points[0]], strict=True)
    return abs(sum(a[0] * b[1] - b[0] * a[1] for a, b in around)) / 2


def test_bars_and_their_intervals_are_as_long_as_their_shares():
    groups = [
        ("A", [RateBar(0.5, 0.25, 1.0, "tip"), None]),
        ("B", [None, RateBar(1.0, 1.0, 1.0, "other")]),
    ]
    drawing = charts.rate_bars("T", groups, ["x", "y"], ["series0", "series1"])
    lengths = {s.tip: s.points[1][0] - s.points[0][0] for s in polygons(drawing)}
    assert lengths["other"] == pytest.approx(2 * lengths["tip"])
    whisker = next(s for s in drawing.shapes if isinstance(s, Line) and s.tip == "tip")
    (low, _), (high, _) = whisker.points
    assert high - low == pytest.approx(0.75 * lengths["other"])
    assert {"x", "y", "A", "B", "50.0", "100.0"} <= set(texts(drawing))


def test_one_series_needs_no_legend():
    drawing = charts.rate_bars("T", [("A", [RateBar(0.5, 0.4, 0.6, "")])], ["only"], ["series0"])
    assert "only" not in texts(drawing)


def test_every_name_is_whole_in_as_many_lines_as_it_needs():
    label, legend = "AlpaCare with a name (LLaMA-2 13B)", "a-judge-" * 12
    bar = RateBar(0.5, 0.4, 0.6, "")
    shown = texts(charts.rate_bars("T", [(label, [bar] * 2)], [legend, "b"], ["series0"] * 2))
    assert label in " ".join(shown)
    assert legend in "".join(shown)
    heat = texts(charts.heat("T", [label, legend], [(label, [None] * 2), (legend, [None] * 2)]))
    assert " ".join(heat).count(label) == "".join(heat).count(legend) == 2
    assert label in " ".join(texts(charts.shares("T", [(label, [(1.0, "")])], ["x"], ["rest"])))


def test_wrapped_labels_do_not_overlap():
    bar = RateBar(0.5, 0.4, 0.6, "")
    drawing = charts.rate_bars("T", [("long name " * 9, [bar]), ("b", [bar])], ["a"], ["series0"])
    labels = [s for s in drawing.shapes if isinstance(s, Text) and s.text[:1] in "lnb"]
    assert all(b.y - a.y >= charts.LINE for a, b in itertools.pairwise(labels))


def test_shares_fill_the_whole_width():
    parts = [(0.7, "a"), (0.3, "b")]
    drawing = charts.shares("T", [("J", parts)], ["A", "B"], ["series0", "series1"])
    found = polygons(drawing)
    assert found[0].points[0][0] == 0
    assert found[1].points[1][0] == pytest.approx(charts.WIDTH)
    assert found[0].points[1][0] == pytest.approx(0.7 * charts.WIDTH)


def test_a_heat_map_shows_its_numbers():
    fields = [HeatField(1.0, "+9", "more"), HeatField(-0.5, "−4", "less"), None]
    drawing = charts.heat("T", ["a", "b", "c"], [("row", fields)])
    more, less = (s for s in drawing.shapes if isinstance(s, Polygon))
    assert (more.fill, less.fill) == ("series0", "series1")
    assert more.opacity == 2 * less.opacity
    assert {"+9", "−4", "a", "c", "row"} <= set(texts(drawing))
    many = charts.heat("T", ["a long name"] * 14, [("row", [HeatField(0, "0", "")] * 14)])
    right = max(x for s in many.shapes if isinstance(s, Polygon) for x, _ in s.points)
    assert right <= many.width


def test_count_bars_are_as_long_as_their_shares():
    drawing = charts.count_bars("T", [("x", [30, 1]), ("y", [10, 3])], ["A", "B"], [40, 4])
    lengths = [shape.points[1][0] - shape.points[0][0] for shape in polygons(drawing)]
    assert lengths == pytest.approx([110, 110 / 3, 110 / 3, 110])
    assert "x | A: 30 (75 %)" in [shape.tip for shape in polygons(drawing)]
    assert texts(drawing)[:2] == ["A", "B"]


def test_a_set_without_labels_has_no_bars():
    drawing = charts.count_bars("T", [("x", [0, 1])], ["A", "B"], [0, 1])
    assert [shape.tip for shape in polygons(drawing)] == ["x | B: 1 (100 %)"]
    assert "A" not in texts(drawing)


def test_long_and_wide_labels_are_cut():
    drawing = charts.count_bars("T", [("long " * 50, [1]), ("医" * 99, [1])], ["A"], [2])
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
