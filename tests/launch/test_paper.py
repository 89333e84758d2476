"""launch/paper.sh: when a stage is done, what runs, what is said, and a rehearsal of the whole."""

import contextlib
import dataclasses
import os
import random
import re
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path

import pytest
from etils import epath

from common import jsonl, paths, provenance, sections
from common.text.prompt_file import Prompt
from configs import paper
from datagen.dedup import run as run_dedup
from evaluation.inputs import benchmarks, outputs
from launch.lib.pipeline import WAITING, Pipeline
from launch.lib.stage import Server, Stage
from launch.paper import __main__ as main
from launch.paper import stages as paper_stages
from launch.paper import subsets
from launch.paper.config import PaperConfig
from launch.paper.estimates import Estimate
from launch.paper.sources import Sources
from tests.conftest import COMPILES_QUICKLY, LIMIT, REPOSITORY, write_examples
from tests.support import rehearsal, teacher
from tests.support.chat_server import ChatServer, question
from tests.support.published_files import original, small

__all__ = ["original", "small"]  # fixtures


@pytest.fixture(autouse=True)
def in_the_repository(monkeypatch):
    monkeypatch.chdir(REPOSITORY)  # as the script does; configs are named from there


@pytest.fixture
def make(tmp_path):
    """The sources of a rehearsal; the settings may be changed."""
    (tmp_path / "tiny/base").mkdir(parents=True)  # not made: nothing is trained here

    def made(**changes) -> Sources:
        settings = paper.get_config().to_dict()
        with rehearsal.prepare(settings, tmp_path / "tiny", "http://127.0.0.1:9/v1"):
            return Sources(sections.build(PaperConfig, settings | changes), tmp_path / "run")

    return made


def dedup(folder: Path, *flags: str) -> Stage:
    """A stage that takes no second."""
    source, output = folder / "in.jsonl", epath.Path(folder / "out.jsonl")
    given = (f"--input={source}", f"--output={output}", *flags)
    return Stage("dedup", ("datagen.dedup", *given), [epath.Path(source)], output)


def run(sources: Sources, stages: list[Stage], *, elsewhere: bool = False) -> int:
    return Pipeline("paper", stages, Path(sources.workdir) / "logs", elsewhere=elsewhere).run(
        stages
    )


# When a stage is done.


@pytest.fixture
def done(tmp_path, monkeypatch) -> Stage:
    """A stage whose command has run; in this process, which is quick."""
    stage = dedup(tmp_path)
    write_examples(tmp_path / "in.jsonl", 5)
    monkeypatch.setattr(sys, "argv", [*stage.command])
    run_dedup(
        input_path=tmp_path / "in.jsonl",
        output=Path(stage.output),
        against=[],
        threshold=0.7,
        mode="greedy",
        tokenizer="rouge",
        fields="instruction",
    )
    assert stage.unfinished() == ""
    return stage


def test_unfinished_is_decided_by_the_record(done):
    done.record.unlink()
    assert done.output.exists() and done.unfinished() == "not started"


def test_a_record_without_an_end_or_an_output_is_of_an_unfinished_run(done):
    record = provenance.read_json(done.record)
    provenance.write_json(done.record, record | {"end": None})
    assert done.unfinished() == "unfinished"
    provenance.write_json(done.record, record)
    assert done.unfinished() == ""
    done.output.unlink()
    assert done.unfinished() == "unfinished"


def test_other_inputs_or_flags_are_to_be_run(done, tmp_path):
    assert dedup(tmp_path, "--threshold=0.9").unfinished() == (
        "other settings (--threshold=0.9: now)"
    )
    write_examples(tmp_path / "in.jsonl", 6)
    assert done.unfinished() == f"{tmp_path / 'in.jsonl'} has other content now"


def test_what_changed_and_what_follows_is_made_again_and_the_former_is_kept(
    make, tmp_path, capsys, signals
):
    """dedup does not replace what is of another run: the pipeline puts it aside."""
    sources, first = make(), dedup(tmp_path)
    (tmp_path / "next").mkdir()
    flags = ("--input=" + str(first.output), f"--output={tmp_path / 'next/out.jsonl'}")
    output = epath.Path(tmp_path / "next/out.jsonl")
    stages = [first, Stage("next", ("datagen.dedup", *flags), [first.output], output)]

    def made(threshold: str = "0.7") -> list[str]:
        """The stages that ran."""
        again = dedup(tmp_path, f"--threshold={threshold}")
        assert run(sources, [again, stages[1]]) == 0
        lines = capsys.readouterr().err.splitlines()
        return [line for line in lines if line.startswith("paper: ") and "is done" not in line]

    write_examples(tmp_path / "in.jsonl", 3)
    assert made() == ["paper: dedup: not started", "paper: next: not started"]
    assert made() == []
    before = output.read_bytes()
    write_examples(tmp_path / "in.jsonl", 4)
    assert [line.rpartition("/")[2] for line in made()] == [
        "in.jsonl has other content now",
        "out.jsonl has other content now",
    ]
    assert output.read_bytes() != before == (tmp_path / "next/old/out.jsonl").read_bytes()
    (line,) = made("0.8")  # of nothing else: its output is the same
    assert line.startswith("paper: dedup: other settings (")
    output.unlink()
    assert made("0.8") == ["paper: next: unfinished"]


def test_a_model_is_put_aside_once_and_replies_stay(done, tmp_path):
    """After a kill in the middle of it, the rest follows."""
    stage = dataclasses.replace(done, name="train/x", output=epath.Path(tmp_path / "x/run.json"))
    folder = tmp_path / "x"
    (folder / "checkpoints").mkdir(parents=True)
    (folder / "answers.sqlite").touch()
    (folder / "metrics.jsonl").touch()
    provenance.write_json(stage.record, {"end": "now", "inputs": {}})
    assert stage.unfinished() == f"{tmp_path / 'in.jsonl'} has other content now"
    (folder / "old/checkpoints").mkdir(parents=True)
    with pytest.raises(ValueError, match=r"old holds an earlier model; delete it, or move it"):
        stage.put_aside()
    (folder / "checkpoints").rmdir()  # as if it had been moved, and then a kill
    stage.put_aside()
    assert sorted(path.name for path in folder.iterdir()) == ["answers.sqlite", "old"]
    assert {"checkpoints", "metrics.jsonl", "run.json"} == {
        p.name for p in (folder / "old").iterdir()
    }


def test_another_wording_of_a_prompt_is_seen(tmp_path, monkeypatch):
    """The file has the same name and is no input: the record has the hash of its text."""
    prompt, seeds = tmp_path / "mine.txt", epath.Path("datagen/starter/seeds.jsonl")
    prompt.write_text("[user]\nWrite tasks.")
    flags = ("--config=configs/datagen.py", f"--config.tasks.prompt={prompt}")
    output = epath.Path(tmp_path / "tasks.jsonl")
    stage = Stage("tasks", ("datagen.tasks", *flags), [seeds], output)
    monkeypatch.setattr(sys, "argv", ["tasks", *flags])
    texts = {"prompt_version": Prompt.read(str(prompt), tmp_path).version}
    record = provenance.describe(config={}, seeds=provenance.sha256(seeds), **texts)
    jsonl.write_output(Path(output), [{"a": 1}], record)
    assert stage.unfinished() == ""
    prompt.write_text("[user]\nWrite hard tasks.")
    assert re.fullmatch("mine@[0-9a-f]{10} is another prompt than before", stage.unfinished())


def test_a_stage_that_fails_with_some_of_it_written_is_run_again(
    done, tmp_path, monkeypatch, signals
):
    """As where some requests have no answer: the command says to rerun, and so it must be."""
    (tmp_path / "some.py").write_text("raise SystemExit('error: 1 of 9 has no answer; rerun')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    failing = dataclasses.replace(done, command=("some", *done.command[1:]))
    record = provenance.read_json(done.record)
    assert Pipeline("paper", [failing], tmp_path / "logs").run_one(failing) == 1
    assert failing.unfinished() == "unfinished"
    provenance.write_json(done.record, record)
    excused = Pipeline("paper", [failing], tmp_path / "logs", excused="no answer; rerun")
    assert excused.run_one(failing) == 0 and failing.unfinished() == ""


def test_an_edited_output_is_an_error_and_stays(done):
    done.output.write_text(done.output.read_text() + "{}\n")
    with pytest.raises(ValueError, match=r"out\.jsonl is damaged or was edited after stage dedup"):
        done.unfinished()
    assert done.output.read_text().endswith("{}\n")


def test_an_edited_config_file_is_seen(tmp_path, monkeypatch):
    config = tmp_path / "evaluation.py"
    config.write_text((REPOSITORY / "configs/evaluation.py").read_text())
    output, items = epath.Path(tmp_path / "r/references.jsonl"), tmp_path / "items.jsonl"
    write_examples(items, 3)
    flags = (f"--config={config}", f"--benchmark=x={items}", f"--workdir={output.parent}")
    stage = Stage("references/x", ("evaluation.judge", *flags), [epath.Path(items)], output)
    settings = {"reasks": 2, "digest": provenance.sha256(items)}
    monkeypatch.setattr(sys, "argv", ["references", *flags])
    output.parent.mkdir()
    record = provenance.describe(config=settings)
    jsonl.write_output(Path(output), [{"a": 1}], record, output.parent / "run.json")
    assert stage.unfinished() == ""
    config.write_text(config.read_text().replace("reasks=2", "reasks=3"))
    assert stage.unfinished() == "other settings (reasks: 2 before, 3 now)"


def test_the_model_name_depends_on_the_weights(tmp_path):
    model, output = epath.Path(tmp_path / "run"), epath.Path(tmp_path / "answers.json")
    manifest = tmp_path / "run/checkpoints/3/manifest.json"
    manifest.parent.mkdir(parents=True)
    provenance.write_json(manifest, {"weights": "a digest"})
    stage = Stage("generate/x", ("alpacare_jax.generate",), [model], output)
    output.write_text("[]")
    provenance.write_json(stage.record, {"end": "now", "config": {"weights": "a digest"}})
    assert stage.unfinished() == ""
    provenance.write_json(manifest, {"weights": "of another training"})
    assert stage.unfinished() == f"{model} has other content now"
    manifest.unlink()
    assert stage.unfinished() == "", "a model that is no longer here cannot have changed"
    served = dataclasses.replace(stage, server=Server(model, ["--checkpoint=x"]))
    name = served.arguments[-1]
    provenance.write_json(manifest, {"weights": "of another training"})
    assert name.startswith("--model=run-") and served.arguments[-1] != name


# What runs.


def test_a_stage_that_fails_ends_the_pipeline_with_its_command_and_log(
    make, tmp_path, capsys, signals
):
    sources = make()
    write_examples(tmp_path / "in.jsonl", 3)
    failing = dedup(tmp_path, "--threshold=7")
    later = dataclasses.replace(dedup(tmp_path), name="later")
    assert run(sources, [failing, later]) == 2
    told = capsys.readouterr().err
    by_hand = f"python -m {shlex.join(failing.command)}"
    assert f"paper: stage dedup failed with code 2; its log is {sources.workdir}/logs" in told
    assert by_hand in told and "later" not in told
    assert "must be between 0 and 1" in (sources.workdir / "logs/dedup.log").read_text()


def test_a_command_that_ends_before_its_stage_does_is_no_success(make, tmp_path, capsys, signals):
    """As training does when it gets SIGTERM: it saves, and ends with 0."""
    sources = make()
    write_examples(tmp_path / "in.jsonl", 3)
    stopped = dedup(tmp_path, "--help")
    assert run(sources, [stopped, dataclasses.replace(stopped, name="later")]) == 1
    told = capsys.readouterr().err
    assert "paper: stage dedup stopped before its end; its log is " in told and "later" not in told


def test_published_test_sets_are_written_in_one_form_and_read_as_they_were(original, tmp_path):
    settings = paper.get_config().to_dict() | {"published": str(original)}
    for name, given in settings["benchmarks"].items():
        given |= {"references": outputs.names(name, original)[0], "imported": ""}
    sources = Sources(sections.build(PaperConfig, settings), tmp_path / "run")
    sources.write_items()
    assert len(sources.sets) == 3
    for test_set in sources.sets:
        assert benchmarks.read(Path(test_set.file), test_set.name) == test_set.items
        before = test_set.file.stat().mtime
        sources.write_items()
        assert test_set.file.stat().mtime == before, "they are written once"


def test_what_is_not_published_is_named_before_anything_is_spent(original, tmp_path):
    settings = paper.get_config().to_dict() | {"published": str(original)}
    with pytest.raises(FileNotFoundError, match=r"data/ has no answers of .* to alpaca_farm"):
        Sources(sections.build(PaperConfig, settings), tmp_path / "run")


def test_an_input_that_an_earlier_stage_makes_is_named_with_it(make, tmp_path, signals):
    sources = make()
    stages = paper_stages.every(sources)
    with pytest.raises(FileNotFoundError, match=r"stage report: .* missing; stage judge/luna/tiny"):
        Pipeline("paper", stages, tmp_path).run([stages[-1]])


def test_stages_are_chosen_by_name_or_kind(make):
    stages = paper_stages.every(make())
    names = [stage.name for stage in stages]
    assert names == [
        *("tasks", "dedup", "responses", "train/alpacare-7b", "generate/alpacare-7b/tiny"),
        *("references/sol/tiny", "judge/luna/tiny", "choices/alpacare-7b"),
        *("rubric/alpacare-7b/rubric", "report"),
    ]

    def chosen(only: str, first: str = "") -> list[str]:
        return [stage.name for stage in main.choose(stages, only, first)]

    assert chosen("") == names
    assert chosen("train") == chosen("train/alpacare-7b") == ["train/alpacare-7b"]
    assert chosen("", "references") == names[-5:]
    with pytest.raises(sections.UsageError, match=r"no stage 'judges'; did you mean 'judge'"):
        chosen("judges")


def test_what_is_run_elsewhere_is_printed_and_taken_up(make, tmp_path, capsys, signals):
    """A laptop's part: the data goes to the devices' folder, the answers come back from there."""
    write_examples(tmp_path / "mine.jsonl", 4)
    (tmp_path / "bucket").mkdir()
    devices = {"train_launcher": "bash run.sh --", "folder": str(tmp_path / "bucket")}
    settings = paper.get_config().to_dict()["devices"] | devices
    sources = make(examples=str(tmp_path / "mine.jsonl"), devices=settings)
    sources.sets[0].live.clear()
    sources.write_items()
    stages = paper_stages.every(sources)
    names = [stage.name for stage in stages]
    assert names[:3] == ["send/mine", "send/tiny", "train/alpacare-7b"]
    assert run(sources, stages, elsewhere=True) == WAITING
    captured = capsys.readouterr()
    (command,) = captured.out.splitlines()
    folder = tmp_path / "bucket"
    assert command.startswith("bash run.sh -- python -m alpacare_jax.train --config=configs/base")
    assert f"data={folder}/inputs/mine.jsonl" in command and f"--workdir={folder}/runs" in command
    assert "generate/alpacare-7b/tiny waits: " in captured.err

    generated = next(stage for stage in stages if stage.kind == "generate")
    fetched = next(stage for stage in stages if stage.kind == "fetch")
    generated.output.parent.mkdir(parents=True)
    generated.output.write_text("[]")
    assert run(sources, [fetched]) == 0
    assert fetched.output.read_text() == "[]" and fetched.unfinished() == ""
    generated.output.write_text("[1]")
    assert "has other content now" in fetched.unfinished()


@pytest.mark.slow
def test_copies_in_a_bucket_are_known_by_their_content(make, tmp_path, monkeypatch, signals):
    pytest.importorskip("gcsfs", reason="the extra [gcs] is not installed")
    from tests.support import gcs_emulator

    write_examples(tmp_path / "mine.jsonl", 4)
    with gcs_emulator.running() as emulator:
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", emulator.url)
        monkeypatch.setenv("GOOGLE_CLOUD_PROJECT", "none")
        paths.check("gs://bucket")
        devices = paper.get_config().to_dict()["devices"] | {"folder": "gs://bucket/paper"}
        sources = make(examples=str(tmp_path / "mine.jsonl"), devices=devices)
        sent, *_ = paper_stages.every(sources)
        assert sent.name == "send/mine" and sent.unfinished() == "not started"
        assert run(sources, [sent]) == 0
        there = epath.Path("gs://bucket/paper/inputs/mine.jsonl")
        assert there.read_bytes() == (tmp_path / "mine.jsonl").read_bytes()
        assert sent.unfinished() == ""
        write_examples(tmp_path / "mine.jsonl", 5)
        assert sent.unfinished() == f"{tmp_path / 'mine.jsonl'} has other content now"


@pytest.mark.parametrize(
    "flag, code, says",
    [
        ("--help", 0, ""),
        ("--config.judges.luna.chat.modle=x", 2, "the config has no key 'modle'"),
        ("--only=tests", 1, "AlpaCare/data/; give the folder of the published files"),
    ],
)
def test_what_is_wrong_is_one_line(tmp_path, flag, code, says):
    command = ["bash", "launch/paper.sh", f"--workdir={tmp_path}/run", flag]
    env = os.environ | {"PYTHON": sys.executable}
    done = subprocess.run(command, env=env, capture_output=True, text=True)
    assert done.returncode == code and says in done.stderr
    assert done.stderr.count("\n") == (1 if code else 0), done.stderr
    assert bool(code) != ("bash launch/paper.sh --workdir=runs/paper" in done.stdout)
    assert not (tmp_path / "run").exists()


def test_one_server_is_asked_for_everything():
    settings = paper.get_config().to_dict()
    main.with_base_url(settings, "http://127.0.0.1:1/v1")
    flat = sections.flatten(settings)
    urls = [value for key, value in flat.items() if key.endswith("base_url")]
    assert urls == ["http://127.0.0.1:1/v1"] * 5  # three of datagen, two judges


# What it takes.


def test_estimates_add_up_and_what_is_unknown_stays_so():
    total = Estimate(2, 1, 3, live=0.5) + Estimate(1, 1, 1, live=0.25, hours=None)
    assert total == Estimate(3, 2, 4, live=0.75, hours=None)
    assert total.cells() == ["3 (2 to 4)", "-", "-", "$0.75", "-", "unknown", "-"]
    assert Estimate(live=0.001, batch=None).cells()[3:5] == ["< $0.01", "unknown"]


def test_every_stage_of_the_paper_is_priced(tmp_path, monkeypatch):
    """The config as it is, with test sets and published answers of the real names and sizes."""
    settings = paper.get_config().to_dict()
    settings["published"] = str(tmp_path)
    for name, given in settings["benchmarks"].items():
        items = [{"id": str(i), "instruction": f"{name} {i}"} for i in range(4)]
        given["file"] = str(tmp_path / f"{name}.jsonl")
        jsonl.write(given["file"], items)
        for source in {*given["references"].split(","), *given["imported"].split(",")}:
            folder = tmp_path / "model_outputs" / source
            folder.mkdir(parents=True, exist_ok=True)
            jsonl.write(
                folder / f"{name}.json",
                [item | {"output": "x", "generator": source} for item in items],
            )
    sources = Sources(sections.build(PaperConfig, settings), tmp_path / "run")
    found = {stage.name: stage.estimate for stage in paper_stages.every(sources)}
    assert len([name for name in found if name.startswith("train/")]) == 4
    assert found["tasks"].requests == 6191 and found["tasks"].least == 4334  # 52,002 / 12 / 0.7
    assert found["responses"].most == 52_002
    systems, orders = 4 + 10, 2
    assert found["judge/luna/icliniq"].requests == orders * systems * 4 * 4
    assert found["judge/haiku/alpaca_farm"].requests == orders * systems * 1 * 4
    for name, estimate in found.items():
        if estimate and estimate.most:
            assert estimate.live == pytest.approx(2 * estimate.batch) and estimate.live > 0, name
    assert found["train/alpacare-13b"].hours is None, "there is no plan"


# The data of the ablations.


def test_subsets_are_nested_and_as_large_as_each_other():
    records = [{"id": str(i), "topic": f"topic {i % 10}"} for i in range(100)]
    (small_set, fifty), (large, eighty) = subsets.by_size(records, [50, 80, 100])
    assert (small_set, large) == ("size-50", "size-80")
    assert fifty == eighty[:50] == records[:50]
    found = dict(subsets.by_topics(records, [10, 50, 100], random.Random(0)))
    topics = {name: {record["topic"] for record in group} for name, group in found.items()}
    assert [len(group) for group in found.values()] == [10, 10, 10]
    assert [len(some) for some in topics.values()] == [1, 5, 10]
    assert topics["topics-10"] < topics["topics-50"]
    assert dict(subsets.by_topics([{"id": "1"}], [10], random.Random(0))) == {}


# The whole of it.


class Rehearsal:
    """Runs of launch/paper.sh --size=tiny against one server, which counts and may kill."""

    def __init__(self, workdir: Path):
        self.workdir, self.server = workdir, ChatServer()
        self.server.answer = self.answer
        self.seen: Counter[str] = Counter()
        self.process: subprocess.Popen | None = None
        self.kill_at: tuple[str, int] = ("", 0)
        self.one_at_a_time = threading.Lock()

    def answer(self, body: dict) -> str:
        kind = "responses"
        if teacher.is_for_tasks(body):
            kind = "tasks"
        elif "Output (a), Output (b) or Tie" in question(body):
            kind = "judge"
        elif "criteria_met" in question(body):
            kind = "rubric"
        elif body["model"] == "gpt-6.1-sol":
            kind = "references"
        with self.one_at_a_time:
            self.seen[kind] += 1
            if self.process and self.kill_at == (kind, self.seen[kind]):
                self.process.kill()
                self.process.wait(LIMIT)
        return rehearsal.answer(body)

    def start(self, *flags: str) -> subprocess.Popen:
        given = (f"--workdir={self.workdir}", "--size=tiny", *flags)
        self.seen.clear()
        environment = {"PYTHON": sys.executable, "JAX_NUM_CPU_DEVICES": "1"} | COMPILES_QUICKLY
        return subprocess.Popen(
            ["bash", "launch/paper.sh", *given, f"--base_url={self.server.url}/v1"],
            cwd=REPOSITORY,
            env=os.environ | environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, *flags: str) -> tuple[str, str]:
        process = self.start(*flags)
        try:
            out, err = process.communicate(timeout=LIMIT)
        finally:
            process.kill()
        assert process.returncode == 0, err
        return out, err

    def killed_at(self, kind: str, request: int) -> None:
        """Runs until the server has seen so many requests of a kind; then SIGKILL."""
        self.kill_at = kind, request
        self.process = self.start()
        self.process.communicate(timeout=LIMIT)
        assert self.process.returncode == -signal.SIGKILL
        self.process = None

    def killed_in_training(self) -> None:
        """Runs until training compiles its step; then SIGKILL."""
        log = self.workdir / "logs/train-alpacare-7b.log"
        log.unlink()
        process = self.start()
        while "compiling the training step" not in (log.read_text() if log.exists() else ""):
            assert process.poll() is None, process.stderr and process.stderr.read()
            time.sleep(0.01)
        process.kill()
        process.communicate(timeout=LIMIT)


def report(workdir: Path) -> dict[str, bytes]:
    """All files of a report, but for those that hold how long the work took."""
    folder = workdir / "report"
    found = (path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    return {
        str(path): (folder / path).read_bytes()
        for path in found
        if path.name != "run.json" and path.parts[0] != "checklists"
    }


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A rehearsal that ran to its end once."""
    tried = Rehearsal(tmp_path_factory.mktemp("paper") / "run")
    with contextlib.closing(tried.server):
        tried.run()
        yield tried


@pytest.mark.slow
def test_a_dry_run_states_what_is_sent_and_sends_nothing(whole, tmp_path):
    seen = dict(whole.seen)
    assert (seen["judge"], seen["references"], seen["rubric"]) == (48, 6, 4)
    seen |= {"rubric": seen["rubric"] + 2, "choices": 1}  # with those of the model's own server
    settings = paper.get_config().to_dict()
    with rehearsal.prepare(settings, whole.workdir / "tiny", "http://127.0.0.1:9/v1"):
        sources = Sources(sections.build(PaperConfig, settings), tmp_path)  # where nothing is done
    stated = {stage.kind: stage.estimate for stage in paper_stages.every(sources)}
    for kind, number in seen.items():
        assert stated[kind].least <= number <= stated[kind].most, kind

    tried = Rehearsal(tmp_path / "new")
    with contextlib.closing(tried.server):
        table, _ = tried.run("--dry_run", "--only=train")
        assert table.splitlines()[1].split()[-4:] == ["<", "0.01", "<", "0.01"]
        assert not tried.seen and not (tmp_path / "new/data").exists(), "a dry run asks nobody"


@pytest.mark.slow
def test_killed_at_three_moments_the_report_is_the_same_to_the_byte(whole):
    """From its start again, but for what the same model has answered: that is still done."""
    before = report(whole.workdir)
    for name in ("data", "runs", "judged", "report"):
        shutil.rmtree(whole.workdir / name)
    whole.killed_at("responses", 5)
    whole.killed_in_training()
    whole.killed_at("judge", 20)
    assert not (whole.workdir / "report").exists()
    _, err = whole.run()
    assert whole.seen.keys() == {"judge"}, "what is stored is not asked for again"
    assert err.count(" is done\n") == 8, "the model answers the same: all but judge and report"
    now = report(whole.workdir)
    assert [name for name in before if now.get(name) != before[name]] == []
    assert now.keys() == before.keys() > {"report.html", "report.json"}

    _, err = whole.run()
    assert not whole.seen and err.count(" is done\n") == 10, err
    with (whole.workdir / "report/report.html").open("r+b") as page:
        page.seek(1000)
        page.write(b"\0")
    process = whole.start()
    assert (
        "report.html is damaged or was edited after stage" in process.communicate(timeout=LIMIT)[1]
    )
    assert process.returncode == 1
