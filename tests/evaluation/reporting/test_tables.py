"""Tables of a report."""

import dataclasses

import pytest

from evaluation.judgements.verdicts import Matchup
from evaluation.reporting import outline, table_formats
from evaluation.reporting.content import ReportContent
from evaluation.reporting.table_formats import html
from evaluation.scoring.results import AVERAGE
from tests.evaluation.reporting.test_figures import PLAIN
from tests.support import judge_workdirs


def built(results):
    chapters = outline.build(ReportContent(results, PLAIN))
    return {name: found for chapter in chapters for name, found in chapter.tables.items()}


@pytest.fixture(scope="module")
def measured():
    return judge_workdirs.measure_set()


def test_which_there_are(measured):
    found = built(measured)
    names = (
        "people people_rates summary win_rates leaderboard both_orders counts comparisons judges "
        "agreement difficulty lengths signals safety"
    )
    assert list(found) == names.split()
    for mine in found.values():
        for table in mine:
            assert table.rows
            assert all(len(row) == len(table.head) for row in table.rows), table.caption


def test_win_rates_and_who_is_not_beaten(measured):
    table = built(measured)["win_rates"][0]
    assert table.head == ["System", "claude-2", "gpt-4", "average"]
    for i, line in enumerate(table.rows):
        for j, reference in enumerate(table.head[1:], start=1):
            panel = "lenient/gpt", "heart", reference
            rate = measured.rates[Matchup(*panel, line[0])]
            assert line[j] == table_formats.interval(rate)
            assert (i, j) in table.bold, "of 12 items nothing follows"


def test_bold_is_not_beaten_over_the_whole_report(measured):
    """One system loses to another after Holm over everything: it alone is not bold."""
    key = "strict", "heart", AVERAGE
    found = dict(measured.differences[key])
    pair = ("ours-7b", "theirs-7b")
    found[pair] = dataclasses.replace(found[pair], difference=0.3, p_holm=0.01, p_report=0.06)
    changed = measured
    for p_report, bold in ((0.06, 3), (0.04, 2)):
        found[pair] = dataclasses.replace(found[pair], p_report=p_report)
        differences = {**measured.differences, key: found}
        changed = dataclasses.replace(measured, differences=differences)
        (table,) = [
            t for t in built(changed)["win_rates"] if "heart" in t.caption and "strict" in t.caption
        ]
        column = table.head.index("average")
        assert sum((i, column) in table.bold for i in range(3)) == bold
    places = [row[0] for row in table.rows]
    assert (places.index("theirs-7b"), column) not in table.bold
    assert "no system is significantly better" in table.caption


def test_all_test_sets_in_one_table(measured):
    table = built(measured)["summary"][0]
    assert table.over == [("", 1), ("heart", 3), ("lung", 3)]
    assert table.head == ["System", *(["claude-2", "gpt-4", "AVG"] * 2)]
    rate = measured.rates["lenient/gpt", "lung", "gpt-4", table.rows[0][0]].rate
    assert table.rows[0][5] == f"{100 * rate:.1f}"
    assert "| heart: claude-2 |" in table_formats.markdown(table)
    tex = table_formats.latex(table, "x")
    assert r"\multicolumn{1}{c}{} & \multicolumn{3}{c}{heart} & \multicolumn{3}{c}{lung}" in tex
    assert html(table).count("colspan=3") == 2


def test_counts_are_of_matchups_with_invalid_verdicts(measured):
    (table,) = built(measured)["counts"]
    incomplete = [
        matchup
        for matchup, rate in measured.rates.items()
        if matchup.reference != AVERAGE and rate.valid < rate.items
    ]
    assert len(table.rows) == len(incomplete) > 0
    for line in table.rows:
        worst, best = map(float, line[-2:])
        assert worst < best
