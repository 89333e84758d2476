"""Intervals: published values, textbook formulas, and coverage by simulation."""

import os

import numpy as np
import pytest

from evaluation.statistics import intervals


def test_wilson_against_newcombe():
    """Newcombe 1998 (Statistics in Medicine 17:857-872, table I, method 3)."""
    for wins, count, low, high in (
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (1, 29, 0.0061, 0.1718),
    ):
        rate = wins / count
        ends = intervals.score_interval(rate, rate * (1 - rate) / count, count, intervals.Z)
        assert ends == pytest.approx((low, high), abs=5e-5)


def test_the_ends_solve_the_score_equation():
    """|rate - end| = t sqrt(variance of a rate of `end`), which bisection finds."""
    draw = np.random.default_rng(0)
    scores = draw.integers(0, 5, 40) / 4
    rate, low, high = intervals.share(scores[:, None], np.ones((40, 1)))
    variance = (scores.var() * 40 + intervals.PSEUDO / 4) / 39 / 40
    count, t = rate * (1 - rate) / variance, intervals.student(39)
    for end, (inside, outside) in ((low, (rate, 0.0)), (high, (rate, 1.0))):
        for _ in range(60):
            middle = (inside + outside) / 2
            near = abs(rate - middle) < t * np.sqrt(middle * (1 - middle) / count)
            inside, outside = (middle, outside) if near else (inside, middle)
        assert end == pytest.approx(inside, abs=1e-9)


def test_many_items_have_the_normal_interval():
    draw = np.random.default_rng(1)
    scores = draw.integers(0, 5, 20_000) / 4
    _, low, high = intervals.share(scores[:, None], np.ones((len(scores), 1)))
    half = 1.96 * scores.std() / np.sqrt(len(scores))
    assert (low, high) == pytest.approx((scores.mean() - half, scores.mean() + half), abs=1e-5)


def test_verdicts_on_one_item_are_no_further_items():
    """Ten verdicts on each item that are always the same are worth no more than one."""
    draw = np.random.default_rng(0)
    wins = draw.integers(0, 2, (200, 1)).astype(float)
    one = intervals.share(wins, np.ones((200, 1)))
    ten = intervals.share(10 * wins, np.full((200, 1), 10.0))
    assert ten == pytest.approx(one)
    alike = intervals.share(np.hstack([wins, wins]), np.ones((200, 2)))
    assert alike == pytest.approx(one)


def test_without_any_difference_there_is_no_certainty():
    for rate in (0.0, 0.5, 1.0):
        low, high = intervals.mean_interval(np.full(9, rate))
        assert high - low > 0.15
        assert low <= rate <= high
    low, high = intervals.difference_interval(np.ones(9), np.zeros(9))
    assert low < 0.6
    assert high == 1.0


SCORES = np.array([0, 0.25, 0.5, 0.75, 1])
KINDS = {  # chances of SCORES
    "even": (0.37, 0.05, 0.16, 0.05, 0.37),
    "mostly ties": (0.15, 0.1, 0.5, 0.1, 0.15),
    "hardly any but ties": (0.02, 0.02, 0.9, 0.03, 0.03),
    "57 %": (0.32, 0.05, 0.14, 0.05, 0.44),
    "80 %, no ties": (0.2, 0, 0, 0, 0.8),
    "90 %": (0.06, 0.02, 0.04, 0.03, 0.85),
    "97 %": (0.01, 0.01, 0.03, 0.03, 0.92),
}


def covered(scores, counts, true):
    ends = [intervals.share(s, c)[1:] for s, c in zip(scores, counts, strict=True)]
    return np.mean([low - 1e-9 <= true <= high + 1e-9 for low, high in ends])


@pytest.mark.slow
def test_coverage_of_few_items():
    """Prints the tables of docs/experiments/intervals.md."""
    runs = int(os.environ.get("COVERAGE_RUNS", "500"))
    noise = 3 * np.sqrt(0.05 * 0.95 / runs)
    draw, sizes = np.random.default_rng(0), (5, 10, 20, 30, 44, 100, 216)
    print("\n| rate | " + " | ".join(map(str, sizes)) + " |")
    for kind, chances in KINDS.items():
        shares = []
        for items in sizes:
            drawn = draw.choice(SCORES, (runs, items, 1), p=chances)
            shares.append(covered(drawn, np.ones_like(drawn), float(SCORES @ chances)))
        print(f"| {kind} | " + " | ".join(f"{100 * share:.1f}" for share in shares) + " |")
        assert min(shares) > 0.94 - noise
        if kind != "hardly any but ties":  # too wide rather than too narrow
            assert max(shares[2:]) < 0.985 + noise
    print("\n| references, alike | " + " | ".join(map(str, sizes)) + " |")
    for alike in (0.0, 0.7):
        shares = []
        for items in sizes:  # of four references, a tenth of the verdicts invalid
            common = draw.choice(SCORES, (runs, items, 1), p=KINDS["57 %"])
            own = draw.choice(SCORES, (runs, items, 4), p=KINDS["57 %"])
            scores = np.where(draw.random((runs, items, 4)) < alike, common, own)
            valid = draw.random((runs, items, 4)) < 0.9
            valid[:, 0] = True
            shares.append(covered(scores * valid, valid.astype(float), 0.56))
        print(f"| {alike} | " + " | ".join(f"{100 * share:.1f}" for share in shares) + " |")
        assert min(shares[1:]) > 0.935 - noise
