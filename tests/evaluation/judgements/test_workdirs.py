"""The texts in workdirs: errors name what is missing or differs."""

import json

import pytest

from evaluation.judgements import reading, workdirs
from tests.support import judge_workdirs


def make(folder, **settings):
    settings = {"items": {"heart": ["a", "b"]}} | settings
    return judge_workdirs.write(folder, lambda record: "tie", **settings)


def read(*folders):
    found, _ = reading.read(folders)
    return workdirs.read(folders, found)


def change(folder, file, line, **fields):
    """Changes a line; without fields it goes."""
    lines = (folder / file).read_text().splitlines()
    record = json.loads(lines.pop(line))
    if fields:
        lines.insert(line, json.dumps(record | fields))
    (folder / file).write_text("".join(text + "\n" for text in lines))


def test_items_and_answers(tmp_path):
    texts = read(make(tmp_path))
    assert texts.items["heart", "b"].difficulty == 2
    assert texts.outputs["heart", "gpt-4"]["a"].output == "gpt-4 on a."
    assert texts.lengths("heart", "ours", ["a", "b"]).tolist() == [10, 10]


def test_two_judges_of_the_same_texts(tmp_path):
    texts = read(make(tmp_path / "one"), make(tmp_path / "two", judges=["k"]))
    assert len(texts.items) == 2


@pytest.mark.parametrize(
    ("file", "fields", "message"),
    [
        (
            "items.jsonl",
            {"instruction": "Else?"},
            "id 'a' of heart has another text",
        ),
        ("outputs.jsonl", {"output": "Else."}, "ours has another answer to id 'a' of heart"),
    ],
)
def test_two_judges_of_different_texts(tmp_path, file, fields, message):
    one, two = make(tmp_path / "one"), make(tmp_path / "two", judges=["k"])
    change(two, file, 0, **fields)
    with pytest.raises(ValueError, match=message):
        read(one, two)


@pytest.mark.parametrize(
    ("file", "message"),
    [
        ("items.jsonl", "items.jsonl lacks id 'a' of heart"),
        ("outputs.jsonl", "outputs.jsonl lacks the answer of ours to id 'a' of heart"),
    ],
)
def test_a_missing_text(tmp_path, file, message):
    folder = make(tmp_path)
    change(folder, file, 0)
    with pytest.raises(ValueError, match=message):
        read(folder)


def test_a_line_without_a_name(tmp_path):
    folder = make(tmp_path)
    change(folder, "outputs.jsonl", 0, generator="")
    with pytest.raises(ValueError, match=r"outputs.jsonl:1: field 'generator' is missing"):
        read(folder)
