"""Do longer answers win? Win rates by how long an answer is beside its reference.

This describes; it does not correct. A rate "controlled for length" needs a model of what length is
worth on each item (Dubois et al. 2024, arXiv 2404.04475); a regression without that is further from
it than the plain rate, so none is offered.
"""

from typing import Any

import numpy as np

from evaluation.scoring import intervals, score

EDGES = (0.5, 0.8, 1.25, 2.0)
"""Of the ratio of lengths, answer to reference; symmetric: 0.8 is 1 / 1.25."""

STRATA = ("under half", "half to 0.8", "0.8 to 1.25", "1.25 to 2", "over twice")


def ratios(model: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """[items]: characters of the answer to those of the reference; an empty text counts as 1."""
    return np.maximum(model, 1) / np.maximum(reference, 1)


def spearman(one: np.ndarray, other: np.ndarray) -> float | None:
    """Spearman's rank correlation, ties at their mean rank; None where one of them is constant.

    Spearman 1904, American Journal of Psychology 15:72-101.

    >>> round(spearman(np.array([1, 2, 3, 4, 5]), np.array([5, 6, 7, 8, 7])), 3)
    0.821
    """
    a, b = _ranks(one), _ranks(other)
    if len(one) < 2 or not (np.ptp(a) and np.ptp(b)):
        return None
    return float(np.corrcoef(a, b)[0, 1])


def _ranks(values: np.ndarray) -> np.ndarray:
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)
    return (ends - (counts - 1) / 2)[inverse]


def by_length(bounds: np.ndarray, ratio: np.ndarray, *, seed: int = 0) -> dict[str, Any]:
    """What length does to the scores of some cells of one benchmark.

    `bounds` is [cells, 2, items] and `ratio` [cells, items]. Result: `strata`, the win rate in each
    with a 95 % interval, items resampled with all their cells; `correlation`, Spearman's between
    score and ratio; `longer`, of the `decided` pairs, which one answer won and where lengths
    differ, the share that the longer one won.
    """
    scores = np.stack([score.item_scores(cell) for cell in bounds])
    valid = ~np.isnan(scores)
    stratum = np.searchsorted(EDGES, ratio, side="right")
    inside = (stratum[..., None] == np.arange(len(STRATA))) & valid[..., None]
    counts = inside.sum(axis=0)  # [items, strata]
    sums = np.where(inside, scores[..., None], 0.0).sum(axis=0)
    won = valid & (scores != 0.5) & (ratio != 1)
    longer = (scores[won] > 0.5) == (ratio[won] > 1)
    return {
        "strata": _strata(sums, counts, seed),
        "correlation": spearman(scores[valid], ratio[valid]),
        "decided": int(won.sum()),
        "longer": float(longer.mean()) if won.any() else None,
    }


def _strata(sums: np.ndarray, counts: np.ndarray, seed: int) -> dict[str, dict[str, Any]]:
    rates, ends = intervals.bootstrap_ratios(sums, counts, seed=seed)
    found = {}
    for i, name in enumerate(STRATA):
        items = int((counts[:, i] > 0).sum())
        if not items:
            found[name] = {"pairs": 0, "items": 0, "rate": None, "low": None, "high": None}
            continue
        found[name] = {
            "pairs": int(counts[:, i].sum()),
            "items": items,
            "rate": float(rates[i]),
            "low": float(ends[0, i]),
            "high": float(ends[1, i]),
        }
    return found
