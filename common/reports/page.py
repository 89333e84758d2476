"""Self-contained HTML pages: the shared style, the document, its tables and numbers."""

import base64
import hashlib
import json
from collections.abc import Collection, Iterable, Sequence
from html import escape
from pathlib import Path
from typing import Any

from common.reports import drawing
from common.reports.drawing import Drawing

BASE_STYLE = Path(__file__).with_name("page.css")
"""The shared rules; LIGHT and DARK stand for the colours of the two modes."""


POLICY = (
    "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; base-uri 'none'; "
    "form-action 'none'; style-src 'unsafe-inline'; script-src {}{}\">"
)
"""A page fetches nothing and runs at most one script, known by its hash, whatever its texts say;
one that is served may talk to its own server."""


def document(
    title: str,
    body: str,
    *,
    style: str = "",
    script: str = "",
    reload_seconds: int = 0,
    connects: bool = False,
) -> str:
    """A complete HTML page that fetches nothing.

    Args:
      style: rules that follow the shared ones.
      script: JavaScript that runs after the body.
      reload_seconds: the browser reloads the page after this time; 0: never.
      connects: whether the script talks to the server that the page came from.
    """
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = POLICY.format(
        f"'sha256-{digest}'" if script else "'none'", "; connect-src 'self'" if connects else ""
    )
    element = f"<script>{script}</script>" if script else ""
    reload = f'<meta http-equiv="refresh" content="{reload_seconds}">' if reload_seconds else ""
    light, dark = drawing.colour_rules(False), drawing.colour_rules(True)
    rules = BASE_STYLE.read_text("utf-8").replace("LIGHT", light).replace("DARK", dark) + style
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"{policy}{reload}<title>{escape(title)}</title><style>{rules}</style></head>\n"
        f"<body>{body}{element}</body></html>\n"
    )


def panels(drawings: Sequence[Drawing]) -> str:
    """The drawings side by side, each under its title."""
    figures = "".join(
        f'<figure style="--wide:{item.width:g}px"><h3>{escape(item.title)}</h3>'
        f"<div class=scroll>{drawing.svg(item)}</div></figure>"
        for item in drawings
    )
    return f"<div class=panels>{figures}</div>"


def script_json(content: Any) -> str:
    """JSON inside a script element, which it cannot close."""
    return json.dumps(content, ensure_ascii=False).replace("<", "\\u003c")


def json_element(name: str, content: Any) -> str:
    """Data for the page's script, in an element with the id `name`."""
    return f"<script type=application/json id={name}>{script_json(content)}</script>"


def foldout(content: str, label: str = "The numbers") -> str:
    """Content that opens on a click."""
    return f"<details><summary>{escape(label)}</summary>{content}</details>"


def number(value: float) -> str:
    """A number for a page: integers with commas, others with three digits.

    >>> number(52002), number(0.12345), number(24.61), number(12.0)
    ('52,002', '0.123', '24.6', '12')
    """
    if value == int(value):
        return f"{int(value):,}"
    return f"{value:.3f}" if abs(value) < 10 else f"{value:,.1f}"


_SQUARE = '<span class=square style="background:var(--{})"></span>'

TableRow = tuple[str, Sequence[str]]


def table(
    head: Sequence[str],
    rows: Iterable[TableRow],
    caption: str = "",
    bold: Collection[tuple[int, int]] = (),
    colours: Sequence[str] = (),
    over: Sequence[tuple[str, int]] = (),
) -> str:
    """An HTML table; a row without cells is a heading within it.

    Args:
      rows: (label, cells) of each.
      bold: (row, column) of the cells in bold type; column 0 is the label.
      colours: of the square before the label of each row, names of `drawing.COLOURS`; none: none.
      over: (text, columns) of a line of heads above the others, from the first column on.
    """
    spans = "".join(f"<th colspan={count}>{escape(text)}</th>" for text, count in over)
    top = f"<tr class=over>{spans}</tr>" if over else ""
    cells = "".join(f"<th scope=col>{escape(text)}</th>" for text in head)
    lines = []
    for i, (label, values) in enumerate(rows):
        if not values:
            lines.append(
                f"<tr class=group><th scope=rowgroup colspan={len(head)}>{escape(label)}</th></tr>"
            )
            continue
        data = "".join(
            f"<td><b>{escape(text)}</b></td>" if (i, j) in bold else f"<td>{escape(text)}</td>"
            for j, text in enumerate((label, *values))
        )
        if colours:
            data = data.replace("<td>", f"<td>{_SQUARE.format(colours[i])}", 1)
        lines.append(f"<tr>{data}</tr>")
    # Not <caption>, which is as wide as the table: on a phone it would scroll out of sight.
    title = f"<figcaption>{escape(caption)}</figcaption>" if caption else ""
    content = f"<table>{top}<tr>{cells}</tr>{''.join(lines)}</table>"
    return f"<figure>{title}<div class=scroll tabindex=0>{content}</div></figure>"
