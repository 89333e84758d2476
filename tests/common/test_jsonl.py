"""JSON lines: written whole, and files that grow line by line."""

import doctest
import json
import os

from common import data_file, jsonl, provenance

RECORDS = [{"id": "a", "instruction": "Explain fever."}, {"id": 7, "output": "Ωμέγα\u2028{x}"}]


def test_the_examples_in_the_docstrings_are_true():
    assert doctest.testmod(jsonl).failed == 0


def test_a_written_file_is_read_again(tmp_path):
    jsonl.write(tmp_path / "x.jsonl", RECORDS)
    assert [record for _, record in data_file.read(tmp_path / "x.jsonl")] == RECORDS
    assert os.listdir(tmp_path) == ["x.jsonl"]


def test_run_json_is_written_first_with_the_digest_of_the_output(tmp_path, monkeypatch):
    path, record = tmp_path / "x.jsonl", tmp_path / "x.jsonl.run.json"
    jsonl.write_output(path, RECORDS, {"counts": 2})
    written = json.loads(record.read_text())
    assert written["sha256"] == provenance.sha256(path) and written["end"]
    monkeypatch.setattr(provenance, "write_text", lambda to, text: to == path or to.touch())
    path.unlink()
    record.unlink()
    jsonl.write_output(path, RECORDS, {})
    assert record.exists() and not path.exists(), "a kill in between leaves no output"


def test_a_growing_file_has_each_line_at_once(tmp_path):
    path = tmp_path / "x.jsonl"
    path.write_text("old")
    file = jsonl.LineFile(path, ["kept"])
    assert path.read_text() == "kept\n"
    file.add("new")
    assert path.read_text() == "kept\nnew\n"
    file.close()
