"""Multiple choice through real HTTP."""

import json
import signal
import subprocess
import sys

import pytest

from common.sections import UsageError
from datagen.chat import connection
from datagen.chat.errors import RunStoppedError
from datagen.chat.replies import likelihoods, read_reply
from evaluation import choices
from evaluation.choices import ChoiceSettings
from evaluation.multiple_choice import questions
from evaluation.multiple_choice.prompts import Prompter
from tests.conftest import LIMIT, REPOSITORY
from tests.support.chat_runs import make_config, quicken
from tests.support.chat_server import ChatServer, openai_reply
from tests.support.completions import echoed, likelihood

ROWS = [
    {
        "id": f"q{i}",
        "question": f"Which finding number {i} is next?",
        "options": [f"finding {i}", "rest", "a long walk in the park", "fever and cough"],
        "answer": "ABCD"[i % 4],
        "subject": ("heart", "lung")[i % 2],
    }
    for i in range(12)
]


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    quicken(monkeypatch)


@pytest.fixture
def server():
    server = ChatServer()
    server.answer = lambda body: "A"
    server.error = lambda body: (200, echoed(body), {}) if "prompt" in body else None
    yield server
    server.close()


@pytest.fixture
def ask(server, tmp_path):
    """Asks the questions; returns the workdir's lines. Changes go to the settings."""
    path = tmp_path / "questions.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))

    def ask(workdir="run", dry_run=False, config=None, **changes):
        given = {"form": "", "subjects": (), "first_answer": None, "method": "likelihood"}
        given |= {"prompt": "texts", "shots": 0, "shots_from": None, "files": [path]}
        settings = ChoiceSettings(**given | changes)
        folder = tmp_path / workdir
        asking = make_config(server, temperature=0.0, **config or {})
        choices.run(settings, asking, folder, dry_run=dry_run)
        return [json.loads(line) for line in (folder / "choices.jsonl").read_text().splitlines()]

    return ask


def test_options_are_compared_as_a_harness_does(ask, server, tmp_path):
    rows = ask()
    prompter = Prompter("texts")
    right = norm = 0
    for row, question in zip(rows, questions.read([tmp_path / "questions.jsonl"], ""), strict=True):
        sums = [likelihood(prompter.prompt(question), f" {option}") for option in row["options"]]
        assert row["logprobs"] == pytest.approx(sums, abs=1e-12) and row["joined"] == 0
        lengths = [len(option) for option in row["options"]]
        best = max(range(4), key=lambda i: sums[i])
        best_norm = max(range(4), key=lambda i: sums[i] / lengths[i])
        assert (row["chosen"], row["chosen_norm"]) == ("ABCD"[best], "ABCD"[best_norm])
        right += row["chosen"] == row["answer"]
        norm += row["chosen_norm"] == row["answer"]
    summary = json.loads((tmp_path / "run/summary.json").read_text())
    assert summary["accuracy"]["rate"] == right / 12 and summary["norm"]["rate"] == norm / 12
    assert {k: v["accuracy"]["questions"] for k, v in summary["subjects"].items()} == {
        "heart": 6,
        "lung": 6,
    }
    assert {"prompt", "echo", "logprobs"} <= server.bodies[0].keys()
    assert server.bodies[0]["max_tokens"] == 0
    for name in ("choices.html", "tables/accuracy.tex", "figures/reliability.svg", "run.json"):
        assert (tmp_path / "run" / name).stat().st_size > 100
    assert "sk-secret" not in (tmp_path / "run/run.json").read_text()


def test_a_stopped_run_resumes_and_ends_with_the_same(ask, server, tmp_path):
    expected = ask("whole")
    sent = len(server.bodies)
    real, left = server.error, iter(range(5))
    server.error = lambda body: real(body) if next(left, None) is not None else (401, {}, {})
    with pytest.raises(RunStoppedError):
        ask(config={"concurrency": 1})
    assert not (tmp_path / "run/choices.jsonl").exists()
    server.error = real
    stored = len(server.bodies)
    assert ask() == expected
    assert len(server.bodies) - stored == sent - 5, "what is stored is not asked again"
    for name in ("summary.json", "choices.html", "choices.jsonl"):
        assert (tmp_path / "run" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    with pytest.raises(ValueError, match=r"results of other settings \(prompt: 'texts' before"):
        ask(prompt="letters")
    assert ask() == expected


@pytest.mark.slow
def test_killed_and_restarted_it_ends_with_the_same(ask, server, tmp_path):
    expected = ask("whole")
    server.delay = 0.05
    command = [
        *(sys.executable, "-m", "evaluation.choices", f"--input={tmp_path / 'questions.jsonl'}"),
        *(f"--base_url={server.url}/v1", f"--workdir={tmp_path / 'run'}", "--model=stand-in"),
        *("--prompt=texts", "--concurrency=1", "--max_tokens=50"),
    ]
    before = len(server.bodies)
    killed = subprocess.Popen(command, cwd=REPOSITORY, stderr=subprocess.DEVNULL)
    while len(server.bodies) < before + 4:
        assert killed.poll() is None
    killed.send_signal(signal.SIGKILL)
    assert killed.wait(LIMIT) == -signal.SIGKILL
    assert not (tmp_path / "run/choices.jsonl").exists()
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=LIMIT)
    assert done.returncode == 0, done.stderr
    lines = (tmp_path / "run/choices.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == expected
    assert len(server.bodies) - before < 12 + 4, "stored replies are not asked for again"


def test_letters(ask, server, tmp_path):
    replies = {0: "A", 1: "The answer is B.", 2: "I am not sure."}
    number = lambda body: int(body["messages"][0]["content"].split("number ")[1].split()[0])  # noqa: E731
    server.answer = lambda body: replies.get(number(body), "D")
    rows = ask(method="letter", prompt="")
    assert [row["chosen"] for row in rows[:4]] == ["A", "B", None, "D"]
    assert rows[2]["raw"] == "I am not sure."
    summary = json.loads((tmp_path / "run/summary.json").read_text())
    assert summary["invalid"] == 1 and summary["accuracy"]["rate"] == 5 / 12
    assert (
        summary["calibration"] is None and not (tmp_path / "run/figures/reliability.svg").exists()
    )
    text = server.bodies[0]["messages"][0]["content"]
    assert "\nA. finding" in text and text.endswith("letter of the right option only.")


def test_a_question_that_is_too_long_counts_as_wrong_and_is_named(ask, server, tmp_path, capsys):
    real = server.error
    message = {"error": {"message": "maximum context length is 512 tokens", "code": 400}}
    server.error = lambda body: (
        (400, message, {}) if "number 3 " in body["prompt"][0] else real(body)
    )
    rows = ask()
    assert [row["id"] for row in rows if "failure" in row] == ["q3"]
    assert rows[3]["chosen"] is None
    summary = json.loads((tmp_path / "run/summary.json").read_text())
    assert (summary["failed"], summary["accuracy"]["questions"]) == (1, 12)
    assert "question 'q3': prompt and answer exceed the context" in capsys.readouterr().err


def without_logprobs(body):
    reply = echoed(body)
    return reply | {"choices": [choice | {"logprobs": None} for choice in reply["choices"]]}


def without_echo(body):
    reply = echoed(body | {"prompt": ["B. It is"] * len(body["prompt"])})
    return reply


def with_more(body):
    reply = echoed(body)
    return reply | {"choices": [c | {"text": c["text"] + " and more"} for c in reply["choices"]]}


@pytest.mark.parametrize("reply", [without_logprobs, without_echo, with_more])
def test_a_server_without_likelihoods_is_named_at_once(ask, server, reply):
    server.error = lambda body: (200, reply(body), {})
    with pytest.raises(RunStoppedError, match="no log-probabilities of the tokens of the prompt"):
        ask(config={"concurrency": 1})
    assert len(server.bodies) == 1


def test_tokens_across_the_border_are_counted():
    """With ";" the tokenizer joins the option to the space; all options start at one token."""
    body = {"prompt": ["Answer ;", "Answer ;rest", "Answer ;walk far"], "echo": 1, "max_tokens": 0}
    one, two = likelihoods(read_reply("openai", body, echoed(body)))
    assert (one.joined, one.tokens, two.tokens) == (1, 1, 2)


def test_a_model_is_found_only_where_it_is_the_only_one(monkeypatch):
    with pytest.raises(UsageError, match=r"does not list its models .* start it, or give --model"):
        connection.only_model(make_config(None, base_url="http://127.0.0.1:9/v1"))

    async def two(_):
        return ["one", "two"]

    monkeypatch.setattr(connection, "served_models", two)
    with pytest.raises(UsageError, match=r"has 2 models; --model chooses: \['one', 'two'\]"):
        connection.only_model(make_config(None))


def test_a_dry_run_sends_nothing(ask, server, tmp_path, capsys):
    with pytest.raises(FileNotFoundError):
        ask(dry_run=True)
    assert "12 requests to send" in capsys.readouterr().err
    assert not server.bodies and not (tmp_path / "run").exists()


def test_what_is_generated_after_the_echo_is_not_counted():
    """max_tokens=1 in extra_body, for a server that does not take 0."""
    body = {"prompt": ["a b", "a b c", "a b d"], "echo": True, "max_tokens": 0}
    plain = read_reply("openai", body, echoed(body))
    longer = echoed(body | {"prompt": [prompt + " x" for prompt in body["prompt"]]})
    assert read_reply("openai", body | {"max_tokens": 1}, longer).text == plain.text
    assert openai_reply("x")["choices"][0]["message"], "a chat's reply has no logprobs"
    assert read_reply("openai", body, openai_reply("x")).finish_reason == "no_likelihoods"
