"""A table of texts as HTML, Markdown and LaTeX."""

import dataclasses
import re
from collections.abc import Sequence
from html import escape


@dataclasses.dataclass(frozen=True)
class Table:
    caption: str
    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    best: frozenset[tuple[int, int]] = frozenset()  # (row, column), set in bold


def html(table: Table) -> str:
    head = "".join(f"<th scope=col>{escape(text)}</th>" for text in table.head)
    rows = []
    for i, row in enumerate(table.rows):
        cells = (
            f"<td><b>{escape(text)}</b></td>"
            if (i, j) in table.best
            else f"<td>{escape(text)}</td>"
            for j, text in enumerate(row)
        )
        rows.append(f"<tr>{''.join(cells)}</tr>")
    return (
        f"<div class=scroll><table><caption>{escape(table.caption)}</caption><tr>{head}</tr>"
        f"{''.join(rows)}</table></div>"
    )


def markdown(table: Table) -> str:
    """
    >>> print(markdown(Table("Rates", ["System", "|A|"], [["x", "1"]], frozenset({(0, 1)}))))
    Rates
    <BLANKLINE>
    | System | \\|A\\| |
    |---|---:|
    | x | **1** |
    <BLANKLINE>
    """
    mark = lambda text: re.sub(r"([\\|*_`<>\[\]])", r"\\\1", " ".join(text.split()))  # noqa: E731
    lines = [[mark(text) for text in table.head], ["---"] + ["---:"] * (len(table.head) - 1)]
    for i, row in enumerate(table.rows):
        lines.append(
            [f"**{mark(x)}**" if (i, j) in table.best else mark(x) for j, x in enumerate(row)]
        )
    text = [f"|{'|'.join(row)}|" if row[0] == "---" else f"| {' | '.join(row)} |" for row in lines]
    return "\n".join([mark(table.caption), "", *text, ""])


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
    r"""The text with TeX's own characters escaped; an interval at its end is set small.

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
    """A table with the rules of the booktabs package."""

    def line(row: Sequence[str], number: int | None = None) -> str:
        cells = [tex_text(" ".join(text.split())) for text in row]
        bold = [(number, j) in table.best for j in range(len(cells))]
        cells = [rf"\textbf{{{x}}}" if b else x for x, b in zip(cells, bold, strict=True)]
        return "    " + " & ".join(cells) + r" \\"

    columns = "l" + "r" * (len(table.head) - 1)
    return "\n".join(
        [
            r"\begin{table}",
            r"  \centering",
            r"  \footnotesize",
            r"  \setlength{\tabcolsep}{3pt}",
            rf"  \caption{{{tex_text(table.caption)}}}",
            rf"  \label{{tab:{label}}}",
            rf"  \begin{{tabular}}{{{columns}}}",
            r"    \toprule",
            line(table.head),
            r"    \midrule",
            *(line(row, i) for i, row in enumerate(table.rows)),
            r"    \bottomrule",
            r"  \end{tabular}",
            r"\end{table}",
            "",
        ]
    )
