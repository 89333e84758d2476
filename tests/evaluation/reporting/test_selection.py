"""A report of some systems, references, ... is that of a workdir with only these."""

import pytest

from evaluation.judgements import reading, workdirs
from evaluation.judgements.verdicts import Matchup
from evaluation.reporting.selection import EVERYTHING, Selection, select
from evaluation.scoring.measurement import measure
from tests.support import judge_workdirs


@pytest.fixture(scope="module")
def read():
    return judge_workdirs.read_set()


def test_nothing_chosen_is_everything(read):
    verdicts, people, _ = read
    assert select(EVERYTHING, verdicts, {"preference": people}) == (
        verdicts,
        {"preference": people},
    )


def test_what_is_chosen_has_the_numbers_of_a_workdir_with_only_that(read, tmp_path):
    verdicts, people, texts = read
    wanted = Selection(["ours-*"], ["gpt-4"], ["strict"], ["heart"])
    chosen, asked = select(wanted, verdicts, {"preference": people})
    settings = judge_workdirs.SET | {
        "items": {"heart": judge_workdirs.SET["items"]["heart"]},
        "systems": ("ours-7b", "ours-13b"),
        "references": ("gpt-4",),
        "judges": ("strict",),
    }
    folder = judge_workdirs.write(tmp_path, judge_workdirs.a_verdict, **settings)
    alone, _ = reading.read([folder])
    assert sorted(chosen.tables) == sorted(alone.tables)
    found = measure(chosen, asked["preference"], texts, seed=0)
    expected = measure(alone, None, workdirs.read([folder], alone), seed=0)
    assert found.rates == expected.rates
    assert found.differences == expected.differences
    assert {key[3] for key in found.people.rates} == {"ours-7b", "ours-13b"}


def test_items_that_only_others_judged_do_not_count(tmp_path):
    """One judge saw one of the two items; a report of it alone is over that one."""
    items = {"b": ["2", "1"]}
    one = judge_workdirs.write(tmp_path / "1", lambda _: "tie", items=items, judges=["all"])
    two = judge_workdirs.write(tmp_path / "2", lambda _: "model", items={"b": ["2"]})
    verdicts, _ = reading.read([one, two])
    chosen, _ = select(Selection(judge=["j"]), verdicts, {})
    assert chosen.ids == {"b": ["2"]}
    results = measure(chosen, None, workdirs.read([one, two], verdicts), seed=0)
    rate = results.rates[Matchup("j", "b", "gpt-4", "ours")]
    assert (results.benchmarks["b"].items, rate.items, rate.rate) == (1, 1, 1.0)


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        (Selection(["ours-7"]), "--systems: no system 'ours-7' was judged; did you mean 'ours-7b'"),
        (
            Selection(judge=["x"]),
            "--judges: no judge 'x' was judged; choose from lenient/gpt, stri",
        ),
    ],
)
def test_a_name_that_was_not_judged(read, wanted, message):
    with pytest.raises(ValueError, match=message):
        select(wanted, read[0], {})


def test_a_selection_without_any_verdict_is_an_error(tmp_path):
    one = judge_workdirs.write(tmp_path / "1", lambda _: "tie", items={"a": ["1"]})
    two = judge_workdirs.write(
        tmp_path / "2", lambda _: "tie", items={"b": ["1"]}, systems=["theirs"]
    )
    verdicts, _ = reading.read([one, two])
    with pytest.raises(ValueError, match="no judgements fit all"):
        select(Selection(["theirs"], benchmark=["a"]), verdicts, {})
