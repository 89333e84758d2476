"""Near-duplicates by ROUGE-L, exactly as rouge_score decides, in a growing set of texts.

Two texts of m and n tokens whose longest common subsequence has L tokens have

    F = 2 p r / (p + r)    with p = L / n, r = L / m;    that is 2 L / (m + n), but for rounding

(`RougeScorer(["rougeL"], use_stemmer=False).score(a, b)["rougeL"].fmeasure`). At exactly 2 L / (m +
n) = threshold, rouge_score's float may lie above it, so the last word is always its own expression.

Most pairs are never compared. F > t needs L > t (m + n) / 2, and L is at most the overlap, the
number of tokens that two texts share in any order. Sort the tokens of each from the rarest on. The
first that both hold stands where m - i and n - j tokens are left, so the overlap is at most the
smaller of these: only pairs which share a token with enough tokens left on both sides are
candidates. That bounds the lengths too (Bayardo et al. 2007, "Scaling up all pairs similarity
search"; Xiao et al. 2008, "Efficient similarity joins for near duplicate detection"). `rapidfuzz`
finds L for them.
"""

import re
import unicodedata
from array import array
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import numpy as np
from rapidfuzz import process
from rapidfuzz.distance import LCSseq

ROUNDING = 1e-6
"""Far above the rounding error of a bound, in tokens, and far below one token."""

# Tokenizers.

_LATIN_WORD = re.compile(r"[a-z0-9]+")
_WITHOUT_SPACES = (
    *("CJK ", "IDEOGRAPHIC ", "HIRAGANA ", "KATAKANA "),
    *("THAI ", "LAO ", "KHMER ", "MYANMAR "),
)
"""Starts of the Unicode names of characters whose script puts no spaces between words."""


def rouge_tokens(text: str) -> list[str]:
    """rouge_score's own tokens without its stemmer: runs of a to z and digits, in lower case.

    >>> rouge_tokens("What's COVID-19?"), rouge_tokens("高血压")
    (['what', 's', 'covid', '19'], [])
    """
    return _LATIN_WORD.findall(text.lower())


class _Spacing(dict[int, str]):
    """Code point -> what it becomes before a text is split at its spaces."""

    def __missing__(self, code: int) -> str:
        char = chr(code)
        category, name = unicodedata.category(char), unicodedata.name(char, "")
        if category == "Cf" or name.startswith("VARIATION SELECTOR"):
            spaced = ""  # invisible: joiners, soft hyphens
        elif category[0] not in "LMN":
            spaced = " "
        else:
            spaced = f" {char} " if name.startswith(_WITHOUT_SPACES) else char
        self[code] = spaced
        return spaced


_SPACING = _Spacing()


def unicode_tokens(text: str) -> list[str]:
    """Words of any script; single characters where a script puts no spaces between words.

    The same as `rouge_tokens` for ASCII.

    >>> unicode_tokens("Fièvre?"), unicode_tokens("高血压 é COVID-19"), unicode_tokens("हिन्दी")
    (['fièvre'], ['高', '血', '压', 'é', 'covid', '19'], ['हिन्दी'])
    """
    return unicodedata.normalize("NFKC", text).casefold().translate(_SPACING).split()


TOKENIZERS: dict[str, Callable[[str], list[str]]] = {
    "rouge": rouge_tokens,
    "unicode": unicode_tokens,
}

# The index.


class _Characters(dict[str, str]):
    """Token -> a character of its own, the next one for a new token.

    rapidfuzz compares strings faster than lists. In use, common tokens come first, so the greater
    the character, the rarer the token, roughly.
    """

    def __missing__(self, token: str) -> str:
        try:
            char = self[token] = chr(len(self))
        except ValueError:
            raise ValueError(f"over {len(self):,} distinct tokens; filter fewer texts") from None
        return char


class _Encoded(NamedTuple):
    """One text."""

    text: str
    chars: str  # one a token
    prefix: dict[str, int]  # its rarest tokens -> how many tokens are left from there on


class Match(NamedTuple):
    """A text of the index."""

    id: Any
    score: float


class NearDuplicates:
    """Texts of which none, some or all may be near-duplicates: ask, then add or not.

    >>> index = NearDuplicates(threshold=0.7)
    >>> index.add("List three causes of chest pain.", "seed-1")
    >>> index.nearest("List four causes of chest pain!")
    Match(id='seed-1', score=0.8333333333333334)
    >>> index.nearest("What does fever mean?") is None
    True
    """

    def __init__(self, threshold: float = 0.7, tokenizer: str = "rouge"):
        """
        Args:
          threshold: texts with F above it are near-duplicates; over 0 and under 1.
          tokenizer: of TOKENIZERS; "rouge" sees no letter but a to z.

        Raises:
          ValueError: the threshold is out of range or there is no such tokenizer.
        """
        if not 0 < threshold < 1:
            raise ValueError(f"threshold {threshold} must lie between 0 and 1")
        if tokenizer not in TOKENIZERS:
            raise ValueError(f"no tokenizer {tokenizer!r}; choose one of {', '.join(TOKENIZERS)}")
        self._threshold = threshold
        self._tokenize = TOKENIZERS[tokenizer]
        self._characters = _Characters()
        self._ids: list[Any] = []
        self._texts: list[str] = []  # as characters
        self._lengths = array("i")  # in tokens
        self._postings: dict[str, array[int]] = {}  # character -> (position, tokens left), flat
        self._recent = _Encoded("", "", {})

    def __len__(self) -> int:
        return len(self._ids)

    def learn(self, texts: Iterable[str]) -> None:
        """Counts tokens to know the rare ones; without it, tokens seen first count as common.

        Searches are faster then; what they find is the same.
        """
        counts = Counter(token for text in texts for token in self._tokenize(text))
        for token, _ in counts.most_common():
            self._characters[token]

    def add(self, text: str, id: Any) -> None:
        """Adds a text, found from now on as `id`; a text without any token never is."""
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
        """All texts with F above the threshold, in the order in which they were added."""
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
        if not len(found):
            return []
        precision, recall = common[found] / lengths[found], common[found] / len(encoded.chars)
        scores = 2 * precision * recall / (precision + recall)
        above = scores > self._threshold
        chosen = candidates[found[above]].tolist()
        return [
            Match(self._ids[position], score)
            for position, score in zip(chosen, scores[above].tolist(), strict=True)
        ]

    def _encode(self, text: str) -> _Encoded:
        if text == self._recent.text:
            return self._recent  # most texts are looked for, then added
        chars = "".join(map(self._characters.__getitem__, self._tokenize(text)))
        # The shortest text that can be above the threshold has `shortest` tokens, all of them here.
        shortest = len(chars) * self._threshold / (2 - self._threshold) - ROUNDING
        prefix: dict[str, int] = {}
        for at, char in enumerate(sorted(chars, reverse=True)):
            if len(chars) - at < shortest:
                break
            prefix.setdefault(char, len(chars) - at)
        self._recent = _Encoded(text, chars, prefix)
        return self._recent

    def _candidates(self, encoded: _Encoded) -> tuple[np.ndarray, np.ndarray]:
        """Positions and lengths of what can be above the threshold, each int32[candidates]."""
        shared = self._postings.keys() & encoded.prefix.keys()
        if not shared:
            return np.empty(0, np.int32), np.empty(0, np.int32)
        postings = [self._postings[char] for char in shared]
        theirs = np.frombuffer(b"".join(postings), np.int32).reshape(-1, 2)
        left = [encoded.prefix[char] for char in shared]
        ours = np.repeat(left, [len(posting) // 2 for posting in postings])
        lengths = np.frombuffer(self._lengths, np.int32)
        bound = self._bound(len(encoded.chars), lengths[theirs[:, 0]])
        positions = np.unique(theirs[np.minimum(theirs[:, 1], ours) > bound, 0])
        return positions, lengths[positions]

    def _bound(self, m: int, n: np.ndarray) -> np.ndarray:
        """What L, and so the overlap, exceeds where m and n tokens give F above the threshold."""
        return np.maximum(self._threshold / 2 * (m + n) - ROUNDING, 0)
