"""Reads the tensors of PyTorch's files, `.bin` and `.pth`. Requires the extra [torch].

Such a file is a pickle, which can run any program when it is read. It is read with PyTorch's
`weights_only`, which makes tensors and plain containers and nothing else, and a file that needs
more is refused.
"""

import functools
import pickle
import re
import shlex
import zipfile
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from alpacare_jax.formats.safetensors_file import Tensor
from common import paths

TORCH_DTYPES = {
    "torch.float64": np.dtype(np.float64),
    "torch.float32": np.dtype(np.float32),
    "torch.float16": np.dtype(np.float16),
    "torch.bfloat16": np.dtype(ml_dtypes.bfloat16),
}
"""PyTorch dtype -> numpy dtype."""

BEFORE_1_6 = pickle.dumps(0x1950A86A20F9469CFC6C, 2)
"""How a file begins that PyTorch wrote before 1.6, or does with `_use_new_zipfile_serialization`
off."""

REWRITE = (
    'python -c "import sys, torch; torch.save(torch.load(sys.argv[1], weights_only=True), '
    'sys.argv[2])" {old} {new} && mv {new} {old}'
)
"""A command that brings such a file into today's form, as large in memory as it is."""


def tensors(path: Path, ignored: re.Pattern[str] | None = None) -> list[Tensor]:
    """Every tensor of a file, but for `ignored` keys; each stays on disk until it is read.

    Raises:
      ModuleNotFoundError: PyTorch is not installed.
      ValueError: the file is damaged, or holds something else than floating-point tensors by name.
    """
    found = {
        key: value
        for key, value in _load(path).items()
        if not (ignored and ignored.search(str(key)))
    }
    for key, value in found.items():
        kind = str(getattr(value, "dtype", type(value).__name__))
        if not isinstance(key, str) or kind not in TORCH_DTYPES:
            raise ValueError(
                f"{path}: {key} is {kind}; supported are the weights of one model by name, as "
                f"{', '.join(TORCH_DTYPES)}: take a release with safetensors"
            )
    return [
        Tensor(key, tuple(t.shape), TORCH_DTYPES[str(t.dtype)], functools.partial(_read, path, key))
        for key, t in found.items()
    ]


def _read(path: Path, key: str) -> np.ndarray:
    # Opened for this tensor alone, as safetensors_file does, and for the same reason.
    tensor = _load(path)[key].contiguous()
    if str(tensor.dtype) != "torch.bfloat16":
        return tensor.numpy()
    return (
        tensor.flatten()
        .view(_torch().int16)
        .numpy()
        .view(ml_dtypes.bfloat16)
        .reshape(tuple(tensor.shape))
    )


def _torch() -> Any:
    import torch

    return torch


def _load(path: Path) -> dict[Any, Any]:
    """The object of a file; its tensors are mapped from the disk."""
    torch = _torch()
    paths.require_content(path)
    if not zipfile.is_zipfile(path):
        with path.open("rb") as file:
            if file.read(len(BEFORE_1_6)) == BEFORE_1_6:
                old, new = shlex.quote(str(path)), shlex.quote(f"{path}.new")
                raise ValueError(
                    f"{path} has the form of PyTorch before 1.6, which has to be in memory as a "
                    f"whole; bring it into today's: {REWRITE.format(old=old, new=new)}"
                )
        raise ValueError(f"{path} is truncated, or not a file of PyTorch's; download it again")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except pickle.UnpicklingError as error:
        needed = re.search(r"GLOBAL ([\w.]+)", str(error))
        raise ValueError(
            f"{path} needs more than weights to be read{f' ({needed[1]})' if needed else ''}, "
            "which could run any program; take a release with safetensors"
        ) from None
    except (RuntimeError, EOFError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"{path} is damaged ({reason:.120}); download it again") from None
    if not isinstance(content, dict):
        raise ValueError(
            f"{path} holds a {type(content).__name__}, not weights by name; take a release with "
            "safetensors"
        )
    return content
