"""A run's folder: its files, and which runs may resume in it."""

import dataclasses
import hashlib
import json
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest

from alpacare_jax import train
from alpacare_jax.checkpoints import checkpoint, model_folder
from alpacare_jax.model import params
from alpacare_jax.training.train_step import TrainingProgram
from tests.conftest import write_examples
from tests.support.training import (
    TINY,
    assert_same_end,
    finished_run,
    one_line_error,
    resume,
    run_config,
    saved_state,
    small_machine,
    stopped_run,
    ten_steps,
)

pytestmark = pytest.mark.usefixtures("quickly_compiled")


def test_run_json_explains_the_run(finished):
    record = json.loads((finished.workdir / "run.json").read_text())
    assert record["config"] == json.loads(json.dumps(dataclasses.asdict(finished.config)))
    assert {"git_commit", "python", "packages", "host", "start", "data"} <= record.keys()
    assert record["packages"]["jax"] == jax.__version__
    assert record["end"] >= record["start"]


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


def test_a_workdir_of_changed_data(corpus, tmp_path, capsys):
    path = write_examples(tmp_path / "train.jsonl", 40)
    config = stopped_run(corpus, tmp_path / "run", step=2, data__path=str(path))
    before = fingerprint(tmp_path / "run")
    path.write_text(path.read_text().replace("heart", "lungs", 1))
    line = one_line_error(config, tmp_path / "run", capsys)
    assert f"belongs to another run ({path} has changed)" in line
    assert fingerprint(tmp_path / "run") == before


def test_a_workdir_that_is_a_model_directory(corpus, tmp_path, capsys):
    base = shutil.copytree(corpus / "base", tmp_path / "base")
    (base / "run.json").write_text(json.dumps({"command": "convert from_hf", "end": "now"}))
    before = fingerprint(base)
    config = run_config(corpus, model__checkpoint=str(base))
    line = one_line_error(config, base, capsys)
    assert f"{base} is not a training workdir; choose another --workdir" in line
    assert fingerprint(base) == before
