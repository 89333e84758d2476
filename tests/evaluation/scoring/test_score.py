"""Win rates: the paper's formula and the quirks of its code, judges that do not look, coverage."""

import json

import numpy as np
import pytest

from evaluation.judgements import reading, verdicts
from evaluation.judgements.verdicts import VerdictCode
from evaluation.scoring import score
from tests.conftest import REPOSITORY

MISSING, MODEL, REFERENCE, TIE, INVALID = VerdictCode
GOLDEN = REPOSITORY / "tests/golden" / "judgements.jsonl"


@pytest.fixture(scope="module")
def golden(tmp_path_factory):
    """The hand-made verdicts, as a table [8 items, 2 orders]."""
    folder = tmp_path_factory.mktemp("golden")
    (folder / "judgements.jsonl").write_bytes(GOLDEN.read_bytes())
    found, _ = reading.read([folder])
    (table,) = found.tables.values()
    return table


def original_win_rate(records: list[dict]) -> float:
    """What AlpaCare's evaulation.py computes: nanmean over items of (first + last) / 2."""
    points = {"model": 1.0, "reference": 0.0, "tie": 0.5, "invalid": np.nan}
    first, last = (
        [points[record["verdict"]] for record in records if record["order"] == order]
        for order in verdicts.ORDERS
    )
    return float(np.nanmean((np.array(first) + np.array(last)) / 2))


def test_the_papers_formula_on_verdicts_made_by_hand(golden):
    """Of 8 items 6 are valid and score 1, 0.5, 0.75, 0, 0.5, 0; the others 0.5 to 1 and 0 to 1."""
    found = score.win_rate(score.item_bounds(golden))
    assert (found.items, found.valid) == (8, 6)
    assert found.rate == 2.75 / 6
    assert found.worst == (2.75 + 0.5 + 0) / 8
    assert found.best == (2.75 + 1 + 1) / 8
    assert found.low < found.rate < found.high
    records = [json.loads(line) for line in GOLDEN.read_text().splitlines()]
    assert found.rate == original_win_rate(records)


def test_without_invalid_verdicts_the_rate_is_the_papers_over_all_items(golden):
    found = score.win_rate(score.item_bounds(golden[[0, 1, 2, 3, 4, 6]]))
    assert found.items == found.valid == 6
    assert found.worst == found.rate == found.best == 2.75 / 6


def test_positions_of_the_golden_verdicts(golden):
    found = score.position(golden).record()
    assert (found["verdicts"], found["invalid"], found["ties"]) == (16, 3, 3)
    assert (found["first"], found["second"]) == (6, 4)
    assert (found["items"], found["consistent"], found["mixed"]) == (6, 4, 1)
    assert (found["for_first"], found["for_second"]) == (1, 0)


def test_a_judge_that_always_names_the_first_answer():
    table = np.tile([MODEL, REFERENCE], (216, 1))
    assert score.win_rate(score.item_bounds(table)).rate == 0.5
    found = score.position(table).record()
    assert found["first_preference"] == found["for_first_share"] == 1.0
    assert found["consistent_share"] == 0.0


def test_a_judge_that_always_names_the_second_answer():
    found = score.position(np.tile([REFERENCE, MODEL], (9, 1))).record()
    assert (found["first_preference"], found["for_second_share"]) == (0.0, 1.0)


def test_a_judge_that_always_ties():
    table = np.full((216, 2), TIE)
    found = score.win_rate(score.item_bounds(table))
    assert found.rate == 0.5
    assert found.low < 0.5 < found.high
    counts = score.position(table).record()
    assert counts["decisive"] == 0
    assert counts["first_preference"] is None
    assert counts["tie_rate"] == 1.0


def test_the_interval_of_a_random_judge_covers_one_half():
    """In 93 to 97 % of 1,000 evaluations of MedInstruct-test's 216 items."""
    draw = np.random.default_rng(0)
    covered = 0
    for _ in range(1000):
        found = score.win_rate(score.item_bounds(draw.integers(0, 3, (216, 2))))
        covered += found.low <= 0.5 <= found.high
    assert 930 <= covered <= 970


def test_no_item_wins_or_all_do():
    lost = score.win_rate(score.item_bounds(np.full((50, 2), REFERENCE)))
    assert (lost.rate, lost.low) == (0.0, 0.0)
    assert 0.05 < lost.high < 0.1
    won = score.win_rate(score.item_bounds(np.full((50, 2), MODEL)))
    assert (won.rate, won.high) == (1.0, 1.0)
    assert won.low == pytest.approx(1 - lost.high)


def test_nothing_valid_and_nothing_judged():
    found = score.win_rate(score.item_bounds(np.full((3, 2), INVALID)))
    assert (found.items, found.valid, found.rate, found.low) == (3, 0, None, None)
    assert (found.worst, found.best) == (0.0, 1.0)
    none = score.win_rate(score.item_bounds(np.full((3, 2), MISSING)))
    assert (none.items, none.rate, none.worst) == (0, None, None)


def test_items_that_were_not_judged_do_not_count():
    table = np.array([[MODEL, MODEL], [MISSING, MISSING], [REFERENCE, REFERENCE]])
    assert score.win_rate(score.item_bounds(table)).items == 2
    assert score.position(table).verdicts == 4
    only = score.win_rate(score.item_bounds(table), np.array([True, True, False]))
    assert (only.items, only.rate) == (1, 1.0)


def test_the_average_over_references_is_the_mean_of_their_rates():
    draw = np.random.default_rng(1)
    tables = [draw.integers(0, 3, (100, 2)) for _ in range(3)]
    bounds = [score.item_bounds(table) for table in tables]
    mean = np.mean([score.win_rate(one).rate for one in bounds])
    found = score.mean_rate(bounds)
    assert found == score.win_rate(score.average(bounds))
    assert found.rate == pytest.approx(mean)
    assert found.valid == 100


def test_the_average_is_that_of_the_rates_with_invalid_verdicts_too():
    """Its interval is that of drawing by hand; items that one reference lacks are left out."""
    draw = np.random.default_rng(1)
    tables = [draw.choice([MODEL, REFERENCE, TIE, INVALID], (60, 2)) for _ in range(3)]
    tables[1][:10] = MISSING
    among = np.arange(60) != 20
    found = score.mean_rate([score.item_bounds(table) for table in tables], among)
    scores = [score.item_scores(score.item_bounds(table[10:][among[10:]])) for table in tables]
    assert found.rate == pytest.approx(np.mean([np.nanmean(one) for one in scores]))
    assert (found.items, found.valid) == (49, (~np.isnan(scores)).all(axis=0).sum())
    means = [
        np.mean([np.nanmean(one[items]) for one in scores])
        for items in draw.integers(0, 49, (2000, 49))
    ]
    assert (found.low, found.high) == pytest.approx(np.quantile(means, [0.025, 0.975]), abs=0.015)


def test_people_may_judge_one_order():
    table = np.array([[MODEL, MISSING], [MISSING, TIE], [MODEL, TIE], [MISSING, INVALID]])
    low, high = score.item_bounds(table)
    assert low.tolist() == [1.0, 0.5, 0.75, 0.0]
    assert high.tolist() == [1.0, 0.5, 0.75, 1.0]
    assert np.isnan(score.item_bounds(np.array([[MISSING, MISSING]]))).all()
