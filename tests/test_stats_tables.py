"""Rows of numbers, and tables that hold any text."""

import doctest

from test_set_stats import SETS, measure

from datagen import stats_tables


def test_examples_of_the_docstrings():
    assert doctest.testmod(stats_tables).failed == 0


def test_every_row_has_one_text_a_set_or_is_a_heading():
    rows = stats_tables.summary_rows(measure())
    assert {len(values) for _, values in rows} == {0, len(SETS)}
    assert len({label for label, _ in rows}) == len(rows)


def test_a_table_escapes_its_texts():
    text = stats_tables.table(["<a>"], [("<b>", ["<c>"]), ("<d>", [])], caption="<e>")
    assert [text.count(f"&lt;{letter}>".replace(">", "&gt;")) for letter in "abcde"] == [1] * 5
    assert "<b>" not in text
