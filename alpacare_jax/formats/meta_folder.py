"""Reads LLaMA 1 to 3 as Meta released them: `consolidated.*.pth`, `params.json`, tokenizer.

Requires the extra [torch]. Every file holds a part of most weights, for one device each: rows of
some, columns of others. The heads of q and k have the rows that RoPE rotates together side by side.
What params.json leaves open is set as transformers' convert_llama_weights_to_hf.py sets it.
"""

import dataclasses
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from alpacare_jax.formats import byte_level, torch_file
from alpacare_jax.formats.safetensors_file import Tensor
from alpacare_jax.model import rope
from alpacare_jax.model.config import VARIANTS, LlamaConfig
from common import paths, provenance

# Meta's name -> Hugging Face's module, and the axis that is divided between files.
META_NAMES = {
    "tok_embeddings": ("model.embed_tokens", 1),  # 0 since LLaMA 3
    "norm": ("model.norm", None),
    "output": ("lm_head", 0),
    "attention.wq": ("self_attn.q_proj", 0),
    "attention.wk": ("self_attn.k_proj", 0),
    "attention.wv": ("self_attn.v_proj", 0),
    "attention.wo": ("self_attn.o_proj", 1),
    "feed_forward.w1": ("mlp.gate_proj", 0),
    "feed_forward.w2": ("mlp.down_proj", 1),
    "feed_forward.w3": ("mlp.up_proj", 0),
    "attention_norm": ("input_layernorm", None),
    "ffn_norm": ("post_attention_layernorm", None),
}

KEY = re.compile(r"(layers\.(?P<layer>\d+)\.)?(?P<name>[\w.]+)\.weight")

FREQUENCIES = re.compile(r"^rope\.freqs$")
"""What RoPE computes from the settings, stored beside the weights."""

SENTENCEPIECE_SETTINGS = {
    "tokenizer_class": "LlamaTokenizer",
    "bos_token": "<s>",
    "eos_token": "</s>",
    "unk_token": "<unk>",
    "add_bos_token": True,
    "add_eos_token": False,
    "legacy": False,
}

LLAMA3_SETTINGS = {
    "tokenizer_class": "PreTrainedTokenizerFast",
    "bos_token": "<|begin_of_text|>",
    "eos_token": "<|end_of_text|>",
    "add_bos_token": True,
    "clean_up_tokenization_spaces": False,
}

MAX_SMALL_WIDTH = 3072
"""LLaMA 3.2's 1B and 3B are narrower than 3.1's: they scale RoPE by 32, not 8, and tie their
embeddings. Which of the two a folder is, params.json does not say."""


@dataclasses.dataclass(frozen=True)
class MetaModel:
    """An open folder of Meta's."""

    config: LlamaConfig
    files: list[Path]
    tensors: list[Tensor]  # under their Hugging Face keys
    settings: dict[str, Any]  # content of the other files of a model folder: JSON, or bytes
    note: str  # what was assumed


def open_folder(folder: Path) -> MetaModel:
    """Opens a folder of Meta's; the tokenizer may be in the folder above, as it was downloaded.

    Raises:
      FileNotFoundError: a file is missing; ValueError: one is damaged, or of another model.
    """
    files = sorted(folder.glob("consolidated.*.pth"))
    numbers = [path.name for path in files]
    if not files or numbers != [f"consolidated.{i:02}.pth" for i in range(len(files))]:
        found = ", ".join(numbers) or "none"
        raise FileNotFoundError(
            f"{folder} must hold consolidated.00.pth, and further ones without a gap; it has "
            f"{found}: download it again, or if it is a Hugging Face folder use from_hf"
        )
    settings = provenance.read_json(folder / "params.json")
    candidates = [folder / "tokenizer.model", folder.parent / "tokenizer.model"]
    tokenizer = next((path for path in candidates if path.is_file()), None)
    if tokenizer is None:
        raise FileNotFoundError(
            f"neither {candidates[0]} nor {candidates[1]} exists; copy the model's tokenizer.model"
        )
    paths.require_content(tokenizer)
    llama3 = byte_level.is_tiktoken(tokenizer)
    parts = [torch_file.tensors(path, FREQUENCIES) for path in files]
    keys = [tensor.key for tensor in parts[0]]
    for path, part in zip(files, parts, strict=True):
        if sorted(tensor.key for tensor in part) != sorted(keys):
            raise ValueError(f"{path} has other weights than {files[0].name}; download them again")
    by_key = [{tensor.key: tensor for tensor in part} for part in parts]
    weights = {key: _Weight.of(key, [part[key] for part in by_key], llama3) for key in keys}
    shapes = {key: weight.shape for key, weight in weights.items()}
    config, note = _config(settings, shapes, llama3)
    tensors = [weight.tensor(config) for weight in weights.values()]
    return MetaModel(config, files, tensors, _settings(config, tokenizer, llama3), note)


@dataclasses.dataclass(frozen=True)
class _Weight:
    """A whole weight, of which every file has a shard."""

    hf_key: str
    axis: int | None  # along which it is divided; None: each file has it all
    shards: Sequence[Tensor]
    shape: tuple[int, ...]

    @classmethod
    def of(cls, key: str, shards: Sequence[Tensor], llama3: bool) -> "_Weight":
        """Raises ValueError if Meta has no such weight, or the shards do not fit together."""
        found = KEY.fullmatch(key)
        if not found or found["name"] not in META_NAMES:
            raise ValueError(f"{key} is not a weight of LLaMA 1 to 3 in Meta's form; use from_hf")
        module, axis = META_NAMES[found["name"]]
        if llama3 and found["name"] == "tok_embeddings":
            axis = 0
        prefix = f"model.layers.{found['layer']}." if found["layer"] else ""
        shapes = [list(shard.shape) for shard in shards]
        whole = list(shapes[0])
        if axis is not None:
            if any(len(s) != 2 or s[1 - axis] != whole[1 - axis] for s in shapes):
                raise ValueError(
                    f"the parts of {key} have shapes {shapes}, which do not fit together"
                )
            whole[axis] = sum(shape[axis] for shape in shapes)
        return cls(f"{prefix}{module}.weight", axis, shards, tuple(whole))

    def tensor(self, config: LlamaConfig) -> Tensor:
        """The weight as Hugging Face has it; reading it joins the shards."""
        heads = {
            "q_proj": config.num_attention_heads,
            "k_proj": config.num_key_value_heads,
        }.get(self.hf_key.split(".")[-2])

        def read() -> np.ndarray:
            if self.axis is None:
                return self.shards[0].read()
            array = np.concatenate([shard.read() for shard in self.shards], self.axis)
            return rope.split_halves(array, heads) if heads else array

        return dataclasses.replace(self.shards[0], key=self.hf_key, shape=self.shape, read=read)


def _config(
    settings: dict[str, Any], shapes: dict[str, tuple[int, ...]], llama3: bool
) -> tuple[LlamaConfig, str]:
    """The model's settings, and what of them params.json leaves open."""
    try:
        config = LlamaConfig(
            vocab_size=shapes["tok_embeddings.weight"][0],
            hidden_size=settings["dim"],
            intermediate_size=shapes["layers.0.feed_forward.w1.weight"][0],
            num_hidden_layers=settings["n_layers"],
            num_attention_heads=settings["n_heads"],
            num_key_value_heads=settings.get("n_kv_heads") or settings["n_heads"],
            rms_norm_eps=settings["norm_eps"],
            rope_theta=settings.get("rope_theta", 10_000.0),
        )
    except KeyError as error:
        raise ValueError(f"params.json or the weights lack {error}; download them again") from None
    if llama3:
        has_output = "output.weight" in shapes
        return _llama3_config(config, bool(settings.get("use_scaled_rope")), has_output)
    for name, row in VARIANTS.items():
        found = dataclasses.replace(config, max_position_embeddings=row.max_position_embeddings)
        if found == row:
            return (
                found,
                f"params.json is that of {name}: {row.max_position_embeddings:,} positions",
            )
    return config, (
        f"no published LLaMA has these sizes: {config.max_position_embeddings:,} positions are "
        "assumed; set max_position_embeddings in config.json if that is wrong"
    )


def _llama3_config(config: LlamaConfig, scaled: bool, has_output: bool) -> tuple[LlamaConfig, str]:
    """The settings of LLaMA 3, or with scaled RoPE of 3.1 and 3.2."""
    small = scaled and config.hidden_size <= MAX_SMALL_WIDTH
    factor, first_control = 32.0 if small else 8.0, config.vocab_size - byte_level.NUM_CONTROLS
    config = dataclasses.replace(
        config,
        max_position_embeddings=131_072 if scaled else 8192,
        rope_scaling=rope.RopeScaling("llama3", factor) if scaled else None,
        tie_word_embeddings=small or not has_output,
        bos_token_id=first_control,
        eos_token_ids=(first_control + 1,),
    )
    name = f"LLaMA 3{'.2' if small else '.1' if scaled else ''}"
    how = f", RoPE scaled by {factor:.0f}" if scaled else ""
    tied = ", tied embeddings" if config.tie_word_embeddings else ""
    return config, f"read as {name}: {config.max_position_embeddings:,} positions{how}{tied}"


def _settings(config: LlamaConfig, tokenizer: Path, llama3: bool) -> dict[str, Any]:
    """The files beside the weights. Raises ValueError if the tokenizer is not the model's."""
    length = {"model_max_length": config.max_position_embeddings}
    if not llama3:
        return {
            "config.json": config.to_hf(),
            "tokenizer.model": tokenizer.read_bytes(),
            "tokenizer_config.json": SENTENCEPIECE_SETTINGS | length,
        }
    vocab, merges = byte_level.read_tiktoken(tokenizer)
    if len(vocab) + byte_level.NUM_CONTROLS != config.vocab_size:
        raise ValueError(
            f"{tokenizer} has {len(vocab):,} tokens, with LLaMA 3's control tokens "
            f"{byte_level.NUM_CONTROLS} more, but the model has {config.vocab_size:,} embedding "
            "rows; copy the model's own"
        )
    controls = byte_level.control_tokens(scaled=config.rope_scaling is not None)
    return {
        "config.json": config.to_hf(),
        "tokenizer.json": byte_level.tokenizer_json(
            vocab, merges, controls, llama3=True, bos=controls[0]
        ),
        "tokenizer_config.json": LLAMA3_SETTINGS | length,
    }
