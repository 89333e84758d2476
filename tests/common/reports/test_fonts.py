"""No name is clipped or runs into another, whatever fonts a machine has: PNG and SVG."""

import itertools
import shutil
from pathlib import Path

import matplotlib as mpl
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg

from common.reports import charts, drawing
from common.reports.charts import HeatField, RateBar
from common.reports.page import document, panels
from tests.support import browser

FONTS = {
    "DejaVuSans": "DejaVu Sans",
    "DejaVuSerif": "DejaVu Serif",
    "DejaVuSansMono": "DejaVu Sans Mono",
}
"""Files of matplotlib, each the only font of a machine; wider than Arial, Helvetica and Times."""

NAMES = [
    "AlpaCare (LLaMA-2 13B)",
    "baize-healthcare-v1.5-three-epochs-and-a-very-long-name",
    "WWW MMM OOO",
    "医学大模型 7B",
    "gpt-4",
]
BAR = RateBar(1.0, 0.9, 1.0, "")
FIELD = HeatField(1.0, "−100*", "")


def every_chart():
    """Each with names of all kinds wherever a name can be."""
    colours = [f"series{i}" for i in range(len(NAMES))]
    grid = [(name, [FIELD] * len(NAMES)) for name in NAMES]
    return [
        charts.rate_bars("Bars", [(name, [BAR] * 5) for name in NAMES], NAMES, colours),
        charts.rate_bars("Thin bars", [(name, [BAR]) for name in NAMES], NAMES[:1], colours[:1]),
        charts.heat("A heat map of " + NAMES[1], NAMES, grid),
        charts.shares(
            "Shares", [(name, [(1.0, "")] + [(0.0, "")] * 4) for name in NAMES], NAMES, colours
        ),
        charts.text_block(NAMES[1], NAMES[2], " ".join(NAMES) * 4),
    ]


def require_apart(boxes, width, height):
    """`boxes` are (text, left, top, right, bottom)."""
    for text, left, top, right, bottom in boxes:
        inside = left >= -1 and top >= -1 and right <= width + 1 and bottom <= height + 1
        assert inside, f"{text!r} is clipped: {left:.0f} to {right:.0f} of {width:.0f}"
    for (one, *a), (other, *b) in itertools.combinations(boxes, 2):
        across = min(a[2], b[2]) - max(a[0], b[0])
        down = min(a[3], b[3]) - max(a[1], b[1])
        assert across < 1 or down < 4, f"{one!r} runs into {other!r}"


@pytest.mark.filterwarnings("ignore:Glyph")
@pytest.mark.parametrize("font", FONTS)
def test_names_in_a_png(font):
    charts_ = every_chart()
    with mpl.rc_context({"font.family": FONTS[font]}):
        for chart in [*charts_, drawing.beside("All", charts_, 2)]:
            figure = drawing.matplotlib_figure(chart, 72)
            renderer = FigureCanvasAgg(figure).get_renderer()
            (axes,) = figure.axes
            whole = figure.bbox
            boxes, turned = [], []
            for text in axes.texts:
                own = text.get_window_extent(renderer)
                kind = turned if text.get_rotation() else boxes
                kind.append((text.get_text(), own.x0, own.y0, own.x1, own.y1))
            require_apart(boxes, whole.width, whole.height)
            for one in turned:
                require_apart([one], whole.width, whole.height)


@pytest.mark.skipif(not browser.find(), reason="no Chromium here")
@pytest.mark.parametrize("font", FONTS)
def test_names_in_an_svg(tmp_path, font):
    source = Path(mpl.get_data_path()) / "fonts" / "ttf" / f"{font}.ttf"
    (tmp_path / "fonts").mkdir()
    shutil.copy(source, tmp_path / "fonts")
    config = tmp_path / "fonts.conf"
    config.write_text(
        f"<fontconfig><dir>{tmp_path}/fonts</dir><cachedir>{tmp_path}/cache</cachedir></fontconfig>"
    )
    page = tmp_path / "page.html"
    page.write_text(document("Charts", panels(every_chart())), encoding="utf-8")
    measure = """[...document.querySelectorAll('svg')].map(svg => {
      const at = svg.getBoundingClientRect();
      return [at.width, at.height, [...svg.querySelectorAll('text')].map(text => {
        const own = text.getBoundingClientRect();
        return [text.textContent, own.left - at.left, own.top - at.top, own.right - at.left,
          own.bottom - at.top, text.hasAttribute('transform')] })] })"""
    with browser.Browser(tmp_path / "profile", FONTCONFIG_FILE=str(config)) as opened:
        opened.size(390, 844, phone=True)
        opened.open(page.as_uri())
        for width, height, found in opened.run(measure):
            boxes = [text[:-1] for text in found if not text[-1]]
            require_apart(boxes, width, height)
            for *one, is_turned in found:
                if is_turned:
                    require_apart([one], width, height)
