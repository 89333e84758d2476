"""Layers on disk: turned round quickly, and an ordinary Orbax checkpoint for everybody else."""

import itertools

import jax
import ml_dtypes
import numpy as np
import pytest
from orbax.checkpoint import v1 as ocp

from alpacare_jax.checkpoints import checkpoint, layerwise
from alpacare_jax.model import params
from tests.alpacare_jax.test_convert import CONFIG


@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16])
def test_contiguous_is_numpys_own(dtype):
    array = np.arange(5 * 40 * 7).reshape(5, 40, 7).astype(dtype)
    for shape in [(5, 40, 7), (200, 7), (1400,)]:
        view = array.reshape(shape)
        for axes in itertools.permutations(range(view.ndim)):
            result = layerwise.contiguous(view.transpose(axes))
            assert result.flags.c_contiguous and result.dtype == dtype
            np.testing.assert_array_equal(result, view.transpose(axes))


def write(directory, kind=np.float32) -> dict[str, np.ndarray]:
    dtype = np.dtype(kind)
    shapes = params.flatten(params.abstract(CONFIG))
    arrays = {path: np.full(like.shape, i, dtype) for i, (path, like) in enumerate(shapes.items())}
    with layerwise.Writer(directory, CONFIG, dict.fromkeys(arrays, dtype)) as store:
        for weight in params.weight_specs(CONFIG):
            array = arrays[weight.path]
            for layer in range(CONFIG.num_hidden_layers) if weight.stacked else [None]:
                store.write(weight, layer, array if layer is None else array[layer])
    return arrays


@pytest.mark.parametrize("folder", ["plain", "with space, comma and 100%25"])
def test_orbax_reads_what_is_written(folder, tmp_path):
    """Zeros too: the first weight is nothing but zeros."""
    (directory := tmp_path / folder).mkdir()
    arrays = write(directory)
    restored = params.flatten(
        ocp.load(directory / "checkpoints" / "0", checkpointable_name="params")
    )
    assert restored.keys() == arrays.keys()
    for path, array in arrays.items():
        np.testing.assert_array_equal(np.asarray(restored[path]), array)


def test_restores_onto_a_mesh(tmp_path):
    arrays = write(tmp_path, ml_dtypes.bfloat16)
    mesh = jax.make_mesh((2,), ("fsdp",), devices=jax.devices()[:2])
    spec = jax.sharding.PartitionSpec
    shardings = params.build_tree(
        CONFIG,
        lambda w: jax.sharding.NamedSharding(mesh, spec(*[None] * w.stacked, "fsdp")),
    )
    restored = checkpoint.load_params(tmp_path, CONFIG, shardings=shardings)
    for path, leaf in params.flatten(restored).items():
        assert len(leaf.sharding.device_set) == 2
        np.testing.assert_array_equal(np.asarray(leaf), arrays[path])


def test_nothing_stands_before_the_end(tmp_path):
    dtypes = {weight.path: np.dtype(np.float32) for weight in params.weight_specs(CONFIG)}
    with pytest.raises(KeyError), layerwise.Writer(tmp_path, CONFIG, dtypes):
        assert checkpoint.latest_step(tmp_path) is None
        raise KeyError
    assert checkpoint.latest_step(tmp_path) is None
