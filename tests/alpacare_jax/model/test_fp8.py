"""Projections in 8-bit floats: against their definition in float64, and where a step has them."""

import dataclasses
import re
import types
from pathlib import Path

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from jax.extend import core as jax_core

from alpacare_jax import train
from alpacare_jax.distributed import sharding
from alpacare_jax.model import params, projections
from alpacare_jax.model.layers import REMAT_POLICIES
from alpacare_jax.planning import programs, remat, roofline, topologies
from alpacare_jax.training import batching
from alpacare_jax.training.train_step import TrainingProgram
from tests.alpacare_jax.planning.test_remat import ARRAYS, GPU
from tests.alpacare_jax.training.test_train_step import EXAMPLES, batcher, relative
from tests.support.training import TINY, hand_made_params, run_config

pytestmark = pytest.mark.usefixtures("quickly_compiled")

FORMATS = {"e4m3": (ml_dtypes.float8_e4m3fn, 4, 7), "e5m2": (ml_dtypes.float8_e5m2, 3, 14)}
"""Type, bits of the significand, and the exponent of the least largest magnitude."""


def defined(x: np.ndarray, name: str) -> tuple[np.ndarray, np.ndarray]:
    """An operand as 8 bits hold it, and the most by which each element may be off; float64."""
    dtype, bits, exponent = FORMATS[name]
    scale = 2.0 ** (np.floor(np.log2(np.abs(x).max())) - exponent)
    least = float(ml_dtypes.finfo(dtype).smallest_normal)
    error = scale * np.maximum(np.abs(x) / scale, least) * 2.0**-bits
    return (x / scale).astype(dtype).astype(np.float64) * scale, error


def operands(shape: tuple[int, int, int] = (64, 48, 32)) -> list[np.ndarray]:
    """x, W and the gradient of x W: activations with outliers, small weights, tiny gradients."""
    rows, inputs, outputs = shape
    rng = np.random.default_rng(0)
    x = rng.standard_normal((rows, inputs)) * np.where(rng.random((rows, inputs)) < 0.01, 60, 1)
    weight = 0.02 * rng.standard_normal((inputs, outputs))
    gradient = 1e-7 * rng.standard_normal((rows, outputs))
    return [array.astype(np.float32) for array in (x, weight, gradient)]


def check_products(dtype=jnp.float32) -> None:
    """Asserts that a product and its gradients are those of rounded operands, rounded no more."""
    exact = operands()
    x, weight, gradient = (jnp.asarray(array, dtype) for array in exact)
    weight = jnp.asarray(exact[1])  # a master weight, in float32 whatever x is
    y, pullback = jax.vjp(projections.fp8_product, x, weight)
    of_x, of_weight = pullback(gradient)
    assert (y.dtype, of_x.dtype, of_weight.dtype) == (dtype, dtype, jnp.float32)
    x, weight, gradient = (np.asarray(a, np.float64) for a in (x, weight, gradient))
    (qx, ex), (qw, ew), (qg, eg) = (
        defined(a, name) for a, name in ((x, "e4m3"), (weight, "e4m3"), (gradient, "e5m2"))
    )
    for got, wanted, unrounded, bound in (
        (y, qx @ qw, x @ weight, ex @ abs(weight) + (abs(x) + ex) @ ew),
        (of_x, qg @ qw.T, gradient @ weight.T, eg @ abs(weight.T) + (abs(gradient) + eg) @ ew.T),
        (of_weight, qx.T @ qg, x.T @ gradient, ex.T @ abs(gradient) + (abs(x.T) + ex.T) @ eg),
    ):
        rounding = 2.0**-8 if got.dtype == jnp.bfloat16 else 1e-6
        got, size = np.asarray(got, np.float64), np.abs(wanted).max()
        np.testing.assert_allclose(got, wanted, rtol=rounding, atol=2e-6 * size)
        assert (np.abs(got - unrounded) <= bound + rounding * size).all()
        assert np.linalg.norm(got - unrounded) > 0.01 * np.linalg.norm(unrounded)  # 8 bits it is


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_products_and_gradients_are_their_definition(dtype):
    check_products(dtype)


@pytest.mark.parametrize("factor", [0.125, 2.0**20, 1.1], ids=["overflow", "underflow", "rounded"])
@pytest.mark.parametrize("dtype", [projections.E4M3, projections.E5M2], ids=["e4m3", "e5m2"])
def test_a_wrong_scale_is_found(monkeypatch, dtype, factor):
    right = projections.fp8_scale

    def wrong(x, of=projections.E4M3):
        return right(x, of) * (factor if of == dtype else 1)

    monkeypatch.setattr(projections, "fp8_scale", wrong)
    with pytest.raises(AssertionError):
        check_products()


@pytest.mark.parametrize("dtype", [projections.E4M3, projections.E5M2], ids=["e4m3", "e5m2"])
@pytest.mark.parametrize("source", [jnp.float32, jnp.bfloat16])
def test_operands_use_the_range_and_saturate_beyond_it(source, dtype):
    limit, least = float(jnp.finfo(dtype).max), projections.FP8_RANGE[dtype]
    for size in (1e-20, 3e-7, 1.0, 1.75, 1.99, 448.0, 3e30):
        x = jnp.asarray([size, -size / 3, 0.0], source)
        scale = projections.fp8_scale(x, dtype)
        codes, _ = projections.fp8_operand(x, scale, dtype)
        assert least <= float(codes[0]) <= 2 * least <= limit and float(codes[2]) == 0
        codes, _ = projections.fp8_operand(x, scale / 64, dtype)
        assert codes[:2].astype(jnp.float32).tolist() == [limit, -limit]


def test_zeros_give_zeros_and_nothing_else_hides_what_is_not_finite():
    zeros, ones = jnp.zeros((16, 16)), jnp.ones((16, 16))
    assert not projections.fp8_product(zeros, ones).any()
    assert not jax.vjp(projections.fp8_product, ones, ones)[1](zeros)[0].any()
    for bad in (jnp.nan, jnp.inf, -jnp.inf):
        x = ones.at[3, 4].set(bad)
        for product in (projections.fp8_product(x, ones), projections.fp8_product(ones, x)):
            assert jnp.isnan(product).all()
        of_x, of_weight = jax.vjp(projections.fp8_product, ones, ones)[1](x)
        assert jnp.isnan(of_x).all() and jnp.isnan(of_weight).all()


def program(remat: str = "dots", devices: int = 1, fp8: bool = True) -> TrainingProgram:
    config = run_config(Path(), train__fp8=fp8, model__remat=remat, sharding__fsdp=-1)
    mesh = sharding.make_mesh(config.sharding, jax.devices()[:devices])
    return TrainingProgram(TINY, config, 10, mesh)


def products(jaxpr: jax_core.Jaxpr) -> list[tuple[str, str]]:
    """Types of the operands of each product in a program, loop bodies once."""
    found = []
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            found.append(tuple(variable.aval.dtype.name for variable in equation.invars[:2]))
        for sub in jax_core.jaxprs_in_params(equation.params):
            found += products(sub)
    return found


def test_every_projection_of_a_training_step_and_nothing_else_is_in_8_bits():
    found = programs.trace_step(program(), ARRAYS)
    found = products(found.jaxpr.jaxpr)
    forward, of_x, of_weight = (
        ("float8_e4m3fn", "float8_e4m3fn"),
        ("float8_e5m2", "float8_e4m3fn"),
        ("float8_e4m3fn", "float8_e5m2"),
    )
    number = len(projections.PROJECTIONS)
    assert found.count(of_x) == found.count(of_weight) == number
    # Traced again under remat; what nothing depends on is dropped when compiled.
    assert found.count(forward) in (number, 2 * number)
    rest = set(found) - {forward, of_x, of_weight}
    assert rest == {("float32", "float32")}  # attention and the output embedding
    without = programs.trace_step(program(fp8=False), ARRAYS)
    assert set(products(without.jaxpr.jaxpr)) == rest


def gradient(program: TrainingProgram, training: bool = True):
    arrays = {name: array[0] for name, array in batcher(EXAMPLES, 10, 4).batch(0).arrays.items()}
    step = jnp.int32(0) if training else None

    def loss(weights, micro):
        return program.mean_loss(weights, micro, step=step)[0]

    value, found = jax.jit(jax.value_and_grad(loss))(hand_made_params(), arrays)
    return float(value), {path: np.asarray(grad) for path, grad in params.flatten(found).items()}


@pytest.mark.slow
def test_gradients_agree_under_every_policy_and_on_every_mesh():
    full, wanted = gradient(program(fp8=False))
    loss, first = gradient(program())
    assert 1e-3 < relative(first, wanted) < 0.2
    assert loss == pytest.approx(full, rel=1e-2) and loss != full
    for policy in REMAT_POLICIES:
        assert relative(gradient(program(policy))[1], first) < 1e-5
    assert relative(gradient(program(devices=4))[1], first) < 1e-2  # sums in another order


def test_a_held_out_loss_is_without():
    micro = {name: array[0] for name, array in ARRAYS.items()}

    def loss(weights, fp8):
        return program(fp8=fp8).mean_loss(weights, micro)[0]

    with_fp8, without = (
        products(jax.make_jaxpr(loss, static_argnums=1)(hand_made_params(), fp8).jaxpr)
        for fp8 in (True, False)
    )
    assert with_fp8 == without != []


@pytest.mark.slow  # and only where XLA's compiler for GPUs is installed
def test_compiled_for_an_h200_they_are_calls_of_cublas():
    try:
        device = topologies.describe("h200-1").devices[0]
    except ValueError as missing:
        if "pip install 'alpacare-jax[gpu]'" not in str(missing):
            raise
        pytest.skip(str(missing))
    config = run_config(Path(), train__fp8=True, model__dtype="bfloat16", model__remat="dots")
    mesh = sharding.make_mesh(config.sharding, [device])
    step = programs.trace_step(TrainingProgram(TINY, config, 10, mesh), ARRAYS)
    # Without a card XLA does not try cuBLAS where Triton could do it; small products it merges.
    options = {"xla_gpu_enable_triton_gemm": False, "xla_gpu_dot_merger_threshold_mb": 0}
    compiled = step.lower().compile(options).as_text()
    found = re.findall(r'= \((\w+)\[.*custom_call_target="__cublas\$lt\$matmul(\$f8)?"', compiled)
    number = len(projections.PROJECTIONS) * TINY.num_hidden_layers
    assert found.count(("f32", "$f8")) == number  # gradients of W
    assert found.count(("bf16", "$f8")) == 2 * number
    assert len(found) == 3 * number + 3  # the output embedding


def test_a_plan_counts_them_at_their_rate():
    with_fp8, without = (programs.trace_step(program(fp8=fp8), ARRAYS) for fp8 in (True, False))
    flops = [roofline.traced_flops(traced, lambda _: 1.0) for traced in (with_fp8, without)]
    assert 0.5 < flops[0] / flops[1] < 0.8
    found, without = (
        {c.policy: c for c in remat.reckon(program(fp8=fp8), ARRAYS, GPU)} for fp8 in (True, False)
    )
    for policy in REMAT_POLICIES:
        assert found[policy].kept_bytes == pytest.approx(without[policy].kept_bytes, rel=0.01)
        assert found[policy].flops < 0.8 * without[policy].flops


@pytest.mark.parametrize(
    ("device", "runs"),
    [
        ({"platform": "gpu", "compute_capability": "9.0"}, True),
        ({"platform": "gpu", "compute_capability": "8.9"}, True),
        ({"platform": "gpu", "compute_capability": "12.0"}, True),
        ({"platform": "gpu", "compute_capability": "8.0"}, False),
        ({"platform": "tpu"}, False),
    ],
)
def test_fp8_is_refused_on_devices_without_it(device, runs):
    device = types.SimpleNamespace(device_kind="Some Card", **device)
    mesh = types.SimpleNamespace(devices=np.array([device], object))
    if runs:
        assert "bfloat16 peak" in batching.check_fp8(mesh)
    else:
        with pytest.raises(ValueError, match=r"8\.9 .* this is a Some Card; set train\.fp8=False"):
            batching.check_fp8(mesh)


@pytest.mark.parametrize("key", ["lora.rank", "preference.beta"])
def test_what_it_does_not_train_is_refused(key):
    config = program().run_config
    section, name = key.split(".")
    changed = dataclasses.replace(getattr(config, section), **{name: 1})
    with pytest.raises(
        ValueError, match=rf"^train.fp8 has no {key}: set it to False, or {key} to 0$"
    ):
        dataclasses.replace(config, **{section: changed})


def test_a_run_on_a_cpu_says_that_it_is_emulated(capsys):
    asked = program()
    train.log_model(asked.run_config, TINY, asked.mesh)
    assert "projections in fp8: emulated on CPU" in capsys.readouterr().err
