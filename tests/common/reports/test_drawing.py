"""The same drawing as SVG and as PNG."""

import xml.etree.ElementTree as ElementTree

from common.reports import drawing
from common.reports.drawing import Drawing, Line, Polygon, Text

SHAPES = [
    Polygon(drawing.box(10, 10, 50, 20), "series0", "<tip> & more"),
    Line([(0, 0), (100, 50)], "ink", dash=(3, 2)),
    Text(50, 40, "a < b $x$", angle=30, bold=True),
]
DRAWING = Drawing('A "title"', 100, 50, SHAPES)


def test_svg_is_well_formed_and_escaped():
    root = ElementTree.fromstring(drawing.svg(DRAWING))
    assert root.get("aria-label") == 'A "title"'
    assert [element.tag for element in root] == ["polygon", "polyline", "text"]
    assert root[0][0].text == "<tip> & more"
    assert root[2].text == "a < b $x$"


def test_an_svg_file_names_its_colours(tmp_path):
    drawing.write_svg(tmp_path / "x.svg", DRAWING)
    text = (tmp_path / "x.svg").read_text()
    assert "var(--" not in text
    root = ElementTree.fromstring(text)
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    assert (root.get("width"), root.get("height")) == ("100", "50")
    assert [element.get("fill") for element in root[:2]] == ["#ffffff", "#0072b2"]


def test_every_colour_has_a_rule_in_both_modes():
    for dark in (False, True):
        rules = drawing.colour_rules(dark)
        assert all(f"--{name}:" in rules for name in drawing.COLOURS)


def luminance(colour: str) -> float:
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: str, other: str) -> float:
    lighter, darker = sorted((luminance(one), luminance(other)), reverse=True)
    return (lighter + 0.05) / (darker + 0.05)


def test_contrast_of_text_and_of_series():
    """WCAG 2: 4.5 for text, 3 for graphics."""
    for mode in (0, 1):
        paper = drawing.COLOURS["paper"][mode]
        for name, pair in drawing.COLOURS.items():
            if name in ("ink", "muted"):
                assert contrast(pair[mode], paper) >= 4.5, name
            if name.startswith("series"):
                assert contrast(pair[mode], paper) >= 3, name
            if name.startswith("wedge"):
                assert contrast(pair[mode], drawing.ON_WEDGE) >= 4.5, name


def test_png(tmp_path):
    path = tmp_path / "x.png"
    assert drawing.write_png(path, DRAWING, dots_per_inch=72) == set()
    content = path.read_bytes()
    assert content[:8] == b"\x89PNG\r\n\x1a\n"
    assert (int.from_bytes(content[16:20]), int.from_bytes(content[20:24])) == (100, 50)
    drawing.write_png(path, DRAWING, dots_per_inch=72)
    assert path.read_bytes() == content
    assert list(tmp_path.iterdir()) == [path]


def test_beside_keeps_every_shape():
    whole = drawing.beside("Both", [DRAWING, DRAWING, DRAWING], columns=2)
    assert len(whole.shapes) == 3 * (len(SHAPES) + 1)
    assert whole.width == 2 * (100 + 24)
    assert whole.shapes[1].points[0] == (10 + 12, 10 + 26)
