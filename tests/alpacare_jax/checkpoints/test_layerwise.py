"""Layers on disk: turned round quickly, and an ordinary Orbax checkpoint for everybody else."""

import itertools

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from orbax.checkpoint import v1 as ocp

from alpacare_jax import convert
from alpacare_jax.checkpoints import checkpoint, layerwise, model_folder, saving
from alpacare_jax.model import params
from tests.support.hf_folders import CONFIG, assert_same_bits, read_tensors, to_hf, write_hf


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


def test_trained_checkpoint_streams_too(tmp_path, monkeypatch):
    source = write_hf(tmp_path / "hf", CONFIG)
    """Orbax's own chunks span layers; then layers are read together, as many as are allowed."""
    convert.from_hf(source, tmp_path / "ours")
    weights = checkpoint.load_params(tmp_path / "ours", CONFIG)
    trained = tmp_path / "trained"
    trained.mkdir()
    model_folder.copy_model_files(source, trained)
    checkpoint.save_params(trained, weights)
    for folder, limit, layers in [
        ("ours", 2**31, [1, 1, 1]),
        ("trained", 2**31, [3]),
        ("trained", 2 * 4 * 64 * 96, [2, 1]),
        ("trained", 1, [1, 1, 1]),
    ]:
        monkeypatch.setattr(layerwise, "PIECE_BYTES", limit)
        arrays = layerwise.open_arrays(tmp_path / folder, CONFIG, "best")
        pieces = layerwise.pieces(arrays, CONFIG)
        found = [len(p.layers) for p in pieces if p.weight.path == "layers.mlp.up_proj"]
        assert found == layers
        back = to_hf(tmp_path / folder, tmp_path / f"{folder}-{limit}")
        assert_same_bits(read_tensors(back), read_tensors(source))


def test_what_training_saves_has_chunks_of_one_layer(tmp_path, monkeypatch):
    source = write_hf(tmp_path / "hf", CONFIG)
    monkeypatch.setattr(saving, "CHUNK_BYTES", 3 * 4 * 64 * 96 - 1)
    convert.from_hf(source, tmp_path / "ours")
    weights = checkpoint.load_params(tmp_path / "ours", CONFIG)
    (trained := tmp_path / "trained").mkdir()
    model_folder.copy_model_files(source, trained)
    settings = saving.CheckpointConfig(every_steps=1, keep=1)
    with saving.TrainingCheckpoints(trained, settings, 0) as saved:
        saved.save(7, {"params": weights, "opt_state": {"count": jnp.zeros((), jnp.int32)}}, {})
    arrays = layerwise.open_arrays(trained, CONFIG, "7")
    chunks = {path: array.chunk_layout.read_chunk.shape for path, array in arrays.items()}
    assert chunks["layers.mlp.up_proj"] == (1, 64, 96)
    assert chunks["layers.self_attn.k_proj"] == (3, 64, 2, 16), "small: in one piece"
    assert chunks["embed_tokens"] == (384, 64)
    assert_same_bits(read_tensors(to_hf(trained, tmp_path / "back")), read_tensors(source))
