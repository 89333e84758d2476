"""The command: what it writes, twice the same, and its errors."""

import json
import os
import subprocess
import sys

import pytest

from datagen import stats
from tests.conftest import REPOSITORY
from tests.support import commands

ROWS = [
    {"instruction": "Write a note.", "type": "Chat", "output": "Yes."},
    {"instruction": "List the drugs.", "input": "N/A", "type": "chat", "difficulty": 3},
]


def run(*args, module="datagen.stats"):
    return commands.run(module, *args)


@pytest.fixture
def data(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return path


def contents(directory):
    return {
        str(path.relative_to(directory)): path.read_bytes()
        for path in directory.rglob("*")
        if path.is_file() and path.name != "run.json"
    }


def test_everything_is_written_and_twice_the_same(tmp_path, data):
    """In two processes with different hash seeds."""
    flags = [f"--input={data}", "--parser=rules", "--card", "--license=mit"]
    command = [sys.executable, "-m", "datagen.stats", *flags, f"--output={tmp_path / 'one'}"]
    subprocess.run(command, cwd=REPOSITORY, env=os.environ | {"PYTHONHASHSEED": "1"}, check=True)
    assert run(*flags, f"--output={tmp_path / 'two'}").returncode == 0
    pngs = {f"figures/{name}.png" for name in ("verb_objects", "labels", "lengths", "nearest")}
    one = contents(tmp_path / "one")
    assert set(one) == {"stats.json", "stats.html", "README.md", "croissant.json"} | pngs
    assert one == contents(tmp_path / "two")
    found = json.loads(one["stats.json"])["sets"]["rows"]
    assert found["words"]["input"]["count"] == 0
    assert found["labels"]["type"]["values"][0]["spellings"] == {"Chat": 1, "chat": 1}
    record = json.loads((tmp_path / "one" / "run.json").read_text())
    assert record["config"]["inputs"]["rows"]["file"] == "rows.jsonl"
    assert record["end"]
    assert all(f"({path})" in one["README.md"].decode() for path in pngs)
    assert "No clinician has reviewed" in one["README.md"].decode()


def test_a_card_without_a_licence_is_a_wrong_flag_before_any_work(tmp_path, data):
    process = run(f"--input={data}", f"--output={tmp_path / 'x'}", "--card", "--title=T")
    assert process.returncode == 2
    assert process.stderr.startswith("error: --card requires --license")
    assert not (tmp_path / "x").exists()


def test_the_card_is_of_the_first_set(tmp_path, data):
    other = tmp_path / "other.jsonl"
    other.write_text(json.dumps({"instruction": "Define fever.", "source": "a book"}))
    inputs = f"--input={data},{other}", "--names=Ours,Other", f"--output={tmp_path / 'x'}"
    law = "--notice=configs/domains/law/notice.txt"
    assert run(*inputs, "--parser=rules", "--card", "--license=mit", law).returncode == 0
    text = (tmp_path / "x" / "README.md").read_text()
    assert "No lawyer has reviewed" in text and "clinician" not in text
    assert "# Ours\n" in text and "rows.jsonl" in text
    assert "other.jsonl" not in text and "a book" not in text
    machine = json.loads((tmp_path / "x" / "croissant.json").read_text())
    assert machine["name"] == "Ours" and machine["distribution"][0]["name"] == "rows.jsonl"
    assert "For comparison only, not part of it: Other." in text


def test_three_words_of_hindi_are_three_texts_in_stats_and_dedup(tmp_path):
    path = tmp_path / "words.jsonl"
    rows = [{"instruction": word, "input": "", "output": "x"} for word in ("काल", "कुल", "कील")]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    flags = f"--input={path}", "--tokenizer=unicode"
    assert run(*flags, f"--output={tmp_path}", "--parser=rules").returncode == 0
    found = json.loads((tmp_path / "stats.json").read_text())["sets"]["words"]
    assert (found["nearest"]["identical"], found["nearest"]["mean"]) == (0, 0)
    assert (found["vocabulary"]["tokens"], found["vocabulary"]["types"]) == (3, 3)
    dedup = run(*flags, f"--output={tmp_path / 'kept.jsonl'}", module="datagen.dedup")
    assert "3 records read, 3 kept" in dedup.stderr


def test_no_input_is_a_wrong_flag(tmp_path):
    process = run("--input=", f"--output={tmp_path / 'x'}")
    assert process.returncode == 2 and "one or several entries" in process.stderr


def test_an_empty_file_is_an_error_that_names_it(tmp_path):
    path = tmp_path / "empty.jsonl"
    path.write_text("")
    with pytest.raises(ValueError, match=r"empty.jsonl: contains no records"):
        stats.read_set(path)


def test_an_output_that_is_no_text_is_an_error(tmp_path):
    path = tmp_path / "x.jsonl"
    path.write_text('{"instruction": "a", "output": [1]}\n')
    with pytest.raises(ValueError, match="record 0: field 'output' must be a string"):
        stats.read_set(path)


def test_names_of_the_sets():
    assert list(stats.named_inputs(["x/a.jsonl.gz", "b.json"], [])) == ["a", "b"]
    assert list(stats.named_inputs(["x/a.json", "y/a.json"], ["X", "Y"])) == ["X", "Y"]
    with pytest.raises(ValueError, match="duplicate set name 'a'"):
        stats.named_inputs(["x/a.json", "y/a.json"], [])
    with pytest.raises(ValueError, match="1 names for 2 files"):
        stats.named_inputs(["a", "b"], ["A"])
    with pytest.raises(ValueError, match="do not fit on a page"):
        stats.named_inputs(list("abcdefgh"), [])
