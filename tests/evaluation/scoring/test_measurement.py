"""The numbers of a report follow from the verdicts."""

import numpy as np
import pytest

from evaluation.judgements import reading, workdirs
from evaluation.judgements.verdicts import Matchup
from evaluation.scoring import measurement, score
from evaluation.scoring.measurement import measure
from evaluation.scoring.results import AVERAGE
from tests.support import judge_workdirs


@pytest.fixture(scope="module")
def read():
    return judge_workdirs.read_set()


@pytest.fixture(scope="module")
def measured():
    return judge_workdirs.measure_set().record()


def rows(measured, name, **fields):
    return [row for row in measured[name] if fields.items() <= row.items()]


def test_every_matchup_and_every_average_has_a_rate(read, measured):
    verdicts_, *_ = read
    assert len(rows(measured, "win_rates")) == len(verdicts_.tables) + 2 * 2 * 3
    matchup = Matchup("strict", "heart", "gpt-4", "ours-7b")
    (row,) = rows(measured, "win_rates", **matchup._asdict())
    assert row["rate"] == score.win_rate(score.item_bounds(verdicts_.tables[matchup])).rate
    assert row["items"] == 12
    assert row["position"]["verdicts"] == 24
    assert measured["verdicts"] == 2 * 2 * 3 * 16 * 2


def test_the_average_is_over_both_references(read, measured):
    verdicts_, *_ = read
    tables = [
        verdicts_.tables[Matchup("strict", "lung", reference, "theirs-7b")]
        for reference in ("claude-2", "gpt-4")
    ]
    of = {"judge": "strict", "benchmark": "lung", "generator": "theirs-7b"}
    (row,) = rows(measured, "win_rates", reference=AVERAGE, **of)
    each = [score.win_rate(score.item_bounds(table)) for table in tables]
    assert row["rate"] == pytest.approx(np.mean([rate.rate for rate in each]))


def test_a_reference_named_as_the_average_is_an_error(tmp_path):
    judge_workdirs.write(tmp_path, lambda r: "tie", items={"b": ["a"]}, references=[AVERAGE])
    found, _ = reading.read([tmp_path])
    with pytest.raises(ValueError, match="give it another name"):
        measurement.score_sheets(found)


def test_systems_are_ranked_by_their_rates(measured):
    means = {
        name: np.mean(
            [r["rate"] for r in rows(measured, "win_rates", generator=name) if "position" in r]
        )
        for name in judge_workdirs.SET["systems"]
    }
    assert measured["systems"] == sorted(means, key=lambda name: -means[name])


def test_a_table_of_comparisons_is_one_family(measured):
    family = rows(measured, "comparisons", judge="strict", benchmark="heart", reference="gpt-4")
    assert len(family) == 3
    least = min(family, key=lambda row: row["p"])
    assert least["p_holm"] == pytest.approx(min(1, 3 * least["p"]))
    assert all(row["p_holm"] >= row["p"] and row["low"] <= row["difference"] for row in family)
    for row in family:
        assert row["items"] <= 12


def test_difficulties_share_out_the_items(measured):
    of = {"judge": "strict", "benchmark": "heart", "generator": "ours-7b"}
    found = rows(measured, "by_difficulty", **of)
    assert [row["difficulty"] for row in found] == ["1", "2", "3"]
    assert [row["reference"] for row in found] == [AVERAGE] * 3
    assert sum(row["items"] for row in found) == 12
    (whole,) = rows(measured, "win_rates", reference=AVERAGE, **of)
    for bound in ("worst", "best"):  # rates are over what is valid, which is not shared out evenly
        parts = sum(row[bound] * row["items"] for row in found)
        assert parts / whole["items"] == pytest.approx(whole[bound])


def test_topics_with_few_items_have_no_rate(measured):
    assert measured["benchmarks"]["heart"]["topic"] == {"topic 0": 6, "topic 1": 6}
    assert measured["by_topic"] == []


def test_people_are_compared_on_what_they_labelled(measured):
    found = rows(measured, "agreement", benchmark="heart")
    assert [(row["one"], row["other"]) for row in found] == [
        ("human", "lenient/gpt"),
        ("human", "strict"),
        ("lenient/gpt", "strict"),
    ]
    assert found[0]["units"] <= 21 < found[2]["units"]


def test_a_judge_has_its_positions_over_everything(measured):
    counts = measured["judges"]["strict"]["position"]
    assert counts["verdicts"] == measured["verdicts"] / 2
    low, high = counts["first_preference_low"], counts["first_preference_high"]
    assert low < counts["first_preference"] < high
    assert measured["judges"]["strict"]["prompt_version"] == "strict-1"


def test_lengths_of_each_system_and_of_all(measured):
    found = rows(measured, "by_length", judge="strict", benchmark="lung")
    assert [row["generator"] for row in found] == ["ours-7b", "ours-13b", "theirs-7b", None]
    pairs = [sum(s["pairs"] for s in row["strata"].values()) for row in found]
    assert sum(pairs[:3]) == pairs[3]


def test_one_reference_needs_no_average(tmp_path):
    judge_workdirs.write(tmp_path, lambda record: "tie", items={"b": ["x"]})
    found, _ = reading.read([tmp_path])
    measured = measure(found, None, workdirs.read([tmp_path], found), seed=0).record()
    assert [row["reference"] for row in measured["win_rates"]] == ["gpt-4"]
    assert measured["judges"]["j"]["position"]["first_preference_low"] is None
