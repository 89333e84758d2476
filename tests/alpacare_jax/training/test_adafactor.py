"""Adafactor, against transformers' and optax's on each layer's matrix alone."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from alpacare_jax.model import llama, params
from alpacare_jax.model.config import VARIANTS
from alpacare_jax.training import optimizers
from tests.alpacare_jax.training.test_optimizers import RECIPE, rates

pytestmark = pytest.mark.usefixtures("quickly_compiled")

SHAPE = dataclasses.replace(VARIANTS["tiny"], attention_bias=True, mlp_bias=True)
AXES = params.matrix_axes(SHAPE)
STEPS = 5


def hand_made(seed: int, scale: float) -> dict[str, np.ndarray]:
    """{path: array}; layers differ in size, so that mixing them would show."""

    def array(number: int, weight: params.WeightSpec) -> np.ndarray:
        shape = params.weight_shape(weight, SHAPE)
        wave = np.sin(np.linspace(seed, seed + 50 + number, int(np.prod(shape))) ** 2)
        wave = wave.reshape(shape).astype(np.float32)
        sizes = 10.0 ** np.arange(len(wave)) if weight.stacked else np.ones(len(wave))
        return (scale * wave.T * sizes).T.astype(np.float32)

    return {w.path: array(i, w) for i, w in enumerate(params.weight_specs(SHAPE))}


def tree(flat: dict[str, np.ndarray]) -> llama.Params:
    return params.build_tree(SHAPE, lambda w: jnp.asarray(flat[w.path]))


def run(config: optimizers.OptimizerConfig) -> dict[str, np.ndarray]:
    optimizer = optimizers.make(config, STEPS, params.decay_mask(SHAPE), AXES)
    weights = tree(hand_made(100, 0.1))
    state, apply = optimizer.init(weights), jax.jit(optimizer.update)
    for step in range(STEPS):
        updates, state = apply(tree(hand_made(step, 1e-3)), state, weights)
        weights = optax.apply_updates(weights, updates)
    return params.flatten(weights)


def of_layers(weight: params.WeightSpec, array: np.ndarray) -> list[np.ndarray]:
    """Hugging Face's tensors of a weight, one a layer."""
    layers = np.asarray(array) if weight.stacked else np.asarray(array)[None]
    return [params.to_hf_layout(weight, layer, SHAPE).copy() for layer in layers]


@pytest.mark.parametrize(
    "max_norm, decay", [(1.0, 0.0), pytest.param(0.0, 0.1, marks=pytest.mark.slow)]
)
def test_steps_are_those_of_transformers(max_norm, decay):
    torch = pytest.importorskip("torch")
    hf = pytest.importorskip("transformers.optimization")
    config = dataclasses.replace(
        RECIPE, name="adafactor", learning_rate=1e-2, max_grad_norm=max_norm, weight_decay=decay
    )
    rows = params.weight_specs(SHAPE)
    start = hand_made(100, 0.1)
    peers = {
        w.path: [torch.nn.Parameter(torch.from_numpy(a)) for a in of_layers(w, start[w.path])]
        for w in rows
    }
    groups = [
        {
            "params": [p for w in rows if w.decay == decays for p in peers[w.path]],
            "weight_decay": decay if decays else 0.0,
        }
        for decays in (True, False)
    ]
    # As transformers' Trainer makes it for `--optim adafactor`.
    peer = hf.Adafactor(groups, lr=1.0, scale_parameter=False, relative_step=False)
    for step, rate in enumerate(rates(config, STEPS)):
        grads = hand_made(step, 1e-3)
        for w in rows:
            for parameter, grad in zip(peers[w.path], of_layers(w, grads[w.path]), strict=True):
                parameter.grad = torch.from_numpy(grad)
        if max_norm:
            every = [p for group in groups for p in group["params"]]
            torch.nn.utils.clip_grad_norm_(every, max_norm)
        for group in peer.param_groups:
            group["lr"] = float(rate)
        peer.step()
    ours = run(config)
    for w in rows:
        for got, want, before in zip(
            of_layers(w, ours[w.path]), peers[w.path], of_layers(w, start[w.path]), strict=True
        ):
            moved = want.detach().numpy() - before
            assert np.abs(moved).max() > 1e-3, w.path
            np.testing.assert_allclose(got - before, moved, rtol=1e-3, atol=3e-6, err_msg=w.path)


@pytest.mark.slow
@pytest.mark.parametrize("path", ["q_proj", "o_proj", "gate_proj", "down_proj", "lm_head"])
def test_a_matrix_is_scaled_as_optax_scales_it_alone(path):
    (weight,) = (w for w in params.weight_specs(SHAPE) if w.path.endswith(path))
    ours = optimizers.scale_by_factored_moment(AXES)
    peer = optax.chain(
        optax.scale_by_factored_rms(min_dim_size_to_factor=1), optax.clip_by_block_rms(1.0)
    )
    zeros = tree(hand_made(0, 0.0))
    state = ours.init(zeros)
    alone = of_layers(weight, hand_made(0, 0.0)[weight.path])
    peer_states = [peer.init(jnp.asarray(a)) for a in alone]
    for step in range(3):
        grads = hand_made(step, 1e-3)
        updates, state = ours.update(tree(grads), state)
        got = of_layers(weight, params.flatten(updates)[weight.path])
        for i, grad in enumerate(of_layers(weight, grads[weight.path])):
            want, peer_states[i] = peer.update(jnp.asarray(grad), peer_states[i], alone[i])
            np.testing.assert_allclose(got[i], want, rtol=1e-4, atol=1e-6)


def test_one_layer_does_not_move_another():
    update = optimizers.scale_by_factored_moment(AXES)
    grads = tree(hand_made(1, 1e-3))
    other = tree(hand_made(1, 1e-3))
    other["layers"] = jax.tree.map(lambda g: g.at[0].multiply(-1e3), other["layers"])
    one, _ = update.update(grads, update.init(grads))
    two, _ = update.update(other, update.init(grads))
    for a, b in zip(jax.tree.leaves(one["layers"]), jax.tree.leaves(two["layers"]), strict=True):
        assert np.abs(np.asarray(a[0]) - np.asarray(b[0])).max() > 0.1
        np.testing.assert_array_equal(a[1:], b[1:])


def test_the_moments_of_7b_are_next_to_nothing():
    shape = VARIANTS["llama-7b"]
    update = optimizers.scale_by_factored_moment(params.matrix_axes(shape))
    state = jax.eval_shape(update.init, params.abstract(shape))
    numbers = sum(leaf.size for leaf in jax.tree.leaves(state))
    assert numbers < params.count(shape) / 1000
    q = {name: getattr(state, name)["layers"]["self_attn"]["q_proj"] for name in ("row", "column")}
    assert q["row"].shape == (32, 1, 32, 128)
    assert q["column"].shape == (32, 4096, 1, 1)
