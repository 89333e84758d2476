"""Next-token cross-entropy that never holds the logits of a whole batch."""

from functools import partial

import jax
import jax.numpy as jnp

CHUNKS = "loss_chunks"
"""Name scope of the loop over chunks; `plan` looks for it in compiled programs."""


@partial(jax.custom_vjp, nondiff_argnums=(4,))
def chunked_cross_entropy(
    hidden_BTD: jax.Array,
    head_VD: jax.Array,
    targets_BT: jax.Array,
    loss_weights_BT: jax.Array,
    chunk: int,
) -> jax.Array:
    """Sum over positions of loss weight x negative log-likelihood in nats; scalar, float32.

    Two measures keep it small and fast:
    - positions of weight 0 (prompts, padding) are moved to the end of each row and skipped, so the
      product with the vocabulary runs over response tokens only;
    - gradients are computed together with each chunk's logits (as in arXiv:2411.09009), so at most
      [B, chunk, V] logits exist at a time and none is computed twice.

    Args:
      hidden_BTD: final hidden states; their gradient has the same dtype.
      head_VD: output embedding.
      targets_BT: next-token ids, int32; ignored where the weight is 0.
      loss_weights_BT: float32, non-negative; not differentiable.
      chunk: positions of each row per chunk; static.
    """
    return _forward(hidden_BTD, head_VD, targets_BT, loss_weights_BT, chunk, gradients=False)[0]


def _forward(hidden_BTD, head_VD, targets_BT, loss_weights_BT, chunk, gradients):
    T = hidden_BTD.shape[1]
    chunk = min(chunk, T)
    padding = -T % chunk
    # Each row is sorted by itself, so nothing crosses devices when rows are sharded:
    #   loss weights  = [0, 1, 0, 1]
    #   order         = [1, 3, 0, 2]
    order_BT = jnp.argsort(loss_weights_BT == 0, axis=1, stable=True)

    def sort_and_pad(x_BT):
        x_BT = jnp.take_along_axis(x_BT, order_BT, axis=1)
        return jnp.pad(x_BT, ((0, 0), (0, padding)))

    hidden = jnp.take_along_axis(hidden_BTD, order_BT[..., None], axis=1)
    hidden = jnp.pad(hidden, ((0, 0), (0, padding), (0, 0)))
    # Targets of weight 0 may be invalid ids, such as the -100 of other libraries.
    targets = sort_and_pad(jnp.where(loss_weights_BT == 0, 0, targets_BT))
    loss_weights = sort_and_pad(loss_weights_BT)
    num_chunks = -(-jnp.max(jnp.sum(loss_weights_BT != 0, axis=1)) // chunk)

    def slice_chunk(x, i):
        return jax.lax.dynamic_slice_in_dim(x, i * chunk, chunk, axis=1)

    def step(i, carry):
        total, d_hidden, d_head = carry
        h_BCD, w_BC = slice_chunk(hidden, i), slice_chunk(loss_weights, i)
        logits_BCV = jnp.einsum("BCD,VD->BCV", h_BCD, head_VD, preferred_element_type=jnp.float32)
        log_z = jax.nn.logsumexp(logits_BCV, axis=-1)
        t_BC = slice_chunk(targets, i)
        target_logits = jnp.take_along_axis(logits_BCV, t_BC[..., None], axis=-1)[..., 0]
        total += jnp.sum(w_BC * (log_z - target_logits))
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
        inverse_BT = jnp.argsort(order_BT, axis=1)
        d_hidden = jnp.take_along_axis(d_hidden[:, :T], inverse_BT[..., None], axis=1)
    return total, d_hidden, d_head


def _forward_rule(hidden_BTD, head_VD, targets_BT, loss_weights_BT, chunk):
    total, *grads = _forward(
        hidden_BTD, head_VD, targets_BT, loss_weights_BT, chunk, gradients=True
    )
    return total, (*grads, jnp.zeros((), head_VD.dtype))


def _backward_rule(chunk, residuals, d_total):
    d_hidden, d_head, head_like = residuals  # d_hidden has its dtype, d_head is float32
    return (
        (d_total * d_hidden).astype(d_hidden.dtype),
        (d_total * d_head).astype(head_like.dtype),
        None,
        None,
    )


chunked_cross_entropy.defvjp(_forward_rule, _backward_rule)
