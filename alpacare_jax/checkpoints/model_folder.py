"""What a model folder holds beside its weights: `config.json` and the tokenizer's files."""

import json
from pathlib import PurePath

from etils.epath import Path

from alpacare_jax.data import tokenizers
from alpacare_jax.model.config import LlamaConfig

MODEL_FILES = ("config.json", "generation_config.json", *tokenizers.TOKENIZER_FILES)
"""Files that travel with the weights, unchanged."""


def read_config(directory: str | PurePath) -> LlamaConfig:
    """The model's shape, from `config.json`."""
    path = Path(directory) / "config.json"
    if not path.is_file():
        raise FileNotFoundError(
            f"{directory} has no config.json: not a model directory; give a Hugging Face folder "
            "to convert, or what python -m alpacare_jax.convert made"
        )
    try:
        return LlamaConfig.from_hf(json.loads(path.read_text(encoding="utf-8")))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}: not JSON: {error.msg}") from None


def load_tokenizer(directory: str | PurePath) -> tokenizers.Tokenizer:
    """The tokenizer of a model directory, checked against its config."""
    config, tokenizer = read_config(directory), tokenizers.load(directory)
    tokenizers.check_matches(
        tokenizer,
        vocab_size=config.vocab_size,
        eos_token_ids=config.eos_token_ids,
        bos_token_id=config.bos_token_id,
    )
    return tokenizer


def copy_model_files(source: str | PurePath, target: str | PurePath) -> None:
    """Copies config and tokenizer files; `target` must exist."""
    for name in MODEL_FILES:
        if (file := Path(source) / name).is_file():
            file.copy(Path(target) / name, overwrite=True)
