"""Choices, accuracy and calibration, by hand and by another implementation."""

import numpy as np
import pytest

from datagen.chat.replies import Likelihood
from evaluation.multiple_choice import presentation, results
from evaluation.multiple_choice.prompts import read_letter
from evaluation.multiple_choice.questions import Question
from evaluation.multiple_choice.results import Answered
from evaluation.statistics.intervals import mean_interval


def question(number: int, answer: int, options=("ab", "abcdefgh"), subject="s") -> Question:
    return Question(str(number), "q?", options, answer, subject, "", "questions")


def chosen(number: int, answer: int, *logprobs: float, **changes) -> Answered:
    asked = question(number, answer, **changes)
    found = [Likelihood(logprob, 1, 0) for logprob in logprobs]
    return Answered.by_likelihood(asked, found, asked.options)


def test_the_norm_is_by_characters_and_of_equals_the_first_counts():
    one = chosen(0, 0, -2.0, -4.0)
    assert (one.chosen, one.chosen_norm) == (0, 1)  # -2 / 2 < -4 / 8
    assert one.confidence == pytest.approx(1 / (1 + np.exp(-2)))
    assert chosen(0, 0, -3.0, -3.0).chosen == 0


def test_measured_by_hand():
    answered = [
        chosen(0, 0, -1.0, -2.0, subject="a"),
        chosen(1, 1, -1.0, -2.0, subject="a"),
        chosen(2, 1, -2.0, -1.0, subject="b"),
        Answered(question(3, 1, subject="b"), None, failure="too long"),
    ]
    found = results.measure(answered)
    assert (found.accuracy.rate, found.accuracy.questions, found.failed) == (0.5, 4, 1)
    assert (found.accuracy.low, found.accuracy.high) == mean_interval(
        np.array([1.0, 0.0, 1.0, 0.0])
    )
    assert found.chance == 0.5 and found.commonest == 0.75 and found.invalid == 0
    assert found.positions == {"A": (1, 2), "B": (3, 1)}
    assert {name: pair[0].rate for name, pair in found.subjects.items()} == {"a": 0.5, "b": 0.5}
    assert "1 questions without an answer" in presentation.summary(found)
    calibrated = found.calibration
    assert calibrated and sum(one.questions for one in calibrated.bins) == 3
    confidence = 1 / (1 + np.exp(-1))
    assert calibrated.error == pytest.approx(abs(confidence - 2 / 3))


def test_calibration_error_equals_a_plain_loop():
    random = np.random.default_rng(0)
    confidences = random.uniform(0.25, 1.0, 2000)
    right = random.random(2000) < confidences
    found = results.calibration(confidences, right)
    expected = 0.0
    for low in np.arange(10) / 10:
        inside = (confidences >= low) & (confidences < low + 0.1)
        if inside.any():
            gap = abs(right[inside].mean() - confidences[inside].mean())
            expected += gap * inside.sum() / 2000
    assert found.error == pytest.approx(expected)
    low, high = found.by_chance
    assert found.error < high < 0.06 and low > 0  # it is calibrated: no more than by chance
    worse = results.calibration(confidences, random.random(2000) < confidences - 0.2)
    assert worse.error > worse.by_chance[1]


def test_a_confidence_of_one_is_in_the_last_bin():
    found = results.calibration(np.array([1.0, 0.1]), np.array([True, False]))
    assert [one.questions for one in found.bins] == [0, 1, *[0] * 7, 1]


@pytest.mark.parametrize(
    ("reply", "position"),
    [
        ("B", 1),
        (" b", None),
        ("(C)", 2),
        ("**C**", 2),
        ("C. A cold", 2),
        ("Answer: B", 1),
        ("The correct answer is option B.", 1),
        ("B) because of the fever", 1),
        ("A patient should rest", None),
        ("A or B", None),
        ("B, C", None),
        ("B. It is not C.", None),
        ("E", None),
        ("", None),
        ("Because", None),
        ("C.\n\nThe patient has a cold.", 2),
    ],
)
def test_letters_are_read_strictly(reply, position):
    assert read_letter(reply, ["Rest", "Fever", "A cold", "Gout"]) == position
