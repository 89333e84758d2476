"""The weights of a checkpoint, one layer at a time, for models larger than memory.

Orbax writes and restores stacked weights whole. It keeps each as a zarr array in an OCDBT store,
both documented formats of tensorstore, the library that it uses itself; through that library the
same arrays are written and read here layer by layer. What is written is an ordinary Orbax
checkpoint: `checkpoint.load_params` and training restore it as they do any other.
"""

import concurrent.futures
import dataclasses
import math
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorstore
from orbax.checkpoint import v1 as ocp

from alpacare_jax.checkpoints import checkpoint
from alpacare_jax.model import params
from alpacare_jax.model.config import LlamaConfig
from alpacare_jax.model.params import WeightSpec
from common import paths

WORKERS = 2
"""Tensors that are converted at the same time: one may wait for the disk while another is turned
round."""

SMALL_BYTES = 2**30
"""What is larger is converted alone."""

PIECE_BYTES = 2**31
"""At most so much of a stacked weight is read at once. Where chunks hold more than that, each is
read several times: a checkpoint that was trained on many devices has chunks of all layers."""

STRIP = 16
"""Rows of a matrix that are transposed together: few enough that their cache lines stay until they
are used up. 8 times as fast as numpy's own copy at 7B's dimensions, see EXPERIMENTS.md."""


def contiguous(view: np.ndarray) -> np.ndarray:
    """`np.ascontiguousarray`, but quick for a large matrix that was transposed."""
    if view.flags.c_contiguous:
        return view
    split = int(np.argmin(view.strides)) + 1  # these axes are the columns of what was transposed
    matrix = view.reshape(math.prod(view.shape[:split]), -1)
    bits = matrix.view(f"u{view.itemsize}")  # numpy copies its own dtypes faster than bfloat16
    result = np.empty(bits.shape, bits.dtype)
    for start in range(0, bits.shape[1], STRIP):
        result[:, start : start + STRIP] = bits[:, start : start + STRIP]
    return result.view(view.dtype).reshape(view.shape)


def _spec(checkpoint_path: Path, weight_path: str) -> dict:
    files = {"driver": "file", "path": f"{checkpoint_path}/params/"}
    if paths.in_bucket(checkpoint_path):
        bucket, _, place = files["path"].removeprefix(paths.BUCKET).partition("/")
        files = {"driver": "gcs", "bucket": bucket, "path": place}
    store = {"driver": "ocdbt", "base": files, "path": f"{weight_path}/"}
    return {"driver": "zarr3", "kvstore": store}


class Writer:
    """Writes step 0 of a model directory; it appears when the `with` block ends well."""

    def __init__(self, directory: Path, config: LlamaConfig, dtypes: Mapping[str, np.dtype]):
        """dtypes: of each weight, by its path."""
        self._directory = directory.absolute()
        self._partial = self._directory / "weights.partial"
        # Orbax makes the folder and its metadata, which holds no shapes; then real arrays take the
        # place of its numbers.
        number = np.zeros(1, np.int8)
        ocp.save_checkpointables(
            self._partial, {"params": params.build_tree(config, lambda _: number)}
        )
        self._arrays = {
            weight.path: _create(self._partial, weight, config, dtypes[weight.path])
            for weight in params.weight_specs(config)
        }

    def write(self, weight: WeightSpec, layer: int | None, array: np.ndarray) -> None:
        """Writes one layer, or a whole weight that is not stacked; any thread may.

        Raises:
          OSError: the disk is full or failed.
        """
        place = self._arrays[weight.path]
        place = place if layer is None else place[layer]
        try:
            # Saves a copy; nobody changes the array before this returns.
            place.write(array, can_reference_source_data_indefinitely=True).result()
        except (OSError, ValueError, RuntimeError) as error:
            raise OSError(f"writing weights failed: {str(error).splitlines()[0]}") from error

    def __enter__(self) -> "Writer":
        return self

    def __exit__(self, kind: type | None, *_) -> None:
        if kind is None:
            (self._directory / "checkpoints").mkdir()
            os.replace(self._partial, self._directory / "checkpoints" / "0")


def _create(
    path: Path, weight: WeightSpec, config: LlamaConfig, dtype: np.dtype
) -> tensorstore.TensorStore:
    """An array without data, whose chunks will be layers.

    Uncompressed: a fifth more on disk, but written and read at twice the speed.
    """
    shape = params.weight_shape(weight, config)
    chunk = (1, *shape[1:]) if weight.stacked else shape
    metadata = {
        "shape": shape,
        "data_type": dtype.name,
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": chunk}},
        "codecs": [{"name": "bytes", "configuration": {"endian": "little"}}],
    }
    # Orbax refuses arrays with absent chunks, so zeros too are stored.
    spec = (
        _spec(path, weight.path) | {"metadata": metadata} | {"store_data_equal_to_fill_value": True}
    )
    return tensorstore.open(spec, create=True, delete_existing=True).result()


def open_arrays(
    directory: Path, config: LlamaConfig, step: str
) -> dict[str, tensorstore.TensorStore]:
    """The arrays of a checkpoint by weight path; nothing is read yet.

    Raises:
      ValueError: a stored weight is missing, extra or misshapen for `config`; it is named.
    """
    path, stored = checkpoint.stored_weights(directory, config, step)
    return {name: tensorstore.open(_spec(path, name), open=True).result() for name in stored}


@dataclasses.dataclass(frozen=True)
class Piece:
    """What comes from the disk at once: a weight, or layers of one that is stacked."""

    weight: WeightSpec
    layers: range | None
    array: tensorstore.TensorStore

    @property
    def nbytes(self) -> int:
        return math.prod(self.array.shape) * self.array.dtype.numpy_dtype.itemsize

    def read(self) -> list[tuple[int | None, np.ndarray]]:
        """(layer, array) of each layer; layer is None where the weight is not stacked."""
        array = self.array.read().result()
        return (
            [(None, array)] if self.layers is None else list(zip(self.layers, array, strict=True))
        )


def pieces(arrays: Mapping[str, tensorstore.TensorStore], config: LlamaConfig) -> list[Piece]:
    """All of a checkpoint, in the order of a Hugging Face file, which the disk likes better."""
    result = []
    for weight in params.weight_specs(config):
        array = arrays[weight.path]
        if not weight.stacked:
            result.append(Piece(weight, None, array))
            continue
        layer_bytes = Piece(weight, None, array[0]).nbytes
        count = min(array.chunk_layout.read_chunk.shape[0], max(1, PIECE_BYTES // layer_bytes))
        for start in range(0, config.num_hidden_layers, count):
            layers = range(start, min(start + count, config.num_hidden_layers))
            result.append(Piece(weight, layers, array[layers.start : layers.stop]))
    return sorted(result, key=lambda piece: piece.layers.start if piece.layers else -1)


def for_each(work: Callable[[Any], None], items: Sequence[Any], largest_bytes: int) -> None:
    """Calls work(item) for each item, some at a time; after an error no further one starts."""
    workers = WORKERS if largest_bytes <= SMALL_BYTES else 1
    with concurrent.futures.ThreadPoolExecutor(workers) as pool:
        for _ in pool.map(work, items):
            pass
