"""Reads a LLaMA from a GGUF file as if it were a Hugging Face folder. Needs the extra [convert]."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np

from alpacare_jax.checkpoints.safetensors_file import Tensor

HF_NAMES = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
"""GGUF tensor name -> Hugging Face module, of llama.cpp's architecture "llama"."""

CONTROL, USER_DEFINED = 3, 4  # token types of GGUF whose text is matched whole


@dataclasses.dataclass(frozen=True)
class GgufModel:
    """An open GGUF file."""

    reader: Any  # gguf.GGUFReader
    config: dict[str, Any]  # content of a Hugging Face config.json

    def field(self, name: str) -> Any:
        return _field(self.reader, name)

    def tensors(self) -> list[Tensor]:
        """Every weight, under its Hugging Face key; reading it dequantises to float32."""
        return [self._tensor(stored) for stored in self.reader.tensors]

    def _tensor(self, stored: Any) -> Tensor:
        import gguf

        *prefix, name, kind = stored.name.split(".")
        if name not in HF_NAMES:
            raise ValueError(f"GGUF tensor {stored.name} is not part of a LLaMA")
        heads = {
            "attn_q": self.config["num_attention_heads"],
            "attn_k": self.config["num_key_value_heads"],
        }

        def read() -> np.ndarray:
            array = gguf.dequantize(stored.data, stored.tensor_type)
            return _unpermute(array, heads[name]) if name in heads else array

        layer = f"model.layers.{prefix[1]}." if prefix else ""
        shape = tuple(int(size) for size in reversed(stored.shape))
        return Tensor(f"{layer}{HF_NAMES[name]}.{kind}", shape, np.dtype(np.float32), read)

    def files(self) -> dict[str, Any]:
        """Content of the JSON files that transformers expects beside the weights."""
        tokens = self.field("tokenizer.ggml.tokens")
        bos, eos = self.config["bos_token_id"], self.config["eos_token_id"]
        names = {"bos_token": tokens[bos], "eos_token": tokens[eos]}
        # GGUF files of instruct models name EOS as padding; a trainer that masks padding would then
        # never teach the model to stop.
        unknown = self.field("tokenizer.ggml.unknown_token_id")
        pad = next(i for i in (unknown, bos, 0) if i is not None and i != eos)
        names["pad_token"] = tokens[pad]
        if unknown is not None:
            names["unk_token"] = tokens[unknown]
        tokenizer_config = {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "model_max_length": self.config["max_position_embeddings"],
            "add_bos_token": bool(self.field("tokenizer.ggml.add_bos_token")),
            "clean_up_tokenization_spaces": False,
        } | names
        if template := self.field("tokenizer.chat_template"):
            tokenizer_config["chat_template"] = template
        return {
            "config.json": self.config | {"pad_token_id": pad},
            "generation_config.json": {
                "bos_token_id": bos,
                "eos_token_id": eos,
                "pad_token_id": pad,
            },
            "tokenizer.json": _tokenizer_json(self),
            "tokenizer_config.json": tokenizer_config,
        }


def _field(reader: Any, name: str) -> Any:
    """The value of a metadata field, None where the file has no such field."""
    field = reader.get_field(name)
    return None if field is None else field.contents()


def _unpermute(array: np.ndarray, heads: int) -> np.ndarray:
    """GGUF interleaves the rotated pairs (i, i + H/2) of q and k; Hugging Face splits halves."""
    rows = array.shape[0]
    split = array.reshape(heads, rows // heads // 2, 2, *array.shape[1:])
    return split.swapaxes(1, 2).reshape(array.shape)


def open_gguf(path: Path) -> GgufModel:
    """Opens a GGUF file of architecture "llama".

    Raises:
      ValueError: the package `gguf` is missing, the file is damaged or of another architecture.
    """
    try:
        import gguf
    except ImportError:
        raise ValueError(
            "reading GGUF needs the extra: pip install 'alpacare-jax[convert]'"
        ) from None
    try:
        reader = gguf.GGUFReader(path)
    except (ValueError, IndexError) as error:
        raise ValueError(f"{path} is truncated or not a GGUF file ({error})") from None
    architecture = _field(reader, "general.architecture")
    if architecture != "llama":
        raise ValueError(f"{path} has architecture {architecture!r}, not 'llama'")

    def get(key: str) -> Any:
        return _field(reader, f"llama.{key}")

    heads, hidden = get("attention.head_count"), get("embedding_length")
    names = {tensor.name for tensor in reader.tensors}
    # llama.cpp writes Llama 3.1's scaling as a table of divisors, without its settings.
    if get("rope.scaling.type") not in (None, "none") or "rope_freqs.weight" in names:
        raise ValueError(f"{path} uses rope scaling, which is not read from GGUF; convert from_hf")
    # float32 metadata: 9.999999747378752e-06 is 1e-5
    eps = float(f"{get('attention.layer_norm_rms_epsilon'):.6g}")
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_act": "silu",
        "vocab_size": len(_field(reader, "tokenizer.ggml.tokens")),
        "hidden_size": hidden,
        "intermediate_size": get("feed_forward_length"),
        "num_hidden_layers": get("block_count"),
        "num_attention_heads": heads,
        "num_key_value_heads": get("attention.head_count_kv") or heads,
        "head_dim": get("rope.dimension_count") or hidden // heads,
        "max_position_embeddings": get("context_length"),
        "rms_norm_eps": eps,
        "rope_theta": float(get("rope.freq_base") or 10_000.0),
        "tie_word_embeddings": "output.weight" not in names,
        "bos_token_id": _field(reader, "tokenizer.ggml.bos_token_id"),
        "eos_token_id": _field(reader, "tokenizer.ggml.eos_token_id"),
        "dtype": "float32",
    }
    return GgufModel(reader, config)


def _tokenizer_json(model: GgufModel) -> dict[str, Any]:
    """The byte-level BPE tokenizer inside a GGUF file, as the content of a `tokenizer.json`."""
    import tokenizers
    from tokenizers import decoders, models, pre_tokenizers

    kind, pre = model.field("tokenizer.ggml.model"), model.field("tokenizer.ggml.pre")
    if (kind, pre) != ("gpt2", "smollm"):
        raise ValueError(
            f"GGUF tokenizer {kind!r}/{pre!r} is not implemented; only 'gpt2'/'smollm'"
        )
    tokens = model.field("tokenizer.ggml.tokens")
    merges = [tuple(merge.split(" ")) for merge in model.field("tokenizer.ggml.merges")]
    vocab = {token: i for i, token in enumerate(tokens)}
    tokenizer = tokenizers.Tokenizer(models.BPE(vocab, merges))
    # llama.cpp's "smollm": every digit a token, then GPT-2's pattern.
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    types = model.field("tokenizer.ggml.token_type")
    special = [tokens[i] for i, t in enumerate(types) if t in (CONTROL, USER_DEFINED)]
    tokenizer.add_special_tokens(special)
    return json.loads(tokenizer.to_str())
