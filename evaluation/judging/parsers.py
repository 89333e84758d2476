"""Parsers of judges' replies: every text becomes exactly one Preference.

They are strict. A reply counts only where it, or its last sentence, consists of the verdict and of
words that cannot reverse it. Everything else is INVALID, and asked again rather than guessed.
"""

import json
import re
from collections.abc import Callable
from enum import StrEnum
from typing import Any


class Preference(StrEnum):
    """Which of the two answers shown a reply prefers."""

    FIRST = "first"
    SECOND = "second"
    TIE = "tie"
    INVALID = "invalid"  # the reply states no verdict


ReplyParser = Callable[[str], Preference]

_THOUGHTS = re.compile(r"\A\s*<think>.*?</think>", re.DOTALL)
"""Reasoning that some servers leave in the reply."""

_SIDE = re.compile(r"(?:\boutput\s*)?\(\s*([ab])\s*\)")
_A_TIE = re.compile(r"\ba tie\b")
_BRACKETS = re.compile(r"\[\[([^\[\]]*)\]\]")
_SIDE_ALONE = re.compile(r"(?:output\s+)?([ab])")
_DECORATION = " \t\r\n.,:;*_#\"'`“”‘’-"


_SIDES = {"a": Preference.FIRST, "b": Preference.SECOND, "c": Preference.TIE}

# No sentence made of these words can speak against the side that it names.
_WORDS_WITH_A_SIDE = set(
    "answer best better choice choose final given i instruction is matches my one output prefer "
    "preferred select the verdict".split()
)
_WORDS_WITH_TIE = set(
    "answer are both choice equal final is it it's my of outputs quality the tie verdict".split()
)
_WORDS_WITH_BRACKETS = set(
    "answer assistant better choice decision final hence is judgement judgment my output overall "
    "response so the therefore thus verdict".split()
)


def output_label(reply: str) -> Preference:
    """A verdict as Output (a), Output (b) or Tie, alone or in a plain sentence.

    >>> print(*map(output_label, ("Output (a)", "output (B).", "**Tie**", "b", "It's a tie.")))
    first second tie second tie
    >>> print(output_label("Output (a) is better"), output_label("The better choice is (b)"))
    first second
    >>> print(output_label("I can't decide between Output (a) and Output (b)"), output_label(""))
    invalid invalid
    >>> print(output_label("Output (a) is not better"), output_label("Neither (a) nor a tie"))
    invalid invalid
    >>> print(output_label("Output (a)\\n\\nTie"), output_label("La sortie (a) est meilleure"))
    invalid invalid
    >>> print(output_label("Output (a), for it says why"), output_label("I output a better one"))
    invalid invalid
    """
    text = _plain(reply).strip(_DECORATION)
    if alone := _SIDE_ALONE.fullmatch(text):
        return _SIDES[alone[1]]
    sides = set(_SIDE.findall(text))
    words = _words(_SIDE.sub(" ", _A_TIE.sub("tie", text)))
    if words is None or len(sides) > 1:
        return Preference.INVALID
    if sides:
        return _SIDES[sides.pop()] if words <= _WORDS_WITH_A_SIDE else Preference.INVALID
    return Preference.TIE if "tie" in words and words <= _WORDS_WITH_TIE else Preference.INVALID


def brackets(reply: str) -> Preference:
    """A verdict as [[A]], [[B]] or [[C]] (tie), in the sentence that ends the reply.

    >>> print(brackets("A names the risk.\\n\\n[[A]]"), brackets("Final verdict: **[[b]]**"))
    first second
    >>> print(brackets("Both are complete. Therefore, my final verdict is [[C]]."))
    tie
    >>> print(*map(brackets, ("So assistant A is better: [[A]]", "Assistant A is better: [[B]]")))
    first invalid
    >>> print(*map(brackets, ("[[A]] or [[B]]?", "[[A/B]]", "It is not [[A]]", "A")))
    invalid invalid invalid invalid
    >>> print(*map(brackets, ("[[A]] would be too kind.\\n[[B]]", "[[A]] is a doctor's answer")))
    invalid invalid
    """
    text = _plain(reply).rstrip(_DECORATION)
    marks = {mark.strip() for mark in _BRACKETS.findall(text)}
    if len(marks) != 1 or not text.endswith("]]"):
        return Preference.INVALID
    (mark,) = marks
    last = re.split(r"\n|[.!?][\"'*_)]*\s", text)[-1]
    words = _words(_BRACKETS.sub(" ", last))
    if words is None or not words <= _WORDS_WITH_BRACKETS | {mark}:
        return Preference.INVALID
    return _SIDES.get(mark, Preference.INVALID)


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


def structured(reply: str) -> Preference:
    """A verdict as JSON that follows VERDICT_SCHEMA, in a Markdown fence or not.

    >>> print(structured('{"explanation": "B is rude.", "verdict": "A"}'))
    first
    >>> print(*map(structured, ('{"verdict": "A", "verdict": "B"}', '{"verdict": "A or B"}')))
    invalid invalid
    >>> print(*map(structured, ('I think {"verdict": "A"}', '["A"]', "")))
    invalid invalid invalid
    """
    text = _THOUGHTS.sub("", reply).strip()
    if text.startswith("```") and text.endswith("```"):
        text = text.strip("`").removeprefix("json")
    try:
        content = json.loads(text, object_pairs_hook=_unique_keys)
    except (ValueError, RecursionError):
        return Preference.INVALID
    verdict = content.get("verdict") if isinstance(content, dict) else None
    sides = {"A": Preference.FIRST, "B": Preference.SECOND, "tie": Preference.TIE}
    return sides.get(str(verdict), Preference.INVALID)


def _plain(reply: str) -> str:
    """Lower case, without thoughts and with one kind of apostrophe."""
    return _THOUGHTS.sub("", reply).lower().replace("’", "'")


def _words(text: str) -> set[str] | None:
    """Words of a text in lower case; None where it holds more than words and plain punctuation."""
    words = re.findall(r"[a-z]+(?:'[a-z]+)?", text)
    left = re.sub(r"[a-z]+(?:'[a-z]+)?", "", text)
    return None if left.strip(_DECORATION) else set(words)


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) < len(pairs):
        raise ValueError("duplicate key")
    return content
