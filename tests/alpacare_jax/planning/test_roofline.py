"""What programs are said to need: products counted by hand, seconds by resource."""

import dataclasses
import math

import jax
import numpy as np
import pytest

from alpacare_jax.model import attention, params
from alpacare_jax.planning import programs, roofline, topologies, training
from tests.alpacare_jax.planning.test_training import TINY, WORK, tiny_config


@pytest.fixture(scope="module")
def traced():
    """(remat, micro-batches) -> jaxpr, loop lengths and batch of the tiny model's step."""

    def trace(remat: str, microbatch_tokens: int):
        config = tiny_config(model__remat=remat, train__microbatch_tokens=microbatch_tokens)
        config = dataclasses.replace(
            config, sharding=dataclasses.replace(config.sharding, data=1, fsdp=-1)
        )
        program = programs.make_program(config, jax.devices()[:1])
        batch = training.typical_batch(program, WORK)
        step = programs.trace_step(program, batch.arrays)
        return step, training.loop_trips(program, batch), batch

    return trace


def by_hand(batch, remat: bool) -> float:
    """Products of one step: forward once or twice, backward twice as much; see `metrics`."""
    sizes = TINY.sizes
    computed = batch.num_computed
    T = batch.arrays["tokens"].shape[2]
    layers = params.count(TINY) - 2 * sizes["V"] * sizes["D"]
    norms = sizes["L"] * 2 * sizes["D"] + sizes["D"]
    forward = 2 * (layers - norms) * computed
    forward += sizes["L"] * 4 * sizes["N"] * sizes["H"] * T * computed  # whole squares
    return (4 if remat else 3) * forward


def test_matrix_products_are_counted_loops_and_recomputation_included(traced):
    for remat in ("none", "full"):
        for tokens in (128, 256):
            step, trips, batch = traced(remat, tokens)
            counted = roofline.matmul_flops(step.jaxpr.jaxpr, trips)
            R = batch.arrays["tokens"].shape[1]
            most = max(np.count_nonzero(batch.arrays["weights"], axis=-1).flat)
            chunk = 64 // R
            loss = 3 * 2 * TINY.sizes["V"] * TINY.sizes["D"]
            loss *= math.ceil(most / chunk) * chunk * R * batch.num_micro
            # With remat XLA need not repeat the last product of a layer: nothing depends on it.
            assert counted == pytest.approx(by_hand(batch, remat == "full") + loss, rel=0.12)
    assert traced("none", 128)[2].num_micro > traced("none", 256)[2].num_micro


def test_a_loop_of_unknown_length_is_an_error(traced):
    step, _, _ = traced("none", 128)
    with pytest.raises(ValueError, match="accumulate has no known length"):
        roofline.matmul_flops(step.jaxpr.jaxpr, lambda name: None)


def test_products_inside_cudnn(monkeypatch):
    """2 forward, 5 backward; traced only, so that no GPU is needed."""
    monkeypatch.setattr(
        "jax._src.cudnn.fused_attention_stablehlo.check_cudnn_version", lambda: 91_000
    )
    B, T, N, H = 2, 128, 4, 64
    segments = positions = np.ones((B, T), np.int32)
    attend = attention.cudnn_mask(segments, positions)

    def sum_of(x):
        return attend(x, x, x).astype(np.float32).sum()

    x = jax.ShapeDtypeStruct((B, T, N, H), "bfloat16")
    product = 2 * B * N * T * T * H
    for function, products in ((sum_of, 2), (jax.grad(sum_of), 7)):
        jaxpr = jax.jit(function).trace(x).jaxpr.jaxpr
        assert roofline.matmul_flops(jaxpr, lambda name: None) == products * product


def moved(num_bytes: float, between_slices: bool) -> dict:
    return {"num_bytes": num_bytes, "between_slices": between_slices}


def test_each_resource_has_its_least_time():
    topology = topologies.Topology("2xours", [], 8, 1e12, 1e9, 1e11, 1e10, slices=2, dcn_rate=1e9)
    needs = {
        "hardware_flops": 8e12,
        "hbm_traffic_bytes": 2e11,
        "host_bytes": 0,
        "collectives": [moved(1e10, False), moved(2e10, False), moved(3.5e9, True)],
    }
    found = roofline.least_seconds(needs, topology, 8)
    seconds = {"compute": 1.0, "memory": 2.0, "network": 3.0, "between slices": 3.5}
    assert found["seconds"] == seconds
    assert found["bound"] == "between slices" and found["step_seconds"] == 3.5
    assert roofline.least_seconds(needs, topology, 1)["bound"] == "compute", "nobody shares"
    alone = dataclasses.replace(topology, slices=1)
    assert roofline.least_seconds(needs, alone, 8)["bound"] == "network"


def test_the_bill_is_by_chips():
    assert roofline.run_cost({"hours": 2.0, "chips": 8}, 1.5) == {"cost": 2 * 8 * 1.5}
    assert roofline.run_cost({"hours": 2.0, "chips": 8}, None) == {}
