"""Safetensors files, read and written one tensor at a time.

The format (github.com/huggingface/safetensors, "Format"): 8 bytes with the length of the header,
little-endian; the header, JSON {key: {dtype, shape, data_offsets}}; the tensors without gaps, whose
offsets count from the end of the header.
"""

import contextlib
import dataclasses
import functools
import json
import math
import os
from collections.abc import Callable, Mapping
from pathlib import Path

import ml_dtypes
import numpy as np

from common import provenance

DTYPES = {
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
}
"""The format's name of a dtype -> numpy's."""

MAX_HEADER_BYTES = 100_000_000
"""The format's own limit."""


Spec = tuple[np.dtype, tuple[int, ...]]
"""Dtype and shape of a tensor."""


def nbytes(spec: Spec) -> int:
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
        return nbytes((self.dtype, self.shape))


def tensors(path: Path) -> list[Tensor]:
    """Every tensor of a file, in the order of the data.

    Raises:
      ValueError: the file is damaged, or holds a dtype that is not in `DTYPES`.
    """
    size = path.stat().st_size
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        start = 8 + length
        if not 0 < length <= MAX_HEADER_BYTES or start > size:
            raise _damaged(path, "its header ends beyond it")
        try:
            header = json.loads(file.read(length))
            header.pop("__metadata__", None)
            entries = sorted(
                (*entry["data_offsets"], key, entry["dtype"], tuple(map(int, entry["shape"])))
                for key, entry in header.items()
            )
        except (ValueError, TypeError, KeyError, AttributeError):
            raise _damaged(path, "its header is not one") from None
    result, end = [], 0
    for begin, stop, key, dtype, shape in entries:
        if dtype not in DTYPES:
            raise ValueError(f"{path}: {key} is {dtype}; only {', '.join(DTYPES)} are read")
        read = functools.partial(_read, path, start + begin, DTYPES[dtype], shape)
        tensor = Tensor(key, shape, DTYPES[dtype], read)
        if begin != end or stop - begin != tensor.nbytes:
            raise _damaged(path, f"{key} is not where its header says")
        result.append(tensor)
        end = stop
    if start + end != size:
        raise _damaged(path, f"{size:,} bytes instead of {start + end:,}")
    return result


def _read(path: Path, offset: int, dtype: np.dtype, shape: tuple[int, ...]) -> np.ndarray:
    # Read, not memory-mapped: mapped pages count as this process's memory while they are cached.
    array = np.fromfile(path, dtype, math.prod(shape), offset=offset)
    return array.reshape(shape)


def _damaged(path: Path, why: str) -> ValueError:
    return ValueError(f"{path} is truncated or not a safetensors file ({why}); download it again")


class FileWriter:
    """Writes one file, whose tensors may come in any order.

    It has its full length from the start: only once the `with` block has ended well is it whole.
    """

    def __init__(self, path: Path, specs: Mapping[str, Spec]):
        names = {dtype: name for name, dtype in DTYPES.items()}
        header, end = {"__metadata__": {"format": "pt"}}, 0
        self._specs, self._offsets, self._missing = specs, {}, set(specs)
        for key, (dtype, shape) in specs.items():
            begin, end = end, end + nbytes((dtype, shape))
            self._offsets[key] = begin
            header[key] = {"dtype": names[dtype], "shape": shape, "data_offsets": [begin, end]}
        content = json.dumps(header, separators=(",", ":")).encode()
        content += b" " * (-len(content) % 8)  # the data is aligned
        self._start = 8 + len(content)
        self._file = open(path, "wb")  # noqa: SIM115 - open until the block ends
        self._file.write(len(content).to_bytes(8, "little") + content)
        self._file.flush()
        # Room on the disk, not only length: a disk that is too small is told now, and writing out
        # of order costs a fifth.
        os.posix_fallocate(self._file.fileno(), 0, self._start + end)

    def write(self, key: str, array: np.ndarray) -> None:
        """Puts a C-contiguous tensor in its place; any thread may."""
        if (array.dtype, array.shape) != self._specs[key]:
            raise ValueError(f"{key} is {array.dtype} {array.shape}, not {self._specs[key]}")
        rest = memoryview(array.reshape(-1).view(np.uint8))
        offset = self._start + self._offsets[key]
        while rest:
            written = os.pwrite(self._file.fileno(), rest, offset)
            rest, offset = rest[written:], offset + written
        self._missing.discard(key)

    def __enter__(self) -> "FileWriter":
        return self

    def __exit__(self, kind: type | None, *_) -> None:
        self._file.close()
        if kind is None and self._missing:
            raise ValueError(f"never written: {', '.join(sorted(self._missing))}")


class FolderWriter:
    """Writes tensors, in any order, as transformers does: one file, or several and their index."""

    def __init__(self, folder: Path, specs: Mapping[str, Spec], max_bytes: int):
        """A file takes tensors, in the order of `specs`, while they fit into `max_bytes`."""
        shards: list[dict[str, Spec]] = [{}]
        room = max_bytes
        for key, spec in specs.items():
            if nbytes(spec) > room and shards[-1]:
                shards.append({})
                room = max_bytes
            shards[-1][key] = spec
            room -= nbytes(spec)
        self._folder, self._total = folder, sum(map(nbytes, specs.values()))
        self._writers: dict[str, FileWriter] = {}
        self._weight_map: dict[str, str] = {}
        self._files = contextlib.ExitStack()
        for i, shard in enumerate(shards, start=1):
            several = f"model-{i:05}-of-{len(shards):05}.safetensors"
            name = several if len(shards) > 1 else "model.safetensors"
            writer = self._files.enter_context(FileWriter(folder / name, shard))
            self._writers |= dict.fromkeys(shard, writer)
            self._weight_map |= dict.fromkeys(shard, name)

    def write(self, key: str, array: np.ndarray) -> None:
        """Puts a C-contiguous tensor in its place; any thread may."""
        self._writers[key].write(key, array)

    def __enter__(self) -> "FolderWriter":
        return self

    def __exit__(self, kind: type | None, *error) -> None:
        self._files.__exit__(kind, *error)
        if kind is None and len(set(self._weight_map.values())) > 1:
            index = {"metadata": {"total_size": self._total}, "weight_map": self._weight_map}
            provenance.write_json(self._folder / "model.safetensors.index.json", index)
