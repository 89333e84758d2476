"""Reads a LLaMA from a GGUF file as if it were a Hugging Face folder. Requires the extra [convert].

Supported are the tokenizers of LLaMA 1 and 2 (SentencePiece), LLaMA 3 and SmolLM2 (byte-level BPE),
and every weight type that the package `gguf` dequantises. RoPE scaling is not read from GGUF.
"""

import dataclasses
import re
from pathlib import Path
from typing import Any

import numpy as np

from alpacare_jax.formats import byte_level
from alpacare_jax.formats.safetensors_file import Tensor
from alpacare_jax.model import rope
from common import paths

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

TENSOR = re.compile(r"(blk\.(?P<layer>\d+)\.)?(?P<name>\w+)\.(?P<kind>weight|bias)")
"""How llama.cpp names tensors."""

CONTROL, USER_DEFINED, BYTE = 3, 4, 6
"""Token types of GGUF and of SentencePiece: the first two are matched whole."""


@dataclasses.dataclass(frozen=True)
class GgufModel:
    """An open GGUF file."""

    reader: Any  # gguf.GGUFReader
    config: dict[str, Any]  # content of a Hugging Face config.json

    def tensors(self) -> list[Tensor]:
        """Every weight, under its Hugging Face key; reading one dequantises it to float32."""
        return [self._tensor(stored) for stored in self.reader.tensors]

    def _tensor(self, stored: Any) -> Tensor:
        import gguf

        found = TENSOR.fullmatch(stored.name)
        if not found or found["name"] not in HF_NAMES:
            raise ValueError(f"GGUF tensor {stored.name} is not part of a LLaMA")
        name, kind = found["name"], found["kind"]
        heads = {
            "attn_q": self.config["num_attention_heads"],
            "attn_k": self.config["num_key_value_heads"],
        }

        def read() -> np.ndarray:
            try:
                array = gguf.dequantize(stored.data, stored.tensor_type)
            except NotImplementedError:
                raise ValueError(
                    f"GGUF tensor {stored.name} has type {stored.tensor_type.name}, which the "
                    "package gguf cannot dequantise; take a file of another type, such as Q8_0"
                ) from None
            return rope.split_halves(array, heads[name]) if name in heads else array

        layer = f"model.layers.{found['layer']}." if found["layer"] else ""
        shape = tuple(int(size) for size in reversed(stored.shape))
        return Tensor(f"{layer}{HF_NAMES[name]}.{kind}", shape, np.dtype(np.float32), read)

    def files(self) -> dict[str, Any]:
        """Content of the files that transformers expects next to the weights: JSON, or bytes.

        Raises ValueError if the tokenizer is not supported, or its vocabulary is damaged.
        """
        tokens = _required(self.reader, "tokenizer.ggml.tokens")
        bos, eos = self.config["bos_token_id"], self.config["eos_token_id"]
        # GGUF files of instruct models name EOS as padding; a trainer that masks padding would then
        # never teach the model to stop.
        unknown = _field(self.reader, "tokenizer.ggml.unknown_token_id")
        for token_id in (bos, eos, unknown):
            if token_id is not None and not 0 <= token_id < len(tokens):
                raise ValueError(
                    f"this GGUF file has {len(tokens):,} tokens, but {token_id!r} is the id of a "
                    "special one; convert from_hf"
                )
        pad = next(i for i in (unknown, bos, 0) if i is not None and i != eos)
        ids = {"bos_token_id": bos, "eos_token_id": eos, "pad_token_id": pad}
        names = {kind.removesuffix("_id"): tokens[i] for kind, i in ids.items()}
        if unknown is not None:
            names["unk_token"] = tokens[unknown]
        kind = _field(self.reader, "tokenizer.ggml.model")
        pre = _field(self.reader, "tokenizer.ggml.pre")
        add_bos = _field(self.reader, "tokenizer.ggml.add_bos_token")
        tokenizer_config = {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "model_max_length": self.config["max_position_embeddings"],
            # llama.cpp's defaults
            "add_bos_token": pre != "smollm" if add_bos is None else add_bos,
            "clean_up_tokenization_spaces": False,
        } | names
        if template := _field(self.reader, "tokenizer.chat_template"):
            tokenizer_config["chat_template"] = template
        if kind == "llama":
            tokenizer = {"tokenizer.model": _sentencepiece_model(self.reader, tokens, names)}
            tokenizer_config |= {"tokenizer_class": "LlamaTokenizer", "legacy": False}
        elif kind == "gpt2" and pre in ("smollm", "llama-bpe"):
            tokenizer = {"tokenizer.json": _byte_level_bpe(self.reader, tokens, pre)}
        else:
            raise ValueError(
                f"GGUF tokenizer {kind!r} with pre-tokenizer {pre!r} is not supported; supported "
                "are 'llama' (SentencePiece) and 'gpt2' with 'llama-bpe' or 'smollm': convert "
                "the model's Hugging Face folder with from_hf"
            )
        return tokenizer | {
            "config.json": self.config | ids,
            "generation_config.json": ids,
            "tokenizer_config.json": tokenizer_config,
        }


def _field(reader: Any, name: str) -> Any:
    """The value of a metadata field, None if the file has no such field."""
    field = reader.get_field(name)
    return None if field is None else field.contents()


def _required(reader: Any, name: str) -> Any:
    """The value of a metadata field; raises ValueError if the file has no such field."""
    if (value := _field(reader, name)) is None:
        raise ValueError(f"this GGUF file lacks the metadata {name}; convert from_hf instead")
    return value


def _whole(reader: Any, name: str) -> int:
    """The value of a metadata field that is one positive number; raises ValueError otherwise."""
    if type(value := _required(reader, name)) is not int or value < 1:
        raise ValueError(f"this GGUF file has the metadata {name}={value!r:.80}, not one number")
    return value


def open_gguf(path: Path) -> GgufModel:
    """Opens a GGUF file of architecture "llama".

    Raises:
      ValueError: the file is damaged or incomplete, of another architecture, or uses RoPE scaling.
    """
    import gguf

    paths.require_content(path)
    try:
        reader = gguf.GGUFReader(path)
    except (ValueError, IndexError) as error:
        raise ValueError(f"{path} is truncated or not a GGUF file ({error})") from None
    architecture = _field(reader, "general.architecture")
    if architecture != "llama":
        raise ValueError(f"{path} has architecture {architecture!r}, not 'llama'")
    if (parts := _field(reader, "split.count")) not in (None, 0, 1):
        raise ValueError(
            f"{path} is one of {parts} parts of a model; join them with llama.cpp's "
            "llama-gguf-split --merge"
        )
    if experts := _field(reader, "llama.expert_count"):
        raise ValueError(f"{path} is a mixture of {experts} experts, which is not implemented")

    heads = _whole(reader, "llama.attention.head_count")
    hidden = _whole(reader, "llama.embedding_length")
    head_dim = _field(reader, "llama.attention.key_length") or hidden // heads
    rotated = _field(reader, "llama.rope.dimension_count") or head_dim
    if rotated != head_dim:
        raise ValueError(f"{path} rotates {rotated} of {head_dim} dimensions: not implemented")
    shapes = {tensor.name: tensor.shape.tolist() for tensor in reader.tensors}
    tokens = _required(reader, "tokenizer.ggml.tokens")
    scaling = _field(reader, "llama.rope.scaling.type")
    # llama.cpp writes Llama 3.1's scaling as a table of divisors, without its settings.
    if scaling not in (None, "none") or "rope_freqs.weight" in shapes:
        raise ValueError(f"{path} uses RoPE scaling, which is not read from GGUF; convert from_hf")
    # float32 metadata: 9.999999747378752e-06 is 1e-5
    eps = float(f"{float(_required(reader, 'llama.attention.layer_norm_rms_epsilon')):.6g}")
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_act": "silu",
        "vocab_size": shapes.get("token_embd.weight", [len(tokens)])[-1],
        "hidden_size": hidden,
        "intermediate_size": _whole(reader, "llama.feed_forward_length"),
        "num_hidden_layers": _whole(reader, "llama.block_count"),
        "num_attention_heads": heads,
        "num_key_value_heads": _field(reader, "llama.attention.head_count_kv") or heads,
        "head_dim": head_dim,
        "max_position_embeddings": _whole(reader, "llama.context_length"),
        "rms_norm_eps": eps,
        "rope_theta": float(_field(reader, "llama.rope.freq_base") or 10_000.0),
        "tie_word_embeddings": "output.weight" not in shapes,
        "bos_token_id": _required(reader, "tokenizer.ggml.bos_token_id"),
        "eos_token_id": _required(reader, "tokenizer.ggml.eos_token_id"),
        "dtype": "float32",
    }
    return GgufModel(reader, config)


def _sentencepiece_model(reader: Any, tokens: list[str], names: dict[str, str]) -> bytes:
    """The SentencePiece vocabulary of a GGUF file, as the content of a `tokenizer.model`.

    GGUF stores the pieces of the model, but not its settings. Those of every LLaMA are the ones
    that llama.cpp assumes too: BPE, byte fallback, text that is not normalised.

        tokens     = ["<unk>", "<s>", "</s>", "<0x00>", ...,  "▁t",   "er", ...]
        scores     = [    0.0,   0.0,    0.0,      0.0, ...,   0.0,   -1.0, ...]
        token_type = [      2,     3,      3,        6, ...,     1,      1, ...]  as SentencePiece
    """
    from sentencepiece import SentencePieceProcessor, sentencepiece_model_pb2

    scores = _required(reader, "tokenizer.ggml.scores")
    types = _required(reader, "tokenizer.ggml.token_type")
    model = sentencepiece_model_pb2.ModelProto()  # pyright: ignore[reportAttributeAccessIssue]
    for token, score, kind in zip(tokens, scores, types, strict=True):
        # llama.cpp turns the "▁" of user-defined tokens into spaces.
        piece = token.replace(" ", "▁") if kind == USER_DEFINED else token
        model.pieces.add(piece=piece, score=score, type=kind)
    trainer, normalizer = model.trainer_spec, model.normalizer_spec
    trainer.model_type, trainer.vocab_size = trainer.BPE, len(tokens)
    trainer.byte_fallback = BYTE in types
    trainer.bos_piece, trainer.eos_piece = names["bos_token"], names["eos_token"]
    normalizer.name = "identity"
    normalizer.add_dummy_prefix = _field(reader, "tokenizer.ggml.add_space_prefix") is not False
    normalizer.remove_extra_whitespaces = False
    content = model.SerializeToString()
    try:
        SentencePieceProcessor(model_proto=content)
    except RuntimeError as error:
        raise ValueError(
            f"the SentencePiece vocabulary of this GGUF file is damaged ({error}); convert from_hf"
        ) from None
    return content


def _byte_level_bpe(reader: Any, tokens: list[str], pre: str) -> dict[str, Any]:
    """The byte-level BPE tokenizer of a GGUF file, as the content of a `tokenizer.json`."""
    merges = [merge.split(" ") for merge in _required(reader, "tokenizer.ggml.merges")]
    types = _required(reader, "tokenizer.ggml.token_type")
    kinds = zip(tokens, types, strict=True)
    special = [token for token, kind in kinds if kind in (CONTROL, USER_DEFINED)]
    vocab = {token: i for i, token in enumerate(tokens)}
    try:
        return byte_level.tokenizer_json(vocab, merges, special, llama3=pre == "llama-bpe")
    except ValueError as error:
        raise ValueError(f"this GGUF file: {error}; convert from_hf") from None
