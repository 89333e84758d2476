"""Several processes as one run: how they meet, what they agree on, and how they end."""

import faulthandler
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from etils import epath

from alpacare_jax import train
from alpacare_jax.checkpoints import checkpoint
from alpacare_jax.distributed import processes as lib
from common.sections import UsageError
from tests.conftest import COMPILES_QUICKLY, LIMIT, REPOSITORY
from tests.launch.test_local_run import LOCAL_RUN, running
from tests.support.training import (
    TWENTY_STEPS,
    command,
    curve,
    interrupted,
    lines,
    run_config,
    small_machine,
)

pytestmark = pytest.mark.usefixtures("quickly_compiled")


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


# Joining.


def join(**changes) -> None:
    given = {"distributed": False, "coordinator": "", "num_processes": 0, "process_id": -1}
    lib.join(**given | {"join_seconds": 1} | changes)


def test_alone_there_is_nobody_to_join():
    join()
    assert lib.is_first()
    assert lib.broadcast_from_process_0(2.5) == 2.5
    lib.barrier("nobody")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_processes": 2}, r"requires --num_processes \(now 2\) and a --process_id"),
        ({"num_processes": 2, "process_id": 2}, r"from 0 to one less \(now 2\)"),
        ({"num_processes": 0, "process_id": 0}, r"requires --num_processes \(now 0\)"),
        ({"num_processes": 2, "process_id": 0, "coordinator": "host"}, "must be HOST:PORT"),
        ({"num_processes": 2, "process_id": 0, "coordinator": "::1:80"}, r"brackets: \[::1\]:8476"),
        ({"num_processes": 2, "process_id": 0, "coordinator": "h:99999"}, "the port below 65,536"),
        ({"num_processes": 10**9, "process_id": 0}, r"requires --num_processes \(now 1000000000\)"),
    ],
)
def test_flags_that_do_not_fit_together(changes, message):
    with pytest.raises(ValueError, match=message):
        join(**{"coordinator": "127.0.0.1:1"} | changes)


@pytest.mark.parametrize("name", ["JAX_NUM_PROCESSES", "JAX_PROCESS_ID", "JAX_LOCAL_DEVICE_IDS"])
def test_what_a_launcher_set_is_named(monkeypatch, name):
    """Outside of `join`, where flags are defined, an error would be an internal one."""
    monkeypatch.setenv(name, "two")
    given = {"coordinator": "127.0.0.1:1", "num_processes": None, "process_id": None}
    if name == "JAX_LOCAL_DEVICE_IDS":
        given = {"distributed": True}
    with pytest.raises(UsageError, match=f"{name} is 'two'; it must be"):
        join(**given)


def test_distributed_outside_of_any_pod():
    with pytest.raises(ValueError, match="neither a TPU pod nor a SLURM step"):
        join(distributed=True)


@pytest.mark.parametrize(("own", "devices"), [("", [0]), ("0,1,2,3", [0, 1, 2, 3])])
def test_a_slurm_step_of_several_tasks_joins_by_itself(monkeypatch, own, devices):
    joined = []
    monkeypatch.setenv("JAX_LOCAL_DEVICE_IDS", own)
    for name, value in {
        "SLURM_STEP_NUM_TASKS": "4",
        "SLURM_NTASKS": "4",
        "SLURM_JOB_ID": "4096",
        "SLURM_PROCID": "3",
        "SLURM_LOCALID": "0",
        "SLURM_STEP_NODELIST": "gpu[07,09-11]",
    }.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(lib.roll_call, "wait_for_processes", lambda *who: joined.append(who))
    monkeypatch.setattr(
        lib.jax.distributed, "initialize", lambda *who, **where: joined.append((*who, where))
    )
    join()
    everywhere = {"coordinator_bind_address": None}
    assert joined == [("gpu07:61440", 4, 3, 1), ("gpu07:61440", 4, 3, devices, everywhere)]


@pytest.mark.parametrize(
    ("given", "workdir", "expected"),
    [
        ("", "run", "HOME/alpacare-jax"),
        ("elsewhere", "gs://bucket/runs/one", "elsewhere"),
        ("", "gs://bucket/runs/one/", "gs://bucket/runs/jax-cache"),
        ("", "gs://bucket/one", "gs://bucket/jax-cache"),
        pytest.param("", "run", None, id="a folder that cannot be written"),
    ],
)
def test_programs_are_kept_in_the_users_cache_or_beside_a_workdir_in_a_bucket(
    given, workdir, expected, tmp_path, monkeypatch, capfd
):
    names = ("jax_compilation_cache_dir", "jax_persistent_cache_enable_xla_caches")
    before = [getattr(lib.jax.config, name) for name in names]
    monkeypatch.setenv("XDG_CACHE_HOME", "/proc/none" if expected is None else str(tmp_path))
    try:
        lib.jax.config.update(names[0], given or None)
        lib.use_compilation_cache(workdir)
        found = lib.jax.config.jax_compilation_cache_dir
    finally:
        for name, value in zip(names, before, strict=True):
            lib.jax.config.update(name, value)
    assert found == (expected and expected.replace("HOME", str(tmp_path)))
    assert ("every start compiles anew" in capfd.readouterr().err) == (expected is None)


@pytest.mark.parametrize("bucket", [False, True])
def test_a_trace_for_a_bucket_is_recorded_locally_and_uploaded(bucket, tmp_path, monkeypatch):
    folder = epath.Path(tmp_path / "profile")
    folder.mkdir()
    recorded = []
    monkeypatch.setattr(lib.paths, "in_bucket", lambda path: bucket)
    monkeypatch.setattr(lib.jax.profiler, "start_trace", recorded.append)
    monkeypatch.setattr(
        lib.jax.profiler, "stop_trace", lambda: (Path(recorded[0]) / "events.pb").write_text("x")
    )
    trace = lib.Trace(folder)
    trace.start()
    assert trace.running and (recorded[0] == str(folder)) != bucket
    trace.stop()
    assert not trace.running and (folder / "events.pb").read_text() == "x"
    assert Path(recorded[0]).exists() != bucket, "the local copy is removed"


# A wait that would never end.

HANGS = """
import time, jax
from alpacare_jax.distributed import processes as lib
jax.process_count = lambda: 2
def waits_for_ever():
    time.sleep(600)
with lib.Watchdog(2):
    print("alive", flush=True)
    waits_for_ever()
"""


def test_the_watchdog_ends_a_process_that_hangs():
    done = subprocess.run(
        [sys.executable, "-c", HANGS],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=LIMIT,
    )
    assert (done.returncode, done.stdout) == (-signal.SIGALRM, "alive\n")
    assert "in waits_for_ever" in done.stderr


def alarm_seconds() -> float:
    """The time until SIGALRM, 0 for never."""
    return signal.getitimer(signal.ITIMER_REAL)[0]


@pytest.mark.parametrize("processes", [1, 2])
def test_the_watchdog_of_a_process_that_does_not_hang(processes, monkeypatch):
    monkeypatch.setattr(lib.jax, "process_count", lambda: processes)
    watchdog = lib.Watchdog(LIMIT)
    assert alarm_seconds() == 0
    with watchdog:
        assert (alarm_seconds() > 0) == (processes > 1), "nobody waits for a single process"
        signal.alarm(1 if processes > 1 else 0)
        watchdog.reset()
        assert (alarm_seconds() > 1) == (processes > 1)
    assert alarm_seconds() == 0
    faulthandler.unregister(signal.SIGALRM)


def test_the_age_of_this_process():
    script = """
import time
time.sleep(0.5)
from alpacare_jax.distributed.processes import seconds_since_start
before = time.monotonic()
age = seconds_since_start()
between = time.monotonic()
time.sleep(0.3)
shortest = time.monotonic() - between
later = seconds_since_start() - age
print(age, shortest, later, time.monotonic() - before)
"""
    done = subprocess.run([sys.executable, "-c", script], cwd=REPOSITORY, capture_output=True)
    age, shortest, later, longest = map(float, done.stdout.split())
    assert age > 0.5
    assert shortest - 0.02 < later < longest + 0.02, "the kernel counts hundredths"


# Training with several processes, killed, and resumed with a different number of them.

STEPS = TWENTY_STEPS | {"data__eval_path": ""}  # test_paths.py looks at held-out losses, too


def start_together(
    processes: int, devices: int, args: list[str], log: Path, restarts: int = 0
) -> subprocess.Popen:
    flags = [f"--processes={processes}", f"--devices={devices}", f"--restarts={restarts}"]
    with open(log, "w") as file:
        return subprocess.Popen(
            [*LOCAL_RUN, *flags, "--", *args],
            cwd=REPOSITORY,
            env=os.environ | COMPILES_QUICKLY,  # only the first finds programs in the cache
            stdout=file,
            stderr=file,
        )


def train_alone(devices: int, corpus: Path, workdir: Path) -> None:
    """In this process, on some of its devices."""
    with small_machine() as patch:
        patch.setattr(lib.jax, "device_count", lambda: devices)
        train.run(run_config(corpus, **STEPS), workdir)


@pytest.mark.slow
def test_processes_come_and_go_and_the_curve_stays(corpus, tmp_path, capsys):
    """20 steps: alone; and on 2 x 4 devices, SIGTERM, 4 x 1 devices, SIGKILL, 1 x 2 devices."""
    alone, log = tmp_path / "alone", tmp_path / "log"
    train_alone(1, corpus, alone)

    workdir = tmp_path / "together"
    args = command(corpus, workdir, **STEPS)
    asked = interrupted(args, tmp_path / "note", "1 4 SIGTERM 0")  # not the one that writes
    process = start_together(2, 4, asked, log)
    assert process.wait(timeout=LIMIT) == 0, log.read_text()
    stopped = checkpoint.latest_step(workdir)
    assert 4 < stopped < 9
    assert f"stopped by SIGTERM; checkpoint saved at step {stopped};" in log.read_text()
    assert lines(workdir)[-1]["step"] == stopped, "all stop at one step"
    assert running(str(workdir)) == []

    killed = interrupted(args, tmp_path / "note", "2 12 SIGKILL 0")
    process = start_together(4, 1, [*killed, "--config.sharding.tensor=2"], log)
    assert process.wait(timeout=LIMIT) == 128 + signal.SIGKILL, log.read_text()
    assert running(str(workdir)) == [], "nobody waits for the dead"
    saved = checkpoint.latest_step(workdir)
    assert stopped <= saved < 20

    train_alone(2, corpus, workdir)
    assert f"resuming from step {saved}" in capsys.readouterr().err
    ours, theirs = curve(workdir), curve(alone)
    assert len(ours) == 20
    for one, other in zip(ours, theirs, strict=True):
        for name, a, b in zip(("step", "loss", "grad norm", "rate"), one, other, strict=False):
            if a is not None:
                np.testing.assert_allclose(a, b, rtol=1e-5, err_msg=f"{name} of {one[0]}")
