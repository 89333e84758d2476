"""The `alpacare` command: it lists every command, and runs each as `python -m` does."""

import subprocess
import sys

import pytest

from common import alpacare
from tests.conftest import REPOSITORY


def run(*arguments: str, **options) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "common.alpacare", *arguments],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        **options,
    )


def test_every_command_is_listed_once_with_one_line():
    commands = {
        f"{path.parent.name}.{path.stem}"
        for package in alpacare.EXTRAS
        for path in (REPOSITORY / package).glob("*.py")
        if "cli.run(" in path.read_text(encoding="utf-8")
    }
    assert set(alpacare.COMMANDS.values()) == commands
    lines = alpacare.usage().splitlines()
    for name, module in alpacare.COMMANDS.items():
        assert [line for line in lines if line.split()[:1] == [name]], name
        assert len(alpacare.summary(module)) <= 80, f"{module}: its first line is too long to list"


def test_the_list_imports_nothing_heavy():
    script = "import sys; from common import alpacare; alpacare.main([]); print(*sys.modules)"
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=True)
    loaded = {name.partition(".")[0] for name in done.stdout.splitlines()[-1].split()}
    assert "train" in done.stdout
    assert not loaded & {"jax", "numpy", "absl", "etils", "openai", "matplotlib"}


@pytest.mark.parametrize(
    "wrong, message",
    [("trian", "did you mean 'train'?"), ("zzz", "choose from tasks, dedup,")],
)
def test_a_mistyped_command_gets_a_suggestion(capsys, wrong, message):
    assert alpacare.main([wrong]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: no command '{wrong}'; ") and message in error
    assert error.count("\n") == 1


def test_a_command_runs_as_python_m_does(tmp_path):
    (tmp_path / "in.jsonl").write_text('{"instruction": "Explain fever.", "output": "x"}\n')
    arguments = [f"--input={tmp_path}/in.jsonl", f"--output={tmp_path}/out.jsonl"]
    done = run("dedup", *arguments)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out.jsonl").read_text().count("\n") == 1
    direct = [sys.executable, "-m", "datagen.dedup"]
    for wrong in (["--inptu=x"], ["--input=absent.jsonl", f"--output={tmp_path}/o.jsonl"]):
        through = run("dedup", *wrong)
        itself = subprocess.run([*direct, *wrong], cwd=REPOSITORY, capture_output=True, text=True)
        assert (through.returncode, through.stderr) == (itself.returncode, itself.stderr)
