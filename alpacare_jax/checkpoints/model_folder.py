"""Model folders: `config.json` and the tokenizer's files, and folders that appear complete."""

import contextlib
import json
import os
import platform
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path, PurePath

from etils import epath

from alpacare_jax.data import tokenizers
from alpacare_jax.model.config import LlamaConfig

MODEL_FILES = ("config.json", "generation_config.json", *tokenizers.TOKENIZER_FILES)
"""Files that are copied along with the weights, unchanged."""

MAX_UNUSED_ROWS = 1024
"""Vocabularies are rounded up for the hardware; a wider gap means another model's tokenizer."""


def read_config(directory: str | PurePath) -> LlamaConfig:
    """The model's configuration, from `config.json`.

    Raises:
      FileNotFoundError: the folder has no `config.json`.
      ValueError: it is not JSON, or not of a LLaMA that is implemented.
    """
    path = epath.Path(directory) / "config.json"
    if not path.is_file():
        raise FileNotFoundError(
            f"{directory} has no config.json: not a model directory; give a Hugging Face folder "
            "to convert, or the output of python -m alpacare_jax.convert"
        )
    try:
        return LlamaConfig.from_hf(json.loads(path.read_text(encoding="utf-8")))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}: not JSON: {error.msg}") from None


def load_tokenizer(directory: str | PurePath) -> tokenizers.Tokenizer:
    """The tokenizer of a model folder. Raises: as `tokenizers.load` and `check_matches`."""
    config, tokenizer = read_config(directory), tokenizers.load(directory)
    check_matches(tokenizer, config)
    return tokenizer


def check_matches(tokenizer: tokenizers.Tokenizer, config: LlamaConfig) -> None:
    """Raises ValueError if a tokenizer does not belong to the model of a `config.json`.

    An id beyond the embedding would read a wrong row without an error, and a model stops only at
    the EOS it was trained on. An id missing from `config.json` or the tokenizer is not compared.
    """
    remedy = "copy the tokenizer files from the model's folder"
    if not 0 <= config.vocab_size - tokenizer.vocab_size <= MAX_UNUSED_ROWS:
        raise ValueError(
            f"tokenizer has {tokenizer.vocab_size:,} ids but the model {config.vocab_size:,} "
            "embedding rows (at least as many are required, at most "
            f"{MAX_UNUSED_ROWS:,} may be unused); {remedy}"
        )
    stated_bos = [] if None in (config.bos_token_id, tokenizer.bos_id) else [config.bos_token_id]
    for name, token_id, stated in (
        ("eos_token_id", tokenizer.eos_id, config.eos_token_ids),
        ("bos_token_id", tokenizer.bos_id, stated_bos),
    ):
        if stated and token_id not in stated:
            raise ValueError(
                f"tokenizer has {name} {token_id} but config.json has "
                f"{' or '.join(map(str, stated))}; {remedy}, or correct config.json"
            )


def eos_ids(directory: str | PurePath, tokenizer: tokenizers.Tokenizer) -> list[int]:
    """All EOS ids: of the tokenizer, config.json and generation_config.json, ascending."""
    ids = {tokenizer.eos_id, *read_config(directory).eos_token_ids}
    path = epath.Path(directory) / "generation_config.json"
    if path.is_file():
        more = json.loads(path.read_text(encoding="utf-8")).get("eos_token_id") or []
        ids |= set(more if isinstance(more, list) else [more])
    return sorted(ids)


def copy_model_files(source: str | PurePath, target: str | PurePath) -> None:
    """Copies config and tokenizer files; `target` must exist."""
    for name in MODEL_FILES:
        if (file := epath.Path(source) / name).is_file():
            file.copy(epath.Path(target) / name, overwrite=True)


@contextlib.contextmanager
def new_directory(target: Path, need_bytes: int) -> Iterator[Path]:
    """A temporary folder next to `target`, renamed to it when the block succeeds, else removed.

    Raises:
      OSError: the target exists and is not empty, or the disk has less than `need_bytes` free.
    """
    target = Path(os.path.realpath(target))  # tensorstore rejects "..", and "." has no name
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise FileExistsError(f"{target} exists; choose another --target or delete it")
    target.parent.mkdir(parents=True, exist_ok=True)
    prefix = f".{target.name}-partial-{platform.node()}-"
    _remove_dead(target.parent, prefix)
    free = shutil.disk_usage(target.parent).free
    if free < need_bytes:
        raise OSError(
            f"{target.parent} has {free / 1e9:.1f} GB free, the result needs "
            f"{need_bytes / 1e9:.1f} GB; free space or choose another --target"
        )
    partial = target.parent / f"{prefix}{os.getpid()}-{secrets.token_hex(4)}"
    partial.mkdir()  # the umask decides who may read it: mkdtemp would not ask it
    try:
        yield partial
        os.replace(partial, target)  # an empty folder at the target is replaced
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _remove_dead(parent: Path, prefix: str) -> None:
    """Removes the partial folders of processes that were killed on this machine."""
    for path in parent.iterdir():
        pid = path.name.removeprefix(prefix).split("-")[0]
        if not path.name.startswith(prefix) or not pid.isdigit():
            continue
        try:
            os.kill(int(pid), 0)  # signal 0 only checks that the process exists
        except ProcessLookupError:
            shutil.rmtree(path, ignore_errors=True)
        except PermissionError:
            pass  # alive, and owned by another user
