"""Model folders: a bad one is named, and a new one appears complete or not at all."""

import dataclasses
import os
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest

from alpacare_jax import convert
from alpacare_jax.checkpoints import layerwise, model_folder
from alpacare_jax.formats import safetensors_file
from tests.conftest import umask_of
from tests.support.hf_folders import (
    CONFIG,
    PLAIN,
    fails_and_leaves_nothing,
    to_hf,
    write_hf,
)


@pytest.fixture
def source(tmp_path) -> Path:
    return write_hf(tmp_path / "hf", CONFIG)


def test_config_files_that_cannot_be_read(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"has no config\.json: .* alpacare_jax\.convert"):
        model_folder.read_config(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ValueError, match=r"config\.json: not JSON"):
        model_folder.read_config(tmp_path)


def test_tokenizer_of_another_model_is_named(tmp_path):
    small = dataclasses.replace(PLAIN, vocab_size=300)
    source = write_hf(tmp_path / "hf", small)
    with fails_and_leaves_nothing(tmp_path, ValueError, "tokenizer has", "300 embedding rows"):
        convert.from_hf(source, tmp_path / "ours")


def test_target_that_exists_is_left_alone(source, tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "mine.txt").write_text("mine")
    (tmp_path / "file").write_text("mine")
    for name in ("folder", "file"):
        with fails_and_leaves_nothing(tmp_path, FileExistsError, name, "--target"):
            convert.from_hf(source, tmp_path / name)
    convert.from_hf(source, tmp_path / "ours")
    for name in ("folder", "file", "hf"):
        with fails_and_leaves_nothing(tmp_path, FileExistsError, name, "--target"):
            to_hf(tmp_path / "ours", tmp_path / name)


@pytest.mark.parametrize("umask", [0o022, 0o077])
def test_empty_target_and_missing_parents_are_fine(source, tmp_path, umask):
    (tmp_path / "empty").mkdir()
    for target in (tmp_path / "empty", tmp_path / "a" / "b" / "ours"):
        with umask_of(umask):
            convert.from_hf(source, target)
        assert (target / "config.json").is_file()
        assert os.stat(target).st_mode & 0o777 == 0o777 - umask
        assert not [path for path in target.rglob("*") if path.stat().st_mode & umask]
        assert [p.name for p in target.parent.iterdir() if "partial" in p.name] == []


def test_full_disk_is_told_before_anything_is_written(source, tmp_path, monkeypatch):
    convert.from_hf(source, tmp_path / "ours")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=1000))
    for owner in (layerwise.Writer, safetensors_file.FolderWriter):
        monkeypatch.delattr(owner, "__init__")
    with fails_and_leaves_nothing(tmp_path, OSError, "0.0 GB free", "--target"):
        convert.from_hf(source, tmp_path / "never")
    with fails_and_leaves_nothing(tmp_path, OSError, "0.0 GB free", "--target"):
        to_hf(tmp_path / "ours", tmp_path / "never")


def test_conversion_that_is_running_is_left_alone(source, tmp_path):
    with model_folder.new_directory(tmp_path / "ours", 0) as theirs:
        (theirs / "mine.txt").write_text("mine")
        convert.from_hf(source, tmp_path / "ours")
        assert (theirs / "mine.txt").read_text() == "mine"
        shutil.rmtree(tmp_path / "ours")
