"""What judges write, and whether a verdict is read in it."""

import json
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evaluation.judging.parsers import Preference, brackets, output_label, structured


@pytest.mark.parametrize(
    ("reply", "verdict"),
    [
        ("Output (a)", "first"),
        ("output (B).", "second"),
        ("**Tie**", "tie"),
        ("  `Output (b)`\n", "second"),
        ('"Output (a)".', "first"),
        ("OUTPUT(A)", "first"),
        ("(b)", "second"),
        ("A", "first"),
        ("Output b.", "second"),
        ("Output (a) is better", "first"),
        ("My final verdict: Output (b) is the better choice.", "second"),
        ("Output (a)\n\nOutput (a)", "first"),
        ("It’s a tie.", "tie"),
        ("Both outputs are of equal quality: Tie", "tie"),
        ("Answer (a) names the risk. Therefore, Output (a) is better.", "first"),
        ("Based on accuracy, Output (a) is better.", "first"),
        ("<answer>Output (a)</answer>", "first"),
        ("\u200bOutput\u00a0（ａ）", "first"),
        ("Output (a)\n\nIt names the dose; output (b) does not mention it.", "first"),
        # What names no side, or more than one.
        ("", "invalid"),
        (" \n", "invalid"),
        ("I can't decide between Output (a) and Output (b)", "invalid"),
        ("Output (a) and Output (b)", "invalid"),
        ("Output (a)\nOutput (b)", "invalid"),
        ("Output (a) is better than Output (b)", "invalid"),
        ("Output (a) or Tie", "invalid"),
        ("Output (c)", "invalid"),
        ("(a", "invalid"),
        ("both", "invalid"),
        ("Output", "invalid"),
        # What may mean the opposite, or be no verdict.
        ("Output (a) is worse", "invalid"),
        ("Not Output (a)", "invalid"),
        ("Output (a) isn't better", "invalid"),
        ("Output (a)?", "invalid"),
        ("!Output (a)", "invalid"),
        ("~~Output (a)~~", "invalid"),
        ("[ ] Output (a)", "invalid"),
        ("Output (a) is better if cost matters", "invalid"),
        ("Output (a): 2/10", "invalid"),
        ("It is not a tie", "invalid"),
        ("No tie", "invalid"),
        ("Tie?", "invalid"),
        ("a. Tie", "invalid"),
        ("necktie", "invalid"),
        ("I output a better answer", "invalid"),
        ("A physician should judge this", "invalid"),
        ("<think>Output (a)", "invalid"),
        # Other languages.
        ("Ausgabe (a) ist besser", "invalid"),
        ("输出 (a) 更好", "invalid"),
        ("Вариант (b)", "invalid"),
        ("Output (а)", "invalid"),  # a Cyrillic letter
        ("Unentschieden", "invalid"),
    ],
)
def test_output_labels(reply, verdict):
    assert output_label(reply) == verdict


@pytest.mark.parametrize(
    ("reply", "verdict"),
    [
        ("[[A]]", "first"),
        ("A is more careful.\n\n[[A]]\n", "first"),
        ("## Verdict\n**[[B]]**", "second"),
        ("B is not complete. My final verdict is: [[A]].", "first"),
        ("Therefore, the better answer is [[ b ]]", "second"),
        ("Equal in all.\n[[C]]", "tie"),
        ("A: [[A]] since it is safe.\n\n[[A]]", "first"),
        ("", "invalid"),
        ("A", "invalid"),
        ("[A]", "invalid"),
        ("[[A]] [[B]]", "invalid"),
        ("[[A]] if A is better, [[B]] if B is.\n[[A]]", "invalid"),
        ("[[A]] because it is safe", "first"),
        ("Based on this evaluation, the final verdict is: [[B]]", "second"),
        ("Final verdict: [[C]] for a tie.", "tie"),
        ("［［Ａ］］", "first"),
        ("[[А]]", "invalid"),  # a Cyrillic letter
        ("The better answer is not [[A]]", "invalid"),
        ("Nobody would choose [[A]]", "invalid"),
        ("Is it [[A]]?", "invalid"),
        ("[[D]]", "invalid"),
        ("[[A or B]]", "invalid"),
        ("[[]]", "invalid"),
        ("Assistant B is better [[A]]", "invalid"),
        ("[[first]]", "invalid"),
        ("最终 [[A]]", "invalid"),
        ("It is not true that one is better. [[C]]", "tie"),
        ("[[" * 50_000, "invalid"),
        ("[[A" * 50_000 + "]]", "invalid"),
    ],
)
def test_brackets(reply, verdict):
    assert brackets(reply) == verdict


@pytest.mark.parametrize(
    ("reply", "verdict"),
    [
        ('{"explanation": "", "verdict": "A"}', "first"),
        (' {"verdict": "B"}\n', "second"),
        ('```json\n{"verdict": "tie"}\n```', "tie"),
        ('```\n{"verdict": "tie"}\n```', "tie"),
        ('\ufeff{"explanation": "x", "verdict": "A"}', "first"),
        ('Here is my verdict:\n```json\n{"verdict": "B"}\n```', "second"),
        ('{"verdict": "A"}\n\nReason: It names the dose.', "first"),
        ('{"verdict": "A", "winner": "B"}', "invalid"),
        ('{"verdict": "A"}\nNo, wait.', "invalid"),
        ('Not {"verdict": "A"}', "invalid"),
        ('{"verdict": "a"}', "invalid"),
        ('{"verdict": "C"}', "invalid"),
        ('{"verdict": null}', "invalid"),
        ('{"verdict": ["A"]}', "invalid"),
        ('{"verdict": {"A": 1}}', "invalid"),
        ('{"verdict": "A"} {"verdict": "A"}', "invalid"),
        ('{"verdict": "A"', "invalid"),
        ('{"Verdict": "A"}', "invalid"),
        ('"A"', "invalid"),
        ("A", "invalid"),
        ("null", "invalid"),
        ("```", "invalid"),
        ("[" * 100_000, "invalid"),
        ("1" * 5_000, "invalid"),
    ],
)
def test_structured(reply, verdict):
    assert structured(reply) == verdict


PIECES = st.sampled_from(
    ["Output (a)", "output (b)", "(A)", "a", "B", "Tie", "[[A]]", "[[B]]", "[[C]]", "[[ a ]]"]
    + [" ", "\n", ". ", ", ", "**", "is better", "is worse", "not ", "verdict: ", "the ", "?"]
    + [
        '{"verdict": "A"}',
        '{"verdict": "B"}',
        '{"verdict": "tie"}',
        "```",
        "{",
        "}",
        "é",
        "<think>",
    ]
)
REPLIES = st.one_of(st.lists(PIECES, max_size=12).map("".join), st.text(max_size=60))
# How a reply may name each verdict, told by other means than the parsers'.
NAMES = {
    output_label: {
        "first": r"\(a\)|output\s+a\b|^[\W_]*a[\W_]*$",
        "second": r"\(b\)|output\s+b\b|^[\W_]*b[\W_]*$",
        "tie": r"\btie\b",
    },
    brackets: {
        "first": r"\[\[\s*a\s*\]\]",
        "second": r"\[\[\s*b\s*\]\]",
        "tie": r"\[\[\s*c\s*\]\]",
    },
    structured: {
        "first": r'"verdict": "a"',
        "second": r'"verdict": "b"',
        "tie": r'"verdict": "tie"',
    },
}


@settings(max_examples=300, deadline=None)
@given(REPLIES)
def test_no_reply_counts_for_what_it_does_not_name(reply):
    seen = reply.lower()
    for parse, forms in NAMES.items():
        verdict = parse(reply)
        assert verdict in Preference
        if verdict != "invalid":
            named = {name for name, form in forms.items() if re.search(form, seen)}
            assert verdict in named, parse.__name__


SWAPPED = str.maketrans("abAB", "baBA")
LETTERS = re.compile(r"\b[abAB]\b(?! ?Tie)")  # before Tie it is an article


@settings(deadline=None)
@given(st.lists(PIECES, max_size=6).map("".join))
def test_neither_side_has_an_advantage(reply):
    """What names the other side in the same words is a verdict for the other side."""
    swapped = LETTERS.sub(lambda found: found[0].translate(SWAPPED), reply)
    other = {"first": "second", "second": "first", "tie": "tie", "invalid": "invalid"}
    for parse in NAMES:
        assert parse(swapped) == other[parse(reply)]


@pytest.mark.parametrize("word", ["not", "n't", "never", "no", "neither", "worse", "if", "nicht"])
@pytest.mark.parametrize("place", [0, 1, 2])
def test_a_word_that_turns_it_round_makes_it_invalid(word, place):
    for parse, parts in ((output_label, "Output (a)"), (brackets, "Verdict: [[A]]")):
        words = parts.split()
        words.insert(min(place, len(words)), word)
        assert parse(" ".join(words)) == "invalid"


@settings(deadline=None)
@given(
    st.recursive(
        st.none() | st.text(max_size=3) | st.sampled_from(["A", "B", "tie"]),
        lambda inner: st.lists(inner) | st.dictionaries(st.just("verdict"), inner),
        max_leaves=5,
    )
)
def test_json_of_any_shape(content):
    verdict = structured(json.dumps(content))
    expected = {"A": "first", "B": "second", "tie": "tie"}
    said = content.get("verdict") if isinstance(content, dict) else None
    assert verdict == (expected.get(said, "invalid") if isinstance(said, str) else "invalid")
