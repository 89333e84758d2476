"""The weights of a checkpoint, one layer at a time, for models larger than memory.

Orbax writes and restores a stacked weight as a whole. It stores each as a zarr array in an OCDBT
key-value store, both documented formats of tensorstore, the library it is built on; here that
library reads and writes the same arrays layer by layer. The result is an ordinary Orbax checkpoint,
which `checkpoint.load_params` and training restore like any other.
"""

import concurrent.futures
import contextlib
import dataclasses
import hashlib
import math
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path, PurePath
from typing import Any

import google_crc32c
import numpy as np
import tensorstore
from orbax.checkpoint import v1 as ocp

from alpacare_jax.checkpoints import checkpoint, digests, finite
from alpacare_jax.checkpoints.digests import Manifest
from alpacare_jax.model import params
from alpacare_jax.model.config import LlamaConfig
from alpacare_jax.model.params import WeightSpec
from common import paths
from common.messages import StatusLine

WORKERS = 2
"""Tensors converted at the same time: one waits for the disk while the other is transposed."""

SMALL_BYTES = 2**30
"""Larger tensors are converted one at a time."""

PIECE_BYTES = 2**31
"""Limit on the part of a stacked weight that is read at once. Chunks that are larger are read
several times: a checkpoint trained on many devices has chunks that span all layers."""

STRIP = 16
"""Matrix rows transposed together: few enough that their cache lines stay cached until used up.
8 times as fast as numpy's own copy at the dimensions of 7B, see docs/experiments/conversion.md."""


def contiguous(view: np.ndarray) -> np.ndarray:
    """`np.ascontiguousarray`, but fast for a large transposed matrix.

    A projection [D, N, H] as the transpose of Hugging Face's contiguous [N * H, D], float32:

        view.shape, view.strides = (D, N, H), (4, 4 * H * D, 4 * D)
        split, matrix.shape      = 1, (D, N * H)    the axis with the smallest stride ends the rows
    """
    if view.flags.c_contiguous:
        return view
    split = int(np.argmin(view.strides)) + 1
    matrix = view.reshape(math.prod(view.shape[:split]), -1)
    bits = matrix.view(f"u{view.itemsize}")  # numpy copies its own dtypes faster than bfloat16
    result = np.empty(bits.shape, bits.dtype)
    for start in range(0, bits.shape[1], STRIP):
        result[:, start : start + STRIP] = bits[:, start : start + STRIP]
    return result.view(view.dtype).reshape(view.shape)


def _spec(checkpoint_path: PurePath, weight_path: str) -> dict[str, Any]:
    """tensorstore's description of a weight's array."""
    files = {"driver": "file", "path": f"{checkpoint_path}/params/"}
    if paths.in_bucket(checkpoint_path):
        bucket, _, prefix = files["path"].removeprefix(paths.BUCKET).partition("/")
        files = {"driver": "gcs", "bucket": bucket, "path": prefix}
    store = {"driver": "ocdbt", "base": files, "path": f"{weight_path}/"}
    return {"driver": "zarr3", "kvstore": store}


class Writer(contextlib.AbstractContextManager["Writer"]):
    """Writes step 0 of a model directory, which appears once the `with` block succeeds.

    Args:
      directory: exists, without checkpoints.
      dtypes: weight path -> dtype.
    """

    def __init__(self, directory: Path, config: LlamaConfig, dtypes: Mapping[str, np.dtype]):
        self._directory = paths.absolute(directory)
        self._partial = self._directory / "weights.partial"
        # Orbax creates the folder and its metadata, which has no shapes; then the real arrays
        # replace its placeholders.
        placeholders = params.build_tree(config, lambda _: np.zeros(1, np.int8))
        ocp.save_checkpointables(self._partial, {"params": placeholders})
        self._arrays = {
            weight.path: _create(self._partial, weight, config, dtypes[weight.path])
            for weight in params.weight_specs(config)
        }
        self._digests: list[str] = []

    def write(self, weight: WeightSpec, layer: int | None, array: np.ndarray) -> None:
        """Writes one layer, or an unstacked weight (layer None); thread-safe.

        Raises:
          ValueError: it holds NaN, infinity or the like; OSError: the disk is full.
        """
        finite.require_usable(weight.hf_key.format(layer), array)
        crc = google_crc32c.value(array.tobytes())
        self._digests.append(f"{weight.path} {layer} {array.dtype} {array.shape} {crc}")
        target = self._arrays[weight.path]
        target = target if layer is None else target[layer]
        try:
            # Saves a copy; nothing changes the array before this returns.
            target.write(array, can_reference_source_data_indefinitely=True).result()
        except (OSError, ValueError, RuntimeError) as error:
            raise OSError(f"writing weights failed: {str(error).splitlines()[0]}") from error

    def __exit__(self, kind: type | None, *_) -> None:
        if kind is None:
            weights = hashlib.sha256("\n".join(sorted(self._digests)).encode()).hexdigest()
            digests.write(self._partial, Manifest(0, {}, weights, {}))
            (self._directory / "checkpoints").mkdir()
            os.replace(self._partial, self._directory / "checkpoints" / "0")


def _create(
    path: PurePath, weight: WeightSpec, config: LlamaConfig, dtype: np.dtype
) -> tensorstore.TensorStore:
    """Creates an array without data, with one chunk per layer.

    Uncompressed: a fifth larger on disk, but written and read at twice the speed.
    """
    shape = params.weight_shape(weight, config)
    chunk = (1, *shape[1:]) if weight.stacked else shape
    metadata = {
        "shape": shape,
        "data_type": dtype.name,
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": chunk}},
        "codecs": [{"name": "bytes", "configuration": {"endian": "little"}}],
    }
    # Orbax rejects arrays with missing chunks, so zeros are stored as well.
    options = {"metadata": metadata, "store_data_equal_to_fill_value": True}
    return tensorstore.open(
        _spec(path, weight.path) | options, create=True, delete_existing=True
    ).result()


def open_arrays(
    directory: PurePath, config: LlamaConfig, step: str
) -> dict[str, tensorstore.TensorStore]:
    """A checkpoint's arrays by weight path; no data is read yet. Raises: as `stored_weights`."""
    path, stored = checkpoint.stored_weights(directory, config, step)
    return {name: tensorstore.open(_spec(path, name), open=True).result() for name in stored}


@dataclasses.dataclass(frozen=True)
class Piece:
    """The unit of reading: an unstacked weight, or some layers of a stacked one."""

    weight: WeightSpec
    layers: range | None
    array: tensorstore.TensorStore

    @property
    def nbytes(self) -> int:
        """Size of the data."""
        return math.prod(self.array.shape) * self.array.dtype.numpy_dtype.itemsize

    def read(self) -> list[tuple[int | None, np.ndarray]]:
        """(layer, array) of each layer; layer is None if the weight is not stacked.

        Raises ValueError as `Writer.write`.
        """
        array = self.array.read().result()
        layers = [None] if self.layers is None else self.layers
        result = list(zip(layers, array[None] if self.layers is None else array, strict=True))
        for layer, one in result:
            finite.require_usable(self.weight.hf_key.format(layer), one)
        return result


def pieces(arrays: Mapping[str, tensorstore.TensorStore], config: LlamaConfig) -> list[Piece]:
    """The whole checkpoint, in the order of a Hugging Face file, so that writes are sequential."""
    result = []
    for weight in params.weight_specs(config):
        array = arrays[weight.path]
        if not weight.stacked:
            result.append(Piece(weight, None, array))
            continue
        layer_bytes = Piece(weight, None, array[0]).nbytes
        chunk = array.chunk_layout.read_chunk.shape or (1,)
        count = min(chunk[0] or 1, max(1, PIECE_BYTES // layer_bytes))
        for start in range(0, config.num_hidden_layers, count):
            layers = range(start, min(start + count, config.num_hidden_layers))
            result.append(Piece(weight, layers, array[layers.start : layers.stop]))
    return sorted(result, key=lambda piece: piece.layers.start if piece.layers else -1)


def for_each(convert: Callable[[Any], None], items: Sequence[Any], largest_bytes: int) -> None:
    """Calls convert(item) for each item in a few threads; after an error no further one starts.

    A status line counts the items.
    """
    workers, status = WORKERS if largest_bytes <= SMALL_BYTES else 1, StatusLine()
    with concurrent.futures.ThreadPoolExecutor(workers) as pool:
        for done, _ in enumerate(pool.map(convert, items), start=1):
            if status.due():
                status.show(f"{done:,}/{len(items):,} parts of the weights converted")
    status.close()
