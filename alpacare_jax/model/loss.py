"""Next-token cross-entropy that never holds the logits of a whole batch."""

from functools import partial

import jax
import jax.numpy as jnp

CHUNKS = "loss_chunks"
"""Name of the loop over chunks in compiled programs; `plan` looks for it."""


@partial(jax.custom_vjp, nondiff_argnums=(4,))
def chunked_cross_entropy(
    hidden_BTD: jax.Array,
    head_VD: jax.Array,
    targets_BT: jax.Array,
    weights_BT: jax.Array,
    chunk: int,
) -> jax.Array:
    """Sum over positions of weight x negative log-likelihood; scalar, float32.

    Two things keep it small and fast:
    - positions of weight 0 (prompts, padding) are moved behind the others in each row and skipped,
      so the vocabulary product runs over response tokens only;
    - the gradient is formed while a chunk's logits are at hand (as in arXiv:2411.09009), so at most
      [B, chunk, V] of them exist at a time and none is computed twice.

    Args:
      hidden_BTD: final hidden states; gradients come back in their dtype.
      head_VD: output embedding.
      targets_BT: next-token ids, int32; ignored where the weight is 0.
      weights_BT: float32, at least 0. No gradient flows to them.
      chunk: positions of each row in one piece; a static int.
    """
    return _forward(hidden_BTD, head_VD, targets_BT, weights_BT, chunk, gradients=False)[0]


def _forward(hidden_BTD, head_VD, targets_BT, weights_BT, chunk, gradients):
    T = hidden_BTD.shape[1]
    chunk = min(chunk, T)
    padding = -T % chunk
    # [1, 0, 2, 0] -> order [0, 2, 1, 3]: counted positions first, each row for itself, so that
    # nothing crosses devices when rows are sharded.
    order_BT = jnp.argsort(weights_BT == 0, axis=1, stable=True)
    sort = lambda x: jnp.take_along_axis(x, order_BT, axis=1)  # noqa: E731
    pad = lambda x: jnp.pad(x, ((0, 0), (0, padding)) + ((0, 0),) * (x.ndim - 2))  # noqa: E731
    hidden = pad(jnp.take_along_axis(hidden_BTD, order_BT[..., None], axis=1))
    # An id that does not count may be anything, also -100 as elsewhere.
    counted_BT = jnp.where(weights_BT == 0, 0, targets_BT)
    targets, weights = pad(sort(counted_BT)), pad(sort(weights_BT))
    num_chunks = -(-jnp.max(jnp.sum(weights_BT != 0, axis=1)) // chunk)

    def piece(x, i):
        return jax.lax.dynamic_slice_in_dim(x, i * chunk, chunk, axis=1)

    def step(i, carry):
        total, d_hidden, d_head = carry
        h_BCD, w_BC = piece(hidden, i), piece(weights, i)
        logits_BCV = jnp.einsum("BCD,VD->BCV", h_BCD, head_VD, preferred_element_type=jnp.float32)
        log_z = jax.nn.logsumexp(logits_BCV, axis=-1)
        t_BC = piece(targets, i)
        chosen = jnp.take_along_axis(logits_BCV, t_BC[..., None], axis=-1)[..., 0]
        total += jnp.sum(w_BC * (log_z - chosen))
        if gradients:
            softmax = jnp.exp(logits_BCV - log_z[..., None])
            one_hot = jax.lax.broadcasted_iota(jnp.int32, softmax.shape, 2) == t_BC[..., None]
            d_logits = (w_BC[..., None] * (softmax - one_hot)).astype(head_VD.dtype)
            d_h = jnp.einsum("BCV,VD->BCD", d_logits, head_VD).astype(hidden.dtype)
            d_hidden = jax.lax.dynamic_update_slice_in_dim(d_hidden, d_h, i * chunk, axis=1)
            d_head += jnp.einsum("BCV,BCD->VD", d_logits, h_BCD, preferred_element_type=jnp.float32)
        return total, d_hidden, d_head

    d_hidden = jnp.zeros_like(hidden) if gradients else None
    d_head = jnp.zeros(head_VD.shape, jnp.float32) if gradients else None
    start = (jnp.zeros((), jnp.float32), d_hidden, d_head)
    with jax.named_scope(CHUNKS):
        total, d_hidden, d_head = jax.lax.fori_loop(0, num_chunks, step, start)
    if gradients:
        unsort = jnp.argsort(order_BT, axis=1)
        d_hidden = jnp.take_along_axis(d_hidden[:, :T], unsort[..., None], axis=1)
    return total, d_hidden, d_head


def _forward_rule(hidden_BTD, head_VD, targets_BT, weights_BT, chunk):
    total, *grads = _forward(hidden_BTD, head_VD, targets_BT, weights_BT, chunk, gradients=True)
    return total, (*grads, jnp.zeros((), head_VD.dtype))


def _backward_rule(chunk, residuals, d_total):
    d_hidden, d_head, like_head = residuals
    return (
        (d_total * d_hidden).astype(d_hidden.dtype),
        (d_total * d_head).astype(like_head.dtype),
        None,
        None,
    )


chunked_cross_entropy.defvjp(_forward_rule, _backward_rule)
