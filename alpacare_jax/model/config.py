"""The configuration of a LLaMA: read from Hugging Face's `config.json`, or a published size."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from alpacare_jax.model import rope
from alpacare_jax.model.rope import RopeScaling


@dataclasses.dataclass(frozen=True)
class LlamaConfig:
    """Sizes and settings of a model, named as in Hugging Face's `LlamaConfig`."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int = 0  # 0: as many as query heads
    head_dim: int = 0  # 0: hidden_size / num_attention_heads
    max_position_embeddings: int = 2048
    rms_norm_eps: float = 1e-6
    rope_theta: float = 10_000.0
    rope_scaling: RopeScaling | None = None
    tie_word_embeddings: bool = False
    attention_bias: bool = False
    mlp_bias: bool = False
    initializer_range: float = 0.02
    bos_token_id: int | None = 1
    eos_token_ids: tuple[int, ...] = (2,)

    def __post_init__(self):
        rope.require_numbers(self, "config.json: ")
        heads, kv_heads = self.num_attention_heads, self.num_key_value_heads or 0
        object.__setattr__(self, "num_key_value_heads", kv_heads or heads)
        if not self.head_dim:
            if self.hidden_size % heads:
                raise ValueError(
                    f"hidden_size {self.hidden_size} is not divisible by num_attention_heads "
                    f"{heads}; set head_dim"
                )
            object.__setattr__(self, "head_dim", self.hidden_size // heads)
        if heads % self.num_key_value_heads:
            raise ValueError(
                f"num_attention_heads {heads} is not a multiple of num_key_value_heads "
                f"{self.num_key_value_heads}"
            )
        if self.head_dim % 2:
            raise ValueError(f"head_dim {self.head_dim} must be even for rotary embedding")

    @property
    def untied_embeddings(self) -> bool:
        """Whether the output embedding is a separate weight."""
        return not self.tie_word_embeddings

    @property
    def sizes(self) -> dict[str, int]:
        """The size of each letter of the legend that occurs in weights."""
        return {
            "V": self.vocab_size,
            "D": self.hidden_size,
            "F": self.intermediate_size,
            "L": self.num_hidden_layers,
            "N": self.num_attention_heads,
            "K": self.num_key_value_heads,
            "H": self.head_dim,
        }

    @classmethod
    def from_hf(cls, hf: dict[str, Any]) -> "LlamaConfig":
        """Parses a Hugging Face `config.json`, written by transformers 4 or 5.

        Raises:
          ValueError: the model is not a LLaMA, a required key is missing, or a setting that changes
            the mathematics is not implemented.
        """
        if hf.get("model_type") != "llama":
            raise ValueError(f"config.json has model_type {hf.get('model_type')!r}, not 'llama'")
        for key in ("quantization_config", "compression_config"):
            if group := hf.get(key):
                method = group.get("quant_method") if isinstance(group, Mapping) else None
                raise ValueError(
                    f"config.json has a {key} with quant_method {method!r:.80}: quantised weights "
                    "are not read; take the model that was quantised, in float or bfloat16"
                )
        for key, only in _ONLY_IMPLEMENTED.items():
            if hf.get(key, only) not in (only, None):
                raise ValueError(
                    f"config.json sets {key}={hf[key]!r:.80}; only {only!r} is implemented"
                )
        if "max_position_embeddings" not in hf and "max_sequence_length" in hf:  # of March 2023
            hf = hf | {"max_position_embeddings": hf["max_sequence_length"]}
        required = [f.name for f in dataclasses.fields(cls) if f.default is dataclasses.MISSING]
        if missing := [key for key in required if hf.get(key) is None]:
            raise ValueError(f"config.json lacks {', '.join(missing)}")
        known = {f.name for f in dataclasses.fields(cls)} - {"rope_scaling"}
        kwargs = {k: v for k, v in hf.items() if k in known and v is not None}
        if isinstance(hf.get("bos_token_id"), list):
            raise ValueError("config.json: bos_token_id is a list; give the id that starts a text")
        kwargs["bos_token_id"] = next(iter(token_ids(hf, "bos_token_id")), None)
        kwargs["eos_token_ids"] = token_ids(hf, "eos_token_id")
        kwargs["rope_theta"], kwargs["rope_scaling"] = rope.read(hf)
        return cls(**kwargs)

    def to_hf(self) -> dict[str, Any]:
        """The content of a `config.json` that both transformers 4 and 5 read."""
        hf = dataclasses.asdict(self) | {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "hidden_act": "silu",
        }
        eos = hf.pop("eos_token_ids")
        hf["eos_token_id"] = eos[0] if len(eos) == 1 else list(eos) or None
        scaling = hf["rope_scaling"]
        if scaling and scaling["rope_type"] == "linear":
            hf["rope_scaling"] = {"rope_type": "linear", "factor": scaling["factor"]}
        return hf


_ONLY_IMPLEMENTED = {
    "hidden_act": "silu",
    "attention_dropout": 0.0,
    "rope_interleaved": False,
    "partial_rotary_factor": 1.0,
    "sliding_window": None,
}


def token_ids(content: Mapping[str, Any], key: str, file: str = "config.json") -> tuple[int, ...]:
    """The ids that `key` of a JSON file holds: one, a list of them, or null.

    Raises ValueError if it holds something else.
    """
    value = content.get(key)
    ids = value if isinstance(value, list) else [] if value is None else [value]
    if any(type(token_id) is not int or not 0 <= token_id < 2**31 for token_id in ids):
        raise ValueError(f"{file}: {key} is {value!r:.80}, not a token id or a list")
    return tuple(ids)


_LLAMA1: dict[str, Any] = {
    "vocab_size": 32_000,
    "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-6,
}
_LLAMA2: dict[str, Any] = _LLAMA1 | {"max_position_embeddings": 4096, "rms_norm_eps": 1e-5}
_LLAMA3: dict[str, Any] = {
    "vocab_size": 128_256,
    "rms_norm_eps": 1e-5,
    "rope_theta": 500_000.0,
    "bos_token_id": 128_000,
    "eos_token_ids": (128_001,),
}


def _sizes(hidden: int, ffn: int, layers: int, heads: int, kv_heads: int = 0) -> dict[str, Any]:
    return {
        "hidden_size": hidden,
        "intermediate_size": ffn,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
    }


# As in the released config.json files.
VARIANTS: dict[str, LlamaConfig] = {
    "llama-7b": LlamaConfig(**_LLAMA1, **_sizes(4096, 11_008, 32, 32)),
    "llama-13b": LlamaConfig(**_LLAMA1, **_sizes(5120, 13_824, 40, 40)),
    "llama-30b": LlamaConfig(**_LLAMA1, **_sizes(6656, 17_920, 60, 52)),
    "llama-65b": LlamaConfig(**(_LLAMA1 | {"rms_norm_eps": 1e-5}), **_sizes(8192, 22_016, 80, 64)),
    "llama2-7b": LlamaConfig(**_LLAMA2, **_sizes(4096, 11_008, 32, 32)),
    "llama2-13b": LlamaConfig(**_LLAMA2, **_sizes(5120, 13_824, 40, 40)),
    "llama2-70b": LlamaConfig(**_LLAMA2, **_sizes(8192, 28_672, 80, 64, 8)),
    "llama3-8b": LlamaConfig(
        **_LLAMA3, **_sizes(4096, 14_336, 32, 32, 8), max_position_embeddings=8192
    ),
    "llama3.2-1b": LlamaConfig(
        **_LLAMA3,
        **_sizes(2048, 8192, 16, 32, 8),
        max_position_embeddings=131_072,
        tie_word_embeddings=True,
        rope_scaling=RopeScaling("llama3", factor=32.0),
    ),
    "smollm2-135m": LlamaConfig(
        **_sizes(576, 1536, 30, 9, 3),
        vocab_size=49_152,
        max_position_embeddings=8192,
        rms_norm_eps=1e-5,
        rope_theta=100_000.0,
        tie_word_embeddings=True,
    ),
    "tiny": LlamaConfig(**_sizes(64, 128, 2, 4, 2), vocab_size=512, max_position_embeddings=512),
}
