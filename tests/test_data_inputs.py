"""Every command of datagen and evaluation reads data by one reader, with one set of messages."""

import gzip
import json
from pathlib import Path

import pytest

from datagen import dedup, responses, stats, tasks
from evaluation.inputs import benchmarks, outputs
from evaluation.judgements import foreign
from tests.datagen.test_tasks import make_config

RECORD = {
    "id": "1",
    "instruction": "What is gout?",
    "input": "",
    "output": "A disease.",
    "type": "Q&A",
    "topic": "Joints",
    "view": "Nurse",
    "difficulty": 2,
    "generator": "ours",
}


def read_seeds(path):
    return tasks.read_seeds(make_config(tasks__seeds=str(path), tasks__seeds_per_request=1).tasks)


def read_outputs(path):
    item = benchmarks.Item("1", "set", RECORD["instruction"], "")
    return outputs.load(f"ours={path}", [item], path.parent)


READERS = {
    "tasks": read_seeds,
    "responses": lambda path: responses.ResponseRun(make_config().responses, path).tasks,
    "dedup": lambda path: dedup.read_records(path),
    "stats": lambda path: stats.read_records(path),
    "benchmark": lambda path: benchmarks.load(f"set={path}", path.parent),
    "outputs": read_outputs,
}

LINE = json.dumps(RECORD) + "\n"
TABLE = ",".join(RECORD) + "\n" + ",".join(map(str, RECORD.values())) + "\n"
GOOD = {
    "lines.json": LINE,
    "array.jsonl": json.dumps([RECORD], indent=1),
    "mark.jsonl": "\ufeff" + LINE,
    "wide.jsonl": LINE.encode("utf-16"),
    "under_a_key.json": json.dumps({"version": 1, "data": [RECORD]}),
    "table.csv": TABLE,
    "table.tsv": TABLE.replace(",", "\t"),
    "packed.jsonl": gzip.compress(LINE.encode(), mtime=0),
}
POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:0\n"
BAD = {
    "pointer.jsonl": (POINTER, "is a git-lfs pointer"),
    "page.json": ("<!DOCTYPE html>", "is a web page"),
    "latin.jsonl": (LINE.replace("gout", "fi\u00e8vre").encode("latin-1"), "not UTF-8"),
    "half.parquet": (b"PAR1\x15\x04", "Parquet file"),
    "half.jsonl": (LINE + LINE[:20], ":2: not JSON"),
    "nan.jsonl": ('{"instruction": NaN}', "NaN is not JSON"),
    "twice.jsonl": ('{"output": "1", "output": "2"}', "key 'output' occurs twice"),
    "sharegpt.json": (
        json.dumps([{"conversations": [{"from": "human", "value": "a"}]}] * 2),
        "a conversation (field 'conversations': a list of 'from' and 'value')",
    ),
    "messages.jsonl": (
        json.dumps({"messages": [{"role": "user", "content": "a"}]}) + "\n",
        "a conversation (field 'messages': a list of 'role' and 'content')",
    ),
    "question.jsonl": (
        json.dumps({"question_id": 1, "category": "x", "turns": ["a", "b"]}),
        "a question of FastChat (the record has question_id, category, turns)",
    ),
    "answer.jsonl": (
        json.dumps({"question_id": 1, "choices": [{"index": 0, "turns": ["a"]}]}),
        "an answer of FastChat (the record has question_id, choices)",
    ),
}


def write(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


@pytest.mark.parametrize("name", GOOD)
@pytest.mark.parametrize("command", READERS)
def test_every_form_is_read(tmp_path, command, name):
    (found,) = READERS[command](write(tmp_path / name, GOOD[name]))
    content = found if isinstance(found, dict) else vars(found)
    field = "output" if command == "outputs" else "instruction"
    assert content[field] == RECORD[field]


@pytest.mark.parametrize("name", BAD)
@pytest.mark.parametrize("command", READERS)
def test_what_cannot_be_read_has_the_same_message_everywhere(tmp_path, command, name):
    content, message = BAD[name]
    path = write(tmp_path / name, content)
    with pytest.raises(ValueError) as caught:
        READERS[command](path)
    assert message in str(caught.value)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", BAD)
def test_judgements_too(tmp_path, name):
    content, message = BAD[name]
    path = write(tmp_path / name, content)
    expected = message if " of FastChat" not in message and "a conv" not in message else "not judge"
    with pytest.raises(ValueError) as caught:
        foreign.load([str(path)])
    assert expected in str(caught.value)
