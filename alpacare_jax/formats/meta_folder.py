"""Reads LLaMA 1 and 2 as Meta released them: `consolidated.*.pth`, `params.json`, tokenizer.

Requires the extra [torch]. Every file holds a part of most weights, for one device each: rows of
some, columns of others. The heads of q and k have the rows that RoPE rotates together side by side.
"""

import dataclasses
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from alpacare_jax.formats import torch_file
from alpacare_jax.formats.safetensors_file import Tensor
from alpacare_jax.model import rope
from alpacare_jax.model.config import VARIANTS, LlamaConfig
from common import provenance

# Meta's name -> Hugging Face's module, and the axis that is divided between files.
META_NAMES = {
    "tok_embeddings": ("model.embed_tokens", 1),
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

TOKENIZER_SETTINGS = {
    "tokenizer_class": "LlamaTokenizer",
    "bos_token": "<s>",
    "eos_token": "</s>",
    "unk_token": "<unk>",
    "add_bos_token": True,
    "add_eos_token": False,
    "legacy": False,
}


@dataclasses.dataclass(frozen=True)
class MetaModel:
    """An open folder of Meta's."""

    config: LlamaConfig
    files: list[Path]
    tensors: list[Tensor]  # under their Hugging Face keys
    tokenizer: Path
    note: str  # what was assumed, "" if nothing


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
    parts = [torch_file.tensors(path, FREQUENCIES) for path in files]
    keys = [tensor.key for tensor in parts[0]]
    for path, part in zip(files, parts, strict=True):
        if sorted(tensor.key for tensor in part) != sorted(keys):
            raise ValueError(f"{path} has other weights than {files[0].name}; download them again")
    by_key = [{tensor.key: tensor for tensor in part} for part in parts]
    joined = {key: [part[key] for part in by_key] for key in keys}
    whole = {key: _shape(key, shards) for key, shards in joined.items()}
    config, note = _config(settings, whole)
    tensors = [_tensor(key, joined[key], whole[key], config) for key in keys]
    return MetaModel(config, files, tensors, tokenizer, note)


def _names(key: str) -> tuple[str, int | None]:
    """Hugging Face's key, and the divided axis."""
    found = KEY.fullmatch(key)
    if not found or found["name"] not in META_NAMES:
        raise ValueError(f"{key} is not a weight of LLaMA 1 or 2 in Meta's form; use from_hf")
    module, axis = META_NAMES[found["name"]]
    prefix = f"model.layers.{found['layer']}." if found["layer"] else ""
    return f"{prefix}{module}.weight", axis


def _shape(key: str, shards: Sequence[Tensor]) -> tuple[int, ...]:
    """The shape of a whole weight; shards of one weight may differ along the divided axis only."""
    _, axis = _names(key)
    shapes = [list(shard.shape) for shard in shards]
    if axis is None:
        return shards[0].shape
    if any(len(shape) != 2 or shape[1 - axis] != shapes[0][1 - axis] for shape in shapes):
        raise ValueError(f"the parts of {key} have shapes {shapes}, which do not fit together")
    whole = shapes[0]
    whole[axis] = sum(shard.shape[axis] for shard in shards)
    return tuple(whole)


def _tensor(
    key: str, shards: Sequence[Tensor], shape: tuple[int, ...], config: LlamaConfig
) -> Tensor:
    """The whole weight as Hugging Face has it; reading it joins the parts."""
    hf_key, axis = _names(key)
    heads = {
        "q_proj": config.num_attention_heads,
        "k_proj": config.num_key_value_heads,
    }.get(hf_key.split(".")[-2])

    def read() -> np.ndarray:
        if axis is None:
            return shards[0].read()
        array = np.concatenate([shard.read() for shard in shards], axis)
        return rope.split_halves(array, heads) if heads else array

    return dataclasses.replace(shards[0], key=hf_key, shape=shape, read=read)


def _config(
    settings: dict[str, Any], shapes: dict[str, tuple[int, ...]]
) -> tuple[LlamaConfig, str]:
    """The model's settings; the number of positions, which params.json lacks, by published size."""
    if settings.get("use_scaled_rope") or "rope_theta" in settings:
        raise ValueError("params.json is of a later LLaMA than 2; take its Hugging Face release")
    try:
        sizes = {
            "vocab_size": shapes["tok_embeddings.weight"][0],
            "hidden_size": settings["dim"],
            "intermediate_size": shapes["layers.0.feed_forward.w1.weight"][0],
            "num_hidden_layers": settings["n_layers"],
            "num_attention_heads": settings["n_heads"],
            "num_key_value_heads": settings.get("n_kv_heads") or settings["n_heads"],
            "rms_norm_eps": settings["norm_eps"],
        }
    except KeyError as error:
        raise ValueError(f"params.json or the weights lack {error}; download them again") from None
    config = LlamaConfig(**sizes)
    published = next(
        (
            (name, row)
            for name, row in VARIANTS.items()
            if (row.sizes, row.rms_norm_eps) == (config.sizes, config.rms_norm_eps)
        ),
        None,
    )
    if published is None:
        positions = config.max_position_embeddings
        return config, (
            f"no published LLaMA has these sizes: {positions:,} positions are assumed; set "
            "max_position_embeddings in config.json if that is wrong"
        )
    name, row = published
    config = dataclasses.replace(config, max_position_embeddings=row.max_position_embeddings)
    return config, f"params.json is that of {name}: {config.max_position_embeddings:,} positions"
