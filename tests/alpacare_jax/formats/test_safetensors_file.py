"""Our reading and writing of safetensors against the package's own."""

import json

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

from alpacare_jax.formats import safetensors_file

TENSORS = {
    "b": np.arange(6, dtype=np.float32).reshape(2, 3),
    "a": np.arange(5).astype(ml_dtypes.bfloat16),
    "c": np.arange(4, dtype=np.float16).reshape(1, 4, 1),
    "é": np.array(7.0),
    "none": np.zeros((0, 3), np.float32),
}


def same(a: dict[str, np.ndarray], b: dict[str, np.ndarray]) -> bool:
    return bits(a) == bits(b)


def bits(tensors: dict[str, np.ndarray]) -> dict[str, tuple]:
    return {key: (t.dtype, t.shape, t.tobytes()) for key, t in tensors.items()}


def test_reads_what_the_package_writes(tmp_path):
    safetensors.numpy.save_file(TENSORS, tmp_path / "x", metadata={"format": "pt"})
    tensors = safetensors_file.tensors(tmp_path / "x")
    assert same({tensor.key: tensor.read() for tensor in tensors}, TENSORS)
    assert [t.nbytes for t in tensors] == [TENSORS[t.key].nbytes for t in tensors]


@pytest.mark.parametrize("max_bytes, files", [(1000, 1), (30, 2), (1, 5)])
def test_the_package_reads_what_is_written(max_bytes, files, tmp_path):
    specs = {key: (tensor.dtype, tensor.shape) for key, tensor in TENSORS.items()}
    with safetensors_file.FolderWriter(tmp_path, specs, max_bytes) as writer:
        for key in reversed(TENSORS):
            writer.write(key, TENSORS[key])
    found = {}
    for path in tmp_path.glob("*.safetensors"):
        found |= safetensors.numpy.load_file(path)
        assert int.from_bytes(path.read_bytes()[:8], "little") % 8 == 0
    assert same(found, TENSORS)
    assert len(list(tmp_path.glob("*.safetensors"))) == files
    assert (tmp_path / "model.safetensors.index.json").exists() == (files > 1)


def test_a_tensor_that_was_forgotten_or_misshapen(tmp_path):
    spec = {"a": (np.dtype(np.float32), (2,)), "b": (np.dtype(np.float32), (2,))}
    with (
        pytest.raises(ValueError, match="never written: b"),
        safetensors_file.FolderWriter(tmp_path, spec, 1000) as writer,
    ):
        writer.write("a", np.zeros(2, np.float32))
        for wrong in (np.zeros(3, np.float32), np.zeros(2, np.float16)):
            with pytest.raises(ValueError, match="a is float"):
                writer.write("a", wrong)


def entry(begin: int, end: int, dtype: str = "F32", shape: tuple = (2,)) -> dict:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


@pytest.mark.parametrize(
    "header, named",
    [
        ({"a": entry(0, 8), "b": entry(4, 12)}, "is truncated or not a safetensors file"),
        ({"a": entry(0, 8), "b": entry(12, 20)}, "is truncated or not a safetensors file"),
        ({"a": entry(0, 8, shape=(3,))}, "is truncated or not a safetensors file"),
        ({"a": entry(0, 8)}, "is truncated or not a safetensors file"),
        ({"a": entry(0, 8), "b": entry(8, 24, shape=(4,))}, "is truncated or not"),
        ({"a": {"dtype": "F32", "shape": [2]}}, "is truncated or not a safetensors file"),
        ([], "is truncated or not a safetensors file"),
        ({"a": entry(0, 16, "I64")}, "a is I64; supported are F64, F32"),
    ],
)
def test_damaged_headers_are_named(header, named, tmp_path):
    """All with 16 bytes of data."""
    content = json.dumps(header).encode()
    (tmp_path / "x").write_bytes(len(content).to_bytes(8, "little") + content + bytes(16))
    with pytest.raises(ValueError, match=named) as caught:
        safetensors_file.tensors(tmp_path / "x")
    assert str(tmp_path / "x") in str(caught.value)


@pytest.mark.parametrize("kept", [0, 5, 100, 0.5, -1])
def test_a_truncated_file_is_one_clear_error(kept, tmp_path):
    safetensors.numpy.save_file(TENSORS, path := tmp_path / "x.safetensors")
    content = path.read_bytes()
    path.write_bytes(content[: int(kept * len(content)) if isinstance(kept, float) else kept])
    with pytest.raises(ValueError, match=r"^\S*x\.safetensors is truncated .*; download it again$"):
        safetensors_file.tensors(path)
