"""The command: what it makes, what it leaves where it fails, and what it asks for."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from huggingface_hub import ModelCard

from alpacare_jax import release
from alpacare_jax.releasing import proof
from common.sections import UsageError
from tests.alpacare_jax.releasing.conftest import NAMES, release_config
from tests.alpacare_jax.releasing.test_proof import one_weight
from tests.conftest import REPOSITORY


@pytest.fixture(scope="module")
def released(base, torch, transformers, questions, tmp_path_factory) -> Path:
    target = tmp_path_factory.mktemp("released") / "tiny"
    reports = target.parent / "report" / "tables"
    reports.mkdir(parents=True)
    (reports / "win_rates.md").write_text(
        "Win rates.\n\n| System | A |\n|---|---:|\n| x | 50.0 |\n"
    )
    results = target.parent / "med.yaml"
    results.write_text("- dataset: {id: a/b, task_id: med}\n  value: 0.5\n")
    config = release_config(
        base,
        target,
        "alpaca",
        questions=questions,
        reports=[reports.parent],
        eval_results=[results],
        max_new_tokens=4,
        diff_base=base.parent / "hf",
    )
    release.run(config)
    return target


@pytest.mark.slow
def test_a_release_is_complete(released, base):
    names = {path.name for path in released.iterdir()}
    assert names == {
        *("README.md", "config.json", "generation_config.json", "chat_template.jinja"),
        *("tokenizer.json", "tokenizer_config.json", "model.safetensors", "run.json"),
        *("Tiny-med-F16.gguf", "Tiny-med-Q8_0.gguf", "Modelfile", "proof.json", ".eval_results"),
    }
    assert json.loads((released / "generation_config.json").read_text())["eos_token_id"] == 2
    proven = json.loads((released / "proof.json").read_text())["programs"]
    assert proven["F16"]["answers"] == release.NUM_QUESTIONS
    assert [*released.parent.glob(".*")] == []
    # Its difference to the base is that of bfloat16's rounding, and gives it back.
    diff = released.with_name("tiny-diff")
    assert (diff / "model.safetensors").is_file()


@pytest.mark.slow
def test_the_card_is_valid(released):
    card = ModelCard.load(released / "README.md")
    assert card.data.license == "apache-2.0" and card.data.base_model == NAMES.base_model
    assert card.data.datasets == [NAMES.dataset] and card.data.language == "en"
    assert "not a medical device" in card.text and "| x | 50.0 |" in card.text
    assert "| transformers | 32 of 32 | 0 | 0 |" in card.text
    assert (released / ".eval_results/med.yaml").is_file()
    ours = str(REPOSITORY)
    assert ours not in card.text and str(released.parent) not in card.text


@pytest.mark.slow
def test_a_fault_leaves_nothing(base, torch, transformers, questions, tmp_path, monkeypatch):
    build = release.build

    def faulty(config, trained, folder):
        made = build(config, trained, folder)
        one_weight(type("Folder", (), {"folder": folder}))
        return made

    monkeypatch.setattr(release, "build", faulty)
    config = release_config(base, tmp_path / "out" / "tiny", "alpaca", questions=questions)
    with pytest.raises(proof.ReleaseError, match=r"down_proj.weight is not as it was trained"):
        release.run(config)
    assert [*(tmp_path / "out").iterdir()] == []


def test_wrong_names_are_refused(base, tmp_path):
    def fails(match: str, **changes) -> None:
        with pytest.raises(UsageError, match=match):
            release_config(base, tmp_path / "x", "alpaca", **changes)

    fails("'tiny' is not of the form USER/NAME", names=replace(NAMES, repo="tiny"))
    fails("--license_name and --license_link", names=replace(NAMES, licence="other"))
    fails("--gguf has Q4_K; choose from F16, Q8_0", forms=["F16", "Q4_K"])


def test_a_full_disk_is_found_beforehand(base, questions, tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=100_000))
    config = release_config(base, tmp_path / "tiny", "alpaca", questions=questions)
    with pytest.raises(OSError, match="free space or choose another --target"):
        release.run(config)
    assert [*tmp_path.iterdir()] == []


def command(base: Path, target: Path, *flags: str) -> list[str]:
    script = str(REPOSITORY / "launch/release.sh")
    return ["bash", script, f"--checkpoint={base}", f"--target={target}", *flags]


@pytest.mark.slow
def test_what_only_the_user_knows_is_asked_for_in_one_line(base, tmp_path):
    def error(*flags: str) -> str:
        environment = os.environ | {"PYTHON": sys.executable}
        wrong = command(base, tmp_path / "x", *flags)
        done = subprocess.run(wrong, env=environment, cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 2 and done.stderr.count("\n") == 1
        assert not (tmp_path / "x").exists()
        return done.stderr

    given = ["--repo=me/tiny", "--base_model=them/tiny", "--dataset=mine"]
    assert error(*given) == "error: give --license: names and licences are never guessed\n"
    assert "has no template; give --template" in error(*given, "--license=mit")


@pytest.mark.slow
def test_a_kill_leaves_nothing_to_publish(base, torch, transformers, questions, tmp_path):
    """Killed when the GGUF files are being proven; run again, the folder is complete."""
    target = tmp_path / "out" / "tiny"
    flags = ["--template=alpaca", "--repo=me/tiny", "--license=mit", "--base_model=them/tiny"]
    flags += ["--dataset=mine", f"--questions={questions}", "--max_new_tokens=2"]
    environment = os.environ | {"PYTHON": sys.executable}
    process = subprocess.Popen(command(base, target, *flags), env=environment)
    while not [*target.parent.glob(".*/release/Modelfile")]:
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)  # exec: the script is the command
    process.wait()
    assert not target.exists()
    subprocess.run(command(base, target, *flags), env=environment, check=True)
    assert (target / "README.md").is_file()
    assert [path.name for path in target.parent.iterdir() if path.is_dir()] == ["tiny"]
