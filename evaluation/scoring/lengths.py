"""Whether longer answers win: win rates by the length of an answer relative to its reference.

This describes; it does not correct. A length-controlled rate needs a model of the effect of length
on each item (Dubois et al. 2024, arXiv 2404.04475); a regression without it is further from that
rate than the plain one, so none is offered.
"""

import dataclasses

import numpy as np

from evaluation.scoring.score import item_scores
from evaluation.statistics.intervals import share

EDGES = (0.5, 0.8, 1.25, 2.0)
"""Boundaries of the ratio of lengths, answer to reference; symmetric: 0.8 is 1 / 1.25."""

STRATA = ("under half", "half to 0.8", "0.8 to 1.25", "1.25 to 2", "over twice")


@dataclasses.dataclass(frozen=True)
class Stratum:
    """The win rate of the answers in a range of lengths; None without a valid verdict."""

    pairs: int
    items: int
    rate: float | None
    low: float | None
    high: float | None


@dataclasses.dataclass(frozen=True)
class LengthEffect:
    """How the scores of some matchups of one benchmark depend on length."""

    strata: dict[str, Stratum]
    correlation: float | None  # Spearman's, of score and ratio
    decided: int  # pairs with a winner and different lengths
    longer: float | None  # share of these that the longer answer won


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


def by_length(bounds: np.ndarray, ratio: np.ndarray) -> LengthEffect:
    """The effect of length on `bounds` [matchups, 2, items], given `ratio` [matchups, items].

    The intervals take items with all of their matchups.
    """
    scores = np.stack([item_scores(matchup) for matchup in bounds])
    valid = ~np.isnan(scores)
    stratum = np.searchsorted(EDGES, ratio, side="right")
    inside = (stratum[..., None] == np.arange(len(STRATA))) & valid[..., None]
    counts = inside.sum(axis=0)  # [items, strata]
    sums = np.where(inside, scores[..., None], 0.0).sum(axis=0)
    strata = {}
    for i, name in enumerate(STRATA):
        items = int((counts[:, i] > 0).sum())
        numbers = share(sums[:, [i]], counts[:, [i]]) if items else [None] * 3
        strata[name] = Stratum(int(counts[:, i].sum()), items, *numbers)
    won = valid & (scores != 0.5) & (ratio != 1)
    longer = (scores[won] > 0.5) == (ratio[won] > 1)
    return LengthEffect(
        strata=strata,
        correlation=spearman(scores[valid], ratio[valid]),
        decided=int(won.sum()),
        longer=float(longer.mean()) if won.any() else None,
    )
