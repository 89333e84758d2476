"""Test sets by name from either layout, and by path."""

import json

import pytest

from evaluation.inputs import benchmarks
from evaluation.inputs.benchmarks import BENCHMARKS, Item
from tests.conftest import DATA, needs_data
from tests.support.published_files import (
    DOCTOR,
    FARM,
    POSTS,
    QUESTIONS,
    flat,
    medinstruct,
    merged,
    original,
    small,
    write,
)

__all__ = ["flat", "original", "small"]


@pytest.mark.parametrize("layout", ["original", "flat"])
def test_published_sets_load_by_name(request, layout):
    data = request.getfixturevalue(layout)
    items = benchmarks.load("medinstruct", data)
    assert [item.id for item in items] == ["0", "1", "2", "4"]
    assert [item.difficulty for item in items] == [1, 2, 3, 5]
    assert [item.text for item in items] == QUESTIONS
    assert items == benchmarks.load("medsi", data), "as the original calls it"
    posts = benchmarks.load("icliniq", data)
    assert [(item.instruction, item.input) for item in posts] == [(DOCTOR, p) for p in POSTS]
    farm = benchmarks.load("alpaca_eval", data)
    assert {item.benchmark for item in farm} == {"alpaca_farm"}
    assert [item.text for item in farm] == [merged(*pair) for pair in FARM]
    assert {item.topic for item in farm} == {"vicuna" if layout == "original" else "koala"}


def test_any_file_is_a_benchmark(tmp_path):
    records = [{"instruction": "Sum up.", "input": "DNA", "topic": "genes", "difficulty": 2}]
    path = write(tmp_path / "cardiology.test.jsonl", records)
    item = Item("0", "cardiology", "Sum up.", "DNA", "genes", 2)
    assert benchmarks.load(str(path), tmp_path) == [item]
    assert benchmarks.load(f"mine={path}", tmp_path)[0].benchmark == "mine"
    assert benchmarks.load(f"medsi={path}", tmp_path)[0].benchmark == "medinstruct"


def test_texts_of_one_part(tmp_path):
    path = write(tmp_path / "x.json", [{"instruction": "Say no.", "input": "<noinput>"}])
    assert benchmarks.load(str(path), tmp_path)[0].text == "Say no."
    path = write(tmp_path / "y.json", [{"instruction": "", "input": "What is anaemia?"}])
    assert benchmarks.load(str(path), tmp_path)[0].text == "What is anaemia?"


def test_what_cannot_be_loaded_is_explained_in_a_line(flat, tmp_path):
    with pytest.raises(ValueError, match="no benchmark 'pubmed'; choose from medinstruct, icl"):
        benchmarks.load("pubmed", flat)
    with pytest.raises(FileNotFoundError, match=r"icliniq: none of .*/; give the folder"):
        benchmarks.load("icliniq", tmp_path / "empty")
    with pytest.raises(FileNotFoundError, match=r"no such file: .*absent\.jsonl"):
        benchmarks.load("x=absent.jsonl", flat)
    twice = write(tmp_path / "twice.jsonl", [{"id": 7, "instruction": "a"}] * 2)
    with pytest.raises(ValueError, match=r"records 0 and 1 .* share the id '7'.*give every rec"):
        benchmarks.load(str(twice), flat)
    write(flat / "testsets/MedInstruct-test.jsonl", medinstruct()[:3])
    with pytest.raises(ValueError, match=r"3 items, medinstruct has 4; .*NAME="):
        benchmarks.load("medinstruct", flat)


@needs_data
def test_the_published_files():
    items = {name: benchmarks.load(name, DATA) for name in BENCHMARKS}
    assert {name: len(found) for name, found in items.items()} == {
        "medinstruct": 216,
        "icliniq": 1000,
        "alpaca_farm": 805,
    }
    ids = {int(item.id) for item in items["medinstruct"]}
    assert set(range(217)) - ids == {143}
    levels = [item.difficulty for item in items["medinstruct"]]
    assert [levels.count(level) for level in range(1, 6)] == [44, 46, 41, 41, 44]
    assert sum(bool(item.input) for item in items["alpaca_farm"]) == 208
    topics = [item.topic for item in items["alpaca_farm"]]
    assert topics.count("selfinstruct") == 252 and topics.count("vicuna") == 80
    assert len({item.text for found in items.values() for item in found}) == 2021


def test_ids_are_texts(tmp_path):
    asked = ({"id": 7}, {"id": "8"}, {"id": ""}, {})
    path = write(tmp_path / "x.jsonl", [record | {"instruction": "Why?"} for record in asked])
    assert [item.id for item in benchmarks.load(str(path), tmp_path)] == ["7", "8", "2", "3"]


@pytest.mark.parametrize("field", ["id", "topic"])
def test_half_a_surrogate_pair_is_found_before_any_request(tmp_path, field):
    path = tmp_path / "x.jsonl"
    path.write_text(json.dumps({"instruction": "Why?", field: "\ud800"}) + "\n")
    with pytest.raises(ValueError, match=f"field '{field}' is not valid Unicode"):
        benchmarks.load(str(path), tmp_path)


@pytest.mark.parametrize("name", ["a\0b", "a\u202eb", "a\nb", " "])
def test_names_can_be_displayed(tmp_path, name):
    path = write(tmp_path / "x.jsonl", [{"instruction": "Why?"}])
    with pytest.raises(ValueError, match="cannot be displayed"):
        benchmarks.load(f"{name}={path}", tmp_path)


def test_a_name_may_hold_slashes_and_a_path_equals_signs(tmp_path):
    path = write(tmp_path / "lr=2e-5" / "x.jsonl", [{"instruction": "Why?"}])
    assert benchmarks.split_source(str(path)) == ("", str(path))
    assert benchmarks.split_source(f"org/Modèle 7B={path}#a") == ("org/Modèle 7B", f"{path}#a")
    assert benchmarks.load(f"org/set={path}", tmp_path)[0].benchmark == "org/set"
