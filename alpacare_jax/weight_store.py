"""The weights of a checkpoint, one layer at a time, for models larger than memory.

Orbax writes and restores stacked weights whole. It keeps each as a zarr array in an OCDBT store,
both documented formats of tensorstore, the library that it uses itself; through that library the
same arrays are written and read here layer by layer. What is written is an ordinary Orbax
checkpoint: `checkpoint.load_params` and training restore it as they do any other.
"""

import collections
import math
import os
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import tensorstore
from orbax.checkpoint import v1 as ocp

from alpacare_jax import checkpoint, params
from alpacare_jax.llama_config import LlamaConfig
from alpacare_jax.params import Weight

IN_FLIGHT = 2
"""Layers that are on their way to or from the disk while another is worked on."""

STRIP = 16
"""Rows of a matrix that are transposed together: few enough that their cache lines stay until they
are used up. 8 times as fast as numpy's own copy at 7B's dimensions, see EXPERIMENTS.md."""


def contiguous(view: np.ndarray) -> np.ndarray:
    """`np.ascontiguousarray`, but quick for a large matrix that was transposed."""
    if view.flags.c_contiguous:
        return view
    split = int(np.argmin(view.strides)) + 1  # these axes are the columns of what was transposed
    matrix = view.reshape(math.prod(view.shape[:split]), -1)
    result = np.empty(matrix.shape, matrix.dtype)
    for start in range(0, matrix.shape[1], STRIP):
        result[:, start : start + STRIP] = matrix[:, start : start + STRIP]
    return result.reshape(view.shape)


def _spec(checkpoint_path: Path, weight_path: str) -> dict:
    store = {"driver": "ocdbt", "base": f"file://{checkpoint_path}/params/"}
    return {"driver": "zarr3", "kvstore": store | {"path": f"{weight_path}/"}}


class Writer:
    """Writes step 0 of a model directory; it appears when the `with` block ends well."""

    def __init__(self, directory: Path, config: LlamaConfig, dtypes: Mapping[str, np.dtype]):
        """dtypes: of each weight, by its path."""
        self._directory = directory.absolute()
        self._partial = self._directory / "weights.partial"
        self._writes: collections.deque[tensorstore.Future] = collections.deque()
        # Orbax makes the folder and its metadata, which holds no shapes; then real arrays take the
        # place of its numbers.
        number = np.zeros(1, np.int8)
        ocp.save_checkpointables(self._partial, {"params": params.tree(config, lambda _: number)})
        self._arrays = {
            weight.path: _create(self._partial, weight, config, dtypes[weight.path])
            for weight in params.weights(config)
        }

    def write(self, weight: Weight, layer: int | None, array: np.ndarray) -> None:
        """Starts to write one layer, or a whole weight that is not stacked.

        The array must not change any more: the write under way refers to it.
        """
        while len(self._writes) >= IN_FLIGHT:
            self._finish_one()
        place = self._arrays[weight.path]
        place = place if layer is None else place[layer]
        self._writes.append(place.write(array, can_reference_source_data_indefinitely=True))

    def _finish_one(self) -> None:
        try:
            self._writes.popleft().result()
        except (OSError, ValueError, RuntimeError) as error:
            raise OSError(f"writing the weights failed: {str(error).splitlines()[0]}") from error

    def __enter__(self) -> "Writer":
        return self

    def __exit__(self, kind: type | None, *_) -> None:
        if kind is not None:
            for write in self._writes:  # nothing may be written any more once this returns
                write.exception()
            return
        while self._writes:
            self._finish_one()
        (self._directory / "checkpoints").mkdir()
        os.replace(self._partial, self._directory / "checkpoints" / "0")


def _create(
    path: Path, weight: Weight, config: LlamaConfig, dtype: np.dtype
) -> tensorstore.TensorStore:
    """An array of zeros on disk whose chunks are layers, uncompressed: weights hardly shrink."""
    shape = params.shape(weight, config)
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


def read(
    arrays: Mapping[str, tensorstore.TensorStore], config: LlamaConfig
) -> Iterator[tuple[Weight, int | None, np.ndarray]]:
    """(weight, layer, array) of every layer; layer is None where the weight is not stacked.

    A chunk comes from the disk as a whole: where it spans layers, they are read together.
    """
    for weight in params.weights(config):
        array = arrays[weight.path]
        if not weight.stacked:
            yield weight, None, array.read().result()
            continue
        count = array.chunk_layout.read_chunk.shape[0]
        starts = range(0, array.shape[0], count)
        for start, layers in zip(starts, _read_ahead(array, starts, count), strict=True):
            for i in range(len(layers)):
                # A copy of one of many, so that nobody's view keeps the many in memory.
                yield weight, start + i, layers[i] if count == 1 else layers[i].copy()
            del layers


def _read_ahead(array: tensorstore.TensorStore, starts: range, count: int) -> Iterator[np.ndarray]:
    """`count` layers from each start; the next ones are on their way while these are worked on."""
    reads: collections.deque[tensorstore.Future] = collections.deque()
    for start in starts:
        reads.append(array[start : start + count].read())
        if len(reads) == IN_FLIGHT:
            yield reads.popleft().result()
    while reads:
        yield reads.popleft().result()
