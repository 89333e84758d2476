"""Intervals: the exact bootstrap is what drawing converges to; published values."""

import numpy as np
import pytest

from evaluation.scoring import intervals


@pytest.mark.parametrize("shift", [0.0, -1.0])
def test_the_exact_bootstrap_is_the_limit_of_drawing(shift):
    draw = np.random.default_rng(0)
    scores = draw.integers(0, 5, 60) / 4 + shift
    means = draw.choice(scores, (20_000, 60)).mean(axis=1)
    low, high = intervals.bootstrap(scores, 4)
    assert (low, high) == pytest.approx(np.quantile(means, [0.025, 0.975]), abs=0.006)


def test_the_exact_bootstrap_of_two_items():
    """0, 0.5 and 1 with chances 1/4, 1/2, 1/4: at 40 % the interval is [0.5, 0.5]."""
    assert intervals.bootstrap(np.array([0.0, 1.0]), 1) == (0.0, 1.0)
    assert intervals.bootstrap(np.array([0.0, 1.0]), 1, level=0.4) == (0.5, 0.5)


def test_thirds_are_on_the_grid_of_three_references():
    low, high = intervals.bootstrap(np.array([1 / 12, 5 / 12, 11 / 12] * 20), 12)
    assert low * 12 * 60 == pytest.approx(round(low * 12 * 60))
    assert low < 17 / 36 < high


def test_wilson_against_newcombe():
    """Newcombe 1998 (Statistics in Medicine 17:857-872, table I, method 3)."""
    for wins, count, low, high in (
        (81, 263, 0.2553, 0.3662),
        (0, 20, 0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ):
        assert intervals.wilson(wins / count, count) == pytest.approx((low, high), abs=5e-5)


def test_ratios_resample_items_whole():
    """Ten verdicts on each item that are always the same are worth no more than one."""
    draw = np.random.default_rng(0)
    wins = draw.integers(0, 2, (200, 1)).astype(float)
    _, one = intervals.bootstrap_ratios(wins, np.ones((200, 1)), seed=0)
    rates, ten = intervals.bootstrap_ratios(10 * wins, np.full((200, 1), 10.0), seed=0)
    assert ten == pytest.approx(one)
    assert rates == pytest.approx(wins.mean())
    width = 2 * 1.96 * np.sqrt(0.25 / 200)
    assert float(one[1, 0] - one[0, 0]) == pytest.approx(width, rel=0.15)


def test_an_interval_without_width_is_wilsons():
    sums, counts = np.array([[2.0, 1.0, 1.0]] * 9), np.array([[2.0, 2.0, 3.0]] * 9)
    rates, ends = intervals.bootstrap_ratios(sums, counts)
    for column, rate in enumerate(rates):
        assert tuple(ends[:, column]) == pytest.approx(intervals.wilson(rate, 9))
    one, none = np.ones(9), np.zeros(9)
    low, high = intervals.wilson(1.0, 9)
    assert intervals.difference_interval(one, none, 4) == pytest.approx((2 * low - 1, 1.0))
    assert high == 1.0


def test_the_interval_of_a_difference_is_the_bootstraps():
    draw = np.random.default_rng(0)
    one, other = draw.integers(0, 5, (2, 80)) / 4
    ends = intervals.difference_interval(one, other, 4)
    assert ends == pytest.approx(intervals.bootstrap(one - other, 4))


def test_a_share_of_nothing_is_not_a_number():
    rates, ends = intervals.bootstrap_ratios(np.zeros((5, 2)), np.array([[1.0, 0.0]] * 5))
    assert np.isnan(rates[1])
    assert np.isnan(ends[:, 1]).all()
    assert rates[0] == 0
