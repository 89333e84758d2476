"""Stacked layers: equal to applying them in turn, and gradients accumulated in place."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alpacare_jax.model import layers

pytestmark = pytest.mark.usefixtures("quickly_compiled")

L, M, D = 6, 32, 128


def layer(x_MD, weights):
    return x_MD + jnp.tanh(x_MD @ weights["in"]) @ weights["out"]


def wave(*shape, shift=0.0):
    size = int(np.prod(shape))
    values = np.sin(np.linspace(shift, shift + 0.7 * size, size)).reshape(shape)
    return jnp.asarray(0.1 * values, jnp.float32)


def inputs():
    stacked = {"in": wave(L, D, D), "out": wave(L, D, D, shift=1.0)}
    return wave(M, D, shift=2.0), stacked, jax.tree.map(lambda w: 3.0 * jnp.cos(w), stacked)


def loss(stacked, x_MD, remat, accumulated_grads=None):
    return jnp.sum(jnp.sin(layers.run(layer, x_MD, stacked, remat, accumulated_grads)))


@pytest.mark.parametrize("remat", layers.REMAT_POLICIES)
def test_layers_run_one_after_the_other(remat):
    x_MD, stacked, accumulated_grads = inputs()
    want = x_MD
    for i in range(L):
        want = layer(want, jax.tree.map(lambda w, i=i: w[i], stacked))
    for given in (None, accumulated_grads):
        np.testing.assert_allclose(layers.run(layer, x_MD, stacked, remat, given), want, atol=1e-6)


@pytest.mark.parametrize("remat", layers.REMAT_POLICIES)
def test_gradients_are_added_to_the_accumulated_ones(remat):
    x_MD, stacked, accumulated_grads = inputs()
    gradient = jax.grad(loss, argnums=(0, 1))
    plain, of_x = gradient(stacked, x_MD, "none")
    got, same_of_x = jax.jit(gradient, static_argnums=2)(stacked, x_MD, remat, accumulated_grads)
    np.testing.assert_allclose(same_of_x, of_x, atol=1e-5)
    for name in stacked:
        assert np.abs(plain[name]).max() > 1e-3, "there is something to add"
        np.testing.assert_allclose(
            got[name], accumulated_grads[name] + plain[name], atol=1e-6, err_msg=name
        )


@pytest.mark.parametrize("remat", layers.REMAT_POLICIES)
def test_frozen_trees_are_read_and_get_no_gradient(remat):
    """Two layers x -> w * f * x: the gradients are those of w alone, codes and all."""
    stacked, frozen = jnp.asarray([2.0, 3.0]), (jnp.asarray([5, 7], jnp.int8), None)

    def output(stacked, accumulated_grads=None):
        def layer(x, w, f, nothing):
            assert nothing is None
            return w * f.astype(x.dtype) * x

        return layers.run(layer, jnp.asarray(1.0), stacked, remat, accumulated_grads, frozen)

    assert output(stacked) == 2 * 5 * 3 * 7
    assert jax.grad(output)(stacked).tolist() == [105, 70]
    assert jax.grad(output)(stacked, jnp.asarray([10.0, 20.0])).tolist() == [115, 90]


@pytest.mark.parametrize("remat", layers.REMAT_POLICIES)
def test_columns_of_two_layers(remat):
    """As in the module's docstring."""
    stacked, accumulated_grads = jnp.asarray([2.0, 3.0]), jnp.asarray([10.0, 20.0])

    def output(stacked, accumulated_grads=None):
        return layers.run(lambda x, w: w * x, jnp.asarray(1.0), stacked, remat, accumulated_grads)

    assert output(stacked) == 6
    assert jax.grad(output)(stacked).tolist() == [3, 2]
    assert jax.grad(output)(stacked, accumulated_grads).tolist() == [13, 22]


def compiled_sum(remat, unroll):
    x_MD, stacked, accumulated_grads = inputs()

    def add(stacked, x_MD, accumulated_grads):
        def total(stacked):
            run = layers.run(layer, x_MD, stacked, remat, accumulated_grads, unroll=unroll)
            return jnp.sum(jnp.sin(run))

        return jax.grad(total)(stacked)

    return jax.jit(add, donate_argnums=2).lower(stacked, x_MD, accumulated_grads).compile()


@pytest.mark.parametrize("remat", layers.REMAT_POLICIES)
def test_the_sum_takes_no_second_tree(remat):
    x_MD, stacked, _ = inputs()
    tree = sum(leaf.nbytes for leaf in jax.tree.leaves(stacked))
    kept = 3 * L * x_MD.nbytes if remat == "none" else L * x_MD.nbytes
    temporary = compiled_sum(remat, unroll=False).memory_analysis().temp_size_in_bytes
    assert temporary < 0.5 * tree + kept


def test_unrolled_the_sum_is_still_updated_in_place():
    program = compiled_sum("full", unroll=True).as_text()
    stacks = re.findall(rf"= f32\[{L},{D},{D}\]\S* (\S+)\(", program.partition("ENTRY")[2])
    assert stacks.count("fusion") == 2 * L, "an addition for each weight of each layer"
    assert set(stacks) == {"parameter", "fusion"}, "no copy, no stack of gradients"


@pytest.mark.parametrize("remat", layers.REMAT_POLICIES)
def test_unrolled_the_gradients_are_the_same(remat):
    def gradients(unroll):
        x_MD, stacked, accumulated_grads = inputs()  # the last are donated
        return compiled_sum(remat, unroll)(stacked, x_MD, accumulated_grads)

    loop, unrolled = gradients(False), gradients(True)
    for name in loop:
        np.testing.assert_allclose(unrolled[name], loop[name], atol=1e-6)


def test_what_all_layers_share_is_kept_once():
    """Rotary angles and masks are the same for all layers; parameters are there anyway."""
    x_MD, stacked, accumulated_grads = inputs()
    shared = wave(M, D, shift=3.0)

    def total(stacked, shared):
        angles = jnp.cos(shared)

        def shifted(x_MD, weights):
            return layer(x_MD * angles, weights)

        return jnp.sum(layers.run(shifted, x_MD, stacked, "full", accumulated_grads))

    residuals = jax.tree.leaves(jax.vjp(lambda stacked: total(stacked, shared), stacked)[1])
    stacks = [leaf.shape for leaf in residuals if leaf.shape[:1] == (L,)]
    parameters = [leaf.shape for leaf in jax.tree.leaves((stacked, accumulated_grads))]
    assert sorted(stacks) == sorted([(L, M, D), *parameters]), "of the layers, only their inputs"


def test_names_decide_what_is_kept():
    """Of three products, the two that are named are kept, and the third is computed again."""
    weights = wave(2, D, D)

    def named(x_MD, w):
        x_MD = layers.keep(x_MD @ w, layers.PROJECTED)
        x_MD = layers.keep(jnp.sin(x_MD) @ w, layers.ATTENDED)
        return jnp.sin(x_MD) @ w

    def products(remat):
        def total(weights, x_MD):
            return jnp.sum(jnp.sin(layers.run(named, x_MD, weights, remat, weights)))

        return str(jax.make_jaxpr(jax.grad(total))(weights, wave(M, D))).count("dot_general[")

    # 3 forward and 6 backward; again: 2, 1 or none (the last product is never needed again).
    assert {remat: products(remat) - 9 for remat in layers.REMAT_POLICIES} == {
        "none": 0,
        "context": 0,
        "dots": 1,
        "full": 2,
    }
