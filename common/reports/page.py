"""Self-contained HTML pages: the shared style, the document, its tables and numbers."""

from collections.abc import Collection, Iterable, Sequence
from html import escape

from common.reports import drawing
from common.reports.drawing import Drawing

BASE_STYLE = """
:root{color-scheme:light dark;LIGHT}
@media (prefers-color-scheme:dark){:root{DARK}}
*{box-sizing:border-box}
body{margin:0 auto;max-width:1240px;padding:24px 15px 60px;background:var(--paper);
color:var(--ink);font:15px/1.5 system-ui,"Segoe UI",Roboto,"Noto Sans",sans-serif}
h1{font-size:26px;line-height:1.2;margin:0 0 4px}h2{font-size:19px;margin:40px 0 4px}
h3{font-size:14px;margin:0 0 6px;overflow-wrap:anywhere}
p{margin:4px 0 12px;max-width:75ch}.muted,caption,summary{color:var(--muted)}
.panels{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(100%,360px),1fr));
gap:28px 32px;align-items:start;margin:14px 0}
figure{margin:0;max-width:430px;break-inside:avoid}
figcaption{color:var(--muted);font-size:13px}
svg{display:block;width:100%;height:auto;font-family:inherit}
svg .gap{stroke:var(--paper);stroke-width:.8}
.scroll{overflow-x:auto}table{border-collapse:collapse;font-size:14px;margin:8px 0}
th,td{padding:4px 14px 4px 0;text-align:right;border-bottom:1px solid var(--grid);
font-variant-numeric:tabular-nums;vertical-align:top}
th:first-child,td:first-child{text-align:left;overflow-wrap:anywhere;min-width:8em}
th{font-weight:600}tr.group th{padding-top:14px;border-bottom-color:var(--muted)}
caption{text-align:left}details{margin:6px 0}summary{cursor:pointer}
@media print{:root{LIGHT}body{font-size:10.5pt;max-width:none;padding:0}details{display:none}
.panels{grid-template-columns:repeat(2,1fr);gap:14px 22px}h2,p{break-after:avoid;break-inside:avoid}
h2{margin-top:22px}th,td{padding-block:1.5px}*{print-color-adjust:exact;-webkit-print-color-adjust:exact}}
"""


def document(title: str, body: str, *, style: str = "", head: str = "") -> str:
    """A complete HTML page that fetches nothing. `style` follows the shared rules."""
    light, dark = drawing.colour_rules(False), drawing.colour_rules(True)
    rules = BASE_STYLE.replace("LIGHT", light).replace("DARK", dark) + style
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"{head}<title>{escape(title)}</title><style>{rules}</style></head>\n"
        f"<body>{body}</body></html>\n"
    )


def panels(drawings: Sequence[Drawing]) -> str:
    """The drawings side by side, each under its title."""
    figures = "".join(
        f"<figure><h3>{escape(item.title)}</h3>{drawing.svg(item)}</figure>" for item in drawings
    )
    return f"<div class=panels>{figures}</div>"


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


TableRow = tuple[str, Sequence[str]]


def table(
    head: Sequence[str],
    rows: Iterable[TableRow],
    caption: str = "",
    bold: Collection[tuple[int, int]] = (),
) -> str:
    """An HTML table; a row without cells is a heading within it.

    Args:
      rows: (label, cells) of each.
      bold: (row, column) of the cells in bold type; column 0 is the label.
    """
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
        lines.append(f"<tr>{data}</tr>")
    title = f"<caption>{escape(caption)}</caption>" if caption else ""
    return f"<div class=scroll><table>{title}<tr>{cells}</tr>{''.join(lines)}</table></div>"
