"""How varied a set of instructions is: entropies, distinct n-grams, near-duplicates."""

import math
import random
import unicodedata
from collections.abc import Callable, Iterable, Sequence
from itertools import islice

import numpy as np
from rapidfuzz import process
from rapidfuzz.distance import Indel

from datagen.analysis import words

_QUERIES_AT_ONCE = 64  # 64 x 52,000 float64 scores are 27 MB


def entropy(counts: Iterable[int]) -> float:
    """Shannon entropy in bits of how often each kind occurs; 0 of nothing.

    >>> entropy([5, 5, 5, 5]), entropy([7])
    (2.0, 0.0)
    """
    counts = [count for count in counts if count]
    total = sum(counts)
    return sum(count / total * math.log2(total / count) for count in counts) if total else 0.0


def indices(counts: Iterable[int]) -> dict[str, float | int]:
    """Distinct kinds, entropy, and the effective number 2^entropy: as many equal kinds."""
    counts = list(counts)
    bits = entropy(counts)
    effective = 2**bits if counts else 0.0
    return {"distinct": len(counts), "entropy_bits": bits, "effective_number": effective}


def vocabulary(texts: Sequence[Sequence[str]], tokens: int | None = None) -> dict[str, float | int]:
    """Type-token ratio and distinct-n (Li et al. 2016: different n-grams / n-grams) of texts.

    All of these fall as a set grows; to compare sets, `tokens` gives how many of each to look at,
    and whole texts are taken from the front until there are as many.
    """
    if tokens is not None:
        texts = _first(texts, tokens)
    total = sum(map(len, texts))
    types = len({token for text in texts for token in text})
    result: dict[str, float | int] = {"tokens": total, "types": types}
    result["type_token_ratio"] = types / total if total else 0.0
    for n in (1, 2, 3):
        grams = [gram for text in texts for gram in zip(*(text[i:] for i in range(n)))]  # noqa: B905
        result[f"distinct_{n}"] = len(set(grams)) / len(grams) if grams else 0.0
    return result


def _first(texts: Sequence[Sequence[str]], tokens: int) -> list[Sequence[str]]:
    taken, left = [], tokens
    for text in texts:
        taken.append(text[:left])
        left -= len(taken[-1])
        if not left:
            break
    return taken


def shuffled(items: Sequence, seed: int) -> list:
    return random.Random(seed).sample(items, len(items))


def duplicates(tasks: Sequence[tuple[str, str]]) -> dict[str, int]:
    """Counts of (instruction, input): the different instructions, and the repeated records.

    `repeated_folded` takes instructions as one that differ in case and punctuation only.
    """
    instructions = [instruction.strip() for instruction, _ in tasks]
    plain = {_plain(instruction) for instruction in instructions}
    return {
        "unique_instructions": len(set(instructions)),
        "repeated_instructions": len(tasks) - len(set(instructions)),
        "repeated_folded": len(tasks) - len(plain),
        "repeated_with_the_same_input": len(tasks)
        - len({(instruction.strip(), text.strip()) for instruction, text in tasks}),
    }


def _plain(text: str) -> str:
    folded = unicodedata.normalize("NFKC", text).casefold()
    return " ".join(words.tokens(folded)) or folded.strip()


def nearest(
    texts: Sequence[str], *, queries: int, seed: int, tokenize: Callable[[str], list[str]]
) -> tuple[list[float], int]:
    """(ROUGE-L F of each query to its nearest other text, texts without any token).

    Exact: each query meets every other text. ROUGE-L F is the normalised Indel similarity of token
    sequences, up to the last bit of the floating-point result. At most `queries` texts, drawn with
    `seed`, are queries; 0 means all. Texts without tokens are left out. A text that has no other
    to meet has no score.
    """
    numbers: dict[str, int] = {}
    lines = []
    for text in texts:
        ids = [numbers.setdefault(token, len(numbers)) for token in tokenize(text)]
        lines.append("".join(map(chr, ids)))  # one character a token: compared fastest
    lines = [line for line in lines if line]
    chosen = list(range(len(lines)))
    if queries and len(chosen) > queries:
        chosen = sorted(random.Random(seed).sample(chosen, queries))
    scores: list[float] = []
    for part in _parts(chosen, _QUERIES_AT_ONCE) if len(lines) > 1 else ():
        matrix = process.cdist(
            [lines[i] for i in part],
            lines,
            scorer=Indel.normalized_similarity,
            dtype=np.float64,
            workers=-1,
        )
        matrix[np.arange(len(part)), part] = -1.0  # itself
        scores.extend(matrix.max(axis=1).tolist())
    return scores, len(texts) - len(lines)


def _parts(items: Sequence[int], size: int) -> Iterable[list[int]]:
    rest = iter(items)
    while part := list(islice(rest, size)):
        yield part


def length_summary(lengths: Sequence[int]) -> dict[str, float | int]:
    """Count, mean, median, 95th percentile and maximum; zeros of nothing."""
    if not lengths:
        return dict.fromkeys(("count", "mean", "median", "p95", "max"), 0)
    values = np.array(lengths)
    median, p95 = np.percentile(values, [50, 95]).tolist()
    mean, most = values.mean().item(), values.max().item()
    return {"count": len(lengths), "mean": mean, "median": median, "p95": p95, "max": most}


def histogram(values: Sequence[float], edges: Sequence[float]) -> list[int]:
    """Counts in [edge, next edge); the last bin, from the last edge on, is open."""
    if not values:
        return [0] * len(edges)
    places = np.searchsorted(np.array(edges), np.array(values), side="right") - 1
    return np.bincount(places, minlength=len(edges)).tolist()


def word_edges(lengths: Sequence[int], bins: int = 20) -> list[int]:
    """Bin edges from 0 in steps of 1, 2 or 5 x 10^k; beyond the 99th percentile one open bin."""
    most = float(np.percentile(np.array(lengths), 99)) if len(lengths) else 1.0
    power = 10 ** max(0, math.floor(math.log10(max(most, 1) / bins)))
    step = next(step * power for step in (1, 2, 5, 10, 20) if step * power * bins > most)
    return list(range(0, int(most) + step + 1, step))
