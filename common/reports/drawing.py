"""A drawing of polygons, lines and texts: as SVG for pages, as PNG for papers.

Colours are names of `COLOURS`, so that a page can adapt them to dark mode.
"""

import dataclasses
import importlib.util
import re
import warnings
from collections.abc import Collection, Sequence
from html import escape
from pathlib import Path, PurePath
from typing import TYPE_CHECKING

from common import paths, provenance
from common.reports.lettering import wrapped

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Point = tuple[float, float]

COLOURS = {  # name: (light, dark)
    "ink": ("#1b1f24", "#e8eaed"),
    "muted": ("#5c6670", "#a3adb8"),
    "grid": ("#d9dee3", "#3a424b"),
    "paper": ("#ffffff", "#15181c"),
    "rest": ("#c9ced4", "#565f69"),
    "series0": ("#0072b2", "#56b4e9"),
    "series1": ("#d55e00", "#f08a3c"),
    "series2": ("#00795a", "#2bc295"),
    "series3": ("#a8508a", "#dd92bf"),
    "series4": ("#b07d00", "#e6b93a"),
    "series5": ("#444b54", "#c3c9d0"),
} | {  # Under dark text in both modes.
    f"wedge{i}": (colour, colour)
    for i, colour in enumerate(
        ("#8ec7ea", "#f5b78d", "#86d3b9", "#e0b1cf", "#edd27c", "#b9c3f0", "#c5dd90", "#f0a9a9")
    )
}
"""After Okabe and Ito, distinguishable by colour-blind people; darkened for contrast."""

SERIES = sum(name.startswith("series") for name in COLOURS)
WEDGES = sum(name.startswith("wedge") for name in COLOURS)
NAMESPACE = 'xmlns="http://www.w3.org/2000/svg" font-family="Helvetica, Arial, sans-serif"'
ON_WEDGE = "#1b1f24"


@dataclasses.dataclass(frozen=True)
class Polygon:
    """A filled polygon."""

    points: Sequence[Point]
    fill: str  # a name of COLOURS
    tip: str = ""  # shown when the pointer rests on it
    opacity: float = 1.0
    gap: bool = False  # thin border in the paper's colour


@dataclasses.dataclass(frozen=True)
class Line:
    """A line through points."""

    points: Sequence[Point]
    colour: str
    width: float = 1.0
    dash: tuple[float, float] | None = None
    tip: str = ""


@dataclasses.dataclass(frozen=True)
class Text:
    """One line of text."""

    x: float
    y: float  # of the baseline
    text: str
    size: float = 11
    colour: str = "ink"
    anchor: str = "start"  # start, middle, end
    angle: float = 0  # degrees, clockwise
    bold: bool = False


Shape = Polygon | Line | Text


@dataclasses.dataclass(frozen=True)
class Drawing:
    """Shapes in a box of width x height; y grows downwards; one unit is a CSS pixel."""

    title: str
    width: float
    height: float
    shapes: Sequence[Shape]


def box(x: float, y: float, width: float, height: float) -> list[Point]:
    """The corners of a rectangle."""
    return [(x, y), (x + width, y), (x + width, y + height), (x, y + height)]


def _colour(name: str) -> str:
    return COLOURS[name][0] if name in COLOURS else name


def _path(points: Sequence[Point]) -> str:
    return " ".join(f"{x:.1f},{y:.1f}" for x, y in points)


def svg(drawing: Drawing, *, alone: bool = False) -> str:
    """SVG. Inline, colours come from the page's `colour_rules`; `alone`, they are written out.

    Drawing programs do not support CSS variables.
    """

    def paint(kind: str, name: str) -> str:
        inherited = name in COLOURS and not alone
        return f'style="{kind}:var(--{name})"' if inherited else f'{kind}="{_colour(name)}"'

    size = f'width="{drawing.width:g}" height="{drawing.height:g}"'
    if not alone:  # a narrow screen scrolls rather than shrinks the letters
        size = f'style="min-width:{drawing.width:g}px"'
    parts = [
        f"<svg {NAMESPACE if alone else ''} {size} "
        f'viewBox="0 0 {drawing.width:g} {drawing.height:g}" role="img" '
        f'aria-label="{escape(drawing.title)}">'
    ]
    for shape in drawing.shapes:
        if isinstance(shape, Text):
            weight = ' font-weight="600"'
            turn = f' transform="rotate({shape.angle:.1f} {shape.x:.1f} {shape.y:.1f})"'
            parts.append(
                f'<text x="{shape.x:.1f}" y="{shape.y:.1f}" font-size="{shape.size:g}" '
                f'text-anchor="{shape.anchor}" {paint("fill", shape.colour)}'
                f"{turn if shape.angle else ''}{weight if shape.bold else ''}>"
                f"{escape(shape.text)}</text>"
            )
            continue
        tip = f"<title>{escape(shape.tip)}</title>" if shape.tip else ""
        if isinstance(shape, Polygon):
            gap = f' {paint("stroke", "paper")} stroke-width="0.8"' if alone else ' class="gap"'
            parts.append(
                f'<polygon points="{_path(shape.points)}" {paint("fill", shape.fill)} '
                f'fill-opacity="{shape.opacity:g}"{gap if shape.gap else ""}>{tip}</polygon>'
            )
        else:
            dash = f' stroke-dasharray="{shape.dash[0]:g} {shape.dash[1]:g}"' if shape.dash else ""
            parts.append(
                f'<polyline points="{_path(shape.points)}" fill="none" '
                f'{paint("stroke", shape.colour)} stroke-width="{shape.width:g}"{dash}>'
                f"{tip}</polyline>"
            )
    return "".join(parts) + "</svg>"


def colour_rules(dark: bool) -> str:
    """CSS variables for all colours."""
    return "".join(f"--{name}:{pair[dark]};" for name, pair in COLOURS.items())


def beside(title: str, drawings: Sequence[Drawing], columns: int) -> Drawing:
    """One drawing of several, row by row, each under its title."""
    gap, line = 24, 16
    width = max(drawing.width for drawing in drawings) + gap
    shapes: list[Shape] = []
    top = 0.0
    for first in range(0, len(drawings), columns):
        row = drawings[first : first + columns]
        titles = [wrapped(drawing.title, width - gap, 13, bold=True) for drawing in row]
        heading = 10 + line * max(map(len, titles))
        for column, (drawing, lines) in enumerate(zip(row, titles, strict=True)):
            left = column * width + gap / 2
            for number, text in enumerate(lines, start=1):
                shapes.append(Text(left, top + 2 + line * number, text, size=13, bold=True))
            shapes += [_moved(shape, left, top + heading) for shape in drawing.shapes]
        top += heading + max(drawing.height for drawing in row) + gap / 2
    return Drawing(title, min(columns, len(drawings)) * width, top, shapes)


def _moved(shape: Shape, right: float, down: float) -> Shape:
    if isinstance(shape, Text):
        return dataclasses.replace(shape, x=shape.x + right, y=shape.y + down)
    return dataclasses.replace(shape, points=[(x + right, y + down) for x, y in shape.points])


def write_svg(path: PurePath, drawing: Drawing) -> None:
    """Writes an SVG file for a paper or a slide, in the light colours on white."""
    white = Polygon(box(0, 0, drawing.width, drawing.height), "paper")
    whole = dataclasses.replace(drawing, shapes=[white, *drawing.shapes])
    provenance.write_text(path, svg(whole, alone=True) + "\n")


def write_figures(stem: PurePath, title: str, drawings: Sequence[Drawing]) -> str:
    """Writes the drawings together as `STEM.svg`, and as `STEM.png` where that is possible.

    Returns:
      Why there is no PNG; "" where it was written.
    """
    whole = beside(title, drawings, min(3, len(drawings)))
    svg_path, png_path = (stem.with_name(stem.name + ending) for ending in (".svg", ".png"))
    write_svg(svg_path, whole)
    if paths.in_bucket(stem):
        return f"{svg_path} is written; a PNG needs a local folder"
    if not importlib.util.find_spec("matplotlib"):
        return f"{svg_path} is written; a PNG needs matplotlib: pip install matplotlib"
    write_png(Path(png_path), whole)
    return ""


def missing_glyphs(missing: Collection[str]) -> str:
    """A warning about the characters that `write_png` could not draw."""
    some = " ".join(sorted(missing)[:20])
    return f"{len(missing)} characters appear as boxes in the PNGs: no installed font has {some}"


def write_png(path: Path, drawing: Drawing, dots_per_inch: int = 200) -> set[str]:
    """Writes a PNG, replacing a file only as a whole; returns characters that no font can draw."""
    figure = matplotlib_figure(drawing, dots_per_inch)
    with warnings.catch_warnings(record=True) as caught, provenance.replacing(path) as partial:
        warnings.simplefilter("always")
        settings = {"metadata": {"Software": None}, "pil_kwargs": {"compress_level": 3}}
        figure.savefig(partial, format="png", **settings)
    glyphs = [re.match(r"Glyph (\d+)", str(warning.message)) for warning in caught]
    return {chr(int(glyph.group(1))) for glyph in glyphs if glyph}


def matplotlib_figure(drawing: Drawing, dots_per_inch: int) -> "Figure":
    """The drawing as matplotlib draws it."""
    from matplotlib.colors import to_rgba
    from matplotlib.figure import Figure  # takes half a second
    from matplotlib.lines import Line2D
    from matplotlib.patches import Polygon as Patch

    figure = Figure(figsize=(drawing.width / 72, drawing.height / 72), dpi=dots_per_inch)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(0, drawing.width), ylim=(drawing.height, 0))
    axes.axis("off")
    for layer, shape in enumerate(drawing.shapes):  # as in SVG, later shapes are drawn on top
        if isinstance(shape, Polygon):
            face = to_rgba(_colour(shape.fill), shape.opacity)
            edge = _colour("paper") if shape.gap else "none"
            patch = Patch(shape.points, fc=face, ec=edge, lw=0.8, zorder=layer)
            axes.add_patch(patch)
        elif isinstance(shape, Line):
            style = (0, shape.dash) if shape.dash else "-"
            look = {"color": _colour(shape.colour), "lw": shape.width, "ls": style}
            axes.add_line(Line2D(*zip(*shape.points, strict=True), **look, zorder=layer))
        else:
            alignment = {"start": "left", "middle": "center", "end": "right"}[shape.anchor]
            axes.text(
                shape.x,
                shape.y,
                shape.text.replace("$", r"\$"),
                fontsize=shape.size * 0.92,  # DejaVu Sans is wider than a browser's font
                color=_colour(shape.colour),
                ha=alignment,
                va="baseline",
                rotation=-shape.angle,
                rotation_mode="anchor",
                weight="bold" if shape.bold else "normal",
                zorder=layer,
            )
    return figure
