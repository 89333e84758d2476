"""LlamaConfig: published variants, and config.json of transformers 4 and 5 in both directions."""

import json

import numpy as np
import pytest

from alpacare_jax.model.config import VARIANTS, LlamaConfig
from alpacare_jax.model.llama import rope_frequencies
from alpacare_jax.model.rope import RopeScaling
from tests.alpacare_jax.model.conftest import BASE, LLAMA3, SHAPES, make_config

# Heads, KV heads, head_dim, context length, eps, theta, tied, EOS; as in the released config.json
# files. The sizes follow from the counts of test_params.py.
SETTINGS = {
    "llama-7b": (32, 32, 128, 2048, 1e-6, 1e4, False, 2),
    "llama-13b": (40, 40, 128, 2048, 1e-6, 1e4, False, 2),
    "llama-30b": (52, 52, 128, 2048, 1e-6, 1e4, False, 2),
    "llama-65b": (64, 64, 128, 2048, 1e-5, 1e4, False, 2),
    "llama2-7b": (32, 32, 128, 4096, 1e-5, 1e4, False, 2),
    "llama2-13b": (40, 40, 128, 4096, 1e-5, 1e4, False, 2),
    "llama2-70b": (64, 8, 128, 4096, 1e-5, 1e4, False, 2),
    "llama3-8b": (32, 8, 128, 8192, 1e-5, 5e5, False, 128_001),
    "llama3.2-1b": (32, 8, 64, 131_072, 1e-5, 5e5, True, 128_001),
    "smollm2-135m": (9, 3, 64, 8192, 1e-5, 1e5, True, 2),
    "tiny": (4, 2, 16, 512, 1e-6, 1e4, False, 2),
}


def test_every_variant_has_its_settings():
    assert SETTINGS.keys() == VARIANTS.keys()


@pytest.mark.parametrize("variant", VARIANTS)
def test_settings_are_the_published_ones(variant):
    config = VARIANTS[variant]
    heads = (config.num_attention_heads, config.num_key_value_heads, config.head_dim)
    numbers = (config.max_position_embeddings, config.rms_norm_eps, config.rope_theta)
    rest = (config.tie_word_embeddings, *config.eos_token_ids)
    assert (*heads, *numbers, *rest) == SETTINGS[variant]
    llama3 = RopeScaling("llama3", 32.0, 1.0, 4.0, 8192)
    assert config.rope_scaling == (llama3 if variant == "llama3.2-1b" else None)
    assert not config.attention_bias and not config.mlp_bias


@pytest.mark.parametrize("shape", [*SHAPES, *VARIANTS])
def test_config_round_trip(shape):
    config = VARIANTS[shape] if shape in VARIANTS else make_config(shape)
    assert LlamaConfig.from_hf(json.loads(json.dumps(config.to_hf()))) == config


@pytest.mark.parametrize("shape", [*SHAPES, *VARIANTS])
def test_config_written_here_means_the_same_to_transformers(shape, transformers, tmp_path):
    """Both ways: transformers opens our config.json, and we what transformers saves from it."""
    config = VARIANTS[shape] if shape in VARIANTS else make_config(shape)
    (tmp_path / "config.json").write_text(json.dumps(config.to_hf()))
    theirs = transformers.AutoConfig.from_pretrained(tmp_path)
    for name in ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "head_dim"):
        assert getattr(theirs, name) == getattr(config, name), name
    for name in ("num_attention_heads", "num_key_value_heads", "rms_norm_eps", "mlp_bias"):
        assert getattr(theirs, name) == getattr(config, name), name
    for name in ("tie_word_embeddings", "attention_bias", "max_position_embeddings"):
        assert getattr(theirs, name) == getattr(config, name), name
    rotary = transformers.models.llama.modeling_llama.LlamaRotaryEmbedding(theirs)
    np.testing.assert_allclose(rope_frequencies(config), rotary.inv_freq.numpy(), rtol=1e-6)
    theirs.save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))
    assert "rope_parameters" in saved and "rope_theta" not in saved, "the style of transformers 5"
    assert LlamaConfig.from_hf(saved) == config


@pytest.mark.parametrize(
    ("hf", "theta", "scaling"),
    [
        ({}, 10_000.0, None),
        ({"rope_theta": 5e5, "rope_scaling": None}, 5e5, None),
        ({"rope_theta": 5e5, "rope_scaling": LLAMA3}, 5e5, "llama3"),
        ({"rope_scaling": {"type": "linear", "factor": 2}}, 10_000.0, "linear"),
        ({"rope_scaling": {"type": "linear", "rope_type": "linear", "factor": 2}}, 1e4, "linear"),
        ({"rope_parameters": {"rope_type": "default", "rope_theta": 5e5}}, 5e5, None),
        ({"rope_parameters": LLAMA3 | {"rope_theta": 5e5}}, 5e5, "llama3"),
    ],
)
def test_rope_settings_of_both_styles(hf, theta, scaling):
    config = LlamaConfig.from_hf(BASE | hf)
    assert config.rope_theta == theta
    if scaling == "llama3":
        assert config.rope_scaling == RopeScaling("llama3", 8.0, 1.0, 4.0, 64)
    else:
        assert config.rope_scaling == (RopeScaling("linear", 2) if scaling else None)


def test_llama3_scaling_falls_back_to_the_context_length():
    """As transformers does where a config.json leaves the original length out."""
    scaling = {k: v for k, v in LLAMA3.items() if k != "original_max_position_embeddings"}
    config = LlamaConfig.from_hf(BASE | {"rope_scaling": scaling})
    assert config.rope_scaling.original_max_position_embeddings == BASE["max_position_embeddings"]


@pytest.mark.parametrize(
    ("rope", "named"),
    [
        ({"rope_type": "default", "partial_rotary_factor": 0.5}, "partial_rotary_factor"),
        ({"rope_type": "linear", "factor": 2.0, "partial_rotary_factor": 0.5}, "partial_rotary"),
        ({"rope_type": "linear"}, "factor"),
        ({"rope_type": "llama3", "factor": 8.0, "high_freq_factor": 4.0}, "low_freq_factor"),
        ({"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0}, "high_freq_factor"),
    ],
)
def test_rope_settings_that_are_wrong_are_named(rope, named):
    with pytest.raises(ValueError, match=named):
        LlamaConfig.from_hf(BASE | {"rope_parameters": rope})


def test_partial_rotary_factor_of_one_is_no_setting():
    rope = {"rope_type": "linear", "factor": 2.0, "partial_rotary_factor": 1.0}
    assert LlamaConfig.from_hf(BASE | {"rope_parameters": rope}).rope_scaling.factor == 2.0


@pytest.mark.parametrize(("ids", "expected"), [(2, (2,)), ([5, 0], (5, 0)), (None, ()), (0, (0,))])
def test_eos_ids(ids, expected):
    config = LlamaConfig.from_hf(BASE | {"eos_token_id": ids})
    assert config.eos_token_ids == expected
    assert LlamaConfig.from_hf(config.to_hf()) == config


def test_defaults_follow_from_the_heads():
    without = {k: v for k, v in BASE.items() if k != "num_key_value_heads"}
    for hf in (without, without | {"num_key_value_heads": None, "head_dim": None}):
        config = LlamaConfig.from_hf(hf)
        assert (config.num_key_value_heads, config.head_dim) == (4, 16)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"model_type": "mistral"}, "model_type 'mistral'"),
        ({"hidden_act": "gelu"}, "hidden_act='gelu'"),
        ({"attention_dropout": 0.1}, "attention_dropout=0.1"),
        ({"rope_interleaved": True}, "rope_interleaved=True"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor=0.5"),
        ({"sliding_window": 4096}, "sliding_window=4096"),
        ({"quantization_config": {"bits": 4}}, "quantization_config"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}, "'yarn' is not implemented"),
        ({"rope_scaling": {"type": "dynamic", "factor": 4.0}}, "'dynamic' is not implemented"),
        ({"rope_parameters": LLAMA3 | {"beta_fast": 32}}, "beta_fast"),
        ({"head_dim": 15}, "head_dim 15"),
        ({"num_key_value_heads": 3}, "num_key_value_heads 3"),
        ({"hidden_size": 66, "head_dim": None}, "hidden_size 66"),
    ],
)
def test_unsupported_settings_raise_by_name(change, named):
    with pytest.raises(ValueError) as error:
        LlamaConfig.from_hf(BASE | change)
    assert named in str(error.value)


def test_missing_keys_are_named():
    with pytest.raises(ValueError, match="lacks vocab_size, hidden_size"):
        LlamaConfig.from_hf({k: BASE[k] for k in BASE if k not in ("vocab_size", "hidden_size")})
