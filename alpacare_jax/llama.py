"""LLaMA: configuration, published sizes, and the forward pass as single-device mathematics.

Letters, the same in einsum strings and in the suffixes of array names:

    B batch (rows)      D model (hidden_size)          H head dim
    T query position    N query heads                  F ffn (intermediate_size)
    S key position      K key/value heads              V vocabulary
    M tokens = B*T      G query heads a kv head = N/K  L layers, only as leading axis

Activations stay flattened as [M, D] outside attention: XLA's CPU back end is about 1.5 times
slower on dots with two free axes, and TPU and GPU compile both forms to the same code.

Norms, rotary angles, softmax and logits are computed in float32 whatever the compute dtype is.
"""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from alpacare_jax import attention

Params = dict[str, Any]
"""Nested dict of arrays: the tree that `params.py` declares."""

REMAT_POLICIES = {
    "none": None,
    "full": jax.checkpoint_policies.nothing_saveable,
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
}
"""What the backward pass keeps of each layer: everything, nothing, or the projections' outputs."""


@dataclasses.dataclass(frozen=True)
class RopeScaling:
    """How rotary frequencies are stretched for longer contexts.

    `linear` divides every frequency by `factor`. `llama3` divides the low ones only
    (Llama 3.1, `_compute_llama3_parameters` in transformers).
    """

    rope_type: str
    factor: float
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_max_position_embeddings: int = 8192

    def __post_init__(self):
        if self.rope_type not in ("linear", "llama3"):
            raise ValueError(
                f"rope scaling {self.rope_type!r} is not implemented; choose linear or llama3"
            )


def _rope_scaling(rope: dict[str, Any], context_length: int | None) -> RopeScaling | None:
    """Reads the scaling of a `config.json`, None for plain rotary embedding."""
    rope_type = rope.get("rope_type") or rope.get("type") or "default"
    settings = {k: v for k, v in rope.items() if k not in ("rope_type", "type")}
    if settings.pop("partial_rotary_factor", 1.0) != 1.0:
        raise ValueError("rope scaling sets partial_rotary_factor: not implemented")
    if rope_type == "default":
        return None
    needed = ["factor"]
    if rope_type == "llama3":
        needed += ["low_freq_factor", "high_freq_factor"]
        if context_length:  # transformers falls back to it
            settings.setdefault("original_max_position_embeddings", context_length)
    if missing := [key for key in needed if key not in settings]:
        raise ValueError(f"rope scaling of type {rope_type} lacks {', '.join(missing)}")
    if unknown := set(settings) - {field.name for field in dataclasses.fields(RopeScaling)}:
        raise ValueError(f"rope scaling sets {', '.join(sorted(unknown))}: not implemented")
    return RopeScaling(rope_type=rope_type, **settings)


@dataclasses.dataclass(frozen=True)
class LlamaConfig:
    """The shape of a model, in the words of Hugging Face's `LlamaConfig`."""

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
            raise ValueError(f"head_dim {self.head_dim} must be even: rotary embedding turns pairs")

    @property
    def untied_embeddings(self) -> bool:
        return not self.tie_word_embeddings

    @property
    def sizes(self) -> dict[str, int]:
        """The length of each letter of the legend that a weight can have."""
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
        """Reads the content of a Hugging Face `config.json`, of transformers 4 or 5.

        Raises:
          ValueError: not a LLaMA, a required key is missing, or a setting that changes the
            mathematics is not implemented; the message names it.
        """
        if hf.get("model_type") != "llama":
            raise ValueError(f"config.json has model_type {hf.get('model_type')!r}, not 'llama'")
        for key, only in _ONLY_IMPLEMENTED.items():
            if hf.get(key, only) not in (only, None):
                raise ValueError(
                    f"config.json sets {key}={hf[key]!r}; only {only!r} is implemented"
                )
        required = [f.name for f in dataclasses.fields(cls) if f.default is dataclasses.MISSING]
        if missing := [key for key in required if key not in hf]:
            raise ValueError(f"config.json lacks {', '.join(missing)}")
        known = {f.name for f in dataclasses.fields(cls)} - {"rope_scaling"}
        kwargs = {k: v for k, v in hf.items() if k in known and v is not None}
        kwargs["bos_token_id"] = hf.get("bos_token_id")
        eos = hf.get("eos_token_id")
        kwargs["eos_token_ids"] = (
            tuple(eos) if isinstance(eos, list) else () if eos is None else (eos,)
        )
        # transformers 5 writes one group "rope_parameters"; 4 wrote theta beside "rope_scaling".
        rope = dict(hf.get("rope_parameters") or hf.get("rope_scaling") or {})
        kwargs["rope_theta"] = float(rope.pop("rope_theta", hf.get("rope_theta") or 10_000.0))
        kwargs["rope_scaling"] = _rope_scaling(rope, hf.get("max_position_embeddings"))
        return cls(**kwargs)

    def to_hf(self) -> dict[str, Any]:
        """The content of a `config.json` that transformers 4 and 5 both open."""
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
    "quantization_config": None,
}

_LLAMA1 = {"vocab_size": 32_000, "max_position_embeddings": 2048, "rms_norm_eps": 1e-6}
_LLAMA2 = {"vocab_size": 32_000, "max_position_embeddings": 4096, "rms_norm_eps": 1e-5}
_LLAMA3 = {
    "vocab_size": 128_256,
    "rms_norm_eps": 1e-5,
    "rope_theta": 500_000.0,
    "bos_token_id": 128_000,
    "eos_token_ids": (128_001,),
}


def _shape(hidden: int, ffn: int, layers: int, heads: int, kv_heads: int = 0) -> dict[str, int]:
    return {
        "hidden_size": hidden,
        "intermediate_size": ffn,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
    }


# Sizes as in the released config.json files.
VARIANTS: dict[str, LlamaConfig] = {
    "llama-7b": LlamaConfig(**_LLAMA1, **_shape(4096, 11_008, 32, 32)),
    "llama-13b": LlamaConfig(**_LLAMA1, **_shape(5120, 13_824, 40, 40)),
    "llama-30b": LlamaConfig(**_LLAMA1, **_shape(6656, 17_920, 60, 52)),
    "llama-65b": LlamaConfig(**(_LLAMA1 | {"rms_norm_eps": 1e-5}), **_shape(8192, 22_016, 80, 64)),
    "llama2-7b": LlamaConfig(**_LLAMA2, **_shape(4096, 11_008, 32, 32)),
    "llama2-13b": LlamaConfig(**_LLAMA2, **_shape(5120, 13_824, 40, 40)),
    "llama2-70b": LlamaConfig(**_LLAMA2, **_shape(8192, 28_672, 80, 64, 8)),
    "llama3-8b": LlamaConfig(
        **_LLAMA3, **_shape(4096, 14_336, 32, 32, 8), max_position_embeddings=8192
    ),
    "llama3.2-1b": LlamaConfig(
        **_LLAMA3,
        **_shape(2048, 8192, 16, 32, 8),
        max_position_embeddings=131_072,
        tie_word_embeddings=True,
        rope_scaling=RopeScaling("llama3", factor=32.0),
    ),
    "smollm2-135m": LlamaConfig(
        **_shape(576, 1536, 30, 9, 3),
        vocab_size=49_152,
        max_position_embeddings=8192,
        rms_norm_eps=1e-5,
        rope_theta=100_000.0,
        tie_word_embeddings=True,
    ),
    "tiny": LlamaConfig(**_shape(64, 128, 2, 4, 2), vocab_size=512, max_position_embeddings=512),
}


def rms_norm(x_MD: jax.Array, scale_D: jax.Array, eps: float) -> jax.Array:
    """x / sqrt(mean(x^2) + eps) * scale (arXiv:1910.07467), computed in float32."""
    x = x_MD.astype(jnp.float32)
    normed = x * jax.lax.rsqrt(jnp.mean(x * x, axis=-1, keepdims=True) + eps)
    return (normed * scale_D.astype(jnp.float32)).astype(x_MD.dtype)


def rope_frequencies(config: LlamaConfig) -> jax.Array:
    """Radians a position for each of the H/2 rotated pairs, float32 [H/2] (arXiv:2104.09864)."""
    exponents = jnp.arange(0, config.head_dim, 2, dtype=jnp.float32) / config.head_dim
    frequencies = 1.0 / config.rope_theta**exponents
    scaling = config.rope_scaling
    if scaling is None:
        return frequencies
    if scaling.rope_type == "linear":
        return frequencies / scaling.factor
    turns = scaling.original_max_position_embeddings * frequencies / (2 * math.pi)
    low, high = scaling.low_freq_factor, scaling.high_freq_factor
    kept_share = jnp.clip((turns - low) / (high - low), 0.0, 1.0)
    return frequencies * (kept_share + (1.0 - kept_share) / scaling.factor)


def rope_angles(config: LlamaConfig, positions_BT: jax.Array) -> tuple[jax.Array, jax.Array]:
    """cos and sin of every position, float32 [B, T, 1, H/2]."""
    angles = positions_BT[:, :, None, None].astype(jnp.float32) * rope_frequencies(config)
    return jnp.cos(angles), jnp.sin(angles)


def apply_rope(x_BTNH: jax.Array, rope: tuple[jax.Array, jax.Array]) -> jax.Array:
    """Rotates pairs (i, i + H/2): Hugging Face's split halves, so weights need no permutation."""
    cos, sin = rope
    first, second = jnp.split(x_BTNH.astype(jnp.float32), 2, axis=-1)
    rotated = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
    return rotated.astype(x_BTNH.dtype)


def _param(params: Params, name: str) -> nnx.Param | None:
    return nnx.Param(params[name]) if name in params else None


def _add(x: jax.Array, bias: nnx.Param | None) -> jax.Array:
    return x if bias is None else x + bias[...].astype(x.dtype)


class Attention(nnx.Module):
    """Self-attention of one layer."""

    def __init__(self, params: Params, config: LlamaConfig):
        self.config = config
        for name in (
            "q_proj",
            "k_proj",
            "v_proj",
            "o_proj",
            "q_bias",
            "k_bias",
            "v_bias",
            "o_bias",
        ):
            setattr(self, name, _param(params, name))

    def heads(self, x_MD: jax.Array, rope, B: int):
        """Queries, keys and values [B, T, heads, H], the first two rotated."""
        split = lambda x: x.reshape(B, -1, *x.shape[1:])  # noqa: E731
        dtype = x_MD.dtype
        q_MNH = jnp.einsum("MD,DNH->MNH", x_MD, self.q_proj[...].astype(dtype))
        k_MKH = jnp.einsum("MD,DKH->MKH", x_MD, self.k_proj[...].astype(dtype))
        v_MKH = jnp.einsum("MD,DKH->MKH", x_MD, self.v_proj[...].astype(dtype))
        q_BTNH = apply_rope(split(_add(q_MNH, self.q_bias)), rope)
        k_BTKH = apply_rope(split(_add(k_MKH, self.k_bias)), rope)
        return q_BTNH, k_BTKH, split(_add(v_MKH, self.v_bias))

    def output(self, o_BTNH: jax.Array) -> jax.Array:
        o_MNH = o_BTNH.reshape(-1, *o_BTNH.shape[2:])
        x_MD = jnp.einsum("MNH,NHD->MD", o_MNH, self.o_proj[...].astype(o_MNH.dtype))
        return _add(x_MD, self.o_bias)


class Mlp(nnx.Module):
    """SwiGLU (arXiv:2002.05202): down(silu(gate(x)) * up(x))."""

    def __init__(self, params: Params):
        for name in ("gate_proj", "up_proj", "down_proj", "gate_bias", "up_bias", "down_bias"):
            setattr(self, name, _param(params, name))

    def __call__(self, x_MD: jax.Array) -> jax.Array:
        dtype = x_MD.dtype
        gate_MF = _add(x_MD @ self.gate_proj[...].astype(dtype), self.gate_bias)
        up_MF = _add(x_MD @ self.up_proj[...].astype(dtype), self.up_bias)
        return _add(
            (jax.nn.silu(gate_MF) * up_MF) @ self.down_proj[...].astype(dtype), self.down_bias
        )


class Block(nnx.Module):
    """One decoder layer, or all of them when the parameters are stacked."""

    def __init__(self, params: Params, config: LlamaConfig):
        self.config = config
        self.input_layernorm = nnx.Param(params["input_layernorm"])
        self.self_attn = Attention(params["self_attn"], config)
        self.post_attention_layernorm = nnx.Param(params["post_attention_layernorm"])
        self.mlp = Mlp(params["mlp"])

    def __call__(self, x_MD: jax.Array, rope, attend) -> jax.Array:
        """`attend(q_BTNH, k_BTKH, v_BTKH) -> o_BTNH` decides what is seen, and may keep a cache."""
        eps, B = self.config.rms_norm_eps, rope[0].shape[0]
        normed = rms_norm(x_MD, self.input_layernorm[...], eps)
        x_MD = x_MD + self.self_attn.output(attend(*self.self_attn.heads(normed, rope, B)))
        return x_MD + self.mlp(rms_norm(x_MD, self.post_attention_layernorm[...], eps))


class Llama(nnx.Module):
    """The decoder. Built inside `jax.jit` as a view of a plain parameter tree; it owns no state.

    Args:
      params: the tree of `params.py`, of any float dtype.
      config: the model's shape.
      dtype: compute dtype; weights are cast as each layer uses them.
    """

    def __init__(self, params: Params, config: LlamaConfig, dtype: jnp.dtype = jnp.float32):
        self.config, self.dtype = config, dtype
        self.embed_tokens = nnx.Param(params["embed_tokens"])
        self.layers = Block(params["layers"], config)
        self.norm = nnx.Param(params["norm"])
        self.lm_head = _param(params, "lm_head")

    @property
    def head_VD(self) -> jax.Array:
        """The output embedding in the compute dtype; the input one when they are tied."""
        head = self.embed_tokens if self.lm_head is None else self.lm_head
        return head[...].astype(self.dtype)

    def hidden(
        self,
        tokens_BT: jax.Array,
        positions_BT: jax.Array,
        segments_BT: jax.Array,
        remat: str = "none",
    ) -> jax.Array:
        """Final normed hidden states [B, T, D] of packed rows; see `attention.visible`."""
        return self._rows(tokens_BT, positions_BT, segments_BT, remat, keep=False)[0]

    def prefill(
        self, tokens_BT: jax.Array, positions_BT: jax.Array, segments_BT: jax.Array
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Hidden states as from `hidden`, and each layer's keys and values [L, B, T, K, H]."""
        hidden, (k_LBTKH, v_LBTKH) = self._rows(
            tokens_BT, positions_BT, segments_BT, "none", keep=True
        )
        return hidden, k_LBTKH, v_LBTKH

    def _rows(self, tokens_BT, positions_BT, segments_BT, remat, keep):
        B, T = tokens_BT.shape
        rope = rope_angles(self.config, positions_BT)
        seen = attention.visible(segments_BT, positions_BT, segments_BT, positions_BT)
        graph, stacked = nnx.split(self.layers)

        def layer(x_MD, weights):
            kept = []

            def attend(q, k, v):
                kept.append((k, v))
                return attention.attend(q, k, v, seen)

            x_MD = nnx.merge(graph, weights)(x_MD, rope, attend)
            return x_MD, kept[0] if keep else None

        if remat != "none":
            layer = jax.checkpoint(layer, policy=REMAT_POLICIES[remat], prevent_cse=False)
        x_MD, kept = jax.lax.scan(layer, self._embed(tokens_BT), stacked)
        return self._final_norm(x_MD).reshape(B, T, -1), kept

    def decode(
        self, tokens_B: jax.Array, positions_B: jax.Array, k_LBSKH: jax.Array, v_LBSKH: jax.Array
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        """One token for each row: hidden states [B, D] and the cache with the token in it.

        Index and position are the same in the cache: row b sees keys 0 to positions_B[b].
        """
        B, S = len(tokens_B), k_LBSKH.shape[2]
        rope = rope_angles(self.config, positions_B[:, None])
        seen_BTS = (jnp.arange(S) <= positions_B[:, None])[:, None]
        graph, stacked = nnx.split(self.layers)
        rows = jnp.arange(B)

        def layer(carry, scanned):
            x_BD, *cache = carry
            weights, i = scanned

            def attend(q, k, v):
                # The cache is carried, not scanned over, so that XLA updates it in place.
                cache[0] = cache[0].at[i, rows, positions_B].set(k[:, 0])
                cache[1] = cache[1].at[i, rows, positions_B].set(v[:, 0])
                return attention.attend(q, cache[0][i], cache[1][i], seen_BTS)

            x_BD = nnx.merge(graph, weights)(x_BD, rope, attend)
            return (x_BD, *cache), None

        start = (self._embed(tokens_B), k_LBSKH, v_LBSKH)
        layers = jnp.arange(self.config.num_hidden_layers)
        (x_BD, k_LBSKH, v_LBSKH), _ = jax.lax.scan(layer, start, (stacked, layers))
        return self._final_norm(x_BD), k_LBSKH, v_LBSKH

    def _embed(self, tokens: jax.Array) -> jax.Array:
        return self.embed_tokens[...][tokens.reshape(-1)].astype(self.dtype)

    def _final_norm(self, x_MD: jax.Array) -> jax.Array:
        return rms_norm(x_MD, self.norm[...], self.config.rms_norm_eps)

    def logits(self, hidden: jax.Array) -> jax.Array:
        """float32 logits [..., V]."""
        return jnp.einsum("...D,VD->...V", hidden, self.head_VD, preferred_element_type=jnp.float32)
