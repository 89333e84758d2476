"""Confidence intervals of a mean over items: the bootstrap, or Wilson's where it has no width."""

import functools
import math
import statistics

import numpy as np

LEVEL = 0.95
TAILS = ((1 - LEVEL) / 2, 1 - (1 - LEVEL) / 2)
Z = statistics.NormalDist().inv_cdf(TAILS[1])
RESAMPLES = 1000


def bootstrap(scores: np.ndarray, steps: int, level: float = LEVEL) -> tuple[float, float]:
    """Percentile bootstrap interval of the mean of `scores` [items], multiples of 1 / `steps`.

    Items are resampled with all of their verdicts, so verdicts on one item need not be independent
    (a cluster bootstrap: Davison and Hinkley, Bootstrap Methods and Their Application, 1997,
    sections 3.8 and 5.3).

    Nothing is drawn at random: a Fourier transform gives the exact distribution of the sum of n
    draws with replacement from scores on a grid, as if there were infinitely many resamples. Its
    rounding errors are far smaller than the steps of the grid.

    >>> low, high = bootstrap(np.array([1.0, 0.5, 0.0, 1.0] * 54), steps=4)
    >>> round(low, 3), round(high, 3)
    (0.569, 0.681)
    """
    grid = np.rint(scores * steps).astype(np.int64)
    lowest, items = int(grid.min()), len(grid)
    shares = np.bincount(grid - lowest) / items
    length = 1 << ((len(shares) - 1) * items + 1).bit_length()
    chance = np.fft.irfft(np.fft.rfft(shares, length) ** items, length)  # of each sum, from 0
    tail = (1 - level) / 2
    ends = np.searchsorted(np.cumsum(chance), [tail, 1 - tail]) + lowest * items
    low, high = ends / (items * steps)
    return float(low), float(high)


def bootstrap_ratios(
    sums: np.ndarray, counts: np.ndarray, *, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """(ratios [k], percentile intervals [2, k]) of the sums over the counts, summed over the items.

    `sums` and `counts` are [items, k], for shares of things of which an item has several. Both
    results are NaN where nothing is counted. As in `mean_interval`, an interval without width is
    replaced by Wilson's, with the number of items that count.
    """
    ratios, ends = np.full(sums.shape[1], np.nan), np.full((2, sums.shape[1]), np.nan)
    counted = counts.sum(axis=0) > 0
    ratios[counted] = sums.sum(axis=0)[counted] / counts.sum(axis=0)[counted]
    drawn = _resampled_ratios(sums[:, counted], counts[:, counted], seed)
    ends[:, counted] = np.nanquantile(drawn, TAILS, axis=0)
    for column in np.flatnonzero(ends[0] == ends[1]):
        items = int((counts[:, column] > 0).sum())
        ends[:, column] = wilson(float(ratios[column]), items)
    return ratios, ends


def bootstrap_mean_ratio(
    sums: np.ndarray, counts: np.ndarray, *, seed: int = 0
) -> tuple[float, float]:
    """(low, high) of the mean of the k ratios of `bootstrap_ratios`, each counted somewhere.

    Items are drawn with all that they have of the k, so the ratios need not be independent.
    """
    low, high = np.nanquantile(_resampled_ratios(sums, counts, seed).mean(axis=1), TAILS)
    if low == high:
        return wilson(float(low), int(counts.any(axis=1).sum()))
    return float(low), float(high)


def _resampled_ratios(sums: np.ndarray, counts: np.ndarray, seed: int) -> np.ndarray:
    """[RESAMPLES, k] ratios; NaN where a resample contains nothing that counts."""
    drawn = _draws(len(sums), seed)
    with np.errstate(invalid="ignore"):
        return (drawn @ sums) / (drawn @ counts)


@functools.lru_cache(maxsize=4)
def _draws(items: int, seed: int) -> np.ndarray:
    """[RESAMPLES, items]: how often each item is drawn."""
    shares = np.full(items, 1 / items)
    return np.random.default_rng(seed).multinomial(items, shares, RESAMPLES).astype(float)


def wilson(share: float, count: int) -> tuple[float, float]:
    """Wilson's score interval of a share of `count` (Wilson 1927, JASA 22:209-212).

    Also holds, slightly too wide, for a mean of scores between 0 and 1: no variance is larger than
    that of wins and losses with the same mean.

    >>> [round(x, 4) for x in wilson(0.0, 216)], [round(x, 3) for x in wilson(0.9, 10)]
    ([0.0, 0.0175], [0.596, 0.982])
    """
    middle = share + Z * Z / (2 * count)
    half = Z * math.sqrt(share * (1 - share) / count + (Z / (2 * count)) ** 2)
    scale = 1 + Z * Z / count
    return max(0.0, (middle - half) / scale), min(1.0, (middle + half) / scale)


def student(degrees: float) -> float:
    """The 97.5 % quantile of Student's t; for 8 or more `degrees` of freedom to 4 digits.

    The expansion in 1 / degrees of Abramowitz and Stegun, 26.7.5.

    >>> [round(student(degrees), 3) for degrees in (8, 28.5, 1e9)]
    [2.306, 2.047, 1.96]
    """
    terms = (
        (Z**3 + Z) / 4,
        (5 * Z**5 + 16 * Z**3 + 3 * Z) / 96,
        (3 * Z**7 + 19 * Z**5 + 17 * Z**3 - 15 * Z) / 384,
        (79 * Z**9 + 776 * Z**7 + 1482 * Z**5 - 1920 * Z**3 - 945 * Z) / 92160,
    )
    return Z + sum(term / degrees ** (power + 1) for power, term in enumerate(terms))


def difference_interval(one: np.ndarray, other: np.ndarray, steps: int) -> tuple[float, float]:
    """(low, high) of the mean difference of two systems' `scores` of the same items.

    As `mean_interval` of the differences, which are shifted to 0 to 1.

    >>> difference_interval(np.ones(1), np.zeros(1), 4)[0] < 0.5  # one item proves little
    True
    """
    low, high, _ = mean_interval((one - other + 1) / 2, 2 * steps)
    return 2 * low - 1, 2 * high - 1


def mean_interval(scores: np.ndarray, steps: int) -> tuple[float, float, str]:
    """(low, high, method) of the mean of `scores` [items], multiples of 1 / `steps` from 0 to 1.

    Where all items score the same (all won, all lost, only ties) no resample differs and the
    bootstrap would claim certainty: the interval is Wilson's.
    """
    if np.ptp(np.rint(scores * steps)) > 0:
        return (*bootstrap(scores, steps), "bootstrap")
    return (*wilson(float(scores.mean()), len(scores)), "wilson")
