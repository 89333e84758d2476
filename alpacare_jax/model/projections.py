"""The projections of a layer, and the low-rank updates that adapt them (arXiv:2106.09685).

Their products may be computed in 8-bit floats, as arXiv:2209.05433 has it: activations and weights
rounded to e4m3, gradients of activations to e5m2. An operand x is stored as x / scale with

    scale = the power of two for which the largest |x| / scale is in [128, 256), e5m2 [16384, 32768)

found anew for each operand, so that there is no state, nothing overflows, and scaling by itself
never rounds. A NaN or infinity makes the whole product NaN.
"""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx, traverse_util

from alpacare_jax.model.dropout import Dropout
from alpacare_jax.model.layers import PROJECTED, keep
from alpacare_jax.model.quantised import Quantised

PROJECTIONS = {
    "q": ("D", "NH"),
    "k": ("D", "KH"),
    "v": ("D", "KH"),
    "o": ("NH", "D"),
    "gate": ("D", "F"),
    "up": ("D", "F"),
    "down": ("F", "D"),
}
"""Axes of input and output of each projection."""


def join(base: Mapping[str, Any], adapter: Mapping[str, Any], scaling: float = 1.0) -> Any:
    """One tree of a base's and an adapter's weights, stacked or of one layer; B is scaled."""
    weights: dict[tuple[str, ...], Any] = traverse_util.flatten_dict(dict(base))
    factors: dict[tuple[str, ...], Any] = traverse_util.flatten_dict(dict(adapter))
    for path, weight in factors.items():
        scaled = path[-1].endswith("_lora_b") and scaling != 1
        weights[path] = weight * scaling if scaled else weight
    return traverse_util.unflatten_dict(weights)


def optional_param(params: Mapping[str, Any], name: str) -> nnx.Param | None:
    """A weight that only some models have."""
    return nnx.Param(params[name]) if name in params else None


def _einsum(equation: str, *operands: Any, **options: Any) -> jax.Array:
    """`jnp.einsum`, with axes that are contracted together in the order they are stored in.

    It takes them in the order of their letters, H before N, and XLA for CPUs would transpose the
    weights at each use.
    """
    return jnp.einsum(equation.translate(str.maketrans("NK", "AB")), *operands, **options)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _product(x: jax.Array, weight: Any, name: str) -> jax.Array:
    """x W of a projection whose weights are stored in another form than `x`.

    The backward pass converts W again, whatever remat would keep: it is larger than activations.
    The gradient of a master weight is not rounded to the dtype of `x` on its way.
    """
    i, o = PROJECTIONS[name]
    return _einsum(f"M{i},{i}{o}->M{o}", x, weight.astype(x.dtype))


def _product_backward(name: str, residuals: tuple[Any, Any], gradient: jax.Array):
    x, weight = residuals
    i, o = PROJECTIONS[name]
    of_x = _einsum(f"M{o},{i}{o}->M{i}", gradient, weight.astype(gradient.dtype))
    if isinstance(weight, Quantised):
        return of_x, None
    product = functools.partial(_einsum, f"M{i},M{o}->{i}{o}")
    of_weight = jax.lax.platform_dependent(
        x,
        gradient,
        # XLA's CPU back end does not know every product of bfloat16 with a float32 result.
        cpu=lambda x, gradient: product(x, gradient).astype(weight.dtype),
        default=functools.partial(product, preferred_element_type=weight.dtype),
    )
    return of_x, of_weight


def _product_forward(x: jax.Array, weight: Any, name: str):
    return _product(x, weight, name), (None if isinstance(weight, Quantised) else x, weight)


_product.defvjp(_product_forward, _product_backward)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Fp8:
    """A weight that is multiplied in 8-bit floats."""

    weight: Any


def in_fp8(layer: Mapping[str, Any]) -> Any:
    """One layer's weights, those of its projections as `Fp8`."""
    weights: dict[tuple[str, ...], Any] = traverse_util.flatten_dict(dict(layer))
    for path, weight in weights.items():
        if path[-1].endswith("_proj"):
            weights[path] = Fp8(weight)
    return traverse_util.unflatten_dict(weights)


E4M3, E5M2 = jnp.float8_e4m3fn, jnp.float8_e5m2

FP8_RANGE = {E4M3: 2.0**7, E5M2: 2.0**14}
"""What the largest magnitude of an operand in 8 bits is at least, and less than twice."""


def fp8_scale(x: jax.Array, dtype: Any = E4M3) -> jax.Array:
    """The scale of an operand, float32; infinite where an element is infinite or NaN."""
    largest = jnp.maximum(jnp.max(jnp.abs(x)).astype(jnp.float32), 1e-30)
    exponent = jax.lax.bitcast_convert_type(largest, jnp.uint32) & 0x7F800000
    return jax.lax.bitcast_convert_type(exponent, jnp.float32) / FP8_RANGE[dtype]


def fp8_operand(x: jax.Array, scale: jax.Array, dtype: Any = E4M3) -> tuple[jax.Array, jax.Array]:
    """x / scale in 8 bits, at most the largest finite value, and the scale."""
    limit = float(jnp.finfo(dtype).max)
    codes = jnp.clip(x * (1 / scale).astype(x.dtype), -limit, limit).astype(dtype)
    return codes, scale


def _fp8_dot(a: Any, b: Any, contracted: tuple[int, int], dtype: Any, precision: Any = None) -> Any:
    """The product of two operands, matrices, over one axis of each.

    XLA for GPUs makes it one call of cuBLAS, the scale included.
    """
    axes = ((contracted[:1], contracted[1:]), ((), ()))
    product = jax.lax.dot_general(a[0], b[0], axes, precision, preferred_element_type=dtype)
    return product * (a[1] * b[1]).astype(dtype)


@jax.custom_vjp
def fp8_product(x: jax.Array, weight: jax.Array) -> jax.Array:
    """x W of matrices. Kept for the backward pass is what `_product` keeps, and the scale of W."""
    return _fp8_forward(x, weight)[0]


def _fp8_forward(x: jax.Array, weight: jax.Array):
    scale = keep(fp8_scale(weight), PROJECTED)
    y = _fp8_dot(fp8_operand(x, fp8_scale(x)), fp8_operand(weight, scale), (1, 0), x.dtype)
    return y, (x, weight, scale)


def _fp8_backward(residuals: tuple[jax.Array, ...], gradient: jax.Array):
    x, weight, scale = residuals
    of_y = fp8_operand(gradient, fp8_scale(gradient, E5M2), E5M2)
    exact = jax.lax.Precision.HIGHEST  # cuBLAS adds up in float32, which the forward pass can spare
    of_x = _fp8_dot(of_y, fp8_operand(weight, scale), (1, 1), x.dtype, exact)
    return of_x, _fp8_dot(fp8_operand(x, fp8_scale(x)), of_y, (0, 0), weight.dtype, exact)


fp8_product.defvjp(_fp8_forward, _fp8_backward)


class Projection(nnx.Module):
    """One of `PROJECTIONS`: x W + b, and where it is adapted + (x A) B; see `join`."""

    def __init__(self, params: Mapping[str, Any], name: str):
        self.name = name
        self.weight = nnx.data(params[f"{name}_proj"])  # an array, Fp8 or Quantised
        self.bias = optional_param(params, f"{name}_bias")
        self.lora_a = optional_param(params, f"{name}_lora_a")
        self.lora_b = optional_param(params, f"{name}_lora_b")

    def __call__(self, x: jax.Array, dropout: Dropout | None) -> jax.Array:
        """`x` has the axes M and those of the input; only what A reads is dropped."""
        i, o = PROJECTIONS[self.name]
        dtype = x.dtype
        if isinstance(self.weight, Fp8):
            weight = self.weight.weight
            x_MI = x.reshape(len(x), -1)
            y: Any = fp8_product(x_MI, weight.reshape(x_MI.shape[1], -1))
            y = y.reshape(len(x), *weight.shape[x.ndim - 1 :])
        elif isinstance(self.weight, Quantised) or self.weight.dtype != dtype:
            y = _product(x, self.weight, self.name)
        else:
            y = _einsum(f"M{i},{i}{o}->M{o}", x, self.weight)
        if self.bias is not None:
            y += self.bias[...].astype(dtype)
        if self.lora_a is not None and self.lora_b is not None:
            if dropout:
                x = dropout(x, list(PROJECTIONS).index(self.name))
            x_MR = _einsum(f"M{i},{i}R->MR", x, self.lora_a[...].astype(dtype))
            y += _einsum(f"MR,R{o}->M{o}", x_MR, self.lora_b[...].astype(dtype))
        return y
