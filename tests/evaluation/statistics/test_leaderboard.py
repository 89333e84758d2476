"""Bradley-Terry: against choix and evalica, the coverage of intervals, and what has no rating."""

import numpy as np
import pytest

from evaluation.statistics.leaderboard import (
    ABOVE,
    APART,
    BELOW,
    MEAN_RATING,
    POINTS,
    rank,
)

SYSTEMS, REFERENCES = ("a", "b", "c", "d"), ("gpt", "claude")


def played(draw, items=300, spread=0.8, ties=0.1, shared=0.0):
    """Strengths, and scores of all pairs; in a share `shared` of the items all pairs are alike."""
    strengths = {name: spread * draw.normal() for name in (*SYSTEMS, *REFERENCES)}
    common = draw.random(items)
    pairs = {}
    for system in SYSTEMS:
        for reference in REFERENCES:
            chance = 1 / (1 + np.exp(strengths[reference] - strengths[system]))
            luck = np.where(draw.random(items) < shared, common, draw.random(items))
            scores = (luck < chance).astype(float)
            is_tie = draw.random(items) < ties  # of both sides alike: the rate of wins stays
            pairs[system, reference] = np.where(is_tie, 0.5, scores)
    return strengths, pairs


def ratings(board):
    return {name: (found.rating - MEAN_RATING) / POINTS for name, found in board.standings.items()}


def test_the_strengths_are_choixs():
    choix = pytest.importorskip("choix", reason="pip install choix")
    _, pairs = played(np.random.default_rng(0))
    pairs["a", "gpt"][:9] = np.nan
    found = ratings(rank(pairs))
    names = sorted(found)
    wins = np.zeros((len(names), len(names)))
    for (one, other), scores in pairs.items():
        valid = scores[~np.isnan(scores)]
        wins[names.index(one), names.index(other)] = valid.sum()
        wins[names.index(other), names.index(one)] = (1 - valid).sum()
    theirs = choix.ilsr_pairwise_dense(wins)
    assert [found[name] for name in names] == pytest.approx(theirs - theirs.mean(), abs=1e-7)


def test_the_strengths_are_evalicas():
    evalica = pytest.importorskip("evalica", reason="pip install evalica")
    _, pairs = played(np.random.default_rng(1))
    outcomes = {1.0: evalica.Winner.X, 0.5: evalica.Winner.Draw, 0.0: evalica.Winner.Y}
    games = [(*pair, outcomes[score]) for pair, scores in pairs.items() for score in scores]
    theirs = np.log(evalica.bradley_terry(*zip(*games, strict=True), tolerance=1e-12).scores)
    found = ratings(rank(pairs))
    expected = (theirs - theirs.mean()).to_dict()
    assert found == pytest.approx(expected, abs=1e-5)


def test_the_order_and_the_ranks():
    draw = np.random.default_rng(3)
    strengths, pairs = played(draw, items=20_000)
    board = rank(pairs)
    assert list(board.standings) == sorted(strengths, key=lambda name: -strengths[name])
    ranks = [(found.best_rank, found.worst_rank) for found in board.standings.values()]
    assert ranks == [(place, place) for place in range(1, 7)]
    assert board.misfit < 0.02
    assert [board.standings[name].is_reference for name in ("a", "gpt")] == [False, True]
    same = rank({pair: np.full(50, 0.5) for pair in pairs})
    assert {(found.best_rank, found.worst_rank) for found in same.standings.values()} == {(1, 6)}
    assert {found.rating for found in same.standings.values()} == {MEAN_RATING}


def test_a_player_that_never_lost_has_no_rating():
    _, pairs = played(np.random.default_rng(4))
    pairs["a", "gpt"] = pairs["a", "claude"] = np.ones(300)
    pairs["b", "gpt"] = pairs["b", "claude"] = np.zeros(300)
    board = rank(pairs)
    assert [found.note for found in board.standings.values()] == [ABOVE, "", "", "", "", BELOW]
    assert [board.standings[name].rating for name in ("a", "b")] == [None, None]
    assert min(found.best_rank for found in board.standings.values() if found.best_rank) == 2
    rest = rank({pair: scores for pair, scores in pairs.items() if pair[0] in ("c", "d")})
    assert board.standings["c"].rating == rest.standings["c"].rating


def test_graphs_that_do_not_hold_together():
    """Two sets of systems with a reference each: no verdict says which set is better."""
    half = np.array([1.0, 0.0, 0.5])
    board = rank({("a", "gpt"): half, ("b", "gpt"): half, ("c", "claude"): half})
    notes = {name: found.note for name, found in board.standings.items()}
    assert notes == {"a": "", "b": "", "gpt": "", "c": APART, "claude": APART}
    nothing = rank({("a", "gpt"): np.full(3, np.nan)})
    assert {found.note for found in nothing.standings.values()} == {APART}
    won = rank({("a", "gpt"): np.ones(3)})
    assert {found.rating for found in won.standings.values()} == {None}
    assert list(won.standings) == ["a", "gpt"]


@pytest.mark.slow
def test_the_intervals_cover():
    """Of strengths relative to the mean, also where verdicts on one question are alike."""
    for shared in (0.0, 0.6):
        draw, hits = np.random.default_rng(5), []
        for _ in range(400):
            strengths, pairs = played(draw, items=216, ties=0.0, shared=shared)
            middle = np.mean(list(strengths.values()))
            for name, found in rank(pairs).standings.items():
                true = MEAN_RATING + POINTS * (strengths[name] - middle)
                hits.append(found.low <= true <= found.high)
        print(f"shared {shared}: {100 * np.mean(hits):.1f} % of {len(hits)}")
        assert 0.93 < np.mean(hits) < 0.97
