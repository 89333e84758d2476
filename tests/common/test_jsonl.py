"""JSON lines: written whole, and files that grow line by line."""

import doctest
import os

from common import data_file, jsonl

RECORDS = [{"id": "a", "instruction": "Explain fever."}, {"id": 7, "output": "Ωμέγα\u2028{x}"}]


def test_the_examples_in_the_docstrings_are_true():
    assert doctest.testmod(jsonl).failed == 0


def test_a_written_file_is_read_again(tmp_path):
    jsonl.write(tmp_path / "x.jsonl", RECORDS)
    assert [record for _, record in data_file.read(tmp_path / "x.jsonl")] == RECORDS
    assert os.listdir(tmp_path) == ["x.jsonl"]


def test_a_growing_file_has_each_line_at_once(tmp_path):
    path = tmp_path / "x.jsonl"
    path.write_text("old")
    file = jsonl.LineFile(path, ["kept"])
    assert path.read_text() == "kept\n"
    file.add("new")
    assert path.read_text() == "kept\nnew\n"
    file.close()
