"""Tables as HTML, Markdown and LaTeX: no text becomes markup."""

import pytest

from evaluation.reporting import table_formats
from evaluation.reporting.table_formats import Table

HOSTILE = Table(
    "<i> & |x|", ["<b>", "a_b"], [["</td>", "1 [0, 2]"], ["<u>", "x"]], frozenset({(0, 1)})
)


def test_texts_stay_texts():
    page = table_formats.html(HOSTILE)
    assert "<i>" not in page
    assert "<u>" not in page
    assert page.count("<b>") == 1  # of the bold cell
    text = table_formats.markdown(HOSTILE)
    assert r"\<i\> & \|x\|" in text
    tex = table_formats.latex(HOSTILE, "x")
    assert r"\& \textbar{}x\textbar{}" in tex
    assert r"\textbf{1 {\tiny[0, 2]}}" in tex
    assert r"a\_b" in tex


@pytest.mark.parametrize("name", ["[7B] ours", "*best*"])
def test_no_name_is_an_argument_of_the_line_before_it(name):
    tex = table_formats.latex(Table("Rates", ["System"], [["x"], [name]]), "x")
    assert f"\n    {{}}{name} " in tex
