"""The JSONL contract: what is read, what counts as no input, and how bad records are named."""

import datetime
import json
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.jsonl import NO_INPUT
from common.records import Example, read_examples, read_records
from tests.conftest import REPOSITORY

RECORDS = [
    {"id": "a", "instruction": "Explain fever.", "input": "", "output": "A high temperature."},
    {"instruction": "Name the gene.", "input": "DNA repair", "output": "BRCA1", "difficulty": 2},
    {"id": 7, "instruction": "Ωμέγα\u2028{x}", "output": "line\nline\r\n"},
]
EXAMPLES = [
    Example("a", "Explain fever.", "", "A high temperature."),
    Example("1", "Name the gene.", "DNA repair", "BRCA1"),
    Example("7", "Ωμέγα\u2028{x}", "", "line\nline\r\n"),
]


def as_lines(records) -> str:
    return "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records)


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def test_examples_of_a_file(tmp_path):
    path = write(tmp_path / "x.jsonl", as_lines(RECORDS))
    assert read_examples(path) == EXAMPLES
    assert read_examples(str(path)) == EXAMPLES


def test_blank_lines_are_skipped_but_counted(tmp_path):
    path = write(tmp_path / "x.jsonl", '\n{"instruction": "a", "output": "b"}\n\n  \n{}\n')
    with pytest.raises(ValueError, match=r"x\.jsonl:5: field 'instruction' is missing"):
        read_examples(path)


@pytest.mark.parametrize(
    "given_input, read",
    [
        *[(word, "") for word in sorted(NO_INPUT)],
        *[(" NA\n", ""), ("<NoInput>", ""), ("None", ""), ("N/A", ""), (None, ""), ("", "")],
        *[(text, text) for text in ("DNA repair", "NA+", "none of these", "n / a", "nan", "no")],
    ],
)
def test_what_counts_as_no_input(tmp_path, given_input, read):
    record = {"instruction": "x", "input": given_input, "output": "y"}
    assert read_examples(write(tmp_path / "x.jsonl", as_lines([record])))[0].input == read


def test_the_words_for_no_input_are_the_contracts():
    assert {"<noinput>", "na", "n/a", "none"} == NO_INPUT


def test_tasks_need_no_output(tmp_path):
    path = write(tmp_path / "x.jsonl", as_lines([{"instruction": "x"}]))
    assert read_examples(path, answered=False) == [Example("0", "x", "", "")]
    with pytest.raises(ValueError, match=r"x\.jsonl:1: field 'output' is missing"):
        read_examples(path)


GOOD = '{"instruction": "a", "output": "b"}\n'


@pytest.mark.parametrize(
    "name, text, message",
    [
        ("x.jsonl", GOOD + '{"output": "b"}\n', r"x\.jsonl:2: field 'instruction' is missing"),
        ("x.jsonl", GOOD + '{"instruction": "a"}\n', r"x\.jsonl:2: field 'output' is missing"),
        ("x.jsonl", '{"instruction": 3, "output": "b"}', r":1: field 'instruction' must be a str"),
        ("x.jsonl", '{"instruction": "a", "output": ["b"]}', r":1: field 'output' must be a str"),
        ("x.jsonl", '{"instruction": "a", "output": 0}', r":1: field 'output' must be a str"),
        ("x.jsonl", '{"instruction": "a", "input": false, "output": "b"}', r":1: field 'input' mu"),
        ("x.jsonl", '{"instruction": " ", "output": "b"}', r":1: field 'instruction' is empty"),
        ("x.jsonl", '{"instruction": "\\ud800", "output": "b"}', r":1: field 'instruction' is not"),
        ("x.jsonl", "", r"x\.jsonl: contains no records"),
        ("x.json", f"[{GOOD}, {{}}]", r"x\.json, record 1: field 'instruction' is missing"),
        ("x.json", '{"instruction": {"0": "a"}, "output": {"0": "b"}}', ":1: columns, not records"),
        (
            "x.json",
            '{"train": [{"instruction": "a", "output": "b"}], "test": [{"instruction": "c"}]}',
            r":1: several lists of records in one object \(train, test\)",
        ),
    ],
)
def test_a_bad_record_is_named_by_file_line_and_field(tmp_path, name, text, message):
    with pytest.raises(ValueError, match=message):
        read_examples(write(tmp_path / name, text))


def test_input_alone_is_instruction_enough(tmp_path):
    record = {"instruction": "", "input": "What is anaemia?", "output": "y"}
    path = write(tmp_path / "x.jsonl", as_lines([record]))
    assert read_examples(path)[0].input == "What is anaemia?"


TURNS = ("What is fever?", "A raised temperature.", "Why?", "Infection.")
QUESTION, ANSWER, *_ = TURNS


def conversations(name, role, text):
    """A conversation of one question, and one of two."""
    return [{name: [{role: "x", text: turn} for turn in TURNS[:size]]} for size in (2, 4)]


@pytest.mark.parametrize(
    "name, records, message",
    [
        (
            "share.jsonl",
            conversations("conversations", "from", "value"),
            "a conversation (field 'conversations': a list of 'from' and 'value'), not a record",
        ),
        (
            "chat.json",
            conversations("messages", "role", "content"),
            "a conversation (field 'messages': a list of 'role' and 'content'), not a record with",
        ),
        (
            "it's in $HOME.jsonl",
            [{"question": QUESTION, "answer": ANSWER}],
            "field 'instruction' is missing; the record has question, answer; to rename: python",
        ),
        (
            "prompt.json",
            [{"prompt": QUESTION, "completion": "x", "response": ANSWER}],
            "field 'instruction' is missing; the record has prompt, completion, response; to re",
        ),
        (
            "capitals.json",
            [{"Instruction": QUESTION, "Output": ANSWER}],
            "field 'instruction' is missing; the record has Instruction, Output; to rename: pyt",
        ),
        (
            "dolly.jsonl",
            [{"instruction": QUESTION, "context": "NA", "response": ANSWER}],
            "field 'output' is missing; the record has instruction, context, response; to renam",
        ),
    ],
)
def test_the_command_in_the_message_converts_the_file(tmp_path, name, records, message):
    content = as_lines(records) if name.endswith("l") else json.dumps(records)
    with pytest.raises(ValueError) as caught:
        read_records(write(tmp_path / name, content), answered=True)
    error = str(caught.value)
    assert message in error
    command = f"PYTHONPATH={REPOSITORY} {sys.executable} " + error[error.index("-c ") :]
    subprocess.run(["bash", "-c", command], cwd=tmp_path, check=True)
    assert read_examples(tmp_path / "NEW.jsonl") == [Example("0", QUESTION, "", ANSWER)]


def test_what_fastchat_writes_is_named_and_converted(tmp_path):
    """Its questions and answers, of one turn or more."""
    question = {"question_id": 81, "category": "writing", "turns": [QUESTION, "Shorter."]}
    answer = {"question_id": 81, "model_id": "m", "choices": [{"index": 0, "turns": [ANSWER]}]}
    write(tmp_path / "question.jsonl", as_lines([question]))
    write(tmp_path / "answers.jsonl", as_lines([answer]))
    for name, fields in (
        ("question", "question_id, category, turns"),
        ("answers", "question_id, model_id, choices"),
    ):
        with pytest.raises(ValueError, match=f"FastChat .the record has {fields}") as caught:
            read_examples(tmp_path / f"{name}.jsonl")
        error = str(caught.value)
        command = f"PYTHONPATH={REPOSITORY} {sys.executable} " + error[error.index("-c ") :]
        subprocess.run(["bash", "-c", command], cwd=tmp_path, check=True)
        (example,) = read_examples(tmp_path / "NEW.jsonl", answered=name == "answers")
        output = ANSWER if name == "answers" else ""
        assert example == Example("81", QUESTION, "", output)


def test_without_a_likely_name_the_fields_are_named(tmp_path):
    path = write(tmp_path / "x.jsonl", '{"features": [], "rows": [{}]}')
    with pytest.raises(ValueError, match=r"is missing; the record has features, rows$"):
        read_examples(path)


@pytest.mark.parametrize("read", [read_examples, read_records])
def test_texts_that_mean_none_and_those_that_may_are_counted(tmp_path, read):
    inputs = ["NA", "NA", " None", "nan", "NaN", "nan", "", None, "DNA"]
    records = [{"instruction": "a", "input": text, "output": "b"} for text in inputs]
    path, reported = write(tmp_path / "x.jsonl", as_lines(records)), []
    read(path, report=reported.append)
    assert reported == [
        f"{path}: 2 'NA' as input, 1 'None' as input: read as none",
        f"{path}: 2 'nan' as input, 1 'NaN' as input: kept as text; "
        'write "" where it stands for a missing value',
    ]
    read(write(tmp_path / "y.jsonl", GOOD), report=pytest.fail)


def test_a_missing_value_as_an_answer_is_counted(tmp_path):
    reported = []
    text = as_lines([{"instruction": "a", "output": text} for text in ("nan", "None", "NULL")])
    read_examples(write(tmp_path / "x.jsonl", text), report=reported.append)
    assert "1 'nan' as output, 1 'NULL' as output: kept as text" in reported[0]


@pytest.mark.parametrize("value", [b"x", datetime.date(2026, 1, 2), float("nan")])
def test_values_that_cannot_be_written_again(tmp_path, value):
    """JSON has none of these; a Parquet file may."""
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    rows = [{"instruction": "a", "output": "b", "extra": value}]
    path = tmp_path / "x.parquet"
    parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    with pytest.raises(ValueError, match=r"record 0: field 'extra' has a value that JSON cannot"):
        read_records(path)
    assert read_examples(path) == [Example("0", "a", "", "b")]


text = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(text, text, text), min_size=1, max_size=5))
def test_any_text_survives_the_round_trip(tmp_path_factory, fields):
    records = [
        {"instruction": f"do {instruction}", "input": f"in {input}", "output": output}
        for instruction, input, output in fields
    ]
    path = tmp_path_factory.mktemp("records") / "x.jsonl"
    write(path, as_lines(records))
    read = read_examples(path)
    assert [(e.instruction, e.input, e.output) for e in read] == [
        (r["instruction"], r["input"], r["output"]) for r in records
    ]
