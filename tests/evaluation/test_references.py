"""References from a model behind real HTTP, and imported ones."""

import json
import re

import pytest

from common.text.prompt_file import Prompt
from datagen.chat import attempts
from datagen.chat.errors import RunStoppedError
from evaluation import references
from evaluation.inputs import benchmarks, outputs
from evaluation.references import ReferenceSettings
from tests.support import commands
from tests.support.chat_runs import make_config
from tests.support.chat_server import ChatServer, openai_reply, question
from tests.support.published_files import (
    POSTS,
    QUESTIONS,
    flat,
    medinstruct,
    original,
    small,
    write,
)

__all__ = ["flat", "original", "small"]


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(attempts, "INITIAL_BACKOFF", 0.01)
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret-of-the-test")


@pytest.fixture
def server():
    server = ChatServer()
    yield server
    server.close()


@pytest.fixture
def ask(server, tmp_path):
    """Asks for references to four questions; changes go to the model's config."""
    path = write(tmp_path / "test.jsonl", medinstruct(answers=False))

    def ask(dry_run: bool = False, prompt: str = "medical", generator: str = "", **changes):
        asking = ReferenceSettings(make_config(server, **changes), prompt, generator)
        references.run_ask(asking, f"medsi={path}", tmp_path, tmp_path / "run", dry_run=dry_run)
        return read(tmp_path / "run/references.jsonl")

    return ask


def read(path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_a_model_is_asked_once(ask, server, tmp_path, capsys):
    records = ask()
    assert [record["output"] for record in records] == [f"answer to {q}" for q in QUESTIONS]
    assert records[3] == {
        "instruction": "Why rest?",
        "output": "answer to Why rest?",
        "generator": "stand-in",
        "id": "4",
        "input": "",
        "dataset": "medinstruct",
        "finish_reason": "stop",
        "num_tokens": 7,
    }
    assert {body["messages"][0]["content"] for body in server.bodies} == {
        "You are a medical expert tasked with answering various medical questions."
    }
    assert "4 answers, " in capsys.readouterr().err
    assert ask() == records
    assert len(server.bodies) == 4, "nothing is sent again"
    run = json.loads((tmp_path / "run/run.json").read_text())
    assert run["counts"]["outputs"] == 4 and run["end"]
    assert run["config"]["asking"]["chat"]["model"] == "stand-in"
    for file in (tmp_path / "run").iterdir():
        assert b"sk-secret" not in file.read_bytes()
    items = benchmarks.load(f"medsi={tmp_path / 'test.jsonl'}", tmp_path)
    loaded = outputs.load(str(tmp_path / "run/references.jsonl"), items, tmp_path)
    assert [answer.generator for answer in loaded] == ["stand-in"] * 4


def test_truncated_answers_are_counted(ask, server, capsys):
    server.always = (200, openai_reply("It is caused by", "length"))
    assert {record["finish_reason"] for record in ask()} == {"length"}
    assert "4 truncated at the length limit, 0 more appear truncated" in capsys.readouterr().err


def test_a_dry_run_sends_nothing(ask, server, tmp_path, capsys):
    with pytest.raises(FileNotFoundError):  # of references.jsonl
        ask(dry_run=True)
    assert "4 requests to send, 0 answers stored" in capsys.readouterr().err
    assert not server.bodies and not (tmp_path / "run").exists()


def test_items_without_an_answer_are_named_and_asked_again(ask, server, tmp_path):
    server.answer = lambda body: "" if "DNA" in question(body) else "fine"
    server.always = (400, {"error": {"message": "no"}})
    with pytest.raises(RunStoppedError, match="every request so far is rejected"):
        ask(concurrency=1)
    assert not (tmp_path / "run/references.jsonl").exists()
    server.always, server.kinds, server.faults = None, ("500",), 0.5
    with pytest.raises(ValueError, match=r"\d of 4 requests have no answer; .*overloaded.*; rerun"):
        ask(concurrency=1, attempts=1)
    records = read(tmp_path / "run/references.jsonl")
    failed = [record for record in records if record["finish_reason"] == "error"]
    assert 0 < len(failed) < 4 and {record["output"] for record in failed} == {""}
    server.faults, sent = 0.0, len(server.bodies)
    records = ask()
    assert [r["output"] for r in records] == ["fine", "fine", "", "fine"]
    assert len(server.bodies) == sent + len(failed)


def test_items_that_the_server_refuses_are_empty_and_reported(ask, server, tmp_path, capsys):
    def reply(body):
        refused = "DNA" in question(body)
        server.always = (403, {"error": {"message": "flagged"}}) if refused else None
        return "fine"

    server.answer = reply
    records = ask(concurrency=1)
    assert [r["output"] for r in records] == ["fine", "fine", "", "fine"]
    assert "1 items are refused by the server" in capsys.readouterr().err
    server.answer, server.always = str, (403, {"error": {"message": "flagged"}})
    with pytest.raises(ValueError, match="all 4 references are empty"):
        ask(model="other", generator="stand-in")


def test_the_budget_ends_the_run(ask, tmp_path):
    with pytest.raises(RunStoppedError, match="the budget is reached"):
        ask(budget_tokens=1)
    assert not (tmp_path / "run/references.jsonl").exists()


def test_other_answers_are_not_overwritten(ask, server):
    ask()
    with pytest.raises(ValueError, match=r"answers of 'stand-in' to medinstruct, not of 'x'"):
        ask(generator="x")
    assert len(server.bodies) == 4


def test_answers_to_other_questions_are_not_overwritten(ask, server, tmp_path):
    ask()
    before = (tmp_path / "run/references.jsonl").read_bytes()
    questions = medinstruct(answers=False)
    questions[1]["instruction"] = "Is it a cough?"
    write(tmp_path / "test.jsonl", questions)
    with pytest.raises(ValueError, match=r"jsonl:2: medinstruct has no task '1' .*1 of 4 would"):
        ask()
    assert (tmp_path / "run/references.jsonl").read_bytes() == before
    assert len(server.bodies) == 4


@pytest.mark.parametrize(
    "file", sorted(references.REFERENCE_PROMPTS.glob("*.txt")), ids=lambda f: f.stem
)
def test_prompts(file):
    prompt = Prompt.read(file.stem, references.REFERENCE_PROMPTS)
    assert prompt.fill(question="Why {question}?")[1] == "Why {question}?"


# Import.


@pytest.mark.parametrize("layout", ["original", "flat"])
def test_frozen_answers_become_references(request, layout, tmp_path, capsys):
    data = request.getfixturevalue(layout)
    for benchmark in ("medinstruct", "iCliniq"):
        workdir = tmp_path / benchmark
        references.run_import("claude-2", benchmark, data, workdir)
        records = read(workdir / "references.jsonl")
        asked = QUESTIONS if benchmark == "medinstruct" else POSTS
        assert [r["output"].strip() for r in records] == [f"claude-2: {q}".strip() for q in asked]
        assert {r["generator"] for r in records} == {"claude-2"}
        run = json.loads((workdir / "run.json").read_text())
        (file,) = run["config"]["file"]
        assert "claude-2" in file
    assert "answers, " in capsys.readouterr().err
    with pytest.raises(ValueError, match="answers of 'claude-2' to icliniq, not of 'gpt-4'"):
        references.run_import("gpt-4", "icliniq", data, tmp_path / "iCliniq")


def test_an_import_that_does_not_fit_leaves_nothing(flat, tmp_path):
    with pytest.raises(ValueError, match="no item of icliniq has"):
        source = f"x={flat}/references/gpt-4/medinstruct.jsonl"
        references.run_import(source, "icliniq", flat, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_name_that_cannot_be_displayed(ask, server):
    with pytest.raises(ValueError, match="cannot be displayed"):
        ask(generator="a\nb")
    assert not server.bodies


def test_a_config_of_something_else_is_rejected():
    config = {"config": "configs/quickstart.py", "benchmark": "icliniq", "workdir": "never"}
    flags = [f"--{name}={value}" for name, value in config.items()]
    process = commands.run("evaluation.references", *flags)
    assert process.returncode == 2
    assert re.fullmatch(r"error: config has no key .*\n", process.stderr)
