"""int8 and nf4 are bitsandbytes': its own results, of made-up weights, are a golden file."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from alpacare_jax.model import quantised
from alpacare_jax.model.quantised import DYNAMIC, NF4, Quantised, quantise
from tests.conftest import REPOSITORY

GOLDEN = json.loads((REPOSITORY / "tests/golden/bitsandbytes.json").read_text())
"""Made by bitsandbytes 0.50.2 on CPU: quantize_4bit(weights(), blocksize=64, quant_type="nf4",
compress_statistics=True), dequantize_4bit of it (every sixth row), int8_vectorwise_quant and
create_dynamic_map."""


def weights() -> np.ndarray:
    """[O, I], as torch stores a Linear: no random number."""
    outputs, inputs = GOLDEN["shape"]
    n = outputs * inputs
    wave = 0.02 * np.sin(np.linspace(0, 700, n) ** 2) * np.linspace(0.1, 3, n)
    return wave.astype(np.float32).reshape(outputs, inputs)


def golden(name: str, dtype: type, *shape: int) -> np.ndarray:
    return np.frombuffer(bytes.fromhex(GOLDEN[name]), dtype).reshape(shape)


def one_layer(name: str, array: np.ndarray, inputs: int = 1) -> Quantised:
    return jax.tree.map(lambda x: x[0], quantise(jnp.asarray(array)[None], inputs, name))


def test_nf4_is_that_of_bitsandbytes():
    outputs, inputs = GOLDEN["shape"]
    np.testing.assert_array_equal(DYNAMIC, golden("dynamic", np.float32, 256))
    ours = one_layer("nf4", weights().T)
    np.testing.assert_array_equal(ours.codes.T, golden("nf4", np.uint8, outputs, inputs // 2))
    np.testing.assert_array_equal(ours.scales.T, golden("scales", np.uint8, outputs, inputs // 64))
    np.testing.assert_allclose(ours.scales_of_scales, GOLDEN["scales_of_scales"], rtol=1e-6)
    assert float(ours.mean_scale) == pytest.approx(GOLDEN["mean_scale"], rel=1e-6)
    values = np.asarray(ours.astype(jnp.float32)).T
    theirs = golden("dequantised", np.float32, -1, inputs)
    np.testing.assert_allclose(values[::6], theirs, atol=1e-7)
    assert 1e-4 < np.abs(values - weights()).max() < 0.3 * np.abs(weights()).max()


def test_int8_is_that_of_bitsandbytes():
    ours = one_layer("int8", weights().T)
    np.testing.assert_array_equal(ours.codes.T, golden("int8", np.int8, *GOLDEN["shape"]))
    np.testing.assert_allclose(ours.scales[0], GOLDEN["int8_scales"], rtol=1e-7)
    step = np.abs(weights()).max(axis=1, keepdims=True) / 127
    assert np.all(np.abs(np.asarray(ours.astype(jnp.float32)).T - weights()) <= 0.501 * step)


@pytest.mark.parametrize("name", quantised.FORMATS)
def test_axes_are_merged_as_the_weight_has_them(name):
    """o_proj [N, H, D] has two axes of inputs, q_proj [D, N, H] two of outputs."""
    matrix = weights().T
    want = np.asarray(one_layer(name, matrix).astype(jnp.float32))
    of_o = one_layer(name, matrix.reshape(12, 16, 24), inputs=2)
    of_q = one_layer(name, matrix.reshape(192, 3, 8))
    np.testing.assert_array_equal(of_o.astype(jnp.float32), want.reshape(12, 16, 24))
    np.testing.assert_array_equal(of_q.astype(jnp.float32), want.reshape(192, 3, 8))
    assert of_q.astype(jnp.bfloat16).dtype == jnp.bfloat16


def test_zeros_stay_zeros_and_codes_are_kept():
    """A block of zeros divides by nothing; a value that is a code, times its scale, is exact."""
    matrix = np.zeros((128, 2), np.float32)
    assert not np.any(one_layer("nf4", matrix).astype(jnp.float32))
    assert not np.any(one_layer("int8", matrix).astype(jnp.float32))
    matrix[:] = np.tile(NF4, 8)[:, None]
    np.testing.assert_allclose(one_layer("nf4", matrix).astype(jnp.float32), matrix, atol=1e-6)


def test_blocks_are_whole():
    with pytest.raises(ValueError, match="blocks of 64 inputs, and a projection has 96"):
        quantised.abstract((2, 96, 8), 1, "nf4")


def test_parts_are_sharded_as_the_weight_where_blocks_are_whole():
    mesh = Mesh(np.array(jax.devices()[:4]).reshape(2, 2), ("fsdp", "tensor"))
    of_weight = NamedSharding(mesh, PartitionSpec(None, "fsdp", "tensor", None))
    found = quantised.shardings(quantised.abstract((2, 64, 4, 16), 1, "nf4"), 1, of_weight)
    assert found.codes.spec == PartitionSpec(None, "fsdp", "tensor")
    assert found.scales.spec == PartitionSpec(None, None, "tensor")  # one block of inputs
    assert found.scales_of_scales.spec == PartitionSpec(None, None)
