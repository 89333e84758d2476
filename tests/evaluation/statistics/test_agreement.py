"""Agreement: published worked examples, and what resampling whole items does."""

import numpy as np
import pytest

from evaluation.statistics import agreement

NAN = np.nan


def test_krippendorffs_own_example():
    """Computing Krippendorff's Alpha-Reliability (2011): four observers, twelve units."""
    ratings = np.array(
        [
            [1, 2, 3, 3, 2, 1, 4, 1, 2, NAN, NAN, NAN],
            [1, 2, 3, 3, 2, 2, 4, 1, 2, 5, NAN, 3],
            [NAN, 3, 3, 3, 2, 3, 4, 2, 2, 5, 1, NAN],
            [1, 2, 3, 3, 2, 4, 4, 1, 2, 5, 1, NAN],
        ]
    )
    assert agreement.krippendorff_alpha(ratings) == pytest.approx(0.743, abs=5e-4)
    interval = agreement.krippendorff_alpha(ratings, agreement.interval)
    assert interval == pytest.approx(0.849, abs=5e-4)


def test_alpha_where_nothing_can_be_said():
    assert np.isnan(agreement.krippendorff_alpha(np.array([[1.0, NAN], [NAN, 2.0]])))
    assert np.isnan(agreement.krippendorff_alpha(np.array([[1.0, 1.0], [1.0, 1.0]])))


def test_two_judges_that_agree_and_two_that_do_not():
    draw = np.random.default_rng(0)
    scores = draw.integers(0, 5, (50, 4)) / 4
    same = agreement.between(scores, scores)
    assert (same.units, same.same, same.same_decided) == (200, 1.0, 1.0)
    assert same.kappa == same.alpha_nominal == same.alpha_interval == 1.0
    assert same.kappa_low is same.kappa_high is None, "every resample is the same"
    opposite = agreement.between(scores, 1 - scores)
    assert opposite.same_decided == 0.0
    assert opposite.kappa < 0


def test_chance_is_inside_the_interval_of_kappa():
    draw = np.random.default_rng(1)
    one, other = draw.integers(0, 5, (2, 300, 3)) / 4
    found = agreement.between(one, other)
    assert found.kappa_low < 0 < found.kappa_high
    assert found.kappa_low < found.kappa < found.kappa_high


def test_cells_of_one_item_are_one_draw():
    """Four copies of each item's cell leave the interval as wide as one does."""
    draw = np.random.default_rng(2)
    one, other = draw.integers(0, 3, (2, 200, 1)) / 2
    single = agreement.between(one, other)
    copies = agreement.between(np.tile(one, 4), np.tile(other, 4))
    assert (copies.kappa_low, copies.kappa_high) == pytest.approx(
        (single.kappa_low, single.kappa_high)
    )
    assert copies.units == 4 * single.units


def test_only_what_both_judged_counts():
    one = np.array([[1.0, NAN], [0.0, 0.5]])
    other = np.array([[1.0, 1.0], [NAN, 0.5]])
    found = agreement.between(one, other)
    assert (found.units, found.same, found.decided) == (2, 1.0, 1)
    none = agreement.between(np.array([[NAN]]), np.array([[1.0]]))
    assert (none.units, none.same, none.kappa) == (0, None, None)


def test_judges_that_only_ever_say_one_thing_have_no_kappa():
    found = agreement.between(np.ones((5, 1)), np.ones((5, 1)))
    assert (found.same, found.kappa, found.alpha_nominal) == (1.0, None, None)
