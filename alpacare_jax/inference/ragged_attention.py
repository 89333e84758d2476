"""Attention on GPUs that reads of the cache what each row holds (Pallas, Triton).

XLA's products take the whole rectangle of the cache, as long as its longest row, and copy one
layer of it first. Here a program of the grid answers the queries of one row and one head: it loads
blocks of that row's keys until its last position, from the cache where it is.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton
from jax.sharding import Mesh, PartitionSpec
from jax.typing import DTypeLike

from alpacare_jax.distributed.sharding import BATCH_AXES
from alpacare_jax.inference import cache
from alpacare_jax.inference.rows import PIECE
from alpacare_jax.model.attention import MASKED_SCORE

KERNEL, KERNEL_KEYS = "ragged_attention", 32
"""Of the kernel in compiled programs, and the keys of one row that it loads at a time."""

LEAST_QUERIES = 16
"""Rows of the smallest product on tensor cores; fewer queries are padded."""

MAX_DIFFERENCE = 0.02
"""Relative difference that rounding in bfloat16 explains, with a wide margin."""

Run = Callable[..., jax.Array]
"""A function with the arguments of `attend`."""


def _kernel(T, keys, layer_ref, rows_ref, starts_ref, q_ref, k_ref, v_ref, o_ref):
    """One row and one head: refs of [1], [R], [R], [Q, H], the cache twice, and [Q, H].

    Query i is token i % T of its row; a row without tokens has a negative start.
    """
    r, head = pl.program_id(0), pl.program_id(1)
    layer, row, start = layer_ref[0], rows_ref[r], starts_ref[r]
    q_QH = q_ref[...]
    Q, H = q_QH.shape
    last_Q1 = (start + jax.lax.rem(jnp.arange(Q), T))[:, None]

    def block(b, carry):
        most, total, out = carry
        at = pl.ds(b * keys, keys)
        k_SH = triton.load(k_ref.at[layer, row, head, at, :])
        v_SH = triton.load(v_ref.at[layer, row, head, at, :])
        scores = triton.dot(q_QH, k_SH.T)
        scores = jnp.where((b * keys + jnp.arange(keys))[None] <= last_Q1, scores, MASKED_SCORE)
        higher = jnp.maximum(most, scores.max(axis=1))
        weights, kept = jnp.exp(scores - higher[:, None]), jnp.exp(most - higher)
        added = triton.dot(weights.astype(v_SH.dtype), v_SH)
        return higher, total * kept + weights.sum(axis=1), out * kept[:, None] + added

    first = jnp.full(Q, MASKED_SCORE), jnp.zeros(Q), jnp.zeros((Q, H))
    blocks = jnp.where(start < 0, 0, (start + T - 1) // keys + 1)
    _, total, out = jax.lax.fori_loop(0, blocks, block, first)
    o_ref[...] = (out / jnp.maximum(total, 1e-30)[:, None]).astype(o_ref.dtype)


def attend(
    q_RTNH: jax.Array,
    k: jax.Array,
    v: jax.Array,
    layer: jax.Array,
    rows_R: jax.Array,
    starts_R: jax.Array,
    *,
    keys: int = KERNEL_KEYS,
    warps: int = 2,
    stages: int = 4,
    interpret: bool = False,
) -> jax.Array:
    """As `cache.attend`: queries from `starts_R` on attend to all keys up to their own.

    Args:
      k, v: the cache [L, B, K, S, H]; S is a multiple of `keys`.
      starts_R: negative for rows whose result is zero.
      keys, warps, stages: keys loaded at a time, and how Triton compiles that; the combinations
        in docs/experiments/h200.md are within 7 % there.
    """
    R, T, N, H = q_RTNH.shape
    K = k.shape[2]
    G = N // K
    q_RKQH = (q_RTNH * H**-0.5).reshape(R, T, K, G, H).transpose(0, 2, 3, 1, 4)
    q_RKQH = q_RKQH.reshape(R, K, G * T, H)
    Q = max(LEAST_QUERIES, 1 << (G * T - 1).bit_length())
    q_RKQH = jnp.pad(q_RKQH, ((0, 0), (0, 0), (0, Q - G * T), (0, 0)))
    whole = pl.BlockSpec()
    of_program = pl.BlockSpec((None, None, Q, H), lambda r, head: (r, head, 0, 0))
    out_RKQH = pl.pallas_call(
        functools.partial(_kernel, T, keys),
        grid=(R, K),
        in_specs=[whole, whole, whole, of_program, whole, whole],
        out_specs=of_program,
        out_shape=jax.ShapeDtypeStruct(q_RKQH.shape, q_RTNH.dtype),
        compiler_params=triton.CompilerParams(num_warps=warps, num_stages=stages),
        interpret=interpret,
        name=KERNEL,
    )(layer[None], rows_R, starts_R, q_RKQH, k, v)
    out_RKGTH = out_RKQH[:, :, : G * T].reshape(R, K, G, T, H)
    return out_RKGTH.transpose(0, 3, 1, 2, 4).reshape(R, T, N, H)


def on_mesh(mesh: Mesh, heads: str | None, interpret: bool = False):
    """`attend` where the cache's rows are sharded over the batch axes and heads over `heads`.

    Each device answers for the rows that it holds, and the sum of all is whole.
    """

    def local(q_RTNH, k, v, layer, rows_R, starts_R):
        first = jax.lax.axis_index(BATCH_AXES) * k.shape[1]
        held = (rows_R >= first) & (rows_R < first + k.shape[1])
        rows, starts = jnp.where(held, rows_R - first, 0), jnp.where(held, starts_R, -1)
        out = attend(q_RTNH, k, v, layer, rows, starts, interpret=interpret)
        return jax.lax.psum(out, BATCH_AXES)

    by_head = PartitionSpec(None, None, heads, None)
    cached = PartitionSpec(None, BATCH_AXES, heads, None, None)
    one = PartitionSpec()
    return jax.shard_map(
        local,
        mesh=mesh,
        in_specs=(by_head, cached, cached, one, one, one),
        out_specs=by_head,
        check_vma=False,  # not implemented for Pallas calls
    )


def fault(heads: int, key_heads: int, head_dim: int, dtype: DTypeLike, run: Run = attend) -> str:
    """Why the kernel is not to be used on this machine; "" where it attends as `cache.attend` does.

    Compared are the queries of a decode step, then those of a chunk's pieces, in two rows of 70 and
    200 keys of random values, which takes a few seconds.
    """
    faults = (_fault(tokens, heads, key_heads, head_dim, dtype, run) for tokens in (1, PIECE))
    return next(filter(None, faults), "")


def _fault(
    tokens: int, heads: int, key_heads: int, head_dim: int, dtype: DTypeLike, run: Run
) -> str:
    keys = jax.random.split(jax.random.key(0), 3)
    shapes = (2, tokens, heads, head_dim), *[(1, 2, key_heads, 256, head_dim)] * 2
    q, k, v = (jax.random.normal(key, s, dtype) for key, s in zip(keys, shapes, strict=True))
    layer, rows, starts = jnp.int32(0), jnp.arange(2), jnp.array([70, 200])
    access = cache.access("gpu", spread=False)
    want = cache.attend(q, {"k": k, "v": v}, layer, rows, starts, access).astype(jnp.float32)
    try:
        got = jax.jit(run)(q, k, v, layer, rows, starts).astype(jnp.float32)
    except Exception as error:  # noqa: BLE001 - whatever Triton and its compiler raise
        return f"does not run here ({str(error).splitlines()[0][:200]})"
    difference = float(jnp.linalg.norm(got - want) / jnp.linalg.norm(want))
    return "" if difference <= MAX_DIFFERENCE else f"differs from XLA's by {difference:.2%} here"
