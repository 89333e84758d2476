"""Near-duplicates by ROUGE-L, exactly as rouge_score decides, in a growing set of texts.

Two texts of m and n tokens whose longest common subsequence has L tokens have

    F = 2 p r / (p + r)    with p = L / n, r = L / m;    that is 2 L / (m + n), except for rounding

(`RougeScorer(["rougeL"], use_stemmer=False).score(a, b)["rougeL"].fmeasure`). Where 2 L / (m + n)
equals the threshold, rouge_score's float may lie above it, so its own expression decides.

Most pairs are never compared. F > t requires L > t (m + n) / 2, and L is at most the overlap, the
number of tokens that two texts share in any order. Sort the tokens of each text from the rarest to
the most common. If the first one that both hold leaves `left` tokens in one text and `other_left`
in the other, counting itself, the overlap is at most the smaller of the two:

    sorted tokens of one    = [sepsis, signs, name,  of ]    m = 4
    left                    = [     4,     3,    2,   1 ]
    sorted tokens of other  = [ fever, cause, signs, of ]    n = 4
    other_left              = [     4,     3,    2,   1 ]    first in common: signs, min(3, 2) = 2

At t = 0.7, L > 2.8 is required, so these two are no candidates. The bound covers the lengths, too
(Bayardo et al. 2007, "Scaling up all pairs similarity search"; Xiao et al. 2008, "Efficient
similarity joins for near duplicate detection"). `rapidfuzz` finds L for the candidates.
"""

from array import array
from collections import Counter
from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np
from rapidfuzz import process
from rapidfuzz.distance import LCSseq

from common.messages import suggestion
from common.text.rouge import TOKENIZERS, TokenCharacters, f_measure

ROUNDING = 1e-6
"""Far above the rounding error of a bound, in tokens, and far below one token."""


class _Indexed(NamedTuple):
    """One text."""

    text: str
    chars: str  # one per token
    prefix: dict[str, int]  # its rarest tokens -> number of tokens left from there on


class Match(NamedTuple):
    """A text of the index."""

    id: Any
    score: float


class NearDuplicates:
    """An index of texts: query a new text, then add it or not.

    >>> index = NearDuplicates(threshold=0.7)
    >>> index.add("List three causes of chest pain.", "seed-1")
    >>> index.nearest("List four causes of chest pain!")
    Match(id='seed-1', score=0.8333333333333334)
    >>> index.nearest("What does fever mean?") is None
    True
    """

    def __init__(self, threshold: float = 0.7, tokenizer: str = "rouge"):
        """Texts with F above the threshold are near-duplicates; `tokenizer` is a key of TOKENIZERS.

        Raises:
          ValueError: the threshold is not between 0 and 1, exclusive; the tokenizer is unknown.
        """
        if not 0 < threshold < 1:
            raise ValueError(f"threshold {threshold} must be between 0 and 1, exclusive")
        if tokenizer not in TOKENIZERS:
            raise ValueError(
                f"unknown tokenizer {tokenizer!r}; {suggestion(tokenizer, TOKENIZERS)}"
            )
        self._threshold = threshold
        self._tokenize = TOKENIZERS[tokenizer]
        # After `learn` common tokens come first, so the greater the character, the rarer its token.
        self._characters = TokenCharacters()
        self._ids: list[Any] = []
        self._texts: list[str] = []  # as characters
        self._lengths = array("i")  # in tokens
        self._postings: dict[str, array[int]] = {}  # character -> (position, tokens left), flat
        self._recent = _Indexed("", "", {})

    def __len__(self) -> int:
        return len(self._ids)

    def learn(self, texts: Iterable[str]) -> None:
        """Counts tokens to find the rare ones; without it, tokens seen first count as common.

        This speeds up queries; their results are the same.
        """
        counts = Counter(token for text in texts for token in self._tokenize(text))
        for token, _ in counts.most_common():
            self._characters[token]

    def add(self, text: str, id: Any) -> None:
        """Adds a text that later queries find as `id`; a text without tokens is never found."""
        position = len(self._ids)
        encoded = self._encode(text)
        self._ids.append(id)
        self._texts.append(encoded.chars)
        self._lengths.append(len(encoded.chars))
        for char, left in encoded.prefix.items():
            self._postings.setdefault(char, array("i")).extend((position, left))

    def nearest(self, text: str) -> Match | None:
        """The text with the highest F above the threshold, the one added first among equals."""
        return max(self.matches(text), key=lambda match: match.score, default=None)

    def matches(self, text: str) -> list[Match]:
        """All texts with F above the threshold, in the order they were added."""
        encoded = self._encode(text)
        candidates, lengths = self._candidates(encoded)
        if not len(candidates):
            return []
        # No score_cutoff: rapidfuzz 3.14 misses some pairs of over 128 tokens that just reach it.
        common = process.cdist(
            [encoded.chars],
            [self._texts[position] for position in candidates.tolist()],
            scorer=LCSseq.similarity,
            dtype=np.int32,
        )[0]
        found = np.flatnonzero(common > self._bound(len(encoded.chars), lengths))
        scores = f_measure(common[found], lengths[found], len(encoded.chars))
        above = scores > self._threshold
        chosen = candidates[found[above]].tolist()
        return [
            Match(self._ids[position], score)
            for position, score in zip(chosen, scores[above].tolist(), strict=True)
        ]

    def _encode(self, text: str) -> _Indexed:
        if text == self._recent.text:
            return self._recent  # most texts are queried, then added
        chars = self._characters.encode(self._tokenize(text))
        # The shortest text that can score above the threshold has `shortest` tokens, all in common.
        shortest = len(chars) * self._threshold / (2 - self._threshold) - ROUNDING
        prefix: dict[str, int] = {}
        for at, char in enumerate(sorted(chars, reverse=True)):
            if len(chars) - at < shortest:
                break
            prefix.setdefault(char, len(chars) - at)
        self._recent = _Indexed(text, chars, prefix)
        return self._recent

    def _candidates(self, encoded: _Indexed) -> tuple[np.ndarray, np.ndarray]:
        """Positions and lengths of the texts that can score above the threshold.

        Both are int32[candidates].
        """
        shared = self._postings.keys() & encoded.prefix.keys()
        if not shared:
            return np.empty(0, np.int32), np.empty(0, np.int32)
        postings = [self._postings[char] for char in shared]
        position, other_left = np.frombuffer(b"".join(postings), np.int32).reshape(-1, 2).T
        left_by_char = [encoded.prefix[char] for char in shared]
        left = np.repeat(left_by_char, [len(posting) // 2 for posting in postings])
        lengths = np.frombuffer(self._lengths, np.int32)
        bound = self._bound(len(encoded.chars), lengths[position])
        positions = np.unique(position[np.minimum(left, other_left) > bound])
        return positions, lengths[positions]

    def _bound(self, m: int, n: np.ndarray) -> np.ndarray:
        """A bound that L, and so the overlap, exceeds if F is above the threshold."""
        return np.maximum(self._threshold / 2 * (m + n) - ROUNDING, 0)
