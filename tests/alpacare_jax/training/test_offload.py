"""Moments in the host's memory: the same step, a layer at a time."""

import dataclasses
import types
from pathlib import Path

import jax
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec

from alpacare_jax.distributed import sharding
from alpacare_jax.model import params
from alpacare_jax.training import offload
from alpacare_jax.training.train_step import TrainingProgram
from tests.support.training import TINY, hand_made_params, run_config

pytestmark = pytest.mark.usefixtures("quickly_compiled")


def setting(**changes):
    """A config with offload, the mesh, the optimizer, and the shardings of its state."""
    config = run_config(Path(), sharding__fsdp=4, sharding__tensor=2)
    recipe = dataclasses.replace(config.optimizer, offload=True, weight_decay=0.1, **changes)
    config = dataclasses.replace(config, optimizer=recipe)
    mesh = sharding.make_mesh(config.sharding)
    program = TrainingProgram(TINY, config, 10, mesh)
    return config, mesh, program.optimizer, program.state_shardings


def test_matrices_wait_in_the_host_and_the_rest_on_the_devices():
    _, _, _, shardings = setting()
    for moments in (optax.tree.get(shardings, "mu"), optax.tree.get(shardings, "nu")):
        kinds = {path: s.memory_kind for path, s in params.flatten(moments).items()}
        for weight in params.weight_specs(TINY):
            assert kinds[weight.path] == ("pinned_host" if weight.decay else "device")
    weights = {s.memory_kind for s in jax.tree.leaves(shardings["params"])}
    assert weights == {"device"}, "a forward pass reads them"
    assert {s.spec for s in jax.tree.leaves(shardings["opt_state"][3])} == {PartitionSpec()}


@pytest.mark.parametrize("changes", [{}, {"first_moment": "bfloat16"}, {"max_grad_norm": 0.0}])
def test_steps_by_layer_are_the_steps_at_once(changes):
    _, _, optimizer, shardings = setting(learning_rate=1e-2, **changes)
    start = hand_made_params()
    wanted = {"params": start, "opt_state": optimizer.init(start)}
    got = jax.device_put(wanted, shardings)

    @jax.jit
    def at_once(state, grads):
        updates, opt_state = optimizer.update(grads, state["opt_state"], state["params"])
        weights = optax.apply_updates(state["params"], updates)
        return {"params": weights, "opt_state": opt_state}

    def by_layer(state, grads):
        weights, opt_state = offload.update_by_layer(
            optimizer,
            grads,
            state["opt_state"],
            state["params"],
            optax.tree.norm(grads),
            shardings["opt_state"],
        )
        return {"params": weights, "opt_state": opt_state}

    by_layer = jax.jit(by_layer, out_shardings=shardings)
    for step in range(4):
        grads = jax.tree.map(lambda w, k=step: (k + 1) * jax.numpy.cos(50 * w), start)
        wanted, got = at_once(wanted, grads), by_layer(got, grads)
    assert jax.tree.structure(got) == jax.tree.structure(wanted)
    flat = jax.tree_util.tree_leaves_with_path(got)
    for (path, a), b in zip(flat, jax.tree.leaves(wanted), strict=True):
        name = jax.tree_util.keystr(path)
        tolerance = 1e-2 if b.dtype == "bfloat16" else 1e-5
        a, b = np.asarray(a, np.float32), np.asarray(b, np.float32)
        np.testing.assert_allclose(a, b, rtol=tolerance, atol=1e-6, err_msg=name)
    first = params.flatten(start)
    assert all(np.abs(w - first[p]).max() > 1e-3 for p, w in params.flatten(got["params"]).items())


def test_devices_without_a_part_in_their_host():
    kinds = [types.SimpleNamespace(kind="device")]
    device = types.SimpleNamespace(device_kind="Abacus 3", addressable_memories=lambda: kinds)
    mesh = types.SimpleNamespace(devices=np.array([device]))
    with pytest.raises(
        ValueError, match="needs memory of kind pinned_host, and Abacus 3 has device"
    ):
        offload.check_supported(mesh, {"layers": ""})


def test_layers_that_are_spread_cannot_be_taken_one_by_one():
    config, mesh, _, _ = setting()
    rules = config.sharding.rules | {"layers": "tensor", "heads": "", "kv_heads": "", "ffn": ""}
    sharding_config = dataclasses.replace(config.sharding, rules=rules)
    config = dataclasses.replace(config, sharding=sharding_config)
    with pytest.raises(ValueError, match=r"optimizer\.offload .* sharding\.rules\.layers"):
        _ = TrainingProgram(TINY, config, 10, mesh).state_shardings
