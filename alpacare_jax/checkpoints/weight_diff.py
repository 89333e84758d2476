"""The difference of a fine-tuned model to its base, as Stanford's Alpaca was released.

    diff  = tuned - base       recover:  tuned = base + diff       in float32, tensor by tensor

Where the tuned model has more tokens than its base, as Alpaca has "[PAD]", the new rows of the base
are the mean of its others (stanford_alpaca weight_diff.py).
"""

import contextlib
import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from alpacare_jax.checkpoints import layerwise, model_folder
from alpacare_jax.formats import hf_weights, safetensors_file
from alpacare_jax.formats.safetensors_file import Tensor
from alpacare_jax.model.config import VARIANTS, LlamaConfig
from common import provenance

PUBLISHED_SUM = 50637.1836
"""Sum of all numbers of Alpaca 7B, from tatsu-lab/alpaca-7b-wdiff (stanford_alpaca
weight_diff.py)."""

TOLERANCE = 0.05
"""Stanford allows 0.01, for the order in which one version of PyTorch adds float32."""


@dataclasses.dataclass(frozen=True)
class Folder:
    """An open Hugging Face folder."""

    path: Path
    config: LlamaConfig
    files: list[Path]
    tensors: dict[str, Tensor]

    @classmethod
    def open(cls, path: Path) -> "Folder":
        """Raises as `hf_weights.files`, `tensors` and `assign`."""
        config, files = model_folder.read_config(path), hf_weights.files(path)
        tensors, _ = hf_weights.tensors(files)
        checked = hf_weights.assign(tensors, config)
        return cls(path, config, files, {tensor.key: tensor for *_, tensor in checked})


def _check(base: Folder, other: Folder) -> None:
    """Raises ValueError if `other` is not the base's model with at most a few more tokens."""
    ours, theirs = base.config.sizes, other.config.sizes
    differing = [name for name in theirs if name != "V" and ours[name] != theirs[name]]
    new = theirs["V"] - ours["V"]
    few = 0 <= new <= model_folder.MAX_NEW_ROWS
    if differing or base.tensors.keys() != other.tensors.keys() or not few:
        sizes = ", ".join(f"{name} {ours[name]:,} and {theirs[name]:,}" for name in differing)
        raise ValueError(
            f"{base.path} is not the base of {other.path}: their sizes are "
            f"{sizes or 'the same'}, their tokens {ours['V']:,} and {theirs['V']:,}"
        )


class Sum:
    """The sum of all numbers of a model, as Stanford's script adds them."""

    def __init__(self, config: LlamaConfig):
        self._config, self._sums = config, dict[str, np.float32]()

    def add(self, key: str, array: np.ndarray) -> None:
        """Adds a tensor; thread-safe, in any order."""
        self._sums[key] = np.float32(array.sum(dtype=np.float64))

    def total(self) -> float:
        """The total in float32, in the order of the model's state; RoPE's buffers count too.

        PyTorch's state of that time had the frequencies of RoPE in every layer.
        """
        half = np.arange(0, self._config.head_dim, 2) / self._config.head_dim
        frequencies = np.float32((1 / self._config.rope_theta**half).sum())
        total = np.float32(0)
        for key in hf_weights.by_key(self._config):
            total += self._sums[key]
            if key.endswith("self_attn.o_proj.weight"):
                total += frequencies
        return float(total)


def _combine(
    base: Folder,
    other: Folder,
    target: Path,
    dtype: str,
    result: Callable[[np.ndarray, np.ndarray], np.ndarray],
    finish: Callable[[Path, Sum, Sum], None],
) -> None:
    """Writes a Hugging Face folder of result(base, other), with the settings of `other`.

    `finish` gets the folder before it appears, and the sums of `other` and of what was written.
    """
    _check(base, other)
    out = np.dtype(dtype or np.float32) if dtype != "bfloat16" else safetensors_file.DTYPES["BF16"]
    specs = {key: (out, tensor.shape) for key, tensor in other.tensors.items()}
    read, written = Sum(other.config), Sum(other.config)
    total = sum(map(safetensors_file.nbytes, specs.values()))
    with model_folder.new_directory(target, total) as partial, contextlib.ExitStack() as stack:
        writer = stack.enter_context(
            safetensors_file.FolderWriter(partial, specs, safetensors_file.MAX_SHARD_BYTES)
        )

        def convert(key: str) -> None:
            theirs = other.tensors[key].read().astype(np.float32)
            ours = base.tensors[key].read().astype(np.float32)
            made = result(hf_weights.resized(ours, len(theirs)), theirs)
            read.add(key, theirs)
            written.add(key, made)
            writer.write(key, layerwise.contiguous(made.astype(out)))

        keys = list(other.tensors)
        layerwise.for_each(convert, keys, 2 * max(t.nbytes for t in other.tensors.values()))
        stack.close()
        model_folder.copy_model_files(other.path, partial)
        finish(partial, read, written)


def make(base: Path, tuned: Path, target: Path) -> None:
    """Writes `tuned` - `base` to a Hugging Face folder, and the sum of `tuned` to its run.json.

    Raises:
      ValueError, OSError: they are checked before anything is written.
    """
    opened = Folder.open(base), Folder.open(tuned)

    def finish(partial: Path, read: Sum, written: Sum) -> None:
        del written
        record = provenance.describe(command="convert diff", sum=read.total())
        del record["host"]
        provenance.write_json(partial / "run.json", record | {"end": provenance.now()})

    _combine(*opened, target, "float32", lambda ours, theirs: theirs - ours, finish)


def expected_sum(folder: Folder) -> float | None:
    """The sum of the model of a diff: its own, or for one without, that of Alpaca 7B."""
    found = provenance.read_record(folder.path / "run.json").get("sum")
    alpaca = VARIANTS["llama-7b"].sizes | {"V": 32_001}
    if found is None and folder.config.sizes == alpaca:
        return PUBLISHED_SUM
    return None if found is None else float(found)


def recover(
    base: Path, diff: Path, target: Path, dtype: str, report: Callable[[str], None]
) -> Sequence[Path]:
    """Writes `base` + `diff` to a Hugging Face folder; returns the weight files that were read.

    Raises:
      ValueError, OSError: as `make`, and if the sum of the result is not that of the tuned model.
    """
    opened = Folder.open(base), Folder.open(diff)
    expected = expected_sum(opened[1])

    def finish(partial: Path, read: Sum, written: Sum) -> None:
        del read
        total = written.total()
        if expected is None:
            report(f"the sum of all numbers is {total:.4f}; none is known to compare it with")
        elif abs(total - expected) > TOLERANCE:
            raise ValueError(
                f"the sum of all numbers is {total:.4f}, not {expected:.4f}: {base} is not the "
                f"base that {diff} was made from, or one of them is damaged; download them again"
            )
        else:
            report(f"the sum of all numbers is {total:.4f}, as it should be ({expected:.4f})")
        model_folder.set_dtype(partial / "config.json", dtype or "float32")
        record = provenance.describe(command="convert recover", sum=total)
        provenance.write_json(partial / "run.json", record | {"end": provenance.now()})

    _combine(*opened, target, dtype, lambda ours, theirs: ours + theirs, finish)
    return [path for folder in opened for path in folder.files]
