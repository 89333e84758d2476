"""Agreement of judges on the same pairs of answers.

A unit is one item of one matchup, judged in both orders. Its category is the side that both orders
together favour: model (a score above 0.5), reference (below), or tie (0.5).
"""

import dataclasses
from collections.abc import Callable

import numpy as np

RESAMPLES, RESAMPLES_AT_A_TIME = 1000, 100
"""Of a bootstrap; a part at a time, so that the draws take little memory."""

CATEGORIES = 3
MODEL_WINS, REFERENCE_WINS, NEITHER = range(CATEGORIES)


def categories(scores: np.ndarray) -> np.ndarray:
    """[...] scores from 0 to 1 as categories; -1 where NaN.

    >>> categories(np.array([1, 0.75, 0.5, 0.25, np.nan]))
    array([ 0,  0,  2,  1, -1])
    """
    sides = np.where(scores > 0.5, MODEL_WINS, REFERENCE_WINS)
    sides = np.where(scores == 0.5, NEITHER, sides)
    return np.where(np.isnan(scores), -1, sides)


def contingency(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """[CATEGORIES, CATEGORIES]: how often the first judge chose the row, the second the column."""
    both = (one >= 0) & (other >= 0)
    pairs = one[both] * CATEGORIES + other[both]
    return np.bincount(pairs, minlength=CATEGORIES**2).reshape(CATEGORIES, CATEGORIES)


def cohen_kappa(table: np.ndarray) -> np.ndarray:
    """Cohen's kappa of contingency tables [..., k, k]: agreement beyond chance.

    (p_o - p_e) / (1 - p_e), with p_o the share on the diagonal and p_e the share expected there
    from the margins (Cohen 1960, Educational and Psychological Measurement 20:37-46). NaN where
    both judges always choose the same category, or nothing was judged.

    Two psychiatrists on 100 people (Fleiss, Levin and Paik, Statistical Methods for Rates and
    Proportions, section 18.1):

    >>> round(float(cohen_kappa(np.array([[75, 1, 4], [5, 4, 1], [0, 0, 10]]))), 2)
    0.68
    """
    with np.errstate(invalid="ignore", divide="ignore"):
        shares = table / table.sum(axis=(-2, -1), keepdims=True)
        observed = np.trace(shares, axis1=-2, axis2=-1)
        expected = (shares.sum(axis=-1) * shares.sum(axis=-2)).sum(axis=-1)
        return (observed - expected) / (1 - expected)


def nominal(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """The distance of categories: 1 where they differ."""
    return (one != other).astype(float)


def interval(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """The distance of scores: the square of their difference."""
    return (one - other) ** 2


def coincidences(ratings: np.ndarray, values: np.ndarray) -> np.ndarray:
    """[units, k, k]: pairs of `values` [k] that two judges gave a unit.

    Each pair counts in both orders and weighs 1 / (ratings of the unit - 1). NaN in `ratings`
    [judges, units] is no rating.
    """
    counts = (ratings[..., None] == values).sum(axis=0).astype(float)
    rated = counts.sum(axis=1)[:, None, None]
    pairs = counts[:, :, None] * counts[:, None, :] - counts[:, :, None] * np.eye(len(values))
    return np.where(rated >= 2, pairs / np.maximum(rated - 1, 1), 0.0)


def alpha(pairs: np.ndarray, apart: np.ndarray) -> np.ndarray:
    """Krippendorff's alpha of coincidence matrices [..., k, k], with the distance of each pair.

    1 - D_o / D_e, the observed over the expected distance (Krippendorff, Computing Krippendorff's
    Alpha-Reliability, 2011). NaN where nothing varies.
    """
    totals = pairs.sum(axis=-1)
    everything = totals.sum(axis=-1)
    observed = (pairs * apart).sum(axis=(-2, -1))
    expected = (totals[..., :, None] * totals[..., None, :] * apart).sum(axis=(-2, -1))
    with np.errstate(invalid="ignore", divide="ignore"):
        return 1 - observed * (everything - 1) / expected


def krippendorff_alpha(
    ratings: np.ndarray, difference: Callable[[np.ndarray, np.ndarray], np.ndarray] = nominal
) -> float:
    """Krippendorff's alpha of `ratings` [judges, units], NaN where a judge did not rate a unit.

    `difference` is `nominal` or `interval`. NaN where nothing varies or no unit has two ratings.
    """
    values = np.unique(ratings[~np.isnan(ratings)])
    apart = difference(values[:, None], values[None, :])
    return float(alpha(coincidences(ratings, values).sum(axis=0), apart))


def bootstrap(
    items: np.ndarray, counts: np.ndarray, statistic: Callable[[np.ndarray], np.ndarray], seed: int
) -> tuple[float | None, float | None]:
    """Percentile 95 % interval of a statistic of summed counts, items resampled; None without any.

    Args:
      items: [rows, k] counts of an item, a cluster of what depends on each other.
      counts: [rows] how many items are like that.
      statistic: of sums [resamples, k]; NaN where it is undefined.
    """
    total = int(counts.sum())
    drawing, found = np.random.default_rng(seed), []
    for _ in range(RESAMPLES // RESAMPLES_AT_A_TIME):
        drawn = drawing.multinomial(total, counts / total, RESAMPLES_AT_A_TIME)
        found.append(statistic(drawn @ items))
    values = np.concatenate(found)
    values = values[~np.isnan(values)]
    if not values.size:
        return None, None
    low, high = np.quantile(values, [0.025, 0.975])
    return float(low), float(high)


def _with_width(low: float | None, high: float | None) -> tuple[float | None, float | None]:
    """None for equal ends: judges that never differ in any resample prove nothing."""
    if low is None or high is None or high - low <= 1e-9:  # but for rounding
        return None, None
    return low, high


@dataclasses.dataclass(frozen=True)
class Agreement:
    """Agreement of two judges; shares from 0 to 1, None where nothing is counted or varies."""

    units: int  # with valid verdicts of both
    same: float | None  # share of the units with the same category
    decided: int  # units where both judges favour a side
    same_decided: float | None  # share of these with the same side
    kappa: float | None  # Cohen's, on the three categories
    kappa_low: float | None  # 95 % interval, items resampled; None where it has no width
    kappa_high: float | None
    alpha_nominal: float | None  # Krippendorff's, on the categories
    alpha_interval: float | None  # on the scores


def _number(value: np.ndarray | float) -> float | None:
    return None if np.isnan(value) else float(value)


def between(one: np.ndarray, other: np.ndarray, *, seed: int = 0) -> Agreement:
    """The agreement of two judges' scores [items, matchups], NaN where not judged or invalid.

    The interval of kappa is a percentile bootstrap over items, each with all of its matchups.
    """
    sides = categories(one), categories(other)
    table = contingency(*sides)
    units, decided = int(table.sum()), table[:NEITHER, :NEITHER]
    if not units:
        return Agreement(0, None, 0, None, None, None, None, None, None)
    by_item = np.stack([contingency(a, b).ravel() for a, b in zip(*sides, strict=True)])
    by_item = by_item[by_item.sum(axis=1) > 0]
    rows, counts = np.unique(by_item, axis=0, return_counts=True)
    low, high = _with_width(
        *bootstrap(
            rows, counts, lambda sums: cohen_kappa(sums.reshape(-1, CATEGORIES, CATEGORIES)), seed
        )
    )
    flat = [np.where(side < 0, np.nan, side).ravel() for side in sides]
    return Agreement(
        units=units,
        same=float(np.trace(table) / units),
        decided=int(decided.sum()),
        same_decided=float(np.trace(decided) / decided.sum()) if decided.sum() else None,
        kappa=_number(cohen_kappa(table)),
        kappa_low=low,
        kappa_high=high,
        alpha_nominal=_number(krippendorff_alpha(np.stack(flat))),
        alpha_interval=_number(
            krippendorff_alpha(np.stack([one.ravel(), other.ravel()]), interval)
        ),
    )


@dataclasses.dataclass(frozen=True)
class GroupAgreement:
    """Agreement of several people on the same pairs of answers; None where nothing is counted."""

    people: int
    units: int  # pairs of answers with verdicts of two or more
    same: float | None  # share of two people's verdicts on a unit that are the same outcome
    alpha: float | None  # Krippendorff's, on the outcomes
    low: float | None  # 95 % interval, items resampled; None where it has no width
    high: float | None


def among(scores: np.ndarray, *, seed: int = 0) -> GroupAgreement:
    """The agreement of people's `scores` [people, items, matchups], NaN where there is none."""
    people, items, matchups = scores.shape
    sides = np.where(np.isnan(scores), np.nan, categories(scores)).reshape(people, -1)
    values = np.arange(CATEGORIES)
    by_unit = coincidences(sides, values)
    units = int((by_unit.sum(axis=(1, 2)) > 0).sum())
    if not units:
        return GroupAgreement(people, 0, None, None, None, None)
    by_item = by_unit.reshape(items, matchups, -1).sum(axis=1)
    by_item = by_item[by_item.sum(axis=1) > 0]
    square, apart = (-1, CATEGORIES, CATEGORIES), nominal(values[:, None], values[None, :])
    whole = by_item.sum(axis=0).reshape(square)
    once = np.ones(len(by_item))
    low, high = _with_width(
        *bootstrap(by_item, once, lambda sums: alpha(sums.reshape(square), apart), seed)
    )
    return GroupAgreement(
        people=people,
        units=units,
        same=float(np.trace(whole[0]) / whole.sum()),
        alpha=_number(alpha(whole, apart)[0]),
        low=low,
        high=high,
    )
