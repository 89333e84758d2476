"""The sunburst: areas are the counts."""

import math

import pytest

from common.reports.drawing import Text
from common.reports.sunburst import sunburst
from tests.common.reports.test_charts import area, polygons, texts


def test_sunburst_areas_are_the_counts():
    verbs = [
        {"verb": "write", "count": 9, "objects": {"summary": 4, "note": 2}},
        {"verb": "list", "count": 2, "objects": {"drug": 2}},
    ]
    drawing = sunburst("T", verbs, pairs=20)
    areas = {shape.tip: area(shape.points) for shape in polygons(drawing)}
    ring = math.pi * (177**2 - 102**2)
    assert areas["write summary: 4 (20 %)"] == pytest.approx(ring * 4 / 8, rel=1e-3)
    assert areas["list drug: 2 (10 %)"] == pytest.approx(ring * 2 / 8, rel=1e-3)
    assert areas["write: 9 (45 %)"] == pytest.approx(math.pi * (102**2 - 36**2) * 6 / 8, rel=1e-3)
    assert texts(drawing)[-2:] == ["8", "of 20"]


def test_no_text_of_the_sunburst_is_upside_down():
    verbs = [{"verb": f"v{i}", "count": 1, "objects": {"n": 1}} for i in range(20)]
    for shape in sunburst("T", verbs, 20).shapes:
        if isinstance(shape, Text):
            assert -90 <= shape.angle <= 90
