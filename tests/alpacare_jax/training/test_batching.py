"""Data that cannot be trained on is named."""

import dataclasses
import json
from pathlib import Path

import pytest

from tests.conftest import make_model
from tests.support.training import TINY, one_line_error, run_config

pytestmark = pytest.mark.usefixtures("quickly_compiled")


def data_file(folder: Path, text: str) -> str:
    path = folder / "bad.jsonl"
    path.write_text(text)
    return str(path)


GOOD = '{"instruction": "what is fever", "output": "the pain"}\n'


BAD_DATA = {
    "no such file": (None, ["no such file: ", "bad.jsonl"]),
    "cut line": (GOOD + '{"instruction": "a", ', ["bad.jsonl:2: not JSON"]),
    "no output": (GOOD * 2 + '{"instruction": "a"}\n', ["bad.jsonl:3: field 'output' is missing"]),
    "a number": (GOOD + '{"instruction": 5, "output": ""}', ["bad.jsonl:2: field 'instruction'"]),
    "empty file": ("", ["bad.jsonl: contains no records"]),
    "empty answers": (
        GOOD.replace("the pain", "") * 9,
        ["training data: no example is left (9 of 9 examples dropped: empty output); give records"],
    ),
    "too few": (GOOD * 7, ["7 training examples do not fill one batch of 8", "lower train.batch"]),
    "too long": (
        GOOD * 9 + json.dumps({"id": "x9", "instruction": "a", "output": "z" * 999}) + "\n",
        ["example x9 is 1,", "over data.max_length 512", "data.overlong to truncate or drop"],
    ),
}


@pytest.mark.parametrize("case", BAD_DATA)
def test_bad_data(corpus, tmp_path, capsys, case):
    text, parts = BAD_DATA[case]
    path = str(tmp_path / "bad.jsonl") if text is None else data_file(tmp_path, text)
    line = one_line_error(run_config(corpus, data__path=path), tmp_path / "run", capsys)
    assert all(part in line for part in parts), line
    assert not (tmp_path / "run").exists()


def test_held_out_data_without_answers(corpus, tmp_path, capsys):
    path = data_file(tmp_path, GOOD.replace("the pain", "") * 3)
    line = one_line_error(run_config(corpus, data__eval_path=path), tmp_path / "run", capsys)
    assert "held-out data: no example is left (3 of 3 examples dropped: empty output)" in line
    assert "give records with outputs" in line


def test_a_base_model_with_another_models_tokenizer(corpus, tmp_path, capsys):
    base = make_model(tmp_path / "base", dataclasses.replace(TINY, vocab_size=300))
    config = run_config(corpus, model__checkpoint=str(base))
    line = one_line_error(config, tmp_path / "run", capsys)
    assert "embedding rows" in line
    assert not (tmp_path / "run").exists()
