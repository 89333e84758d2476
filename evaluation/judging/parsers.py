"""Parsers of judges' replies: every text becomes exactly one Preference.

A reply is read when it holds exactly one verdict of the judge's form, stated as final, whatever
words lead to it or explain it afterwards. It is INVALID, and asked again rather than guessed, when
it names both sides as the better one, negates, asks or hedges. Each parser knows a form; what
counts as stated is decided in `statements`, by one rule for all. Thoughts and end tokens are
removed before (datagen.chat).
"""

import json
import re
from collections.abc import Callable
from enum import StrEnum
from typing import Any

from evaluation.judging import statements
from evaluation.judging.contradictions import FIRST, SECOND, TIE


class Preference(StrEnum):
    """Which of the two answers shown a reply prefers."""

    FIRST = "first"
    SECOND = "second"
    TIE = "tie"
    INVALID = "invalid"  # the reply states no verdict


ReplyParser = Callable[[str], Preference]

_PREFERENCES = {
    FIRST: Preference.FIRST,
    SECOND: Preference.SECOND,
    TIE: Preference.TIE,
    "": Preference.INVALID,
}
_LABEL = re.compile(r"(?:\boutput\s*)?\(\s*(?:(a)|b)\s*\)", re.IGNORECASE)
_TIE = re.compile(r"(?<![-\w])(?:a )?tie(?![-\w])", re.IGNORECASE)
_LETTER_ALONE = re.compile(r"(?:output\s+)?(?:(a)|b)", re.IGNORECASE)
_BRACKETS = re.compile(r"\[\[([^\[\]]*)\]\]")
_BRACKET_MARKS = {"a": FIRST, "b": SECOND, "c": TIE}


def output_label(reply: str) -> Preference:
    """A verdict as Output (a), Output (b) or Tie.

    >>> print(*map(output_label, ("Output (a)", "output (B).", "**Tie**", "b", "It's a tie.")))
    first second tie second tie
    >>> print(output_label("Based on accuracy, Output (a) is better, for it names the dose."))
    first
    >>> print(output_label("Output (a) omits the dose. Therefore, Output (b) is better."))
    second
    >>> print(output_label("I can't decide between Output (a) and Output (b)"), output_label(""))
    invalid invalid
    >>> print(output_label("Output (a) is not better"), output_label("Neither (a) nor a tie"))
    invalid invalid
    >>> print(output_label("Output (a)\\n\\nTie"), output_label("La sortie (a) est meilleure"))
    invalid invalid
    """
    text = statements.plain(reply)
    if alone := _LETTER_ALONE.fullmatch(text.strip(" \t\n.,:;#_\"'-")):
        return Preference.FIRST if alone[1] else Preference.SECOND
    text = _LABEL.sub(lambda found: FIRST if found[1] else SECOND, text)
    return _PREFERENCES[statements.verdict(_TIE.sub(TIE, text))]


def brackets(reply: str) -> Preference:
    """A verdict as [[A]], [[B]] or [[C]] (tie), the only one in double brackets.

    >>> print(brackets("A names the risk.\\n\\n[[A]]"), brackets("Final verdict: **[[b]]**"))
    first second
    >>> print(brackets("Both are complete. Therefore, my final verdict is [[C]] for a tie."))
    tie
    >>> print(*map(brackets, ("So assistant A is better: [[A]]", "Assistant A is better: [[B]]")))
    first invalid
    >>> print(*map(brackets, ("[[A]] or [[B]]?", "[[A/B]]", "It is not [[A]]", "A")))
    invalid invalid invalid invalid
    >>> print(*map(brackets, ("[[A]] would be too kind.\\n[[B]]", "[[A]] is a doctor's answer")))
    invalid invalid
    """
    text = statements.plain(reply)
    named = {content.strip().lower() for content in _BRACKETS.findall(text)}
    mark = _BRACKET_MARKS.get(named.pop()) if len(named) == 1 else None
    return _PREFERENCES[statements.verdict(_BRACKETS.sub(mark, text)) if mark else ""]


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

_EXPLANATIONS = {"analysis", "comparison", "explanation", "rationale", "reason", "reasoning"}
_STRUCTURED = {"A": FIRST, "B": SECOND, "tie": TIE, "Tie": TIE}


def structured(reply: str) -> Preference:
    """A verdict as JSON that follows VERDICT_SCHEMA: one object, alone or stated as final.

    >>> print(structured('{"explanation": "B is rude.", "verdict": "A"}'))
    first
    >>> print(structured('Here is my verdict:\\n```json\\n{"verdict": "tie"}\\n```'))
    tie
    >>> print(*map(structured, ('{"verdict": "A", "verdict": "B"}', '{"verdict": "A or B"}')))
    invalid invalid
    >>> print(structured('{"explanation": "B is better.", "verdict": "A"}'))
    invalid
    >>> print(*map(structured, ('I think {"verdict": "A"}', '["A"]', "")))
    invalid invalid invalid
    """
    before, brace, rest = reply.partition("{")
    try:
        content, end = _DECODER.raw_decode(brace + rest)
    except (ValueError, RecursionError):
        return Preference.INVALID
    after = (brace + rest)[end:]
    verdict = content.pop("verdict", None)
    told = content.keys() <= _EXPLANATIONS and all(isinstance(x, str) for x in content.values())
    mark = _STRUCTURED.get(verdict) if isinstance(verdict, str) and told else None
    if not mark or "{" in after:
        return Preference.INVALID
    explained = (statements.plain(text) for text in content.values())
    if any(statements.contradicts(text, mark) for text in explained):
        return Preference.INVALID
    text = "\n".join((statements.plain(before), mark, statements.plain(after)))
    return _PREFERENCES[statements.verdict(text)]


def unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """The object of these pairs, for json. Raises: ValueError for a key that occurs twice."""
    content = dict(pairs)
    if len(content) < len(pairs):
        raise ValueError("duplicate key")
    return content


_DECODER = json.JSONDecoder(object_pairs_hook=unique_keys)
