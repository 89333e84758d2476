"""Every form of config.json, old and new: read as transformers reads it, or refused by name."""

import json

import numpy as np
import pytest
from safetensors.numpy import save_file

from alpacare_jax.checkpoints import model_folder
from alpacare_jax.model.config import LlamaConfig
from tests.alpacare_jax.model.conftest import BASE, LLAMA3
from tests.alpacare_jax.model.test_llama import (
    TOLERANCE,
    logits_of,
    random_tokens,
    random_weights,
)
from tests.support.hf_folders import params_to_hf

LINEAR = {"factor": 2.0}
NEW_LINEAR, OLD_LINEAR = LINEAR | {"rope_type": "linear"}, LINEAR | {"type": "linear"}
SHORT_LLAMA3 = {k: v for k, v in LLAMA3.items() if k != "original_max_position_embeddings"}

READ = {
    "plain": {},
    "rope_theta": {"rope_theta": 5e5},
    "rope_theta is a whole number": {"rope_theta": 500_000},
    "null for what is not set": {"rope_scaling": None, "rope_parameters": None, "head_dim": None},
    "empty groups": {"rope_scaling": {}, "rope_parameters": {}},
    "group of transformers 5": {"rope_parameters": {"rope_type": "default", "rope_theta": 5e5}},
    "group without a type": {"rope_parameters": {"rope_theta": 5e5}},
    "theta beside the group": {"rope_parameters": {"rope_type": "default"}, "rope_theta": 5e5},
    "theta in both, equal": {"rope_parameters": {"rope_theta": 5e5}, "rope_theta": 500_000},
    "theta in the old group": {"rope_scaling": OLD_LINEAR | {"rope_theta": 5e5}},
    "linear, type": {"rope_scaling": OLD_LINEAR},
    "linear, rope_type": {"rope_scaling": NEW_LINEAR, "rope_theta": 5e5},
    "linear, both": {"rope_scaling": NEW_LINEAR | OLD_LINEAR},
    "linear, new group": {"rope_parameters": NEW_LINEAR | {"rope_theta": 5e5}},
    "linear, new group, old type": {"rope_parameters": OLD_LINEAR},
    "linear with a length": {"rope_scaling": OLD_LINEAR | {"original_max_position_embeddings": 9}},
    "default that names a length": {
        "rope_parameters": {"rope_type": "default", "original_max_position_embeddings": 64}
    },
    "default with factor 1": {"rope_scaling": {"type": "default", "factor": 1.0}},
    "both groups, equal": {
        "rope_scaling": OLD_LINEAR,
        "rope_parameters": NEW_LINEAR | {"rope_theta": 5e5},
        "rope_theta": 5e5,
    },
    "llama3": {"rope_scaling": LLAMA3, "rope_theta": 5e5},
    "llama3, type": {"rope_scaling": SHORT_LLAMA3 | {"rope_type": ..., "type": "llama3"}},
    "llama3, new group": {"rope_parameters": LLAMA3 | {"rope_theta": 5e5}},
    "llama3 without a length": {"rope_scaling": SHORT_LLAMA3},
    "llama3 with its length outside": {
        "rope_scaling": SHORT_LLAMA3,
        "original_max_position_embeddings": 64,
    },
    "head_dim": {"head_dim": 24},
    "no key heads": {"num_key_value_heads": ...},
    "key heads are null": {"num_key_value_heads": None},
    "tied": {"tie_word_embeddings": True},
    "biases": {"attention_bias": True, "mlp_bias": True},
    "dtype": {"dtype": "float32"},
    "torch_dtype": {"torch_dtype": "float32"},
    "both dtypes": {"dtype": "float32", "torch_dtype": "float16"},
    "several ends": {"eos_token_id": [2, 7]},
    "no ends": {"eos_token_id": None, "bos_token_id": None},
    "what does not count": {"pretraining_tp": 2, "use_cache": False, "pad_token_id": 0, "x": [1]},
    "eps and length left out": {"rms_norm_eps": ..., "max_position_embeddings": ...},
}
"""Changes of `BASE`; `...` leaves the key out."""

REFUSED = {
    "two groups": (
        {"rope_parameters": {"rope_theta": 1e4}, "rope_scaling": OLD_LINEAR, "rope_theta": 5e5},
        ["rope_scaling and rope_parameters", "delete"],
    ),
    "two factors": (
        {"rope_parameters": NEW_LINEAR, "rope_scaling": OLD_LINEAR | {"factor": 4.0}},
        ["rope_scaling and rope_parameters"],
    ),
    "two thetas": (
        {"rope_parameters": {"rope_theta": 1e4}, "rope_theta": 5e5},
        ["rope_theta 500000.0", "10000.0", "rope_parameters"],
    ),
    "two lengths": (
        {"rope_scaling": LLAMA3, "original_max_position_embeddings": 128},
        ["original_max_position_embeddings 128", "64", "rope_scaling"],
    ),
    "two types": (
        {"rope_scaling": LLAMA3 | {"type": "linear"}},
        ["rope_type 'llama3'", "type 'linear'"],
    ),
    "no type": ({"rope_scaling": {"factor": 4.0}}, ["rope_scaling sets factor", "no rope_type"]),
    "no type, new": (
        {"rope_parameters": {"factor": 4.0, "rope_theta": 1e4}},
        ["rope_parameters sets factor", "no rope_type"],
    ),
    "default with a factor": (
        {"rope_scaling": {"rope_type": "default", "factor": 4.0}},
        ["sets factor", "type is default"],
    ),
    "yarn": (
        {"rope_scaling": {"type": "yarn", "factor": 16.0, "finetuned": True}},
        ["'yarn' is not implemented", "linear, llama3"],
    ),
    "longrope": (
        {"rope_scaling": {"type": "longrope", "short_factor": [1.0], "long_factor": [1.0]}},
        ["'longrope' is not implemented"],
    ),
    "dynamic": ({"rope_parameters": {"rope_type": "dynamic", "factor": 2}}, ["'dynamic'"]),
    "type is a list": ({"rope_scaling": {"type": ["linear"], "factor": 2}}, ["['linear']"]),
    "group is a text": ({"rope_scaling": "linear"}, ["rope_scaling is 'linear'", "object"]),
    "factor is a text": ({"rope_scaling": OLD_LINEAR | {"factor": "2"}}, ["factor is '2'"]),
    "factor is zero": ({"rope_scaling": OLD_LINEAR | {"factor": 0}}, ["factor is 0"]),
    "no factor": ({"rope_scaling": {"type": "linear", "factor": None}}, ["lacks factor"]),
    "equal frequencies": (
        {"rope_scaling": LLAMA3 | {"low_freq_factor": 4.0}},
        ["low_freq_factor 4.0", "high_freq_factor 4.0"],
    ),
    "theta is a text": ({"rope_theta": "10000"}, ["rope_theta is '10000'"]),
    "theta is a list": ({"rope_parameters": {"rope_theta": [1e4]}}, ["rope_theta is [10000.0]"]),
    "theta is zero": ({"rope_theta": 0}, ["rope_theta is 0"]),
    "number as a text": ({"hidden_size": "64"}, ["hidden_size is '64'", "whole number"]),
    "number with a point": ({"vocab_size": 96.0}, ["vocab_size is 96.0"]),
    "no layers": ({"num_hidden_layers": 0}, ["num_hidden_layers is 0"]),
    "null for a size": (
        {"hidden_size": None, "vocab_size": ...},
        ["lacks vocab_size, hidden_size"],
    ),
    "no heads": ({"num_attention_heads": 0}, ["num_attention_heads is 0"]),
    "negative heads": ({"num_key_value_heads": -1}, ["num_key_value_heads is -1"]),
    "not a number": ({"rms_norm_eps": float("nan")}, ["rms_norm_eps is nan"]),
    "flag as a text": ({"tie_word_embeddings": "false"}, ["tie_word_embeddings is 'false'"]),
    "end as a text": ({"eos_token_id": "2"}, ["eos_token_id is '2'"]),
    "ends with a text": ({"eos_token_id": [2, "7"]}, ["eos_token_id is [2, '7']"]),
    "end that is no id": ({"eos_token_id": [2, 10**30]}, ["eos_token_id is [2, 1000"]),
    "two starts": ({"bos_token_id": [1, 2]}, ["bos_token_id is a list"]),
    "quantised": (
        {"quantization_config": {"quant_method": "gptq", "bits": 4, "dataset": ["x" * 99] * 9}},
        ["quantization_config", "'gptq'", "take the model that was quantised"],
    ),
    "quantised, a list": ({"quantization_config": [4]}, ["quant_method None"]),
    "compressed": ({"compression_config": {"quant_method": "x"}}, ["compression_config", "'x'"]),
}
"""Changes of `BASE`, and what the message says."""


def form(changes: dict) -> dict:
    """`BASE` with `changes`, and without the keys that have `...`."""
    merged = {
        key: {k: v for k, v in value.items() if v is not ...} if isinstance(value, dict) else value
        for key, value in (BASE | changes).items()
    }
    return {key: value for key, value in merged.items() if value is not ...}


@pytest.mark.slow
@pytest.mark.parametrize("name", READ)
def test_logits_are_those_of_transformers(name, torch, transformers, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(form(READ[name])))
    config = model_folder.read_config(tmp_path)
    weights, tokens = random_weights(config), random_tokens(config, 1, 320)
    tensors = {key: np.ascontiguousarray(t) for key, t in params_to_hf(weights, config)}
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    model, loading = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path, dtype=torch.float32, output_loading_info=True
    )
    assert not loading["missing_keys"] and not loading["unexpected_keys"]
    with torch.no_grad():
        theirs = model(torch.tensor(tokens, dtype=torch.int64)).logits.numpy()
    assert np.std(theirs) > 0.5
    assert np.abs(logits_of(weights, config, tokens) - theirs).max() <= TOLERANCE


@pytest.mark.parametrize("name", READ)
def test_a_form_that_is_read_is_written_and_read_again(name):
    config = LlamaConfig.from_hf(form(READ[name]))
    assert LlamaConfig.from_hf(config.to_hf()) == config


@pytest.mark.parametrize("name", REFUSED)
def test_a_form_that_is_not_read_is_named(name):
    changes, named = REFUSED[name]
    with pytest.raises(ValueError) as caught:
        LlamaConfig.from_hf(form(changes))
    message = str(caught.value)
    assert all(text in message for text in named), message
    assert len(message) < 300 and "\n" not in message
