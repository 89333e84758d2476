"""Damaged steps: every kind of damage is found, named, and never used."""

import json
import os
import random
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from etils import epath

from alpacare_jax.checkpoints import checkpoint, digests, export
from alpacare_jax.distributed import processes
from common import cli
from tests.support.training import (
    TINY,
    assert_same_end,
    finished_run,
    one_line_error,
    resume,
    stopped_run,
    ten_steps,
)

pytestmark = pytest.mark.usefixtures("quickly_compiled")

THREE = {"checkpoint__every_steps": 3, "checkpoint__keep": 2}


@pytest.fixture(scope="module")
def two_steps(corpus, quickly_compiled, tmp_path_factory) -> Path:
    """The workdir of a run that was stopped at step 6 of 10, and has step 3 too."""
    workdir = tmp_path_factory.mktemp("two") / "run"
    finished_run(corpus)
    stopped_run(corpus, workdir, step=6, **THREE)
    assert checkpoint.saved_steps(checkpoint.steps_folder(workdir)) == [3, 6]
    return workdir


@pytest.fixture
def run(two_steps, tmp_path) -> Path:
    """A copy, as by `cp -r`: it is as whole as what was copied."""
    workdir = shutil.copytree(two_steps, tmp_path / "run")
    assert checkpoint.newest_whole(workdir) == 6
    return workdir


def largest(folder: Path) -> Path:
    return max(filter(Path.is_file, folder.rglob("*")), key=lambda path: path.stat().st_size)


def flip(path: Path, bit: int | None = None) -> None:
    data = bytearray(path.read_bytes())
    bit = 4 * len(data) if bit is None else bit
    data[bit // 8] ^= 1 << bit % 8
    path.write_bytes(data)


def relink(path: Path) -> None:
    path.unlink()
    path.symlink_to("nowhere")


def truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def change_manifest(step: Path, change) -> None:
    path = step / digests.NAME
    content = json.loads(path.read_text())
    path.write_text(json.dumps(change(content), indent=1) + "\n")


DAMAGES = {
    "truncated": (lambda s: truncate(largest(s)), "bytes instead of"),
    "zeroed": (lambda s: largest(s).write_bytes(bytes(largest(s).stat().st_size)), "checksum"),
    "flipped weights": (lambda s: flip(largest(s / "params")), "params/.* checksum differs"),
    "flipped moments": (lambda s: flip(largest(s / "opt_state")), "opt_state/.* checksum differs"),
    "no opt_state": (lambda s: shutil.rmtree(s / "opt_state"), "opt_state/.* is missing"),
    "no weights": (lambda s: shutil.rmtree(s / "params"), "params/.* is missing"),
    "a file is missing": (lambda s: largest(s).unlink(), "is missing"),
    "an extra file": (lambda s: (s / "params" / "x").write_text("x"), "params/x is not a file of"),
    "Orbax's metadata": (lambda s: flip(s / "params" / "_METADATA"), "params/_METADATA is damaged"),
    "Orbax's manifest": (lambda s: flip(s / "params" / "manifest.ocdbt"), "manifest.ocdbt is dam"),
    "empty file": (lambda s: (s / "_CHECKPOINT_METADATA").write_text(""), "has 0 bytes instead"),
    "empty step": (lambda s: (shutil.rmtree(s), s.mkdir()), "no manifest.json: half copied"),
    "a file": (lambda s: (shutil.rmtree(s), s.write_text("x")), "no manifest.json: half copied"),
    "a link to itself": (lambda s: (shutil.rmtree(s), s.symlink_to(s)), "no manifest.json: half"),
    "manifest is a folder": (
        lambda s: ((s / digests.NAME).unlink(), (s / digests.NAME).mkdir()),
        "no manifest.json: half copied",
    ),
    "a link to nowhere": (lambda s: relink(largest(s)), "is missing"),
    "no manifest": (lambda s: (s / digests.NAME).unlink(), "no manifest.json: half copied"),
    "empty manifest": (lambda s: (s / digests.NAME).write_text(""), "manifest.json is damaged"),
    "cut manifest": (lambda s: truncate(s / digests.NAME), "manifest.json is damaged"),
    "flipped manifest": (lambda s: flip(s / digests.NAME), "manifest.json is damaged"),
    "a list": (lambda s: (s / digests.NAME).write_text("[]"), "manifest.json is damaged"),
    "binary manifest": (lambda s: (s / digests.NAME).write_bytes(b"\xff"), "is damaged"),
    "an edited manifest": (
        lambda s: change_manifest(s, lambda content: content | {"metrics": {"eval_loss": 0.0}}),
        "manifest.json is damaged",
    ),
    "another step's": (
        lambda s: (shutil.rmtree(s), shutil.copytree(s.with_name("3"), s)),
        "manifest.json is of step 3",
    ),
}


@pytest.mark.parametrize("kind", DAMAGES)
def test_damage_is_found_and_named_and_the_step_before_goes_on(run, kind, capsys):
    damage, words = DAMAGES[kind]
    damage(run / "checkpoints" / "6")
    assert checkpoint.newest_whole(run) == 3
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"damaged steps in {run}/checkpoints are skipped: step 6: ")
    assert re.search(words, line)
    if "opt_state/" in line and "checksum" in line:  # of moments, only sizes concern the weights
        checkpoint.load_params(run, TINY, step="6")
        return
    for step in ("6", "latest"):
        with pytest.raises(digests.DamagedError, match=f"step 6 in .* is damaged: .*{words}"):
            checkpoint.load_params(run, TINY, step=step)


def test_the_best_is_not_chosen_while_a_step_cannot_be_read(run):
    assert checkpoint.find_step(run, "best") == 6
    (run / "checkpoints" / "3" / digests.NAME).unlink()
    with pytest.raises(digests.DamagedError, match=r"step 3 in .*; whole steps: \[6\]"):
        checkpoint.find_step(run, "best")
    assert checkpoint.find_step(run, "latest") == 6


@pytest.mark.parametrize("kind", ["flipped moments", "empty step"])
def test_a_run_goes_on_from_the_newest_whole_step(corpus, run, kind, capsys):
    DAMAGES[kind][0](run / "checkpoints" / "6")
    (run / "checkpoints" / "9").mkdir()  # as if a later one had been copied by half
    capsys.readouterr()
    resume(ten_steps(corpus, **THREE), run)
    err = capsys.readouterr().err
    assert "are skipped: step 9: it has no manifest.json" in err and "; step 6: " in err
    assert "resuming from step 3" in err
    assert_same_end(run, finished_run(corpus).workdir, 10)
    assert checkpoint.saved_steps(checkpoint.steps_folder(run)) == [9, 10]
    assert checkpoint.newest_whole(run) == 10


def test_without_a_whole_step_a_run_never_begins_anew_by_itself(corpus, run, capsys):
    for step in ("3", "6"):
        truncate(largest(run / "checkpoints" / step))
    line = one_line_error(ten_steps(corpus, **THREE), run, capsys)
    assert line.startswith(f"error: no step in {run}/checkpoints is whole (step 6: ")
    assert "; step 3: " in line and "copy it again, or delete it to train from the" in line
    assert checkpoint.saved_steps(checkpoint.steps_folder(run)) == [3, 6], "nothing is deleted"


def test_steps_of_an_older_version_are_refused_in_one_line(corpus, run, capsys):
    for path in run.rglob(digests.NAME):
        path.unlink()
    line = one_line_error(ten_steps(corpus, **THREE), run, capsys)
    assert "saved by an older version" in line


def test_conversion_refuses_damaged_weights(run, tmp_path, capsys):
    flip(largest(run / "checkpoints" / "6" / "params"))
    convert_latest = lambda _: export.to_hf(run, tmp_path / "hf", "latest", "")  # noqa: E731
    assert cli.guard(convert_latest, [], debug=False) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert "step 6 in" in line and "checksum differs" in line and "whole steps: [3]" in line
    assert not (tmp_path / "hf").exists()


def test_every_one_of_200_flipped_bits_is_found(run):
    """Anywhere in weights, moments, Orbax's metadata and the manifest."""
    step = checkpoint.steps_folder(run) / "6"
    files = [path for path in Path(step).rglob("*") if path.is_file() and path.stat().st_size]
    chosen = random.Random(0)
    sizes = [path.stat().st_size for path in files]
    by_size = chosen.choices(files, sizes, k=200 - 2 * len(files))
    for path in [*files, *files, *by_size]:
        bit = chosen.randrange(8 * path.stat().st_size)
        flip(path, bit)
        text = checkpoint.problem(step)
        assert path.relative_to(step).as_posix() in text, (path, bit)
        flip(path, bit)
    assert checkpoint.problem(step) == ""


# Saves and removals that are cut off.


def test_the_remains_of_a_save_that_was_cut_off_are_removed(corpus, run, capsys):
    """In a bucket Orbax writes where the step will be, so it may lie there without its manifest."""
    folder = run / "checkpoints"
    half = shutil.copytree(folder / "6", folder / "9")
    (half / digests.NAME).unlink()
    (folder / "9.orbax-checkpoint-tmp").mkdir()
    (folder / checkpoint.CHANGING).write_text("[9]")
    assert checkpoint.find_step(run, "latest") == checkpoint.newest_whole(run) == 6
    capsys.readouterr()
    resume(ten_steps(corpus, **THREE), run)
    assert "removed what was left of a save that was cut off: step 9" in capsys.readouterr().err
    assert_same_end(run, finished_run(corpus).workdir, 10)
    assert sorted(path.name for path in folder.iterdir()) == ["10", "9"]


def test_a_step_whose_note_was_not_removed_any_more_is_kept(corpus, run, capsys):
    (run / "checkpoints" / checkpoint.CHANGING).write_text("[6]")
    resume(ten_steps(corpus, **THREE), run)
    err = capsys.readouterr().err
    assert "resuming from step 6" in err and "cut off" not in err


# Several processes.


def test_processes_read_a_share_each_and_agree(run, monkeypatch):
    """Each of three in turn; what one of them finds, all of them report."""
    step = checkpoint.steps_folder(run) / "6"
    names = sorted(digests.read(step).files)
    flip(step / names[7])
    read, first_damaged = [], digests.first_damaged

    def recorded(folder, manifest, share):
        read.append(set(share))
        return first_damaged(folder, manifest, share)

    found = []
    monkeypatch.setattr(digests, "first_damaged", recorded)
    monkeypatch.setattr(processes.jax, "process_count", lambda: 3)
    monkeypatch.setattr(processes, "smallest_of_all", lambda own: min(own, 7))
    for process in range(3):
        monkeypatch.setattr(processes.jax, "process_index", lambda process=process: process)
        found.append(checkpoint.problem(step))
    shares = [share for share in read if share != {names[7]}]
    assert set.union(*shares) == set(names) and sum(map(len, shares)) == len(names)
    assert set(found) == {f"{names[7]} is damaged: its checksum differs"}
    flip(step / names[7])  # as if only the second process had read it so
    monkeypatch.setattr(processes.jax, "process_index", lambda: 0)
    assert checkpoint.problem(step) == "files are damaged, as another process reads them"


# Which weights they are.


def test_the_digest_is_of_the_weights_not_of_their_files(run, tmp_path):
    weights = checkpoint.load_params(run, TINY, step="6")
    for folder in ("once", "again"):
        (tmp_path / folder).mkdir()
        checkpoint.save_params(tmp_path / folder, weights)
    digest = checkpoint.weights_digest(run, 6)
    assert checkpoint.weights_digest(tmp_path / "once", 0) == digest
    assert checkpoint.weights_digest(tmp_path / "again", 0) == digest
    assert checkpoint.weights_digest(run, 3) != digest
    np.testing.assert_equal(len(digest), 64)


@pytest.mark.parametrize("content", ["", "null", '["x"]', "[1e999]", "[" * 10**5])
def test_a_damaged_record_of_changes_is_named(tmp_path, content):
    (tmp_path / checkpoint.CHANGING).write_text(content)
    with pytest.raises(digests.DamagedError, match=r"changing\.json is damaged; delete it"):
        checkpoint.saved_steps(epath.Path(tmp_path))
