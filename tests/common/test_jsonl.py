"""JSONL: forms of files, lines that are not records, and files that grow line by line."""

import doctest
import gzip
import json
import os
from pathlib import Path

import pytest

from common import jsonl

RECORDS = [{"id": "a", "instruction": "Explain fever."}, {"id": 7, "output": "Ωμέγα\u2028{x}"}]


def as_lines(records) -> str:
    return "".join(map(jsonl.line, records))


def read(path: Path) -> list[jsonl.Record]:
    return [record for _, record in jsonl.read(path)]


def write(path: Path, text: str) -> Path:
    content = text.encode()
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return path


def test_the_examples_in_the_docstrings_are_true():
    assert doctest.testmod(jsonl).failed == 0


@pytest.mark.parametrize("name", ["x.jsonl", "x.jsonl.gz", "x.json", "x.json.gz"])
def test_every_form_of_file_gives_the_same_records(tmp_path, name):
    text = as_lines(RECORDS) if "jsonl" in name else json.dumps(RECORDS, indent=1)
    assert read(write(tmp_path / name, text)) == RECORDS


def test_a_location_is_the_line_or_the_position(tmp_path):
    lines = write(tmp_path / "x.jsonl", "\n" + as_lines(RECORDS))
    array = write(tmp_path / "x.json", json.dumps(RECORDS))
    assert [location for location, _ in jsonl.read(lines)] == [f"{lines}:2", f"{lines}:3"]
    assert [location for location, _ in jsonl.read(array)] == [
        f"{array}, record 0",
        f"{array}, record 1",
    ]


@pytest.mark.parametrize(
    "name, text, message",
    [
        ("x.jsonl", '{}\n{"a": 1', r"x\.jsonl:2: not JSON: "),
        ("x.jsonl", "{}\n[1]\n", r"x\.jsonl:2: a record must be a JSON object"),
        ("x.json", '[\n{"a" 1}]', r"x\.json:2: not JSON: "),
        ("x.json", "{}", r"x\.json: a \.json file must contain one array"),
        ("x.jsonl.gz", "{}\n{", r"x\.jsonl\.gz:2: not JSON: "),
    ],
)
def test_a_line_that_is_not_a_record_is_named(tmp_path, name, text, message):
    with pytest.raises(ValueError, match=message):
        read(write(tmp_path / name, text))


def test_files_that_cannot_be_read(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no such file: .*absent\.jsonl"):
        read(tmp_path / "absent.jsonl")
    latin = tmp_path / "latin.jsonl"
    latin.write_bytes('{"instruction": "fièvre", "output": "b"}'.encode("latin-1"))
    with pytest.raises(ValueError, match=r"latin\.jsonl: not UTF-8"):
        read(latin)
    whole = gzip.compress(as_lines(RECORDS * 50).encode())
    for name, content in {
        "plain": b"{}",
        "cut": whole[:-20],
        "damaged": whole[:30] + b"\xff" * 20 + whole[50:],
    }.items():
        path = tmp_path / f"{name}.jsonl.gz"
        path.write_bytes(content)
        with pytest.raises(ValueError, match=rf"{name}\.jsonl\.gz: not a whole gzip file"):
            read(path)


def test_a_written_file_is_read_again(tmp_path):
    jsonl.write(tmp_path / "x.jsonl", RECORDS)
    assert read(tmp_path / "x.jsonl") == RECORDS
    assert os.listdir(tmp_path) == ["x.jsonl"]


def test_a_growing_file_has_each_line_at_once(tmp_path):
    path = tmp_path / "x.jsonl"
    path.write_text("old")
    file = jsonl.LineFile(path, ["kept"])
    assert path.read_text() == "kept\n"
    file.add("new")
    assert path.read_text() == "kept\nnew\n"
    file.close()
