"""The keys and values of all rows, and attention to what each row holds of them.

    k, v [L, B, K, S, H]     row = slot, index = position; letters as in `model/llama.py`

A head's keys lie one after the other, as products read them. New keys are written before anything
attends, so pieces of one prompt may be rows of one call.
"""

import dataclasses
from collections.abc import Mapping
from typing import Literal

import jax
import jax.numpy as jnp
from jax.experimental.layout import Layout, with_layout_constraint
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jax.typing import DTypeLike

from alpacare_jax.distributed import sharding
from alpacare_jax.model.attention import MASKED_SCORE
from alpacare_jax.model.config import LlamaConfig

KEYS, KEYS_ON_CPU = 128, 64
"""Keys of a block, which attention reads at a time: all rows read as many blocks as the longest
fills. TPUs have 128 lanes; a CPU reads fewer keys in vain with 64."""

BLOCKS = "cache_blocks"
"""Name scope of the loop over blocks in compiled programs; `plan` searches for it."""

Cache = dict[str, jax.Array]


@dataclasses.dataclass(frozen=True)
class Access:
    """How the rows of a layer are written and read.

    Attributes:
      keys: those of a block, which divide the cache's positions.
      by: `index`, with one operation for all rows, which GPUs and rows on several devices need; or
        `row`, with one for each, because a gather on TPUs makes XLA copy the whole cache into
        another layout. `loop` writes rows in a loop, which CPUs run as fast and compile faster.
    """

    keys: int
    by: Literal["index", "row", "loop"]


def access(platform: str, spread: bool) -> Access:
    """What suits devices of this platform, where rows are `spread` over several or are not."""
    if platform == "cpu":
        return Access(KEYS_ON_CPU, "index" if spread else "loop")
    return Access(KEYS, "index" if spread or platform in ("gpu", "cuda") else "row")


def capacity(length: int) -> int:
    """Positions of a cache for rows of this length: whole blocks."""
    return -(-length // KEYS) * KEYS


def empty(config: LlamaConfig, rows: int, length: int, dtype: DTypeLike) -> Cache:
    """A cache of zeros for `rows` rows of at most `length` tokens."""
    shape = (
        config.num_hidden_layers,
        rows,
        config.num_key_value_heads,
        capacity(length),
        config.head_dim,
    )
    return {"k": jnp.zeros(shape, dtype), "v": jnp.zeros(shape, dtype)}


def placement(mesh: Mesh, rules: Mapping[str, str]) -> dict[str, NamedSharding]:
    """Rows are sharded over the batch axes, heads like those of the weights."""
    spec = PartitionSpec(None, sharding.BATCH_AXES, rules["kv_heads"] or None, None, None)
    return dict.fromkeys(("k", "v"), NamedSharding(mesh, spec))


def copy_row(cache: Cache, source: jax.Array, target: jax.Array, count: jax.Array) -> Cache:
    """The cache with the first `count` positions of a row, in whole blocks, copied to another.

    A negative source is a row of zeros.
    """
    L, _, K, _, H = cache["k"].shape

    def copy(b: jax.Array, cache: Cache) -> Cache:
        def block(x: jax.Array) -> jax.Array:
            held = jax.lax.dynamic_slice(x, (0, source, 0, b * KEYS, 0), (L, 1, K, KEYS, H))
            held = jnp.where(source < 0, 0, held)
            return jax.lax.dynamic_update_slice(x, held, (0, target, 0, b * KEYS, 0))

        return {name: block(x) for name, x in cache.items()}

    return jax.lax.fori_loop(0, (count + KEYS - 1) // KEYS, copy, cache)


def extend(
    cache: Cache,
    layer: jax.Array,
    rows_R: jax.Array,
    starts_R: jax.Array,
    access: Access,
    **new: jax.Array,
) -> Cache:
    """The cache with new `k` and `v` [R, T, K, H] of one layer, at `starts_R` in each row.

    A row of negative start is written at the end of the cache, which no request reaches.
    """
    _, _, K, S, _ = cache["k"].shape
    T = new["k"].shape[1]
    starts_R = jnp.where(starts_R < 0, S - T, starts_R)
    new = {name: x.swapaxes(1, 2).astype(cache[name].dtype) for name, x in new.items()}  # RKTH
    if access.by == "index":  # with all leading axes, or XLA would transpose the whole cache
        rows, heads = rows_R[:, None, None], jnp.arange(K)[:, None]
        at = (layer, rows, heads, starts_R[:, None, None] + jnp.arange(T))
        return {name: cache[name].at[at].set(x) for name, x in new.items()}

    def write_row(r: int, cache: Cache) -> Cache:
        at = (layer, rows_R[r], 0, starts_R[r], 0)
        return {
            name: jax.lax.dynamic_update_slice(x, new[name][r][None, None], at)
            for name, x in cache.items()
        }

    return jax.lax.fori_loop(0, len(rows_R), write_row, cache, unroll=access.by == "row")


def attend(
    q_RTNH: jax.Array,
    cache: Cache,
    layer: jax.Array,
    rows_R: jax.Array | None,
    starts_R: jax.Array,
    access: Access,
) -> jax.Array:
    """softmax(q k / sqrt(H)) v over the keys up to each query's own position, [R, T, N, H].

    Blocks of keys are joined with a running maximum (arXiv:1805.02867), up to the longest row's
    last: one compiled program for all lengths, and further blocks would not change a bit.

    Args:
      rows_R: the cache's row of each of q; None: its first R, which are read without a gather.
      starts_R: position of the first query of each row; negative: its result has no meaning.
    """
    R, T, N, H = q_RTNH.shape
    K, keys = cache["k"].shape[2], access.keys
    G = N // K
    q_RKQH = (q_RTNH * H**-0.5).reshape(R, T, K, G, H).transpose(0, 2, 3, 1, 4)
    q_RKQH = q_RKQH.reshape(R, K, G * T, H)
    positions_RT = jnp.where(starts_R[:, None] < 0, 0, starts_R[:, None] + jnp.arange(T))
    last_RQ = jnp.tile(positions_RT, G)

    def of_row(x: jax.Array, row: jax.Array, start: jax.Array) -> jax.Array:
        return jax.lax.dynamic_slice(x, (layer, row, 0, start, 0), (1, 1, K, keys, H))

    def block_of(x: jax.Array, start: jax.Array) -> jax.Array:
        if rows_R is None:
            block = jax.lax.dynamic_slice(x, (layer, 0, 0, start, 0), (1, R, K, keys, H))
        elif access.by == "index":
            return jax.vmap(lambda row: of_row(x, row, start))(rows_R)[:, 0, 0]
        else:
            block = jnp.concatenate([of_row(x, row, start) for row in rows_R], axis=1)
        # As it is stored, or XLA for GPUs would transpose the whole cache for these products.
        return with_layout_constraint(block, Layout(tuple(range(block.ndim))))[0]

    def step(b: jax.Array, carry):
        most, total, out = carry
        start = b * keys
        k_RKSH, v_RKSH = block_of(cache["k"], start), block_of(cache["v"], start)
        scores = jnp.einsum("RKQH,RKSH->RKQS", q_RKQH, k_RKSH, preferred_element_type=jnp.float32)
        seen_RQS = start + jnp.arange(keys) <= last_RQ[..., None]
        scores = jnp.where(seen_RQS[:, None], scores, MASKED_SCORE)
        higher = jnp.maximum(most, jnp.max(scores, axis=-1, keepdims=True))
        weights, kept = jnp.exp(scores - higher), jnp.exp(most - higher)
        total = total * kept + jnp.sum(weights, axis=-1, keepdims=True)
        weights = weights.astype(v_RKSH.dtype)
        added = jnp.einsum("RKQS,RKSH->RKQH", weights, v_RKSH, preferred_element_type=jnp.float32)
        return higher, total, out * kept + added

    column = jnp.zeros((R, K, G * T, 1), jnp.float32)
    start = (column + MASKED_SCORE, column, jnp.zeros(q_RKQH.shape, jnp.float32))
    with jax.named_scope(BLOCKS):
        _, total, out = jax.lax.fori_loop(0, jnp.max(last_RQ) // keys + 1, step, start)
    out_RKGTH = (out / total).astype(q_RTNH.dtype).reshape(R, K, G, T, H)
    return out_RKGTH.transpose(0, 3, 1, 2, 4).reshape(R, T, N, H)
