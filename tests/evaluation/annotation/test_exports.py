"""From exports to labels: what they mean, and every way in which they can be the wrong ones."""

import json

import pytest

from evaluation.annotation import exports
from evaluation.annotation.pairs import read_key
from evaluation.judgements import reading, workdirs
from evaluation.judgements.foreign import ForeignJudgements
from evaluation.scoring import score
from evaluation.scoring.measurement import measure
from tests.support import annotated, judge_workdirs


@pytest.fixture
def folder(tmp_path):
    return annotated.write(tmp_path)


def load(folder):
    return exports.load([str(folder / "page")])


def test_labels_mean_what_people_chose(folder):
    """Everyone prefers the system, and finds the reference as correct and more helpful."""
    labels = load(folder)
    assert set(labels.sources) == set(exports.QUESTIONS)
    found, people = reading.read([folder / "work"], labels.sources["preference"])
    assert people.names("judge") == ["human/lee", "human/patel"]
    for question, expected in (("preference", 1), ("correctness", 0.5), ("helpfulness", 0)):
        said = reading.read_people(labels.sources[question], found)
        for matchup, table in said.tables.items():
            scores = score.item_scores(score.item_bounds(table))
            assert set(scores[scores == scores]) == {expected}, (question, matchup)
    sides = {order for table in people.tables.values() for order in (table >= 0).argmax(axis=1)}
    assert sides == {0, 1}, "in both orders"


def test_a_report_says_what_each_question_found(folder):
    labels = load(folder)
    sources = dict(labels.sources)
    found, people = reading.read([folder / "work"], sources.pop("preference"))
    others = {name: reading.read_people(own, found) for name, own in sources.items()}
    texts = workdirs.read([folder / "work"], found)
    labels.require_same_texts(texts)
    results = measure(found, people, texts, seed=0, other_questions=others).people
    assert results.agreement["preference", "heart"].same == 1.0
    rates = {key[0]: rate.rate for key, rate in results.rates.items()}
    assert rates == {"preference": 1.0, "correctness": 0.5, "helpfulness": 0.0}
    assert results.corrections


def test_a_pair_that_cannot_be_judged_and_one_that_is_not_finished(folder, capsys):
    path = folder / "page" / "lee.json"
    export = json.loads(path.read_text())
    one, two, *_ = export["answers"]
    export["answers"][one] = {"preference": "cannot judge", "comment": "Not my field."}
    export["answers"][two] = {"helpfulness": "a"}
    path.write_text(json.dumps(export))
    labels = load(folder)
    (lee, _) = labels.sources["preference"]
    assert isinstance(lee, ForeignJudgements)
    by_raw = {judged.raw: judged.verdict for judged in lee.judgements}
    assert by_raw["Not my field."] == "invalid"
    assert len(lee.judgements) == len(export["answers"]) - 1
    assert "1 cannot be judged" in (text := capsys.readouterr().err)
    assert "1 without an answer to some question" in text


def fails(folder, match, labels=None):
    with pytest.raises((ValueError, FileNotFoundError), match=match):
        exports.load([str(one) for one in labels or [folder / "page"]])


def test_two_exports_of_one_annotator(folder):
    older = json.loads((folder / "page" / "lee.json").read_text()) | {"exported": "2026-01-01"}
    older["answers"] = dict(list(older["answers"].items())[:3])
    (folder / "page" / "lee (1).json").write_text(json.dumps(older))
    fails(folder, r"lee\.json: lee has an export .* in .*lee \(1\).* keep one, .* lee\.json")


def test_an_export_of_another_page(folder, tmp_path):
    other = annotated.write(tmp_path / "other", seed=9)
    (other / "page" / "lee.json").rename(folder / "page" / "other.json")
    fails(folder, r"other\.json: exported from another page")


def test_an_export_without_its_key(folder):
    moved = (folder / "page" / "lee.json").rename(folder / "lee.json")
    fails(folder, r"key\.json is not beside it", [moved])
    fails(folder, "the key of a page", [folder / "page" / "key.json"])
    fails(folder, "no such file", [folder / "none.json"])
    (folder / "empty").mkdir()
    fails(folder, "holds no export", [folder / "empty"])


@pytest.mark.parametrize(
    "change",
    [
        lambda answers, first: answers.update({"abcdef123456": answers[first]}),
        lambda answers, first: answers[first].update(preference="model"),
        lambda answers, first: answers.update({first: "a"}),
        lambda answers, first: answers[first].update(correctness="cannot judge"),
    ],
)
def test_an_export_that_was_edited(folder, change):
    path = folder / "page" / "lee.json"
    export = json.loads(path.read_text())
    change(export["answers"], next(iter(export["answers"])))
    path.write_text(json.dumps(export))
    fails(folder, r"lee\.json: .*(is no pair of lee|must be)")


def test_an_export_that_was_cut(folder):
    path = folder / "page" / "lee.json"
    whole = path.read_text()
    for kept in (len(whole) - 40, 20, 0):
        path.write_text(whole[:kept])
        fails(folder, "damaged export")
    path.write_text(json.dumps({"form": exports.EXPORT_FORM, "answers": {}}))
    fails(folder, "page, annotator or answers is missing")


def test_an_answer_that_was_edited_since(folder):
    path = folder / "work" / "outputs.jsonl"
    path.write_text(path.read_text().replace("ours on h3.", "ours on h3, at length."))
    found, _ = reading.read([folder / "work"])
    with pytest.raises(ValueError, match=r"'h3' of heart.*is not what lee saw \(1 such"):
        load(folder).require_same_texts(workdirs.read([folder / "work"], found))


def test_labels_in_the_old_form_are_read_beside_exports(folder):
    records = [judge_workdirs.judgement("h0", "model_first", "tie", judge="human/third")]
    path = judge_workdirs.write_lines(folder / "labels.jsonl", records)
    labels = exports.load([str(folder / "page"), str(path)])
    _, people = reading.read([folder / "work"], labels.sources["preference"])
    assert "human/third" in people.names("judge")
    assert labels.paths[-1] == path
    assert read_key(folder / "page" / "key.json").annotators == ["lee", "patel"]
