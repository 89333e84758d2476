"""How many items people must label for corrected win rates of a wanted precision."""

from collections.abc import Iterable, Mapping
from typing import NamedTuple

from evaluation.judgements.verdicts import Matchup
from evaluation.scoring.people import PREFERENCE, PeopleResults
from evaluation.scoring.score import WinRate
from evaluation.statistics.correction import labels_alone_for, labels_for


class LabelNeed(NamedTuple):
    """What a win rate needs."""

    matchup: Matchup
    items: int
    labelled: int
    width: float | None  # of its interval now; None without enough labels
    needed: int | None  # items labelled in all; None: more than there are

    def __str__(self) -> str:
        now = f"{self.labelled:,} labelled"
        if self.width is not None:
            now += f", interval {100 * self.width:.1f} points wide"
        then = "all would not be enough" if self.needed is None else f"{self.needed:,} needed"
        return f"{self.matchup}: {now}; {then} of {self.items:,}"

    @property
    def missing(self) -> int:
        """Items to label next."""
        return max(0, (self.items if self.needed is None else self.needed) - self.labelled)


def needs(width: float, rates: Mapping[Matchup, WinRate], people: PeopleResults) -> list[LabelNeed]:
    """What each rate needs for an interval of `width`, from 0 to 1; the neediest first.

    With a correction it follows from what the judge explained so far. Without one the judge is
    taken to be of no use: a plan before the first labels asks for too many rather than too few.
    """

    def each() -> Iterable[LabelNeed]:
        for matchup, rate in rates.items():
            if found := people.corrections.get(matchup):
                now = (found.ppi.high or 1.0) - (found.ppi.low or 0.0)
                needed = labels_for(width, found)
                yield LabelNeed(matchup, found.items, found.labelled, now, needed)
            else:
                needed = labels_alone_for(width, 0.5 if rate.rate is None else rate.rate)
                needed = needed if needed <= rate.items else None
                own = people.rates.get((PREFERENCE, *matchup[1:]))
                yield LabelNeed(matchup, rate.items, own.items if own else 0, None, needed)

    return sorted(each(), key=lambda need: (-need.missing, need.matchup))
