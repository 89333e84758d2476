"""Rows of numbers."""

from datagen.analysis import tables
from tests.datagen.analysis.test_measures import SETS, measure


def test_every_row_has_one_text_a_set_or_is_a_heading():
    rows = tables.summary_rows(measure())
    assert {len(values) for _, values in rows} == {0, len(SETS)}
    assert len({label for label, _ in rows}) == len(rows)
