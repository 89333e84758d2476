"""Answers to tasks: which become examples, and what is kept apart. From seeds to training."""

import contextlib
import doctest
import json
from pathlib import Path

import pytest

from alpacare_jax import train
from common.records import read_records
from common.text import refusals
from datagen import dedup, responses, tasks
from datagen.chat.errors import Failure, RunStoppedError
from datagen.chat.replies import ChatAnswer
from tests.datagen.test_tasks import make_config, read
from tests.support import teacher
from tests.support.chat_server import ChatServer, question
from tests.support.training import make_corpus, run_config, small_machine

TASKS = [
    {"id": "a", "instruction": "Define gout.", "input": "", "topic": "Joints", "difficulty": 1},
    {"id": "b", "instruction": "Sum up the note.", "input": "DNA {task} NA", "source": "by hand"},
    {"id": "c", "instruction": "Name a drug."},
]


@pytest.fixture
def server():
    server = ChatServer()
    yield server
    server.close()


def config(server, **changes):
    url = f"{server.url}/v1"
    return make_config(server, responder__base_url=url, rater__base_url=url, **changes)


def write_tasks(folder, records=TASKS):
    path = folder / "tasks.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


@pytest.mark.parametrize("module", [responses, refusals])
def test_doctests(module):
    assert doctest.testmod(module).failed == 0


def test_a_rating_with_much_space_around_it():
    space = " " * 40_000  # once read in quadratic and cubic time
    assert responses.parse_rating(f"Rating:{space}4{space}\n") == 4.0
    assert responses.parse_rating(f"Rating: 4{space}good") is None


@pytest.mark.parametrize(
    "reply, rating",
    [
        ("Rating: 4.5/5.0", 4.5),
        ("Rating: 4.5 out of 5", 4.5),
        ("Rating: 4,5", 4.5),
        ("Here is my rating.\nRating: 4.5", 4.5),
        ("The dose is right.\n\n**Overall rating: 3**", 3.0),
        ("Rating： ４．５", 4.5),
        ("\u200bRating: 0", 0.0),
        ("My rating is 4 stars.", 4.0),
        ("Rating: 4\nThe dose is right.\nRating: 4", 4.0),
        ("4.5", 4.5),
        ("Rating: 4 or 5", None),
        ("Rating: 4-5", None),
        ("Rating: 4?", None),
        ("Rating: >4", None),
        ("Rating: 5.5", None),
        ("Rating: 40%", None),
        ("Rating: 8/10", None),
        ("Rating: 4,500", None),
        ("Rating: four", None),
        ("A rating: 4", None),
        ("Rating: 4\nNo, wait.\nRating: 2", None),
        ("", None),
    ],
)
def test_ratings(reply, rating):
    assert responses.parse_rating(reply) == rating


def test_every_task_is_answered_once(server, tmp_path, capsys):
    path = write_tasks(tmp_path)
    responses.run(config(server), path, tmp_path, dry_run=True)
    assert "3 requests to send" in capsys.readouterr().err and server.bodies == []
    assert not (tmp_path / "answers.sqlite").exists()
    responses.run(config(server), path, tmp_path, dry_run=False)
    responses.run(config(server), path, tmp_path, dry_run=True)
    assert "0 requests to send, 3 answers stored" in capsys.readouterr().err
    examples = read(tmp_path / "examples.jsonl")
    assert [e["id"] for e in examples] == ["a", "b", "c"]
    assert examples[1]["output"] == "answer to Sum up the note.\n\nDNA {task} NA"
    assert examples[1]["source"]["task"] == "by hand"
    assert examples[0]["source"]["model"] == "stand-in-1" and examples[0]["topic"] == "Joints"
    system = server.bodies[0]["messages"][0]["content"]
    assert system.startswith("You are a medical expert tasked with")
    assert all(f"\n{rule}. " in system for rule in range(1, 5)), "the paper's four rules"
    assert read(tmp_path / "unused.jsonl") == []
    told = json.loads((tmp_path / "examples.jsonl.run.json").read_text())
    assert told["counts"] == {"tasks": 3, "examples": 3, "unused": {}}
    before = (tmp_path / "examples.jsonl").read_bytes()
    responses.run(config(server), path, tmp_path, dry_run=False)
    assert (tmp_path / "examples.jsonl").read_bytes() == before and len(server.bodies) == 3
    assert "is replaced" not in capsys.readouterr().err
    responses.run(config(server, responder__max_tokens=77), path, tmp_path, dry_run=False)
    told = "made with other settings (responder.max_tokens: 2000 before, 77 now)\n"
    assert told in capsys.readouterr().err


def answer(text="Gout is a joint disease.", finish="stop") -> ChatAnswer:
    return ChatAnswer(text, finish, "m", "r", 1, 1)


@pytest.mark.parametrize(
    "outcome, reason, included",
    [
        (answer(), "", ""),
        (Failure("timed out"), "no answer", "no answer"),
        (answer(" \n"), "empty", "empty"),
        (answer("I'm sorry, but I can't help with that."), "refused", ""),
        (answer("No.", "refusal"), "refused", ""),
        (answer("As an AI language model, I cannot diagnose."), "refused", ""),
        (answer("I'm sorry to hear that. Rest."), "", ""),
        (answer("Gout is a", "length"), "truncated", ""),
        (answer("...", "tool_calls"), "ends with tool_calls", "ends with tool_calls"),
    ],
)
def test_what_is_no_example_is_told(outcome, reason, included):
    assert responses.rejection_reason(outcome, ()) == reason
    assert responses.rejection_reason(outcome, ("truncated", "refused")) == included


def test_what_is_no_example_is_kept_apart(server, tmp_path):
    def reply(body):
        if "gout" in question(body):
            return "I'm sorry, but I can't help with that."
        return "" if "note" in question(body) else "Aspirin."

    server.answer = reply
    path = write_tasks(tmp_path)
    responses.run(config(server), path, tmp_path, dry_run=False)
    assert [e["id"] for e in read(tmp_path / "examples.jsonl")] == ["c"]
    apart = read(tmp_path / "unused.jsonl")
    assert [(u["id"], u["reason"]) for u in apart] == [("a", "refused"), ("b", "empty")]
    asked = len(server.bodies)
    responses.run(config(server, responses__include="refused"), path, tmp_path, dry_run=False)
    assert [e["id"] for e in read(tmp_path / "examples.jsonl")] == ["a", "c"]
    assert len(server.bodies) == asked


def test_answers_that_are_rated_low_are_kept_apart(server, tmp_path):
    asked = []

    def reply(body):
        text = question(body)
        if "===== task" not in text:
            return "Some words."
        asked.append(text)
        if "gout" in text:
            return "Rating: 4.5\nFine."
        return "Rating: 2\nWrong." if "note" in text else "It is good."

    server.answer = reply
    path = write_tasks(tmp_path)
    settings = config(server, responses__min_rating=4.5)
    responses.run(settings, path, tmp_path, dry_run=False)
    [kept] = read(tmp_path / "examples.jsonl")
    assert (kept["id"], kept["rating"]) == ("a", 4.5)
    apart = {u["id"]: (u["reason"], u["rating"]) for u in read(tmp_path / "unused.jsonl")}
    assert apart == {"b": ("rated under 4.5", 2.0), "c": ("no rating", None)}
    assert len(asked) == 2 + responses.RATING_ATTEMPTS
    responses.run(settings, path, tmp_path, dry_run=False)
    assert len(asked) == 2 + responses.RATING_ATTEMPTS, "ratings are stored as well"


def test_the_budget_holds_for_answers_and_ratings_together(server, tmp_path):
    path = write_tasks(tmp_path)
    server.answer = lambda body: "Rating: 5" if "===== task" in question(body) else "Fine."
    changes = {"responses__min_rating": 4.5, "responder__max_tokens": 10, "rater__max_tokens": 10}
    responses.run(config(server, **changes), path, tmp_path / "free", dry_run=False)
    longest = max(len(json.dumps(body).encode()) for body in server.bodies[3:]) + 10
    spent = 3 * 27  # by the answers
    for cap, stops in ((longest + spent - 1, True), (longest + spent + 3 * 27, False)):
        settings = config(server, budget_tokens=cap, **changes)
        with pytest.raises(RunStoppedError, match="budget") if stops else contextlib.nullcontext():
            responses.run(settings, path, tmp_path / "capped", dry_run=False)
    assert len(read(tmp_path / "capped" / "examples.jsonl")) == 3


@pytest.mark.parametrize(
    ("change", "lost"),
    [
        (lambda tasks: tasks[1:], "has no task 'a' with this text (1 of 2"),
        (lambda tasks: [{**tasks[0], "instruction": "Define flu."}, *tasks[1:]], "task 'a'"),
        (lambda tasks: [tasks[0], {**tasks[1], "input": "Else."}, tasks[2]], "task 'b'"),
        (lambda tasks: [{"instruction": task["instruction"]} for task in tasks], "(2 of 2"),
    ],
    ids=["fewer", "another instruction", "another input", "other ids"],
)
def test_another_input_replaces_nothing(server, tmp_path, change, lost):
    """A longer one does: answers are added, and none is paid for twice."""
    server.answer = lambda body: "" if "note" in question(body) else "Rest."
    settings, path = config(server), write_tasks(tmp_path)
    responses.run(settings, path, tmp_path, dry_run=False)
    files = ("examples.jsonl", "unused.jsonl", "examples.jsonl.run.json")
    before = [(tmp_path / name).read_bytes() for name in files]
    write_tasks(tmp_path, change(TASKS))
    for dry_run in (True, False):
        with pytest.raises(ValueError, match="choose another --workdir") as caught:
            responses.run(settings, path, tmp_path, dry_run=dry_run)
    assert lost in str(caught.value) or "unused.jsonl:1" in str(caught.value)
    assert [(tmp_path / name).read_bytes() for name in files] == before
    assert len(server.bodies) == 3
    more = write_tasks(tmp_path, [{"id": "d", "instruction": "Name a vein."}, *TASKS[::-1]])
    responses.run(settings, more, tmp_path, dry_run=False)
    assert [e["id"] for e in read(tmp_path / "examples.jsonl")] == ["d", "c", "a"]
    assert len(server.bodies) == 4


def test_bad_input(server, tmp_path):
    twice = write_tasks(tmp_path, [TASKS[0], TASKS[0]])
    with pytest.raises(ValueError, match="share the id 'a'"):
        responses.run(config(server), twice, tmp_path, dry_run=True)
    with pytest.raises(ValueError, match="must contain tasks"):
        responses.run(config(server), tmp_path / "examples.jsonl", tmp_path, dry_run=True)


@pytest.mark.slow
def test_from_seeds_to_a_trained_model(server, tmp_path, tmp_path_factory):
    """Each stage on the file of the one before it: tasks, dedup, responses, training."""
    server.answer = lambda body: (
        teacher.write_tasks(body) if teacher.is_for_tasks(body) else "the heart is in the chest"
    )
    settings = config(server, tasks__threshold=0.0, tasks__num_tasks=30)
    tasks.run(settings, tmp_path, dry_run=False)
    dedup.run(
        input_path=tmp_path / "tasks.jsonl",
        output=tmp_path / "kept.jsonl",
        against=[Path("datagen/starter/seeds.jsonl")],
        threshold=0.7,
        mode="greedy",
        tokenizer="rouge",
        fields="instruction",
    )
    kept = len(read_records(tmp_path / "kept.jsonl"))
    assert 20 < kept < 30
    responses.run(settings, tmp_path / "kept.jsonl", tmp_path, dry_run=False)
    corpus = make_corpus(tmp_path_factory.getbasetemp() / "corpus")
    with small_machine():
        train.run(
            run_config(corpus, data__path=str(tmp_path / "examples.jsonl"), train__epochs=1),
            tmp_path / "run",
        )
    lines = read(tmp_path / "run" / "metrics.jsonl")
    assert sum("loss" in line for line in lines) == kept // 8
