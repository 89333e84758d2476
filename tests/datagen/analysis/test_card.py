"""The dataset card: its YAML, what only the user can say, and provenance."""

import dataclasses
import doctest
import json
from pathlib import Path

import pytest

from common.sections import UsageError
from datagen.analysis import card
from datagen.analysis.card import CardSettings
from tests.datagen.analysis.test_measures import SETS, measure, record

SETTINGS = CardSettings("cc-by-nc-4.0", ("en", "de"), 'Title: "quoted" — №1', ("medical",))


def make(settings=SETTINGS, path=Path("a.jsonl"), sets=SETS):
    figures = {"figures/lengths.png": "Lengths"}
    return card.card(settings, measure(sets), path, next(iter(sets.values())), figures)


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
        "configs": [{"config_name": "A", "data_files": "a.jsonl"}],
    }


def test_a_card_needs_a_licence_but_no_language():
    with pytest.raises(UsageError, match="--card requires --license"):
        CardSettings("", ("en",), "T", ())
    with pytest.raises(UsageError, match="'english' is no code"):
        CardSettings("mit", ("english",), "T", ())
    assert "language" not in make(CardSettings("mit", (), "T", ())).split("---\n")[1]


@pytest.mark.parametrize("license", ["Apache 2.0", "MIT", "x\ny"])
def test_no_identifier(license):
    with pytest.raises(UsageError, match="no Hugging Face identifier"):
        CardSettings(license, ("en",), "T", ())


def test_body():
    text = make()
    assert "| Records | 3 | 1 |" in text
    assert "![Lengths](figures/lengths.png)" in text
    warned = dataclasses.replace(SETTINGS, notice="Not read by anybody.\n")
    assert "## Use\n\nNot read by anybody." in make(warned)
    assert "- 3 records: no source given" in text


def test_other_sets_are_comparisons_only():
    text = make()
    assert text.count("A is this data set. For comparison only, not part of it: B.") == 2
    assert "n<1K" in make(sets=SETS | {"B": SETS["B"] * 2000}), "the size is the first set's"
    assert "- 1 records: no source given" not in text, "the provenance is the first set's"
    assert "For comparison only" not in make(sets={"A": SETS["A"]})


def test_sources_of_the_records():
    teacher = {"model": "teacher-1", "prompt_version": "tasks-v1", "request": "r1"}
    sets = {"A": [record("x", source=teacher), record("y", source="by hand | <b>")]}
    text = make(sets=sets)
    assert r"- 1 records: model teacher-1, prompt\_version tasks-v1" in text
    assert r"- 1 records: by hand \| &lt;b>" in text


def test_run_json_beside_the_data(tmp_path):
    run = {
        "config": {
            "teacher": {"model": "m-1", "temperature": 1},
            "rater": {"model": "meta-llama/m-2"},
            "threshold": 0.7,
            "prompt": f"{tmp_path}/mine.txt",
        },
        "counts": {"dropped": {"near_duplicate": 1234}, "against": {f"{tmp_path}/test.jsonl": 3}},
        "host": "node-17.internal",
        "start": "2026-11-23T10:00:00+00:00",
        "end": None,
    }
    (tmp_path / "a.jsonl.run.json").write_text(json.dumps(run))
    text = make(path=tmp_path / "a.jsonl")
    for line in ("- start: 2026-11-23", "- teacher.model: m-1", "- threshold: 0.7"):
        assert line in text
    assert "- dropped.near_duplicate: 1,234" in text.replace("\\", "")
    assert "- against.test.jsonl: 3" in text and "- prompt: mine.txt" in text
    assert "- rater.model: meta-llama/m-2" in text
    assert "temperature" not in text and "node-17" not in text
    assert str(tmp_path) not in text.replace("\\", "")
