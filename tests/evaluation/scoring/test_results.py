"""Results: report.json has a row for every entry, and lookups agree with it."""

import json

import pytest

from evaluation.judgements.verdicts import Matchup
from evaluation.scoring.results import AVERAGE, Difference
from tests.support import judge_workdirs


@pytest.fixture(scope="module")
def results():
    return judge_workdirs.measure_set()


@pytest.fixture(scope="module")
def record(results):
    return results.record()


def test_the_record_is_json_without_nan(record):
    assert json.loads(json.dumps(record, allow_nan=False)) == record


def test_a_rate_is_found_by_its_matchup(results, record):
    for row in record["win_rates"]:
        matchup = Matchup(row["judge"], row["benchmark"], row["reference"], row["generator"])
        assert results.rates[matchup].rate == row["rate"]
        assert ("position" in row) == (matchup in results.positions) == (matchup[2] != AVERAGE)
    assert len(record["win_rates"]) == len(results.rates)


def test_a_label_and_a_comparison_are_found_by_their_names(results, record):
    for row in record["by_difficulty"]:
        key = row["judge"], row["benchmark"], row["reference"]
        rates = results.rates_by_label["difficulty"][key]
        assert rates[row["generator"], row["difficulty"]].rate == row["rate"]
        assert row["reference"] == results.headline[key[:2]]
    for row in record["comparisons"]:
        pairs = results.differences[row["judge"], row["benchmark"], row["reference"]]
        assert pairs[row["one"], row["other"]].p_holm == row["p_holm"]


def test_the_average_is_the_last_reference_and_the_headline(results):
    assert results.references_of("strict", "heart") == ["claude-2", "gpt-4", AVERAGE]
    assert set(results.headline.values()) == {AVERAGE}


def test_a_difference_the_other_way_round():
    one, other = (9, 0.2, -0.1, 0.4, 0.03, 0.06, 0.07), (9, -0.2, -0.4, 0.1, 0.03, 0.06, 0.07)
    assert -Difference(*one) == Difference(*other)
