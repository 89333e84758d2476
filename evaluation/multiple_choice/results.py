"""Accuracy, by subject, and calibration of answered questions."""

import collections
import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from datagen.chat.replies import Likelihood
from evaluation.multiple_choice.forms import LETTERS
from evaluation.multiple_choice.questions import Question
from evaluation.statistics.intervals import mean_interval

BINS = 10

DRAWS, TAILS = 1000, (0.025, 0.975)
"""Of outcomes from the confidences, and the quantiles of their calibration error."""


@dataclasses.dataclass(frozen=True)
class Answered:
    """A question with what the model chose; None where it chose none of the options."""

    question: Question
    chosen: int | None  # by likelihood, or by a generated letter
    chosen_norm: int | None = None  # by likelihood per character
    likelihoods: Sequence[Likelihood] = ()
    raw: str = ""  # reply with a letter
    failure: str = ""  # why there is no answer

    @classmethod
    def by_likelihood(
        cls, question: Question, found: Sequence[Likelihood], texts: Sequence[str]
    ) -> "Answered":
        """As lm-evaluation-harness: of equal options the first; the norm is by characters."""
        sums = [one.logprob for one in found]
        per_character = [one / len(text) for one, text in zip(sums, texts, strict=True)]
        best, best_norm = (values.index(max(values)) for values in (sums, per_character))
        return cls(question, best, best_norm, found)

    @property
    def confidence(self) -> float | None:
        """The probability of the chosen option among the options; None without likelihoods."""
        if not self.likelihoods or self.chosen is None:
            return None
        highest = self.likelihoods[self.chosen].logprob
        return 1 / sum(math.exp(one.logprob - highest) for one in self.likelihoods)

    def record(self) -> dict[str, Any]:
        """The line of choices.jsonl."""
        question = self.question
        found = {
            "id": question.id,
            "subject": question.subject,
            "question": question.text,
            "options": list(question.options),
            "answer": LETTERS[question.answer],
            "chosen": None if self.chosen is None else LETTERS[self.chosen],
        }
        if self.likelihoods:
            assert self.chosen_norm is not None
            found |= {
                "chosen_norm": LETTERS[self.chosen_norm],
                "confidence": self.confidence,
                "logprobs": [one.logprob for one in self.likelihoods],
                "tokens": [one.tokens for one in self.likelihoods],
                "joined": max(one.joined for one in self.likelihoods),
            }
        return found | {k: v for k in ("raw", "failure") if (v := getattr(self, k))}


@dataclasses.dataclass(frozen=True)
class Accuracy:
    """A share of right answers, with its 95 % interval."""

    questions: int
    rate: float
    low: float
    high: float

    @classmethod
    def of(cls, right: np.ndarray) -> "Accuracy":
        """Of bool[questions], at least one."""
        return cls(len(right), float(right.mean()), *mean_interval(right.astype(float)))


@dataclasses.dataclass(frozen=True)
class Bin:
    """The answers with a confidence in a range; None where there is none."""

    low: float
    high: float
    questions: int
    confidence: float | None  # mean
    accuracy: Accuracy | None


@dataclasses.dataclass(frozen=True)
class Calibration:
    """Whether a confidence of 70 % means that 70 % are right."""

    error: float  # expected calibration error: mean distance of confidence and accuracy over bins
    by_chance: tuple[float, float]  # 95 % of its values for a model of perfect calibration
    bins: Sequence[Bin]


def accuracy(answered: Sequence[Answered], chosen: Callable[[Answered], int | None]) -> Accuracy:
    """The share of the questions that `chosen` answers right; one without an answer is wrong."""
    return Accuracy.of(np.array([chosen(each) == each.question.answer for each in answered]))


def calibration(confidences: np.ndarray, right: np.ndarray) -> Calibration:
    """Of float[questions] from 0 to 1, and bool[questions]; at least one.

    Ten bins of equal width (Guo et al. 2017, "On calibration of modern neural networks", section
    2). The error is above 0 for a perfect model, too: its values with outcomes drawn from the
    confidences themselves are `by_chance`.
    """
    places = np.minimum((confidences * BINS).astype(int), BINS - 1)
    counts = np.bincount(places, minlength=BINS)
    sums = np.bincount(places, confidences, BINS)

    def error(outcomes: np.ndarray) -> float:
        hits = np.bincount(places, outcomes, BINS)
        return float(np.abs(hits - sums).sum() / len(confidences))

    random = np.random.default_rng(0)
    drawn = [error(random.random(len(confidences)) < confidences) for _ in range(DRAWS)]
    low, high = map(float, np.quantile(drawn, TAILS))
    bins = []
    for number, count in enumerate(counts.tolist()):
        mean, rate = None, None
        if count:
            mean = float(sums[number] / count)
            rate = Accuracy.of(right[places == number])
        bins.append(Bin(number / BINS, (number + 1) / BINS, count, mean, rate))
    return Calibration(error(right), (low, high), bins)


@dataclasses.dataclass(frozen=True)
class ChoiceResults:
    """All numbers of a run; `norm` and `calibration` are None without likelihoods."""

    accuracy: Accuracy
    norm: Accuracy | None
    subjects: dict[str, tuple[Accuracy, Accuracy | None]]  # {} where there is only one
    calibration: Calibration | None
    chance: float  # expected accuracy of a guess
    commonest: float  # accuracy of always choosing the position that is right most often
    positions: dict[str, tuple[int, int]]  # letter -> how often it is right, and is chosen
    failed: int  # without an answer
    invalid: int  # replies that name no option
    joined: int  # questions whose prompt's last tokens are joined with an option

    def record(self) -> dict[str, Any]:
        """The content of summary.json."""
        found = dataclasses.asdict(self)
        found["positions"] = {
            letter: {"right": right, "chosen": chosen}
            for letter, (right, chosen) in self.positions.items()
        }
        found["subjects"] = {
            name: {"accuracy": dataclasses.asdict(rate)}
            | ({"norm": dataclasses.asdict(norm)} if norm else {})
            for name, (rate, norm) in self.subjects.items()
        }
        return found


def measure(answered: Sequence[Answered]) -> ChoiceResults:
    """The numbers of at least one question."""
    scored = [each for each in answered if each.likelihoods]
    right = collections.Counter(LETTERS[each.question.answer] for each in answered)
    chosen = collections.Counter(LETTERS[e.chosen] for e in answered if e.chosen is not None)

    def rates(group: Sequence[Answered]) -> tuple[Accuracy, Accuracy | None]:
        norm = accuracy(group, lambda each: each.chosen_norm) if scored else None
        return accuracy(group, lambda each: each.chosen), norm

    by_subject: dict[str, list[Answered]] = {}
    for each in answered:
        by_subject.setdefault(each.question.subject, []).append(each)
    calibrated = None
    if scored:
        confidences = np.array([each.confidence for each in scored])
        hits = np.array([each.chosen == each.question.answer for each in scored])
        calibrated = calibration(confidences, hits)
    total, norm = rates(answered)
    failed = sum(bool(each.failure) for each in answered)
    return ChoiceResults(
        accuracy=total,
        norm=norm,
        subjects={k: rates(group) for k, group in by_subject.items()}
        if len(by_subject) > 1
        else {},
        calibration=calibrated,
        chance=float(np.mean([1 / len(each.question.options) for each in answered])),
        commonest=max(right.values()) / len(answered),
        positions={k: (right[k], chosen[k]) for k in LETTERS if right[k] or chosen[k]},
        failed=failed,
        invalid=sum(each.chosen is None for each in answered) - failed,
        joined=sum(any(one.joined for one in each.likelihoods) for each in answered),
    )
