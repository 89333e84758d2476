"""Win rates by length: strata, ties of length, the correlation."""

import numpy as np
import pytest

from evaluation.scoring import lengths


def test_each_ratio_has_one_stratum():
    ratio = np.array([[0.1, 0.5, 0.79, 0.8, 1.0, 1.25, 1.9, 2.0, 9.0]])
    bounds = np.ones((1, 2, 9))
    strata = lengths.by_length(bounds, ratio).strata
    assert [found.pairs for found in strata.values()] == [1, 2, 2, 2, 2]
    assert all(found.rate == 1.0 and found.low < 1.0 for found in strata.values())


def test_a_judge_that_takes_the_longer_answer():
    draw = np.random.default_rng(0)
    ratio = draw.lognormal(0, 1, (3, 80))
    bounds = np.repeat((ratio > 1)[:, None, :], 2, axis=1).astype(float)
    found = lengths.by_length(bounds, ratio)
    assert (found.longer, found.decided) == (1.0, 240)
    assert found.correlation > 0.8
    assert found.strata["over twice"].rate == 1.0
    assert found.strata["under half"].rate == 0.0


def test_what_is_left_out():
    """Invalid pairs everywhere; ties and answers of one length of the share of longer ones."""
    bounds = np.array([[[1.0, 0.0, 0.5, 1.0], [1.0, 1.0, 0.5, 1.0]]])
    ratio = np.array([[2.0, 2.0, 2.0, 1.0]])
    found = lengths.by_length(bounds, ratio)
    assert (found.decided, found.longer) == (1, 1.0)
    assert found.strata["over twice"].pairs == 2
    assert found.strata["under half"].rate is None


def test_spearman_with_ties_and_without_variance():
    one, other = np.array([1, 2, 2, 3]), np.array([10, 20, 20, 90])
    assert lengths.spearman(one, other) == pytest.approx(1.0)
    assert lengths.spearman(one, -other) == pytest.approx(-1.0)
    assert lengths.spearman(one, np.ones(4)) is None


def test_an_empty_text_has_a_ratio():
    assert lengths.ratios(np.array([0, 10]), np.array([5, 0])).tolist() == [0.2, 10.0]
