"""Texts of a test set that occur in training data: by consecutive words, and by ROUGE-L."""

import collections
import dataclasses
from collections.abc import Iterable, Sequence

from common.records import join_text
from common.text.near_duplicates import NearDuplicates
from common.text.rouge import unicode_tokens

WORDS = 13
"""Consecutive words, as GPT-3's authors counted (Brown et al. 2020, appendix C) and many since."""

MAX_TEXTS = 10
"""Words in a row that more texts have are a phrase of the test set itself, and do not count."""

ROUGE_L = 0.7
"""Texts with F above it are near-duplicates, as in self-instruct, Alpaca and AlpaCare."""


@dataclasses.dataclass(frozen=True)
class Seen:
    """What of a text occurs in training data; None where nothing does."""

    words: int | None  # position of the first training text that has WORDS words of it in a row
    near: int | None  # position of the training text with the highest ROUGE-L, above the threshold
    short: bool  # it has fewer than WORDS words


def shared_words(texts: Sequence[str], training: Iterable[str]) -> list[int | None]:
    """For each text the first of the training texts that has WORDS of its words in a row.

    Words are `unicode_tokens`: neither case nor punctuation matters. What more than MAX_TEXTS of
    the texts share does not count.
    """
    places: dict[tuple[str, ...], list[int]] = {}
    for position, text in enumerate(texts):
        for run in set(_runs(text)):
            places.setdefault(run, []).append(position)
    places = {run: where for run, where in places.items() if len(where) <= MAX_TEXTS}
    found: list[int | None] = [None] * len(texts)
    for number, text in enumerate(training):
        for run in places.keys() & set(_runs(text)):
            for position in places[run]:
                if found[position] is None:
                    found[position] = number
    return found


def _runs(text: str) -> Iterable[tuple[str, ...]]:
    words = unicode_tokens(text)
    return zip(*(words[start:] for start in range(WORDS)), strict=False)


def own_texts(pairs: Iterable[tuple[str, str]]) -> list[str]:
    """(instruction, input) as one text; without an instruction that over MAX_TEXTS of them share.

    >>> own_texts([("Define gout.", ""), *[("Answer the patient.", "I cough.")] * 11])[:2]
    ['Define gout.', 'I cough.']
    """
    pairs = list(pairs)
    counts = collections.Counter(instruction for instruction, _ in pairs)
    return [
        input if input and counts[instruction] > MAX_TEXTS else join_text(instruction, input)
        for instruction, input in pairs
    ]


def seen(texts: Sequence[str], instructions: Sequence[str], answers: Sequence[str]) -> list[Seen]:
    """What of each text occurs in training examples.

    Args:
      instructions: of the examples, with their inputs; ROUGE-L compares with these alone.
      answers: of the same examples; words in a row are looked for in both together.
    """
    index = NearDuplicates(ROUGE_L, "unicode")
    index.learn(instructions)
    for position, instruction in enumerate(instructions):
        index.add(instruction, position)
    both = (f"{one}\n{other}" for one, other in zip(instructions, answers, strict=True))
    runs = shared_words(texts, both)
    return [
        Seen(
            run,
            match.id if (match := index.nearest(text)) else None,
            len(unicode_tokens(text)) < WORDS,
        )
        for text, run in zip(texts, runs, strict=True)
    ]
