"""ROUGE-1, ROUGE-2 and ROUGE-L against references, as the rouge-score package defines them.

    rouge = Rouge()
    scores = rouge.f_measures(map(rouge.encode, outputs), map(rouge.encode, references))

A text is encoded once and compared with many. The package's own scorer takes milliseconds a pair,
which is minutes for a dozen systems and four references; here it is microseconds.
"""

import itertools
from array import array
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
from rapidfuzz.distance import LCSseq
from rouge_score import scoring, tokenize

NAMES = ("rouge1", "rouge2", "rougeL")

_SURROGATES = range(0xD800, 0xE000)


class Encoded(NamedTuple):
    """A text made ready for comparison; rapidfuzz reads all three."""

    tokens: str  # one character a token
    # Two sorted sequences have in common what their longest common subsequence has.
    unigrams: str  # the same, sorted
    bigrams: array  # sorted


class Rouge:
    """Compares texts in tokens of a-z and 0-9, lower-cased, without stemming.

    Texts in other scripts have no tokens, and score 0 (as with the package). One object takes about
    1.1 million distinct tokens, as many as there are characters.
    """

    def __init__(self):
        self._characters: dict[str, str] = {}

    def encode(self, text: str) -> Encoded:
        tokens = "".join(map(self._character, tokenize.tokenize(text, None)))
        codes = [ord(character) for character in tokens]
        bigrams = sorted(first << 32 | second for first, second in itertools.pairwise(codes))
        return Encoded(tokens, "".join(sorted(tokens)), array("Q", bigrams))

    def _character(self, token: str) -> str:
        if token not in self._characters:
            code = len(self._characters)
            code += len(_SURROGATES) * (code >= _SURROGATES.start)
            self._characters[token] = chr(code)
        return self._characters[token]

    def f_measures(self, outputs: Iterable[Encoded], references: Iterable[Encoded]) -> np.ndarray:
        """F of each output against the reference at its place, shape (pairs, 3) as NAMES.

        Raises:
          ValueError: not as many outputs as references.
        """
        rows = [_f_measures(*pair) for pair in zip(outputs, references, strict=True)]
        return np.array(rows, np.float64).reshape(-1, len(NAMES))


def _f_measures(output: Encoded, reference: Encoded) -> tuple[float, float, float]:
    return (
        _f_measure(output.unigrams, reference.unigrams),
        _f_measure(output.bigrams, reference.bigrams),
        _f_measure(output.tokens, reference.tokens),
    )


def _f_measure(output: Sequence, reference: Sequence) -> float:
    common = LCSseq.similarity(output, reference)
    return scoring.fmeasure(common / max(len(output), 1), common / max(len(reference), 1))
