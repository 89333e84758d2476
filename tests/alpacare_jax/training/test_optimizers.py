"""AdamW and its schedules, against transformers and against a few lines of NumPy."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from alpacare_jax.model import params
from alpacare_jax.model.config import VARIANTS
from alpacare_jax.training import optimizers
from alpacare_jax.training.optimizers import OptimizerConfig

RECIPE = OptimizerConfig(
    name="adamw",
    learning_rate=2e-5,
    schedule="cosine",
    warmup_ratio=0.03,
    warmup_steps=0,
    beta1=0.9,
    beta2=0.999,
    epsilon=1e-8,
    weight_decay=0.0,
    max_grad_norm=1.0,
    first_moment="float32",
    offload=False,
)


def rates(config: OptimizerConfig, num_steps: int) -> np.ndarray:
    return np.asarray(jax.jit(optimizers.schedule(config, num_steps))(jnp.arange(num_steps)))


@pytest.mark.parametrize("schedule", optimizers.SCHEDULES)
@pytest.mark.parametrize("num_steps, ratio", [(1218, 0.03), (2030, 0.03), (7, 0.5), (5, 0), (1, 0)])
def test_every_rate_is_that_of_transformers(schedule, num_steps, ratio):
    torch = pytest.importorskip("torch")
    hf = pytest.importorskip("transformers.optimization")
    config = dataclasses.replace(RECIPE, schedule=schedule, warmup_ratio=ratio)
    warmup = optimizers.warmup_steps(config, num_steps)
    sgd = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=config.learning_rate)
    if schedule == "constant":
        peer = hf.get_constant_schedule_with_warmup(sgd, warmup)
    else:
        make = getattr(hf, f"get_{schedule}_schedule_with_warmup")
        peer = make(sgd, warmup, num_steps)
    (factor,) = peer.lr_lambdas
    want = [config.learning_rate * factor(k) for k in range(num_steps)]
    np.testing.assert_allclose(rates(config, num_steps), want, rtol=0, atol=2e-7 * max(want))


def test_landmarks_of_the_recipe():
    got = rates(RECIPE, 1218)
    assert optimizers.warmup_steps(RECIPE, 1218) == 37
    assert got[0] == 0
    assert got[1] == pytest.approx(2e-5 / 37)
    assert got[37] == pytest.approx(2e-5)
    assert got.argmax() == 37
    assert np.all(np.diff(got[37:]) < 0)
    assert 0 < got[-1] < 1e-10


@pytest.mark.parametrize(
    "num_steps, ratio, warmup", [(1218, 0.03, 37), (2030, 0.03, 61), (100, 0.03, 3), (9, 0, 0)]
)
def test_warm_up_steps_are_rounded_up(num_steps, ratio, warmup):
    config = dataclasses.replace(RECIPE, warmup_ratio=ratio)
    assert optimizers.warmup_steps(config, num_steps) == warmup


def test_warm_up_steps_can_be_a_number():
    config = dataclasses.replace(RECIPE, warmup_steps=100)
    assert optimizers.warmup_steps(config, 1218) == 100


WEIGHTS = {"matrix": np.linspace(-1, 1, 12).reshape(3, 4), "norm": np.linspace(0.5, 1.5, 4)}
AXES = {"matrix": ((0,), (1,)), "norm": ((0,), ())}
MASK = {"matrix": True, "norm": False}


def gradients(step: int, scale: float = 1.0) -> dict[str, np.ndarray]:
    return {
        name: scale * np.sin(np.linspace(step, step + 9, w.size)).reshape(w.shape)
        for name, w in WEIGHTS.items()
    }


def run(config: OptimizerConfig, grads_of_step, num_steps: int) -> dict[str, np.ndarray]:
    update = optimizers.make(config, num_steps, MASK, AXES)
    weights = {name: jnp.asarray(w, jnp.float32) for name, w in WEIGHTS.items()}
    state = update.init(weights)
    apply = jax.jit(update.update)
    for step in range(num_steps):
        grads = {name: jnp.asarray(g, jnp.float32) for name, g in grads_of_step(step).items()}
        updates, state = apply(grads, state, weights)
        weights = {name: w + updates[name] for name, w in weights.items()}
    return weights


def adamw(config: OptimizerConfig, grads_of_step, num_steps: int) -> dict[str, np.ndarray]:
    """Algorithm 2 of arXiv:1711.05101 in float64, with clipping and the decay mask."""
    weights = {name: w.copy() for name, w in WEIGHTS.items()}
    m = {name: np.zeros_like(w) for name, w in weights.items()}
    v = {name: np.zeros_like(w) for name, w in weights.items()}
    for step, rate in enumerate(rates(config, num_steps).astype(np.float64), start=1):
        grads = grads_of_step(step - 1)
        norm = np.sqrt(sum((g**2).sum() for g in grads.values()))
        for name, g in grads.items():
            g = g * min(1, config.max_grad_norm / norm) if config.max_grad_norm else g
            m[name] = config.beta1 * m[name] + (1 - config.beta1) * g
            v[name] = config.beta2 * v[name] + (1 - config.beta2) * g**2
            m_hat = m[name] / (1 - config.beta1**step)
            v_hat = v[name] / (1 - config.beta2**step)
            decay = config.weight_decay * weights[name] if MASK[name] else 0
            weights[name] -= rate * (m_hat / (np.sqrt(v_hat) + config.epsilon) + decay)
    return weights


@pytest.mark.parametrize(
    "changes, scale",
    [
        ({}, 1.0),
        ({"weight_decay": 0.1}, 1.0),
        ({"beta1": 0.7, "beta2": 0.95, "epsilon": 1e-3}, 1.0),
        ({"max_grad_norm": 0.0}, 100.0),
        ({"max_grad_norm": 1.0, "epsilon": 1e-1}, 100.0),
        ({"max_grad_norm": 1.0, "epsilon": 1e-1}, 0.01),
    ],
)
def test_updates_are_adamw(changes, scale):
    config = dataclasses.replace(RECIPE, learning_rate=1e-2, warmup_ratio=0.2, **changes)
    got = run(config, lambda step: gradients(step, scale), 8)
    want = adamw(config, lambda step: gradients(step, scale), 8)
    for name in WEIGHTS:
        assert np.abs(want[name] - WEIGHTS[name]).max() > 1e-3
        np.testing.assert_allclose(got[name], want[name], rtol=0, atol=2e-6)


def test_decay_touches_masked_weights_only():
    config = dataclasses.replace(
        RECIPE, learning_rate=0.1, weight_decay=0.5, warmup_ratio=0, schedule="constant"
    )
    got = run(config, lambda step: gradients(step, scale=0.0), 2)
    np.testing.assert_allclose(got["matrix"], WEIGHTS["matrix"] * 0.95**2, rtol=1e-6)
    np.testing.assert_array_equal(got["norm"], WEIGHTS["norm"].astype(np.float32))


def test_matrices_decay_and_norms_and_biases_do_not():
    shape = dataclasses.replace(VARIANTS["tiny"], attention_bias=True, mlp_bias=True)
    mask = params.flatten(params.decay_mask(shape))
    kept = {path for path, decays in mask.items() if not decays}
    assert kept == {path for path in mask if "norm" in path or "bias" in path}
    assert len(kept) == 10


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"name": "lion"}, "optimizer.name is 'lion'; choose from adamw, adafactor"),
        ({"name": "adafactor", "offload": True}, "adafactor has next to none: set it to False"),
        ({"schedule": "wsd"}, "optimizer.schedule is 'wsd'; choose from cosine, linear, constant"),
        ({"warmup_ratio": 1.0}, r"optimizer.warmup_ratio is 1.0; it must be in \[0, 1\)"),
        ({"warmup_steps": -1}, "optimizer.warmup_steps is -1; it must be at least 0"),
        ({"warmup_ratio": -0.1}, "optimizer.warmup_ratio is -0.1"),
        ({"first_moment": "int8"}, "first_moment is 'int8'; choose from float32, bfloat16"),
    ],
)
def test_bad_settings(changes, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(RECIPE, **changes)


def test_a_first_moment_in_bfloat16_is_half_as_large_and_goes_the_same_way():
    def run(dtype: str):
        update = optimizers.make(
            dataclasses.replace(RECIPE, first_moment=dtype), 50, {"w": True}, AXES
        )
        weights = {"w": jnp.linspace(-1.0, 1.0, 64)}
        state = update.init(weights)
        for _ in range(50):
            updates, state = update.update({"w": jnp.sin(3 * weights["w"])}, state, weights)
            weights = optax.apply_updates(weights, updates)
        return weights["w"], optax.tree.get(state, "mu")["w"], optax.tree.get(state, "nu")["w"]

    exact, mu, nu = run("float32")
    near, small_mu, same_nu = run("bfloat16")
    assert (mu.dtype, nu.dtype) == (jnp.float32, jnp.float32)
    assert (small_mu.dtype, same_nu.dtype) == (jnp.bfloat16, jnp.float32)
    start = np.linspace(-1.0, 1.0, 64)
    assert np.abs(exact - start).max() > 2e-4, "it moved"
    np.testing.assert_allclose(near - start, exact - start, rtol=0.02, atol=1e-6)


def test_a_part_of_the_gradients_is_clipped_by_the_norm_of_all():
    clip = optimizers.clip_by_global_norm(1.0)
    grads = {"a": jnp.full(4, 3.0), "b": jnp.full(9, 4.0)}
    whole, _ = clip.update(grads, clip.init(grads))
    part, _ = clip.update({"a": grads["a"]}, clip.init(grads), grad_norm=optax.tree.norm(grads))
    np.testing.assert_array_equal(part["a"], whole["a"])
    assert optax.tree.norm(whole) == pytest.approx(1.0, rel=1e-5)


def test_a_description():
    assert optimizers.describe(RECIPE) == "adamw, first moment in float32, moments in device memory"
    hosted = dataclasses.replace(RECIPE, first_moment="bfloat16", offload=True)
    assert optimizers.describe(hosted) == "adamw, first moment in bfloat16, moments in host memory"
    assert "adafactor" in optimizers.describe(dataclasses.replace(RECIPE, name="adafactor"))
