"""Safetensors files: read by the package of that name, and written, one tensor at a time.

The package only writes whole files, from tensors that are all in memory. The format
(github.com/huggingface/safetensors, "Format"): 8 bytes with the length of the header,
little-endian; the header, JSON {key: {dtype, shape, data_offsets}}; the tensors without gaps, at
offsets counted from the end of the header.
"""

import contextlib
import dataclasses
import functools
import json
import math
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import ml_dtypes
import numpy as np
import safetensors

from common import paths, provenance

DTYPES = {
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
}
"""Safetensors dtype name -> numpy dtype."""

MAX_SHARD_BYTES = 5_000_000_000
"""The default of transformers."""

Spec = tuple[np.dtype, tuple[int, ...]]
"""Dtype and shape of a tensor."""


def nbytes(spec: Spec) -> int:
    """Size of a tensor's data."""
    dtype, shape = spec
    return math.prod(shape) * dtype.itemsize


@dataclasses.dataclass(frozen=True)
class Tensor:
    """A tensor that stays on disk until `read` is called."""

    key: str
    shape: tuple[int, ...]
    dtype: np.dtype
    read: Callable[[], np.ndarray]

    @property
    def nbytes(self) -> int:
        """Size of the data."""
        return nbytes((self.dtype, self.shape))


def tensors(path: Path, ignored: re.Pattern[str] | None = None) -> list[Tensor]:
    """Every tensor of a file, in the order of the data, but for `ignored` keys.

    Raises:
      ValueError: the file is damaged, or holds a dtype that is not in `DTYPES`.
    """
    paths.require_content(path)
    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            slices = {key: file.get_slice(key) for key in file.offset_keys()}
            found = {
                key: (s.get_dtype(), tuple(s.get_shape()))
                for key, s in slices.items()
                if not (ignored and ignored.search(key))
            }
    except safetensors.SafetensorError as error:
        raise ValueError(
            f"{path} is truncated or not a safetensors file ({error}); download it again"
        ) from None
    for key, (dtype, _) in found.items():
        if dtype not in DTYPES:
            raise ValueError(
                f"{path}: {key} is {dtype}; supported are {', '.join(DTYPES)}: take the model "
                "before it was quantised"
            )
    return [
        Tensor(key, shape, DTYPES[dtype], functools.partial(_read, path, key))
        for key, (dtype, shape) in found.items()
    ]


def _read(path: Path, key: str) -> np.ndarray:
    # Opened for this tensor alone: the file is memory-mapped, and every page read counts as memory
    # of this process until the file is closed.
    with safetensors.safe_open(path, framework="numpy") as file:
        return file.get_tensor(key)


class FolderWriter(contextlib.AbstractContextManager["FolderWriter"]):
    """Writes tensors, in any order, as transformers does: one file, or shards and their index.

    Files have their full length from the start; they are complete once the `with` block succeeds.

    Raises:
      OSError: the disk has no room for them.
      ValueError: the block ends without an error, but a tensor was never written.
    """

    def __init__(self, folder: Path, specs: Mapping[str, Spec], max_bytes: int):
        """Tensors are assigned to files in the order of `specs`, up to `max_bytes` per file."""
        shards: list[dict[str, Spec]] = [{}]
        room = max_bytes
        for key, spec in specs.items():
            if nbytes(spec) > room and shards[-1]:
                shards.append({})
                room = max_bytes
            shards[-1][key] = spec
            room -= nbytes(spec)
        self._folder, self._specs, self._missing = folder, specs, set(specs)
        self._positions: dict[str, tuple[BinaryIO, int]] = {}  # file and offset in it
        self._weight_map: dict[str, str] = {}
        self._files = contextlib.ExitStack()
        for i, shard in enumerate(shards, start=1):
            suffix = f"-{i:05}-of-{len(shards):05}" if len(shards) > 1 else ""
            name = f"model{suffix}.safetensors"
            file = self._files.enter_context((folder / name).open("wb"))
            for key, offset in _allocate(file, shard).items():
                self._positions[key] = (file, offset)
                self._weight_map[key] = name

    def write(self, key: str, array: np.ndarray) -> None:
        """Writes a C-contiguous tensor of the declared dtype and shape; thread-safe."""
        if (array.dtype, array.shape) != self._specs[key]:
            raise ValueError(f"{key} is {array.dtype} {array.shape}, not {self._specs[key]}")
        rest = array.reshape(-1).view(np.uint8).data
        file, offset = self._positions[key]
        while rest:
            written = os.pwrite(file.fileno(), rest, offset)
            rest, offset = rest[written:], offset + written
        self._missing.discard(key)

    def __exit__(self, kind: type | None, *_) -> None:
        self._files.close()
        if kind is None and self._missing:
            raise ValueError(f"never written: {', '.join(sorted(self._missing))}")
        if kind is None and len(set(self._weight_map.values())) > 1:
            total = sum(map(nbytes, self._specs.values()))
            index = {"metadata": {"total_size": total}, "weight_map": self._weight_map}
            provenance.write_json(self._folder / "model.safetensors.index.json", index)


def _allocate(file: BinaryIO, specs: Mapping[str, Spec]) -> dict[str, int]:
    """Writes the header of a file and gives it its full length; key -> offset of the tensor."""
    names, end = {dtype: name for name, dtype in DTYPES.items()}, 0
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    begins: dict[str, int] = {}
    for key, (dtype, shape) in specs.items():
        begins[key], end = end, end + nbytes((dtype, shape))
        offsets = [begins[key], end]
        header[key] = {"dtype": names[dtype], "shape": shape, "data_offsets": offsets}
    content = json.dumps(header, separators=(",", ":")).encode()
    content += b" " * (-len(content) % 8)  # the data is aligned
    file.write(len(content).to_bytes(8, "little") + content)
    file.flush()
    # Allocates blocks, not only length: a disk that is too small fails here, and writing out of
    # order would cost a fifth.
    os.posix_fallocate(file.fileno(), 0, file.tell() + end)
    return {key: file.tell() + begin for key, begin in begins.items()}
