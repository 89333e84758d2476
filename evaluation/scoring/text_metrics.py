"""Signals that need no judge: length, and whether answers are truncated, run on, refuse, are empty.

They are cheap, and shown beside the win rate. None of them is quality: a refusal may be right, and
a list may end without a full stop.
"""

import dataclasses
import re
from collections.abc import Sequence

import numpy as np

from common.text.refusals import is_refusal
from evaluation.inputs.outputs import ModelOutput

LONG_ANSWER = 600
"""Characters (about 130 tokens of English) from which a missing end is taken for truncation."""

FINAL_CHARACTERS = frozenset(".!?:\"')]*”’»。！？”）」』")
"""Last characters of a complete answer: punctuation, quotes, brackets, Markdown."""

LOOP_REPEATS, LOOP_WORDS = 3, 24
"""An answer loops if its end repeats the same words so often, for so many words in all."""

_LOOP_WORD = re.compile(r"[\u3040-\u9fff]|[^\W\d_\u3040-\u9fff]+")  # no digits: list items differ

_NEXT_SECTION = re.compile(
    r"^[^\S\n]*(?:\#\#\#\s*(?:(?:instruction|input|response|question|answer)s?\b|\Z)|\[\|human\|\])",
    re.IGNORECASE | re.MULTILINE,
)


def is_cut(output: ModelOutput) -> bool:
    """Whether the answer was truncated.

    finish_reason decides, where it is known. Otherwise a long text without final punctuation counts
    as truncated: of the published references this finds the 183 and 244 of iCliniq and 126 and 123
    of MedInstruct that max_tokens 300 cut (gpt-3.5-turbo, gpt-4), and 5 and 6 of text-davinci-003
    and claude-2, which end in lists and tables.
    """
    if output.finish_reason:
        return output.finish_reason == "length"
    text = output.output.rstrip()
    return len(text) >= LONG_ANSWER and text[-1] not in FINAL_CHARACTERS


def loops(text: str) -> bool:
    """Whether the text ends by repeating one phrase; the numbers of list items do not count.

    >>> loops("Rest and drink. " + "Avoid salt and sugar. " * 7 + "Avoid sa")
    True
    >>> loops("1. Avoid salt. 2. Avoid sugar. 3. Avoid alcohol.")
    False
    """
    # The last word may be truncated. Read backwards, a loop is a text that matches itself when
    # shifted by the length of the phrase.
    words = _LOOP_WORD.findall(text.lower())[-2::-1]
    return any(
        shift + same >= max(LOOP_REPEATS * shift, LOOP_WORDS)
        for shift, same in enumerate(_self_matches(words))
        if shift
    )


def _self_matches(words: Sequence[str]) -> list[int]:
    """The number of words from each position on that match the start (the Z function).

    words   = [a, b, a, b, a, c]
    matches = [0, 0, 3, 0, 1, 0]
    """
    matches = [0] * len(words)
    begin = end = 0  # the match that extends furthest so far
    for position in range(1, len(words)):
        same = min(end - position, matches[position - begin]) if position < end else 0
        while position + same < len(words) and words[same] == words[position + same]:
            same += 1
        matches[position] = same
        if position + same > end:
            begin, end = position, position + same
    return matches


def runs_on(output: ModelOutput) -> bool:
    """Whether the model did not stop: it reached its limit, loops, or writes another prompt.

    The last is a line that starts a section of a template ("### Instruction:", "[|Human|]"), or a
    bare "###" at the end, where the published files cut at "Response:".
    """
    text = output.output
    return output.finish_reason == "length" or bool(_NEXT_SECTION.search(text)) or loops(text)


def refuses(output: ModelOutput) -> bool:
    """Whether the model refused, by its finish_reason or by its first words.

    Many answers that start like refusals ("I cannot provide medical advice ...") help nonetheless.
    """
    return output.finish_reason in ("refusal", "content_filter") or is_refusal(output.output)


@dataclasses.dataclass(frozen=True)
class TextSignals:
    """Counts and means over the answers of one model."""

    outputs: int
    empty: int
    too_long: int  # of these, because the prompt left no room for an answer
    cut: int  # truncated
    cut_known: int  # of these, by finish_reason
    run_on: int  # did not stop
    refused: int
    mean_words: float
    mean_characters: float
    mean_tokens: float | None  # over the answers with known num_tokens; None without any

    def __str__(self) -> str:
        guessed = self.cut - self.cut_known
        return (
            f"{self.outputs:,} answers, {self.mean_words:,.0f} words on average: {self.cut_known:,}"
            f" truncated at the length limit, {guessed:,} more appear truncated (long, without "
            f"final punctuation), {self.run_on:,} ran on, {self.refused:,} refused, "
            f"{self.empty:,} empty"
            + f", {self.too_long:,} of them because the prompt is too long"
            * bool(self.too_long)
        )


def measure_texts(outputs: Sequence[ModelOutput]) -> TextSignals:
    """The signals of at least one answer."""
    if not outputs:
        raise ValueError("no outputs to measure; give at least one")
    tokens = [output.num_tokens for output in outputs if output.num_tokens is not None]
    return TextSignals(
        outputs=len(outputs),
        empty=sum(not output.output.strip() for output in outputs),
        too_long=sum(output.finish_reason == "too_long" for output in outputs),
        cut=sum(map(is_cut, outputs)),
        cut_known=sum(output.finish_reason == "length" for output in outputs),
        run_on=sum(map(runs_on, outputs)),
        refused=sum(map(refuses, outputs)),
        mean_words=float(np.mean([len(output.output.split()) for output in outputs])),
        mean_characters=float(np.mean([len(output.output) for output in outputs])),
        mean_tokens=float(np.mean(tokens)) if tokens else None,
    )
