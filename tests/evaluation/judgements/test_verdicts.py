"""Reading judgements into tables; every error is one line with its place and remedy."""

import json

import numpy as np
import pytest

from evaluation.judgements import reading, verdicts
from evaluation.judgements.verdicts import Matchup, Verdict, VerdictCode
from tests.support import judge_workdirs
from tests.support.judge_workdirs import judgement, write_lines

MATCHUP = Matchup("j", "heart", "gpt-4", "ours")


def both(name: str, one: str, other: str, **names: str) -> list[dict]:
    return [
        judgement(name, order, verdict, **names)
        for order, verdict in zip(verdicts.ORDERS, (one, other), strict=True)
    ]


def write(folder, *records):
    write_lines(folder / "judgements.jsonl", [r for group in records for r in group])
    return folder


def error(folder, labels=()) -> str:
    with pytest.raises(ValueError) as caught:
        reading.read([folder], labels)
    text = str(caught.value)
    assert "\n" not in text
    return text


def test_a_matchup_is_a_table_of_items_and_orders(tmp_path):
    records = [*both("b", "model", "tie"), *both("a", "reference", "invalid")]
    found, people = reading.read([write(tmp_path, records[::-1])])
    assert people is None
    assert found.ids == {"heart": ["a", "b"]}
    assert found.tables[MATCHUP].tolist() == [[1, 3], [0, 2]]
    assert (found.prompts, found.count) == ({"j": "j-1"}, 4)
    assert found.names("generator") == ["ours"]


def test_the_order_of_the_lines_changes_nothing_but_that_of_the_items(tmp_path):
    names = [f"{i}" for i in range(5)]
    draw = np.random.default_rng(0)
    records = [
        r
        for judge in ("j", "k")
        for name in names
        for r in both(name, *draw.choice(list(Verdict), 2), judge=judge)
    ]
    one, _ = reading.read([write(tmp_path / "one", records)])
    other, _ = reading.read([write(tmp_path / "other", records[::-1])])
    assert list(one.tables) == list(other.tables)
    for matchup, table in one.tables.items():
        assert table[::-1].tolist() == other.tables[matchup].tolist()


def test_replies_are_the_raw_texts(tmp_path):
    folder = judge_workdirs.write(
        tmp_path, lambda r: "tie" if r["id"] == "x" else "model", items={"heart": ["é", "x"]}
    )
    found, _ = reading.read([folder])
    spans = found.spans[MATCHUP].reshape(-1, 3)
    assert verdicts.replies(found, spans[::-1]) == ["j says tie"] * 2 + ["j says model"] * 2
    assert verdicts.replies(found, np.full((1, 3), -1)) == [""]


def test_workdirs_may_hold_different_items(tmp_path):
    one = write(tmp_path / "one", both("a", "tie", "tie"), both("b", "model", "model"))
    other = write(tmp_path / "other", both("b", "model", "tie", judge="k"))
    found, _ = reading.read([one, other])
    assert found.tables[Matchup("k", *MATCHUP[1:])].tolist() == [
        [VerdictCode.MISSING] * 2,
        [VerdictCode.MODEL, VerdictCode.TIE],
    ]


def test_an_empty_line_is_no_judgement(tmp_path):
    folder = write(tmp_path, both("a", "tie", "tie"))
    path = folder / "judgements.jsonl"
    path.write_text("\n" + path.read_text() + "\n")
    assert reading.read([folder])[0].count == 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"verdict": "Tie"}, "verdict is 'Tie'; it must be one of model, reference, tie, invalid"),
        ({"order": "first"}, "order is 'first'; it must be one of model_first, reference_first"),
        ({"judge": None}, "field 'judge' is missing"),
        ({"id": None}, "field 'id' is missing"),
        ({"id": ["a"]}, "field 'id' must be a string"),
        ({"verdict": ["tie"]}, "verdict is ['tie']"),
    ],
)
def test_a_bad_field_is_named_with_its_line(tmp_path, change, message):
    record = judgement("a", "model_first", "tie") | change
    record = {key: value for key, value in record.items() if value is not None}
    text = error(write(tmp_path, both("b", "tie", "tie"), [record]))
    assert text.startswith(f"{tmp_path / 'judgements.jsonl'}:3: ")
    assert message in text


def test_an_id_that_is_a_number(tmp_path):
    good = write(tmp_path / "good", both("a", "tie", "tie"))
    bad = write(tmp_path / "bad", both(7, "tie", "tie"))
    with pytest.raises(ValueError, match=rf"^{bad}/judgements.jsonl: 7 .* non-empty strings"):
        reading.read([good, bad])


@pytest.mark.parametrize("raw", [5, ["Tie"]])
def test_a_reply_that_is_no_text(tmp_path, raw):
    bad = [record | {"raw": raw} for record in both("a", "tie", "tie")]
    assert "judgements.jsonl:1: field 'raw' must be a string" in error(write(tmp_path, bad))


def test_half_a_line(tmp_path):
    folder = write(tmp_path, both("a", "tie", "tie"))
    with open(folder / "judgements.jsonl", "a") as file:
        file.write('{"id": "b", "bench')
    assert "judgements.jsonl:3: not JSON" in error(folder)
    (folder / "judgements.jsonl").write_text("[]\n")
    assert "must be a JSON object" in error(folder)
    (folder / "judgements.jsonl").write_text("")
    assert "contains no judgements; rerun evaluation.judge" in error(folder)


def test_a_file_of_labels_without_any(tmp_path):
    folder = write(tmp_path, both("a", "tie", "tie"))
    labels = write_lines(tmp_path / "labels.jsonl", [])
    assert "contains no judgements; add people's judgements" in error(folder, [labels])
    with pytest.raises(FileNotFoundError, match="--judgements takes workdirs of"):
        reading.read([folder / "judgements.jsonl"])


def test_a_missing_order_is_named_with_the_remedy(tmp_path):
    text = error(write(tmp_path, both("a", "tie", "tie"), both("b", "tie", "tie")[:1]))
    assert "id 'b' lacks the order reference_first" in text
    assert "rerun evaluation.judge" in text


def test_an_item_that_one_matchup_lacks(tmp_path):
    more = both("b", "tie", "tie", generator="theirs")
    text = error(write(tmp_path, both("a", "tie", "tie"), both("b", "tie", "tie"), more))
    assert "id 'a' is not judged everywhere (1 such): not by j on theirs against gpt-4" in text


def test_judged_twice(tmp_path):
    text = error(write(tmp_path / "one", both("a", "tie", "tie"), both("a", "model", "tie")[:1]))
    assert "id 'a' was judged twice in the same order: j on ours" in text
    assert "1 such, 1 of them with different verdicts" in text
    one = write(tmp_path / "one", both("a", "tie", "tie"))
    other = write(tmp_path / "other", both("a", "tie", "tie"))
    with pytest.raises(ValueError, match=r"one.judgements.jsonl and .*other.*judged twice"):
        reading.read([one, other])


def test_two_prompts_under_one_judge(tmp_path):
    changed = [record | {"prompt_version": "j-2"} for record in both("b", "tie", "tie")]
    text = error(write(tmp_path, both("a", "tie", "tie"), changed))
    assert "judge 'j' has verdicts by two prompts, j-1 and j-2" in text


def test_no_such_workdir(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no such file.*workdirs of evaluation.judge"):
        reading.read([tmp_path / "none"])


def test_labels_of_people_may_hold_some_items_in_one_order(tmp_path):
    folder = write(tmp_path, both("a", "tie", "tie"), both("b", "model", "tie"))
    labels = write_lines(tmp_path / "labels.jsonl", both("b", "model", "tie", judge="human")[1:])
    _, people = reading.read([folder], [labels])
    (table,) = people.tables.values()
    assert table.tolist() == [
        [VerdictCode.MISSING, VerdictCode.MISSING],
        [VerdictCode.MISSING, VerdictCode.TIE],
    ]
    assert people.ids == {"heart": ["a", "b"]}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"id": "z"}, "no workdir judges id 'z' of heart"),
        ({"reference": "claude"}, "no workdir judges ours against claude on heart"),
        ({"judge": "j"}, "judge 'j' is also a judge of the workdirs"),
    ],
)
def test_labels_that_fit_nothing(tmp_path, change, message):
    folder = write(tmp_path, both("a", "tie", "tie"))
    record = judgement("a", "model_first", "tie", judge="human") | change
    good = write_lines(tmp_path / "good.jsonl", both("a", "tie", "tie", judge="person"))
    labels = write_lines(tmp_path / "labels.jsonl", [record])
    assert error(folder, [good, labels]).startswith(f"{labels}: ")
    assert message in error(folder, [good, labels])


def test_names_are_sorted_as_people_count():
    names = ["llama-13b", "llama-7b", "10", "9", "a", "²"]
    assert sorted(names, key=verdicts.natural) == ["9", "10", "a", "llama-7b", "llama-13b", "²"]


def test_the_file_is_json_lines_as_the_design_says(tmp_path):
    (line,) = (
        write_lines(tmp_path / "x", [judgement("a", "model_first", "tie")]).read_text().splitlines()
    )
    fields = "id benchmark generator reference judge order verdict raw prompt_version usage"
    assert set(json.loads(line)) == set(fields.split())
