"""Stacked layers: equal to applying them in turn, and gradients accumulated in place."""

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


def test_under_full_remat_the_sum_takes_no_second_tree():
    x_MD, stacked, accumulated_grads = inputs()
    tree = sum(leaf.nbytes for leaf in jax.tree.leaves(stacked))

    def temporaries(remat):
        def add(stacked, x_MD, accumulated_grads):
            return jax.grad(loss)(stacked, x_MD, remat, accumulated_grads)

        compiled = jax.jit(add, donate_argnums=2).lower(stacked, x_MD, accumulated_grads).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    assert temporaries("full") < 0.6 * tree
    assert temporaries("dots") > tree
