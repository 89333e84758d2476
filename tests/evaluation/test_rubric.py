"""Rubrics through a grader behind real HTTP: frozen grades give scores computed by hand."""

import importlib
import json
import signal
import subprocess
import sys

import pytest

from common import sections
from datagen.chat import attempts
from datagen.chat.errors import RunStoppedError
from evaluation import rubric
from evaluation.config import EvaluationConfig
from evaluation.grading.rubric_run import RubricRun, RubricSettings
from tests.conftest import LIMIT, REPOSITORY
from tests.support.chat_server import ChatServer, question

EXAMPLES = [
    {
        "prompt_id": "a",
        "prompt": [{"role": "user", "content": "My toe is red and hot. What is it?"}],
        "example_tags": ["theme:context_seeking", "physician_agreed_category:enough"],
        "rubrics": [
            {"criterion": "Names gout.", "points": 7, "tags": ["level:example", "axis:accuracy"]},
            {"criterion": "Asks for fever.", "points": 3, "tags": ["axis:completeness"]},
            {"criterion": "Orders colchicine.", "points": -5, "tags": ["axis:accuracy"]},
        ],
        "ideal_completions_data": None,
    },
    {
        "prompt_id": "b",
        "prompt": [
            {"role": "user", "content": "I have chest pain."},
            {"role": "assistant", "content": "Since when?"},
            {"role": "user", "content": "An hour."},
        ],
        "example_tags": ["theme:emergency_referrals"],
        "rubrics": [
            {"criterion": "Sends to emergency care.", "points": 8, "tags": ["axis:accuracy"]},
            {"criterion": "Plays it down.", "points": -9, "tags": ["axis:communication"]},
        ],
    },
    {
        "prompt_id": "c",
        "prompt": [{"role": "user", "content": "Is salt bad?"}],
        "example_tags": ["theme:context_seeking"],
        "rubrics": [{"criterion": "Names blood pressure.", "points": 4, "tags": ["axis:accuracy"]}],
    },
]
MET = {
    "Names gout.": True,
    "Asks for fever.": False,
    "Orders colchicine.": True,
    "Sends to emergency care.": False,
    "Plays it down.": True,
    "Names blood pressure.": True,
}
"""The frozen grades. Scores: a (7 - 5) / 10 = 0.2; b -9 / 8 = -1.125; c 4 / 4 = 1."""

LABELLED = {"prompt": EXAMPLES[0]["prompt"], "completion": "Gout.", "category": "hedging"}


def criterion(body) -> str:
    """The criterion of a request, without its points."""
    return question(body).partition("Criterion\n")[2].split("\n")[1].partition("] ")[2]


def frozen(body) -> str:
    """The grade of a criterion; a request of the system is answered instead."""
    if "criteria_met" not in question(body):
        return f"my answer to {question(body)}"
    return json.dumps({"explanation": "because", "criteria_met": MET[criterion(body)]})


@pytest.fixture
def server():
    server = ChatServer()
    server.answer = frozen
    yield server
    server.close()


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(attempts, "INITIAL_BACKOFF", 0.01)
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret-of-the-test")


@pytest.fixture
def files(tmp_path):
    write(tmp_path / "rubrics.jsonl", EXAMPLES)
    answers = [
        {"id": e["prompt_id"], "instruction": e["prompt"][-1]["content"], "output": "x" * 1500}
        for e in EXAMPLES
    ]
    write(tmp_path / "ours.jsonl", [answer | {"generator": "ours"} for answer in answers])
    return tmp_path


def write(path, records):
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def config(server, reasks=1, **changes) -> EvaluationConfig:
    content = importlib.import_module("configs.evaluation").get_config().to_dict()
    content |= {name: changes.pop(name) for name in [*changes] if name in content}
    chat = {"base_url": server.url + "/v1", "model": "grader", "attempts": 5} | changes
    content |= {"reasks": reasks, "chat": content["chat"] | chat}
    return sections.build(EvaluationConfig, content)


def grade(server, files, reasks=1, dry_run=False, changes=None, **settings):
    """Runs on the rubrics, with the answers of a file unless others are given."""
    if not settings.keys() & {"outputs", "base_url", "input"}:
        settings["outputs"] = [str(files / "ours.jsonl")]
    settings = {"input": str(files / "rubrics.jsonl")} | settings
    run = RubricRun(config(server, reasks, **(changes or {})), RubricSettings(**settings))
    rubric.run(run, files / "run", dry_run=dry_run)
    return json.loads((files / "run/rubric.json").read_text())


def grades(files):
    return [json.loads(line) for line in (files / "run/grades.jsonl").read_text().splitlines()]


def run_record(files):
    return json.loads((files / "run/run.json").read_text())


def test_frozen_grades_give_the_published_scores(server, files, capsys):
    found = grade(server, files)["systems"]["ours"]
    overall = found["overall"]
    # (0.2 - 1.125 + 1) / 3, clipped after averaging
    assert overall["score"] == (0.2 - 1.125 + 1) / 3 == overall["worst"] == overall["best"]
    assert overall["examples"] == 3
    assert (overall["low"], overall["high"]) == (0, 1), "three examples prove nothing"
    tags = {tag: row["score"] for tag, row in found["by_criterion_tag"].items()}
    assert tags == {
        "axis:accuracy": (2 / 7 + 0 + 1) / 3,  # a: (7 - 5) / 7; b: 0 / 8; c: 4 / 4
        "axis:completeness": 0.0,  # a: 0 / 3
        "level:example": 1.0,  # a: 7 / 7
    }  # axis:communication has no positive points, and thus no score
    themes = {tag: row["score"] for tag, row in found["by_example_tag"].items()}
    assert themes == {
        "theme:context_seeking": (0.2 + 1) / 2,
        "theme:emergency_referrals": 0.0,  # -1.125, clipped
        "physician_agreed_category:enough": 0.2,
    }
    # 1,500 characters are 500 fewer than 2,000: each example gains 0.0147
    assert found["length_adjusted"] == pytest.approx((0.2 - 1.125 + 1) / 3 + 0.0147)
    assert found["mean_characters"] == 1500
    assert "ours: 2.5 [0.0, 100.0] on 3 examples" in capsys.readouterr().err
    lines = grades(files)
    assert [line["criteria_met"] for line in lines] == list(MET.values())
    assert lines[0]["rubric"] == "[7] Names gout." and lines[4]["criterion"] == 1
    page = (files / "run/rubric.html").read_text()
    assert "2.5" in page and "emergency referrals" in page
    assert "| ours | 42.9 " in (files / "run/rubric.md").read_text(), "accuracy"
    assert run_record(files)["counts"]["invalid"]["no verdict"] == 0


def test_the_grader_sees_the_whole_conversation_between_marks(server, files):
    grade(server, files)
    texts = [question(body) for body in server.bodies if "Plays it down." in question(body)]
    assert len(texts) == 1
    spoken = "user: I have chest pain.\n\nassistant: Since when?\n\nuser: An hour.\n\nassistant: xx"
    assert spoken in texts[0] and "[-9] Plays it down." in texts[0]


def test_answers_are_generated_by_the_server(server, files):
    found = grade(
        server, files, base_url=server.url + "/v1", model="tiny", generator="ours-7b", max_tokens=77
    )
    assert found["systems"]["ours-7b"]["overall"]["score"] == (0.2 - 1.125 + 1) / 3
    asked = [body for body in server.bodies if body["model"] == "tiny"]
    assert len(asked) == 3 and {body["max_tokens"] for body in asked} == {77}
    dialogue = next(body["messages"] for body in asked if len(body["messages"]) > 1)
    assert dialogue == EXAMPLES[1]["prompt"]
    answers = [json.loads(line) for line in (files / "run/outputs.jsonl").read_text().splitlines()]
    assert answers[1]["output"] == "my answer to An hour." and answers[1]["id"] == "b"
    assert answers[1]["generator"] == "ours-7b" and answers[1]["dataset"] == "rubrics"


def test_nothing_is_asked_twice_and_more_repeats_keep_the_first(server, files):
    grade(server, files)
    assert len(server.bodies) == 6
    grade(server, files)
    assert len(server.bodies) == 6
    replies = iter([True, False] * 100)
    server.answer = lambda body: json.dumps({"criteria_met": next(replies)})
    found = grade(server, files, repeats=3, changes={"concurrency": 1})["systems"]["ours"]
    assert len(server.bodies) == 6 + 12
    # the second repeat: met, not, met | not, met | not; the third alike
    assert found["repeats"] == [(0.2 - 1.125 + 1) / 3, 0.0, 0.0]
    assert found["repeat_deviation"] == pytest.approx(0.025 / 3**0.5)  # of 0.025, 0 and 0
    assert 0 < found["unstable"] < 1 and found["verdicts"] == 18


def test_replies_without_a_verdict_are_asked_again_then_counted(server, files, capsys):
    def reply(body):
        if criterion(body) == "Asks for fever.":
            return '{"criteria_met": "yes"}'
        return frozen(body)

    server.answer = reply
    found = grade(server, files, reasks=2)["systems"]["ours"]
    assert len(server.bodies) == 6 + 2
    overall = found["overall"]
    assert overall["examples"] == 2 and overall["score"] == 0.0  # (-1.125 + 1) / 2, clipped
    assert overall["worst"] == (0.2 - 1.125 + 1) / 3
    assert overall["best"] == pytest.approx((0.5 - 1.125 + 1) / 3)
    assert found["missing"] == 1
    printed = capsys.readouterr().err
    assert "1 asked more than once; invalid: 1 no verdict" in printed
    assert "1 of 6 verdicts are missing: between 2.5 and 12.5" in printed
    assert grades(files)[1]["criteria_met"] is None and grades(files)[1]["asked"] == 3


def test_refusals_of_the_server_and_of_the_grader_are_counted(server, files, capsys):
    def error(body):
        refused = "criteria_met" in question(body) and criterion(body) == "Names gout."
        return (403, {"error": {"message": "flagged"}}, {}) if refused else None

    server.error = error
    found = grade(server, files)["systems"]["ours"]
    assert found["missing"] == 1 and found["overall"]["examples"] == 2
    assert run_record(files)["counts"]["invalid"]["without reply"] == 1
    assert "invalid: 1 without reply" in capsys.readouterr().err


def test_a_grader_that_never_states_a_verdict_ends_the_run(server, files):
    server.answer = lambda body: "Yes, the criterion is met."
    with pytest.raises(ValueError, match="no reply of grader states a verdict"):
        grade(server, files, reasks=0)


def test_the_budget_ends_the_run_and_nothing_is_written(server, files):
    with pytest.raises(RunStoppedError, match="the budget is reached"):
        grade(server, files, changes={"budget_tokens": 1})
    assert not (files / "run/rubric.json").exists()


def test_a_dry_run_sends_nothing(server, files, capsys):
    with pytest.raises(FileNotFoundError):  # of rubric.json
        grade(server, files, dry_run=True, base_url=server.url + "/v1", model="tiny")
    assert not server.bodies and not (files / "run").exists()
    printed = capsys.readouterr().err
    assert "answers: 3 requests to send" in printed and "gradings: 6 requests" in printed
    assert "3 answers do not exist yet" in printed


def test_scores_of_other_answers_are_not_lost(server, files):
    grade(server, files)
    write(files / "theirs.jsonl", [])
    text = (files / "ours.jsonl").read_text()
    (files / "theirs.jsonl").write_text(text.replace('"ours"', '"theirs"'))
    with pytest.raises(ValueError, match=r"holds scores with another answers, which would be lost"):
        grade(server, files, outputs=[str(files / "theirs.jsonl")])
    both = [str(files / f"{name}.jsonl") for name in ("ours", "theirs")]
    assert list(grade(server, files, outputs=both)["systems"]) == ["ours", "theirs"]
    assert len(server.bodies) == 6, "the same answers are the same questions"


def test_examples_are_drawn_as_simple_evals_draws_them(server, files):
    grade(server, files, examples=2, outputs=[], base_url=server.url + "/v1", model="tiny")
    # random.Random(0).sample([a, b, c], 2)
    assert list(dict.fromkeys(line["id"] for line in grades(files))) == ["b", "c"]


def test_a_prompt_without_marks_is_taken_as_it_is(server, files):
    (files / "own.txt").write_text(
        '[user]\n# Conversation\n{conversation}\n# Item\n{criterion}\nReturn {"criteria_met": ...}'
    )
    server.answer = lambda body: '```json\n{"explanation": "", "criteria_met": true}\n```'
    found = grade(server, files, prompt=str(files / "own.txt"))
    assert found["systems"]["ours"]["met"] == 6
    asked = [question(body) for body in server.bodies]  # in no order
    assert any("# Item\n[7] Names gout.\nReturn" in each for each in asked)


def labelled(answers):
    """Records of (criterion, labels by P1, P2, ...)."""
    return [
        LABELLED
        | {"prompt_id": name, "rubric": name, "binary_labels": labels}
        | {"anonymized_physician_ids": [f"P{i}" for i, _ in enumerate(labels)]}
        for name, labels in answers
    ]


def test_a_grader_is_compared_with_physicians(server, files, capsys):
    path = write(
        files / "meta.jsonl",
        labelled(
            [
                ("one", [True, True]),  # graded met
                ("two", [True, False]),  # graded met
                ("three", [False, False]),  # graded not met
                ("four", [True, False]),  # graded not met
            ]
        ),
    )
    met = {"one", "two"}
    server.answer = lambda body: json.dumps(
        {"criteria_met": question(body).partition("Criterion\n")[2].split("\n")[1] in met}
    )
    found = grade(server, files, input=str(path))["agreement"]
    # pairs (grader, label): both met 3, only the grader 1, only the physician 1, neither 3
    assert found["overall"]["macro_f1"] == 0.75 == found["hedging"]["macro_f1"]
    assert found["overall"]["pairs"] == 8
    # P0 against P1: both met 1, only P0 2, only P1 0, neither 1: F1 1/2 and 1/2; P1 alike
    assert found["overall"]["physicians"] == 0.5 and found["overall"]["compared"] == 2
    assert "macro F1 against physicians: 75.0; of physicians among themselves: 50.0" in (
        capsys.readouterr().err
    )
    assert grades(files)[3]["labels"] == [True, False]


def broken(**changes):
    return [EXAMPLES[0] | changes]


@pytest.mark.parametrize(
    "records, message",
    [
        (broken(prompt_id=None), ":1: field 'prompt_id' .* is missing"),
        (broken(prompt=[]), ":1: field 'prompt' must be a list of turns"),
        (broken(prompt=[{"role": "robot", "content": "x"}]), "turn 0: role is 'robot'"),
        (
            broken(prompt=[{"role": "assistant", "content": "x"}]),
            "must end with a turn of the user",
        ),
        (broken(rubrics=None), ":1: field 'rubrics' must be a list of criteria"),
        (broken(rubrics=["x"]), ":1, criterion 0: must be an object"),
        (broken(rubrics=[{"criterion": " ", "points": 1}]), "'criterion' is missing or empty"),
        (broken(rubrics=[{"criterion": "x", "points": "1"}]), "'points' must be a number"),
        (broken(rubrics=[{"criterion": "x", "points": True}]), "'points' must be a number"),
        (broken(rubrics=[{"criterion": "x", "points": -1}]), "no criterion has positive points"),
        (
            broken(rubrics=[{"criterion": "x", "points": 1, "tags": ["t", "t"]}]),
            "criterion 0: field 'tags' has a tag twice",
        ),
        (broken(example_tags="theme"), "'example_tags' must be a list of texts"),
        ([EXAMPLES[0], EXAMPLES[0]], "records 0 and 1 .* share the id 'a'"),
        ([EXAMPLES[0], {}, {}], "2 of 3 records are malformed; the first: .*:2: "),
        ([], "file is empty|no records"),
        (labelled([("x", [1])]), "'binary_labels' must be a list of true and false"),
    ],
    ids=range(16),
)
def test_what_is_wrong_with_a_file_is_one_line(server, files, records, message):
    path = write(files / "wrong.jsonl", records)
    with pytest.raises(ValueError, match=message):
        grade(server, files, input=str(path), outputs=[str(files / "ours.jsonl")])
    assert not server.bodies


def test_answers_are_needed_and_must_be_complete(server, files):
    with pytest.raises(ValueError, match="give the answers to grade"):
        grade(server, files, outputs=[])
    lines = (files / "ours.jsonl").read_text().splitlines(keepends=True)
    (files / "part.jsonl").write_text("".join(lines[:2]))
    with pytest.raises(ValueError, match="1 of 3 items of rubrics have no answer, the first 'c'"):
        grade(server, files, outputs=[str(files / "part.jsonl")])


def test_a_server_that_does_not_answer_needs_the_model_name(server, files):
    with pytest.raises(ValueError, match=r"does not list its models.*; start it, or give --model"):
        grade(server, files, base_url="http://localhost:9/v1")


@pytest.mark.slow
def test_a_killed_run_resumes_where_it_was(server, files):
    """A real process, killed while the grader is asked."""
    slow = files / "go"

    def reply(body):
        if len(server.bodies) == 4:
            slow.touch()
        return frozen(body)

    server.answer, server.delay = reply, 0.05
    command = [
        *(sys.executable, "-m", "evaluation.rubric", "--config=configs/evaluation.py"),
        *(f"--input={files}/rubrics.jsonl", f"--outputs={files}/ours.jsonl"),
        *(f"--workdir={files}/run", f"--config.chat.base_url={server.url}/v1"),
        *("--config.chat.model=grader", "--config.chat.concurrency=1"),
    ]
    process = subprocess.Popen(command, cwd=REPOSITORY, stderr=subprocess.PIPE, text=True)
    while not slow.exists() and process.poll() is None:
        signal.sigtimedwait([], 0.01)
    process.send_signal(signal.SIGKILL)
    process.wait(LIMIT)
    process.stderr.close()
    assert not (files / "run/rubric.json").exists()
    sent = len(server.bodies)
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=LIMIT)
    assert done.returncode == 0, done.stderr
    found = json.loads((files / "run/rubric.json").read_text())
    assert found["systems"]["ours"]["overall"]["score"] == (0.2 - 1.125 + 1) / 3
    assert len(server.bodies) <= 6 + 1, f"{sent} before the kill, at most one of them again"
