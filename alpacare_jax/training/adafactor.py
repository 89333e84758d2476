"""Adafactor's second moment: one number a row and one a column of a matrix, not one an element."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from alpacare_jax.model.llama import Params

DECAY = 0.8
EPSILON = 1e-30
CLIP = 1.0
"""Exponent of the moment's decay, what is added to squared gradients, and the greatest root mean
square of a matrix's update: arXiv:1804.04235, section 9, and transformers' defaults."""


class FactoredState(NamedTuple):
    """Means of squared gradients, each with the weight's rank and length 1 where it is a mean."""

    count: jax.Array  # updates so far
    row: Params  # mean over a matrix's columns
    column: Params  # mean over its rows


def scale_by_factored_moment(
    matrix_axes: Mapping[str, tuple[tuple[int, ...], tuple[int, ...]]],
) -> optax.GradientTransformation:
    """Algorithm 4 of arXiv:1804.04235 without a first moment and relative steps.

        V = R C / mean(R),   U = G / sqrt(V),   U / max(1, rms(U) / CLIP)

    for each matrix, that is for each layer of a stacked weight. optax's own takes the two longest
    axes for the matrix, whatever they mean, and clips all layers of a stacked weight together. A
    vector is a matrix of one column: R C / mean(R) is R then, the whole second moment.

    Args:
      matrix_axes: of each weight's path the axes that are rows and that are columns; see
        `params.matrix_axes`. The others count matrices.
    """

    def axes(path: tuple[Any, ...]) -> tuple[tuple[int, ...], tuple[int, ...]]:
        return matrix_axes[".".join(key.key for key in path)]

    def init(weights: Params) -> FactoredState:
        def zeros(which: int) -> Params:
            def leaf(path, w):
                shape = [1 if i in axes(path)[which] else n for i, n in enumerate(w.shape)]
                return jnp.zeros(shape, jnp.float32)

            return jax.tree.map_with_path(leaf, weights)

        return FactoredState(jnp.zeros([], jnp.int32), row=zeros(1), column=zeros(0))

    def update(grads: Params, state: FactoredState, params: Params | None = None):
        del params
        old = 1 - (state.count + 1.0) ** -DECAY

        def moment(which: int, before: Params) -> Params:
            def leaf(path, g, m):
                mean = jnp.mean(g * g + EPSILON, axis=axes(path)[which], keepdims=True)
                return old * m + (1 - old) * mean

            return jax.tree.map_with_path(leaf, grads, before)

        def scale(path, g, row, column):
            rows, columns = axes(path)
            row /= jnp.mean(row, axis=rows, keepdims=True)
            u = g * jax.lax.rsqrt(row) * jax.lax.rsqrt(column)
            rms = jnp.sqrt(jnp.mean(u * u, axis=rows + columns, keepdims=True))
            return u / jnp.maximum(1.0, rms / CLIP)

        row, column = moment(1, state.row), moment(0, state.column)
        updates = jax.tree.map_with_path(scale, grads, row, column)
        return updates, FactoredState(state.count + 1, row, column)

    return optax.GradientTransformation(init, update)
