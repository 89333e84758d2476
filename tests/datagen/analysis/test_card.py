"""The dataset card: its YAML, what only the user can say, and provenance."""

import doctest
import json
from pathlib import Path

import pytest

from datagen.analysis import card
from datagen.analysis.card import Settings
from tests.datagen.analysis.test_measures import SETS, measure, record

SETTINGS = Settings("cc-by-nc-4.0", ("en", "de"), 'Title: "quoted" — №1', ("medical",))
FILES = {"A": Path("a.jsonl"), "B": Path("b.jsonl")}


def make(settings=SETTINGS, files=FILES, sets=SETS):
    figures = {"figures/lengths.png": "Lengths"}
    return card.card(settings, measure(sets), files, sets, figures)


def test_examples_of_the_docstrings():
    assert doctest.testmod(card).failed == 0


def test_front_matter_is_yaml():
    yaml = pytest.importorskip("yaml")
    content = yaml.safe_load(make().split("---\n")[1])
    assert content == {
        "license": "cc-by-nc-4.0",
        "pretty_name": SETTINGS.title,
        "language": ["en", "de"],
        "size_categories": ["n<1K"],
        "task_categories": ["text-generation"],
        "tags": ["instruction-tuning", "medical"],
        "configs": [
            {"config_name": "A", "data_files": "a.jsonl"},
            {"config_name": "B", "data_files": "b.jsonl"},
        ],
    }


@pytest.mark.parametrize("name", ["license", "language", "title"])
def test_what_is_missing_is_named(name):
    given = {"license": "mit", "language": ("en",), "title": "T", "tags": ()}
    with pytest.raises(ValueError, match=f"--card needs --{name}:"):
        Settings(**given | {name: type(given[name])()})


@pytest.mark.parametrize("license", ["Apache 2.0", "MIT", "x\ny"])
def test_no_identifier(license):
    with pytest.raises(ValueError, match="no Hugging Face identifier"):
        Settings(license, ("en",), "T", ())


def test_body():
    text = make()
    assert "| Records | 3 | 1 |" in text
    assert "![Lengths](figures/lengths.png)" in text
    assert "diagnosis, treatment" in text
    assert "- 3 records: no source given" in text


def test_sources_of_the_records():
    teacher = {"model": "teacher-1", "prompt_version": "tasks-v1", "request": "r1"}
    sets = {"A": [record("x", source=teacher), record("y", source="by hand | <b>")]}
    text = make(files={"A": FILES["A"]}, sets=sets)
    assert r"- 1 records: model teacher-1, prompt\_version tasks-v1" in text
    assert r"- 1 records: by hand \| &lt;b>" in text


def test_run_json_beside_the_data(tmp_path):
    run = {
        "config": {"teacher": {"model": "m-1", "temperature": 1}, "threshold": 0.7},
        "counts": {"dropped": {"near_duplicate": 1234}},
        "start": "2026-11-23T10:00:00+00:00",
        "end": None,
    }
    (tmp_path / "a.jsonl.run.json").write_text(json.dumps(run))
    text = make(files={"A": tmp_path / "a.jsonl"}, sets={"A": SETS["A"]})
    for line in ("- start: 2026-11-23", "- teacher.model: m-1", "- threshold: 0.7"):
        assert line in text
    assert "- dropped.near_duplicate: 1,234" in text
    assert "temperature" not in text
    assert str(tmp_path) not in text


def test_two_files_of_one_name():
    with pytest.raises(ValueError, match="same name"):
        make(files={"A": Path("x/a.jsonl"), "B": Path("y/a.jsonl")})
