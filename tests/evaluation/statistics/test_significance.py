"""The exact paired test equals counting all signs; Holm's correction keeps its rules."""

import itertools

import numpy as np
import pytest

from evaluation.statistics import significance


@pytest.mark.parametrize("steps", [4, 12])
def test_equals_counting_every_sign(steps):
    draw = np.random.default_rng(steps)
    for _ in range(10):
        one, other = draw.integers(0, steps + 1, (2, 10)) / steps
        differences = np.rint((one - other) * steps)
        signs = np.array(list(itertools.product((1, -1), repeat=10)))
        sums = np.abs(signs @ differences)
        expected = np.mean(sums >= abs(differences.sum()))
        assert significance.paired(one, other, steps) == pytest.approx(expected, abs=1e-12)


def test_equal_systems_and_opposite_order():
    scores = np.array([0.25, 1.0, 0.0])
    assert significance.paired(scores, scores, 4) == 1.0
    draw = np.random.default_rng(0)
    one, other = draw.integers(0, 5, (2, 300)) / 4
    assert significance.paired(one, other, 4) == significance.paired(other, one, 4)


def test_no_p_value_is_below_what_is_possible():
    assert significance.paired(np.ones(1000), np.zeros(1000), 4) == 1e-12
    assert significance.paired(np.ones(3), np.zeros(3), 4) == pytest.approx(2 / 8)


def test_false_alarms_come_at_their_rate():
    draw = np.random.default_rng(0)
    values = [significance.paired(*draw.integers(0, 5, (2, 100)) / 4, steps=4) for _ in range(1000)]
    assert 30 <= sum(value < 0.05 for value in values) <= 70


def test_holm_is_monotone_and_bounded():
    values = [0.5, 1e-4, 0.02, 0.02, 0.9]
    adjusted = significance.holm(values)
    assert adjusted == pytest.approx([1.0, 5e-4, 0.08, 0.08, 1.0])
    assert significance.holm([]) == []
    assert significance.holm([0.3]) == [0.3]
