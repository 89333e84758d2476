"""Whether the numbers of weights and moments are usable, and a digest of weights.

On the devices a pass over the arrays answers for all processes; conversion, which never has a whole
model in memory, looks at one layer at a time.
"""

import functools
import hashlib
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from alpacare_jax.distributed import sharding
from alpacare_jax.model.dropout import mix_bits

LIMIT = 2.0**63
"""A weight of this size has no square in float32, which RMSNorm and attention would need."""

TAKE_ANOTHER = "a model with such a weight answers nothing; take it from where it is whole"


def unusable(params: Any, moments: Any = None) -> str:
    """The first array with NaN, infinity or, among the weights, a value beyond LIMIT; "" if none.

    For example "layers.mlp.up_proj holds NaN".
    """
    for prefix, tree, limit in (("", params, LIMIT), ("moments.", moments, math.inf)):
        named = jax.tree_util.tree_leaves_with_path(tree)
        largest = [
            _largest(leaf, on_host=leaf.sharding.memory_kind == sharding.HOST_MEMORY)
            for _, leaf in named
        ]
        largest = jax.device_get(largest)  # all were given to the devices before one is read
        for (path, _), value in zip(named, largest, strict=True):
            if not value < limit:
                return f"{prefix}{_name(path)} holds {_words(value)}"
    return ""


def weights_digest(params: Any) -> str:
    """Digest of the values and dtypes of weights, however they are sharded or stored."""
    named = jax.tree_util.tree_leaves_with_path(params)
    sums = jax.device_get([_position_sums(leaf) for _, leaf in named])
    digest = hashlib.sha256()
    for (path, leaf), pair in zip(named, sums, strict=True):
        digest.update(f"{_name(path)} {leaf.dtype} {leaf.shape} {pair}\n".encode())
    return digest.hexdigest()


def require_usable(key: str, array: np.ndarray) -> None:
    """Raises ValueError if a weight, or one layer of it, has a value that `unusable` would name.

    Read as integers, floats of one sign are in the order of their magnitude, infinity and NaN
    last: two maxima decide, without a copy.
    """
    limit = LIMIT if array.dtype != np.float16 else math.inf
    for sign, kind in ((1, "i"), (-1, "u")):
        bits = array.view(f"{kind}{array.itemsize}").max()
        if bits >= np.array(sign * limit, array.dtype).view(bits.dtype):
            raise ValueError(f"{key} holds {_words(bits.view(array.dtype))}; {TAKE_ANOTHER}")


def _words(value: Any) -> str:
    return "NaN" if math.isnan(value) else f"{float(value):.3g}"


def _name(path: tuple[Any, ...]) -> str:
    """The dotted path of a leaf, without the numbers of optax's tuples."""
    keys = (getattr(key, "key", getattr(key, "name", None)) for key in path)
    return ".".join(str(key) for key in keys if key is not None)


@functools.partial(jax.jit, static_argnames="on_host")
def _largest(x: jax.Array, on_host: bool) -> jax.Array:
    """The largest magnitude in an array; NaN, which has the largest bits, where there is one."""

    def largest(x: jax.Array) -> jax.Array:
        if not jnp.issubdtype(x.dtype, jnp.floating):
            return jnp.max(jnp.abs(x)).astype(jnp.float32)
        # Of integers, for XLA's maximum of floats may lose a NaN on CPU.
        bits = jax.lax.bitcast_convert_type(x, f"uint{8 * x.dtype.itemsize}")
        magnitude = jnp.max(bits & jnp.iinfo(bits.dtype).max // 2)
        return jax.lax.bitcast_convert_type(magnitude, x.dtype).astype(jnp.float32)

    def fetched(part: jax.Array) -> jax.Array:
        return largest(jax.device_put(part, jax.memory.Space.Device))

    if not on_host or x.ndim < 3:
        return fetched(x) if on_host else largest(x)
    layers = jnp.arange(len(x))
    each = jax.lax.map(lambda i: fetched(jax.lax.dynamic_slice_in_dim(x, i, 1)), layers)
    return largest(each)


@jax.jit
def _position_sums(x: jax.Array) -> jax.Array:
    """Two sums over an array's bits, mixed with their positions; the order does not matter."""
    bits = jax.lax.bitcast_convert_type(x, f"uint{8 * x.dtype.itemsize}").astype(jnp.uint32)
    position = jnp.zeros(x.shape, jnp.uint32)
    for axis in range(x.ndim):
        index = jax.lax.broadcasted_iota(jnp.uint32, x.shape, axis)
        position = position * jnp.uint32(x.shape[axis]) + index
    mixed = mix_bits(bits + mix_bits(position + 1))
    return jnp.stack([mixed.sum(dtype=jnp.uint32), mix_bits(mixed + 1).sum(dtype=jnp.uint32)])
