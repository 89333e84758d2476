"""LLaMA: the forward pass as single-device mathematics.

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
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from alpacare_jax.model import attention, layers
from alpacare_jax.model.config import LlamaConfig

Params = dict[str, Any]
"""Nested dict of arrays: the tree that `params.py` declares."""


@dataclasses.dataclass(frozen=True)
class Placement:
    """What a mesh changes in the forward pass; by default nothing. See `sharding.placement`."""

    rows: Callable[[jax.Array], jax.Array] = lambda x: x
    """Says that the first axis of an activation, rows or tokens, is spread."""
    layer: Callable[[Params], Params] = lambda weights: weights
    """Brings the weights of one layer together just before they are used."""
    head: Callable[[jax.Array], jax.Array] = lambda head_VD: head_VD
    """The same for the output embedding."""
    kernel: attention.Kernel = attention.xla
    """Attention over packed rows."""


def compute_dtype(name: str, platform: str) -> jnp.dtype:
    """`auto` is bfloat16 on accelerators and float32 on CPU, where bfloat16 is slower."""
    if name == "auto":
        name = "float32" if platform == "cpu" else "bfloat16"
    return jnp.dtype(name)


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
    """One decoder layer."""

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
      placement: where arrays lie on a mesh. Without it XLA may keep all rows on every device.
    """

    def __init__(
        self,
        params: Params,
        config: LlamaConfig,
        dtype: jnp.dtype = jnp.float32,
        placement: Placement = Placement(),
    ):
        self.config, self.dtype, self.placement = config, dtype, placement
        self.embed_tokens = nnx.Param(params["embed_tokens"])
        self.layers = nnx.data(params["layers"])  # stacked; a Block of each is made in the scan
        self.norm = nnx.Param(params["norm"])
        self.lm_head = _param(params, "lm_head")

    @property
    def head_VD(self) -> jax.Array:
        """The output embedding in the compute dtype; the input one when they are tied."""
        head = self.embed_tokens if self.lm_head is None else self.lm_head
        return self.placement.head(head[...].astype(self.dtype))

    def hidden(
        self,
        tokens_BT: jax.Array,
        positions_BT: jax.Array,
        segments_BT: jax.Array,
        remat: str = "none",
        sums: Params | None = None,
    ) -> jax.Array:
        """Final normed hidden states [B, T, D] of packed rows; see `attention.attention_mask`.

        `remat` and `sums`, gradients of the layers so far, are for training: see `layers.run`.
        """
        layer = self._layer_over(positions_BT, segments_BT)
        x_MD = layers.run(
            lambda x_MD, weights: layer(x_MD, weights)[0],
            self._embed(tokens_BT),
            self.layers,
            remat,
            sums,
        )
        return self._final_norm(x_MD).reshape(*tokens_BT.shape, -1)

    def prefill(
        self, tokens_BT: jax.Array, positions_BT: jax.Array, segments_BT: jax.Array
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Hidden states as from `hidden`, and each layer's keys and values [L, B, T, K, H]."""
        layer = self._layer_over(positions_BT, segments_BT)
        x_MD, (k_LBTKH, v_LBTKH) = jax.lax.scan(layer, self._embed(tokens_BT), self.layers)
        hidden = self._final_norm(x_MD).reshape(*tokens_BT.shape, -1)
        return hidden, k_LBTKH, v_LBTKH

    def _layer_over(self, positions_BT, segments_BT):
        """(x_MD, one layer's weights) -> x_MD, (keys, values), for these rows."""
        rope = rope_angles(self.config, positions_BT)
        attend_rows = self.placement.kernel(segments_BT, positions_BT)

        def layer(x_MD, weights):
            kept = []

            def attend(q, k, v):
                kept.append((k, v))
                return attend_rows(q, k, v)

            block = Block(self.placement.layer(weights), self.config)
            return self.placement.rows(block(x_MD, rope, attend)), kept[0]

        return layer

    def decode(
        self, tokens_B: jax.Array, positions_B: jax.Array, k_LBSKH: jax.Array, v_LBSKH: jax.Array
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        """One token for each row: hidden states [B, D] and the cache with the token in it.

        Index and position are the same in the cache: row b sees keys 0 to positions_B[b].
        """
        B, S = len(tokens_B), k_LBSKH.shape[2]
        rope = rope_angles(self.config, positions_B[:, None])
        seen_BTS = (jnp.arange(S) <= positions_B[:, None])[:, None]
        rows = jnp.arange(B)

        def layer(carry, scanned):
            x_BD, *cache = carry
            weights, i = scanned

            def attend(q, k, v):
                # The cache is carried, not scanned over, so that XLA updates it in place.
                cache[0] = cache[0].at[i, rows, positions_B].set(k[:, 0])
                cache[1] = cache[1].at[i, rows, positions_B].set(v[:, 0])
                return attention.attend(q, cache[0][i], cache[1][i], seen_BTS)

            x_BD = Block(weights, self.config)(x_BD, rope, attend)
            return (x_BD, *cache), None

        start = (self._embed(tokens_B), k_LBSKH, v_LBSKH)
        numbers = jnp.arange(self.config.num_hidden_layers)
        (x_BD, k_LBSKH, v_LBSKH), _ = jax.lax.scan(layer, start, (self.layers, numbers))
        return self._final_norm(x_BD), k_LBSKH, v_LBSKH

    def _embed(self, tokens: jax.Array) -> jax.Array:
        return self.placement.rows(self.embed_tokens[...][tokens.reshape(-1)].astype(self.dtype))

    def _final_norm(self, x_MD: jax.Array) -> jax.Array:
        return rms_norm(x_MD, self.norm[...], self.config.rms_norm_eps)

    def logits(self, hidden: jax.Array) -> jax.Array:
        """float32 logits [..., V]."""
        return jnp.einsum("...D,VD->...V", hidden, self.head_VD, preferred_element_type=jnp.float32)
