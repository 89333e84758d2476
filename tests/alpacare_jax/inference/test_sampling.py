"""Sampling against transformers' logits processors, and against the distribution it promises."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
import scipy.stats

from alpacare_jax.inference.sampling import (
    IN_PROMPT,
    Sampling,
    adjust,
    drawable,
    sample,
    settings_of,
)


def shares_of(logits: np.ndarray, sampling: Sampling) -> tuple[np.ndarray, np.ndarray]:
    """The tokens that may be drawn and their probabilities, by hand."""
    kept = np.argsort(-logits)[: sampling.top_k]
    shares = scipy.special.softmax(logits[kept].astype(np.float64) / sampling.temperature)
    inside = np.cumsum(shares) - shares < sampling.top_p
    return kept[inside], shares[inside] / shares[inside].sum()


def assert_drawn_from(tokens: np.ndarray, kept: np.ndarray, shares: np.ndarray) -> None:
    assert set(tokens.tolist()) <= set(kept.tolist())
    observed = np.array([(tokens == token).sum() for token in kept])
    assert scipy.stats.chisquare(observed, shares * len(tokens)).pvalue > 1e-3


def random_logits(rows=16, vocabulary=101) -> np.ndarray:
    draw = np.random.default_rng(1)
    return draw.normal(0, 3, (rows, vocabulary)).astype(np.float32)


@pytest.mark.parametrize("penalty", [1.3, 0.8])
def test_repetition_penalty_is_that_of_transformers(penalty):
    torch = pytest.importorskip("torch", reason="parity with transformers needs torch")
    process = pytest.importorskip("transformers.generation.logits_process")
    logits = random_logits()
    logits[:, 7] = 0.0
    ids = np.random.default_rng(2).integers(0, 101, (len(logits), 30))
    ids[:, 0] = 7  # of logit 0
    ids[:, 1] = ids[:, 2]  # seen twice
    seen = np.zeros(logits.shape, bool)
    np.put_along_axis(seen, ids, True, axis=1)
    counts = np.where(seen, IN_PROMPT, 0)
    theirs = process.RepetitionPenaltyLogitsProcessor(penalty)(
        torch.tensor(ids), torch.tensor(logits)
    )
    rows = rows_of(Sampling(repetition_penalty=penalty), len(logits))
    ours = np.asarray(adjust(logits, counts, np.zeros_like(logits), rows))
    np.testing.assert_allclose(ours, theirs.numpy(), rtol=1e-6, atol=1e-6)
    np.testing.assert_array_equal(ours[~seen], logits[~seen])
    assert (ours[seen & (logits != 0)] != logits[seen & (logits != 0)]).all()


def rows_of(sampling: Sampling, count: int):
    return settings_of([sampling] * count, range(count))


def draw(logits: np.ndarray, sampling: Sampling) -> np.ndarray:
    """A token of each row, each with random numbers of its own."""
    zeros = np.zeros(logits.shape, np.int32)
    rows = rows_of(sampling, len(logits))
    positions = np.zeros(len(logits), np.int32)
    return np.asarray(jax.jit(sample)(logits, positions, zeros, zeros.astype(np.float32), rows))


@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(temperature=0.7),
        Sampling(temperature=1.0, top_k=5),
        Sampling(temperature=1.5, top_k=500),
        Sampling(temperature=1.0, top_p=0.9),
        Sampling(temperature=1.3, top_p=0.5),
        Sampling(temperature=0.7, top_k=20, top_p=0.8),
        Sampling(temperature=2.0, top_k=1, top_p=0.3),
        Sampling(temperature=1.0, top_p=1e-6),
    ],
    ids=lambda s: f"temperature={s.temperature} top_k={s.top_k} top_p={s.top_p}",
)
def test_sampling_draws_from_what_transformers_draws_from(sampling):
    torch = pytest.importorskip("torch", reason="parity with transformers needs torch")
    process = pytest.importorskip("transformers.generation.logits_process")
    logits = random_logits()
    theirs = process.TemperatureLogitsWarper(sampling.temperature)(None, torch.tensor(logits))
    if sampling.top_k:
        theirs = process.TopKLogitsWarper(sampling.top_k)(None, theirs)
    if sampling.top_p < 1:
        theirs = process.TopPLogitsWarper(sampling.top_p)(None, theirs)
    ours = np.asarray(drawable(logits, rows_of(sampling, len(logits))))
    np.testing.assert_array_equal(np.isfinite(ours), np.isfinite(theirs.numpy()))
    np.testing.assert_allclose(ours, theirs.numpy(), rtol=1e-6)


@pytest.mark.parametrize("top_p, kept", [(0.5, 1), (0.75, 2), (0.875, 3), (0.76, 3), (0.49, 1)])
def test_top_p_that_a_sum_of_probabilities_meets_exactly(top_p, kept):
    """The fewest tokens whose total reaches p, as in transformers: one more would be too many."""
    logits = np.log(2) * np.array([[1.0, 0.0, 2.0, 0.0]], np.float32)  # 1/4, 1/8, 1/2, 1/8
    assert jax.nn.softmax(logits)[0].tolist() == [0.25, 0.125, 0.5, 0.125], "exactly"
    drawn = drawable(logits.astype(np.float32), rows_of(Sampling(1.0, top_p=top_p), 1))
    assert np.flatnonzero(np.isfinite(drawn[0])).tolist() == sorted([2, 0, 1][:kept])


def test_frequencies_follow_the_distribution():
    logits = np.linspace(-1.5, 2.0, 12)[np.random.default_rng(3).permutation(12)]
    sampling = Sampling(temperature=0.8, top_k=9, top_p=0.9)
    kept, shares = shares_of(logits, sampling)
    assert 3 <= len(kept) < 9, "top_p must leave out some of the nine"
    draws = 20_000
    tokens = draw(np.tile(logits.astype(np.float32), (draws, 1)), sampling)
    assert set(tokens.tolist()) == set(kept.tolist())
    assert_drawn_from(tokens, kept, shares)


@pytest.mark.parametrize(
    "sampling", [Sampling(1.0, top_k=1), Sampling(5.0, top_p=1e-6), Sampling(1e-6), Sampling(0.0)]
)
def test_narrow_sampling_is_greedy(sampling):
    logits = random_logits(rows=200)
    tokens = draw(logits, sampling)
    assert tokens.dtype == jnp.int32
    np.testing.assert_array_equal(tokens, logits.argmax(axis=-1))


@pytest.mark.parametrize(
    "wrong",
    [
        {"temperature": -0.1},
        {"top_k": -1},
        {"top_p": 0.0},
        {"top_p": 1.1},
        {"top_p": float("nan")},
        {"top_p": 1e-300},  # 0 in float32: no token would be kept
        {"temperature": 1e-300},
        {"temperature": 1e300},
        {"repetition_penalty": 1e300},
        {"repetition_penalty": 0.0},
        {"presence_penalty": float("nan")},
        {"frequency_penalty": float("inf")},
        {"logit_bias": {5: float("nan")}},
        {"seed": -1},
        {"seed": 2**32},  # to JAX the same as 0
    ],
)
def test_sampling_checks_its_settings(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Sampling(**wrong)
