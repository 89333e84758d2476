"""The projections of a layer, and the low-rank updates that adapt them (arXiv:2106.09685)."""

import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx, traverse_util

from alpacare_jax.model.dropout import Dropout
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


class Projection(nnx.Module):
    """One of `PROJECTIONS`: x W + b, and where it is adapted + (x A) B; see `join`."""

    def __init__(self, params: Mapping[str, Any], name: str):
        self.name = name
        self.weight = nnx.data(params[f"{name}_proj"])  # an array, or Quantised
        self.bias = optional_param(params, f"{name}_bias")
        self.lora_a = optional_param(params, f"{name}_lora_a")
        self.lora_b = optional_param(params, f"{name}_lora_b")

    def __call__(self, x: jax.Array, dropout: Dropout | None) -> jax.Array:
        """`x` has the axes M and those of the input; only what A reads is dropped."""
        i, o = PROJECTIONS[self.name]
        dtype = x.dtype
        if isinstance(self.weight, Quantised) or self.weight.dtype != dtype:
            y: Any = _product(x, self.weight, self.name)
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
