"""What people say: how far they agree, their own win rates, and judges' rates corrected by them."""

import dataclasses
from collections.abc import Mapping

import numpy as np

from evaluation.judgements.verdicts import Matchup, Verdicts
from evaluation.scoring import score
from evaluation.scoring.score import WinRate
from evaluation.statistics.agreement import GroupAgreement, among
from evaluation.statistics.correction import Correction, correct

PREFERENCE = "preference"
"""The question to people that judges answer too; others are reported without a correction."""

PairKey = tuple[str, str, str]  # (benchmark, reference, generator): a matchup without its judge


@dataclasses.dataclass(frozen=True)
class PeopleResults:
    """The numbers of a report that need people; all empty where there are none."""

    agreement: Mapping[tuple[str, str], GroupAgreement]  # (question, benchmark)
    rates: Mapping[tuple[str, str, str, str], WinRate]  # (question, *PairKey), labelled items only
    corrections: Mapping[Matchup, Correction]  # averages too


def measure_people(
    asked: Mapping[str, Verdicts],
    sheets: Mapping[tuple[str, str, str], Mapping[str, list[np.ndarray]]],
    *,
    seed: int,
) -> PeopleResults:
    """The results of people's verdicts, by question.

    Args:
      sheets: the judges' bounds, as measurement.score_sheets makes them; {} for labels alone.
    """
    agreement, rates = {}, {}
    consensus: dict[PairKey, np.ndarray] = {}
    for question, verdicts in asked.items():
        by_pair = _by_pair(verdicts)
        for benchmark in sorted({pair[0] for pair in by_pair}):
            own = [scores for pair, scores in by_pair.items() if pair[0] == benchmark]
            agreement[question, benchmark] = among(np.stack(own, axis=2), seed=seed)
        for pair, scores in by_pair.items():
            labels = _mean(scores)
            rates[question, *pair] = score.win_rate(np.stack([labels, labels]))
            if question == PREFERENCE:
                consensus[pair] = labels
    corrections = {}
    for (judge, benchmark, reference), sheet in sheets.items():
        others = [key[2] for key in sheets if key[:2] == (judge, benchmark) and key[2] != reference]
        for generator, bounds in sheet.items():
            known = others if len(bounds) > 1 else [reference]  # an average, or not
            pairs = [(benchmark, name, generator) for name in known]
            if not consensus.keys() >= set(pairs):
                continue
            if found := _correction(bounds, [consensus[pair] for pair in pairs]):
                corrections[Matchup(judge, benchmark, reference, generator)] = found
    return PeopleResults(agreement, rates, corrections)


def _by_pair(verdicts: Verdicts) -> dict[PairKey, np.ndarray]:
    """[people, items] scores of each pair of systems, NaN where there is none."""
    people = {name: number for number, name in enumerate(verdicts.names("judge"))}
    found: dict[PairKey, np.ndarray] = {}
    for matchup, table in sorted(verdicts.tables.items()):
        scores = found.setdefault(matchup[1:], np.full((len(people), len(table)), np.nan))
        bounds = score.item_bounds(table, verdicts.scores.get(matchup))
        scores[people[matchup.judge]] = score.item_scores(bounds)
    return found


def _mean(scores: np.ndarray) -> np.ndarray:
    """The mean of those who judged; NaN where nobody did."""
    judged = (~np.isnan(scores)).sum(axis=0)
    return np.where(judged, np.nansum(scores, axis=0) / np.maximum(judged, 1), np.nan)


def _correction(bounds: list[np.ndarray], labels: list[np.ndarray]) -> Correction | None:
    """The correction over the items judged against every reference."""
    judge = np.stack([one.mean(axis=0) for one in bounds], axis=1)  # an invalid verdict: 0.5
    judged = ~np.isnan(judge).any(axis=1)
    return correct(judge[judged], np.stack(labels, axis=1)[judged])
