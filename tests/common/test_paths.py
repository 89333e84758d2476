"""Files in folders and in buckets, and runs whose workdir, model and data lie in a bucket."""

import gzip
import json
import os
import subprocess
import sys
import types
from pathlib import Path

import jax
import numpy as np
import pytest
from etils import epath

from alpacare_jax import plan, tokenizer
from alpacare_jax.checkpoints import checkpoint, export, model_folder, saving
from common import cli, exits, jsonl, paths, provenance, records
from launch import sweep, sweep_results, sweep_runs
from tests.alpacare_jax.distributed.test_processes import start_together
from tests.conftest import COMPILES_QUICKLY, LIMIT, REPOSITORY, write_examples
from tests.support.training import (
    TINY,
    TWENTY_STEPS,
    assert_same_end,
    command,
    curve,
    finished_run,
    interrupted,
    make_corpus,
    resume,
    stopped_run,
    ten_steps,
)

pytest.importorskip("google_crc32c", reason="the extra [gcs] is not installed")
pytest.importorskip("gcsfs", reason="the extra [gcs] is not installed")
from tests.support import gcs_emulator

pytestmark = pytest.mark.usefixtures("quickly_compiled")


@pytest.fixture(scope="module")
def gcs():
    """Google Cloud Storage on this machine; processes that are started use it too."""
    with gcs_emulator.running() as emulator, pytest.MonkeyPatch.context() as patch:
        patch.setenv("STORAGE_EMULATOR_HOST", emulator.url)
        patch.setenv("TENSORSTORE_GCS_HTTP_URL", emulator.url)
        patch.setenv("GOOGLE_CLOUD_PROJECT", "none")
        paths.check("gs://bucket")
        yield emulator


@pytest.fixture
def place(gcs, request) -> epath.Path:
    """A folder of its own in the bucket."""
    return epath.Path("gs://bucket") / request.node.name.replace("[", "-").replace("]", "")


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Path:
    return make_corpus(tmp_path_factory.getbasetemp() / "corpus")


# Whole files.


def test_a_new_object_takes_the_place_of_the_old_one_at_once(gcs, place):
    begin = len(gcs.journal)
    for text in ("old, and longer than the new one", "≥ 37.5 °C\n"):
        provenance.write_text(place / "a.txt", text)
    assert [content for _, content in gcs.journal[begin:]] == [
        b"old, and longer than the new one",
        "≥ 37.5 °C\n".encode(),
    ]
    assert (place / "a.txt").read_text(encoding="utf-8") == "≥ 37.5 °C\n"
    assert gcs.names(f"{place.name}/") == [f"{place.name}/a.txt"]


# Files that grow.


def test_lines_are_in_a_folder_at_once(tmp_path):
    path = tmp_path / "lines"
    path.write_text("old\n")
    lines = jsonl.LineFile(path, ["one"])
    lines.add("two")
    assert path.read_text() == "one\ntwo\n"
    lines.sync()
    lines.close()
    assert path.read_text() == "one\ntwo\n"


def test_lines_are_in_a_bucket_when_synced_closed_or_late(place, monkeypatch):
    path, clock = place / "lines", [0.0]
    monkeypatch.setattr(jsonl.time, "monotonic", lambda: clock[0])
    lines = jsonl.LineFile(path, ["one"])
    assert path.read_text() == "one\n"
    lines.add("two")
    assert path.read_text() == "one\n"
    lines.sync()
    assert path.read_text() == "one\ntwo\n"
    lines.add("three")
    clock[0] = jsonl.UPLOAD_INTERVAL + 1
    lines.add("four")
    assert path.read_text() == "one\ntwo\nthree\nfour\n"
    lines.add("five")
    lines.close()
    assert path.read_text().endswith("four\nfive\n")


# Names and access.


def test_one_place_has_one_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "link").symlink_to("real")
    assert str(paths.absolute("link/x")) == os.path.realpath(tmp_path / "real" / "x")
    assert str(paths.absolute("gs://bucket/run")) == "gs://bucket/run"


@pytest.mark.parametrize(
    "path, error, part",
    [
        ("s3://bucket/run", ValueError, "give a local folder or gs://BUCKET"),
        ("gs://no-such-bucket/run", OSError, "gs://no-such-bucket: it does not exist; create it"),
        ("gs://private/run", OSError, "let this account read buckets and objects"),
    ],
)
def test_a_place_that_cannot_be_used_is_told_first(gcs, path, error, part):
    with pytest.raises(error, match=part):
        paths.check("", "runs/a", path)


def test_a_hub_id_is_recognised(tmp_path):
    paths.require(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"hf download org/Model-7B.v2 --local-dir hf/Mod"):
        paths.require("org/Model-7B.v2")
    for path in (tmp_path / "absent", "../absent", "a/b/c"):
        with pytest.raises(FileNotFoundError, match=r"no such file or folder: [^;]*$"):
            paths.require(path)


def test_a_neighbour_is_named(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models" / "smollm2").mkdir(parents=True)
    assert paths.absence("models/smolm2").endswith("; did you mean models/smollm2?")
    assert paths.absence("model", "file").endswith("; did you mean models?")
    assert paths.absence("configs/dpo.py").endswith(f"the project has {REPOSITORY}/configs/dpo.py")
    assert paths.absence("models/llama-7b") == "no such file or folder: models/llama-7b"


def test_without_gcsfs_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "gcsfs.retry", None)
    with pytest.raises(ValueError, match=r".\[gcs\]"):
        paths.check("gs://bucket/run")


def test_what_another_process_writes_is_seen(gcs, place):
    (place / "a").write_text("")
    assert [path.name for path in place.iterdir()] == ["a"]
    assert not (place / "b").exists()
    gcs.change(("bucket", f"{place.name}/b"), b"")
    assert [path.name for path in place.iterdir()] == ["a", "b"]
    assert (place / "b").exists()


@pytest.mark.parametrize(
    "module, given",
    [
        (tokenizer, {"checkpoint": "gs://private/base", "input": ""}),
        (tokenizer, {"checkpoint": "", "input": "gs://private/a.jsonl"}),
        (plan, {"output": "gs://private/plan.json"}),
    ],
)
def test_commands_look_at_the_bucket_first(gcs, monkeypatch, module, given):
    flags = types.SimpleNamespace(FLAGS=types.SimpleNamespace(**given))
    monkeypatch.setattr(module, "flags", flags)
    with pytest.raises(OSError, match="bucket gs://private: "):
        module.main([])


# Data.


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz"])
def test_records_in_a_bucket(place, tmp_path, name):
    local = write_examples(tmp_path / "a.jsonl", 7)
    content = local.read_bytes()
    (place / name).write_bytes(gzip.compress(content) if name.endswith("gz") else content)
    assert records.read_examples(str(place / name)) == records.read_examples(local)
    if not name.endswith("gz"):
        assert provenance.sha256(place / name) == provenance.sha256(local)
    with pytest.raises(FileNotFoundError, match=f"no such file: {place}/b.jsonl"):
        records.read_examples(place / "b.jsonl")
    (place / "bad.jsonl").write_text("{}\n")
    with pytest.raises(ValueError, match=f"{place}/bad.jsonl:1: field 'instruction' is missing"):
        records.read_examples(place / "bad.jsonl")


# Runs.


def upload(source: Path, target: epath.Path) -> None:
    """As `gcloud storage cp --recursive` does it."""
    for file in filter(Path.is_file, source.rglob("*")):
        (target / file.relative_to(source)).write_bytes(file.read_bytes())


@pytest.mark.slow
def test_a_run_in_a_bucket_stops_and_goes_on(gcs, place, corpus):
    config = stopped_run(corpus, place, step=5)
    assert checkpoint.find_step(place, "latest") == 5
    resume(config, place)
    assert_same_end(place, finished_run(corpus).workdir, 10)


def test_a_sweep_in_a_bucket(place, tmp_path, monkeypatch):
    (run,) = sweep_runs.make("sweep", lambda add: add(a=2), {"a": 1}, {}, place)
    assert run.flags[-1] == f"--workdir={place}/a=2"
    assert sweep.row(run)["state"] == "not started" and not sweep.is_finished(run)
    for end in (None, "2026-11-23"):
        (run.workdir / "run.json").write_text(json.dumps({"config": {"a": 2}, "end": end}))
        (run.workdir / "metrics.jsonl").write_text('{"step": 3, "loss": 1.5, "seconds": 9}\n')
        assert sweep.is_finished(run) is bool(end)
    monkeypatch.setattr(sweep, "Runner", lambda: types.SimpleNamespace(stop_requested=False))
    assert sweep.run_all({0: run}, "config.py", "") == {}, "nothing is started"
    rows = [sweep_results.row(run.name, run.workdir)]
    sweep.write_results(place, rows, sweep="sweep")
    sweep.write_results(tmp_path, rows, sweep="sweep")
    assert (place / "sweep.json").read_text() == (tmp_path / "sweep.json").read_text()
    assert json.loads((place / "sweep.json").read_text())["runs"][0]["state"] == "finished"


@pytest.mark.slow
def test_whatever_moment_a_kill_comes_the_curve_stays(gcs, place, corpus, capsys):
    """The bucket is put back to what it held after writes of a run that saves at 3, 6, 9, 10."""
    config, begin = ten_steps(corpus, checkpoint__every_steps=3), len(gcs.journal)
    resume(config, place)
    reference = finished_run(corpus).workdir
    assert_same_end(place, reference, 10)
    journal, objects = gcs.journal[begin:], gcs.objects
    gcs.objects = {}
    whole: list[int] = []  # steps whose save is complete
    moments: dict[str, int] = {}  # moments to go on from: what was written last
    for number, ((_, name), content) in enumerate(journal):
        gcs.change(("bucket", name), content)
        number_of_step, *inside = name.partition(f"{place.name}/checkpoints/")[2].split("/")
        step = int(number_of_step) if inside else 0
        if inside == ["manifest.json"]:
            whole = [*whole, step] if content is not None else [s for s in whole if s != step]
            assert checkpoint.latest_step(place) == whole[-1]
            checkpoint.load_params(place, TINY, step="latest")
        elif number % 8 == 0:  # each takes a while
            assert checkpoint.latest_step(place) == (whole[-1] if whole else None)
        if step == 6 and content is not None:
            moments["/".join(inside)] = number
        if content is None:
            moments.setdefault("deleted", number)
    assert {"commit_success.txt", "manifest.json", "deleted"} <= moments.keys()
    for last in ("params/manifest.ocdbt", "commit_success.txt", "deleted"):
        gcs.objects = {}
        for key, content in journal[: moments[last] + 1]:
            gcs.change(key, content)
        before = checkpoint.latest_step(place)
        capsys.readouterr()
        resume(config, place)
        assert f"resuming from step {before}" in capsys.readouterr().err
        assert_same_end(place, reference, 10)
    gcs.objects = objects


@pytest.fixture
def outage(gcs, monkeypatch):
    """Begins one after so many changes; the libraries try again, without their pauses."""

    async def no_pause(seconds):
        pass

    def begin(status: int, changes: int) -> None:
        gcs.outage = (status, len(gcs.journal) + changes)

    monkeypatch.setattr("gcsfs.retry.asyncio", types.SimpleNamespace(sleep=no_pause))
    yield begin
    gcs.outage = None


def test_an_outage_in_the_middle_of_a_run(gcs, place, corpus, outage, capsys):
    config = ten_steps(corpus, checkpoint__every_steps=3)
    outage(503, 5)  # when metrics.jsonl is put, before the first save
    assert cli.guard(lambda _: resume(config, place), [], debug=False) == exits.TEMPORARY
    line = capsys.readouterr().err.splitlines()[-1]
    expected = "a bucket does not respond (status 503, 503); rerun the command once it does"
    assert line == f"error: {expected}"
    gcs.outage = None
    assert checkpoint.latest_step(place) is None
    resume(config, place)
    assert_same_end(place, finished_run(corpus).workdir, 10)


def test_an_outage_in_the_middle_of_a_save(gcs, place):
    """Orbax's own threads are left out: they would wait for minutes after this test."""

    def result():
        raise paths.outages()[0]({"code": 503, "message": "gone"})

    saved = saving.TrainingCheckpoints(place, saving.CheckpointConfig(0, 1), 0)
    saved._pending = (3, types.SimpleNamespace(result=result))
    message = (
        r"^step 3 not saved \(gone, 503\); .* None; once the bucket responds, rerun the command$"
    )
    with pytest.raises(OSError, match=message):
        saved.close()


def test_a_model_that_was_copied_into_a_bucket(gcs, place, corpus, tmp_path):
    upload(corpus / "base", place / "base")
    config = model_folder.read_config(place / "base")
    ours = checkpoint.load_params(place / "base", config)
    theirs = checkpoint.load_params(corpus / "base", config)
    np.testing.assert_array_equal(ours["embed_tokens"], theirs["embed_tokens"])
    model_folder.load_tokenizer(place / "base")
    for source, target in ((place, "bucket"), (corpus, "folder")):
        export.to_hf(source / "base", tmp_path / target, "best", "")
    name = "model.safetensors"
    assert (tmp_path / "bucket" / name).read_bytes() == (tmp_path / "folder" / name).read_bytes()


def run(*args: str) -> subprocess.CompletedProcess:
    env = os.environ | COMPILES_QUICKLY | {"JAX_NUM_CPU_DEVICES": "1"}
    args = [sys.executable, "-m", *args]
    return subprocess.run(args, cwd=REPOSITORY, env=env, capture_output=True, text=True)


def test_nothing_converts_into_a_bucket():
    done = run("alpacare_jax.convert", "from_hf", "--source=x", "--target=gs://bucket/x")
    assert done.returncode == 2
    assert "convert to a folder, then copy it" in done.stderr


@pytest.mark.slow
def test_two_processes_killed_restarted_and_generate_with_all_in_a_bucket(
    gcs, place, corpus, tmp_path
):
    """Model, data and workdir of two processes are in a bucket. One is killed, and they start again
    by themselves. The result is bit for bit that of folders and no kill, answers included."""
    upload(corpus / "base", place / "base")
    for name in ("train.jsonl", "eval.jsonl"):
        (place / name).write_bytes((corpus / name).read_bytes())
    workdir, local = place / "run", tmp_path / "local"
    log = tmp_path / "log"
    steps = TWENTY_STEPS | {"train__epochs": 2}
    killed = interrupted(
        command(place, workdir, **steps, profile="9,10"), tmp_path / "note", "1 8 SIGKILL 0"
    )
    for restarts, args in enumerate((command(corpus, local, **steps), killed)):
        process = start_together(2, 2, args, log, restarts)
        assert process.wait(timeout=LIMIT) == 0, log.read_text()
    assert "restarting, 1 of at most 1 times" in log.read_text()
    assert "resuming from step" in log.read_text()
    assert len(curve(local)) == 11
    assert curve(workdir) == curve(local)
    assert json.loads((workdir / "run.json").read_text())["end"]
    assert any(name.endswith(".xplane.pb") for name in gcs.names(f"{place.name}/run/profile"))
    outputs = []
    for folder, data in ((workdir, place), (local, corpus)):
        output = folder / "answers.jsonl"
        done = run(
            *("alpacare_jax.generate", f"--checkpoint={folder}", f"--input={data}/eval.jsonl"),
            *(f"--output={output}", "--max_new_tokens=8", "--generator=tiny", "--max_length=512"),
        )
        assert done.returncode == 0, done.stderr
        outputs.append(output.read_text())
    assert outputs[0] == outputs[1]
    assert gcs.names(f"{place.name}/run/answers") == [
        f"{place.name}/run/answers.jsonl",
        f"{place.name}/run/answers.jsonl.run.json",
    ]
    one, other = (
        checkpoint.load_params(folder, TINY, step="latest") for folder in (workdir, local)
    )
    jax.tree.map(np.testing.assert_array_equal, one, other)
