"""Chunked cross-entropy against the plain one, and that it never holds a batch's logits."""

import functools
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend.core import jaxprs_in_params
from jax.sharding import NamedSharding, PartitionSpec

from alpacare_jax.model.loss import chunked_cross_entropy, chunked_log_probs

pytestmark = pytest.mark.usefixtures("quickly_compiled")

B, T, D, V = 3, 14, 8, 23
PATTERNS = {
    "everywhere": lambda b, t: t >= 0,
    "after a prompt": lambda b, t: t >= 4 + 3 * b,
    "scattered": lambda b, t: (5 * b + 3 * t) % 4 == 0,
    "one row only": lambda b, t: b == 1,
    "the last position": lambda b, t: (b == 2) & (t == T - 1),
    "nowhere": lambda b, t: t < 0,
}


def plain(hidden_BTD, head_VD, targets_BT, weights_BT):
    logits = jnp.einsum("btd,vd->btv", hidden_BTD, head_VD, preferred_element_type=jnp.float32)
    log_p = jax.nn.log_softmax(logits, axis=-1)
    return -jnp.sum(weights_BT * jnp.take_along_axis(log_p, targets_BT[..., None], -1)[..., 0])


def inputs(pattern: str, dtype=jnp.float32, shape=(B, T, D, V)):
    B, T, D, V = shape

    def wave(*dims):
        return np.sin(np.linspace(0, 3 * math.prod(dims), math.prod(dims))).reshape(dims)

    b, t = np.indices((B, T))
    counted = PATTERNS[pattern](b, t)
    return (
        jnp.asarray(2 * wave(B, T, D), dtype),
        jnp.asarray(1.5 * wave(V, D)[::-1], dtype),
        jnp.asarray((7 * b + 5 * t) % V, jnp.int32),
        jnp.asarray(counted * (0.1 + 0.05 * ((b + t) % 3)), jnp.float32),
    )


def assert_close(got, want, tolerance):
    scale = np.abs(np.asarray(want, np.float32)).max()
    error = np.abs(np.asarray(got, np.float32) - np.asarray(want, np.float32)).max()
    assert error <= tolerance * max(scale, 1e-30), f"{error / scale:.1e} of the largest value"


both = functools.partial(jax.value_and_grad, argnums=(0, 1))
plain_both = jax.jit(both(plain))


@functools.cache
def chunked(chunk: int):
    """Compiled value and gradients of `chunked_cross_entropy`."""
    return jax.jit(both(lambda *args: chunked_cross_entropy(*args, chunk)))


@pytest.mark.parametrize("chunk", [1, 3, 7, 100])
def test_value_and_gradients_in_chunks_of_any_size(chunk):
    for pattern in PATTERNS:
        args = inputs(pattern)
        want, wants = plain_both(*args)
        assert abs(want) > 0.1 or pattern == "nowhere"
        got, grads = chunked(chunk)(*args)
        assert got.dtype == jnp.float32
        assert got.shape == ()
        assert_close(got, want, 1e-6)
        for grad, wanted in zip(grads, wants, strict=True):
            assert_close(grad, wanted, 2e-6)


def test_value_without_gradients():
    args = inputs("scattered")
    assert_close(chunked_cross_entropy(*args, 3), plain_both(*args)[0], 1e-6)


def test_no_weight_no_loss_no_gradient():
    args = inputs("nowhere")
    value, grads = chunked(3)(*args)
    assert value == 0
    assert not any(np.asarray(grad).any() for grad in grads)


def test_targets_without_weight_are_ignored():
    hidden, head, targets, weights = inputs("scattered")
    want = jax.tree.leaves(chunked(3)(hidden, head, targets, weights))
    for filler in (-100, -1, V, 10**6):
        filled = jnp.where(weights > 0, targets, filler)
        got = jax.tree.leaves(chunked(3)(hidden, head, filled, weights))
        for one, wanted in zip(got, want, strict=True):
            np.testing.assert_array_equal(one, wanted)


def test_gradients_scale_with_what_is_made_of_the_loss():
    args = inputs("scattered")
    triple = jax.jit(both(lambda *args: -3 * chunked_cross_entropy(*args, 3)))
    for one, three in zip(chunked(3)(*args)[1], triple(*args)[1], strict=True):
        assert_close(three, -3 * one, 1e-6)


def test_bfloat16_is_as_exact_as_bfloat16_can_be():
    args = inputs("scattered", jnp.bfloat16)
    exact = (args[0].astype(jnp.float32), args[1].astype(jnp.float32), *args[2:])
    want, wants = plain_both(*exact)
    got, grads = chunked(3)(*args)
    assert got.dtype == jnp.float32
    # The products of two bfloat16 numbers are summed in float32, so only gradients are rounded.
    assert_close(got, want, 1e-6)
    for grad, wanted, arg in zip(grads, wants, args[:2], strict=True):
        assert grad.dtype == arg.dtype
        assert_close(grad, wanted, 2**-8)


def test_rows_may_be_sharded():
    args = inputs("scattered", shape=(8, T, D, V))
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    rows, whole = (NamedSharding(mesh, PartitionSpec(*axes)) for axes in (("data",), ()))
    spread = [jax.device_put(x, s) for x, s in zip(args, (rows, whole, rows, rows), strict=True)]
    leaves = (jax.tree.leaves(chunked(3)(*given)) for given in (spread, args))
    for got, want in zip(*leaves, strict=True):
        assert_close(got, want, 1e-6)


# Log-probabilities of tokens.


def plain_log_probs(hidden_BTD, head_VD, targets_BT, counted_BT):
    logits = jnp.einsum("btd,vd->btv", hidden_BTD, head_VD, preferred_element_type=jnp.float32)
    log_p = jax.nn.log_softmax(logits, axis=-1)
    found = jnp.take_along_axis(log_p, jnp.where(counted_BT, targets_BT, 0)[..., None], -1)[..., 0]
    return jnp.where(counted_BT, found, 0)


def curved(log_probs):
    """A loss whose gradient has both signs and depends on the sums over rows, as that of DPO."""

    def loss(*args):
        found_BT = log_probs(*args)
        slope_T = jnp.linspace(-1, 2, found_BT.shape[1])
        return jnp.sum(jnp.sum(slope_T * found_BT, axis=1) ** 2)

    return loss


@pytest.mark.parametrize("chunk", [1, 3, 100])
def test_log_probs_and_their_gradients_in_chunks_of_any_size(chunk):
    def chunked(*args):
        return chunked_log_probs(*args, chunk)

    for pattern in PATTERNS:
        hidden, head, targets, weights = inputs(pattern)
        args = hidden, head, jnp.where(weights > 0, targets, -100), weights > 0
        assert_close(jax.jit(chunked)(*args), plain_log_probs(*args), 1e-6)
        want, wants = jax.jit(both(curved(plain_log_probs)))(*args)
        got, grads = jax.jit(both(curved(chunked)))(*args)
        assert_close(got, want, 1e-6)
        for grad, wanted in zip(grads, wants, strict=True):
            assert_close(grad, wanted, 4e-6)


# Memory.

SHAPE = (4, 64, 8, 96)


def largest_of_jaxpr(function, *args) -> int:
    """Elements of the largest array that any equation makes, loops and calls included."""
    largest = 0

    def walk(jaxpr):
        nonlocal largest
        for equation in jaxpr.eqns:
            for out in equation.outvars:
                largest = max(largest, math.prod(getattr(out.aval, "shape", ())))
            for inner in jaxprs_in_params(equation.params):
                walk(inner)

    walk(jax.make_jaxpr(function)(*args).jaxpr)
    return largest


def largest_of_hlo(function, *args) -> int:
    """Elements of the largest array in the compiled program."""
    text = jax.jit(function).lower(*args).compile().as_text()
    shapes = re.findall(r"\b(?:f32|bf16|f16|s32|u32|pred)\[([\d,]+)\]", text)
    return max(math.prod(map(int, shape.split(","))) for shape in shapes)


@pytest.mark.parametrize("measure", [largest_of_jaxpr, largest_of_hlo])
def test_the_logits_of_a_batch_are_never_held(measure):
    B, T, _, V = SHAPE
    args, chunk = inputs("after a prompt", shape=SHAPE), 8
    whole = measure(both(plain), *args)
    assert whole >= B * T * V, "the measure does not see logits where there are some"
    assert measure(both(lambda *args: chunked_cross_entropy(*args, chunk)), *args) <= B * chunk * V
    counted = *args[:3], args[3] > 0
    log_probs = curved(lambda *args: chunked_log_probs(*args, chunk))
    assert measure(both(log_probs), *counted) <= B * chunk * V
