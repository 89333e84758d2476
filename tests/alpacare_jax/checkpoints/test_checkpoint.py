"""Saving and finding checkpoints, and what a run reports when its disk is full."""

import dataclasses
import resource
import shutil
from collections import namedtuple
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alpacare_jax.checkpoints import checkpoint
from alpacare_jax.checkpoints.saving import CheckpointConfig, TrainingCheckpoints
from alpacare_jax.model.params import init
from tests.conftest import make_model
from tests.support.training import (
    TINY,
    assert_same_end,
    command,
    finished_run,
    lines,
    one_line_error,
    resume,
    run_config,
    start,
    ten_steps,
)

pytestmark = pytest.mark.usefixtures("quickly_compiled")


def state(value: float) -> dict:
    return {"params": {"w": jnp.full((3, 4), value)}, "opt_state": {"m": jnp.full(4, -value)}}


def open_checkpoints(folder: Path, keep: int = 1) -> TrainingCheckpoints:
    folder.mkdir(exist_ok=True)
    first = checkpoint.latest_step(folder) or 0
    return TrainingCheckpoints(folder, CheckpointConfig(every_steps=1, keep=keep), first)


def save(folder: Path, eval_losses: dict[int, float | None], keep: int = 1) -> None:
    saved = open_checkpoints(folder, keep)
    for step, loss in eval_losses.items():
        saved.save(step, state(step), {} if loss is None else {"eval_loss": loss})
    saved.close()


def steps_on_disk(folder: Path) -> list[int]:
    return sorted(int(path.name) for path in (folder / "checkpoints").iterdir())


# Which checkpoints are kept and found.


def test_what_is_saved_comes_back(tmp_path):
    save(tmp_path, {3: None})
    saved = open_checkpoints(tmp_path)
    assert saved.latest == 3
    like = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state(0)
    )
    restored = saved.restore(3, like)
    saved.close()
    assert restored.keys() == {"params", "opt_state"}
    np.testing.assert_array_equal(restored["params"]["w"], np.full((3, 4), 3.0))
    np.testing.assert_array_equal(restored["opt_state"]["m"], np.full(4, -3.0))


def test_a_save_that_failed_is_told_once_and_closing_again_is_harmless(tmp_path):
    saved = open_checkpoints(tmp_path)
    saved.save(1, state(1), {})
    saved.wait()

    class Failing:
        def result(self):
            raise ValueError("No space left on device")

    saved._pending = (2, Failing())
    with pytest.raises(
        OSError, match=r"step 2 not saved \(No space.*last complete checkpoint is step 1"
    ):
        saved.close()
    saved.close()


def test_relative_folders(tmp_path, monkeypatch):
    """Orbax and tensorstore require absolute paths without `..`."""
    (tmp_path / "inside").mkdir()
    monkeypatch.chdir(tmp_path / "inside")
    save(Path("../run"), {3: None})
    assert checkpoint.find_step("../run") == checkpoint.latest_step(tmp_path / "run") == 3
    model = make_model(Path("../model"), TINY)
    stored = checkpoint.load_params(tmp_path / "model", TINY)
    jax.tree.map(np.testing.assert_array_equal, checkpoint.load_params(model, TINY), stored)


def test_saving_leaves_the_state_alone(tmp_path):
    saved, mine = open_checkpoints(tmp_path), state(1)
    saved.save(1, mine, {"eval_loss": 2.0})
    saved.close()
    assert mine.keys() == {"params", "opt_state"}


@pytest.mark.parametrize(
    "losses, keep, kept, best",
    [
        ({2: None, 4: None, 6: None}, 1, [6], 6),
        ({2: None, 4: None, 6: None}, 2, [4, 6], 6),
        ({2: 3.0, 4: 1.0, 6: 2.0, 8: 2.5}, 1, [4, 8], 4),
        ({2: 3.0, 4: 2.0, 6: 1.0}, 1, [6], 6),
        ({2: 1.0, 4: None, 6: None, 8: 2.0, 10: None}, 2, [2, 8, 10], 2),
        ({2: 1.0, 4: 1.0}, 2, [2, 4], 4),
    ],
)
def test_the_latest_and_the_best_are_kept(tmp_path, losses, keep, kept, best):
    save(tmp_path, losses, keep)
    assert steps_on_disk(tmp_path) == kept
    assert checkpoint.find_step(tmp_path, "best") == best
    assert checkpoint.find_step(tmp_path, "latest") == checkpoint.latest_step(tmp_path) == kept[-1]
    assert checkpoint.find_step(tmp_path, str(kept[0])) == kept[0]


def test_restarts_do_not_pile_up_checkpoints(tmp_path):
    save(tmp_path, {2: None, 4: None})
    save(tmp_path, {6: None})
    assert steps_on_disk(tmp_path) == [6]
    save(tmp_path, {8: 1.0})
    save(tmp_path, {10: 2.0})
    save(tmp_path, {12: None})
    assert steps_on_disk(tmp_path) == [8, 12]


def test_steps_that_are_not_there(tmp_path):
    assert checkpoint.latest_step(tmp_path) is None
    with pytest.raises(FileNotFoundError, match="has no complete checkpoint"):
        checkpoint.find_step(tmp_path)
    save(tmp_path, {2: None})
    for step in ("3", "first", "-1"):
        with pytest.raises(ValueError, match=r"no step .* choose from \[2\], best, latest"):
            checkpoint.find_step(tmp_path, step)


@pytest.mark.parametrize("changes", [{"every_steps": -1}, {"keep": 0}])
def test_bad_settings(changes):
    with pytest.raises(ValueError, match=r"every_steps must be at least 0, checkpoint\.keep at"):
        dataclasses.replace(CheckpointConfig(every_steps=0, keep=1), **changes)


# Model directories.


def test_weights_come_in_the_dtype_and_place_asked_for(corpus):
    one = checkpoint.load_params(corpus / "base", TINY)
    assert {leaf.dtype for leaf in jax.tree.leaves(one)} == {jnp.dtype("float32")}
    half = checkpoint.load_params(corpus / "base", TINY, dtype=jnp.bfloat16)
    for got, want in zip(jax.tree.leaves(half), jax.tree.leaves(one), strict=True):
        np.testing.assert_array_equal(got, want.astype(jnp.bfloat16))


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"vocab_size": 400}, r"(embed_tokens|lm_head) has shape \(512, 64\), .* requires \(400"),
        ({"tie_word_embeddings": True}, "has an extra weight lm_head: its config.json belongs to"),
        ({"attention_bias": True}, r"lacks weight layers\.self_attn\.\w_bias: its config\.json"),
    ],
)
def test_weights_of_another_model_are_named(corpus, changes, message):
    with pytest.raises(ValueError, match=message):
        checkpoint.load_params(corpus / "base", dataclasses.replace(TINY, **changes))


def test_stored_dtypes_are_kept(tmp_path):
    config = dataclasses.replace(TINY, num_hidden_layers=1)
    params = jax.tree.map(lambda x: x.astype(jnp.bfloat16), init(config, jax.random.key(0)))
    make_model(tmp_path / "half", config, params)
    stored = checkpoint.load_params(tmp_path / "half", config)
    assert {leaf.dtype for leaf in jax.tree.leaves(stored)} == {jnp.dtype("bfloat16")}
    jax.tree.map(np.testing.assert_array_equal, stored, params)


def test_a_base_model_without_weights(corpus, tmp_path, capsys):
    base = shutil.copytree(corpus / "base", tmp_path / "base")
    shutil.rmtree(base / "checkpoints")
    config = run_config(corpus, model__checkpoint=str(base))
    line = one_line_error(config, tmp_path / "run", capsys)
    assert "base has no complete checkpoint" in line
    assert not (tmp_path / "run").exists()


# A disk that is full.

Usage = namedtuple("Usage", "total used free")


def test_no_room_for_a_checkpoint(corpus, stopped, tmp_path, capsys):
    workdir = shutil.copytree(stopped, tmp_path / "run")
    config = ten_steps(corpus, checkpoint__every_steps=3)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda path: Usage(10**9, 10**9 - 1000, 1000))
        line = one_line_error(config, workdir, capsys)
    for part in ("step 6 not saved", "last complete checkpoint is step 4", "free space and rerun"):
        assert part in line
    assert steps_on_disk(workdir) == [4]
    resume(config, workdir)
    assert_same_end(workdir, finished_run(corpus).workdir, 10)


def test_a_disk_that_fills_up_in_the_middle_of_a_save(corpus, stopped, tmp_path, capsys):
    """Under a limit that checkpoint files do not fit into."""
    workdir = shutil.copytree(stopped, tmp_path / "run")
    config = ten_steps(corpus, checkpoint__every_steps=1)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, limits[1]))
    try:
        line = one_line_error(config, workdir, capsys)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    for part in ("step 5 not saved (", "last complete checkpoint is step 4", "free disk space"):
        assert part in line
    assert checkpoint.find_step(workdir) == 4
    checkpoint.load_params(workdir, TINY)
    resume(config, workdir)
    assert_same_end(workdir, finished_run(corpus).workdir, 10)


@pytest.mark.slow
def test_the_command_on_a_disk_that_fills_up(corpus, stopped, tmp_path):
    workdir = shutil.copytree(stopped, tmp_path / "run")
    config = ten_steps(corpus)
    flat = {
        f"{section}.{key}": value
        for section in ("model", "data", "train")
        for key, value in vars(getattr(config, section)).items()
    }
    args = command(corpus, workdir, **flat, checkpoint__every_steps=1)
    process = start(["bash", "-c", 'ulimit -f 200 && exec "$@"', "bash", *args])  # 200 KiB a file
    _, err = process.communicate()
    assert process.returncode == 1, err
    (line,) = (line for line in err.splitlines() if "error" in line.lower())
    assert line.startswith("error: step 5 not saved")
    assert "the last complete checkpoint is step 4" in line
    assert "free disk space and rerun the command" in line
    assert "Traceback" not in err
    assert checkpoint.find_step(workdir) == 4
    checkpoint.load_params(workdir, TINY)
    resume(config, workdir)
    assert lines(workdir)[-1]["step"] == 10
    assert checkpoint.find_step(workdir) == 10
