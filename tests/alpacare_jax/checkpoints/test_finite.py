"""Weights and moments that are no usable numbers: found on devices, on the host and in files."""

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from alpacare_jax import convert
from alpacare_jax.checkpoints import checkpoint, finite, saving
from alpacare_jax.distributed.sharding import HOST_MEMORY
from alpacare_jax.model import params
from tests.conftest import make_model
from tests.support.hf_folders import CONFIG, fails_and_leaves_nothing, hf_tensors, to_hf, write_hf
from tests.support.training import TINY

BAD = [np.nan, np.inf, -np.inf, 1e19, -1e30]


def arrays(dtype=jnp.float32) -> dict:
    values = jnp.linspace(-3, 3, 48).reshape(4, 3, 4).astype(dtype)
    return {"layers": {"w": values}, "norm": values[0, 0]}


def poisoned(value: float, dtype=jnp.float32) -> dict:
    """One value of 48 is bad."""
    tree = arrays(dtype)
    tree["layers"]["w"] = tree["layers"]["w"].at[2, 1, 3].set(value)
    return tree


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_on_devices(dtype):
    assert finite.unusable(arrays(dtype), {"count": jnp.int32(3)}) == ""
    for value in BAD:
        assert finite.unusable(poisoned(value, dtype)).startswith("layers.w holds ")
    assert finite.unusable(poisoned(np.nan, dtype)) == "layers.w holds NaN"
    assert finite.unusable(arrays(), poisoned(np.inf)) == "moments.layers.w holds inf"
    assert finite.unusable(arrays(), poisoned(1e30)) == "", "the square of a large gradient"


def test_one_nan_among_many_values():
    """A vectorised maximum may lose it."""
    for place in range(0, 10_000, 1237):
        array = jnp.linspace(-1, 1, 10_000).at[place].set(jnp.nan)
        assert finite.unusable({"w": array}) == "w holds NaN"


def test_moments_in_host_memory_are_read_layer_by_layer():
    def on_host(leaf):
        place = jax.sharding.SingleDeviceSharding(jax.devices()[0], memory_kind=HOST_MEMORY)
        return jax.device_put(leaf, place)

    good, bad = (jax.tree.map(on_host, tree) for tree in (arrays(), poisoned(np.nan)))
    assert finite.unusable(arrays(), good) == ""
    assert finite.unusable(arrays(), bad) == "moments.layers.w holds NaN"


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
def test_in_conversion(dtype):
    finite.require_usable("w", np.array([-6e4, -0.0, 0.0, 6e4, 1e-7]).astype(dtype))
    finite.require_usable("w", np.array([1e18, -1e18], np.float32))
    for value in BAD:
        with np.errstate(over="ignore"):
            array = np.array([[1.0, value], [-2.0, 0.5]]).astype(dtype)
        for view in (array, array.T):
            with pytest.raises(ValueError, match=r"^w holds (NaN|-?inf|-?1e)"):
                finite.require_usable("w", view)


def test_the_digest_depends_on_values_dtypes_and_names_only():
    weights = arrays()
    digest = finite.weights_digest(weights)
    mesh = jax.make_mesh((4,), ("fsdp",), devices=jax.devices()[:4])
    rows = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("fsdp"))
    sharded = {**weights, "layers": {"w": jax.device_put(weights["layers"]["w"], rows)}}
    sharded["norm"] = jax.device_put(weights["norm"], rows)
    assert finite.weights_digest(sharded) == digest
    swapped = weights["layers"]["w"][jnp.array([1, 0, 2, 3])]
    others = [
        {**weights, "layers": {"w": swapped}},
        {**weights, "layers": {"w": weights["layers"]["w"].at[0, 0, 0].add(1e-6)}},
        {**weights, "layers": {"v": weights["layers"]["w"]}},
        {**weights, "norm": -weights["norm"]},
        jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), weights),
    ]
    assert len({digest, *map(finite.weights_digest, others)}) == 1 + len(others)


@pytest.mark.parametrize("part", ["params", "opt_state"])
def test_a_state_that_is_not_finite_is_never_saved_and_nothing_is_evicted(part, tmp_path):
    settings = saving.CheckpointConfig(every_steps=1, keep=1)
    state = {"params": arrays(), "opt_state": arrays()}
    with saving.TrainingCheckpoints(tmp_path, settings, 0) as saved:
        saved.save(1, state, {})
        named = (
            r"step 2 not saved: (moments\.)?layers\.w holds NaN; the last checkpoint is 1; lower"
        )
        with pytest.raises(FloatingPointError, match=named):
            saved.save(2, state | {part: poisoned(np.nan)}, {"eval_loss": 0.0})
    assert checkpoint.newest_whole(tmp_path) == 1
    assert checkpoint.find_step(tmp_path) == 1


def with_nan(value: float) -> params.Params:
    weights = params.init(TINY, jax.random.key(0))
    weights["layers"]["mlp"]["up_proj"] = weights["layers"]["mlp"]["up_proj"].at[1, 2, 3].set(value)
    return weights


def test_a_model_with_such_a_weight_is_not_loaded(tmp_path):
    model = make_model(tmp_path / "model", TINY, with_nan(np.nan))
    with pytest.raises(ValueError, match=r"weight layers\.mlp\.up_proj holds NaN; a model with"):
        checkpoint.load_params(model, TINY)


def test_nor_converted_either_way(tmp_path):
    model = make_model(tmp_path / "model", TINY, with_nan(np.inf))
    with fails_and_leaves_nothing(tmp_path, ValueError, "layers.1.mlp.up_proj.weight holds inf"):
        to_hf(model, tmp_path / "hf")
    tensors = hf_tensors(CONFIG)
    tensors["model.layers.2.self_attn.q_proj.weight"][3, 4] = np.nan
    source = write_hf(tmp_path / "source", CONFIG, tensors)
    named = "model.layers.2.self_attn.q_proj.weight holds NaN"
    with fails_and_leaves_nothing(tmp_path, ValueError, named):
        convert.from_hf(source, tmp_path / "ours")
