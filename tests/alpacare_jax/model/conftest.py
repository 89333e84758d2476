"""Model configurations that cover every feature."""

from alpacare_jax.model.config import LlamaConfig

BASE = {
    "model_type": "llama",
    "vocab_size": 96,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-5,
}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
# What each shape changes in BASE, in the words of transformers 4's config.json.
SHAPES = {
    "multi_head": {"num_key_value_heads": 4, "rms_norm_eps": 1e-6},
    "grouped_query": {"num_key_value_heads": 1, "rope_theta": 500_000.0},
    "tied": {"tie_word_embeddings": True},
    "biases": {"attention_bias": True, "mlp_bias": True},
    "llama3_rope": {"rope_scaling": LLAMA3},
    "head_dim_linear_rope": {"head_dim": 24, "rope_scaling": {"type": "linear", "factor": 4.0}},
}


def make_config(shape: str, **changes) -> LlamaConfig:
    return LlamaConfig.from_hf(BASE | SHAPES[shape] | changes)
