"""What a report is about: `--systems`, `--references`, `--judges` and `--benchmarks`."""

import dataclasses
import difflib
import fnmatch
from collections.abc import Mapping, Sequence

import numpy as np

from common.sections import UsageError
from evaluation.judgements.reading import ONE_ORDER
from evaluation.judgements.verdicts import Matchup, VerdictCode, Verdicts, only


@dataclasses.dataclass(frozen=True)
class Selection:
    """Names, or patterns such as alpacare-*; () stands for all."""

    generator: Sequence[str] = ()
    reference: Sequence[str] = ()
    judge: Sequence[str] = ()
    benchmark: Sequence[str] = ()

    def matchups(self, verdicts: Verdicts) -> set[Matchup]:
        """The matchups that are chosen.

        Raises:
          UsageError: a name or pattern fits nothing, or nothing fits all of them.
        """
        chosen = set(verdicts.tables)
        for field in (one.name for one in dataclasses.fields(self)):
            if patterns := getattr(self, field):
                names = _fitting(field, patterns, verdicts.names(field))
                chosen = {matchup for matchup in chosen if getattr(matchup, field) in names}
        if not chosen:
            raise UsageError("no judgements fit all of what --systems, --references, ... choose")
        return chosen


EVERYTHING = Selection()

_FLAGS = {"generator": "system"}  # the others have their own names


def _fitting(field: str, patterns: Sequence[str], known: Sequence[str]) -> set[str]:
    """The names that a pattern fits; a judge's with or without its mark."""
    found = set()
    for pattern in patterns:
        fits = {
            name
            for name in known
            if pattern in (name, name.removesuffix(ONE_ORDER))
            or fnmatch.fnmatchcase(name.removesuffix(ONE_ORDER), pattern)
        }
        if not fits:
            near = difflib.get_close_matches(pattern, known, 1)
            hint = f"did you mean {near[0]!r}?" if near else f"choose from {', '.join(known)}"
            kind = _FLAGS.get(field, field)
            raise UsageError(f"--{kind}s: no {kind} {pattern!r} was judged; {hint}")
        found |= fits
    return found


def select(
    selection: Selection, verdicts: Verdicts, people: Mapping[str, Verdicts]
) -> tuple[Verdicts, dict[str, Verdicts]]:
    """(verdicts, people's verdicts by question) of what is chosen, on the items judged there."""
    chosen = selection.matchups(verdicts)
    if len(chosen) == len(verdicts.tables):
        return verdicts, dict(people)
    masks: dict[str, np.ndarray] = {}
    for matchup in chosen:
        judged = (verdicts.tables[matchup] != VerdictCode.MISSING).any(axis=1)
        masks[matchup.benchmark] = masks.get(matchup.benchmark, False) | judged
    masks = {name: masks[name] for name in verdicts.ids if name in masks}
    pairs = {matchup[1:] for matchup in chosen}
    asked = {
        question: only(own, {key for key in own.tables if key[1:] in pairs}, masks)
        for question, own in people.items()
    }
    return only(verdicts, chosen, masks), {name: own for name, own in asked.items() if own.tables}
