"""Grouped-query attention over packed rows against its definition in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alpacare_jax import attention

B, T, H = 2, 9, 4


attend = jax.jit(attention.attend)


def wave(*dims, shift=0.0):
    size = int(np.prod(dims))
    return np.sin(np.linspace(shift, shift + 2.7 * size, size)).reshape(dims)


def heads(N, K, dtype=jnp.float32, S=T):
    return (
        jnp.asarray(2 * wave(B, T, N, H), dtype),
        jnp.asarray(2 * wave(B, S, K, H, shift=1.0), dtype),
        jnp.asarray(wave(B, S, K, H, shift=2.0), dtype),
    )


def by_definition(q, k, v, visible):
    """One query, one head at a time."""
    q, k, v = (np.asarray(x, np.float64) for x in (q, k, v))
    out, G = np.zeros(q.shape), q.shape[2] // k.shape[2]
    for b, t, n in np.ndindex(q.shape[:3]):
        (seen,) = np.nonzero(np.asarray(visible)[b, t])
        scores = k[b, seen, n // G] @ q[b, t, n] / np.sqrt(q.shape[3])
        weights = np.exp(scores - scores.max())
        out[b, t, n] = weights / weights.sum() @ v[b, seen, n // G]
    return out


PACKED = np.array([[1, 1, 1, 2, 2, 2, 2, 3, 3], [1, 1, 2, 2, 2, 0, 0, 0, 0]])
POSITIONS = np.array([[0, 1, 2, 0, 1, 2, 3, 0, 1], [0, 1, 0, 1, 2, 0, 0, 0, 0]])


def test_columns_of_visible():
    segments = np.array([[1, 1, 1, 2, 2, 0]])
    positions = np.array([[0, 1, 2, 0, 1, 0]])
    seen = attention.visible(segments, positions, segments, positions)
    assert seen[0].astype(int).tolist() == [
        [1, 0, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0],
        [1, 1, 1, 0, 0, 0],
        [0, 0, 0, 1, 0, 0],
        [0, 0, 0, 1, 1, 0],
        [0, 0, 0, 0, 0, 1],
    ]


@pytest.mark.parametrize("N, K", [(4, 4), (4, 2), (6, 2), (4, 1)])
def test_every_head_against_the_definition(N, K):
    q, k, v = heads(N, K)
    visible = attention.visible(PACKED, POSITIONS, PACKED, POSITIONS)
    got = attend(q, k, v, visible)
    np.testing.assert_allclose(got, by_definition(q, k, v, visible), rtol=0, atol=2e-6)


def test_a_cache_longer_than_the_queries():
    q, k, v = heads(4, 2, S=T + 5)
    visible = np.arange(T + 5)[None, None] <= np.arange(T)[None, :, None] + 3
    visible = np.broadcast_to(visible, (B, T, T + 5))
    got = attend(q, k, v, visible)
    np.testing.assert_allclose(got, by_definition(q, k, v, visible), rtol=0, atol=2e-6)


def test_gradients_against_the_plain_form():
    q, k, v = heads(4, 2)
    visible = attention.visible(PACKED, POSITIONS, PACKED, POSITIONS)

    def plain(q, k, v):
        k, v = (jnp.repeat(x, 2, axis=2) for x in (k, v))
        scores = jnp.einsum("btnh,bsnh->bnts", q, k) / 2
        weights = jax.nn.softmax(jnp.where(visible[:, None], scores, -jnp.inf), axis=-1)
        return jnp.einsum("bnts,bsnh->btnh", weights, v)

    def gradients(function):
        total = lambda *args: jnp.sum(jnp.sin(function(*args)))  # noqa: E731
        return jax.jit(jax.grad(total, argnums=(0, 1, 2)))(q, k, v)

    ours = gradients(lambda *args: attend(*args, visible))
    for got, want in zip(ours, gradients(plain), strict=True):
        np.testing.assert_allclose(got, want, rtol=0, atol=5e-6)


def test_packed_examples_do_not_see_each_other():
    q, k, v = heads(4, 2)
    whole = attend(q, k, v, attention.visible(PACKED, POSITIONS, PACKED, POSITIONS))
    part = slice(3, 7)  # the second example of the first row, alone in a row of its own
    segments, positions = PACKED[:1, part], POSITIONS[:1, part]
    alone = attend(
        *(x[:1, part] for x in (q, k, v)),
        attention.visible(segments, positions, segments, positions),
    )
    np.testing.assert_allclose(whole[:1, part], alone, rtol=0, atol=1e-6)
    swapped = [x.at[0, :3].set(7.0) for x in (q, k, v)]  # another first example changes nothing
    visible = attention.visible(PACKED, POSITIONS, PACKED, POSITIONS)
    np.testing.assert_array_equal(attend(*swapped, visible)[0, 3:], whole[0, 3:])


def test_padding_may_be_on_either_side():
    q, k, v = heads(4, 2)
    right = np.array([[1] * 6 + [0] * 3] * B), np.array([[*range(6), 0, 0, 0]] * B)
    left = tuple(np.roll(x, 3, axis=1) for x in right)
    rolled = [jnp.roll(x, 3, axis=1) for x in (q, k, v)]
    on_right = attend(q, k, v, attention.visible(*right, *right))
    on_left = attend(*rolled, attention.visible(*left, *left))
    np.testing.assert_allclose(on_left[:, 3:], on_right[:, :6], rtol=0, atol=1e-6)


def test_a_query_that_sees_nothing_is_finite():
    q, k, v = heads(4, 2)
    nothing = np.zeros((B, T, T), bool)
    total = lambda *args: jnp.sum(attend(*args, nothing))  # noqa: E731
    value, grads = jax.jit(jax.value_and_grad(total, argnums=(0, 1, 2)))(q, k, v)
    assert np.isfinite(value)
    assert all(np.isfinite(grad).all() for grad in grads)


def test_bfloat16_keeps_a_float32_softmax():
    q, k, v = heads(4, 2, jnp.bfloat16)
    visible = attention.visible(PACKED, POSITIONS, PACKED, POSITIONS)
    got = attend(q, k, v, visible)
    assert got.dtype == jnp.bfloat16
    np.testing.assert_allclose(got, by_definition(q, k, v, visible), rtol=0, atol=2**-7)
    # Scores of about 1,000 differ by less than bfloat16 tells apart: only float32 sees the larger.
    q, k = jnp.full((1, 1, 1, 4), 32.0, jnp.bfloat16), jnp.full((1, 2, 1, 4), 16.0, jnp.bfloat16)
    k = k.at[0, 0, 0, 0].set(16.125)  # score 1,026 against 1,024
    v = jnp.asarray([[[[1.0]], [[0.0]]]], jnp.bfloat16) * jnp.ones((1, 2, 1, 4), jnp.bfloat16)
    out = attend(q, k, v, np.ones((1, 1, 2), bool))
    assert float(out[0, 0, 0, 0]) == pytest.approx(1 / (1 + np.exp(-2)), abs=0.005)
