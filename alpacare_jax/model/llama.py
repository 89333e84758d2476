"""The forward pass of LLaMA, written as for a single device.

Legend of the letters in einsum strings and in the suffixes of array names:

    B batch (rows)      D model (hidden_size)          H head dim
    T query position    N query heads                  F ffn (intermediate_size)
    S key position      K key/value heads              V vocabulary
    M tokens = B*T      G queries per kv head = N/K    L layers, only as leading axis

Activations stay flattened as [M, D] outside attention: XLA's CPU back end is about 1.5 times
slower on dot products with two free axes; TPU and GPU compile both forms to the same code.

Norms, rotary angles, softmax and logits are computed in float32 whatever the compute dtype.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from alpacare_jax.model import attention, layers
from alpacare_jax.model.config import LlamaConfig
from alpacare_jax.model.dropout import Dropout
from alpacare_jax.model.layers import PROJECTED
from alpacare_jax.model.projections import Projection, join, optional_param

Params = dict[str, Any]
"""Nested dict of arrays: the parameter tree that `params.py` declares."""

Rope = tuple[jax.Array, jax.Array]
"""Cosines and sines of the rotation angles, float32 [B, T, 1, H/2] each."""

AttendCached = Callable[[jax.Array, jax.Array, jax.Array, jax.Array, Any], tuple[jax.Array, Any]]
"""(layer number, q_MNH, k_MKH, v_MKH of new tokens, cache) -> o_MNH, cache with them."""


@dataclasses.dataclass(frozen=True)
class Placement:
    """Sharding hooks of the forward pass, by default none. See `sharding.placement`."""

    constrain_rows: Callable[[jax.Array], jax.Array] = lambda x: x
    """Constrains the leading axis of an activation, rows or tokens, to the batch mesh axes."""
    gather_layer: Callable[[Params], Params] = lambda params: params
    """All-gathers one layer's parameters just before they are used."""
    gather_head: Callable[[jax.Array], jax.Array] = lambda head_VD: head_VD
    """All-gathers the output embedding."""
    kernel: attention.Kernel = attention.xla
    """Attention over packed rows."""
    unroll: bool = False
    """Whether layers are compiled one by one; see `layers.run`."""


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
    """Radians per position for each of the H/2 rotated pairs, float32 [H/2] (arXiv:2104.09864)."""
    exponents = jnp.arange(0, config.head_dim, 2, dtype=jnp.float32) / config.head_dim
    frequencies = 1.0 / config.rope_theta**exponents
    scaling = config.rope_scaling
    if scaling is None:
        return frequencies
    if scaling.rope_type == "linear":
        return frequencies / scaling.factor
    rotations = scaling.original_max_position_embeddings * frequencies / (2 * math.pi)
    low, high = scaling.low_freq_factor, scaling.high_freq_factor
    unscaled_share = jnp.clip((rotations - low) / (high - low), 0.0, 1.0)
    return frequencies * (unscaled_share + (1.0 - unscaled_share) / scaling.factor)


def rope_angles(config: LlamaConfig, positions_BT: jax.Array) -> Rope:
    """Cosines and sines for every position."""
    angles = positions_BT[:, :, None, None].astype(jnp.float32) * rope_frequencies(config)
    return jnp.cos(angles), jnp.sin(angles)


def apply_rope(x_BTNH: jax.Array, rope: Rope) -> jax.Array:
    """Rotates pairs (i, i + H/2), Hugging Face's split halves: no permutation in conversion."""
    cos, sin = rope
    first, second = jnp.split(x_BTNH.astype(jnp.float32), 2, axis=-1)
    rotated = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
    return rotated.astype(x_BTNH.dtype)


class Attention(nnx.Module):
    """Self-attention of one layer."""

    def __init__(self, params: Params):
        self.q, self.k, self.v, self.o = (Projection(params, name) for name in "qkvo")

    def project_qkv(
        self, x_MD: jax.Array, rope: Rope, B: int, dropout: Dropout | None
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Queries [B, T, N, H], keys and values [B, T, K, H]; queries and keys are rotated."""

        def split_rows(x):
            return x.reshape(B, -1, *x.shape[1:])

        q_MNH, k_MKH, v_MKH = (f(x_MD, dropout) for f in (self.q, self.k, self.v))
        q_BTNH, k_BTKH = (apply_rope(split_rows(x), rope) for x in (q_MNH, k_MKH))
        q, k, v = (layers.keep(x, PROJECTED) for x in (q_BTNH, k_BTKH, split_rows(v_MKH)))
        return q, k, v

    def project_output(self, o_BTNH: jax.Array, dropout: Dropout | None) -> jax.Array:
        """The attended values of all heads, projected back to x_MD."""
        return self.o(o_BTNH.reshape(-1, *o_BTNH.shape[2:]), dropout)


class Mlp(nnx.Module):
    """SwiGLU (arXiv:2002.05202): down(silu(gate(x)) * up(x))."""

    def __init__(self, params: Params):
        self.gate, self.up, self.down = (Projection(params, n) for n in ("gate", "up", "down"))

    def __call__(self, x_MD: jax.Array, dropout: Dropout | None) -> jax.Array:
        """x_MD -> x_MD."""
        gate_MF, up_MF = (layers.keep(f(x_MD, dropout), PROJECTED) for f in (self.gate, self.up))
        h_MF = jax.nn.silu(gate_MF) * up_MF
        return self.down(h_MF, dropout)


class Block(nnx.Module):
    """One decoder layer."""

    def __init__(self, params: Params, config: LlamaConfig):
        self.config = config
        self.input_layernorm = nnx.Param(params["input_layernorm"])
        self.self_attn = Attention(params["self_attn"])
        self.post_attention_layernorm = nnx.Param(params["post_attention_layernorm"])
        self.mlp = Mlp(params["mlp"])

    def __call__(
        self, x_MD: jax.Array, rope: Rope, attend: attention.Attend, dropout: Dropout | None = None
    ) -> jax.Array:
        """`attend(q_BTNH, k_BTKH, v_BTKH) -> o_BTNH` applies the mask, and may keep a cache."""
        eps, B = self.config.rms_norm_eps, rope[0].shape[0]
        normed = rms_norm(x_MD, self.input_layernorm[...], eps)
        attended = attend(*self.self_attn.project_qkv(normed, rope, B, dropout))
        x_MD = x_MD + self.self_attn.project_output(attended, dropout)
        x_MD = layers.keep(x_MD, PROJECTED)
        normed = rms_norm(x_MD, self.post_attention_layernorm[...], eps)
        return x_MD + self.mlp(normed, dropout)


class Llama(nnx.Module):
    """The decoder: a stateless view of a parameter tree, constructed inside `jax.jit`.

    Args:
      params: the tree of `params.py`, of any float dtype; `join` adds an adapter to it, and
        `layers.unstack` takes its layers apart.
      config: the model's configuration.
      dtype: compute dtype; weights are cast as each layer uses them.
      placement: how arrays are laid out on a mesh. Without it XLA may replicate all rows.
      adapter: the tree of a `params.Adapter`: it alone gets a gradient then.
      scaling: of the adapter.
    """

    def __init__(
        self,
        params: Params,
        config: LlamaConfig,
        dtype: DTypeLike = jnp.float32,
        placement: Placement = Placement(),
        adapter: Params | None = None,
        scaling: float = 1.0,
    ):
        self.config, self.dtype, self.placement = config, dtype, placement
        self.embed_tokens = nnx.Param(params["embed_tokens"])
        layers_of_base, self.scaling = params["layers"], scaling
        # Stacked, and the scans make a Block of each layer; or a list of them, for `extend` alone.
        self.trained = nnx.data(adapter["layers"] if adapter else layers_of_base)
        self.frozen = nnx.data(layers_of_base if adapter else {})
        self.layers = nnx.data(
            layers_of_base
            if isinstance(layers_of_base, list)
            else join(self.frozen, self.trained, scaling)
        )
        self.norm = nnx.Param(params["norm"])
        self.lm_head = optional_param(params, "lm_head")

    @property
    def head_VD(self) -> jax.Array:
        """The output embedding in the compute dtype: the input embedding where they are tied."""
        head = self.embed_tokens if self.lm_head is None else self.lm_head
        return self.placement.gather_head(head[...].astype(self.dtype))

    def hidden(
        self,
        tokens_BT: jax.Array,
        positions_BT: jax.Array,
        segments_BT: jax.Array,
        remat: str = "none",
        accumulated_grads: Params | None = None,
        dropout: Dropout | None = None,
    ) -> jax.Array:
        """Normalised final hidden states [B, T, D] of packed rows; see `attention.attention_mask`.

        The rest is for training: `remat` and `accumulated_grads`, of the layers that are trained,
        see `layers.run`; `dropout` of what an adapter reads.
        """
        layer = self._make_layer(positions_BT, segments_BT, dropout)
        numbers = jnp.arange(self.config.num_hidden_layers) if dropout else None

        def run_layer(x_MD, trained, frozen, number):
            return layer(x_MD, join(frozen, trained, self.scaling), number)

        x_MD = layers.run(
            run_layer,
            self._embed(tokens_BT),
            self.trained,
            remat,
            accumulated_grads,
            (self.frozen, numbers),
            self.placement.unroll,
        )
        return self._final_norm(x_MD).reshape(*tokens_BT.shape, -1)

    def first_qkv(
        self, tokens_BT: jax.Array, positions_BT: jax.Array
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Queries, keys and values of the first layer; see `kernel_check`."""
        first = jax.tree.map(lambda stacked: stacked[0], self.layers)
        block = Block(self.placement.gather_layer(first), self.config)
        eps, rope = self.config.rms_norm_eps, rope_angles(self.config, positions_BT)
        normed = rms_norm(self._embed(tokens_BT), block.input_layernorm[...], eps)
        return block.self_attn.project_qkv(normed, rope, len(tokens_BT), None)

    def _make_layer(
        self, positions_BT: jax.Array, segments_BT: jax.Array, dropout: Dropout | None = None
    ):
        """The function (x_MD, one layer's params, its number) -> x_MD for these rows."""
        rope = rope_angles(self.config, positions_BT)
        attend = self.placement.kernel(segments_BT, positions_BT)

        def layer(x_MD, params, number):
            block = Block(self.placement.gather_layer(params), self.config)
            drop = dataclasses.replace(dropout, layer=number) if dropout else None
            return self.placement.constrain_rows(block(x_MD, rope, attend, drop))

        return layer

    def extend(
        self, tokens_M: jax.Array, positions_M: jax.Array, cache: Any, attend: AttendCached
    ) -> tuple[jax.Array, Any]:
        """Continues rows whose earlier keys are in a cache: hidden states [M, D], the cache.

        Which row a token belongs to is known to `attend` alone.
        """
        rope = rope_angles(self.config, positions_M[None])

        @jax.jit  # traced once for a list of layers
        def layer(carry, params, number):
            x_MD, cache = carry

            def attend_cached(q, k, v):
                nonlocal cache
                out_MNH, cache = attend(number, q[0], k[0], v[0], cache)
                return out_MNH[None]

            # The cache is carried, not scanned over, so that XLA updates it in place.
            x_MD = Block(params, self.config)(x_MD, rope, attend_cached)
            return x_MD, cache

        carry = self._embed(tokens_M), cache
        if isinstance(self.layers, list):
            for number, params in enumerate(self.layers):
                carry = layer(carry, params, jnp.int32(number))
        else:
            scanned = self.layers, jnp.arange(self.config.num_hidden_layers)
            carry, _ = jax.lax.scan(lambda carry, each: (layer(carry, *each), None), carry, scanned)
        x_MD, cache = carry
        return self._final_norm(x_MD), cache

    def _embed(self, tokens: jax.Array) -> jax.Array:
        embedded_MD = self.embed_tokens[...][tokens.reshape(-1)].astype(self.dtype)
        return self.placement.constrain_rows(embedded_MD)

    def _final_norm(self, x_MD: jax.Array) -> jax.Array:
        return rms_norm(x_MD, self.norm[...], self.config.rms_norm_eps)

    def logits(self, hidden: jax.Array) -> jax.Array:
        """float32 logits [..., V]."""
        return jnp.einsum("...D,VD->...V", hidden, self.head_VD, preferred_element_type=jnp.float32)
