"""What can be told of answers without a judge: length, cut, run-on, refused, empty.

Cheap signals, shown beside the win rate. None of them is quality: a refusal may be right, and a
list may well end without a full stop.
"""

import dataclasses
import re
from collections.abc import Sequence

import numpy as np

from common.refusals import is_refusal
from evaluation.inputs.outputs import ModelOutput

LONG = 600
"""Characters (about 130 tokens of English) from which an open end is taken for a cut."""

END = frozenset(".!?:\"')]*”’»。！？”）」』")
"""Last characters of an answer that came to its end: punctuation, quotes, brackets, Markdown."""

LOOP_REPEATS, LOOP_WORDS = 3, 24
"""An answer loops if it ends in the same words so often, and in so many words altogether."""

_LOOP_WORD = re.compile(r"[\u3040-\u9fff]|[^\W\d_\u3040-\u9fff]+")  # digits number list items

_NEXT_SECTION = re.compile(
    r"^[^\S\n]*(?:\#\#\#\s*(?:(?:instruction|input|response|question|answer)s?\b|\Z)|\[\|human\|\])",
    re.IGNORECASE | re.MULTILINE,
)


def word_count(text: str) -> int:
    """Runs of characters that are no white space."""
    return len(text.split())


def is_cut(output: ModelOutput) -> bool:
    """Whether the answer stops where it should go on.

    finish_reason tells, where it is known. Else a long text without end punctuation is one: of the
    published references that finds the 183 and 244 of iCliniq and 126 and 123 of MedInstruct that
    max_tokens 300 cut (gpt-3.5-turbo, gpt-4), and 5 and 6 of text-davinci-003 and claude-2, which
    end in lists and tables.
    """
    if output.finish_reason:
        return output.finish_reason == "length"
    text = output.output.rstrip()
    return len(text) >= LONG and text[-1] not in END


def loops(text: str) -> bool:
    """Whether the text ends in one phrase over and over; the numbers of list items do not count.

    >>> loops("Rest and drink. " + "Avoid salt and sugar. " * 7 + "Avoid sa")
    True
    >>> loops("1. Avoid salt. 2. Avoid sugar. 3. Avoid alcohol.")
    False
    """
    # The last word may be cut. From the end backwards, the period of a loop is a shift under
    # which the words match themselves.
    words = _LOOP_WORD.findall(text.lower())[-2::-1]
    return any(
        shift + same >= max(LOOP_REPEATS * shift, LOOP_WORDS)
        for shift, same in enumerate(_self_matches(words))
        if shift
    )


def _self_matches(words: Sequence[str]) -> list[int]:
    """How far the words match themselves from each position on (the Z function).

    words   = [a, b, a, b, a, c]
    matches = [0, 0, 3, 0, 1, 0]
    """
    matches = [0] * len(words)
    begin = end = 0  # the match that reaches furthest so far
    for position in range(1, len(words)):
        same = min(end - position, matches[position - begin]) if position < end else 0
        while position + same < len(words) and words[same] == words[position + same]:
            same += 1
        matches[position] = same
        if position + same > end:
            begin, end = position, position + same
    return matches


def runs_on(output: ModelOutput) -> bool:
    """Whether the model did not stop: it reached its limit, loops, or goes on to another prompt.

    The last is a line that begins a section of a template ("### Instruction:", "[|Human|]"), or a
    bare "###" at the end, where the published files cut at "Response:".
    """
    text = output.output
    return output.finish_reason == "length" or bool(_NEXT_SECTION.search(text)) or loops(text)


def refuses(output: ModelOutput) -> bool:
    """Whether the model refused, by its own or its provider's word or as refusals begin ("I cannot
    provide medical advice ..."). Many an answer that begins so helps all the same.
    """
    return output.finish_reason in ("refusal", "content_filter") or is_refusal(output.output)


@dataclasses.dataclass(frozen=True)
class Signals:
    """Counts and means over the answers of one model."""

    outputs: int
    empty: int
    cut: int  # stop where they should go on
    cut_known: int  # of these, by finish_reason
    run_on: int  # did not stop
    refused: int
    mean_words: float
    mean_characters: float
    mean_tokens: float | None  # over the answers whose tokens are known; None: of none

    def __str__(self) -> str:
        guessed = self.cut - self.cut_known
        return (
            f"{self.outputs:,} answers, {self.mean_words:,.0f} words on average: {self.cut_known:,}"
            f" cut at the length limit, {guessed:,} more seem cut (long, without end punctuation), "
            f"{self.run_on:,} ran on, {self.refused:,} refused, {self.empty:,} empty"
        )


def measure(outputs: Sequence[ModelOutput]) -> Signals:
    """
    Raises:
      ValueError: there are no outputs.
    """
    if not outputs:
        raise ValueError("no outputs to measure; give at least one")
    tokens = [output.num_tokens for output in outputs if output.num_tokens is not None]
    return Signals(
        outputs=len(outputs),
        empty=sum(not output.output.strip() for output in outputs),
        cut=sum(map(is_cut, outputs)),
        cut_known=sum(output.finish_reason == "length" for output in outputs),
        run_on=sum(map(runs_on, outputs)),
        refused=sum(map(refuses, outputs)),
        mean_words=float(np.mean([word_count(output.output) for output in outputs])),
        mean_characters=float(np.mean([len(output.output) for output in outputs])),
        mean_tokens=float(np.mean(tokens)) if tokens else None,
    )
