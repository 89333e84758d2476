"""A run's folder: its files, and which runs may resume in it."""

import dataclasses
import functools
import hashlib
import json
import operator
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
from etils import epath

from alpacare_jax import train
from alpacare_jax.checkpoints import checkpoint, identity, model_folder
from alpacare_jax.model import params
from alpacare_jax.training import workdir as workdir_lib
from alpacare_jax.training.train_step import TrainingProgram
from common import provenance
from tests.support.training import (
    TINY,
    assert_same_end,
    finished_run,
    one_line_error,
    resume,
    run_config,
    saved_state,
    small_machine,
    ten_steps,
)

CONTENT = {"config.data", "config.train", "inputs.model", "starts.0"}

pytestmark = pytest.mark.usefixtures("quickly_compiled")


def test_run_json_explains_the_run(finished):
    record = json.loads((finished.workdir / "run.json").read_text())
    assert record["config"] == json.loads(json.dumps(dataclasses.asdict(finished.config)))
    assert {"git_commit", "python", "packages", "host", "start", "inputs"} <= record.keys()
    assert record["packages"]["jax"] == jax.__version__
    assert record["end"] >= record["start"]
    assert record["inputs"] == {
        "model": identity.of_model(finished.config.model.checkpoint, 0),
        "data.path": provenance.sha256(finished.config.data.path),
        "data.eval_path": "",
    }
    (start,) = record["starts"]
    assert (start["time"], start["step"], start["settings"]) == (record["start"], 0, {})
    assert all(start[key] == record[key] for key in ("git_commit", "python", "packages", "host"))


def test_the_workdir_is_a_model_directory(finished):
    shape = model_folder.read_config(finished.workdir)
    assert shape == TINY
    model_folder.load_tokenizer(finished.workdir)
    weights = params.flatten(checkpoint.load_params(finished.workdir, shape))
    state = saved_state(finished.workdir, 10)
    for name, array in weights.items():
        key = "['params']" + "".join(f"['{part}']" for part in name.split("."))
        np.testing.assert_array_equal(array, state[key])


def test_a_finished_run_does_nothing_more(finished, capsys):
    before = (finished.workdir / "metrics.jsonl").read_bytes()
    with small_machine() as patch:
        patch.setattr(TrainingProgram, "make_steps", None)
        train.run(finished.config, finished.workdir)
    assert "is finished: 10 steps" in capsys.readouterr().err
    ended = json.loads((finished.workdir / "run.json").read_text())
    (finished.workdir / "run.json").write_text(json.dumps(ended | {"end": None}))
    with small_machine():  # killed between its last save and the note of its end
        train.run(finished.config, finished.workdir)
    again = json.loads((finished.workdir / "run.json").read_text())
    assert again["end"] and again | {"end": None} == ended | {"end": None}
    assert (finished.workdir / "metrics.jsonl").read_bytes() == before


def fingerprint(folder: Path) -> dict[str, str]:
    """Every file of a folder by its digest."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file()
    }


@pytest.mark.parametrize(
    "changes, difference",
    [
        ({"optimizer.learning_rate": 2e-3}, "optimizer.learning_rate: 0.001 before, 0.002 now"),
        ({"train.epochs": 3}, "train.epochs: 2 before, 3 now"),
        ({"train.seed": 7}, "train.seed: 42 before, 7 now"),
        ({"data.max_length": 500}, "data.max_length: 512 before, 500 now"),
    ],
)
def test_a_workdir_of_another_config(corpus, stopped, capsys, changes, difference):
    before = fingerprint(stopped)
    line = one_line_error(ten_steps(corpus, **changes), stopped, capsys)
    assert f"{stopped} belongs to another run ({difference})" in line
    assert "choose another --workdir or delete it" in line
    assert fingerprint(stopped) == before


def test_settings_that_change_no_number_may_change(corpus, stopped, tmp_path):
    workdir = shutil.copytree(stopped, tmp_path / "run")
    config = ten_steps(corpus, train__log_every=5, checkpoint__keep=3, train__tensorboard=True)
    resume(config, workdir)
    assert_same_end(workdir, finished_run(corpus).workdir, 10)


def own_inputs(corpus: Path, folder: Path) -> dict[str, str]:
    """Settings of a run whose base model and data are a copy in `folder`."""
    base = shutil.copytree(corpus / "base", folder / "base")
    data = shutil.copyfile(corpus / "train.jsonl", folder / "train.jsonl")
    return {"model__checkpoint": str(base), "data__path": str(data)}


@pytest.mark.parametrize(
    "changed, difference",
    [
        ("data", "content of data.path: '"),
        ("weights", "content of model.weights: '"),
        ("tokenizer.json", "content of model.tokenizer.json: '"),
        ("tokenizer_config.json", "content of model.tokenizer_config.json: '"),
        ("config.json", "content of model.config.json: '"),
        ("a copy", "content of {run}/tokenizer_config.json: '"),
    ],
)
def test_a_workdir_of_changed_inputs(corpus, stopped, tmp_path, capsys, changed, difference):
    workdir = shutil.copytree(stopped, tmp_path / "run")
    inputs = own_inputs(corpus, tmp_path)
    base, data = tmp_path / "base", tmp_path / "train.jsonl"
    if changed == "data":
        data.write_text(data.read_text().replace("heart", "lungs", 1))
    elif changed == "weights":
        shutil.rmtree(base / "checkpoints")
        checkpoint.save_params(base, params.init(TINY, jax.random.key(1)))
    else:
        path = workdir / "tokenizer_config.json" if changed == "a copy" else base / changed
        path.write_text(path.read_text() + "\n")
    before = fingerprint(workdir)
    line = one_line_error(ten_steps(corpus, **inputs), workdir, capsys)
    assert f"{workdir} belongs to another run ({difference.format(run=workdir)}" in line
    assert fingerprint(workdir) == before


def test_inputs_may_move_and_every_start_is_recorded(corpus, stopped, tmp_path, capsys):
    workdir = shutil.copytree(stopped, tmp_path / "run")
    record = json.loads((workdir / "run.json").read_text())
    record["starts"][0]["packages"]["jax"] = "0.1.2"
    (workdir / "run.json").write_text(json.dumps(record))
    config = ten_steps(corpus, **own_inputs(corpus, tmp_path))
    resume(config, workdir)
    assert_same_end(workdir, finished_run(corpus).workdir, 10)
    ended = json.loads((workdir / "run.json").read_text())
    assert ended["config"] == record["config"]
    first, second = ended["starts"]
    assert first == record["starts"][0]
    assert (second["step"], second["packages"]) == (4, record["packages"])
    assert second["settings"] == {
        "checkpoint.every_steps": config.checkpoint.every_steps,
        "model.checkpoint": config.model.checkpoint,
        "data.path": config.data.path,
    }
    assert second["time"] >= first["time"]


def test_a_start_says_what_differs_from_the_one_before(corpus, stopped, tmp_path, capsys):
    workdir = shutil.copytree(stopped, tmp_path / "run")
    record = json.loads((workdir / "run.json").read_text())
    config = ten_steps(corpus, train__log_every=5, checkpoint__every_steps=4)
    run = json.loads(json.dumps(record | {"config": dataclasses.asdict(config)}))
    run |= {"start": "later", "host": "other", "packages": record["packages"] | {"jax": "0.99"}}
    workdir_lib.make(workdir, config, run, 4)
    jax_before, host = record["packages"]["jax"], record["host"]
    assert capsys.readouterr().err == (
        f"since the start before: train.log_every 2 before, 5 now, jax {jax_before} before, "
        f"0.99 now, host {host} before, other now\n"
    )
    workdir_lib.make(workdir, config, run, 6)
    assert capsys.readouterr().err == ""
    starts = json.loads((workdir / "run.json").read_text())["starts"]
    assert [start["step"] for start in starts] == [0, 4, 6]


@pytest.mark.parametrize("content", [None, b"", b'{"config": {"model": {"che'])
def test_a_lost_or_damaged_run_json_is_named_before_training(
    corpus, stopped, tmp_path, capsys, content
):
    workdir = shutil.copytree(stopped, tmp_path / "run")
    if content is None:
        (workdir / "run.json").unlink()
    else:
        (workdir / "run.json").write_bytes(content)
    before = fingerprint(workdir)
    line = one_line_error(ten_steps(corpus), workdir, capsys)
    assert "run.json" in line and "restore it from a copy" in line
    assert fingerprint(workdir) == before


def test_a_workdir_that_is_a_model_directory(corpus, tmp_path, capsys):
    base = shutil.copytree(corpus / "base", tmp_path / "base")
    (base / "run.json").write_text(json.dumps({"command": "convert from_hf", "end": "now"}))
    before = fingerprint(base)
    config = run_config(corpus, model__checkpoint=str(base))
    line = one_line_error(config, base, capsys)
    assert f"{base} is not a training workdir" in line and "choose another --workdir" in line
    assert fingerprint(base) == before


def test_a_folder_of_another_model_is_not_overwritten(corpus, tmp_path, capsys):
    (tmp_path / "hf").mkdir()
    (tmp_path / "hf" / "config.json").write_text("{}")
    before = fingerprint(tmp_path / "hf")
    line = one_line_error(run_config(corpus), tmp_path / "hf", capsys)
    assert "has config.json but no run.json" in line and "choose another --workdir" in line
    assert fingerprint(tmp_path / "hf") == before


def test_a_damaged_part_of_run_json_is_named_or_changes_nothing(corpus, stopped, tmp_path):
    workdir = epath.Path(shutil.copytree(stopped, tmp_path / "run"))
    config = ten_steps(corpus)
    described, text = workdir_lib.describe(config), (workdir / "run.json").read_text()
    record = json.loads(text)
    refused = set()
    for name in (*record, *CONTENT):
        for value in (None, [], {}, "x", 1, [1], {"a": 1}, ...):
            damaged = json.loads(text)
            *outer, last = (int(key) if key.isdecimal() else key for key in name.split("."))
            place = functools.reduce(operator.getitem, outer, damaged)
            if value is ...:
                del place[last]
            else:
                place[last] = value
            (workdir / "run.json").write_text(json.dumps(damaged))
            try:
                workdir_lib.check(workdir, described)
            except ValueError:
                refused.add(name)
                continue
            workdir_lib.make(workdir, config, described, 4)
            workdir_lib.finish(workdir)
    assert refused == {"config", "inputs", "packages", "starts", *CONTENT}
