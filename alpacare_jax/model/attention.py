"""Grouped-query attention over packed rows, and the kernels for it. Letters as in `llama.py`.

A kernel maps a batch's segments and positions to a function `attend(q, k, v)`. No kernel lets a
token attend to another example of its row.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec
from jax.typing import DTypeLike

Attend = Callable[[jax.Array, jax.Array, jax.Array], jax.Array]
"""(q_BTNH, k_BSKH, v_BSKH) -> o_BTNH."""
Kernel = Callable[[jax.Array, jax.Array], Attend]
"""(segments_BT, positions_BT) -> Attend."""

KERNELS = ("auto", "xla", "splash", "cudnn")

MASKED_SCORE = -1e30  # finite, so that a query with no visible key gives a mean, not NaN


def attention_mask(segments_BT: jax.Array, positions_BT: jax.Array) -> jax.Array:
    """Which keys each query attends to, bool [B, T, T]: its own segment's, up to its position.

    Segments number the examples packed into a row from 1; 0 is padding. Positions alone define the
    order, so prompts may be padded on either side.

        tokens    = [ 5,  6,  7,  8,  9,  0]
        segments  = [ 1,  1,  1,  2,  2,  0]
        positions = [ 0,  1,  2,  0,  1,  0]
    """
    same = segments_BT[:, :, None] == segments_BT[:, None, :]
    return same & (positions_BT[:, None, :] <= positions_BT[:, :, None])


def attend(
    q_BTNH: jax.Array, k_BSKH: jax.Array, v_BSKH: jax.Array, mask_BTS: jax.Array
) -> jax.Array:
    """softmax(q k / sqrt(H)) v with a float32 softmax, [B, T, N, H] (arXiv:1706.03762).

    The G query heads that share a key head are folded into the query axis, so each key head is one
    plain matrix product. On CPU this is twice as fast as separate axes, backward pass included.
    """
    B, T, N, H = q_BTNH.shape
    K = k_BSKH.shape[2]
    G = N // K
    q_BKGTH = q_BTNH.reshape(B, T, K, G, H).transpose(0, 2, 3, 1, 4) * H**-0.5
    q_BKRH = q_BKGTH.reshape(B, K, G * T, H)
    scores_BKRS = jnp.einsum("BKRH,BSKH->BKRS", q_BKRH, k_BSKH, preferred_element_type=jnp.float32)
    scores_BKGTS = scores_BKRS.reshape(B, K, G, T, -1)
    scores_BKGTS = jnp.where(mask_BTS[:, None, None], scores_BKGTS, MASKED_SCORE)
    probabilities = jax.nn.softmax(scores_BKGTS, axis=-1).astype(v_BSKH.dtype)
    out_BKRH = jnp.einsum("BKRS,BSKH->BKRH", probabilities.reshape(scores_BKRS.shape), v_BSKH)
    return out_BKRH.reshape(B, K, G, T, H).transpose(0, 3, 1, 2, 4).reshape(B, T, N, H)


def choose_kernel(name: str, platform: str, dtype: DTypeLike, head_dim: int) -> str:
    """The kernel to run; `auto` is splash on TPU and cuDNN on GPU where supported, else XLA.

    Raises:
      ValueError: the requested kernel is not supported here; it is never replaced silently.
    """
    two_bytes = jnp.dtype(dtype).itemsize == 2
    supported = {
        "splash": platform == "tpu" and head_dim % 128 == 0,
        "cudnn": platform in ("gpu", "cuda") and two_bytes and head_dim <= 128,
        "xla": True,
    }
    if name == "auto":
        return next(kernel for kernel in supported if supported[kernel])
    if not supported[name]:
        required = {
            "splash": "a TPU and a head_dim that is a multiple of 128",
            "cudnn": "a GPU, bfloat16 and a head_dim of at most 128",
        }
        raise ValueError(
            f"model.attention {name} requires {required[name]}, not {platform}, "
            f"{jnp.dtype(dtype)} and {head_dim}; choose xla or auto"
        )
    return name


def xla(segments_BT: jax.Array, positions_BT: jax.Array) -> Attend:
    """Plain XLA operations, on any device."""
    return functools.partial(attend, mask_BTS=attention_mask(segments_BT, positions_BT))


def cudnn(segments_BT: jax.Array, positions_BT: jax.Array) -> Attend:
    """cuDNN's fused attention with an explicit mask: lengths alone cannot separate examples."""
    mask_B1TT = attention_mask(segments_BT, positions_BT)[:, None]

    def attend_rows(q_BTNH, k_BTKH, v_BTKH):
        return jax.nn.dot_product_attention(
            q_BTNH, k_BTKH, v_BTKH, mask=mask_B1TT, implementation="cudnn"
        )

    return attend_rows


def splash(
    mesh: Mesh, rows: tuple[str, ...], heads: str | None, *, interpret: bool = False
) -> Kernel:
    """The TPU's flash attention with segment ids (Pallas): scores never reach main memory.

    Args:
      mesh, rows, heads: the mesh axes that rows and heads are sharded over; each device runs the
        kernel on its own shard.
      interpret: emulate the kernel without a TPU, slowly, for tests.
    """
    from jax.experimental.pallas.ops.tpu import splash_attention as kernels

    def attend_row(q_NTH, k_KTH, v_KTH, segments_T):
        N, T, H = q_NTH.shape
        if T % 128:
            raise ValueError(f"splash attention requires rows of a multiple of 128 tokens, not {T}")
        block = max(b for b in range(128, min(T, 1024) + 1, 128) if T % b == 0)
        kernel = kernels.make_splash_mha(
            # Within a segment, row order is position order.
            mask=kernels.MultiHeadMask([kernels.CausalMask((T, T))] * N),
            block_sizes=kernels.BlockSizes(
                block_q=block,
                block_kv=block,
                block_kv_compute=block,
                block_q_dkv=block,
                block_kv_dkv=block,
                block_kv_dkv_compute=block,
                block_q_dq=block,
                block_kv_dq=block,
            ),
            head_shards=1,
            q_seq_shards=1,
            interpret=interpret,
        )
        ids = kernels.SegmentIds(q=segments_T, kv=segments_T)
        return kernel(q_NTH * H**-0.5, k_KTH, v_KTH, ids)

    def swap(x):  # [B, T, N, H] <-> [B, N, T, H]
        return x.transpose(0, 2, 1, 3)

    def kernel_of_rows(segments_BT, positions_BT):
        del positions_BT
        sharded = PartitionSpec(rows, heads, None, None)
        attend_rows = jax.shard_map(
            jax.vmap(attend_row),
            mesh=mesh,
            in_specs=(sharded, sharded, sharded, PartitionSpec(rows, None)),
            out_specs=sharded,
            check_vma=False,  # not implemented for Pallas calls
        )
        return lambda q, k, v: swap(attend_rows(swap(q), swap(k), swap(v), segments_BT))

    return kernel_of_rows
