"""Win rates corrected by people's labels on some of the items.

A judge scores all N items, people n of them. Two estimates of the rate that people would give over
all N, from f, the judge's score of an item, and y, the people's:

    PPI++           mean(y, labelled) + b (mean(f, all) - mean(f, labelled)),  b = S_fy / S_ff
    Rogan-Gladen    mean(y, labelled) + (mean(f, all) - mean(f, labelled)) / c,  c = S_fy / S_yy

The first is prediction-powered inference (Angelopoulos, Duchi and Zrnic 2023, arXiv 2311.01453)
with the power that makes its variance least: lambda = b (N - n) / N, over the N - n items without
a label. It is also the regression estimator of double sampling (Cochran, Sampling Techniques, 3rd
ed., section 12.6). It holds for any judge, and only for labelled items that were drawn at random.
The second inverts the judge's confusion with people (Rogan and Gladen 1978, American Journal of
Epidemiology 107:71-76): with wins and losses only, c is sensitivity + specificity - 1. It moves the
rate further, by 1 / correlation^2, and so is less precise; it needs only that the judge errs alike
on labelled and on other items.

The unit is the item, as everywhere in this package: its score is the mean over both orders, all
people, and for an average over references over these. Each estimate is a sum over items of their
influence on it, so verdicts on one question need not be independent. An invalid verdict counts as
0.5: any score would be right, as it is only what predicts the people's.

docs/experiments/corrected_rates.md has the coverage of the intervals.
"""

import dataclasses
import math

import numpy as np

from evaluation.statistics.intervals import PSEUDO, Z, score_interval, student

MIN_LABELS = 10
"""Items with a label, against each reference, for a correction."""

FEW_LABELS, FEW_DISAGREEMENTS = 30, 5
"""Below them the intervals' coverage is not known to hold, and a report says so."""

UNLIKE = 3.0
"""Standard errors between the judge's rates on labelled and other items that a report names."""


@dataclasses.dataclass(frozen=True)
class RateEstimate:
    """A rate from 0 to 1 and its 95 % interval; None where the labels do not bound it."""

    rate: float | None
    low: float | None
    high: float | None


@dataclasses.dataclass(frozen=True)
class Correction:
    """A judge's win rate, corrected by people."""

    items: int  # judged: N
    labelled: int  # of these, by people as well: n
    labels: int  # the same as `labelled`, but for averages over references: pairs
    raw: float  # the judge's rate over all items, invalid verdicts as 0.5
    people: RateEstimate  # their rate on the labelled items, without the judge
    ppi: RateEstimate
    power: float  # PPI++'s lambda: 0, the judge's verdicts are of no use, to 1, all of it
    rogan_gladen: RateEstimate
    correlation: float | None  # of the judge's and the people's scores
    disagreements: int  # labels with another outcome than the judge's
    worth: float  # labels that alone would give an interval as narrow as PPI++'s
    unlike: float  # judge's rate on labelled minus that on other items, in standard errors
    residual: float  # variance of an item's label that the judge leaves unexplained
    explained: float  # and that it explains


_NOTHING = 1e-12
"""Variances below are rounding errors: all scores are equal."""


class _Sample:
    """Scores of items, [items, references], and their sums over labelled items."""

    def __init__(self, judge: np.ndarray, people: np.ndarray):
        self.judge, self.labelled = judge, ~np.isnan(people)
        self.items, self.references = judge.shape
        self.counts = self.labelled.sum(axis=0)  # [references]
        self.y = np.where(self.labelled, people, 0.0)
        self.people_means = self.y.sum(axis=0) / self.counts
        self.judge_means = (judge * self.labelled).sum(axis=0) / self.counts
        self.y_apart = (self.y - self.people_means) * self.labelled
        self.f_apart = (judge - self.judge_means) * self.labelled
        self.yy, self.ff = float((self.y_apart**2).sum()), float((self.f_apart**2).sum())
        self.fy = float((self.f_apart * self.y_apart).sum())
        self.rate = float(self.people_means.mean())
        self.shift = float((judge.mean(axis=0) - self.judge_means).mean())
        self.f_part = (judge - judge.mean(axis=0)).mean(axis=1) / self.items

    def labelled_part(self, residuals: np.ndarray, slopes: int) -> np.ndarray:
        """[items]: the influence of residuals on their mean, for `slopes` estimated from them."""
        free = self.counts - 1 - slopes / self.references
        return (residuals * np.sqrt(self.counts / free) / self.counts).mean(axis=1)

    def degrees(self, slopes: int) -> float:
        """Degrees of freedom of the labelled part: by its items, of which each may have several."""
        clusters = int(self.labelled.any(axis=1).sum())
        return max(1.0, clusters - self.references * clusters / self.counts.sum() - slopes)

    def unseen(self) -> float:
        """The variance of the residuals that `PSEUDO` adds; none where all items are labelled."""
        missing = 1 - self.counts / self.items
        return PSEUDO * 0.25 * float((missing / self.counts**2).sum()) / self.references**2


def correct(judge: np.ndarray, people: np.ndarray) -> Correction | None:
    """The correction of a rate, or of the mean of the rates against several references.

    Args:
      judge: [items, references] scores from 0 to 1 of the items that were judged.
      people: the same of people; NaN where there is no label.

    Returns:
      None where a reference has fewer than MIN_LABELS labels.
    """
    if (~np.isnan(people)).sum(axis=0).min() < MIN_LABELS:
        return None
    sample = _Sample(judge, people)
    slope = max(0.0, sample.fy / sample.ff) if sample.ff else 0.0
    ppi, variance = _ppi(sample, slope)
    alone, alone_variance = _ppi(sample, None)
    both = sample.labelled
    sides = np.sign(judge - 0.5) != np.sign(sample.y - 0.5)
    spread = math.sqrt(sample.ff * sample.yy)
    total = int(sample.counts.sum())
    free = max(1, total - sample.references - 1)
    return Correction(
        items=sample.items,
        labelled=int(both.any(axis=1).sum()),
        labels=total,
        raw=float(judge.mean()),
        people=alone,
        ppi=ppi,
        power=slope * float(1 - (sample.counts / sample.items).mean()),
        rogan_gladen=_rogan_gladen(sample),
        correlation=sample.fy / spread if spread else None,
        disagreements=int((sides & both).sum()),
        worth=total * alone_variance / variance if variance > _NOTHING else total,
        unlike=_unlike(sample),
        residual=float((sample.y_apart - slope * sample.f_apart).var() * both.size / free),
        explained=slope**2 * float(judge.var(axis=0, ddof=1).mean()),
    )


def _ppi(sample: _Sample, slope: float | None) -> tuple[RateEstimate, float]:
    """(estimate, variance); without a slope of the labels alone."""
    b = slope or 0.0
    slopes = 0 if slope is None else 1
    rate = sample.rate + b * sample.shift
    labelled = sample.labelled_part(sample.y_apart - b * sample.f_apart, slopes)
    everywhere = b * sample.f_part
    unseen = sample.unseen()
    parts = float((labelled**2).sum()) + unseen, float((everywhere**2).sum())
    variance = float(((labelled + everywhere) ** 2).sum()) + unseen
    free = sample.degrees(slopes), sample.items - 1
    # Welch and Satterthwaite's, as the two parts are known from different numbers of items.
    spread = sum(part**2 / own for part, own in zip(parts, free, strict=True))
    degrees = sum(parts) ** 2 / spread if spread else sample.items - 1
    return _score_interval(sample, rate, variance, student(degrees)), variance


def _score_interval(sample: _Sample, rate: float, variance: float, t: float) -> RateEstimate:
    """Wilson's interval with the number of wins and losses that would have this variance.

    It is not symmetric near 0 and 1, as for rates of surveys (Kott and Carr 1997, Journal of
    Official Statistics 13:93-104). Where all labels are won or lost, that number is theirs.
    """
    rate = min(max(rate, 0.0), 1.0)
    labels = int(sample.counts.sum())
    if variance <= _NOTHING:
        variance = max(rate * (1 - rate), PSEUDO / (4 * labels)) / sample.items
    return RateEstimate(rate, *score_interval(rate, variance, labels, t))


def _rogan_gladen(sample: _Sample) -> RateEstimate:
    """The estimate with Fieller's interval; without one where c may be 0.

    That is the case where the judge's verdicts hardly follow the people's: then any rate is
    compatible with them (Fieller 1954, Journal of the Royal Statistical Society B 16:175-185).
    """
    if not sample.yy or sample.fy <= 0:
        return RateEstimate(None, None, None)
    c = sample.fy / sample.yy
    residuals = sample.f_apart - c * sample.y_apart
    level = sample.f_part - sample.labelled_part(residuals, 1)
    slope = (residuals * sample.y_apart).sum(axis=1) / sample.yy
    t = student(sample.degrees(1))
    unseen = sample.unseen()
    # (shift - c (r - rate))^2 <= t^2 variance(r) holds for the rates r where a quadratic is <= 0.
    a = c**2 - t**2 * float((slope**2).sum())
    b = c * sample.shift - t**2 * float(level @ slope)
    d = sample.shift**2 - t**2 * (float(level @ level) + unseen)
    rate = min(max(sample.rate + sample.shift / c, 0.0), 1.0)
    if a <= 0:
        return RateEstimate(rate, None, None)
    half = math.sqrt(max(0.0, b**2 - a * d))
    low, high = (sample.rate + (b + sign * half) / a for sign in (-1, 1))
    return RateEstimate(rate, min(max(0.0, low), rate), max(min(1.0, high), rate))


def _unlike(sample: _Sample) -> float:
    """The largest difference, against any reference, in its standard errors; 0 without one."""
    others = sample.items - sample.counts
    spread = sample.judge.var(axis=0, ddof=1)
    error = np.sqrt(spread * (1 / sample.counts + 1 / np.maximum(others, 1)))
    apart = (sample.judge_means - sample.judge.mean(axis=0)) * sample.items / np.maximum(others, 1)
    found = np.divide(apart, error, out=np.zeros_like(apart), where=(others > 0) & (error > 0))
    return float(found[np.abs(found).argmax()])


def labels_alone_for(width: float, rate: float) -> int:
    """Items to label for an interval of `width` without a judge, at most: of wins and losses."""
    return math.ceil(max(rate * (1 - rate), 0.09) * (2 * Z / width) ** 2)


def labels_for(width: float, found: Correction) -> int | None:
    """Items to label in all for a PPI++ interval of `width`; None: all would not be enough.

    From the variance that the labels so far leave, as if each further one were like them.
    """
    per_item = (width / (2 * Z)) ** 2 - found.explained / found.items
    if per_item <= 0:
        return None
    needed = math.ceil(found.residual / per_item)
    return needed if needed <= found.items else None
