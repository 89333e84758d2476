"""How varied the texts of a set are: entropies, distinct n-grams, near-duplicates, lengths."""

import math
import random
import re
from collections.abc import Iterable, Sequence

import numpy as np
from rapidfuzz import process
from rapidfuzz.distance import Indel

from common.text.rouge import TokenCharacters, Tokenizer, unicode_tokens

# Scripts written without spaces: each character counts as a word.
_UNSPACED = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u2e80-\ua4cf\uf900-\ufaff\U00020000-\U0003fffd"
_SPACED_WORD = re.compile(rf"[{_UNSPACED}]|[^\s{_UNSPACED}]+")

_QUERY_BATCH = 64  # 64 x 52,000 float64 scores are 27 MB


def entropy(counts: Iterable[int]) -> float:
    """Shannon entropy, in bits, of a distribution given by its counts; 0 if it is empty.

    >>> entropy([5, 5, 5, 5]), entropy([7])
    (2.0, 0.0)
    """
    counts = [count for count in counts if count]
    total = sum(counts)
    return sum(count / total * math.log2(total / count) for count in counts) if total else 0.0


def indices(counts: Iterable[int]) -> dict[str, float | int]:
    """Number of distinct kinds, entropy, and effective number of kinds, 2^entropy.

    As many equally frequent kinds would have the same entropy.
    """
    counts = list(counts)
    bits = entropy(counts)
    effective = 2**bits if counts else 0.0
    return {"distinct": len(counts), "entropy_bits": bits, "effective_number": effective}


def vocabulary(texts: Sequence[Sequence[str]], tokens: int | None = None) -> dict[str, float | int]:
    """Type-token ratio and distinct-n (Li et al. 2016: distinct n-grams / n-grams) of texts.

    All of these fall as a set grows. To compare sets, `tokens` limits each to its first tokens.

    texts  = [[a, b, a], [b, a]]    5 tokens, 2 types
    2-grams = ab, ba; ba            distinct-2 = 2 / 3: no n-gram crosses texts
    """
    if tokens is not None:
        texts = _first_tokens(texts, tokens)
    total = sum(map(len, texts))
    types = len({token for text in texts for token in text})
    result: dict[str, float | int] = {"tokens": total, "types": types}
    result["type_token_ratio"] = types / total if total else 0.0
    for n in (1, 2, 3):
        grams = [gram for text in texts for gram in zip(*(text[i:] for i in range(n)))]  # noqa: B905
        result[f"distinct_{n}"] = len(set(grams)) / len(grams) if grams else 0.0
    return result


def _first_tokens(texts: Sequence[Sequence[str]], tokens: int) -> list[Sequence[str]]:
    taken, left = [], tokens
    for text in texts:
        taken.append(text[:left])
        left -= len(taken[-1])
        if not left:
            break
    return taken


def duplicates(tasks: Sequence[tuple[str, str]]) -> dict[str, int]:
    """Numbers of distinct instructions and of repeated records, for (instruction, input) pairs.

    `repeated_folded` ignores case and punctuation.
    """
    instructions = [instruction.strip() for instruction, _ in tasks]
    folded = {" ".join(unicode_tokens(text)) or text for text in instructions}
    return {
        "unique_instructions": len(set(instructions)),
        "repeated_instructions": len(tasks) - len(set(instructions)),
        "repeated_folded": len(tasks) - len(folded),
        "repeated_with_the_same_input": len(tasks)
        - len({(instruction.strip(), text.strip()) for instruction, text in tasks}),
    }


def nearest(
    texts: Sequence[str], *, queries: int, seed: int, tokenize: Tokenizer
) -> tuple[list[float], int]:
    """(ROUGE-L F of each query to its nearest other text, number of texts without tokens).

    Exact: each query is compared with every other text. ROUGE-L F, 2 L / (m + n), is the normalised
    Indel similarity of token sequences, up to the last bit of the float. At most `queries` texts,
    drawn with `seed`, are queries; 0 means all. Texts without tokens are skipped. A single text
    has no score.
    """
    characters = TokenCharacters()
    lines = [line for text in texts if (line := characters.encode(tokenize(text)))]
    chosen = list(range(len(lines)))
    if queries and len(chosen) > queries:
        chosen = sorted(random.Random(seed).sample(chosen, queries))
    scores: list[float] = []
    for start in range(0, len(chosen) if len(lines) > 1 else 0, _QUERY_BATCH):
        batch = chosen[start : start + _QUERY_BATCH]
        matrix = process.cdist(
            [lines[i] for i in batch],
            lines,
            scorer=Indel.normalized_similarity,
            dtype=np.float64,
            workers=-1,
        )
        matrix[np.arange(len(batch)), batch] = -1.0  # itself
        scores.extend(matrix.max(axis=1).tolist())
    return scores, len(texts) - len(lines)


def count_words(text: str) -> int:
    """Words between spaces; characters in Chinese, Japanese, Thai and other unspaced scripts.

    >>> count_words("a beta-blocker, twice"), count_words("什么是糖尿病?")
    (3, 7)
    """
    return len(_SPACED_WORD.findall(text))


def length_summary(lengths: Sequence[int]) -> dict[str, float | int]:
    """Count, mean, median, 95th percentile and maximum; zeros if there are none."""
    if not lengths:
        return dict.fromkeys(("count", "mean", "median", "p95", "max"), 0)
    values = np.array(lengths)
    median, p95 = np.percentile(values, [50, 95]).tolist()
    mean, longest = values.mean().item(), values.max().item()
    return {"count": len(lengths), "mean": mean, "median": median, "p95": p95, "max": longest}


def histogram(values: Sequence[float], edges: Sequence[float]) -> list[int]:
    """Counts in [edge, next edge); the last bin is open-ended."""
    if not values:
        return [0] * len(edges)
    bins = np.searchsorted(np.array(edges), np.array(values), side="right") - 1
    return np.bincount(bins, minlength=len(edges)).tolist()


def word_edges(lengths: Sequence[int], bins: int = 20) -> list[int]:
    """Bin edges from 0 in steps of 1, 2 or 5 x 10^k, up to the 99th percentile."""
    top = float(np.percentile(np.array(lengths), 99)) if len(lengths) else 1.0
    power = 10 ** max(0, math.floor(math.log10(max(top, 1) / bins)))
    step = next(step * power for step in (1, 2, 5, 10, 20) if step * power * bins > top)
    return list(range(0, int(top) + step + 1, step))
