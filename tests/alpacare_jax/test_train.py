"""The training run: its restarts on any devices, traces and signals."""

import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from alpacare_jax import train
from alpacare_jax.checkpoints import checkpoint, saving
from alpacare_jax.data.batches import Batcher
from alpacare_jax.distributed import processes
from alpacare_jax.training import metrics
from tests.conftest import COMPILES_QUICKLY, REPOSITORY
from tests.support import commands
from tests.support.training import (
    TINY,
    TWENTY_STEPS,
    after_write,
    assert_same_end,
    command,
    compile_once,
    finished_run,
    interrupted,
    lines,
    one_line_error,
    resume,
    small_machine,
    start,
    stopped_run,
    ten_steps,
    wait_for_step,
)

pytestmark = pytest.mark.usefixtures("quickly_compiled")


def test_loss_falls_and_the_best_is_kept(finished):
    held_out = {line["step"]: line["eval_loss"] for line in lines(finished.workdir)[::2]}
    assert held_out[10] < held_out[0] - 0.1
    assert list(held_out.values()) == sorted(held_out.values(), reverse=True)
    assert checkpoint.find_step(finished.workdir, "best") == min(held_out, key=held_out.get)
    kept = sorted(path.name for path in (finished.workdir / "checkpoints").iterdir())
    assert kept == ["10"]


def test_a_trace_of_the_steps_asked_for(corpus, tmp_path):
    config = dataclasses.replace(ten_steps(corpus), profile="3,4")
    with small_machine() as patch:
        compile_once(patch)
        train.run(config, tmp_path)
    traces = list((tmp_path / "profile").rglob("*.xplane.pb"))
    assert len(traces) == 1 and traces[0].stat().st_size > 1000
    assert_same_end(tmp_path, finished_run(corpus).workdir, 10)


@pytest.mark.parametrize(("profile", "traces"), [("2,6", 0), ("9,20", 1)])
def test_a_trace_that_the_run_does_not_hold_whole(corpus, finished, tmp_path, profile, traces):
    """Begun before the restart, it is left out; it ends with the run."""
    config = stopped_run(corpus, tmp_path, step=4)
    resume(dataclasses.replace(config, profile=profile), tmp_path)
    assert len(list(tmp_path.rglob("*.xplane.pb"))) == traces
    assert_same_end(tmp_path, finished.workdir, 10)


def test_five_steps_and_five_more_are_ten_bit_for_bit(corpus, finished, tmp_path, capsys):
    config = stopped_run(corpus, tmp_path, step=5)
    message = "stopped by SIGTERM; checkpoint saved at step 5; rerun the same command to resume"
    assert message in capsys.readouterr().err
    assert [line["step"] for line in lines(tmp_path)] == [0, 1, 2, 3, 4, 5]
    assert json.loads((tmp_path / "run.json").read_text())["end"] is None
    stale, listed = iter([[]]), checkpoint.saved_steps  # as a host's view of a shared folder may be

    def saved_steps(folder):
        return next(stale, listed(folder)) if folder.parent == tmp_path else listed(folder)

    with small_machine() as patch:
        compile_once(patch)
        patch.setattr(checkpoint, "saved_steps", saved_steps)
        patch.setattr(processes, "broadcast_from_process_0", lambda value: value or 5.0)
        train.run(config, tmp_path)
    err = capsys.readouterr().err
    assert "resuming from step 5" in err, "all start where the first process does"
    assert "step 6/10" in err
    assert "step 5/10" not in err
    assert_same_end(tmp_path, finished.workdir, 10)


class Killed(BaseException):
    """Leaves a run as SIGKILL does: nothing catches it."""


@pytest.mark.parametrize("killed_after, resumed_from", [(2, 0), (7, 6)])
def test_what_was_logged_beyond_the_checkpoint_is_logged_anew(
    corpus, finished, tmp_path, capsys, killed_after, resumed_from
):
    config = ten_steps(corpus, checkpoint__every_steps=3)

    def kill():
        assert lines(tmp_path)[-1]["step"] == killed_after, "nothing waits in a buffer"
        raise Killed

    with small_machine() as patch, pytest.raises(Killed):
        compile_once(patch)
        after_write(patch, killed_after, kill)
        train.run(config, tmp_path)
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('{"step": 8, "lo')  # the kill cut a line short
    capsys.readouterr()
    resume(config, tmp_path)
    assert (f"resuming from step {resumed_from}" in capsys.readouterr().err) == bool(resumed_from)
    assert_same_end(tmp_path, finished.workdir, 10)


def test_what_a_killed_save_leaves_is_not_used(corpus, finished, tmp_path, capsys):
    config = stopped_run(corpus, tmp_path, step=4)
    checkpoints = tmp_path / "checkpoints"
    half = checkpoints / "6.orbax-checkpoint-tmp"
    shutil.copytree(checkpoints / "4", half)
    shutil.rmtree(half / "opt_state")
    (half / "params" / "manifest.ocdbt").write_bytes(b"")
    assert checkpoint.find_step(tmp_path, "latest") == 4
    capsys.readouterr()
    resume(config, tmp_path)
    assert "resuming from step 4" in capsys.readouterr().err
    assert not half.exists()
    assert_same_end(tmp_path, finished.workdir, 10)


def test_an_error_does_not_lose_the_save_that_is_under_way(corpus, finished, tmp_path):
    config = ten_steps(corpus, checkpoint__every_steps=1)
    batch = Batcher.batch

    def failing(self, step):
        if step == 6:  # asked for while step 6 runs and the state after step 5 is written
            raise OSError("the data are gone")
        return batch(self, step)

    closed, close = [], metrics.MetricsWriter.close
    close_saves, end_watch = saving.TrainingCheckpoints.close, processes.Watchdog.__exit__
    order = []
    with small_machine() as patch, pytest.raises(OSError, match="the data are gone"):
        compile_once(patch)
        patch.setattr(Batcher, "batch", failing)
        patch.setattr(metrics.MetricsWriter, "close", lambda w: (closed.append(w), close(w)))
        patch.setattr(
            saving.TrainingCheckpoints,
            "close",
            lambda s: (order.append("save"), close_saves(s)),
        )
        patch.setattr(
            processes.Watchdog, "__exit__", lambda w, *e: order.append("watch") or end_watch(w)
        )
        train.run(config, tmp_path)
    assert len(closed) == 1, "what TensorBoard still holds is written"
    assert order == ["save", "watch"], "other processes may never come to this save"
    assert checkpoint.latest_step(tmp_path) == 5
    resume(config, tmp_path)
    assert_same_end(tmp_path, finished.workdir, 10)


def losses(workdir: Path) -> list[float]:
    return [line.get("loss", 0) for line in lines(workdir)]


@pytest.mark.slow
def test_a_run_resumes_on_other_devices(corpus, finished, tmp_path, capsys):
    config = stopped_run(corpus, tmp_path, step=5)
    with small_machine() as patch:
        patch.setattr(jax, "device_count", lambda: 8)
        train.run(config, tmp_path)
    warning = "6 examples per step do not fill 8 devices; use a train.batch_size of "
    assert warning in capsys.readouterr().err
    np.testing.assert_allclose(losses(tmp_path), losses(finished.workdir), rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("before", "after"),
    [
        ({"optimizer__name": "adafactor"}, {"optimizer__name": "adafactor"}),
        ({"optimizer__offload": True}, {"optimizer__offload": True}),
        ({}, {"optimizer__offload": True}),
    ],
    ids=str,
)
def test_other_moments_resume_on_other_devices(corpus, tmp_path, before, after):
    one_shape = {"train__microbatch_tokens": 512}
    stopped_run(corpus, tmp_path / "stopped", step=5, **before, **one_shape)
    config = ten_steps(corpus, checkpoint__every_steps=5, **after, **one_shape, sharding__tensor=2)
    with small_machine() as patch:
        compile_once(patch)
        patch.setattr(jax, "device_count", lambda: 4)
        train.run(config, tmp_path / "stopped")
        patch.setattr(jax, "device_count", lambda: 1)
        train.run(ten_steps(corpus, **before, **one_shape), tmp_path / "whole")
    whole = losses(tmp_path / "whole")
    assert len(whole) == 11
    np.testing.assert_allclose(losses(tmp_path / "stopped"), whole, rtol=1e-5)


@pytest.mark.parametrize(
    ("sent", "code", "name"), [(signal.SIGTERM, 0, "SIGTERM"), (signal.SIGINT, 130, "Ctrl-C")]
)
def test_a_signal_saves_and_stops(corpus, tmp_path, capsys, sent, code, name):
    config = ten_steps(corpus)
    with small_machine() as patch:
        compile_once(patch)
        after_write(patch, 3, lambda: os.kill(os.getpid(), sent))
        assert train.run(config, tmp_path) == code
    last = lines(tmp_path)[-1]["step"]
    assert 3 < last < 10
    assert capsys.readouterr().err.splitlines()[-1] == (
        f"stopped by {name}; checkpoint saved at step {last}; rerun the same command to resume"
    )
    assert checkpoint.find_step(tmp_path) == last


@pytest.mark.slow
def test_ctrl_c_through_the_command(corpus, tmp_path):
    process = start(command(corpus, tmp_path, train__epochs=400, data__eval_path=""))
    assert wait_for_step(process, tmp_path, 3), process.communicate()[1]
    process.send_signal(signal.SIGINT)
    _, err = process.communicate()
    assert process.returncode == 130, err
    last = lines(tmp_path)[-1]["step"]
    assert err.splitlines()[-1] == (
        f"stopped by Ctrl-C; checkpoint saved at step {last}; rerun the same command to resume"
    )
    assert "Traceback" not in err


MOMENTS = {
    "before the first save": "0 1 SIGKILL 0",
    "during a save": "0 6 SIGKILL 0.03",
    "between saves": "0 8 SIGKILL 0",
}
"""Notes for interrupted_train.py of runs that save every 3 steps."""


@pytest.mark.slow
def test_sigkill_at_any_moment_leaves_the_same_curve(corpus, tmp_path):
    steps = TWENTY_STEPS | {"train__epochs": 2}
    undisturbed, killed = tmp_path / "undisturbed", tmp_path / "killed"
    args = command(corpus, killed, **steps)
    for moment, note in MOMENTS.items():
        process = start(interrupted(args, tmp_path / "note", note))
        _, err = process.communicate()
        assert process.returncode == -signal.SIGKILL, f"{moment}: {err}"
        if checkpoint.latest_step(killed):
            weights = checkpoint.load_params(killed, TINY, step="latest")
            assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(weights))
    for workdir in (killed, undisturbed):
        process = start(command(corpus, workdir, **steps))
        _, err = process.communicate()
        assert process.returncode == 0, err
        assert ("resuming from step" in err) == (workdir == killed)
    assert_same_end(killed, undisturbed, 10)


@pytest.mark.slow
def test_kills_at_random_moments_leave_no_trace(tmp_path):
    """Of generate and convert; ALPACARE_KILLS=40 for more of them, and as many of train.

    The moments of train that matter have a test of their own, above.
    """
    count = os.environ.get("ALPACARE_KILLS", "")
    kinds = "train,generate,from_hf,to_hf" if count else "generate,from_hf,to_hf"
    command = [sys.executable, "-m", "tests.support.kills", str(tmp_path / "kills"), kinds]
    environment = os.environ | COMPILES_QUICKLY | {"JAX_NUM_CPU_DEVICES": "1"}
    done = subprocess.run(
        [*command, count or "3"],
        cwd=REPOSITORY,
        env=environment | {"JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("outputs like an undisturbed one's") == len(kinds.split(","))


def test_a_rate_that_blows_the_model_up(corpus, tmp_path, capsys):
    config = ten_steps(corpus, optimizer__learning_rate=1e30, checkpoint__every_steps=1)
    error = one_line_error(config, tmp_path, capsys)
    assert "the last good step is 1, the last checkpoint 1;" in error
    assert "lower optimizer.learning_rate" in error
    checkpoint.load_params(tmp_path, TINY, step="latest")
    with small_machine() as patch, pytest.raises(FloatingPointError):
        compile_once(patch)
        train.run(config, tmp_path)
    assert "resuming from step 1, the newest that is whole and finite" in capsys.readouterr().err


def test_what_the_last_update_made_is_looked_at_too(corpus, tmp_path, capsys):
    """Nothing is held out, and the only loss was computed before the update."""
    changes = {"data__eval_share": 0.0, "train__eval_every": 0, "train__epochs": 1}
    one_step = {"train__batch_size": 40, "optimizer__warmup_ratio": 0.0}
    config = ten_steps(corpus, optimizer__learning_rate=1e30, **changes, **one_step)
    error = one_line_error(config, tmp_path, capsys)
    assert error.startswith("error: step 1 not saved: ") and "the last checkpoint is none" in error
    assert checkpoint.latest_step(tmp_path) is None
    assert json.loads((tmp_path / "run.json").read_text())["end"] is None


COMMANDS = {
    "no checkpoint": (1, {"model.checkpoint": "nowhere"}, [], "no such file or folder: nowhere"),
    "bad line": (1, {"data.path": "BAD"}, [], "bad.jsonl:2: field 'output' is missing"),
    "unknown flag": (2, {}, ["--wrokdir=x"], "Did you mean: workdir"),
    "no place": (2, {}, ["--workdir=s3://bucket/run"], "give a local folder or gs://BUCKET"),
    "half a process": (1, {}, ["--coordinator=127.0.0.1:9"], "requires --num_processes (now -1)"),
    "unknown config key": (2, {"train.epoch": 3}, [], "epochs"),
    "bad config argument": (
        2,
        {},
        ["--config=configs/alpacare.py:llama-8b"],
        "unknown variant 'llama-8b'; choose from llama-7b, llama-13b, llama2-7b, llama2-13b",
    ),
}


@pytest.mark.parametrize("name", COMMANDS)
def test_a_bad_command_ends_in_one_line(corpus, tmp_path, name):
    code, changes, flags, part = COMMANDS[name]
    bad = tmp_path / "bad.jsonl"
    bad.write_text('{"instruction": "a", "output": "b"}\n{"instruction": "a"}\n')
    changes = {key: str(bad) if value == "BAD" else value for key, value in changes.items()}
    _, _, module, *args = command(corpus, tmp_path / "run", **changes)
    done = commands.run(module, *args, *flags)
    assert done.returncode == code, done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["bad.jsonl"], "nothing is half-written"
    (line,) = (x for x in done.stderr.splitlines() if "attention kernel: xla" not in x)
    assert line.startswith("error: ")
    assert part in line
