"""Small LLaMA folders in Hugging Face's format, and what conversion must keep of them."""

import contextlib
import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import safetensors
from safetensors.numpy import save_file

from alpacare_jax.checkpoints import export
from alpacare_jax.formats import hf_weights
from alpacare_jax.model import params as params_lib
from alpacare_jax.model.config import LlamaConfig
from alpacare_jax.model.llama import Params
from tests.conftest import write_tiny_tokenizer

CONFIG = LlamaConfig(
    vocab_size=384,
    hidden_size=64,
    intermediate_size=96,
    num_hidden_layers=3,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=256,
    rms_norm_eps=1e-5,
    attention_bias=True,
    mlp_bias=True,
)
PLAIN = dataclasses.replace(CONFIG, attention_bias=False, mlp_bias=False)
TIED = dataclasses.replace(PLAIN, tie_word_embeddings=True)
DTYPES = {"float32": np.float32, "float16": np.float16, "bfloat16": ml_dtypes.bfloat16}


def hf_shapes(config: LlamaConfig) -> dict[str, tuple[int, ...]]:
    """The tensors of a LLaMA folder, written out by hand."""
    V, D, F = config.vocab_size, config.hidden_size, config.intermediate_size
    NH, KH = config.num_attention_heads * 16, config.num_key_value_heads * 16
    shapes = {"model.embed_tokens.weight": (V, D), "model.norm.weight": (D,)}
    if not config.tie_word_embeddings:
        shapes["lm_head.weight"] = (V, D)
    for i in range(config.num_hidden_layers):
        for name, shape in {
            "self_attn.q_proj": (NH, D),
            "self_attn.k_proj": (KH, D),
            "self_attn.v_proj": (KH, D),
            "self_attn.o_proj": (D, NH),
            "mlp.gate_proj": (F, D),
            "mlp.up_proj": (F, D),
            "mlp.down_proj": (D, F),
        }.items():
            shapes[f"model.layers.{i}.{name}.weight"] = shape
            if config.mlp_bias if "mlp" in name else config.attention_bias:
                shapes[f"model.layers.{i}.{name}.bias"] = shape[:1]
        for name in ("input_layernorm", "post_attention_layernorm"):
            shapes[f"model.layers.{i}.{name}.weight"] = (D,)
    return shapes


def hf_tensors(config: LlamaConfig, dtype: str = "float32") -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    tensors = {}
    for key, shape in hf_shapes(config).items():
        values = 0.15 * rng.standard_normal(shape) + ("norm" in key)
        tensors[key] = values.astype(DTYPES[dtype])
    return tensors


def write_hf(
    directory: Path,
    config: LlamaConfig,
    tensors: dict[str, np.ndarray] | None = None,
    dtype: str = "float32",
    **config_json,
) -> Path:
    """A Hugging Face folder with one safetensors file and the tiny tokenizer."""
    directory.mkdir()
    content = config.to_hf() | {"torch_dtype": dtype, "pad_token_id": 0} | config_json
    # Not our own way of writing JSON, so that "carried over" can be told from "written again".
    (directory / "config.json").write_text(json.dumps(content, indent=4))
    (directory / "generation_config.json").write_text('{"eos_token_id":2, "do_sample":false}')
    write_tiny_tokenizer(directory)
    tensors = hf_tensors(config, dtype) if tensors is None else tensors
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
    return directory


def read_tensors(directory: Path) -> dict[str, np.ndarray]:
    """Every tensor of a folder's safetensors files, by safetensors alone."""
    result = {}
    for path in sorted(directory.glob("*.safetensors")):
        with safetensors.safe_open(path, framework="numpy") as file:
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
            assert not tensors.keys() & result.keys()
            result |= tensors
    return result


def assert_same_bits(actual: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:
    assert actual.keys() == expected.keys()
    for key, tensor in expected.items():
        assert actual[key].dtype == tensor.dtype, key
        assert actual[key].shape == tensor.shape, key
        assert actual[key].tobytes() == tensor.tobytes(), key


def params_to_hf(params: Params, config: LlamaConfig) -> Iterator[tuple[str, np.ndarray]]:
    """(key, tensor) in Hugging Face's names and layouts, layer by layer."""
    flat = params_lib.flatten(params)
    for key, (weight, layer) in hf_weights.by_key(config).items():
        array = flat[weight.path] if layer is None else flat[weight.path][layer]
        yield key, params_lib.to_hf_layout(weight, np.asarray(array), config)


def to_hf(source: Path, target: Path, dtype: str = "") -> Path:
    export.to_hf(source, target, "best", dtype)
    return target


def change_json(path: Path, **changes) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@contextlib.contextmanager
def fails_and_leaves_nothing(directory: Path, error: type[Exception], *named: str):
    """The block raises `error` with a one-line message, and adds nothing to `directory`."""
    before = {p: p.is_file() and p.read_bytes() for p in directory.rglob("*")}
    with pytest.raises(error) as caught:
        yield
    message = str(caught.value)
    assert all(name in message for name in named), message
    assert "\n" not in message
    assert {p: p.is_file() and p.read_bytes() for p in directory.rglob("*")} == before
