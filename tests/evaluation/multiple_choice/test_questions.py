"""Published forms of multiple choice, read as they are published, and what is wrong with others."""

import json

import pytest

from common.sections import UsageError
from evaluation.multiple_choice import questions
from evaluation.multiple_choice.forms import FORMS
from evaluation.multiple_choice.prompts import PROMPTS, Prompter

MEDQA = {
    "question": "Which drug first?",
    "answer": "Metformin",
    "options": {"A": "Insulin", "B": "Metformin", "C": "Rest"},
    "meta_info": "step1",
    "answer_idx": "B",
}
MEDMCQA = {
    "id": "e9ad",
    "question": "Which nerve?",
    "opa": "Ulnar",
    "opb": "Median",
    "opc": "Radial",
    "opd": "Axillary",
    "subject_name": "Anatomy",
}
PUBMEDQA = {"QUESTION": "Does it help?", "CONTEXTS": ["We asked.", "It did."]}
HEADQA = {
    "qid": "7",
    "qtext": "Which vitamin?",
    "ra": "2",
    "answers": [{"aid": 1, "atext": "B"}, {"aid": 2, "atext": "A"}, {"aid": 3, "atext": "K"}],
}
MMLU = {"question": " Which bone? ", "subject": "anatomy", "choices": list("wxyz"), "answer": 3}


def written(tmp_path, rows, name="data.jsonl"):
    path = tmp_path / name
    text = rows if isinstance(rows, str) else "".join(json.dumps(row) + "\n" for row in rows)
    path.write_text(text, encoding="utf-8")
    return [path]


def read(tmp_path, rows, name="data.jsonl", form="", first=None):
    return questions.read(written(tmp_path, rows, name), form, first)


def test_every_form_has_a_prompt_and_every_prompt_takes_a_question():
    assert {form.prompt for form in FORMS.values()} <= PROMPTS.keys()
    question = questions.Question("1", "Why {this}?", ("x", "y"), 0, "s", "", "questions")
    for name, row in PROMPTS.items():
        assert "Why {this}?" in Prompter(name).prompt(question)
        assert row.letters == ("{options}" in row.text)


def test_medqa(tmp_path):
    (found,) = read(tmp_path, [MEDQA])
    assert (found.id, found.answer, found.subject, found.form) == ("0", 1, "step1", "medqa")
    assert Prompter().prompt(found) == (
        "Question: Which drug first?\nA. Insulin\nB. Metformin\nC. Rest\nAnswer:"
    )
    assert Prompter().continuations(found) == "ABC"
    as_list = [{"key": k, "value": v} for k, v in MEDQA["options"].items()]
    same, _ = read(tmp_path, [MEDQA | {"options": as_list}] * 2)
    assert same == found
    hub = {"id": "t-0", "sent1": "Why?", "sent2": "", "ending0": "x", "ending1": "y", "label": 1}
    (found,) = read(tmp_path, [hub])
    assert (found.id, found.text, found.options, found.answer) == ("t-0", "Why?", ("x", "y"), 1)


@pytest.mark.parametrize(("numbers", "answers"), [((0, 3, 1), [0, 3, 1]), ((1, 4, 2), [0, 3, 1])])
def test_medmcqa_counts_from_one_and_on_the_hub_from_zero(tmp_path, numbers, answers):
    rows = [MEDMCQA | {"id": f"q{i}", "cop": number} for i, number in enumerate(numbers)]
    found = read(tmp_path, rows)
    assert [question.answer for question in found] == answers
    assert found[0].subject == "Anatomy"
    assert Prompter().prompt(found[0]).startswith("Question: Which nerve?\nChoices:\nA. Ulnar\n")


def test_what_answers_count_from_is_never_guessed(tmp_path):
    rows = [MEDMCQA | {"id": f"q{i}", "cop": number} for i, number in enumerate((1, 2, 3))]
    with pytest.raises(ValueError, match="unknown whether they count from 0 or from 1"):
        read(tmp_path, rows)
    assert [q.answer for q in read(tmp_path, rows, first=1)] == [0, 1, 2]
    rows += [MEDMCQA | {"cop": number} for number in (0, 4)]
    with pytest.raises(ValueError, match=r"jsonl:5: the answer is no option"):
        read(tmp_path, rows)
    with pytest.raises(ValueError, match="keeps its answers secret"):
        read(tmp_path, [MEDMCQA | {"cop": -1}, MEDMCQA | {"cop": 0}])


def test_pubmedqa(tmp_path):
    by_id = {"11": PUBMEDQA | {"final_decision": "yes"}, "12": PUBMEDQA | {"final_decision": "no"}}
    one, two = read(tmp_path, json.dumps(by_id, indent=1), "ori_pqal.json")
    assert (one.id, one.answer, two.id, two.answer) == ("11", 0, "12", 1)
    text = "Abstract: We asked.\nIt did.\nQuestion: Does it help?\nAnswer:"
    assert Prompter().prompt(one) == text
    assert Prompter().continuations(one) == ("yes", "no", "maybe")
    hub = {
        "pubid": 11,
        "question": "Does it help?",
        "context": {"contexts": PUBMEDQA["CONTEXTS"], "labels": []},
        "final_decision": "yes",
    }
    (same,) = read(tmp_path, [hub])
    assert Prompter().prompt(same) == text and same.id == "11"


def test_headqa(tmp_path):
    exams = {"2013_B": {"category": "biology", "data": [HEADQA, HEADQA | {"qid": "8", "ra": "1"}]}}
    content = json.dumps({"version": "1.0", "language": "en", "exams": exams})
    one, two = read(tmp_path, content, "test_HEAD_en.json")
    assert (one.id, one.answer, one.subject) == ("2013_B-7", 1, "biology")
    assert (two.id, two.answer) == ("2013_B-8", 0)
    assert Prompter().continuations(one) == ("B", "A", "K")
    columns = {"aid": [1, 2, 3], "atext": ["B", "A", "K"]}
    (hub,) = read(tmp_path, [HEADQA | {"name": "2013_B", "answers": columns, "ra": 2}])
    assert (hub.id, hub.options, hub.answer) == (one.id, one.options, one.answer)


def test_mmlu(tmp_path):
    (hub,) = read(tmp_path, [MMLU])
    assert Prompter().prompt(hub) == (
        "The following are multiple choice questions (with answers) about anatomy.\n\n"
        "Which bone?\nA. w\nB. x\nC. y\nD. z\nAnswer:"
    )
    rows = '"Which bone?",w,x,y,z,D\nWhere?,1,2,3,4,A\n'
    one, two = read(tmp_path, rows, "college_biology_test.csv")
    assert (one.answer, one.subject, two.options) == (3, "college_biology", ("1", "2", "3", "4"))
    with pytest.raises(ValueError, match="row 2: a record of the form mmlu has answer, choices"):
        read(tmp_path, "a?,w,x,y,z,D\nWhere?,1,2,3,4\n", "x_test.csv")


def test_any_others(tmp_path):
    rows = [
        {"question": "a?", "options": ["x", "y"], "answer": "B", "context": "Given.", "topic": "t"},
        {"question": "b?", "choices": ["x", "A"], "label": "x"},
        {"question": "c?", "choices": {"A": "x", "B": "y"}, "answer": "A"},
    ]
    found = read(tmp_path, rows)
    assert [question.answer for question in found] == [1, 0, 0]
    assert found[0].subject == "t"
    assert Prompter().prompt(found[0]) == "Given.\nQuestion: a?\nA. x\nB. y\nAnswer:"
    assert Prompter("texts").continuations(found[0]) == ("x", "y")


PLAIN = {"question": "q?", "options": ["x", "y"], "answer": "A"}
BAD = {
    "a letter beyond the options": ({"answer": "C"}, "none of the letters A to B"),
    "an answer that is two options": ({"options": ["B", "A"]}, "may be two of the options"),
    "no answer": ({"answer": None}, "'answer' is None"),
    "an empty option": ({"options": ["x", " "]}, "option B is missing or empty"),
    "a null option": ({"options": ["x", None]}, "option B is missing or empty"),
    "one option": ({"options": ["x"]}, "1 options; there must be 2 to 26"),
    "options in no order": ({"options": {"A": "x", "C": "y"}}, "none left out"),
    "options as text": ({"options": "x, y"}, "options are a list"),
    "no question": ({"question": "  "}, "the question is empty"),
}


@pytest.mark.parametrize("kind", BAD)
def test_a_bad_record_is_named(tmp_path, kind):
    changes, words = BAD[kind]
    with pytest.raises(ValueError, match=words) as error:
        read(tmp_path, [PLAIN, PLAIN | changes])
    assert "data.jsonl:2: " in str(error.value)


def test_contradictions_of_published_forms(tmp_path):
    with pytest.raises(ValueError, match="'Metformin', but also 'Insulin'"):
        read(tmp_path, [MEDQA | {"answer": "Insulin"}])
    with pytest.raises(ValueError, match="answer_idx is 'E', none of A, B, C"):
        read(tmp_path, [MEDQA | {"answer_idx": "E"}])
    with pytest.raises(ValueError, match="option D is missing"):
        read(tmp_path, [MEDMCQA | {"opd": None, "cop": 0}])
    with pytest.raises(ValueError, match="which is none of the answers"):
        read(tmp_path, [HEADQA | {"ra": 4}] * 2)
    with pytest.raises(ValueError, match="not yes, no or maybe"):
        read(tmp_path, [PUBMEDQA | {"final_decision": "A"}])
    with pytest.raises(ValueError, match="answer 4 is not the number of an option, 0 to 3"):
        read(tmp_path, [MMLU | {"answer": 4}])


def test_files_and_ids(tmp_path):
    with pytest.raises(ValueError, match="share the id 'e9ad'"):
        read(tmp_path, [MEDMCQA | {"cop": 0}] * 2)
    with pytest.raises(ValueError, match="no form of multiple choice has only the fields question"):
        read(tmp_path, [{"question": "q?", "answer": "A"}])
    with pytest.raises(ValueError, match="contains no questions"):
        read(tmp_path, "")
    files = written(tmp_path, [MMLU], "one.jsonl") + written(tmp_path, [PLAIN], "two.jsonl")
    found = questions.read(files, "")
    assert [question.id for question in found] == ["one-0", "two-0"]
    assert questions.of_subjects(found, ["anatomy"]) == found[:1]
    with pytest.raises(UsageError, match="did you mean 'anatomy'"):
        questions.of_subjects(found, ["anatomi"])


def test_examples_precede_a_question_of_their_subject(tmp_path):
    rows = [
        MMLU | {"question": f"{subject}{i}?", "subject": subject}
        for subject in "vw"
        for i in (1, 2)
    ]
    pool = read(tmp_path, rows)
    (question,) = read(tmp_path, [MMLU | {"subject": "w"}])
    text = Prompter("", pool, 2).prompt(question)
    assert text.startswith(
        "The following are multiple choice questions (with answers) about w.\n\n"
    )
    assert text.count("Answer: D\n\n") == 2 and "w1?" in text and "v1?" not in text
    assert text.endswith("z\nAnswer:")
    with pytest.raises(ValueError, match="has 2 questions of subject 'w' of 3 needed"):
        Prompter("", pool, 3).prompt(question)
