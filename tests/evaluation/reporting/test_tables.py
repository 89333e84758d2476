"""Tables from report.json, and their formats."""

import doctest

import pytest

from evaluation.reporting import table_formats, tables
from evaluation.reporting.table_formats import Table
from tests.evaluation.reporting.test_figures import PLAIN
from tests.support import judge_workdirs

HOSTILE = Table(
    "<i> & |x|", ["<b>", "a_b"], [["</td>", "1 [0, 2]"], ["<u>", "x"]], frozenset({(0, 1)})
)


@pytest.fixture(scope="module")
def measured():
    return judge_workdirs.measure_set()


def test_examples_of_the_docstrings():
    assert doctest.testmod(table_formats).failed == 0
    assert doctest.testmod(tables).failed == 0


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


def test_which_there_are(measured):
    found = tables.build(measured, PLAIN)
    assert list(found) == [
        *("win_rates", "counts", "judges", "agreement", "comparisons"),
        *("difficulty", "lengths", "signals"),
    ]
    for mine in found.values():
        for table in mine:
            assert table.rows
            assert all(len(row) == len(table.head) for row in table.rows), table.caption


def test_win_rates_and_the_best_of_each_column(measured):
    table = tables.build(measured, PLAIN)["win_rates"][0]
    assert table.head == ["System", "claude-2", "gpt-4", "average"]
    rows = {
        (r["judge"], r["benchmark"], r["reference"], r["generator"]): r
        for r in measured["win_rates"]
    }
    for i, line in enumerate(table.rows):
        for j, reference in enumerate(table.head[1:], start=1):
            row = rows["lenient/gpt", "heart", reference, line[0]]
            assert line[j] == tables.interval(row)
            column = [rows["lenient/gpt", "heart", reference, g]["rate"] for g in PLAIN]
            assert ((i, j) in table.best) == (row["rate"] == max(column))


def test_counts_are_of_cells_with_invalid_verdicts(measured):
    (table,) = tables.build(measured, PLAIN)["counts"]
    cells = [r for r in measured["win_rates"] if "position" in r and r["valid"] < r["items"]]
    assert len(table.rows) == len(cells) > 0
    for line in table.rows:
        worst, best = map(float, line[-2:])
        assert worst < best
