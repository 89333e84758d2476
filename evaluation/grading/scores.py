"""Scores of graded answers, as HealthBench publishes them.

Of `healthbench_eval.py` in openai/simple-evals (commit 9e2fafd): the score of an answer is the
points of the criteria it meets over the sum of the positive points, and may be negative; the score
of a system is the mean over the examples, clipped to 0 to 1 after averaging. The score of an
example's tag (a theme) is that mean over the examples with the tag. The score of a criterion's tag
(an axis) takes only the criteria with the tag, and leaves out examples where none of these has
positive points.

Its grader is asked without end for a verdict; ours is not. An answer with a verdict missing has no
score, and `worst` and `best` are the mean with every missing verdict counted against the answer
and for it. Without missing verdicts all three are the published score.
"""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from evaluation.grading.grader import Grade
from evaluation.grading.rubrics import Criterion, RubricExample
from evaluation.statistics.intervals import PSEUDO, mean_interval, student

LENGTH_CENTRE, LENGTH_PENALTY = 2000, 0.0147
"""Characters at which the length adjustment is 0, and what 500 more take from an example's score.

Of HealthBench Professional, as others quote simple-evals' `calculate_length_adjusted_score`."""

Grades = np.ndarray  # [repeats, criteria] of Grade

Bounds = tuple[list[float], list[float], list[float]]
"""Of an example: scores of repeats without missing verdicts; the least and most of each repeat."""


@dataclasses.dataclass(frozen=True)
class RubricScore:
    """The mean score of some examples; numbers from 0 to 1, None where there is none."""

    examples: int  # with all verdicts, in at least one repeat
    score: float | None
    low: float | None  # 95 % interval, of other examples like these
    high: float | None
    standard_error: float | None  # of the mean before it is clipped
    worst: float | None  # as in the module's docstring, over all examples
    best: float | None


@dataclasses.dataclass(frozen=True)
class SystemScores:
    """All scores of one system."""

    overall: RubricScore
    length_adjusted: float | None
    mean_characters: float  # of its answers
    by_example_tag: Mapping[str, RubricScore]
    by_criterion_tag: Mapping[str, RubricScore]
    verdicts: int
    missing: int  # verdicts
    met: int
    repeats: list[float | None]  # the overall score in each repeat alone
    repeat_deviation: float | None  # standard deviation of these
    unstable: float | None  # share of the criteria whose verdicts differ between repeats


def example_score(criteria: Sequence[Criterion], met: Iterable[bool]) -> float | None:
    """Points of the met criteria over all positive points; None without positive points.

    >>> rubric = [Criterion("names gout", 5, ()), Criterion("alarms the patient", -2, ())]
    >>> example_score(rubric, [True, True]), example_score(rubric[1:], [True])
    (0.6, None)
    """
    possible = sum(criterion.points for criterion in criteria if criterion.points > 0)
    pairs = zip(criteria, met, strict=True)
    reached = sum(criterion.points for criterion, is_met in pairs if is_met)
    return reached / possible if possible else None


def clipped_mean(scores: Sequence[float]) -> float | None:
    """The mean, clipped to 0 to 1; None of nothing."""
    return float(np.clip(np.mean(scores), 0, 1)) if len(scores) else None


def interval(scores: Sequence[float]) -> tuple[float, float]:
    """95 % interval of the mean of examples' scores, clipped to 0 to 1.

    Over examples, which are independent as criteria of one are not. Scores below 0 are no shares,
    so where there are any, it is Student's interval, with the residual that `intervals` adds.

    >>> [round(x, 3) for x in interval([0.2, 0.5, 0.8] * 4)]
    [0.334, 0.666]
    >>> [round(x, 3) for x in interval([-0.4, 0.5, 0.8] * 4)], interval([-0.5])
    ([0.0, 0.645], (0.0, 1.0))
    """
    values = np.array(scores)
    if values.min() >= 0 or len(values) == 1:
        return mean_interval(values) if values.min() >= 0 else (0.0, 1.0)
    squares = float(((values - values.mean()) ** 2).sum()) + PSEUDO * 0.25
    half = student(len(values) - 1) * (squares / (len(values) - 1) / len(values)) ** 0.5
    low, high = np.clip([values.mean() - half, values.mean() + half], 0, 1)
    return float(low), float(high)


def _bounds(criteria: Sequence[Criterion], grades: Grades) -> Bounds | None:
    """The bounds by some criteria; None where these have no positive points."""
    if not any(criterion.points > 0 for criterion in criteria):
        return None
    whole, worst, best = [], [], []
    for row in grades:
        gaps = [grade == Grade.INVALID for grade in row]
        for found, harm in ((worst, -1), (best, 1)):
            met = (
                grade == Grade.MET or (gap and criterion.points * harm > 0)
                for criterion, grade, gap in zip(criteria, row, gaps, strict=True)
            )
            found.append(example_score(criteria, met))
        if not any(gaps):
            whole.append(worst[-1])
    return whole, worst, best


def _score(found: Sequence[Bounds]) -> RubricScore:
    means = [float(np.mean(whole)) for whole, _, _ in found if whole]
    low, high = interval(means) if means else (None, None)
    return RubricScore(
        examples=len(means),
        score=clipped_mean(means),
        low=low,
        high=high,
        standard_error=float(np.std(means)) / len(means) ** 0.5 if means else None,
        worst=clipped_mean([float(np.mean(worst)) for _, worst, _ in found]),
        best=clipped_mean([float(np.mean(best)) for _, _, best in found]),
    )


def _by_criterion_tag(
    examples: Sequence[RubricExample], grades: Sequence[Grades]
) -> dict[str, RubricScore]:
    found: dict[str, list[Bounds]] = {}
    for example, table in zip(examples, grades, strict=True):
        for tag in dict.fromkeys(tag for criterion in example.criteria for tag in criterion.tags):
            chosen = [i for i, criterion in enumerate(example.criteria) if tag in criterion.tags]
            own = [example.criteria[i] for i in chosen]
            if bounds := _bounds(own, table[:, chosen]):
                found.setdefault(tag, []).append(bounds)
    return {tag: _score(found[tag]) for tag in sorted(found)}


def system_scores(
    examples: Sequence[RubricExample], answers: Sequence[str], grades: Sequence[Grades]
) -> SystemScores:
    """The scores of one system: its answers to the examples, and their grades.

    >>> rubric = (Criterion("names gout", 5, ("axis:accuracy",)), Criterion("alarms", -2, ()))
    >>> example = RubricExample("a", (), rubric, ("theme:hedging",))
    >>> met = np.array([[Grade.MET, Grade.MET]])
    >>> scores = system_scores([example], ["Gout!"], [met])
    >>> scores.overall.score, scores.by_criterion_tag["axis:accuracy"].score
    (0.6, 1.0)
    """
    bounds = [
        found
        for example, table in zip(examples, grades, strict=True)
        if (found := _bounds(example.criteria, table))
    ]
    by_tag: dict[str, list[Bounds]] = {}
    for example, found in zip(examples, bounds, strict=True):
        for tag in example.tags:
            by_tag.setdefault(tag, []).append(found)
    adjusted = [
        float(np.mean(whole)) - LENGTH_PENALTY * (len(answer) - LENGTH_CENTRE) / 500
        for (whole, _, _), answer in zip(bounds, answers, strict=True)
        if whole
    ]
    verdicts = np.concatenate(grades, axis=1)  # [repeats, criteria of all examples]
    repeats, deviation, unstable = grader_variance(examples, grades)
    return SystemScores(
        overall=_score(bounds),
        length_adjusted=clipped_mean(adjusted),
        mean_characters=float(np.mean([len(answer) for answer in answers])),
        by_example_tag={tag: _score(by_tag[tag]) for tag in sorted(by_tag)},
        by_criterion_tag=_by_criterion_tag(examples, grades),
        verdicts=verdicts.size,
        missing=int((verdicts == Grade.INVALID).sum()),
        met=int((verdicts == Grade.MET).sum()),
        repeats=repeats,
        repeat_deviation=deviation,
        unstable=unstable,
    )


def grader_variance(
    examples: Sequence[RubricExample], grades: Sequence[Grades]
) -> tuple[list[float | None], float | None, float | None]:
    """(score of each repeat, their standard deviation, share of criteria with both verdicts).

    The last two are None for a single repeat; a criterion counts if it has all of its verdicts.
    """
    count = len(grades[0])
    scores = []
    for repeat in range(count):
        alone = [
            whole[0]
            for example, table in zip(examples, grades, strict=True)
            if (found := _bounds(example.criteria, table[repeat : repeat + 1]))
            and (whole := found[0])
        ]
        scores.append(clipped_mean(alone))
    if count == 1:
        return scores, None, None
    known = [score for score in scores if score is not None]
    verdicts = np.concatenate(grades, axis=1)
    complete = verdicts[:, (verdicts != Grade.INVALID).all(axis=0)]
    return (
        scores,
        float(np.std(known, ddof=1)) if len(known) > 1 else None,
        float((complete != complete[0]).any(axis=0).mean()) if complete.size else None,
    )
