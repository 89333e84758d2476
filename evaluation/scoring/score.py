"""Win rates, and what is needed to trust them: pure functions of a table of verdicts.

A table is [items, 2 orders] of `VerdictCode`.

**The paper's win rate** (AlpaCare, arXiv 2310.14558): win 1, tie 0.5, loss 0, averaged over the two
orders, then over the N items. Its code (`evaluation/evaulation.py`, AlpaCare b469c41) differs in
one point that changes numbers: an item with an unreadable verdict in either order is NaN and
silently leaves N. `WinRate.rate` is that number too, and `valid` is the number of items left;
`worst` and `best` are the rate over all N with every invalid verdict counted as lost and as won.
The rate that readable verdicts would have given lies between them. (`rate` itself need not: an item
with one valid verdict counts only in the bounds.) Without invalid verdicts all three are the
paper's.

MedInstruct-test has 216 items where the paper reports 217. N here is the number judged, so the same
verdicts give 217/216 of a rate divided by the paper's N.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from evaluation.judgements.verdicts import VerdictCode
from evaluation.statistics.intervals import mean_interval, share

STEPS, GRADED_STEPS = 4, 100
"""An item's scores are multiples of 1 / STEPS: two verdicts of 0, 0.5 or 1, averaged. Those of
graded verdicts have any value; for tests they are rounded to 1 / GRADED_STEPS."""

_POINTS = np.full((2, len(VerdictCode)), np.nan)
"""Points of each verdict, [at least, at most] x code; the last column is MISSING (-1)."""
_POINTS[:, VerdictCode.MODEL] = 1
_POINTS[:, VerdictCode.REFERENCE] = 0
_POINTS[:, VerdictCode.TIE] = 0.5
_POINTS[:, VerdictCode.INVALID] = 0, 1


def item_bounds(table: np.ndarray, scores: np.ndarray | None = None) -> np.ndarray:
    """[2, items]: the lowest and highest score of each item, averaged over the orders judged.

    They are equal where the verdicts are valid; NaN where the item was not judged. People, and some
    judges from elsewhere, see a pair in one order only, which then counts alone.

    Args:
      scores: [items, 2] of graded verdicts, used in place of their codes; NaN for others.

    >>> model, tie, invalid, missing = (VerdictCode[x] for x in "MODEL TIE INVALID MISSING".split())
    >>> item_bounds(np.array([[model, tie], [model, invalid], [missing, tie], [missing, missing]]))
    array([[0.75, 0.5 , 0.5 ,  nan],
           [0.75, 1.  , 0.5 ,  nan]])
    """
    judged = (table != VerdictCode.MISSING).sum(axis=-1)
    points = _POINTS[:, table]
    if scores is not None:
        points = np.where(np.isnan(scores), points, scores)
    return np.nan_to_num(points).sum(axis=-1) / np.where(judged, judged, np.nan)


def item_scores(bounds: np.ndarray) -> np.ndarray:
    """[items]: 0 to 1, NaN where a verdict is invalid or the item was not judged."""
    low, high = bounds
    return np.where(low == high, low, np.nan)


def grid(scores: np.ndarray, references: int) -> int:
    """Steps from 0 to 1 for tests of `scores`, each averaged over `references`.

    >>> grid(np.array([0.75, 0.5]), 1), grid(np.array([0.75, 1.99 - 1]), 1)
    (4, 100)
    """
    steps = STEPS * references
    exact = np.abs(scores * steps - np.rint(scores * steps)) < 1e-6
    return steps if exact.all() else GRADED_STEPS


def average(bounds: Sequence[np.ndarray]) -> np.ndarray:
    """[2, items]: the mean over several references; NaN where one of them was not judged.

    An invalid verdict against one reference makes the item's average invalid.
    """
    return np.mean(bounds, axis=0)


@dataclasses.dataclass(frozen=True)
class WinRate:
    """Shares from 0 to 1; None where no item is valid."""

    items: int  # judged: N
    valid: int  # items with valid verdicts only
    rate: float | None  # mean over the valid items; see `mean_rate` for several references
    low: float | None  # 95 % confidence interval of `rate`
    high: float | None
    worst: float | None  # over all N, with every invalid verdict counted as lost
    best: float | None  # or as won


def win_rate(bounds: np.ndarray, among: np.ndarray | None = None) -> WinRate:
    """The win rate of `bounds` [2, items] over the items that the mask `among` selects."""
    judged = ~np.isnan(bounds[0])
    if among is not None:
        judged = judged & among
    bounds = bounds[:, judged]
    count = bounds.shape[1]
    if not count:
        return WinRate(0, 0, None, None, None, None, None)
    worst, best = map(float, bounds.mean(axis=1))
    scores = item_scores(bounds)
    scores = scores[~np.isnan(scores)]
    if not len(scores):
        return WinRate(count, 0, None, None, None, worst, best)
    low, high = mean_interval(scores)
    return WinRate(count, len(scores), float(scores.mean()), low, high, worst, best)


def mean_rate(parts: Sequence[np.ndarray], among: np.ndarray | None = None) -> WinRate:
    """The mean of the win rates against several references, the paper's "AVG".

    `parts` are the bounds [2, items] against each reference. Items judged against all of them
    count; `valid` is how many of these are valid against all. Without invalid verdicts this is the
    win rate of the items' averages. With some, the rates are over different items.
    """
    whole = average(parts)
    judged = ~np.isnan(whole[0])
    among = judged if among is None else judged & among
    found = win_rate(whole, among)
    if len(parts) == 1 or found.valid == found.items:
        return found
    scores = np.stack([item_scores(part)[among] for part in parts], axis=1)
    valid = ~np.isnan(scores)
    if not valid.any(axis=0).all():  # none against some reference
        return found
    rate, low, high = share(np.where(valid, scores, 0.0), valid.astype(float))
    return dataclasses.replace(found, rate=rate, low=low, high=high)


@dataclasses.dataclass(frozen=True)
class Position:
    """How verdicts depend on which answer was shown first: counts.

    The shares are None where nothing is counted. Those of `items` are "Consistency" and "Biased
    toward first/second" of Zheng et al. 2023 (arXiv 2306.05685, table 2). Verdicts on pairs that
    were judged once are counted in the first three only: they do not show what the order changes.
    """

    verdicts: int  # one for each order of each item
    invalid: int
    ties: int
    first: int  # for the answer shown first
    second: int
    items: int  # with two valid verdicts; the next four add up to these
    consistent: int  # the same answer won in both orders, or both are ties
    for_first: int  # the answer shown first won, in both orders
    for_second: int
    mixed: int  # a tie in one order, a winner in the other
    won: int  # of the consistent, for the model
    lost: int  # for the reference

    @property
    def first_preference(self) -> float | None:
        """Share of the verdicts with a winner that name the first: 0.5 if order plays no role."""
        return _share(self.first, self.first + self.second)

    @property
    def tie_rate(self) -> float | None:
        """Share of the valid verdicts."""
        return _share(self.ties, self.verdicts - self.invalid)

    @property
    def invalid_rate(self) -> float | None:
        """Share of all verdicts."""
        return _share(self.invalid, self.verdicts)

    @property
    def item_shares(self) -> dict[str, float | None]:
        """The four outcomes of an item, as shares of `items`."""
        return {
            "consistent_share": _share(self.consistent, self.items),
            "for_first_share": _share(self.for_first, self.items),
            "for_second_share": _share(self.for_second, self.items),
            "mixed_share": _share(self.mixed, self.items),
        }

    @property
    def agreed_rates(self) -> dict[str, float | None]:
        """The rates if only what both orders agree on is won or lost, and the rest a tie.

        FastChat's win_rate, loss_rate and win_rate_adjusted (llm_judge/show_result.py,
        `display_result_pairwise`): won / items, lost / items, (won + (items - won - lost) / 2) /
        items.
        """
        return {
            "agreed_win_rate": _share(self.won, self.items),
            "agreed_loss_rate": _share(self.lost, self.items),
            "agreed_adjusted_rate": _share(self.items + self.won - self.lost, 2 * self.items),
        }

    def record(self) -> dict[str, Any]:
        """The counts and shares, for report.json."""
        return {
            **dataclasses.asdict(self),
            "decisive": self.first + self.second,
            "first_preference": self.first_preference,
            "tie_rate": self.tie_rate,
            "invalid_rate": self.invalid_rate,
            **self.item_shares,
            **self.agreed_rates,
        }


def _share(part: int, whole: int) -> float | None:
    return part / whole if whole else None


def position(table: np.ndarray) -> Position:
    """Counts of a table [items, 2]; items that were not judged in both orders only in the first."""
    judged = table[table != VerdictCode.MISSING]
    table = table[(table != VerdictCode.MISSING).all(axis=1)]
    one, other = table[:, 0], table[:, 1]  # model first, reference first
    valid = (table != VerdictCode.INVALID).all(axis=1)
    same = valid & (one == other)
    first = np.stack([one == VerdictCode.MODEL, other == VerdictCode.REFERENCE])
    second = np.stack([one == VerdictCode.REFERENCE, other == VerdictCode.MODEL])
    for_first, for_second = first.all(axis=0), second.all(axis=0)
    return Position(
        verdicts=judged.size,
        invalid=int((judged == VerdictCode.INVALID).sum()),
        ties=int((judged == VerdictCode.TIE).sum()),
        first=int(first.sum()),
        second=int(second.sum()),
        items=int(valid.sum()),
        consistent=int(same.sum()),
        for_first=int(for_first.sum()),
        for_second=int(for_second.sum()),
        mixed=int((valid & ~same & ~for_first & ~for_second).sum()),
        won=int((same & (one == VerdictCode.MODEL)).sum()),
        lost=int((same & (one == VerdictCode.REFERENCE)).sum()),
    )
