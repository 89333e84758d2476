"""The leaderboard's table: what has no rating is named, beside the win rates."""

from evaluation.judgements import reading, workdirs
from evaluation.reporting.content import ReportContent
from evaluation.reporting.sections import leaderboard
from evaluation.reporting.systems import System
from evaluation.scoring.measurement import measure
from tests.support import judge_workdirs


def built(folder, verdict, systems=("ours", "theirs", "worst")):
    items = {"heart": [f"h{i}" for i in range(20)]}
    judge_workdirs.write(folder, verdict, items=items, systems=systems)
    found, _ = reading.read([folder])
    results = measure(found, None, workdirs.read([folder], found), seed=0)
    named = {name: System(name.title()) for name in results.systems}
    (table,) = leaderboard.tables(ReportContent(results, named))
    return table


def test_players_without_a_rating_are_named(tmp_path):
    """Ours never lost, the worst never won: no number is made up for them."""

    def verdict(record):
        if record["generator"] == "theirs":
            return judge_workdirs.a_verdict(record)
        return "model" if record["generator"] == "ours" else "reference"

    table = built(tmp_path, verdict)
    cells = {row[0]: row[1:] for row in table.rows}
    assert table.rows[0][0] == "Ours"
    assert table.rows[-1][0] == "Worst"
    assert cells["Ours"] == ["unbeaten", "–", "100.0", "20"]
    assert cells["Worst"][:3] == ["never won", "–", "0.0"]
    assert cells["gpt-4 (reference)"][2] == "–", "no win rate against itself"
    assert "No finite rating fits" in table.caption


def test_ratings_ranks_and_how_well_they_fit(tmp_path):
    table = built(tmp_path, judge_workdirs.a_verdict)
    assert "No finite rating" not in table.caption
    assert "the largest difference" in table.caption
    for row in table.rows:
        rating, low, high = (float(x.strip("[],")) for x in row[1].split())
        assert low < rating < high
        assert row[2][0].isdigit()
