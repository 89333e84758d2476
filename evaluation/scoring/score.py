"""Win rates and what must be known to trust them: pure functions of a table of verdicts.

A table is [items, 2 orders] of `verdicts.MODEL, REFERENCE, TIE, INVALID` or `MISSING`.

**The paper's win rate** (AlpaCare, arXiv 2310.14558): win 1, tie 0.5, lose 0, averaged
over the two orders, then over the N items. Its code (`evaluation/evaulation.py`, AlpaCare b469c41)
differs in one point that changes numbers: an item with an unreadable verdict in either order is NaN
and falls out of N, uncounted. `WinRate.rate` is that number too, with the items that are left told
as `valid`; `worst` and `best` are the same rate over all N, each invalid verdict counted as lost
and as won: the rate that readable verdicts would have given lies between them. (`rate` itself need
not: an item with one valid verdict counts in the bounds alone.) Without invalid verdicts all three
are the paper's.

MedInstruct-test has 216 items where the paper says 217: N here is what was judged, so a rate of the
same verdicts is 217/216 of one divided by the paper's N.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from evaluation.judging.verdicts import INVALID, MISSING, MODEL, REFERENCE, TIE
from evaluation.scoring import intervals

STEPS = 4
"""An item's scores are multiples of 1 / STEPS: two verdicts of 0, 0.5 or 1, averaged."""

_POINTS = np.full((2, 5), np.nan)
"""What each verdict counts, [at least, at most] x verdict; the last column is MISSING (-1)."""
_POINTS[:, [MODEL, REFERENCE, TIE]] = [[1, 0, 0.5]] * 2
_POINTS[:, INVALID] = [0, 1]


def item_bounds(table: np.ndarray) -> np.ndarray:
    """[2, items]: the least and the most that each item can score, averaged over the two orders.

    They are equal where both verdicts are valid; NaN where the item was not judged.

    >>> item_bounds(np.array([[MODEL, TIE], [MODEL, INVALID], [MISSING, MISSING]]))
    array([[0.75, 0.5 ,  nan],
           [0.75, 1.  ,  nan]])
    """
    return _POINTS[:, table].mean(axis=-1)


def item_scores(bounds: np.ndarray) -> np.ndarray:
    """[items]: 0 to 1, NaN where a verdict is invalid or the item was not judged."""
    low, high = bounds
    return np.where(low == high, low, np.nan)


def either_order(table: np.ndarray) -> np.ndarray:
    """As `item_bounds`, but an item judged in one order only is scored by that one.

    For labels of people, who see each pair once, in an order drawn for them.
    """
    judged = (table != MISSING).sum(axis=-1)
    points = np.nan_to_num(_POINTS[:, table]).sum(axis=-1)
    return points / np.where(judged, judged, np.nan)


def average(bounds: Sequence[np.ndarray]) -> np.ndarray:
    """[2, items]: the mean over several references; NaN where one of them was not judged.

    An invalid verdict against one reference makes the item's average invalid.
    """
    return np.mean(bounds, axis=0)


@dataclasses.dataclass(frozen=True)
class WinRate:
    """Shares from 0 to 1; None where no item is valid."""

    items: int  # judged: N
    valid: int  # of them with valid verdicts only
    rate: float | None  # the mean over the valid ones; see `mean_rate` for several references
    low: float | None  # 95 % confidence interval of `rate`
    high: float | None
    interval: str  # bootstrap, wilson (see intervals.py), or none
    worst: float | None  # over all N, if every invalid verdict were lost
    best: float | None  # or won

    def record(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


def win_rate(
    bounds: np.ndarray, among: np.ndarray | None = None, *, references: int = 1
) -> WinRate:
    """The win rate of `bounds` [2, items], of the items that the mask `among` selects.

    `references`: how many each score is the average over.
    """
    judged = ~np.isnan(bounds[0])
    if among is not None:
        judged = judged & among
    bounds = bounds[:, judged]
    count = bounds.shape[1]
    if not count:
        return WinRate(0, 0, None, None, None, "none", None, None)
    worst, best = map(float, bounds.mean(axis=1))
    scores = item_scores(bounds)
    scores = scores[~np.isnan(scores)]
    if not len(scores):
        return WinRate(count, 0, None, None, None, "none", worst, best)
    low, high, method = intervals.of_mean(scores, STEPS * references)
    return WinRate(count, len(scores), float(scores.mean()), low, high, method, worst, best)


def mean_rate(
    parts: Sequence[np.ndarray], among: np.ndarray | None = None, *, seed: int = 0
) -> WinRate:
    """The mean of the win rates against several references, the paper's "AVG".

    `parts` are the bounds [2, items] against each; what counts are items judged against all, and
    `valid` is how many of them are valid against all. Without invalid verdicts this is the win rate
    of the items' averages, whose interval is exact. With some, the rates are over different items,
    and the interval of their mean comes from a bootstrap of items that draws, by `seed`.
    """
    whole = average(parts)
    judged = ~np.isnan(whole[0])
    among = judged if among is None else judged & among
    found = win_rate(whole, among, references=len(parts))
    if len(parts) == 1 or found.valid == found.items:
        return found
    scores = np.stack([item_scores(part)[among] for part in parts], axis=1)
    valid = ~np.isnan(scores)
    if not valid.any(axis=0).all():  # none against some reference
        return found
    low, high = intervals.bootstrap_mean_ratio(np.where(valid, scores, 0.0), valid, seed=seed)
    mean = float(np.nanmean(scores, axis=0).mean())
    return dataclasses.replace(found, rate=mean, low=low, high=high, interval="bootstrap")


@dataclasses.dataclass(frozen=True)
class Position:
    """How verdicts depend on which answer came first: counts, which add up over tables."""

    verdicts: int  # one for each order of each item
    invalid: int
    ties: int
    first: int  # for the answer that came first
    second: int
    items: int  # with two valid verdicts; the next four are of these
    consistent: int  # the same answer won in both orders, or both are ties
    for_first: int  # whichever came first won, in both orders
    for_second: int
    mixed: int  # a tie in one order, a winner in the other

    def __add__(self, other: "Position") -> "Position":
        sums = [
            getattr(self, field.name) + getattr(other, field.name)
            for field in dataclasses.fields(self)
        ]
        return Position(*sums)

    def record(self) -> dict[str, Any]:
        """The counts and, None where nothing is counted, the shares that follow from them.

        `first_preference` is the share of the verdicts naming a side that name the first: 0.5 for a
        judge that does not look at the order. `consistent_share`, `for_first_share` and
        `for_second_share` are "Consistency" and "Biased toward first/second" of Zheng et al. 2023
        (arXiv 2306.05685, table 2), over items with two valid verdicts.
        """
        share = lambda part, whole: part / whole if whole else None  # noqa: E731
        return dataclasses.asdict(self) | {
            "decisive": self.first + self.second,
            "first_preference": share(self.first, self.first + self.second),
            "tie_rate": share(self.ties, self.verdicts - self.invalid),
            "invalid_rate": share(self.invalid, self.verdicts),
            "consistent_share": share(self.consistent, self.items),
            "for_first_share": share(self.for_first, self.items),
            "for_second_share": share(self.for_second, self.items),
            "mixed_share": share(self.mixed, self.items),
        }


NO_POSITION = Position(*[0] * 10)


def position(table: np.ndarray) -> Position:
    """Counts of a table [items, 2]; items that were not judged are left out."""
    table = table[table[:, 0] != MISSING]
    one, other = table[:, 0], table[:, 1]  # model first, reference first
    first = (one == MODEL, other == REFERENCE)
    second = (one == REFERENCE, other == MODEL)
    valid = (table != INVALID).all(axis=1)
    count = lambda mask: int(mask.sum())  # noqa: E731
    same = valid & (one == other)
    by_first, by_second = first[0] & first[1], second[0] & second[1]
    return Position(
        verdicts=table.size,
        invalid=count(table == INVALID),
        ties=count(table == TIE),
        first=count(first[0]) + count(first[1]),
        second=count(second[0]) + count(second[1]),
        items=count(valid),
        consistent=count(same),
        for_first=count(by_first),
        for_second=count(by_second),
        mixed=count(valid & ~same & ~by_first & ~by_second),
    )
