"""Writes a Hugging Face folder of a LLaMA as a GGUF file, one tensor at a time.

llama.cpp's architecture "llama" rotates pairs of neighbouring rows, so queries and keys are
reordered (`rope.paired`). RoPE scaling is a table of divisors, as llama.cpp's own converter has it.
"""

import contextlib
import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from alpacare_jax.checkpoints import model_folder
from alpacare_jax.data import tokenizers
from alpacare_jax.formats import gguf_file, hf_weights
from alpacare_jax.formats.safetensors_file import Tensor
from alpacare_jax.model import llama, rope
from alpacare_jax.model.config import LlamaConfig
from alpacare_jax.releasing import gguf_vocabulary

FILE_TYPES = {"F16": 1, "Q8_0": 7}
"""What a release may have -> its number in llama.cpp: weights rounded to float16, and to 8 bits
with a scale for each 32 of a row. Vectors are float32 in both."""

SCALED_TOGETHER = 32
"""Numbers of a row that share a scale in Q8_0."""

TENSOR_BYTES = {"F32": 4, "F16": 2, "Q8_0": 34 / SCALED_TOGETHER}

END_KEYS = ("eos_token_id", "eot_token_id", "eom_token_id")
"""Where llama.cpp looks for tokens that end an answer."""

ROPE_DIVISORS = "rope_freqs.weight"
"""By how much each frequency of RoPE is divided."""


@dataclasses.dataclass(frozen=True)
class Settings:
    """What a GGUF file holds beside its weights and vocabulary."""

    name: str
    licence: str
    adds_bos: bool  # whether a prompt of the trained template starts with BOS
    adds_space: bool  # whether a space is put before a text, and behind a control token
    end_ids: Sequence[int]  # what ends an answer, that of training first
    chat_template: str


def tensor_name(key: str) -> str:
    """llama.cpp's name of a Hugging Face key.

    >>> tensor_name("model.layers.3.self_attn.q_proj.weight")
    'blk.3.attn_q.weight'
    """
    names = {module: name for name, module in gguf_file.HF_NAMES.items()}
    module, _, kind = key.rpartition(".")
    if module in names:
        return f"{names[module]}.{kind}"
    layer, _, inner = module.removeprefix("model.layers.").partition(".")
    return f"blk.{layer}.{names[inner]}.{kind}"


def rotated_heads(key: str, config: LlamaConfig) -> int:
    """The heads of a tensor whose rows are rotated in pairs; 0 of all others."""
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
    return heads.get(key.split(".")[-2], 0)


def stored_type(shape: Sequence[int], form: str) -> str:
    """The type of a tensor in a file of type `form`."""
    return "F32" if len(shape) == 1 else "F16" if shape[-1] % SCALED_TOGETHER else form


def nbytes(shapes: Sequence[Sequence[int]], form: str) -> int:
    """Size of the tensors in a file of type `form`."""
    return int(sum(np.prod(shape) * TENSOR_BYTES[stored_type(shape, form)] for shape in shapes))


def rope_divisors(config: LlamaConfig) -> np.ndarray:
    """What ROPE_DIVISORS holds, float32 [H/2]."""
    plain = llama.rope_frequencies(dataclasses.replace(config, rope_scaling=None))
    return np.asarray(plain / llama.rope_frequencies(config), np.float32)


def metadata(folder: Path, form: str, settings: Settings) -> dict[str, Any]:
    """Every key of the file of a Hugging Face folder, and its value.

    Raises:
      ValueError: llama.cpp has no way to express the tokenizer.
    """
    import gguf

    config, tokenizer = model_folder.read_config(folder), tokenizers.load(folder)
    vocabulary = gguf_vocabulary.of_folder(folder, tokenizer, config.vocab_size)
    if vocabulary["model"] == "llama":
        vocabulary["add_space_prefix"] = settings.adds_space
    ids = dict(zip(END_KEYS, settings.end_ids, strict=False))
    ids |= {} if tokenizer.bos_id is None else {"bos_token_id": tokenizer.bos_id}
    tokens = vocabulary | ids | {"padding_token_id": tokenizer.pad_id}
    tokens |= {"add_bos_token": settings.adds_bos, "add_eos_token": False}
    sizes = {
        "vocab_size": config.vocab_size,
        "context_length": config.max_position_embeddings,
        "embedding_length": config.hidden_size,
        "block_count": config.num_hidden_layers,
        "feed_forward_length": config.intermediate_size,
        "rope.dimension_count": config.head_dim,
        "rope.freq_base": float(config.rope_theta),
        "attention.head_count": config.num_attention_heads,
        "attention.head_count_kv": config.num_key_value_heads,
        "attention.key_length": config.head_dim,
        "attention.value_length": config.head_dim,
        "attention.layer_norm_rms_epsilon": float(config.rms_norm_eps),
    }
    return {
        "general.name": settings.name,
        "general.license": settings.licence,
        "general.file_type": FILE_TYPES[form],
        "general.quantization_version": gguf.GGML_QUANT_VERSION,
        **{f"llama.{key}": value for key, value in sizes.items()},
        **{f"tokenizer.ggml.{key}": value for key, value in tokens.items()},
        "tokenizer.chat_template": settings.chat_template,
    }


def write(folder: Path, path: Path, form: str, settings: Settings) -> None:
    """Writes the model of a Hugging Face folder as a GGUF file of type `form`.

    Raises:
      ValueError: as `metadata`, or a weight is beyond float16's range.
    """
    import gguf

    config = model_folder.read_config(folder)
    stored, _ = hf_weights.tensors(hf_weights.files(folder))
    tensors = {tensor_name(tensor.key): tensor for tensor in stored}
    if config.rope_scaling:
        divisors = rope_divisors(config)
        tensors[ROPE_DIVISORS] = Tensor(
            f".{ROPE_DIVISORS}", divisors.shape, divisors.dtype, lambda: divisors
        )
    values = metadata(folder, form, settings)
    with contextlib.closing(gguf.GGUFWriter(path, "llama")) as writer:
        _add(writer, values)
        for name, tensor in tensors.items():
            kind = stored_type(tensor.shape, form)
            dtype = np.dtype(np.float16 if kind == "F16" else np.float32)
            size, kind = nbytes([tensor.shape], form), gguf.GGMLQuantizationType[kind]
            writer.add_tensor_info(name, tensor.shape, dtype, size, kind)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for tensor in tensors.values():
            heads, array = rotated_heads(tensor.key, config), tensor.read()
            array = rope.paired(array, heads) if heads else array
            writer.write_tensor_data(_packed(tensor.key, array, stored_type(array.shape, form)))


def _add(writer: Any, values: Mapping[str, Any]) -> None:
    kinds = {bool: "bool", int: "uint32", float: "float32", str: "string", list: "array"}
    for key, value in values.items():
        getattr(writer, f"add_{kinds[type(value)]}")(key, value)


def _packed(key: str, array: np.ndarray, kind: str) -> np.ndarray:
    import gguf

    if kind == "Q8_0":
        return gguf.quantize(array.astype(np.float32), gguf.GGMLQuantizationType.Q8_0)
    try:
        with np.errstate(over="raise"):
            return np.ascontiguousarray(array, np.float16 if kind == "F16" else np.float32)
    except FloatingPointError:
        raise ValueError(
            f"{key} has values beyond the range of float16, which GGUF's F16 is; "
            f"{gguf_vocabulary.WITHOUT_GGUF}"
        ) from None
