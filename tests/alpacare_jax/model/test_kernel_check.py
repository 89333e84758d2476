"""The check of attention kernels passes the definition, and catches what was seen to go wrong."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alpacare_jax.model import attention, kernel_check

pytestmark = pytest.mark.usefixtures("quickly_compiled")

R, T, N, K, H = 4, 64, 4, 2, 16


def rows():
    """Four rows of up to three examples, two of them with padding."""
    segments, positions = np.zeros((2, R, T), np.int32)
    for row, cuts in enumerate([(0, 30, 50, 64), (0, 20, 60), (0, 64), (0, 10, 21, 40)]):
        for number, (start, end) in enumerate(itertools.pairwise(cuts), start=1):
            segments[row, start:end], positions[row, start:end] = number, np.arange(end - start)
    return segments, positions


def qkv(dtype):
    keys = jax.random.split(jax.random.key(1), 3)
    shapes = (R, T, N, H), (R, T, K, H), (R, T, K, H)
    return tuple(jax.random.normal(k, s, dtype) for k, s in zip(keys, shapes, strict=True))


def check(kernel, dtype=jnp.bfloat16):
    segments, positions = rows()
    chosen = kernel_check.rows_to_check(segments)
    found = jax.jit(kernel_check.relative_errors, static_argnums=0)(
        kernel, qkv(dtype), segments, positions, chosen
    )
    return kernel_check.judge("cudnn", *jax.device_get(found))


def ignores_segments(segments, positions):
    index = jnp.broadcast_to(jnp.arange(segments.shape[1]), segments.shape)
    return attention.xla(jnp.ones_like(segments), index)


def swaps_key_heads(segments, positions):
    attend = attention.xla(segments, positions)
    return lambda q, k, v: attend(q, k[:, :, ::-1], v)


def swaps_value_heads(segments, positions):
    attend = attention.xla(segments, positions)
    return lambda q, k, v: attend(q, k, v[:, :, ::-1])


def scales_wrongly(segments, positions):
    attend = attention.xla(segments, positions)
    return lambda q, k, v: attend(q * H**-0.5, k, v)


def sees_the_next_token(segments, positions):
    return attention.xla(segments, positions - (positions > 0) * (positions % 2))


def garbage_from_the_second_row(segments, positions):
    """As cuDNN with an end offset: the rows behind read from elsewhere."""
    attend = attention.xla(segments, positions)

    def attend_rows(q, k, v):
        return jnp.concatenate([attend(q, k, v)[:1], attend(q, k, jnp.roll(v, 7, axis=1))[1:]])

    return attend_rows


def gradient_of_half_the_queries(segments, positions):
    attend = attention.xla(segments, positions)

    @jax.custom_vjp
    def attend_rows(q, k, v):
        return attend(q, k, v)

    def backward(inputs, d):
        return jax.vjp(attend, *inputs)[1](d.at[:, T // 2 :].set(0))

    attend_rows.defvjp(lambda *qkv: (attend(*qkv), qkv), backward)
    return attend_rows


def leaves_a_token_out(segments, positions):
    attend = attention.xla(segments, positions)
    return lambda q, k, v: attend(q, k, v).at[:, 3].set(jnp.nan)


FAULTS = [
    ignores_segments,
    swaps_key_heads,
    swaps_value_heads,
    scales_wrongly,
    sees_the_next_token,
    garbage_from_the_second_row,
    gradient_of_half_the_queries,
    leaves_a_token_out,
]


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
def test_a_planted_fault_is_caught(fault):
    with pytest.raises(FloatingPointError, match=r"differs by .*%.*model.attention=cudnn_mask"):
        check(fault)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32], ids=["bfloat16", "float32"])
def test_the_definition_passes(dtype):
    assert "checked on the first batch" in check(attention.xla, dtype)


def test_rounding_like_a_fused_kernel_passes():
    """Its softmax is not normalised before the product, and rounded elsewhere."""

    def fused(segments, positions):
        mask = attention.attention_mask(segments, positions)[:, None]

        def attend(q, k, v):
            k, v = (jnp.repeat(x, N // K, axis=2) for x in (k, v))
            scores = jnp.einsum("btnh,bsnh->bnts", q, k, preferred_element_type=jnp.float32)
            scores = jnp.where(mask, scores * H**-0.5, -1e30)
            weights = jnp.exp(scores - jax.lax.stop_gradient(scores.max(-1, keepdims=True)))
            out = jnp.einsum("bnts,bsnh->btnh", weights.astype(v.dtype), v)
            return out / weights.sum(-1).transpose(0, 2, 1)[..., None].astype(v.dtype)

        return attend

    assert "checked" in check(fused)


def test_padding_is_not_judged():
    def other_padding(segments, positions):
        attend = attention.xla(segments, positions)
        real = (segments > 0)[..., None, None]
        return lambda q, k, v: jnp.where(real, attend(q, k, v), 7)

    assert "checked" in check(other_padding)


def test_rows_with_the_most_examples_are_checked():
    assert kernel_check.rows_to_check(rows()[0]).tolist() == [0, 3]
    assert kernel_check.rows_to_check(np.ones((1, 8), np.int32)).tolist() == [0, 0]
