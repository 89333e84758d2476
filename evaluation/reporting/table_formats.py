"""A table of texts as HTML, Markdown and LaTeX, and how numbers are written in it."""

import dataclasses
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

from common import provenance
from common.reports import page
from common.reports.charts import percent
from evaluation.scoring.results import Difference


@dataclasses.dataclass(frozen=True)
class Table:
    """Texts in rows; the first column holds labels."""

    caption: str
    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    bold: frozenset[tuple[int, int]] = frozenset()  # (row, column)
    over: Sequence[tuple[str, int]] = ()  # (text, columns) of a line of heads above `head`
    prose: bool = False  # the cells hold texts of several lines, not numbers


def html(table: Table) -> str:
    """The table as HTML."""
    rows = [(row[0], row[1:]) for row in table.rows]
    text = page.table(table.head, rows, table.caption, table.bold, over=table.over)
    return f"<div class=prose>{text}</div>" if table.prose else text


def markdown(table: Table) -> str:
    """The table as Markdown, under its caption; heads over heads come before these.

    >>> print(markdown(Table("Rates", ["System", "|A|"], [["x", "1"]], frozenset({(0, 1)}))))
    Rates
    <BLANKLINE>
    | System | \\|A\\| |
    |---|---:|
    | x | **1** |
    <BLANKLINE>
    """
    over = [text for text, count in table.over for _ in range(count)] or [""] * len(table.head)
    heads = zip(over, table.head, strict=True)
    lines = [[_escaped(f"{above}: {text}" if above else text) for above, text in heads]]
    for i, row in enumerate(table.rows):
        cells = map(_escaped, row)
        lines.append([f"**{x}**" if (i, j) in table.bold else x for j, x in enumerate(cells)])
    head, *body = (f"| {' | '.join(cells)} |" for cells in lines)
    rule = "|---" + "|---:" * (len(table.head) - 1) + "|"
    return "\n".join([_escaped(table.caption), "", head, rule, *body, ""])


def _escaped(text: str) -> str:
    return re.sub(r"([\\|*_`<>\[\]])", r"\\\1", " ".join(text.split()))


_TEX = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "–": "--",
    "−": "$-$",
    "×": r"$\times$",
    "|": r"\textbar{}",
    "<": "$<$",
    ">": "$>$",
} | {letter: "\\" + letter for letter in "&%$#_{}"}


def tex_text(text: str) -> str:
    r"""The text with TeX's special characters escaped; an interval at its end is set small.

    >>> print(tex_text("a_b & 5 % {x} p < 0.05"))
    a\_b \& 5 \% \{x\} p $<$ 0.05
    >>> print(tex_text("50.0 [41.0, 59.0]"))
    50.0 {\tiny[41.0, 59.0]}
    """
    plain = "".join(_TEX.get(letter, letter) for letter in text)
    if plain.startswith(("[", "*")):  # after \\ they would be its arguments
        plain = "{}" + plain
    return re.sub(r"(?<=\d) (\[[^]]*\])$", r" {\\tiny\1}", plain)


def latex(table: Table, label: str) -> str:
    """The table for LaTeX's packages booktabs and graphicx; `label` is for references to it.

    One that is wider than the text is scaled down to it.
    """

    def line(row: Sequence[str], number: int | None = None) -> str:
        cells = [tex_text(" ".join(text.split())) for text in row]
        bold = [(number, j) in table.bold for j in range(len(cells))]
        cells = [rf"\textbf{{{x}}}" if b else x for x, b in zip(cells, bold, strict=True)]
        return "    " + " & ".join(cells) + r" \\"

    columns = "l" + "r" * (len(table.head) - 1)
    if table.prose:
        columns = r"lp{0.7\linewidth}" + r"p{0.15\linewidth}" * (len(table.head) - 2)
    over = [rf"\multicolumn{{{count}}}{{c}}{{{tex_text(text)}}}" for text, count in table.over]
    return "\n".join(
        [
            r"\begin{table}",
            r"  \centering",
            r"  \footnotesize",
            r"  \setlength{\tabcolsep}{3pt}",
            rf"  \caption{{{tex_text(table.caption)}}}",
            rf"  \label{{tab:{label}}}",
            r"  \resizebox{\ifdim\width>\linewidth\linewidth\else\width\fi}{!}{%",
            rf"  \begin{{tabular}}{{{columns}}}",
            r"    \toprule",
            *(["    " + " & ".join(over) + r" \\"] if over else []),
            line(table.head),
            r"    \midrule",
            *(line(row, i) for i, row in enumerate(table.rows)),
            r"    \bottomrule",
            r"  \end{tabular}}",
            r"\end{table}",
            "",
        ]
    )


def write(folder: Path, name: str, tables: Sequence[Table]) -> None:
    """Writes NAME.md and NAME.tex; several tables have the labels NAME-1, NAME-2, ..."""
    folder.mkdir(parents=True, exist_ok=True)
    several = len(tables) > 1
    tex = [latex(t, f"{name}-{i}" if several else name) for i, t in enumerate(tables, start=1)]
    provenance.write_text(folder / f"{name}.md", "\n".join(map(markdown, tables)))
    provenance.write_text(folder / f"{name}.tex", "\n".join(tex))


class Rate(Protocol):
    """A win rate, an accuracy or an estimate."""

    @property
    def rate(self) -> float | None:
        """A share from 0 to 1; None where nothing is counted."""
        ...

    @property
    def low(self) -> float | None:
        """The lower end of its interval."""
        ...

    @property
    def high(self) -> float | None:
        """The upper end of its interval."""
        ...


def interval(found: Rate | None) -> str:
    """A rate and its interval, in per cent."""
    return with_interval(found.rate, found.low, found.high) if found else "–"


def with_interval(
    value: float | None,
    low: float | None,
    high: float | None,
    text: Callable[[float | None], str] = percent,
) -> str:
    """A number and its interval, if it has one; a share in per cent, or as `text` writes it.

    >>> with_interval(0.5, 0.41, 0.59), with_interval(0.5, None, None)
    ('50.0 [41.0, 59.0]', '50.0')
    >>> with_interval(0.5, 0.41, 0.59, number), with_interval(None, None, None)
    ('0.50 [0.41, 0.59]', '–')
    """
    if low is None or high is None:
        return text(value)
    return f"{text(value)} [{text(low)}, {text(high)}]"


def number(value: float | None, form: str = ".2f") -> str:
    """A number in a format, or a dash.

    >>> number(0.456), number(None)
    ('0.46', '–')
    """
    return "–" if value is None else f"{value:{form}}"


def points(found: Difference) -> str:
    """A difference and its interval, in percentage points.

    >>> points(Difference(9, 0.123, low=-0.01, high=0.2, p=0.1, p_holm=0.2, p_report=0.3))
    '+12.3 [-1.0, +20.0]'
    """
    return f"{100 * found.difference:+.1f} [{100 * found.low:+.1f}, {100 * found.high:+.1f}]"


def number_of_p(p: float) -> str:
    """A p-value in a column of them.

    >>> number_of_p(0.0321), number_of_p(1e-9)
    ('0.0321', '< 0.0001')
    """
    return "< 0.0001" if p < 1e-4 else f"{p:.4f}"


def p_text(p: float) -> str:
    """A p-value in a sentence.

    >>> p_text(0.0321), p_text(1e-9), p_text(1)
    ('p = 0.032', 'p < 0.001', 'p = 1.000')
    """
    return "p < 0.001" if p < 0.001 else f"p = {p:.3f}"
