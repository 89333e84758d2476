"""Significance of differences: an exact paired permutation test, and Holm's correction."""

from collections.abc import Sequence

import numpy as np


def paired(one: np.ndarray, other: np.ndarray, steps: int) -> float:
    """Two-sided p-value of the hypothesis that the two systems are exchangeable on every item.

    `one` and `other` are [items] scores of the same items, multiples of 1 / `steps`, none NaN. The
    statistic is the sum of the differences; swapping an item's two scores flips the sign of its
    difference, so under the hypothesis all 2^items signs are equally likely (Fisher, The Design of
    Experiments, 1935, section 21).

    Nothing is drawn at random. Differences in steps are integers, so the distribution of the sum
    follows exactly from its characteristic function, the product of cos(d t) over the differences
    d, by a Fourier transform (Pagano and Tritchler 1983, JASA 78:435-440). Its rounding errors are
    below 1e-12; smaller p-values are returned as that, or as the smallest possible, 2 / 2^items.

    >>> round(paired(np.array([1.0] * 6), np.array([0.0] * 6), steps=4), 9)  # 2 of 2^6
    0.03125
    """
    differences = np.rint((one - other) * steps).astype(np.int64)
    sizes, counts = np.unique(np.abs(differences[differences != 0]), return_counts=True)
    if not len(sizes):
        return 1.0
    reach = int(sizes @ counts)
    length = 1 << (2 * reach + 1).bit_length()
    angle = 2 * np.pi * np.arange(length // 2 + 1) / length
    waves = np.ones_like(angle)
    for size, count in zip(sizes, counts, strict=True):
        waves *= np.cos(size * angle) ** count
    chance = np.fft.irfft(waves, length)  # of the sum 0, 1, 2, ...; it is symmetric
    observed = abs(int(differences.sum()))
    if observed == 0:
        return 1.0
    smallest = max(1e-12, 2.0 ** (1 - int(counts.sum())))
    return min(1.0, max(2 * float(chance[observed : reach + 1].sum()), smallest))


def holm(values: Sequence[float]) -> list[float]:
    """P-values adjusted for the family-wise error rate, in the order given.

    Holm 1979, Scandinavian Journal of Statistics 6:65-70. The smallest is multiplied by their
    number m, the next by m - 1, and so on; none is below its predecessor or above 1.

    >>> [round(p, 3) for p in holm([0.01, 0.04, 0.03, 0.005])]
    [0.03, 0.06, 0.06, 0.02]
    """
    p = np.asarray(values, float)
    order = np.argsort(p, kind="stable")
    scaled = np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1))
    adjusted = np.empty_like(p)
    adjusted[order] = np.minimum(scaled, 1.0)
    return adjusted.tolist()
