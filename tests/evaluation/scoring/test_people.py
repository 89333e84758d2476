"""From people's verdicts to agreement, rates and corrections."""

import numpy as np
import pytest

from evaluation.judgements import reading, workdirs
from evaluation.judgements.verdicts import Matchup
from evaluation.reporting import outline
from evaluation.reporting.content import ReportContent
from evaluation.reporting.sections import people as people_tables
from evaluation.reporting.systems import System
from evaluation.scoring.measurement import measure
from evaluation.scoring.results import AVERAGE
from evaluation.statistics import agreement
from tests.support import judge_workdirs

ITEMS = {"heart": [f"h{i}" for i in range(80)]}


def label(name, place, person, **fields):
    """A person's verdict in one order: the second person differs on every fourth item."""
    verdict = ("model", "reference", "model", "tie")[place % 4]
    if person == "human/lee" and place % 4 == 3:
        verdict = "model"
    order = ("model_first", "reference_first")[place % 2]
    return judge_workdirs.judgement(name, order, verdict, judge=person, **fields)


def results(folder, labels):
    path = judge_workdirs.write_lines(folder / "labels.jsonl", labels)
    found, people = reading.read([folder], [path])
    return measure(found, people, workdirs.read([folder], found), seed=0)


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    folder = tmp_path_factory.mktemp("people")
    judge_workdirs.write(
        folder, judge_workdirs.a_verdict, items=ITEMS, references=("gpt-4", "claude-2")
    )
    labels = [
        label(name, place, person, reference=reference)
        for person in ("human/lee", "human/patel")
        for reference, count in (("gpt-4", 40), ("claude-2", 20))
        for place, name in enumerate(ITEMS["heart"][:count])
    ]
    return results(folder, labels)


def test_people_agree_with_each_other_first(measured):
    found = measured.people.agreement["preference", "heart"]
    assert (found.people, found.units) == (2, 60)
    assert found.same == pytest.approx(0.75)
    pairs = list(measured.agreement)
    assert pairs[0] == ("human/lee", "human/patel", "heart")
    assert found.alpha == pytest.approx(measured.agreement[pairs[0]].alpha_nominal)
    assert found.low < found.alpha < found.high


def test_a_rate_by_people_counts_an_item_once(measured):
    rate = measured.people.rates["preference", "heart", "gpt-4", "ours"]
    assert rate.items == 40
    assert rate.rate == pytest.approx((1 + 0 + 1 + 0.75) / 4)


def test_corrections_of_each_reference_and_of_their_average(measured):
    found = measured.people.corrections
    one = found[Matchup("j", "heart", "gpt-4", "ours")]
    other = found[Matchup("j", "heart", "claude-2", "ours")]
    both = found[Matchup("j", "heart", AVERAGE, "ours")]
    assert [one.labels, other.labels, both.labels] == [40, 20, 60]
    assert both.labelled == 40
    assert both.raw == pytest.approx((one.raw + other.raw) / 2)
    assert both.people.rate == pytest.approx((one.people.rate + other.people.rate) / 2)
    assert both.ppi.high - both.ppi.low < other.ppi.high - other.ppi.low
    (row,) = [
        row for row in measured.record()["people"]["corrected"] if row["reference"] == AVERAGE
    ]
    assert row["ppi"]["rate"] == both.ppi.rate


def test_the_tables_name_what_is_thin(measured):
    content = ReportContent(measured, {"ours": System("Ours")})
    built = outline.build(content)[0].tables
    assert list(built) == ["people", "corrected", "people_rates"]
    cells = {row[1]: row[2] for row in built["corrected"][0].rows}
    assert cells["gpt-4"] == "40 of 80"
    assert cells["claude-2"] == "20 of 80*"


def test_labels_of_chosen_items_are_warned_about(tmp_path):
    """People judged what the judge calls won."""

    def verdict(record):
        return "model" if int(record["id"][1:]) < 30 else "reference"

    folder = judge_workdirs.write(tmp_path, verdict, items=ITEMS)
    labels = [label(name, i, "human") for i, name in enumerate(ITEMS["heart"][:30])]
    (warning,) = people_tables.warnings(results(folder, labels))
    assert "not drawn at random" in warning
    few = people_tables.warnings(results(folder, labels[:5]))
    assert "too few" in few[0]


def test_alpha_of_a_group_is_krippendorffs():
    krippendorff = pytest.importorskip("krippendorff", reason="pip install krippendorff")
    draw = np.random.default_rng(0)
    scores = draw.choice([0.0, 0.5, 1.0], (3, 50, 2))
    scores[:, :25] = scores[:1, :25]
    scores[draw.random(scores.shape) < 0.3] = np.nan
    found = agreement.among(scores)
    theirs = krippendorff.alpha(
        reliability_data=scores.reshape(3, -1), level_of_measurement="nominal"
    )
    assert found.alpha == pytest.approx(theirs, abs=1e-12)
    alone = agreement.among(scores[:1])
    assert (alone.units, alone.alpha) == (0, None)
