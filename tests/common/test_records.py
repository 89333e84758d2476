"""The JSONL contract: what is read, what counts as no input, and how bad records are named."""

import gzip
import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.jsonl import NO_INPUT
from common.records import Example, read_examples

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
    content = text.encode()
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return path


@pytest.mark.parametrize("name", ["x.jsonl", "x.jsonl.gz", "x.json", "x.json.gz"])
def test_every_form_of_file_gives_the_same_examples(tmp_path, name):
    text = as_lines(RECORDS) if "jsonl" in name else json.dumps(RECORDS, indent=1)
    path = write(tmp_path / name, text)
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
        ("x.jsonl", GOOD + '{"instruction": "a"', r"x\.jsonl:2: not JSON: "),
        ("x.jsonl", GOOD + "[1]\n", r"x\.jsonl:2: a record must be a JSON object"),
        ("x.jsonl", GOOD + '{"output": "b"}\n', r"x\.jsonl:2: field 'instruction' is missing"),
        ("x.jsonl", GOOD + '{"instruction": "a"}\n', r"x\.jsonl:2: field 'output' is missing"),
        ("x.jsonl", '{"instruction": 3, "output": "b"}', r":1: field 'instruction' must be a str"),
        ("x.jsonl", '{"instruction": "a", "output": ["b"]}', r":1: field 'output' must be a str"),
        ("x.jsonl", '{"instruction": "a", "output": 0}', r":1: field 'output' must be a str"),
        ("x.jsonl", '{"instruction": "a", "input": false, "output": "b"}', r":1: field 'input' mu"),
        ("x.jsonl", '{"instruction": " ", "output": "b"}', r":1: field 'instruction' is empty"),
        ("x.jsonl", '{"instruction": "\\ud800", "output": "b"}', r":1: field 'instruction' is not"),
        ("x.jsonl", "", r"x\.jsonl: contains no records"),
        ("x.jsonl", "\n \n", r"x\.jsonl: contains no records"),
        ("x.json", "[]", r"x\.json: contains no records"),
        ("x.json", '[\n{"instruction" 1}]', r"x\.json:2: not JSON: "),
        ("x.json", GOOD, r"x\.json: a \.json file must contain one array"),
        ("x.json", f"[{GOOD}, {{}}]", r"x\.json, record 1: field 'instruction' is missing"),
        ("x.jsonl.gz", GOOD + "{", r"x\.jsonl\.gz:2: not JSON: "),
    ],
)
def test_a_bad_record_is_named_by_file_line_and_field(tmp_path, name, text, message):
    with pytest.raises(ValueError, match=message):
        read_examples(write(tmp_path / name, text))


def test_input_alone_is_instruction_enough(tmp_path):
    record = {"instruction": "", "input": "What is anaemia?", "output": "y"}
    path = write(tmp_path / "x.jsonl", as_lines([record]))
    assert read_examples(path)[0].input == "What is anaemia?"


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
