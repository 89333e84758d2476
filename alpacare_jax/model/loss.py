"""Next-token cross-entropy and log-probabilities that never hold the logits of a whole batch."""

from functools import partial

import jax
import jax.numpy as jnp

CHUNKS = "loss_chunks"
"""Name scope of the loop over chunks; `plan` looks for it in compiled programs."""


@partial(jax.custom_vjp, nondiff_argnums=(4, 5))
def chunked_cross_entropy(
    hidden_BTD: jax.Array,
    head_VD: jax.Array,
    targets_BT: jax.Array,
    loss_weights_BT: jax.Array,
    chunk: int,
    frozen_head: bool = False,
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
      frozen_head: the head gets no gradient, which saves its product and memory; static.
    """
    del frozen_head
    return _forward(hidden_BTD, head_VD, targets_BT, loss_weights_BT, chunk, "")[0]


def _forward(hidden_BTD, head_VD, targets_BT, loss_weights_BT, chunk, gradients):
    """(loss, gradients by hidden_BTD and head_VD, None if not asked for); weights of any sign.

    `gradients` names those that are needed: "", "hidden" or "hidden head".
    """
    T = hidden_BTD.shape[1]
    order_BT, num_chunks, chunk = _order(loss_weights_BT != 0, chunk)
    # Targets of weight 0 may be invalid ids, such as the -100 of other libraries.
    targets_BT = jnp.where(loss_weights_BT == 0, 0, targets_BT)
    hidden, targets, loss_weights = (
        _sorted(x, order_BT, chunk) for x in (hidden_BTD, targets_BT, loss_weights_BT)
    )

    def step(i, carry):
        total, d_hidden, d_head = carry
        h_BCD, t_BC, w_BC = (_slice(x, i, chunk) for x in (hidden, targets, loss_weights))
        logits_BCV, log_z, losses_BC = _token_losses(h_BCD, head_VD, t_BC)
        total += jnp.sum(w_BC * losses_BC)
        if gradients:
            softmax = jnp.exp(logits_BCV - log_z[..., None])
            one_hot = jax.lax.broadcasted_iota(jnp.int32, softmax.shape, 2) == t_BC[..., None]
            d_logits = (w_BC[..., None] * (softmax - one_hot)).astype(head_VD.dtype)
            d_h = jnp.einsum("BCV,VD->BCD", d_logits, head_VD).astype(hidden.dtype)
            d_hidden = jax.lax.dynamic_update_slice_in_dim(d_hidden, d_h, i * chunk, axis=1)
            if "head" in gradients:
                d_head += jnp.einsum(
                    "BCV,BCD->VD", d_logits, h_BCD, preferred_element_type=jnp.float32
                )
        return total, d_hidden, d_head

    d_hidden = jnp.zeros_like(hidden) if gradients else None
    d_head = jnp.zeros(head_VD.shape, jnp.float32) if "head" in gradients else None
    start = (jnp.zeros((), jnp.float32), d_hidden, d_head)
    with jax.named_scope(CHUNKS):
        total, d_hidden, d_head = jax.lax.fori_loop(0, num_chunks, step, start)
    if gradients:
        inverse_BT = jnp.argsort(order_BT, axis=1)
        d_hidden = jnp.take_along_axis(d_hidden[:, :T], inverse_BT[..., None], axis=1)
    return total, d_hidden, d_head


def _order(counted_BT, chunk):
    """The order that has each row's counted positions first, chunks that hold them, their length.

    Each row is sorted by itself, so nothing crosses devices when rows are sharded:

        counted  = [0, 1, 0, 1]
        order    = [1, 3, 0, 2]
    """
    chunk = min(chunk, counted_BT.shape[1])
    num_chunks = -(-jnp.max(jnp.sum(counted_BT, axis=1)) // chunk)
    return jnp.argsort(~counted_BT, axis=1, stable=True), num_chunks, chunk


def _sorted(x, order_BT, chunk):
    """The positions of each row in `order_BT`, padded to whole chunks."""
    x = jnp.take_along_axis(x, order_BT.reshape(order_BT.shape + (1,) * (x.ndim - 2)), axis=1)
    return jnp.pad(x, ((0, 0), (0, -x.shape[1] % chunk), *[(0, 0)] * (x.ndim - 2)))


def _slice(x, i, chunk):
    return jax.lax.dynamic_slice_in_dim(x, i * chunk, chunk, axis=1)


def _token_losses(h_BCD, head_VD, t_BC):
    """Logits of a chunk, their log normalisers, and -log p of the targets."""
    logits_BCV = jnp.einsum("BCD,VD->BCV", h_BCD, head_VD, preferred_element_type=jnp.float32)
    log_z = jax.nn.logsumexp(logits_BCV, axis=-1)
    target_logits = jnp.take_along_axis(logits_BCV, t_BC[..., None], axis=-1)[..., 0]
    return logits_BCV, log_z, log_z - target_logits


def _forward_rule(hidden_BTD, head_VD, targets_BT, loss_weights_BT, chunk, frozen_head):
    gradients = "hidden" if frozen_head else "hidden head"
    total, *grads = _forward(hidden_BTD, head_VD, targets_BT, loss_weights_BT, chunk, gradients)
    return total, (*grads, jnp.zeros((), head_VD.dtype))


def _backward_rule(chunk, frozen_head, residuals, d_total):
    d_hidden, d_head, head_like = residuals  # d_hidden has its dtype, d_head is float32
    return (
        (d_total * d_hidden).astype(d_hidden.dtype),
        None if frozen_head else (d_total * d_head).astype(head_like.dtype),
        None,
        None,
    )


chunked_cross_entropy.defvjp(_forward_rule, _backward_rule)


@partial(jax.custom_vjp, nondiff_argnums=(4, 5))
def chunked_log_probs(
    hidden_BTD: jax.Array,
    head_VD: jax.Array,
    targets_BT: jax.Array,
    counted_BT: jax.Array,
    chunk: int,
    frozen_head: bool = False,
) -> jax.Array:
    """log p of each target in nats, 0 where `counted_BT` is False; [B, T] float32.

    For losses that weigh tokens by their sums. The backward pass computes the logits again, chunk
    by chunk: with weights -d, the gradient of `chunked_cross_entropy` is that of sum(d * log p).

    Args: as of `chunked_cross_entropy`.
    """
    del frozen_head
    T = hidden_BTD.shape[1]
    order_BT, num_chunks, chunk = _order(counted_BT, chunk)
    hidden, targets = (
        _sorted(x, order_BT, chunk) for x in (hidden_BTD, jnp.where(counted_BT, targets_BT, 0))
    )

    def step(i, losses):
        h_BCD, t_BC = _slice(hidden, i, chunk), _slice(targets, i, chunk)
        losses_BC = _token_losses(h_BCD, head_VD, t_BC)[2]
        return jax.lax.dynamic_update_slice_in_dim(losses, losses_BC, i * chunk, axis=1)

    with jax.named_scope(CHUNKS):
        losses = jax.lax.fori_loop(0, num_chunks, step, jnp.zeros(targets.shape, jnp.float32))
    losses_BT = jnp.take_along_axis(losses[:, :T], jnp.argsort(order_BT, axis=1), axis=1)
    return jnp.where(counted_BT, -losses_BT, 0)


def _log_probs_forward(hidden_BTD, head_VD, targets_BT, counted_BT, chunk, frozen_head):
    inputs = hidden_BTD, head_VD, targets_BT, counted_BT
    return chunked_log_probs(*inputs, chunk, frozen_head), inputs


def _log_probs_backward(chunk, frozen_head, inputs, d_BT):
    hidden_BTD, head_VD, targets_BT, counted_BT = inputs
    weights_BT = jnp.where(counted_BT, -d_BT, 0)
    gradients = "hidden" if frozen_head else "hidden head"
    _, d_hidden, d_head = _forward(hidden_BTD, head_VD, targets_BT, weights_BT, chunk, gradients)
    return d_hidden, None if d_head is None else d_head.astype(head_VD.dtype), None, None


chunked_log_probs.defvjp(_log_probs_forward, _log_probs_backward)
