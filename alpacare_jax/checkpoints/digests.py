"""The manifest of a saved step: every file with its size and checksum, so that damage is found.

`checkpoints/STEP/manifest.json` is written last. A step without one is not whole: its save was cut
off, or half of it was copied.

    {"step": 6, "metrics": {"eval_loss": 1.25}, "weights": "9f2c...",
     "files": {"params/manifest.ocdbt": {"size": 118, "crc32c": "5d0a1f77"}, ...},
     "crc32c": "03be51c2"}      of everything before it

crc32c finds every single flipped bit, and is the checksum that Google Cloud Storage keeps of each
object: in a bucket nothing is downloaded to check a file.
"""

import base64
import concurrent.futures
import dataclasses
import errno
import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import google_crc32c
from etils import epath

from common import paths, provenance

NAME = "manifest.json"
BLOCK_BYTES = 2**20
THREADS = 8
"""Files read at the same time: more than cores, for a disk has queues."""

UNREADABLE = (errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ELOOP, errno.EIO)
"""The system's errors of files that are not there, are no files, or are in a bad sector."""


class DamagedError(ValueError):
    """A saved step is not as it was written; the text names the file and what is wrong."""


@dataclasses.dataclass(frozen=True)
class Manifest:
    """What a saved step consists of."""

    step: int
    metrics: dict[str, float]  # eval_loss, where it was evaluated
    weights: str  # digest of the weights' values, wherever and however often they are stored
    files: dict[str, dict[str, Any]]  # name below the step -> size in bytes, crc32c in hex

    def text(self) -> str:
        """The content of the file, its own checksum included."""
        content = dataclasses.asdict(self)
        crc = _hex(google_crc32c.value(json.dumps(content).encode()))
        return json.dumps(content | {"crc32c": crc}, indent=1) + "\n"


def _hex(crc: int) -> str:
    return f"{crc:08x}"


def write(folder: epath.Path, manifest: Manifest) -> None:
    """Writes the manifest of a step, with all files in its folder."""
    names = sorted(_sizes(folder))
    files = dict(zip(names, _measure(folder, names), strict=True))
    whole = dataclasses.replace(manifest, files=files)
    provenance.write_text(folder / NAME, whole.text())


def read(folder: epath.Path) -> Manifest:
    """The manifest of a step.

    Raises:
      DamagedError: there is none, it is damaged, or it is of another step.
    """
    try:
        text = (folder / NAME).read_bytes().decode()
    except OSError as error:
        if not isinstance(error, FileNotFoundError) and error.errno not in UNREADABLE:
            raise  # a bucket's errors have no number
        raise DamagedError(f"it has no {NAME}: half copied, or saved by an older version") from None
    except UnicodeDecodeError:
        raise DamagedError(f"{NAME} is damaged") from None
    try:
        content = json.loads(text)
        content.pop("crc32c")
        manifest = Manifest(**content)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        raise DamagedError(f"{NAME} is damaged") from None
    if manifest.text() != text:
        raise DamagedError(f"{NAME} is damaged")
    if folder.name != str(manifest.step):
        raise DamagedError(f"{NAME} is of step {manifest.step}")
    return manifest


def missing_or_extra(folder: epath.Path, manifest: Manifest) -> str:
    """What is wrong with the names and sizes of a step's files; "" if nothing."""
    found = _sizes(folder)
    for name in sorted(manifest.files.keys() | found.keys()):
        if name not in found:
            return f"{name} is missing"
        if name not in manifest.files:
            return f"{name} is not a file of this step; delete it"
        if found[name] != (size := manifest.files[name]["size"]):
            return f"{name} has {found[name]:,} bytes instead of {size:,}"
    return ""


def first_damaged(folder: epath.Path, manifest: Manifest, names: Sequence[str]) -> str | None:
    """The first of these files whose content is not as it was written; they are read in threads."""
    for name, found in zip(names, _measure(folder, names), strict=True):
        if found != manifest.files[name]:
            return name
    return None


def _sizes(folder: epath.Path) -> dict[str, int]:
    """Name below `folder` -> size in bytes, of every file but the manifest."""
    if paths.in_bucket(folder):
        sizes = {name: int(object_["size"]) for name, object_ in _objects(folder).items()}
    else:
        found = (Path(at, name) for at, _, names in os.walk(folder) for name in names)
        there = (path for path in found if path.exists())  # a link may lead nowhere
        sizes = {path.relative_to(folder).as_posix(): path.stat().st_size for path in there}
    return {name: size for name, size in sizes.items() if name != NAME}


def _objects(folder: epath.Path) -> dict[str, dict[str, Any]]:
    """Name below a bucket's folder -> what the bucket knows of the object."""
    import fsspec

    prefix = str(folder).removeprefix(paths.BUCKET) + "/"
    found: Any = fsspec.filesystem("gcs").find(prefix, detail=True)
    return {name.removeprefix(prefix): object_ for name, object_ in found.items()}


def _measure(folder: epath.Path, names: Iterable[str]) -> Iterable[dict[str, Any] | None]:
    """Size and crc32c of each file, as a manifest has them; None for one that is not there."""
    objects = _objects(folder) if paths.in_bucket(folder) else None

    def measure(name: str) -> dict[str, Any] | None:
        if objects is None:
            return _measure_file(folder / name)
        if not (known := objects.get(name)):
            return None
        return {"size": int(known["size"]), "crc32c": base64.b64decode(known["crc32c"]).hex()}

    with concurrent.futures.ThreadPoolExecutor(THREADS) as pool:
        return list(pool.map(measure, names))


def _measure_file(path: epath.Path) -> dict[str, Any] | None:
    crc = size = 0
    try:
        with open(path, "rb", buffering=0) as file:
            while block := file.read(BLOCK_BYTES):
                crc, size = google_crc32c.extend(crc, block), size + len(block)
    except OSError as error:
        if error.errno in UNREADABLE:
            return None
        raise
    return {"size": size, "crc32c": _hex(crc)}
