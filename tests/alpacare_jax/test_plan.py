"""The command, for the devices that are there."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import COMPILES_QUICKLY, REPOSITORY


def plan(output: Path, *flags: str) -> tuple[str, dict]:
    """The command's table for the tiny model on 4 devices, and what it wrote."""
    command = [sys.executable, "-m", "alpacare_jax.plan", "--config=configs/quickstart.py"]
    command += ["--topology=local", "--config.model.variant=tiny", f"--output={output}", *flags]
    done = subprocess.run(
        command,
        cwd=REPOSITORY,
        env=os.environ | COMPILES_QUICKLY | {"JAX_NUM_CPU_DEVICES": "4"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout, json.loads(output.read_text())


@pytest.mark.slow
def test_training(tmp_path):
    flags = ("--example_tokens=60", "--config.train.batch_size=8", "--num_examples=80")
    text, written = plan(tmp_path / "plan.json", *flags)
    assert "mesh                  fsdp 4" in text
    assert written["plan"]["steps"] == 10 and written["config"]["model"]["variant"] == "tiny"


@pytest.mark.slow
def test_generation_the_best_mesh_and_slots_first(tmp_path):
    flags = ("--generate", "--search", "--slots=4", "--prompt_tokens=20", "--new_tokens=30")
    text, written = plan(tmp_path / "plan.json", *flags, "--prompts=7", "--price=1.5")
    ranked = written["ranked"]
    assert {found["changes"]["tensor"] for found in ranked} == {1, 2}, "tiny has 2 KV heads"
    assert {found["changes"]["slots"] for found in ranked} == {4, 16, 64}
    speeds = [found["tokens_per_second"] for found in ranked]
    assert speeds == sorted(speeds, reverse=True) and written["plan"] == ranked[0]
    assert "A DECODE STEP" in text and "7 prompts" in text and "cost" in text
