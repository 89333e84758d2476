"""Signals of answers: cut, run-on, refused; on the published files the published counts."""

import pytest

from common.text.refusals import is_refusal
from evaluation.inputs import benchmarks, outputs
from evaluation.inputs.outputs import ModelOutput
from evaluation.scoring import text_metrics
from evaluation.scoring.text_metrics import (
    LONG_ANSWER,
    is_cut,
    loops,
    measure_texts,
    refuses,
    runs_on,
)
from tests.conftest import DATA, needs_data


def answer(text: str, finish_reason: str = "", num_tokens: int | None = None) -> ModelOutput:
    return ModelOutput("x", "0", "model", text, finish_reason, num_tokens)


LONG_TEXT = "Rest well. " * (LONG_ANSWER // 10)


@pytest.mark.parametrize(
    "text, finish_reason, cut",
    [
        (LONG_TEXT + "and drink", "", True),
        (LONG_TEXT + "and drink", "stop", False),  # the model itself ended there
        ("Short.", "length", True),
        (LONG_TEXT + "and drink,\n", "", True),
        (LONG_TEXT + "and drink.\n", "", False),
        (LONG_TEXT + "and (drink)", "", False),
        (LONG_TEXT + "**Drink!**", "", False),
        ("水" * LONG_ANSWER, "", True),
        ("水" * LONG_ANSWER + "。", "", False),
        ("and drink", "", False),  # short: a list, a choice
        ("", "", False),
        (" " * LONG_ANSWER, "", False),
    ],
)
def test_cut(text, finish_reason, cut):
    assert is_cut(answer(text, finish_reason)) == cut


@pytest.mark.parametrize(
    "text, expected",
    [
        ("Take care. " * 30, True),
        ("Take care. " * 30 + "Ta", True),  # cut within a word
        ("Begin. " + "Sleep well and drink, " * 8, True),
        ("".join(f"{i}. Prednisone is a steroid that helps.\n" for i in range(9)), True),
        ("Take care. " * 3, False),  # few words
        ("".join(f"{i}. Step {word}.\n" for i, word in enumerate("abcdefghijkl")), False),
        ("Take care. " * 30 + "Then go home and sleep until the morning.", False),  # it left it
        ("|1|2|3|\n" * 40, False),  # a table of numbers
        ("多喝水。" * 20, True),
        ("", False),
        ("word", False),
    ],
)
def test_loops(text, expected):
    assert loops(text) is expected
    assert runs_on(answer(text)) is expected


@pytest.mark.parametrize(
    "text, expected",
    [
        ("Rest.\n\n### Instruction:\nWhat is flu?", True),
        ("Rest.\n### Response: Yes", True),
        ("Rest.\n\n### ", True),  # the published files cut at "Response:"
        ("Rest.\n[|Human|] And flu?", True),
        ("# Fever\n### Causes\nMany.", False),  # Markdown
        ("The instruction: rest.", False),
        ("Human papillomavirus is a virus.\nHuman beings have it.", False),
    ],
)
def test_going_on_to_another_prompt(text, expected):
    assert runs_on(answer(text)) is expected


def test_the_limit_is_a_run_on():
    assert runs_on(answer("Rest", "length")) and not runs_on(answer("Rest", "stop"))


def test_refusals():
    assert refuses(answer("\nI cannot provide medical advice.")) and not refuses(answer("Rest."))
    assert refuses(answer("", "refusal")) and refuses(answer("", "content_filter"))


def test_measure():
    answers = [
        answer("One two three.", "stop", 4),
        answer("One two", "length", 2),
        answer(LONG_TEXT + "and", "", None),
        answer("\n"),
        answer("I cannot help you."),
        answer("", "too_long", 0),
    ]
    signals = measure_texts(answers)
    words = [3, 2, len(LONG_TEXT.split()) + 1, 0, 4, 0]
    assert signals == text_metrics.TextSignals(
        outputs=6,
        empty=2,
        too_long=1,
        cut=2,
        cut_known=1,
        run_on=2,
        refused=1,
        mean_words=sum(words) / 6,
        mean_characters=sum(len(a.output) for a in answers) / 6,
        mean_tokens=2.0,
    )
    assert "1 truncated at the length limit, 1 more appear truncated" in str(signals)
    assert str(signals).endswith("2 empty, 1 of them because the prompt is too long")
    assert str(measure_texts(answers[:5])).endswith("1 empty")
    assert measure_texts(answers[3:5]).mean_tokens is None
    with pytest.raises(ValueError, match="no outputs to measure"):
        measure_texts([])


@needs_data
def test_the_published_references_are_cut_as_often_as_known():
    found = {}
    for benchmark in ("medinstruct", "icliniq"):
        items = benchmarks.load(benchmark, DATA)
        for name in outputs.names(benchmark, DATA):
            found[benchmark, name] = measure_texts(outputs.load(name, items, DATA))
    cut = {key: signals.cut for key, signals in found.items()}
    models = ("gpt-3.5-turbo", "gpt-4", "text-davinci-003", "claude-2")
    assert [cut["icliniq", model] for model in models] == [183, 244, 0, 0]
    # Of those two, 12 and 6 end without punctuation: short lists and choices are not counted.
    assert [cut["medinstruct", model] for model in models] == [126, 123, 5, 6]
    characters = [found["medinstruct", model].mean_characters for model in models]
    assert [round(mean) for mean in characters] == [1393, 1307, 730, 1479]
    # AlpaCare learnt from answers cut so, and stops so itself.
    assert cut["icliniq", "alpacare-7b"] == 369
    # Generation reached its limit for 214, 169, 12, 4, 0 and 0 of 216 (counted in tokens).
    run_on = {
        name: signals.run_on for (name_of, name), signals in found.items() if name_of[0] == "m"
    }
    names = ("pmc-llama-7b", "baize-healthcare-7b", "chatdoctor", "medalpaca-7b", "alpaca-7b")
    assert [run_on[name] for name in names] == [191, 196, 11, 2, 0]
    assert run_on["alpacare-7b"] == 0 and all(run_on[model] == 0 for model in models)


@pytest.mark.parametrize("letter", ["\n", " ", "-", "#", "### ", "###\n", "a b "])
def test_a_megabyte_of_the_same_takes_no_time(letter):
    """Linear in the text: with a square of it, this would take longer than a test may."""
    text = letter * (1_000_000 // len(letter)) + "x"
    assert not is_refusal(text)
    runs_on(answer(text))
