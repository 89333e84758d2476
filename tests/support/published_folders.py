"""Every system of the paper in the form it was published in, as a tiny random model.

File names, dtypes, settings and tokenizer files are those of the published folders; the weights are
small, and the vocabulary has 400 pieces in place of 32,000.
"""

import base64
import dataclasses
import itertools
import json
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import ml_dtypes
import numpy as np
import tokenizers
from safetensors.numpy import save_file

from alpacare_jax.model.config import LlamaConfig
from tests.alpacare_jax.conftest import CORPUS, llama_json
from tests.support.hf_folders import hf_shapes

PIECES = 400
LLAMA = LlamaConfig(
    vocab_size=PIECES,
    hidden_size=64,
    intermediate_size=96,
    num_hidden_layers=2,
    num_attention_heads=4,
    max_position_embeddings=2048,
)
DTYPES = {"float32": np.float32, "float16": np.float16, "bfloat16": ml_dtypes.bfloat16}
Tensors = dict[str, np.ndarray]


def random_tensors(config: LlamaConfig, dtype: str, seed: int = 0) -> Tensors:
    rng = np.random.default_rng(seed)
    return {
        key: (0.15 * rng.standard_normal(shape) + ("norm" in key)).astype(DTYPES[dtype])
        for key, shape in hf_shapes(config).items()
    }


def write_json(path: Path, content) -> None:
    path.write_text(json.dumps(content))


def to_torch(torch, array: np.ndarray):
    if array.dtype != ml_dtypes.bfloat16:
        return torch.from_numpy(np.ascontiguousarray(array))
    return torch.from_numpy(np.ascontiguousarray(array).view(np.int16)).view(torch.bfloat16)


def write_bin(
    torch, folder: Path, tensors: Tensors, shards: int = 1, buffers: bool = False
) -> None:
    """pytorch_model.bin, or shards of it with their index."""
    if buffers:  # transformers before 4.32 saved them
        for i in range(LLAMA.num_hidden_layers):
            key = f"model.layers.{i}.self_attn.rotary_emb.inv_freq"
            tensors = tensors | {key: np.ones(8, np.float32)}
    keys, weight_map = list(tensors), {}
    for number in range(shards):
        name = "pytorch_model.bin"
        if shards > 1:
            name = f"pytorch_model-{number + 1:05}-of-{shards:05}.bin"
        part = {key: to_torch(torch, tensors[key]) for key in keys[number::shards]}
        torch.save(part, folder / name)
        weight_map |= dict.fromkeys(part, name)
    if shards > 1:
        index = {"metadata": {"total_size": 0}, "weight_map": weight_map}
        write_json(folder / "pytorch_model.bin.index.json", index)


def write_tiktoken(path: Path, texts: Iterable[str], merges: int) -> None:
    """LLaMA 3's form of a vocabulary, of bytes and the most frequent neighbours in these texts."""
    words = [[bytes([b]) for b in word.encode()] for text in texts for word in text.split()]
    tokens = [bytes([b]) for b in range(256)]
    for _ in range(merges):
        pairs = Counter(pair for word in words for pair in itertools.pairwise(word))
        joined = b"".join(min(pairs, key=lambda pair: (-pairs[pair], pair)))
        tokens.append(joined)
        words = [_join(word, joined) for word in words]
    lines = [b"%s %d\n" % (base64.b64encode(t), rank) for rank, t in enumerate(tokens)]
    path.write_bytes(b"".join(lines))


def _join(word: list[bytes], joined: bytes) -> list[bytes]:
    result: list[bytes] = []
    for token in word:
        if result and result[-1] + token == joined:
            result[-1] = joined
        else:
            result.append(token)
    return result


def write_meta(torch, folder: Path, tensors: Tensors, config: LlamaConfig, shards: int) -> None:
    """Meta's files: q and k permuted, weights divided, the frequencies beside them.

    LLaMA 3 divides the embeddings along another axis, and states its base of RoPE.
    """
    llama3 = config.rope_theta != 10_000.0
    names = {
        "model.embed_tokens": ("tok_embeddings", 0 if llama3 else 1),
        "model.norm": ("norm", None),
        "lm_head": ("output", 0),
        "self_attn.q_proj": ("attention.wq", 0),
        "self_attn.k_proj": ("attention.wk", 0),
        "self_attn.v_proj": ("attention.wv", 0),
        "self_attn.o_proj": ("attention.wo", 1),
        "mlp.gate_proj": ("feed_forward.w1", 0),
        "mlp.down_proj": ("feed_forward.w2", 1),
        "mlp.up_proj": ("feed_forward.w3", 0),
        "input_layernorm": ("attention_norm", None),
        "post_attention_layernorm": ("ffn_norm", None),
    }
    parts = [{"rope.freqs": torch.ones(8)} for _ in range(shards)]
    for key, array in tensors.items():
        prefix, module = "", key.removesuffix(".weight")
        if module.startswith("model.layers."):
            _, _, layer, module = module.split(".", 3)
            prefix = f"layers.{layer}."
        name, axis = names[module]
        if module.endswith(("q_proj", "k_proj")):  # half-split pairs to neighbouring rows
            rows, columns = array.shape
            heads = rows // config.head_dim
            pairs = array.reshape(heads, 2, config.head_dim // 2, columns)
            array = pairs.swapaxes(1, 2).reshape(rows, columns)
        split = [array] * shards if axis is None else np.split(array, shards, axis)
        for part, piece in zip(parts, split, strict=True):
            part[f"{prefix}{name}.weight"] = to_torch(torch, piece)
    for number, part in enumerate(parts):
        torch.save(part, folder / f"consolidated.{number:02}.pth")
    settings = {
        "dim": config.hidden_size,
        "multiple_of": 32,
        "n_heads": config.num_attention_heads,
        "n_layers": config.num_hidden_layers,
        "norm_eps": config.rms_norm_eps,
        "vocab_size": -1,
    }
    if config.num_key_value_heads != config.num_attention_heads:
        settings["n_kv_heads"] = config.num_key_value_heads
    if llama3:
        settings |= {"rope_theta": config.rope_theta, "vocab_size": config.vocab_size}
    if config.rope_scaling:
        settings["use_scaled_rope"] = True
    write_json(folder / "params.json", settings)


def sentencepiece_files(folder: Path, model: Path, special: Mapping[str, str], pad: bool) -> None:
    shutil.copy(model, folder / "tokenizer.model")
    names = dict(special) | ({"pad_token": "[PAD]"} if pad else {})
    if pad:
        write_json(folder / "added_tokens.json", {"[PAD]": PIECES})
    write_json(folder / "special_tokens_map.json", names)
    token = {"__type": "AddedToken", "lstrip": False, "normalized": True, "rstrip": False}
    settings = {name: token | {"content": text} for name, text in special.items()}
    settings |= {"tokenizer_class": "LlamaTokenizer", "model_max_length": 512}
    write_json(folder / "tokenizer_config.json", settings)


USUAL = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
ONE_FOR_ALL = dict.fromkeys(USUAL, "</s>")
"""Special tokens of Stanford's Alpaca, and of ChatDoctor after it."""


def _config(config: LlamaConfig, dtype: str, **changes) -> dict:
    content = config.to_hf() | {"torch_dtype": dtype, "use_cache": True, "pad_token_id": 0}
    content |= {"transformers_version": "4.28.1", "_name_or_path": "/models/llama"}
    return content | changes


def _padded(config: LlamaConfig = LLAMA) -> LlamaConfig:
    return LlamaConfig(
        **{
            name: getattr(config, name)
            for name in ("hidden_size", "intermediate_size", "num_hidden_layers")
        },
        num_attention_heads=4,
        vocab_size=PIECES + 1,
    )


FIRST_IDS = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": -1}
"""What the first conversion of LLaMA wrote, and those who trained on it kept."""


def alpaca_form(torch, folder: Path, model: Path, special: Mapping[str, str]) -> Tensors:
    """AlpaCare, Alpaca and ChatDoctor: shards of float32, [PAD] added, old buffers."""
    tensors = random_tensors(_padded(), "float32")
    write_bin(torch, folder, tensors, shards=3, buffers=True)
    write_json(folder / "config.json", _config(_padded(), "float32"))
    ids = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    write_json(folder / "generation_config.json", {"_from_model_config": True} | ids)
    sentencepiece_files(folder, model, special, pad=True)
    return tensors


def alpacare(torch, folder: Path, model: Path) -> Tensors:
    return alpaca_form(torch, folder, model, USUAL)


def chatdoctor(torch, folder: Path, model: Path) -> Tensors:
    return alpaca_form(torch, folder, model, ONE_FOR_ALL)


def alpaca(torch, folder: Path, model: Path) -> Tensors:
    """Recovered from the diff, whose settings are those of the first conversion of LLaMA."""
    tensors = alpaca_form(torch, folder, model, ONE_FOR_ALL)
    content = json.loads((folder / "config.json").read_text()) | FIRST_IDS
    content |= {"architectures": ["LLaMAForCausalLM"], "max_sequence_length": 2048}
    del content["max_position_embeddings"]
    write_json(folder / "config.json", content)
    write_json(folder / "generation_config.json", {"_from_model_config": True} | FIRST_IDS)
    empty = dict.fromkeys(USUAL, "") | {"tokenizer_class": "LLaMATokenizer"}
    write_json(folder / "tokenizer_config.json", empty | {"model_max_length": 512})
    return tensors


def medalpaca(torch, folder: Path, model: Path) -> Tensors:
    """On the first conversion of LLaMA: its names of settings and classes, its wrong ids."""
    tensors = random_tensors(LLAMA, "float32")
    write_bin(torch, folder, tensors, shards=2, buffers=True)
    content = _config(LLAMA, "float32", **FIRST_IDS, max_sequence_length=2048)
    for key in ("max_position_embeddings", "rope_theta", "num_key_value_heads", "head_dim"):
        content.pop(key)
    write_json(folder / "config.json", content)
    write_json(folder / "generation_config.json", {"_from_model_config": True} | FIRST_IDS)
    shutil.copy(model, folder / "tokenizer.model")
    write_json(folder / "special_tokens_map.json", {})
    empty = dict.fromkeys(USUAL, "") | {"tokenizer_class": "LLaMATokenizer"}
    write_json(folder / "tokenizer_config.json", empty | {"model_max_length": 10**30})
    return tensors


def pmc_llama_7b(torch, folder: Path, model: Path) -> Tensors:
    """A base model after more pre-training: one file per half."""
    tensors = random_tensors(LLAMA, "float32")
    write_bin(torch, folder, tensors, shards=2, buffers=True)
    write_json(folder / "config.json", _config(LLAMA, "float32"))
    sentencepiece_files(folder, model, USUAL, pad=False)
    return tensors


def pmc_llama_13b(torch, folder: Path, model: Path) -> Tensors:
    tensors = random_tensors(LLAMA, "float16")
    write_bin(torch, folder, tensors)
    write_json(folder / "config.json", _config(LLAMA, "float16"))
    sentencepiece_files(folder, model, USUAL, pad=False)
    return tensors


def baize_adapter(torch, folder: Path) -> Tensors:
    """Baize-Healthcare: the two files of peft in April 2023, without o_proj; the base is LLaMA."""
    rng, tensors = np.random.default_rng(1), {}
    sizes = {"q_proj": (64, 64), "k_proj": (64, 64), "v_proj": (64, 64), "down_proj": (96, 64)}
    sizes |= {"gate_proj": (64, 96), "up_proj": (64, 96)}
    for layer in range(LLAMA.num_hidden_layers):
        for name, (inputs, outputs) in sizes.items():
            group = "mlp" if name in ("gate_proj", "up_proj", "down_proj") else "self_attn"
            key = f"base_model.model.model.layers.{layer}.{group}.{name}.lora_"
            for part, shape in (("A", (8, inputs)), ("B", (outputs, 8))):
                values = 0.15 * rng.standard_normal(shape)
                tensors[f"{key}{part}.weight"] = values.astype(np.float32)
    torch.save({k: torch.from_numpy(t) for k, t in tensors.items()}, folder / "adapter_model.bin")
    content = {
        "base_model_name_or_path": "decapoda-research/llama-7b-hf",
        "bias": "none",
        "enable_lora": None,
        "fan_in_fan_out": False,
        "inference_mode": True,
        "lora_alpha": 16,
        "lora_dropout": 0.05,
        "merge_weights": False,
        "modules_to_save": None,
        "peft_type": "LORA",
        "r": 8,
        "target_modules": [*sizes],
        "task_type": "CAUSAL_LM",
    }
    write_json(folder / "adapter_config.json", content)
    return tensors


def llama2_hf(torch, folder: Path, model: Path) -> Tensors:
    """LLaMA-2 from the Hub: shards of float16 in both forms, settings of sampling."""
    config = dataclasses.replace(LLAMA, rms_norm_eps=1e-5, max_position_embeddings=4096)
    tensors = random_tensors(config, "float16")
    write_bin(torch, folder, tensors, shards=2)
    keys, names = list(tensors), [f"model-{i:05}-of-00002.safetensors" for i in (1, 2)]
    for i, name in enumerate(names):
        part = {key: tensors[key] for key in keys[i::2]}
        save_file(part, folder / name, metadata={"format": "pt"})
    weight_map = {key: names[i % 2] for i, key in enumerate(keys)}
    write_json(folder / "model.safetensors.index.json", {"weight_map": weight_map})
    changes = {"rope_scaling": None, "pretraining_tp": 1}
    write_json(folder / "config.json", _config(config, "float16", **changes))
    sampled = {"do_sample": True, "temperature": 0.6, "top_p": 0.9, "max_length": 4096}
    ids = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    write_json(folder / "generation_config.json", sampled | ids)
    sentencepiece_files(folder, model, USUAL, pad=False)
    llama_json(model, folder, "prepend")
    return tensors


def llama_hf(torch, folder: Path, model: Path) -> Tensors:
    """LLaMA from the Hub: float16 safetensors."""
    del torch
    tensors = random_tensors(LLAMA, "float16")
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    write_json(folder / "config.json", _config(LLAMA, "float16"))
    sentencepiece_files(folder, model, USUAL, pad=False)
    return tensors


LLAMA3 = LlamaConfig(
    vocab_size=PIECES + 8,
    hidden_size=64,
    intermediate_size=96,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=8192,
    rms_norm_eps=1e-5,
    rope_theta=500_000.0,
)

CONTROLS = ["<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>"]


def llama3_hf(folder: Path, byte_level: Path, config: LlamaConfig) -> tuple[LlamaConfig, Tensors]:
    """LLaMA 3 from the Hub: a byte-level tokenizer.json, bfloat16, settings of sampling."""
    backend = tokenizers.Tokenizer.from_file(str(byte_level / "tokenizer.json"))
    backend.add_special_tokens([*CONTROLS, "<|eot_id|>"])
    backend.save(str(folder / "tokenizer.json"))
    names = {"bos_token": CONTROLS[0], "eos_token": CONTROLS[1]}
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "add_bos_token": True} | names
    write_json(folder / "tokenizer_config.json", settings)
    bos, eos = map(backend.token_to_id, CONTROLS[:2])
    config = dataclasses.replace(config, bos_token_id=bos, eos_token_ids=(eos,))
    tensors = random_tensors(config, "bfloat16")
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    write_json(folder / "config.json", config.to_hf() | {"torch_dtype": "bfloat16"})
    sampled = {"do_sample": True, "temperature": 0.6, "top_p": 0.9, "eos_token_id": [eos]}
    write_json(folder / "generation_config.json", sampled)
    return config, tensors


def llama3_meta(torch, folder: Path, config: LlamaConfig) -> Tensors:
    """LLaMA 3 from Meta; its files have the output embeddings also where they are tied."""
    tensors = random_tensors(config, "bfloat16")
    output = {"lm_head.weight": tensors["model.embed_tokens.weight"]}
    tied = config.tie_word_embeddings
    write_meta(torch, folder, tensors | output if tied else tensors, config, 1 if tied else 2)
    write_tiktoken(folder / "tokenizer.model", CORPUS, merges=config.vocab_size - 512)
    return tensors


PUBLISHED: dict[str, Callable[..., Tensors]] = {
    "alpacare": alpacare,
    "alpaca": alpaca,
    "chatdoctor": chatdoctor,
    "medalpaca": medalpaca,
    "pmc-llama-7b": pmc_llama_7b,
    "pmc-llama-13b": pmc_llama_13b,
    "llama": llama_hf,
    "llama-2": llama2_hf,
}
"""Systems on LLaMA's tokenizer, in Hugging Face's form."""
