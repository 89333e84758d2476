"""Model folders: `config.json` and the tokenizer's files, and folders that appear complete."""

import contextlib
import dataclasses
import os
import platform
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path, PurePath
from typing import Any

from etils import epath

from alpacare_jax.data import chat_template, encoding, prompts, tokenizers
from alpacare_jax.data.chat_template import ChatTemplate
from alpacare_jax.data.prompts import Template
from alpacare_jax.model.config import LlamaConfig, token_ids
from common import paths, provenance

MODEL_FILES = ("config.json", "generation_config.json", *tokenizers.TOKENIZER_FILES)
"""Files that are copied along with the weights, unchanged."""

FIRST_FORM = (0, (1,))
"""BOS and EOS in config.json of the first conversions of LLaMA (decapoda-research, and Alpaca and
MedAlpaca after them): wrong, and corrected by the tokenizer, whose ids are 1 and 2, or both 2."""

MAX_NEW_ROWS = 64
"""More tokens than this past the rows are not a few added ones, but another vocabulary."""

MAX_UNUSED_ROWS = 16_384
"""Vocabularies are rounded up and padded (DeepSeek-LLM's by 2,385 rows); a wider gap means another
model's tokenizer."""


def read_config(directory: str | PurePath) -> LlamaConfig:
    """The model's configuration, from `config.json`.

    Raises:
      FileNotFoundError: the folder does not exist or has no `config.json`.
      ValueError: it is damaged, or not of a LLaMA that is implemented.
    """
    path = epath.Path(directory) / "config.json"
    if path.is_file():
        return LlamaConfig.from_hf(provenance.read_json(path))
    paths.require(directory)
    advice = "give a Hugging Face folder to convert, or the output of alpacare_jax.convert"
    if path.parent.is_file():
        advice = "it is a file; give its folder, or to convert a GGUF file, from_gguf"
    elif not paths.in_bucket(directory):  # such as a cache of the Hub
        below = (
            p for name in ("*", "snapshots/*") for p in path.parent.glob(f"{name}/config.json")
        )
        if inner := next(below, None):
            advice = f"give {inner.parent}"
    raise FileNotFoundError(f"{directory} has no config.json: not a model directory; {advice}")


def load_tokenizer(directory: str | PurePath) -> tokenizers.Tokenizer:
    """The tokenizer of a model folder. Raises: as `tokenizers.load` and `check_matches`."""
    config, tokenizer = read_config(directory), tokenizers.load(directory)
    check_matches(tokenizer, config)
    return tokenizer


def check_matches(tokenizer: tokenizers.Tokenizer, config: LlamaConfig) -> None:
    """Raises ValueError if a tokenizer does not belong to the model of a `config.json`.

    An id beyond the embedding would read a wrong row without an error, and a model stops only at
    the EOS it was trained on. Control ids that nothing yields may lie beyond it, as the `<pad>` of
    Llama 2 did. An id missing from `config.json` or the tokenizer is not compared.
    """
    remedy = "copy the tokenizer files from the model's folder"
    rows = config.vocab_size
    if beyond := sorted(token_id for token_id in tokenizer.result_ids if token_id >= rows):
        raise ValueError(
            f"tokenizer has {tokenizer.vocab_size:,} ids but the model {rows:,} embedding rows: id "
            f"{beyond[0]} ({tokenizer.piece(beyond[0])!r}), which a text can have, lies past them; "
            f"{remedy}, or if they are the model's, remove this token from them"
        )
    if rows - tokenizer.vocab_size > MAX_UNUSED_ROWS:
        raise ValueError(
            f"tokenizer has {tokenizer.vocab_size:,} ids but the model {rows:,} embedding rows, of "
            f"which at most {MAX_UNUSED_ROWS:,} may be unused; {remedy}"
        )
    # Stanford's Alpaca, and ChatDoctor after it, trained with </s> as BOS too.
    one_for_both = tokenizer.bos_id == tokenizer.eos_id
    stated_bos = () if config.bos_token_id is None or one_for_both else (config.bos_token_id,)
    if _has_first_form(tokenizer, config):
        return
    for name, token_id, stated in (
        ("eos_token_id", tokenizer.eos_id, config.eos_token_ids),
        ("bos_token_id", tokenizer.bos_id, stated_bos),
    ):
        if stated and token_id is not None and token_id not in stated:
            raise ValueError(
                f"tokenizer has {name} {token_id} but config.json has "
                f"{' or '.join(map(str, stated))} ({tokenizer.piece(token_id)!r} is {token_id}); "
                f"{remedy}, or set {name} to {token_id} in config.json"
            )


def _has_first_form(tokenizer: tokenizers.Tokenizer, config: LlamaConfig) -> bool:
    stated = (config.bos_token_id, config.eos_token_ids)
    return stated == FIRST_FORM and (tokenizer.bos_id, tokenizer.eos_id) in ((1, 2), (2, 2))


def eos_ids(
    directory: str | PurePath,
    tokenizer: tokenizers.Tokenizer,
    template: Template | ChatTemplate = prompts.ALPACA,
) -> list[int]:
    """All EOS ids: of tokenizer, template, config.json and generation_config.json, ascending."""
    ids = {tokenizer.eos_id, encoding.end_id(tokenizer, template)}
    ids |= {*read_config(directory).eos_token_ids}
    path = epath.Path(directory) / "generation_config.json"
    if path.is_file():
        ids |= {*token_ids(provenance.read_json(path), "eos_token_id", path.name)}
    return sorted(ids)


def trained_template(directory: str | PurePath) -> str:
    """The template that a model was trained with, by its `run.json`; "" if that is not known."""
    run = provenance.read_record(epath.Path(directory) / "run.json")
    data = run.get("config", {}).get("data", {})
    name = data.get("template") if isinstance(data, dict) else None
    return name or str(run.get("template") or "")


def carry_template(directory: Path, name: str) -> None:
    """Gives a release what other programs know of the template that the model was trained with.

    The chat template, and in generation_config.json what ends an answer.
    """
    tokenizer = tokenizers.load(directory)
    template = chat_template.load(name, directory, tokenizer)
    if isinstance(template, Template):
        opening = "bos_token" if template.bos and tokenizer.adds_bos else ""
        # Where a space is put before a text, but not behind BOS, the template has to write it.
        if opening and tokenizer.adds_space and tokenizer.continues:
            opening += " + ' '"
        provenance.write_text(directory / "chat_template.jinja", template.jinja(opening))
    path = directory / "generation_config.json"
    before = provenance.read_json(path) if path.is_file() else {}
    ids = token_ids(before, "eos_token_id", path.name) or read_config(directory).eos_token_ids
    ids += tuple(i for i in eos_ids(directory, tokenizer, template) if i not in ids)
    content = {**before, "eos_token_id": ids[0] if len(ids) == 1 else list(ids)}
    if template.stop:
        content["stop_strings"] = list(template.stop)
    if content != before:
        provenance.write_json(path, content)


def with_new_tokens(config: LlamaConfig, tokenizer: tokenizers.Tokenizer) -> LlamaConfig:
    """The config with rows for all tokens of a tokenizer that `check_matches`, such as [PAD].

    Raises ValueError if they are more than the few that are added to a vocabulary.
    """
    rows, highest = config.vocab_size, tokenizer.vocab_size - 1
    if highest - rows >= MAX_NEW_ROWS:
        raise ValueError(
            f"tokenizer has id {highest:,} ({tokenizer.piece(highest)!r}) but the model {rows:,} "
            f"embedding rows, to which at most {MAX_NEW_ROWS} are added; copy the tokenizer files "
            "from the model's folder"
        )
    return dataclasses.replace(config, vocab_size=max(rows, highest + 1))


def set_rows(config_path: Path, rows: int) -> None:
    """States the number of embedding rows in a config.json."""
    content = provenance.read_json(config_path)
    if content["vocab_size"] != rows:
        provenance.write_json(config_path, content | {"vocab_size": rows})


def set_dtype(config_path: Path, dtype: str) -> None:
    """Names the stored dtype in config.json: transformers 5 casts to the dtype it finds there."""
    content = provenance.read_json(config_path)
    keys = [key for key in ("dtype", "torch_dtype") if key in content] or ["dtype"]
    if any(content.get(key) != dtype for key in keys):
        provenance.write_json(config_path, content | dict.fromkeys(keys, dtype))


def native_settings(directory: str | PurePath) -> dict[str, Any]:
    """Flags of `generate` for how a model's own generation_config.json has it sample."""
    path = epath.Path(directory) / "generation_config.json"
    content = provenance.read_json(path) if path.is_file() else {}
    if not content.get("do_sample"):
        return {}
    usual = {"temperature": 1.0, "top_k": 50, "top_p": 1.0, "repetition_penalty": 1.0}
    return {name: content.get(name) or value for name, value in usual.items()}


def check_files(directory: Path) -> tuple[LlamaConfig, str]:
    """Checks all that conversion would copy, settings and tokenizer.

    Returns the config, with rows for all tokens, and what is notable.

    Raises:
      FileNotFoundError, ValueError: a file is missing, damaged or a git-lfs pointer, or the
        tokenizer is not the model's.
    """
    for path in (directory / name for name in MODEL_FILES):
        if path.suffix == ".json" and path.is_file():
            provenance.read_json(path)
        elif path.is_file():
            paths.require_content(path)
    tokenizer, stored = load_tokenizer(directory), read_config(directory)
    eos_ids(directory, tokenizer)
    config, notes = with_new_tokens(stored, tokenizer), []
    if (new := config.vocab_size - stored.vocab_size) > 0:
        ids = {i: t for t, i in tokenizer.control_tokens.items() if i >= stored.vocab_size}
        names = ", ".join(f"{ids[i]} (id {i:,})" for i in sorted(ids))
        notes.append(
            f"{new} new row{'s' * (new > 1)} for {names}, past the {stored.vocab_size:,} of the "
            "embeddings: the mean of the others, as Alpaca's; vocab_size in config.json is now "
            f"{config.vocab_size:,}"
        )
    if _has_first_form(tokenizer, stored):
        notes.append(
            "config.json has BOS 0 and EOS 1, as the first conversions of LLaMA wrote; the "
            f"tokenizer's {tokenizer.bos_id} and {tokenizer.eos_id} are used, and generation stops "
            "at either EOS"
        )
    if tokenizer.adds_bos != tokenizer.template_adds_bos:
        notes.append(
            f"prompts {'start' if tokenizer.adds_bos else 'do not start'} with BOS, as "
            "tokenizer_config.json's add_bos_token says; transformers 5 obeys tokenizer.json, "
            "which says otherwise"
        )
    return config, "; ".join(notes)


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
