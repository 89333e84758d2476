"""The command that shows what a model is trained on: its drawing, colours, counts and errors."""

import io
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from absl import flags

from alpacare_jax import tokenizer as command
from alpacare_jax.data.encoding import EncodedExample, encode_example
from alpacare_jax.data.prompts import TEMPLATES
from alpacare_jax.data.tokenizers import Tokenizer, load
from alpacare_jax.tokenizer import render
from common.records import read_examples
from tests.support import commands


def encoded(tokenizer: Tokenizer, prompt: str, response: str) -> EncodedExample:
    head = [tokenizer.bos_id] * tokenizer.adds_bos + tokenizer.encode(prompt)
    tail = tokenizer.encode(response, continuation=True)
    return EncodedExample(np.array([*head, *tail, tokenizer.eos_id], np.int32), len(head))


def spelled(tokenizer: Tokenizer, text: str) -> list[str]:
    """The tokens of plain ASCII words, as a drawing shows them in the middle of a text."""
    ids = tokenizer.encode(text, continuation=True)
    return [tokenizer.piece(i).replace("▁", " ") for i in ids]


def test_render_in_plain_text(sentencepiece_dir):
    ours = load(sentencepiece_dir)
    drawn = render(encoded(ours, "the patient", "doctor\\n\n🩺 </s>"), ours, color=False)
    prompt = "|".join(["<s>", *spelled(ours, " the patient")])
    response = [*spelled(ours, "doctor"), "\\", "n", "↵\n", "🩺‹4›", " ", "<", "/", "s", ">"]
    assert drawn == prompt + "".join(f"[{cell}]" for cell in [*response, "</s>"])


def test_render_in_colour(sentencepiece_dir):
    ours = load(sentencepiece_dir)
    drawn = render(encoded(ours, "the patient", "\x1bdoctor"), ours, color=True)
    prompt = [f"\x1b[2m{cell}\x1b[0m" for cell in ("<s>", *spelled(ours, " the patient"))]
    response = ["\\x1b", *spelled(ours, "doctor"), "</s>"]
    response = [f"\x1b[32m{cell}\x1b[0m" for cell in response]
    assert drawn == "\x1b[2m|\x1b[0m".join(prompt + response)


def test_render_keeps_a_cut_character_apart_from_eos(sentencepiece_dir):
    ours = load(sentencepiece_dir)
    cut = ours.encode("🩺", continuation=True)[:-1]
    drawn = render(EncodedExample(np.array([*cut, ours.eos_id], np.int32), 0), ours, color=False)
    assert drawn == "[\ufffd\ufffd\ufffd‹3›][</s>]"


def test_render_shows_every_token_once(every_tokenizer):
    for ours in every_tokenizer:
        record = encoded(ours, "Write ≥ 2", "answers: µg 患者")
        drawn = render(record, ours, color=False)
        assert drawn.endswith(f"[{ours.piece(ours.eos_id)}]")
        assert drawn.startswith("<s>|") == ours.adds_bos
        head, tail = drawn.split("[", 1)
        cells = [cell.rstrip("]") for cell in head.split("|") + tail.split("[")]
        counts = [int(c[:-1].rpartition("‹")[2]) if c.endswith("›") else 1 for c in cells]
        assert sum(counts) == len(record.ids)


def run_command(*arguments: str, **environment: str) -> subprocess.CompletedProcess:
    unset = {"NO_COLOR": None}
    return commands.run("alpacare_jax.tokenizer", *arguments, **unset | environment)


@pytest.fixture(scope="module")
def examples_file(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("examples") / "examples.jsonl"
    records = [
        {"id": "a", "instruction": "Name the drug.", "input": "", "output": "Metformin."},
        {"id": "b", "instruction": "Which dose?", "input": "child", "output": "10 mg/kg </s>"},
    ]
    path.write_text("".join(json.dumps(r) + "\n" for r in records), encoding="utf-8")
    return path


def test_command_draws_and_counts(sentencepiece_dir, examples_file):
    ours = load(sentencepiece_dir)
    records = [
        encode_example(example, ours, TEMPLATES["alpaca"])
        for example in read_examples(examples_file)
    ]
    lengths = [len(record.ids) for record in records]
    loss = sum(len(record.ids) - record.prompt_length for record in records)
    arguments = [f"--checkpoint={sentencepiece_dir}", f"--input={examples_file}", "--show=1"]
    done = run_command(*arguments, f"--max_length={lengths[0]}")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("legend: no loss, [loss], | between tokens")
    assert f"\na: {lengths[0]:,} tokens\n{render(records[0], ours, False)}\n" in done.stdout
    assert "\nb: " not in done.stdout and "\x1b" not in done.stdout
    assert done.stdout.endswith(
        f"2 records: {sum(lengths):,} tokens, {loss:,} carry loss; "
        f"1 records over max_length {lengths[0]:,}\n"
    )
    with examples_file.open("a") as file:
        file.write('{"instruction": "Why?", "output": " "}\n')
    colored = run_command(*arguments, "--color=always", NO_COLOR="1").stdout
    assert "; 1 with an empty output, which train leaves out\n" in colored
    assert render(records[0], ours, True) in colored


def test_command_fails_in_one_line(examples_file, tmp_path):
    done = run_command(f"--checkpoint={tmp_path}", f"--input={examples_file}")
    assert done.returncode == 1 and done.stdout == ""
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1
    assert "neither tokenizer.json nor tokenizer.model" in done.stderr
    assert run_command("--checkpoint=x", "--input=y", "--color=red").returncode == 2


@pytest.mark.parametrize(
    ("choice", "terminal", "no_color", "expected"),
    [
        ("auto", True, "", True),
        ("auto", True, "1", False),
        ("auto", False, "", False),
        ("always", False, "1", True),
        ("never", True, "", False),
    ],
)
def test_colour_choice(
    sentencepiece_dir, examples_file, monkeypatch, choice, terminal, no_color, expected
):
    values = flags.FlagValues()
    monkeypatch.setattr(flags, "FLAGS", values)
    monkeypatch.setenv("NO_COLOR", no_color)
    for name, value in {
        "checkpoint": str(sentencepiece_dir),
        "input": str(examples_file),
        "template": "alpaca",
        "loss": "template",
        "color": choice,
    }.items():
        flags.DEFINE_string(name, value, "", flag_values=values)
    flags.DEFINE_integer("show", 1, "", flag_values=values)
    flags.DEFINE_integer("max_length", 1024, "", flag_values=values)
    values(["tokenizer"])
    out = io.StringIO()
    out.isatty = lambda: terminal
    monkeypatch.setattr(sys, "stdout", out)
    command.main(["tokenizer"])
    assert ("\x1b[32m" in out.getvalue()) == expected


def test_importing_defines_no_flag():
    assert command.__name__ not in flags.FLAGS.flags_by_module_dict()
