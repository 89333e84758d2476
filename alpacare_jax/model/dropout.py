"""Dropout whose noise depends on what a token is, not on where it is computed.

It is a function of the seed, the step, the example, the position in it, the layer, the projection
and the feature: the same on every mesh, in every packing and after every restart.
"""

import dataclasses

import jax
import jax.numpy as jnp


def mix_bits(x: jax.Array) -> jax.Array:
    """Spreads every bit of uint32 numbers over all bits of the result, one to one.

    The last step of MurmurHash3: https://github.com/aappleby/smhasher, fmix32.
    """
    x = (x ^ (x >> 16)) * jnp.uint32(0x85EBCA6B)
    x = (x ^ (x >> 13)) * jnp.uint32(0xC2B2AE35)
    return x ^ (x >> 16)


def token_keys(
    tokens_BT: jax.Array, positions_BT: jax.Array, segments_BT: jax.Array, seed: jax.Array
) -> jax.Array:
    """uint32 [M]: a number for each token, of its example's tokens, its position and the seed.

    Examples are known by their tokens: two that are equal get the same noise.
    """
    tokens, positions = (x.astype(jnp.uint32) for x in (tokens_BT, positions_BT))
    words = mix_bits(tokens + mix_bits(positions + 1))

    def sum_of_example(words_T, segments_T):
        return jax.ops.segment_sum(words_T, segments_T, len(words_T) + 1)[segments_T]

    examples = mix_bits(jax.vmap(sum_of_example)(words, segments_BT) ^ mix_bits(seed + 1))
    return mix_bits(examples + positions).reshape(-1)


@dataclasses.dataclass(frozen=True)
class Dropout:
    """Zeroes a share of elements and scales up the others (arXiv:1207.0580).

    Args:
      rate: the share.
      keys_M: those of `token_keys`.
      layer: the layer's number; it may be traced.
    """

    rate: float
    keys_M: jax.Array
    layer: jax.Array | int = 0

    def __call__(self, x_MF: jax.Array, site: int) -> jax.Array:
        """`x_MF`, with any feature axes, dropped; `site` numbers the calls in a layer."""
        shape = x_MF.shape[1:]
        place = jnp.uint32(self.layer) * jnp.uint32(64) + jnp.uint32(site)
        feature = jnp.zeros(shape, jnp.uint32)
        for axis, size in enumerate(shape):
            index = jax.lax.broadcasted_iota(jnp.uint32, shape, axis)
            feature = feature * jnp.uint32(size) + index
        keys = mix_bits(self.keys_M ^ mix_bits(place + 1)).reshape(-1, *[1] * len(shape))
        bits = mix_bits(keys ^ mix_bits(feature + 1))
        kept = bits >= jnp.uint32(round(self.rate * 2**32))
        return jnp.where(kept, x_MF / (1 - self.rate), 0).astype(x_MF.dtype)
