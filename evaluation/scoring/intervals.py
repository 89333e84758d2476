"""Confidence intervals of a mean over items: the bootstrap, and Wilson's where it has no width."""

import functools
import math
import statistics

import numpy as np

LEVEL = 0.95


def bootstrap(scores: np.ndarray, steps: int, level: float = LEVEL) -> tuple[float, float]:
    """Percentile bootstrap interval of the mean of `scores` [items], multiples of 1 / `steps`.

    Items are resampled whole, with all that was judged of them, so verdicts on one item need not be
    independent of each other (a cluster bootstrap: Davison and Hinkley, Bootstrap Methods and Their
    Application, 1997, sections 3.8 and 5.3).

    Nothing is drawn at random: the sum of n draws with replacement from scores on a grid has a
    distribution that one Fourier transform gives, as with infinitely many resamples. Its rounding
    errors are far below what the ends of the interval can show.

    >>> low, high = bootstrap(np.array([1.0, 0.5, 0.0, 1.0] * 54), steps=4)
    >>> round(low, 3), round(high, 3)
    (0.569, 0.681)
    """
    grid = np.rint(scores * steps).astype(np.int64)
    least, items = int(grid.min()), len(grid)
    shares = np.bincount(grid - least) / items
    length = 1 << ((len(shares) - 1) * items + 1).bit_length()
    chance = np.fft.irfft(np.fft.rfft(shares, length) ** items, length)  # of each sum, from 0
    tails = (1 - level) / 2
    ends = np.searchsorted(np.cumsum(chance), [tails, 1 - tails]) + least * items
    low, high = ends / (items * steps)
    return float(low), float(high)


def bootstrap_ratios(
    sums: np.ndarray,
    counts: np.ndarray,
    *,
    seed: int = 0,
    resamples: int = 1000,
    level: float = LEVEL,
) -> tuple[np.ndarray, np.ndarray]:
    """Percentile intervals [2, k] of the sums over the counts, each summed over the items first.

    `sums` and `counts` are [items, k], for shares of things of which an item has several. The first
    result is [k] ratios; both are NaN where nothing is counted. As in `of_mean`, an interval that
    would have no width is Wilson's, of as many as there are items that count.
    """
    rows = np.concatenate([sums, counts], axis=1)
    drawn = _draws(len(sums), seed, resamples)
    tails = (1 - level) / 2
    ratios, ends = np.full(sums.shape[1], np.nan), np.full((2, sums.shape[1]), np.nan)
    counted = counts.sum(axis=0) > 0
    ratios[counted] = sums.sum(axis=0)[counted] / counts.sum(axis=0)[counted]
    over, under = (part[:, counted] for part in np.split(drawn @ rows, 2, axis=1))
    with np.errstate(invalid="ignore"):  # a resample may hold nothing that counts
        ends[:, counted] = np.nanquantile(over / under, [tails, 1 - tails], axis=0)
    for column in np.flatnonzero(ends[0] == ends[1]):
        items = int((counts[:, column] > 0).sum())
        ends[:, column] = wilson(float(ratios[column]), items, level)
    return ratios, ends


def bootstrap_mean_ratio(
    sums: np.ndarray,
    counts: np.ndarray,
    *,
    seed: int = 0,
    resamples: int = 1000,
    level: float = LEVEL,
) -> tuple[float, float]:
    """(low, high) of the mean of the k ratios that `bootstrap_ratios` has, each counted somewhere.

    Items are drawn with all that they have of the k, so the ratios need not be independent.
    """
    drawn = _draws(len(sums), seed, resamples)
    with np.errstate(invalid="ignore"):
        means = ((drawn @ sums) / (drawn @ counts)).mean(axis=1)
    tails = (1 - level) / 2
    low, high = np.nanquantile(means, [tails, 1 - tails])
    if low == high:
        return wilson(float(low), int(counts.any(axis=1).sum()), level)
    return float(low), float(high)


@functools.lru_cache(maxsize=4)
def _draws(items: int, seed: int, resamples: int) -> np.ndarray:
    """[resamples, items]: how often each item is drawn."""
    shares = np.full(items, 1 / items)
    return np.random.default_rng(seed).multinomial(items, shares, resamples).astype(float)


def wilson(share: float, count: int, level: float = LEVEL) -> tuple[float, float]:
    """Wilson's score interval of a share of `count` (Wilson 1927, JASA 22:209-212).

    Also holds, a little wide, for a mean of scores between 0 and 1: no variance is larger than that
    of wins and losses with the same mean.

    >>> [round(x, 4) for x in wilson(0.0, 216)], [round(x, 3) for x in wilson(0.9, 10)]
    ([0.0, 0.0175], [0.596, 0.982])
    """
    z = statistics.NormalDist().inv_cdf((1 + level) / 2)
    middle = share + z * z / (2 * count)
    half = z * math.sqrt(share * (1 - share) / count + (z / (2 * count)) ** 2)
    scale = 1 + z * z / count
    return max(0.0, (middle - half) / scale), min(1.0, (middle + half) / scale)


def of_difference(
    one: np.ndarray, other: np.ndarray, steps: int, level: float = LEVEL
) -> tuple[float, float]:
    """(low, high) of the mean difference of two systems' `scores` of the same items, as `of_mean`.

    >>> of_difference(np.ones(1), np.zeros(1), 4)[0] < 0.5  # one item says little
    True
    """
    low, high, _ = of_mean((one - other + 1) / 2, 2 * steps, level)  # from 0 to 1
    return 2 * low - 1, 2 * high - 1


def of_mean(scores: np.ndarray, steps: int, level: float = LEVEL) -> tuple[float, float, str]:
    """(low, high, method) of the mean of `scores` [items], multiples of 1 / `steps` from 0 to 1.

    Where all items score the same (0 or N wins, nothing but ties) a resample never differs and the
    bootstrap would claim certainty: Wilson's interval is given there.
    """
    if np.ptp(scores) > 0:
        return (*bootstrap(scores, steps, level), "bootstrap")
    return (*wilson(float(scores[0]), len(scores), level), "wilson")
