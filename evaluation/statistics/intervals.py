"""Confidence intervals of rates over items: Wilson's, with the variance that the items have.

Wilson's score interval holds near 0 and 1 and for few items, where a bootstrap claims too much, but
it is made for wins and losses. Scores of items vary otherwise: ties, two orders, averages over
references. So the number of items is replaced by the number of wins and losses that would have the
variance seen (Kott and Carr 1997, Journal of Official Statistics 13:93-104; Dean and Pagano 2015,
Journal of Survey Statistics and Methodology 3:484-503), and the normal quantile by Student's.
Half a residual of 0.5 is added to those seen: few items without any difference do not prove that
there is none. docs/experiments/intervals.md has the coverage.
"""

import math
import statistics

import numpy as np

LEVEL = 0.95
Z = statistics.NormalDist().inv_cdf((1 + LEVEL) / 2)
PSEUDO = 0.5
"""Residuals of 0.5 that are added to those seen."""


def share(sums: np.ndarray, counts: np.ndarray) -> tuple[float, float, float]:
    """(rate, low, high) of the mean of k ratios, each of sums over counts, summed over the items.

    `sums` and `counts` are [items, k], each counted somewhere. An item enters with all that it has,
    so its verdicts need not be independent: the variance is that of the items' influences on the
    rate (linearisation; Cochran, Sampling Techniques, 3rd ed., section 6.3).

    >>> wins = np.array([[1.0], [0.5], [0.0], [1.0]] * 54)
    >>> [round(x, 3) for x in share(wins, np.ones_like(wins))]
    [0.625, 0.568, 0.679]
    """
    totals = counts.sum(axis=0)
    ratios = sums.sum(axis=0) / totals
    influences = ((sums - ratios * counts) / totals).mean(axis=1)
    weights = (counts / totals).mean(axis=1)
    rate, items = float(ratios.mean()), 1 / float((weights**2).sum())  # as many of equal weight
    free = max(items - 1, 0.5)  # of one item: wide, not infinite
    variance = float((influences**2).sum()) * items / free + PSEUDO * 0.25 / (items * free)
    low, high = score_interval(rate, variance, items, student(free))
    return rate, low, high


def score_interval(rate: float, variance: float, items: float, t: float) -> tuple[float, float]:
    """Wilson's interval of a rate with the number of wins and losses that would have `variance`.

    `items`: how many the rate is of. A rate of 0 or 1 has the variance of one a little inside.

    >>> [round(x, 3) for x in score_interval(0.9, 0.09 / 10, 10, Z)]  # 9 of 10 won
    [0.596, 0.982]
    """
    edge = PSEUDO / (4 * items)
    inside = min(max(rate, edge), 1 - edge)
    spread = inside * (1 - inside)
    count = spread / variance
    scale = 1 + t * t / count
    middle = (rate + t * t / (2 * count)) / scale
    half = t * math.sqrt(spread / count + (t / (2 * count)) ** 2) / scale
    return max(0.0, middle - half), min(1.0, middle + half)


_STUDENT = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306)
"""Quantiles for 1, 2, ... degrees of freedom."""


def student(degrees: float) -> float:
    """The 97.5 % quantile of Student's t; for 8 or more `degrees` of freedom to 4 digits.

    The expansion in 1 / degrees of Abramowitz and Stegun, 26.7.5; below, between table values.

    >>> [round(student(degrees), 3) for degrees in (4, 8, 28.5, 1e9)]
    [2.776, 2.306, 2.047, 1.96]
    """
    if degrees < len(_STUDENT):
        return float(np.interp(degrees, range(1, len(_STUDENT) + 1), _STUDENT))
    terms = (
        (Z**3 + Z) / 4,
        (5 * Z**5 + 16 * Z**3 + 3 * Z) / 96,
        (3 * Z**7 + 19 * Z**5 + 17 * Z**3 - 15 * Z) / 384,
        (79 * Z**9 + 776 * Z**7 + 1482 * Z**5 - 1920 * Z**3 - 945 * Z) / 92160,
    )
    return Z + sum(term / degrees ** (power + 1) for power, term in enumerate(terms))


def mean_interval(scores: np.ndarray) -> tuple[float, float]:
    """(low, high) of the mean of `scores` [items] from 0 to 1."""
    _, low, high = share(scores[:, None], np.ones((len(scores), 1)))
    return low, high


def difference_interval(one: np.ndarray, other: np.ndarray) -> tuple[float, float]:
    """(low, high) of the mean difference of two systems' `scores` of the same items.

    As `mean_interval` of the differences, which are shifted to 0 to 1.

    >>> difference_interval(np.ones(1), np.zeros(1))[0] < 0.5  # one item proves little
    True
    """
    low, high = mean_interval((one - other + 1) / 2)
    return 2 * low - 1, 2 * high - 1
