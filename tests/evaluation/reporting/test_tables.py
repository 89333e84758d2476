"""Tables of a report."""

import pytest

from evaluation.judging.verdicts import Matchup
from evaluation.reporting import tables
from evaluation.scoring.results import AVERAGE
from tests.evaluation.reporting.test_figures import PLAIN
from tests.support import judge_workdirs


@pytest.fixture(scope="module")
def measured():
    return judge_workdirs.measure_set()


def test_which_there_are(measured):
    found = tables.build(measured, PLAIN)
    names = (
        "people people_rates win_rates leaderboard both_orders counts judges agreement "
        "comparisons difficulty lengths signals"
    )
    assert list(found) == names.split()
    for mine in found.values():
        for table in mine:
            assert table.rows
            assert all(len(row) == len(table.head) for row in table.rows), table.caption


def test_win_rates_and_the_best_of_each_column(measured):
    table = tables.build(measured, PLAIN)["win_rates"][0]
    assert table.head == ["System", "claude-2", "gpt-4", "average"]
    for i, line in enumerate(table.rows):
        for j, reference in enumerate(table.head[1:], start=1):
            panel = "lenient/gpt", "heart", reference
            rate = measured.rates[Matchup(*panel, line[0])]
            assert line[j] == tables.interval(rate)
            column = [measured.rates[Matchup(*panel, name)].rate for name in PLAIN]
            assert ((i, j) in table.best) == (rate.rate == max(column))


def test_counts_are_of_matchups_with_invalid_verdicts(measured):
    (table,) = tables.build(measured, PLAIN)["counts"]
    incomplete = [
        matchup
        for matchup, rate in measured.rates.items()
        if matchup.reference != AVERAGE and rate.valid < rate.items
    ]
    assert len(table.rows) == len(incomplete) > 0
    for line in table.rows:
        worst, best = map(float, line[-2:])
        assert worst < best
