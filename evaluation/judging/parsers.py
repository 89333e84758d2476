"""Reads a judge's reply: it prefers the first answer, the second, none, or it is no verdict.

Strict and total: every text is exactly one of "first", "second", "tie" and "invalid". A verdict
counts only where the reply, or the sentence that ends it, is made of the verdict and of words that
cannot turn it round; everything else is invalid, and asked again rather than guessed.
"""

import json
import re
from collections.abc import Callable
from typing import Any

VERDICTS = ("first", "second", "tie", "invalid")
INVALID = "invalid"

Parser = Callable[[str], str]

_THOUGHTS = re.compile(r"\A\s*<think>.*?</think>", re.DOTALL)
"""What reasoning models think aloud where the server does not take it out of the reply."""

_SIDE = re.compile(r"(?:\boutput\s*)?\(\s*([ab])\s*\)")
_A_TIE = re.compile(r"\ba tie\b")
_BRACKETS = re.compile(r"\[\[([^\[\]]*)\]\]")
_SIDE_ALONE = re.compile(r"(?:output\s+)?([ab])")
_DECORATION = " \t\r\n.,:;*_#\"'`“”‘’-"


def _vocabulary(words: str) -> frozenset[str]:
    return frozenset(words.split())


# Nothing that these words say about a side can be against it.
_WORDS_WITH_A_SIDE = _vocabulary(
    "answer best better choice choose final given i instruction is matches my one output prefer "
    "preferred select the verdict"
)
_WORDS_WITH_TIE = _vocabulary(
    "answer are both choice equal final is it it's my of outputs quality the tie verdict"
)
_WORDS_WITH_BRACKETS = _vocabulary(
    "answer assistant better choice decision final hence is judgement judgment my output overall "
    "response so the therefore thus verdict"
)


def output_label(reply: str) -> str:
    """A verdict as Output (a), Output (b) or Tie, alone or in a plain sentence.

    >>> [output_label(x) for x in ("Output (a)", "output (B).", "**Tie**", "b", "It's a tie.")]
    ['first', 'second', 'tie', 'second', 'tie']
    >>> output_label("Output (a) is better"), output_label("The better choice is (b)")
    ('first', 'second')
    >>> output_label("I can't decide between Output (a) and Output (b)"), output_label("")
    ('invalid', 'invalid')
    >>> output_label("Output (a) is not better"), output_label("Neither Output (a) nor a tie")
    ('invalid', 'invalid')
    >>> output_label("Output (a)\\n\\nTie"), output_label("La sortie (a) est meilleure")
    ('invalid', 'invalid')
    >>> output_label("Output (a), for it says why"), output_label("I output a better answer")
    ('invalid', 'invalid')
    """
    text = _plain(reply).strip(_DECORATION)
    if alone := _SIDE_ALONE.fullmatch(text):
        return _side(alone[1])
    sides = set(_SIDE.findall(text))
    words = _words(_SIDE.sub(" ", _A_TIE.sub("tie", text)))
    if words is None or len(sides) > 1:
        return INVALID
    if sides:
        return _side(sides.pop()) if words <= _WORDS_WITH_A_SIDE else INVALID
    return "tie" if "tie" in words and words <= _WORDS_WITH_TIE else INVALID


def brackets(reply: str) -> str:
    """A verdict as [[A]], [[B]] or [[C]] (tie), in the sentence that ends the reply.

    >>> brackets("A names the risk.\\n\\n[[A]]"), brackets("Final verdict: **[[b]]**")
    ('first', 'second')
    >>> brackets("Both are complete. Therefore, my final verdict is [[C]].")
    'tie'
    >>> brackets("So assistant A is better: [[A]]"), brackets("So assistant A is better: [[B]]")
    ('first', 'invalid')
    >>> brackets("[[A]] or [[B]]?"), brackets("[[A/B]]"), brackets("It is not [[A]]"), brackets("A")
    ('invalid', 'invalid', 'invalid', 'invalid')
    >>> brackets("[[A]] would be too kind.\\n[[B]]"), brackets("[[A]] is the answer of a doctor")
    ('invalid', 'invalid')
    """
    text = _plain(reply).rstrip(_DECORATION)
    marks = {mark.strip() for mark in _BRACKETS.findall(text)}
    if len(marks) != 1 or not text.endswith("]]"):
        return INVALID
    (mark,) = marks
    last = re.split(r"\n|[.!?][\"'*_)]*\s", text)[-1]
    words = _words(_BRACKETS.sub(" ", last))
    if words is None or not words <= _WORDS_WITH_BRACKETS | {mark}:
        return INVALID
    return {"a": "first", "b": "second", "c": "tie"}.get(mark, INVALID)


VERDICT_SCHEMA = {
    "type": "object",
    "properties": {
        "explanation": {"type": "string"},
        "verdict": {"type": "string", "enum": ["A", "B", "tie"]},
    },
    "required": ["explanation", "verdict"],
    "additionalProperties": False,
}
"""JSON schema of a structured reply. The explanation comes first: a model writes in this order."""


def structured(reply: str) -> str:
    """A verdict as JSON that follows VERDICT_SCHEMA, in a Markdown fence or not.

    >>> structured('{"explanation": "B is rude.", "verdict": "A"}')
    'first'
    >>> structured('{"verdict": "A", "verdict": "B"}'), structured('{"verdict": "A or B"}')
    ('invalid', 'invalid')
    >>> structured('I think {"verdict": "A"}'), structured('["A"]'), structured("")
    ('invalid', 'invalid', 'invalid')
    """
    text = _THOUGHTS.sub("", reply).strip()
    if text.startswith("```") and text.endswith("```"):
        text = text.strip("`").removeprefix("json")
    try:
        content = json.loads(text, object_pairs_hook=_without_doubles)
    except (ValueError, RecursionError):
        return INVALID
    said = content.get("verdict") if isinstance(content, dict) else None
    verdicts = {"A": "first", "B": "second", "tie": "tie"}
    return verdicts.get(said, INVALID) if isinstance(said, str) else INVALID


def _side(letter: str) -> str:
    return "first" if letter == "a" else "second"


def _plain(reply: str) -> str:
    """Lower case, without thoughts and with one kind of apostrophe."""
    return _THOUGHTS.sub("", reply).lower().replace("’", "'")


def _words(text: str) -> set[str] | None:
    """Words of a text in lower case; None where it holds more than words and plain punctuation."""
    words = re.findall(r"[a-z]+(?:'[a-z]+)?", text)
    left = re.sub(r"[a-z]+(?:'[a-z]+)?", "", text)
    return None if left.strip(_DECORATION) else set(words)


def _without_doubles(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) < len(pairs):
        raise ValueError("a key twice")
    return content
