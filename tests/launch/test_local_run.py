"""launch/local_run.sh: processes start, fail and restart together, and none is left behind."""

import os
import re
import signal
import subprocess
import time

import pytest

from tests.conftest import LIMIT, REPOSITORY
from tests.launch.conftest import write_program

LOCAL_RUN = ["bash", "launch/local_run.sh"]


def local_run(*args: str, **env: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [*LOCAL_RUN, *args],
        cwd=REPOSITORY,
        env=os.environ | env,
        capture_output=True,
        text=True,
        timeout=LIMIT,
    )


def test_each_process_knows_who_it_is():
    names = "JAX_PROCESS_ID JAX_NUM_PROCESSES JAX_NUM_CPU_DEVICES JAX_COORDINATOR_ADDRESS"
    show = " ".join(f"${name}" for name in names.split())
    done = local_run(
        "--processes=3", "--devices=4", "--", "bash", "-c", f'echo {show} "$1"', "_", "a b"
    )
    assert (done.returncode, done.stderr) == (0, "")
    rows = sorted(line.split(maxsplit=4) for line in done.stdout.splitlines())
    assert [row[:3] + row[4:] for row in rows] == [[i, "3", "4", "a b"] for i in "012"]
    (address,) = {row[3] for row in rows}
    assert re.fullmatch(r"127\.0\.0\.1:\d+", address)


@pytest.mark.parametrize("deaf", ["", "trap '' TERM; "], ids=["", "deaf to SIGTERM"])
def test_one_failure_ends_all(deaf, tmp_path):
    write_program(tmp_path / "sleep", "#!/bin/sh\nexec /bin/sleep 0.01\n")  # not 5 s in all
    script = f'{deaf}[ "$JAX_PROCESS_ID" = 1 ] && exit 7; while :; do /bin/sleep 0.2; done'
    path = f"{tmp_path}:{os.environ['PATH']}"
    done = local_run("--processes=3", "--", "bash", "-c", script, PATH=path)
    assert done.returncode == 7
    assert "a process ended with code 7; ending the other 2" in done.stderr


# A marker file for each start; only the first three starts fail, with `code`.
FAILS = """
[ "$JAX_PROCESS_ID" = 1 ] || exec sleep {sleeps}
for i in 1 2 3; do if mkdir "$0.$i" 2>&-; then {fails}; fi; done
"""


@pytest.mark.parametrize("fails", ["kill -KILL $$", "kill -ALRM $$", "kill -ABRT $$", "exit 75"])
def test_what_a_signal_ended_starts_again(fails, tmp_path):
    script = FAILS.format(sleeps=1, fails=fails)
    done = local_run("--processes=2", "--restarts=3", "--", "bash", "-c", script, f"{tmp_path}/n")
    assert done.returncode == 0, done.stderr
    said = [line for line in done.stderr.splitlines() if "restarting" in line]
    assert [re.sub(r"code \d+;", "code C;", line) for line in said] == [
        f"local_run: a process ended with code C; restarting, {i} of at most 3 times"
        for i in (1, 2, 3)
    ]


def test_starting_again_is_bounded(tmp_path):
    script = FAILS.format(sleeps=60, fails="kill -KILL $$")
    command = ["--processes=2", "--", "bash", "-c", script]
    done = local_run("--restarts=2", *command, f"{tmp_path}/n")
    assert done.returncode == 137
    assert done.stderr.splitlines()[-1] == (
        "error: a process ended with code 137; interrupted 3 times, over --restarts=2; "
        "rerun the same command to resume from the checkpoint"
    )
    assert len(list(tmp_path.iterdir())) == 3
    other = tmp_path / "other"
    other.mkdir()
    assert local_run(*command, f"{other}/n").returncode == 137
    assert len(list(other.iterdir())) == 1  # without the flag, never


@pytest.mark.parametrize("code", [1, 2, 127, 130, 143])
def test_what_would_only_fail_again_does_not_start_again(code, tmp_path):
    script = FAILS.format(sleeps=60, fails=f"exit {code}")
    done = local_run("--processes=2", "--restarts=3", "--", "bash", "-c", script, f"{tmp_path}/n")
    assert done.returncode == code
    assert "restarting" not in done.stderr
    assert len(list(tmp_path.iterdir())) == 1


def test_what_was_asked_to_end_does_not_start_again(tmp_path):
    """Even where SIGTERM made a process crash."""
    script = f"trap 'kill -KILL $$' TERM; mkdir {tmp_path}/$JAX_PROCESS_ID.$$;"
    script += " while :; do sleep 0.1; done"
    process = subprocess.Popen(
        [*LOCAL_RUN, "--restarts=3", "--processes=2", "--", "bash", "-c", script],
        cwd=REPOSITORY,
        stderr=subprocess.PIPE,
        text=True,
    )
    while len(list(tmp_path.iterdir())) < 2:
        time.sleep(0.02)
    process.terminate()
    _, said = process.communicate(timeout=LIMIT)
    assert process.returncode == 137
    assert "restarting" not in said
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["--restarts=-1", "--", "true"], "--restarts=-1 is not a whole number"),
        ([], "no command; write it after --"),
        (["--processes=0", "--", "true"], "--processes=0; give 1 or more"),
        (["--devices=x", "--", "true"], "--devices=x is not a whole number"),
        (["true"], "unexpected 'true'; COMMAND is written after --"),
        (["--port=0", "--", "true"], "--port=0; give 1 or more"),
        (["--", "env", "HF_TOKEN=x", "true"], "a secret in the command"),
    ],
)
def test_wrong_arguments(args, said):
    done = local_run(*args)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ") and said in done.stderr
    assert done.stderr.count("\n") == 1


def running(marker: str) -> list[str]:
    found = subprocess.run(["pgrep", "-f", marker], capture_output=True, text=True)
    return found.stdout.split()


@pytest.mark.parametrize("sent", [signal.SIGTERM, signal.SIGKILL])
def test_no_process_outlives_the_script(sent, tmp_path):
    marker = str(tmp_path / "marker")
    script = f"trap 'exit 0' TERM; touch {marker}.$JAX_PROCESS_ID; while :; do sleep 0.1; done"
    process = subprocess.Popen(
        [*LOCAL_RUN, "--processes=2", "--", "bash", "-c", script], cwd=REPOSITORY
    )
    while len(list(tmp_path.iterdir())) < 2:
        time.sleep(0.02)
    process.send_signal(sent)
    assert process.wait(timeout=LIMIT) == (0 if sent == signal.SIGTERM else -sent)
    end = time.monotonic() + LIMIT
    while running(marker) and time.monotonic() < end:
        time.sleep(0.05)
    assert running(marker) == []
