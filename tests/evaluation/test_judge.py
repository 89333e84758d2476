"""JudgingRun over real HTTP, through the real SDKs: both orders, again after any end."""

import contextlib
import dataclasses
import importlib
import json
import os
import random
import re
import shutil
import subprocess
import sys
import time

import pytest

from common import sections
from datagen.chat import attempts
from datagen.chat.errors import RunStoppedError
from evaluation import judge
from evaluation.config import EvaluationConfig
from evaluation.judge import JudgingRun
from evaluation.judgements import reading, workdirs
from evaluation.scoring.measurement import measure
from tests.conftest import DATA, REPOSITORY, needs_data
from tests.support.chat_server import ChatServer, question

ITEMS = [
    {"id": "a", "instruction": "What is gout?", "difficulty": "1"},
    {"id": "b", "instruction": "Sum it up.", "input": "BRCA1 repairs DNA.", "difficulty": 5},
    {"id": "c", "instruction": "Name a drug. {output_1}", "difficulty": 5},
]
SYSTEMS = ("model-7B", "model-13B", "gpt", "claude")


@pytest.fixture(scope="module")
def server():
    server = ChatServer()
    yield server
    server.close()


@pytest.fixture(autouse=True)
def quick(server, monkeypatch):
    monkeypatch.setattr(attempts, "INITIAL_BACKOFF", 0.01)
    monkeypatch.setattr(attempts, "MAX_BACKOFF", 0.05)
    server.answer, server.always = (lambda _: "Output (a)"), None
    server.bodies.clear()


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("files")
    lines = "".join(json.dumps(item) + "\n" for item in ITEMS)
    (folder / "set.jsonl").write_text(lines)
    for name in SYSTEMS:
        records = [
            item | {"output": f"{name} on {item['id']} {{instruction}}", "generator": name}
            for item in ITEMS
        ]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))
    return folder


def make_config(server, judges="alpacare", reasks=2, **changes) -> EvaluationConfig:
    content = importlib.import_module("configs.evaluation").get_config().to_dict()
    anthropic = changes.get("provider") == "anthropic"
    url = server.url + ("" if anthropic else "/v1")
    content |= {name: changes.pop(name) for name in [*changes] if name in content}
    chat_changes = {"base_url": url, "attempts": 30, "timeout_seconds": 5.0} | changes
    content |= {"judges": judges, "reasks": reasks, "chat": content["chat"] | chat_changes}
    return sections.build(EvaluationConfig, content)


def make(config, files, outputs=SYSTEMS[:2], references=SYSTEMS[2:], **selection) -> JudgingRun:
    def paths(names):
        return [name if "=" in name else str(files / f"{name}.jsonl") for name in names]

    return JudgingRun(
        config,
        benchmark=str(files / "set.jsonl"),
        outputs_from=paths(outputs),
        references_from=paths(references),
        data=files,
        **selection,
    )


def read(workdir, name="judgements.jsonl"):
    return [json.loads(line) for line in (workdir / name).read_text().splitlines()]


def counts(workdir):
    return json.loads((workdir / "run.json").read_text())["counts"]


# Verdicts.


def test_a_judge_that_always_prefers_the_first(server, files, tmp_path):
    judge.run(make(make_config(server, judges="alpacare,alpacare_no_tie"), files), tmp_path)
    lines = read(tmp_path)
    assert len(lines) == 2 * 2 * 2 * 3 * 2 == len(server.bodies)
    assert {(line["order"], line["verdict"]) for line in lines} == {
        ("model_first", "model"),
        ("reference_first", "reference"),
    }
    names = ("judge", "reference", "generator", "id", "order")
    printed = [tuple(line[name] for name in names) for line in lines]
    assert printed == [
        (f"{j}/gpt-6-luna", r, g, item["id"], order)
        for j in ("alpacare", "alpacare_no_tie")
        for r in ("gpt", "claude")
        for g in ("model-7B", "model-13B")
        for item in ITEMS
        for order in ("model_first", "reference_first")
    ]
    assert lines[0] == dict(zip(names, printed[0], strict=True)) | {
        "benchmark": "set",
        "verdict": "model",
        "raw": "Output (a)",
        "prompt_version": judge.load_judges("alpacare")[0].version,
        "usage": {"input_tokens": 20, "output_tokens": 7},
        "asked": 1,
    }
    assert counts(tmp_path)["verdicts"]["alpacare"] == {"model": 12, "reference": 12}


def test_a_judge_that_always_ties(server, files, tmp_path):
    server.answer = lambda _: "**Tie**"
    judge.run(make(make_config(server), files), tmp_path)
    assert {line["verdict"] for line in read(tmp_path)} == {"tie"}


def test_the_judge_sees_the_texts_as_they_are_and_both_orders(server, files, tmp_path):
    judge.run(make(make_config(server), files, ["model-7B"], ["gpt"]), tmp_path)
    seen = set()
    for body in server.bodies:
        mark = re.search("lines marked ([0-9a-f]{16})", question(body))[1]
        blocks = re.findall(rf"^<<< {mark}\n(.*?)\n{mark} >>>$", question(body), re.M | re.S)
        seen.add(tuple(blocks))
    ours, theirs = (
        [f"{name} on {item['id']} {{instruction}}" for item in ITEMS]
        for name in ("model-7B", "gpt")
    )
    asked = ["What is gout?", "Sum it up.\n\nBRCA1 repairs DNA.", "Name a drug. {output_1}"]
    pairs = list(zip(asked, ours, theirs, strict=True))
    assert seen == {*pairs, *((q, second, first) for q, first, second in pairs)}


@pytest.mark.parametrize("provider", ["openai", "anthropic"])
def test_structured_replies_are_asked_for_by_schema(server, files, tmp_path, provider):
    server.answer = lambda _: '{"explanation": "B is rude.", "verdict": "A"}'
    config = make_config(server, "structured,medical", provider=provider, reasks=0)
    with pytest.raises(ValueError, match="no reply to medical states a verdict; check `raw` in"):
        judge.run(make(config, files, ["model-7B"], ["gpt"], ids=["a"]), tmp_path)
    printed = [(line["judge"].split("/")[0], line["verdict"]) for line in read(tmp_path)]
    assert printed == [
        ("structured", "model"),
        ("structured", "reference"),
        ("medical", "invalid"),
        ("medical", "invalid"),
    ]
    field = "response_format" if provider == "openai" else "output_config"
    with_schema = [json.dumps(body[field]) for body in server.bodies if body.get(field)]
    assert len(with_schema) == 2 and all('"verdict"' in schema for schema in with_schema)


# What is no verdict.


def test_a_reply_without_a_verdict_is_asked_for_again(server, files, tmp_path):
    said = {}

    def hesitant(body):
        count = said[question(body)] = said.get(question(body), 0) + 1
        return "Output (b)" if count == 3 else f"Hard to say, {count}"

    server.answer = hesitant
    judge.run(make(make_config(server), files, ["model-7B"], ["gpt"]), tmp_path / "three")
    lines = read(tmp_path / "three")
    assert {line["verdict"] for line in lines} == {"model", "reference"}
    assert {line["asked"] for line in lines} == {3} and len(server.bodies) == 18
    assert counts(tmp_path / "three")["asked_again"] == 6
    said.clear()
    server.bodies.clear()
    twice = make(make_config(server, reasks=1), files, ["model-7B"], ["gpt"])
    with pytest.raises(ValueError, match="no reply to alpacare states a verdict"):
        judge.run(twice, tmp_path / "two")
    assert {line["verdict"] for line in read(tmp_path / "two")} == {"invalid"}
    assert {line["raw"] for line in read(tmp_path / "two")} == {"Hard to say, 2"}
    assert len(server.bodies) == 12, "a bounded number of times"
    assert counts(tmp_path / "two")["invalid"]["no verdict"] == 6
    judge.run(make(make_config(server), files, ["model-7B"], ["gpt"]), tmp_path / "two")
    assert {line["asked"] for line in read(tmp_path / "two")} == {3}
    assert len(server.bodies) == 18, "a further time asks once more, not anew"


def test_a_judge_that_thinks_aloud_is_noticed_early(server, tmp_path):
    server.answer = lambda body: "Let me think step by step. Output (a) has"
    items = [{"id": str(i), "instruction": f"Question {i}?", "output": "Yes."} for i in range(40)]
    for name in ("set", "model-7B", "gpt"):
        lines = (json.dumps(item | {"generator": name}) + "\n" for item in items)
        (tmp_path / f"{name}.jsonl").write_text("".join(lines))
    config = make_config(server, concurrency=4)
    with pytest.raises(ValueError, match=r"first 20 replies to alpacare .* think step by step"):
        judge.run(make(config, tmp_path, ["model-7B"], ["gpt"]), tmp_path / "workdir")
    assert len(server.bodies) < 40
    offline = make_config(server, offline=True)
    with pytest.raises(ValueError, match="80 of 80 requests have no answer"):
        judge.run(make(offline, tmp_path, ["model-7B"], ["gpt"]), tmp_path / "workdir")


def test_what_the_server_refuses_is_invalid_and_reported(server, files, tmp_path, capsys):
    def reply(body):
        refused = "gout" in question(body)
        server.always = (400, {"error": {"message": "content policy"}}) if refused else None
        return "Tie"

    server.answer = reply
    judging = make(make_config(server, concurrency=1), files, ["model-7B"], ["gpt"], ids=["b", "a"])
    judging.compared.reverse()  # an answer comes first, so that not every request is refused
    judge.run(judging, tmp_path)
    assert [line["verdict"] for line in read(tmp_path)] == ["tie", "tie", "invalid", "invalid"]
    assert read(tmp_path)[-1]["usage"] is None and read(tmp_path)[-1]["raw"] == ""
    assert counts(tmp_path)["invalid"]["without reply"] == 2
    err = capsys.readouterr().err
    assert "2 without reply" in err and "2 comparisons are refused; the first: the request" in err
    assert "content policy" in err


def test_comparisons_without_a_reply_end_the_command_with_an_error(server, files, tmp_path):
    def reply(body):
        refused = "gout" in question(body)
        server.always = (500, {"error": {"message": "broken"}}) if refused else None
        return "Tie"

    server.answer = reply
    config = make_config(server, concurrency=1, attempts=1)
    judging = make(config, files, ["model-7B"], ["gpt"], ids=["b", "a"])
    judging.compared.reverse()
    with pytest.raises(ValueError, match=r"2 of 4 requests have no answer.*broken"):
        judge.run(judging, tmp_path)
    assert [line["verdict"] for line in read(tmp_path)] == ["tie", "tie", "invalid", "invalid"]


def test_empty_answers_are_judged_and_reported(server, files, tmp_path, capsys):
    records = [item | {"output": "", "finish_reason": "too_long"} for item in ITEMS[:1]]
    records += [item | {"output": "x"} for item in ITEMS[1:]]
    path = tmp_path / "some.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    judge.run(make(make_config(server), files, [f"7b={path}"], ["gpt"]), tmp_path / "w")
    assert len(read(tmp_path / "w")) == 2 * len(ITEMS), "an empty answer is not left out"
    assert counts(tmp_path / "w")["empty_answers"]["7b"] == 1
    assert "7b: 1 of 3 answers are empty, and judged as they are" in capsys.readouterr().err


def test_truncated_references_are_reported(server, files, tmp_path, capsys):
    records = [item | {"output": "x", "finish_reason": "length"} for item in ITEMS]
    cut = tmp_path / "cut.jsonl"
    cut.write_text("".join(json.dumps(record) + "\n" for record in records))
    judge.run(make(make_config(server), files, ["model-7B"], [f"short={cut}"]), tmp_path / "w")
    assert counts(tmp_path / "w")["cut_references"] == {"short": 3}
    assert "reference short: 3 of 3 answers appear truncated" in capsys.readouterr().err


# Again and again.


def test_a_second_run_makes_no_request_and_a_larger_one_only_what_is_new(server, files, tmp_path):
    config = make_config(server)
    judge.run(make(config, files, ["model-7B"], difficulty=[5]), tmp_path)
    assert {line["id"] for line in read(tmp_path)} == {"b", "c"}
    first = {path.name: path.read_bytes() for path in tmp_path.glob("*.jsonl")}
    assert sorted(first) == ["items.jsonl", "judgements.jsonl", "outputs.jsonl"]
    server.bodies.clear()
    judge.run(make(config, files, ["model-7B"], difficulty=[5]), tmp_path)
    offline = dataclasses.replace(config, offline=True)
    judge.run(make(offline, files, ["model-7B"], difficulty=[5]), tmp_path)
    assert server.bodies == []
    assert {path.name: path.read_bytes() for path in tmp_path.glob("*.jsonl")} == first
    judge.run(make(config, files), tmp_path)
    assert len(server.bodies) == 24 - 8
    assert {tuple(record) for record in read(tmp_path, "items.jsonl")} == {
        ("id", "benchmark", "instruction", "input", "topic", "difficulty")
    }
    written = read(tmp_path, "outputs.jsonl")
    assert [(r["generator"], r["id"]) for r in written] == [(g, i) for g in SYSTEMS for i in "abc"]
    printed = json.loads((tmp_path / "run.json").read_text())
    assert printed["outputs"][str(files / "model-7B.jsonl")]["sha256"]
    assert printed["config"]["chat"]["model"] == "gpt-6-luna"
    versions = printed["prompt_versions"].values()
    assert printed["prompts"].keys() == set(versions)
    assert all("{output_1}" in prompt["user"] for prompt in printed["prompts"].values())
    with pytest.raises(ValueError, match=r"judgements\.jsonl:1: .* does not request .*--workdir"):
        judge.run(make(config, files, ["model-13B"]), tmp_path)
    with pytest.raises(ValueError, match="--workdir"):
        judge.run(make(make_config(server, model="other"), files), tmp_path)
    (tmp_path / "judgements.jsonl").write_text('{"note": "by hand"}\n')
    with pytest.raises(ValueError, match="does not request"):
        judge.run(make(config, files), tmp_path)


def test_a_dry_run_estimates_the_price_and_sends_nothing(server, files, tmp_path, capsys):
    judging = make(make_config(server, judges="alpacare,medical"), files)
    judge.run(judging, tmp_path / "run", dry_run=True)
    printed = capsys.readouterr().err
    assert "alpacare: 24 requests to send" in printed and "medical: 24 requests to send" in printed
    assert "$0.0" in printed and server.bodies == []
    assert not (tmp_path / "run").exists()


def test_a_stop_at_the_budget_leaves_no_half_of_the_verdicts(server, files, tmp_path):
    config = make_config(server, budget_tokens=2_000, max_tokens=100, concurrency=1)
    with pytest.raises(RunStoppedError, match="budget"):
        judge.run(make(config, files), tmp_path)
    assert 0 < len(server.bodies) < 24
    assert not (tmp_path / "judgements.jsonl").exists()
    judge.run(make(make_config(server, budget_tokens=10**6, max_tokens=100), files), tmp_path)
    assert len(server.bodies) == 24 == len(read(tmp_path))


RANDOM = ("Output (a)", "Output (b)", "Tie", "Either.")


def drawn(body) -> str:
    """The same question always gets the same verdict."""
    return RANDOM[sum(question(body).encode()) % len(RANDOM)]


def command(server, files, workdir):
    return [
        sys.executable,
        "-m",
        "evaluation.judge",
        "--config=configs/evaluation.py",
        f"--benchmark={files / 'set.jsonl'}",
        f"--workdir={workdir}",
        "--config.reasks=1",
        "--outputs=" + ",".join(str(files / f"{name}.jsonl") for name in SYSTEMS[:2]),
        "--references=" + ",".join(str(files / f"{name}.jsonl") for name in SYSTEMS[2:]),
        f"--config.chat.base_url={server.url}/v1",
        "--config.chat.attempts=30",
        "--config.chat.timeout_seconds=5",
        "--config.chat.concurrency=2",
    ]


def test_faults_and_a_kill_change_no_verdict(server, files, tmp_path):
    server.answer = drawn
    config = make_config(server, reasks=1, concurrency=2)
    judge.run(make(config, files), tmp_path / "calm")
    faulty = ChatServer(faults=0.3, seed=3)
    faulty.answer, faulty.stall, faulty.delay = drawn, 0.01, 0.05
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    process = subprocess.Popen(command(faulty, files, tmp_path / "rough"), env=environment)
    while len(faulty.answered) < 8 and process.poll() is None:
        time.sleep(0.01)
    process.kill()
    process.wait()
    assert not (tmp_path / "rough" / "judgements.jsonl").exists()
    config = dataclasses.replace(
        config, chat=dataclasses.replace(config.chat, base_url=f"{faulty.url}/v1")
    )
    judge.run(make(config, files), tmp_path / "rough")
    faulty.close()
    for name in ("judgements.jsonl", "items.jsonl", "outputs.jsonl"):
        assert (tmp_path / "rough" / name).read_bytes() == (tmp_path / "calm" / name).read_bytes()
    assert {line["verdict"] for line in read(tmp_path / "rough")} > {"invalid", "tie"}


@pytest.mark.slow
@needs_data
def test_the_papers_evaluation_under_faults_and_kills(tmp_path):
    """MedInstruct-test x 4 references x 6 systems x 2 orders, to the report; takes 2 minutes."""
    systems = sorted(path.name for path in (DATA / "model_outputs").iterdir())
    calm, faulty = ChatServer(), ChatServer(faults=0.3, seed=5)
    faulty.stall = 0.01
    calm.answer = faulty.answer = drawn

    def start(server, workdir):
        judging = [
            "--config=configs/evaluation.py",
            "--benchmark=medinstruct",
            f"--data={DATA}",
            f"--outputs={','.join(systems)}",
            f"--workdir={workdir}",
            "--config.reasks=1",
            "--references=gpt-4,gpt-3.5-turbo,text-davinci-003,claude-2",
            f"--config.chat.base_url={server.url}/v1",
            "--config.chat.attempts=30",
        ]
        return subprocess.Popen(
            [sys.executable, "-m", "evaluation.judge", *judging], cwd=REPOSITORY
        )

    assert start(calm, tmp_path / "calm").wait() == 0
    draw, kills, code = random.Random(0), 0, None
    while code is None:
        process = start(faulty, tmp_path / "rough")
        with contextlib.suppress(subprocess.TimeoutExpired):
            code = process.wait(draw.uniform(2, 15) if kills < 8 else None)
        kills += code is None
        process.kill()
        process.wait()
    assert code == 0 and kills >= 3
    assert len(systems) == 6 and len(read(tmp_path / "rough")) == 10_368
    for name in ("judgements.jsonl", "items.jsonl", "outputs.jsonl"):
        assert (tmp_path / "rough" / name).read_bytes() == (tmp_path / "calm" / name).read_bytes()
    asked = len(faulty.bodies)
    assert start(faulty, tmp_path / "rough").wait() == 0
    assert len(faulty.bodies) == asked, "a second run makes no request"
    for name in ("calm", "rough"):
        output = f"--output={tmp_path / name / 'report'}"
        reporting = ["evaluation.report", f"--judgements={tmp_path / name}", output]
        subprocess.run([sys.executable, "-m", *reporting], cwd=REPOSITORY, check=True)
    calm_report, rough_report = (tmp_path / name / "report" for name in ("calm", "rough"))
    tables = sorted(path.relative_to(calm_report) for path in calm_report.rglob("*.tex"))
    assert tables
    for name in ("report.json", *tables):
        assert (rough_report / name).read_bytes() == (calm_report / name).read_bytes()
    calm.close()
    faulty.close()


# What is wrong is printed.


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"judges": "alpacare,gpt"}, "no judge 'gpt'; choose from"),
        ({"judges": ","}, "config.judges is empty"),
        ({"judges": "medical,medical"}, "judges: duplicate name 'medical'"),
        ({"outputs": ["gpt"]}, "--outputs and --references: duplicate name 'gpt'"),
        ({"outputs": ["model-7B", "model-7B"]}, "duplicate name 'model-7B'"),
        ({"outputs": ["nothing"]}, "no such file"),
        ({"ids": ["a", "z"]}, "no item 'z'"),
        ({"ids": ["a"], "difficulty": [5]}, "omit one"),
        ({"reasks": -1}, "reasks must be at least 0"),
    ],
)
def test_what_is_wrong_is_named(server, files, changes, says):
    config = {key: changes.pop(key) for key in ("judges", "reasks") if key in changes}
    with pytest.raises((ValueError, FileNotFoundError), match=re.escape(says)):
        make(make_config(server, **config), files, **changes)


@needs_data
def test_published_files(server, tmp_path):
    judging = JudgingRun(
        make_config(server),
        benchmark="medinstruct",
        outputs_from=["alpacare-7b", "pmc-llama-7b"],
        references_from=["gpt-4", "gpt-3.5-turbo", "text-davinci-003", "claude-2"],
        data=DATA,
        ids=["0", "142", "144"],
        difficulty=(),
    )
    judge.run(judging, tmp_path)
    assert len(read(tmp_path)) == 2 * 4 * 3 * 2 == len(server.bodies)


def test_a_model_whose_name_cannot_be_displayed(server, files):
    with pytest.raises(ValueError, match=r"'alpacare/m\\u202e' cannot be displayed"):
        make(make_config(server, model="m\u202e"), files)


# Existing workdirs.


def test_half_a_file_says_what_to_do(server, files, tmp_path):
    judging = make(make_config(server), files, ["model-7B"], ["gpt"])
    judge.run(judging, tmp_path)
    path = tmp_path / "judgements.jsonl"
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=rf"not JSON.*; delete {path}: it is rebuilt"):
        judge.run(judging, tmp_path)
    path.unlink()
    judge.run(judging, tmp_path)
    assert path.read_bytes() == whole


def test_other_answers_need_another_workdir(server, files, tmp_path):
    judge.run(make(make_config(server), files, ["model-7B"], ["gpt"]), tmp_path)
    before = (tmp_path / "judgements.jsonl").read_bytes()
    changed = tmp_path / "changed.jsonl"
    changed.write_text((files / "model-7B.jsonl").read_text().replace("model-7B on b", "new"))
    asked = len(server.bodies)
    judging = make(make_config(server), files, [f"model-7B={changed}"], ["gpt"])
    with pytest.raises(ValueError, match="another answer of model-7B to item 'b'"):
        judge.run(judging, tmp_path)
    assert len(server.bodies) == asked
    assert (tmp_path / "judgements.jsonl").read_bytes() == before


def test_another_question_needs_another_workdir(server, files, tmp_path):
    judge.run(make(make_config(server), files, ["model-7B"], ["gpt"]), tmp_path / "run")
    before = (tmp_path / "run" / "judgements.jsonl").read_bytes()
    asked = len(server.bodies)
    changed = shutil.copytree(files, tmp_path / "changed")
    for path in changed.glob("*.jsonl"):
        path.write_text(path.read_text().replace(ITEMS[1]["instruction"], "What else?"))
    judging = make(make_config(server), changed, ["model-7B"], ["gpt"])
    with pytest.raises(ValueError, match=r"items.jsonl:2: set has no task 'b' with this text"):
        judge.run(judging, tmp_path / "run")
    assert len(server.bodies) == asked
    assert (tmp_path / "run" / "judgements.jsonl").read_bytes() == before


# The report.


def test_the_report_reads_what_is_written(server, files, tmp_path):
    """A judge that always prefers the first answer: exactly 50 %, and a position bias of 100 %."""
    judge.run(make(make_config(server), files), tmp_path)
    found, _ = reading.read([tmp_path])
    results = measure(found, None, workdirs.read([tmp_path], found), seed=0)
    assert {rate.rate for rate in results.rates.values()} == {0.5}
    (summary,) = results.judges.values()
    assert summary.position.first_preference == 1.0
    assert summary.position.for_first == summary.position.items
    assert results.benchmarks["set"].labels["difficulty"] == {"1": 1, "5": 2}
