"""Rows of numbers."""

from test_set_stats import SETS, measure

from datagen import stats_tables


def test_every_row_has_one_text_a_set_or_is_a_heading():
    rows = stats_tables.summary_rows(measure())
    assert {len(values) for _, values in rows} == {0, len(SETS)}
    assert len({label for label, _ in rows}) == len(rows)
