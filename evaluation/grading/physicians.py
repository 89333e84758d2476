"""How well a grader agrees with physicians: HealthBench's meta-evaluation.

Of `healthbench_meta_eval.py` in openai/simple-evals: a criterion on an answer has labels of several
physicians, and the grader is compared with each of them. Over all such pairs, F1 is computed with
"met" as the positive class and again with "not met"; macro F1 is the mean of the two. A physician
is compared in the same way with the other physicians of the same answers.
"""

import collections
import dataclasses
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from evaluation.grading.grader import Grade
from evaluation.grading.rubrics import LabelledAnswer
from evaluation.statistics.agreement import bootstrap

MIN_CONVERSATIONS = 20
"""For an interval of macro F1."""


@dataclasses.dataclass(frozen=True)
class GraderAgreement:
    """A grader against physicians, on all answers or those of one category."""

    answers: int  # with a verdict of the grader
    pairs: int  # of a verdict and a physician's label
    macro_f1: float | None  # None where one class never occurs
    low: float | None  # 95 % interval, conversations resampled; None for few of them
    high: float | None
    physicians: float | None  # mean macro F1 of the physicians against each other
    compared: int  # physicians in that mean


def macro_f1(counts: np.ndarray) -> np.ndarray:
    """Macro F1 of `counts` [..., 4] of pairs: both met, only the first, only the second, neither.

    NaN where the published code has no value: one of the two says "met", or "not met", of nothing.

    >>> float(macro_f1(np.array([1, 1, 0, 2]))), float(macro_f1(np.array([0, 1, 1, 2])))
    (0.7333333333333334, 0.3333333333333333)
    """
    both, first, second, neither = np.moveaxis(np.asarray(counts, float), -1, 0)
    with np.errstate(invalid="ignore", divide="ignore"):
        defined = (both + first > 0) & (both + second > 0)
        defined &= (neither + first > 0) & (neither + second > 0)
        positive = 2 * both / (2 * both + first + second)
        negative = 2 * neither / (2 * neither + first + second)
        return np.where(defined, (positive + negative) / 2, np.nan)


def pair_counts(pairs: Iterable[tuple[bool, bool]]) -> np.ndarray:
    """The counts of `macro_f1`."""
    counts = np.zeros(4)
    for one, other in pairs:
        counts[(0 if other else 1) if one else (2 if other else 3)] += 1
    return counts


def agreement(answers: Sequence[LabelledAnswer], grades: Sequence[str]) -> GraderAgreement:
    """The agreement of the grader's verdicts, one for each answer, with the physicians' labels."""
    by_conversation: dict[str, np.ndarray] = {}
    judged = 0
    for answer, grade in zip(answers, grades, strict=True):
        if grade == Grade.INVALID:
            continue
        judged += 1
        counts = pair_counts((grade == Grade.MET, label) for label in answer.labels)
        known = by_conversation.get(answer.conversation, 0)
        by_conversation[answer.conversation] = known + counts
    if not judged:
        return GraderAgreement(0, 0, None, None, None, *_physicians(answers))
    clusters = np.stack(list(by_conversation.values()))
    total = clusters.sum(axis=0)
    value = float(macro_f1(total))
    low = high = None
    if len(clusters) >= MIN_CONVERSATIONS:
        low, high = bootstrap(clusters, np.ones(len(clusters)), macro_f1, seed=0)
    return GraderAgreement(
        judged,
        int(total.sum()),
        None if np.isnan(value) else value,
        low,
        high,
        *_physicians(answers),
    )


def by_category(
    answers: Sequence[LabelledAnswer], grades: Sequence[str]
) -> Mapping[str, GraderAgreement]:
    """The same for each category."""
    rows: dict[str, list[int]] = {}
    for row, answer in enumerate(answers):
        rows.setdefault(answer.category, []).append(row)
    return {
        name: agreement([answers[i] for i in rows[name]], [grades[i] for i in rows[name]])
        for name in sorted(rows)
        if name
    }


def _physicians(answers: Sequence[LabelledAnswer]) -> tuple[float | None, int]:
    """(mean macro F1 of each physician against the others, how many have one)."""
    counts: dict[str, np.ndarray] = collections.defaultdict(lambda: np.zeros(4))
    for answer in answers:
        for position, (name, label) in enumerate(
            zip(answer.physicians, answer.labels, strict=True)
        ):
            others = (*answer.labels[:position], *answer.labels[position + 1 :])
            counts[name] += pair_counts((label, other) for other in others)
    values = [value for row in counts.values() if not np.isnan(value := float(macro_f1(row)))]
    return (float(np.mean(values)) if values else None), len(values)
