"""Grouped-query attention over packed rows. Letters as in `llama.py`."""

import jax
import jax.numpy as jnp

MASKED = -1e30  # finite, so a row with nothing to attend to gives a mean instead of NaN


def visible(
    segments_BT: jax.Array,
    positions_BT: jax.Array,
    key_segments_BS: jax.Array,
    key_positions_BS: jax.Array,
) -> jax.Array:
    """Which keys each query may see, bool [B, T, S]: its own segment, up to its own position.

    Segments number the examples packed into a row from 1; 0 is padding. Order comes from positions
    alone, so prompts may be padded on either side.

        tokens    = [ 5,  6,  7,  8,  9,  0]
        segments  = [ 1,  1,  1,  2,  2,  0]
        positions = [ 0,  1,  2,  0,  1,  0]
    """
    same = segments_BT[:, :, None] == key_segments_BS[:, None, :]
    return same & (key_positions_BS[:, None, :] <= positions_BT[:, :, None])


def attend(
    q_BTNH: jax.Array, k_BSKH: jax.Array, v_BSKH: jax.Array, visible_BTS: jax.Array
) -> jax.Array:
    """softmax(q k / sqrt(H)) v with a float32 softmax, [B, T, N, H] (arXiv:1706.03762).

    The G query heads that share a key head are folded into the query axis, so each key head is one
    plain matrix product: on CPU twice as fast, backward included, as keeping the axes apart.
    """
    B, T, N, H = q_BTNH.shape
    K = k_BSKH.shape[2]
    G = N // K
    q_BKGTH = q_BTNH.reshape(B, T, K, G, H).transpose(0, 2, 3, 1, 4) * H**-0.5
    q_BKRH = q_BKGTH.reshape(B, K, G * T, H)
    scores_BKRS = jnp.einsum("BKRH,BSKH->BKRS", q_BKRH, k_BSKH, preferred_element_type=jnp.float32)
    scores_BKGTS = scores_BKRS.reshape(B, K, G, T, -1)
    scores_BKGTS = jnp.where(visible_BTS[:, None, None], scores_BKGTS, MASKED)
    weights = jax.nn.softmax(scores_BKGTS, axis=-1).astype(v_BSKH.dtype)
    out_BKRH = jnp.einsum("BKRS,BSKH->BKRH", weights.reshape(scores_BKRS.shape), v_BSKH)
    return out_BKRH.reshape(B, K, G, T, H).transpose(0, 3, 1, 2, 4).reshape(B, T, N, H)
