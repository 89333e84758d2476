"""Frozen projections in 8 or 4 bits, as bitsandbytes defines them; dequantised where they are used.

A layer's projection is a matrix [I, O] from its inputs to its outputs (bitsandbytes stores [O, I]):

    int8    round(127 w / scale) with one scale for each output, the largest |w| of its inputs
    nf4     blocks of 64 inputs of one output; the nearest of 16 codes to w / scale, the block's
            largest |w|. Scales less their mean are quantised again, in blocks of 256 of one
            output after the other, to 8 bits with an exponent of their own (DYNAMIC)

Sources: arXiv:2208.07339, arXiv:2305.14314; bitsandbytes 0.50.2, functional.py: quantize_4bit with
compress_statistics, create_dynamic_map; backends/default/ops.py: int8_vectorwise_quant.
"""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec
from jax.typing import DTypeLike

FORMATS = ("int8", "nf4")
BLOCK, SCALE_BLOCK = 64, 256

NF4 = np.array(
    [
        *(-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453),
        *(-0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0),
        *(0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224),
        *(0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0),
    ],
    np.float32,
)
"""Means of the 16 quantiles of a normal distribution, scaled to [-1, 1] (arXiv:2305.14314, E)."""


def _dynamic_codes() -> np.ndarray:
    """The 256 values of bitsandbytes' dynamic map: 7 decades, finer in the larger ones."""
    values, start = [0.0, 1.0], np.float32(0.1)
    for exponent in range(7):
        count = 2**exponent
        step, i = np.float64((1 - start) / np.float32(count)), np.arange(count + 1)
        # Rounded once, and counted from both ends, as torch.linspace does.
        bounds = np.where(2 * i <= count, start + step * i, 1 - step * (count - i))
        bounds = bounds.astype(np.float32)
        means = (bounds[:-1] + bounds[1:]) / np.float32(2) * np.float32(10.0 ** (exponent - 6))
        values += [*means, *-means]
    return np.sort(np.array(values, np.float32))


DYNAMIC = _dynamic_codes()


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Quantised:
    """A projection, stacked over L layers or of one layer, without L."""

    codes: Any  # int8 [L, I, O]; nf4: uint8 [L, I / 2, O], the even input in the upper four bits
    scales: Any  # float32 [L, 1, O]; nf4: uint8 [L, I / 64, O], codes of DYNAMIC
    scales_of_scales: Any  # nf4: float32 [L, blocks of 256 scales]; int8: None
    mean_scale: Any  # nf4: float32 [L]; int8: None
    shape: tuple[int, ...] = dataclasses.field(metadata={"static": True})  # of one layer

    def astype(self, dtype: DTypeLike) -> jax.Array:
        """One layer's weight, dequantised."""
        if self.mean_scale is None:
            matrix = self.codes.astype(jnp.float32) * self.scales * (1 / 127)
            return matrix.reshape(self.shape).astype(dtype)
        blocks, outputs = self.scales.shape
        # The scale of output o and block b is number o * blocks + b.
        number = jnp.arange(outputs) * blocks + jnp.arange(blocks)[:, None]
        scales = _look_up(DYNAMIC, self.scales) * self.scales_of_scales[number // SCALE_BLOCK]
        scales += self.mean_scale
        nibbles = jnp.stack([self.codes >> 4, self.codes & 15], axis=1)
        matrix = _look_up(NF4, nibbles).reshape(blocks, BLOCK, outputs) * scales[:, None]
        return matrix.reshape(self.shape).astype(dtype)


def _look_up(table: np.ndarray, codes: jax.Array) -> jax.Array:
    return jnp.asarray(table).at[codes].get(mode="promise_in_bounds")


def _nearest(table: np.ndarray, x: jax.Array) -> jax.Array:
    """The code of the nearest value; halfway the lower one."""
    bounds = jnp.asarray((table[:-1] + table[1:]) / np.float32(2))
    return jnp.searchsorted(bounds, x, side="left").astype(jnp.uint8)


def _scaled(blocks: jax.Array, axis: int) -> tuple[jax.Array, jax.Array]:
    """Blocks within [-1, 1], and the largest magnitude of each."""
    largest = jnp.max(jnp.abs(blocks), axis=axis, keepdims=True)
    return jnp.clip(blocks * (1 / jnp.maximum(largest, 1e-38)), -1, 1), largest


def quantise(weight: jax.Array, inputs: int, name: str) -> Quantised:
    """Quantises a stacked projection [L, inputs ..., outputs ...], a layer at a time.

    Args:
      inputs: number of its axes that are inputs.
      name: one of FORMATS.
    """
    shape = weight.shape[1:]
    rows, columns = (math.prod(axes) for axes in (shape[:inputs], shape[inputs:]))

    def int8(matrix: jax.Array):
        largest = jnp.max(jnp.abs(matrix), axis=0, keepdims=True)
        codes = jnp.round(matrix * (127 / jnp.maximum(largest, 1e-38)))
        return codes.astype(jnp.int8), largest, None, None

    def nf4(matrix: jax.Array):
        scaled, largest = _scaled(matrix.reshape(-1, BLOCK, columns), 1)
        nibbles = _nearest(NF4, scaled).reshape(-1, 2, columns)
        scales = largest[:, 0].T.reshape(-1)
        mean = jnp.mean(scales)
        padded = jnp.pad(scales - mean, (0, -scales.size % SCALE_BLOCK))
        scaled, largest = _scaled(padded.reshape(-1, SCALE_BLOCK), 1)
        codes = _nearest(DYNAMIC, scaled).reshape(-1)[: scales.size].reshape(columns, -1).T
        return nibbles[:, 0] << 4 | nibbles[:, 1], codes, largest[:, 0], mean

    def layer(one: jax.Array):
        return {"int8": int8, "nf4": nf4}[name](one.astype(jnp.float32).reshape(rows, columns))

    return Quantised(*jax.lax.map(layer, weight), shape=shape)


def abstract(shape: tuple[int, ...], inputs: int, name: str) -> Quantised:
    """What `quantise` returns for a stacked projection of this shape, with nothing allocated.

    Raises:
      ValueError: the inputs are not whole blocks.
    """
    rows = math.prod(shape[1 : 1 + inputs])
    if name == "nf4" and rows % BLOCK:
        raise ValueError(
            f"nf4 takes blocks of {BLOCK} inputs, and a projection has {rows}; set lora.base to "
            "int8"
        )
    weight = jax.ShapeDtypeStruct(shape, jnp.float32)
    return jax.eval_shape(lambda weight: quantise(weight, inputs, name), weight)


def shardings(whole: Quantised, inputs: int, of_weight: NamedSharding) -> Quantised:
    """The shardings of `whole`, those of the weight: blocks that would be cut are replicated."""
    mesh, spec = of_weight.mesh, of_weight.spec
    layers, rows, columns = spec[0], spec[1], spec[1 + inputs]

    def place(leaf: jax.ShapeDtypeStruct | None) -> NamedSharding | None:
        if leaf is None:
            return None
        axes = [layers, rows, columns] if leaf.ndim == 3 else [layers] + [None] * (leaf.ndim - 1)
        fits = (
            axis if axis and size % mesh.shape[axis] == 0 else None
            for axis, size in zip(axes, leaf.shape, strict=True)
        )
        return NamedSharding(mesh, PartitionSpec(*fits))

    parts = (whole.codes, whole.scales, whole.scales_of_scales, whole.mean_scale)
    return Quantised(*map(place, parts), shape=whole.shape)
