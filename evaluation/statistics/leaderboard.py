"""A leaderboard of systems and references, from the pairwise judgements of one judge.

The Bradley-Terry model (1952, Biometrika 39:324-345): the answer of i beats that of j with the
chance 1 / (1 + exp(s_j - s_i)). A tie is half a win of either side, as is an item's score of 0.5.
Strengths are the maximum likelihood estimate. Its intervals resample nothing: they follow from each
item's part of the likelihood's gradient (a sandwich; White 1982, Econometrica 50:1-25), an item
with all of its pairs and both orders, so verdicts on one question need not be independent.

The estimate exists only among players each of whom has, over a chain of others, lost to and won
against each (Ford 1957, American Mathematical Monthly 64:28-33). Otherwise a strength is infinite
or not comparable, which `Standing.note` names: nobody is given a number by a penalty.
"""

import dataclasses
import math
from collections.abc import Mapping

import numpy as np

from evaluation.statistics.intervals import Z

POINTS = 400 / math.log(10)
"""Of a rating in a unit of strength: Elo's scale, where 400 points are odds of 10 to 1."""

MEAN_RATING = 1000.0

NEWTON_STEPS = 60
"""Each at most 1 in any strength until it is near, when a few are enough."""

ABOVE, BELOW, APART = "unbeaten", "never won", "not comparable"
"""Notes on players that have no rating: on their verdicts with those that have one."""


@dataclasses.dataclass(frozen=True)
class Standing:
    """A player's place; the numbers are None where `note` says why."""

    is_reference: bool
    items: int  # pairs of answers with valid verdicts
    rating: float | None  # MEAN_RATING is the mean of those that have one
    low: float | None  # 95 % interval
    high: float | None
    best_rank: int | None  # 1 + those whose strength is significantly higher
    worst_rank: int | None
    note: str  # "", ABOVE, BELOW or APART


@dataclasses.dataclass(frozen=True)
class Leaderboard:
    """Systems and references in one order, the best first."""

    standings: Mapping[str, Standing]
    misfit: float | None  # largest difference of a pair's win rate from the model's, 0 to 1


def rank(pairs: Mapping[tuple[str, str], np.ndarray]) -> Leaderboard:
    """The leaderboard of {(system, reference): scores [items]}, NaN where invalid or not judged."""
    systems = {system for system, _ in pairs}
    references = {reference for _, reference in pairs}
    names = sorted(systems | references)
    place = {name: i for i, name in enumerate(names)}
    ends = np.array([(place[system], place[reference]) for system, reference in pairs])
    scores = np.stack(list(pairs.values()))  # [pairs, items]
    wins, counts = _tournament(ends, scores, len(names))
    reaches = _reaches(wins > 0)
    rated = _largest(reaches & reaches.T, counts)
    inside = rated[ends].all(axis=1) & ~np.isnan(scores).all(axis=1)
    strengths, covariance, misfit = _fit(ends[inside], scores[inside], rated)
    notes = [""] * len(names)
    for i in np.flatnonzero(~rated):
        over, under = reaches[i][rated].any(), reaches.T[i][rated].any()
        notes[i] = ABOVE if over and not under else BELOW if under and not over else APART
    order = sorted(
        range(len(names)), key=lambda i: ((ABOVE, "", BELOW, APART).index(notes[i]), -strengths[i])
    )
    played = (counts.sum(axis=1) + counts.sum(axis=0)).astype(int)
    above = notes.count(ABOVE)
    standings = {}
    for i in order:
        numbers = None, None, None, None, None
        if rated[i] and rated.sum() > 1:
            variances = covariance.diagonal() + covariance[i, i] - 2 * covariance[i]
            apart = (strengths - strengths[i]) / np.sqrt(np.where(variances > 0, variances, np.inf))
            best = 1 + above + int((apart[rated] > Z).sum())
            worst = above + int(rated.sum() - (apart[rated] < -Z).sum())
            middle = MEAN_RATING + POINTS * float(strengths[i])
            half = POINTS * Z * math.sqrt(covariance[i, i])
            numbers = middle, middle - half, middle + half, best, worst
        is_reference = names[i] not in systems
        note = notes[i] if rated.sum() > 1 else APART
        standings[names[i]] = Standing(is_reference, int(played[i]), *numbers, note=note)
    return Leaderboard(standings, misfit)


def _tournament(
    ends: np.ndarray, scores: np.ndarray, players: int
) -> tuple[np.ndarray, np.ndarray]:
    """[players, players]: wins of the row against the column; comparisons, system x reference."""
    wins, counts = np.zeros((players, players)), np.zeros((players, players))
    valid = ~np.isnan(scores)
    np.add.at(wins, (ends[:, 0], ends[:, 1]), np.nansum(scores, axis=1))
    np.add.at(wins, (ends[:, 1], ends[:, 0]), np.nansum(1 - scores, axis=1))
    np.add.at(counts, (ends[:, 0], ends[:, 1]), valid.sum(axis=1))
    return wins, counts


def _reaches(beats: np.ndarray) -> np.ndarray:
    """[players, players]: whether a chain of wins leads from the row to the column."""
    found = beats | np.eye(len(beats), dtype=bool)
    for middle in range(len(beats)):
        found |= found[:, middle : middle + 1] & found[middle]
    return found


def _largest(linked: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """[players]: the set of players that win and lose among each other with most comparisons."""
    inside = [float(counts[np.ix_(row, row)].sum()) for row in linked]
    return linked[int(np.argmax(inside))]


def _fit(
    ends: np.ndarray, scores: np.ndarray, rated: np.ndarray
) -> tuple[np.ndarray, np.ndarray, float | None]:
    """(strengths [players], mean 0 over the rated; covariance; misfit), by Newton's method."""
    players = len(rated)
    strengths, covariance = np.zeros(players), np.zeros((players, players))
    if not len(ends):
        return strengths, covariance, None
    valid = ~np.isnan(scores)
    counts = valid.sum(axis=1)
    rates = np.nansum(scores, axis=1) / counts
    design = np.zeros((len(ends), players))
    design[np.arange(len(ends)), ends[:, 0]] = 1
    design[np.arange(len(ends)), ends[:, 1]] = -1
    anchor = np.outer(rated, rated) / rated.sum() + np.diag(~rated)  # the mean, which is free

    def expected() -> tuple[np.ndarray, np.ndarray]:
        """Each pair's win rate, and the information on the strengths."""
        chance = 1 / (1 + np.exp(-design @ strengths))
        return chance, design.T @ (design * (counts * chance * (1 - chance))[:, None]) + anchor

    for _ in range(NEWTON_STEPS):
        chance, information = expected()
        step = np.linalg.solve(information, design.T @ (counts * (rates - chance)))
        strengths += step / max(1.0, float(np.abs(step).max()))  # a long step would overshoot
    chance, information = expected()
    gradients = np.where(valid, scores - chance[:, None], 0.0).T @ design  # [items, players]
    gradients = gradients[valid.any(axis=0)]
    inverse = np.linalg.inv(information)
    items = len(gradients)
    covariance = inverse @ (gradients.T @ gradients) @ inverse * items / max(1, items - 1)
    return strengths, covariance, float(np.abs(rates - chance).max())
