"""Locks: the second start names the first, and the dead hold nothing."""

import contextlib
import errno
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from etils import epath

from common import alpacare, locks, paths
from tests.conftest import LIMIT, REPOSITORY


class Holder:
    """A process that holds the lock of an output until it is released."""

    def __init__(self, output, *args: str):
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.support.lock_holder", f"--output={output}", *args],
            cwd=REPOSITORY,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def holds(self) -> bool:
        """Waits until it has the lock or has ended."""
        return self.process.stdout.readline() == "held\n"

    def release(self) -> str:
        """Lets it end; its stderr."""
        _, err = self.process.communicate("", timeout=LIMIT)
        return err


@contextlib.contextmanager
def held(output, *args: str) -> Iterator[Holder]:
    holder = Holder(output, *args)
    try:
        assert holder.holds(), holder.release()
        yield holder
    finally:
        holder.process.kill()
        holder.process.communicate()


def lock_file(output: Path) -> Path:
    return output.with_name(f".{output.name}.lock")


def test_the_second_start_names_the_first_and_ends(tmp_path):
    output = tmp_path / "runs" / "model"
    with held(output) as first:
        second = Holder(output)
        assert not second.holds()
        err = second.release()
        assert second.process.returncode == 1
        process, host = first.process.pid, os.uname().nodename
        assert err.startswith(
            f"error: {output} is in use by process {process} on {host}, started 2"
        )
        assert f" -m tests.support.lock_holder --output={output}; wait until it ends, " in err
        assert err.count("\n") == 1
        assert first.release() == ""
    assert list(tmp_path.iterdir()) == [], "neither a lock nor the folder that was made for it"
    with held(output):
        pass


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="there is no /proc")
def test_where_no_file_can_be_made_nothing_waits():
    with pytest.raises(FileNotFoundError, match=r"/proc/x\.json"), locks.hold("/proc/x.json"):
        pass
    with pytest.raises(OSError, match="/ is no output; give a file or folder"), locks.hold("/"):
        pass


def test_a_dry_run_and_another_output_are_not_held_up(tmp_path):
    with held(tmp_path / "a"), held(tmp_path / "b"), held(tmp_path / "a", "--dry_run"):
        assert sorted(path.name for path in tmp_path.iterdir()) == [".a.lock", ".b.lock"]


def test_other_names_of_the_same_output_are_held_up(tmp_path, monkeypatch):
    (tmp_path / "model").mkdir()
    (tmp_path / "link").symlink_to("model")
    monkeypatch.chdir(tmp_path / "model")
    with locks.hold(tmp_path / "model"):
        for name in (tmp_path / "link", ".", "../model", tmp_path / "x" / ".." / "model"):
            with pytest.raises(OSError, match="in use"), locks.hold(name):
                pass


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_a_process_that_was_ended_holds_nothing(tmp_path, number):
    output = tmp_path / "model"
    with held(output) as first:
        first.process.send_signal(number)
        first.process.wait(timeout=LIMIT)
        assert lock_file(output).exists() == (number == signal.SIGKILL)
        with locks.hold(output):
            assert json.loads(lock_file(output).read_text())["process"] == os.getpid()
    assert not lock_file(output).exists()


def test_a_deleted_output_is_still_held(tmp_path):
    """`rm -r` of a folder that a run writes to does not let another one in."""
    output = tmp_path / "model"
    output.mkdir()
    with held(output):
        output.rmdir()
        with pytest.raises(OSError, match="in use"), locks.hold(output):
            pass


def test_a_deleted_lock_does_not_take_the_next_one_along(tmp_path):
    output = tmp_path / "model"
    first, second = locks.hold(output), locks.hold(output)
    with first:
        lock_file(output).unlink()
        second.__enter__()
    with pytest.raises(OSError, match="in use"), locks.hold(output):
        pass
    second.__exit__(None, None, None)


@pytest.mark.parametrize("parent", [0o555, 0o755])
def test_a_folder_below_one_that_is_not_writable_has_its_lock_inside(tmp_path, monkeypatch, parent):
    """As a mounted disk; root may write everywhere, so the system's answer is imitated."""
    output = tmp_path / "disk"
    output.mkdir()
    monkeypatch.setattr(locks.os, "access", lambda path, mode: parent == 0o755)
    with locks.hold(output):
        assert (output / ".lock").exists() == (parent == 0o555)
        with pytest.raises(OSError, match="in use"), locks.hold(output):
            pass
    assert not any(output.iterdir())


RACE = """
import sys, time
from common import locks
output, go, log = sys.argv[1:]
while not __import__("os").path.exists(go): pass
for _ in range(int(sys.stdin.read())):
    try:
        with locks.hold(output):
            with open(log, "a") as file:
                file.write("+"); file.flush(); time.sleep(0.002); file.write("-")
    except OSError as error:
        assert "in use" in str(error), error
print("ok")
"""


def test_of_several_starts_at_the_same_moment_one_wins(tmp_path):
    """Four processes take and release one lock, in a folder that comes and goes with it."""
    log, go = tmp_path / "log", tmp_path / "go"
    args = [sys.executable, "-c", RACE, str(tmp_path / "runs" / "model"), str(go), str(log)]
    count = os.environ.get("ALPACARE_LOCK_RACES", "100")
    racers = [
        subprocess.Popen(
            args, cwd=REPOSITORY, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        for _ in range(4)
    ]
    for racer in racers:
        racer.stdin.write(count)
        racer.stdin.close()
        racer.stdin = None
    go.touch()
    assert [racer.communicate(timeout=LIMIT)[0] for racer in racers] == ["ok\n"] * 4
    turns = log.read_text()
    assert turns == "+-" * (len(turns) // 2) != ""
    assert not any((tmp_path / "runs").glob("*")), "the folder itself may stay"


# Commands.

WRITES_NOTHING = {"chat", "serve", "tokenizer"}
BY_ITSELF = {"train": "with processes.hold_lock(FLAGS.workdir):"}  # once the processes have met


@pytest.mark.parametrize("name", sorted(alpacare.COMMANDS.keys() - WRITES_NOTHING))
def test_every_command_that_writes_locks_its_output(name):
    source = REPOSITORY / (alpacare.COMMANDS[name].replace(".", "/") + ".py")
    text = source.read_text(encoding="utf-8")
    if name in BY_ITSELF:
        assert BY_ITSELF[name] in text
    else:
        flag = re.search(r'cli\.run\(main.*, output="(\w+)"\)', text)[1]
        assert f'"{flag}"' in text.rpartition("cli.run(")[0], "no such flag"


@pytest.mark.slow
@pytest.mark.parametrize(
    "command",
    [
        ["-m", "alpacare_jax.train", "--config=configs/quickstart.py"],
        ["launch/sweep.py", "--config=configs/quickstart.py"],
        ["-m", "evaluation.references", "--import=x", "--benchmark=x"],
    ],
    ids=["train", "sweep", "references"],
)
def test_a_command_whose_output_is_held_ends_in_one_line(tmp_path, command):
    workdir = tmp_path / "run"
    with locks.hold(workdir):
        done = subprocess.run(
            [sys.executable, *command, f"--workdir={workdir}"],
            cwd=REPOSITORY,
            capture_output=True,
            text=True,
        )
    assert done.returncode == 1
    assert done.stderr.startswith(f"error: {workdir} is in use by process {os.getpid()} on ")
    assert done.stderr.count("\n") == 1


# File systems without flock.


@pytest.fixture
def no_flock(monkeypatch):
    def refuse(*_) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(locks.fcntl, "flock", refuse)


def write_lock(output: Path, **changes) -> None:
    lock_file(output).write_text(json.dumps(locks.this_process() | changes))


def test_without_flock_the_process_is_looked_for(no_flock, tmp_path):
    output = tmp_path / "model"
    with locks.hold(output), pytest.raises(OSError, match="in use by process"), locks.hold(output):
        pass
    write_lock(output, ticks=1)  # the process id is another process's by now
    with locks.hold(output):
        pass
    write_lock(output, process=2**22 + 1)
    with locks.hold(output):
        pass
    assert not lock_file(output).exists()


def test_without_flock_a_process_of_another_host_is_taken_to_run(no_flock, tmp_path):
    write_lock(tmp_path / "model", host="other", system="another boot")
    with (
        pytest.raises(OSError, match=r"on other, .*; if it has ended, delete /.*/\.model\.lock"),
        locks.hold(tmp_path / "model"),
    ):
        pass


def test_what_another_host_left_on_a_shared_disk_is_taken_over_and_named(tmp_path, capsys):
    write_lock(tmp_path / "model", host="other", process=12, system="another boot")
    with locks.hold(tmp_path / "model"):
        err = capsys.readouterr().err
    assert "taking over the lock of process 12 on other, started 2" in err
    with locks.hold(tmp_path / "model"):
        assert capsys.readouterr().err == ""


# Buckets.


@pytest.fixture(scope="module")
def gcs():
    pytest.importorskip("google_crc32c", reason="the extra [gcs] is not installed")
    pytest.importorskip("gcsfs", reason="the extra [gcs] is not installed")
    from tests.support import gcs_emulator

    with gcs_emulator.running() as emulator, pytest.MonkeyPatch.context() as patch:
        patch.setenv("STORAGE_EMULATOR_HOST", emulator.url)
        patch.setenv("GOOGLE_CLOUD_PROJECT", "none")
        paths.check("gs://bucket")
        yield emulator


@pytest.fixture
def place(request) -> epath.Path:
    return epath.Path("gs://bucket") / request.node.name


def key(output: epath.Path) -> tuple[str, str]:
    return "bucket", f"{output.parent.name}/.{output.name}.lock"


def test_in_a_bucket_the_second_start_names_the_first(gcs, place):
    output = place / "model"
    with held(output) as first:
        with pytest.raises(OSError, match=rf"in use by process {first.process.pid} on "):
            locks.hold(output).__enter__()
        assert gcs.names(place.name) == [key(output)[1]]
        assert first.release() == ""
    assert gcs.names(place.name) == []


def test_in_a_bucket_a_process_that_was_killed_here_holds_nothing(gcs, place):
    with held(place / "model") as first:
        first.process.kill()
        first.process.wait()
        assert gcs.names(place.name)
        with locks.hold(place / "model"):
            pass
    assert gcs.names(place.name) == []


def stranded(gcs, output: epath.Path, age: float) -> None:
    """The lock of a process of another host, refreshed `age` seconds ago."""
    owner = locks.this_process() | {"host": "other", "process": 12, "system": "another boot"}
    gcs.change(key(output), json.dumps(owner).encode())
    gcs.updated[key(output)] = time.time() - age


def test_in_a_bucket_what_another_host_refreshes_is_held(gcs, place):
    stranded(gcs, place / "model", age=20)
    with pytest.raises(OSError, match=r"process 12 on other"):
        locks.hold(place / "model").__enter__()


def test_in_a_bucket_what_another_host_left_is_taken_over(gcs, place, capsys):
    stranded(gcs, place / "model", age=locks.LOST_SECONDS + 5)
    with locks.hold(place / "model"):
        assert "taking over the lock of process 12 on other" in capsys.readouterr().err


@pytest.mark.parametrize("refreshes", [True, False])
def test_in_a_bucket_an_overdue_lock_is_waited_for(gcs, place, monkeypatch, refreshes):
    output, waits = place / "model", []
    stranded(gcs, output, age=locks.REFRESH_SECONDS * 2)

    def pass_time(seconds: float) -> None:
        waits.append(seconds)
        if refreshes:
            gcs.updated[key(output)] = time.time()
        else:
            gcs.updated[key(output)] -= seconds

    monkeypatch.setattr(locks.time, "sleep", pass_time)
    if refreshes:
        with pytest.raises(OSError, match="in use"):
            locks.hold(output).__enter__()
        assert len(waits) == 1
    else:
        with locks.hold(output):
            assert len(waits) > 5


def test_in_a_bucket_a_lock_is_refreshed_and_a_lost_one_ends_its_process(gcs, place):
    output = place / "model"
    holder = Holder(output, "--refresh_seconds=0.05")
    assert holder.holds()
    gcs.updated[key(output)] = 0.0
    end = time.monotonic() + LIMIT
    while not gcs.updated[key(output)] and time.monotonic() < end:
        time.sleep(0.01)
    assert gcs.updated[key(output)]
    stranded(gcs, output, age=0)  # another process has taken over
    holder.process.wait(timeout=LIMIT)
    err = holder.process.stderr.read()
    assert holder.process.returncode == 1
    assert err.startswith(f"error: another process has taken over {output}")
    assert err.count("\n") == 1
    assert gcs.names(place.name) == [key(output)[1]], "the lock is the other's"
