"""AdamW and Adafactor with the learning-rate schedules of the recipes."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from alpacare_jax.model.llama import Params
from common import sections

OPTIMIZERS = ("adamw", "adafactor")
SCHEDULES = ("cosine", "linear", "constant")

ADAFACTOR_DECAY, ADAFACTOR_EPSILON, ADAFACTOR_CLIP = 0.8, 1e-30, 1.0
"""Exponent of the moment's decay, what is added to squared gradients, and the maximum root mean
square of a matrix's update: arXiv:1804.04235, section 9, and transformers' defaults."""

MatrixAxes = Mapping[str, tuple[tuple[int, ...], tuple[int, ...]]]
"""Parameter path -> (axes that are rows, axes that are columns); see `params.matrix_axes`."""


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """AdamW (arXiv:1711.05101) or Adafactor; names are Hugging Face's where it has one.

    Adafactor ignores the betas, epsilon and first_moment. As in transformers' Trainer
    (`--optim adafactor`), the learning rate is absolute, not relative to the parameters' scale.
    """

    name: str  # adamw, or adafactor: moments take next to nothing instead of 8 bytes per weight
    learning_rate: float  # its peak, after warm-up
    schedule: str  # of the learning rate after warm-up: cosine or linear to 0, or constant
    warmup_ratio: float  # share of all steps, rounded up, with a linear rise from 0
    warmup_steps: int  # number of these steps, in place of warmup_ratio; 0: by warmup_ratio
    beta1: float  # decay of the first moment
    beta2: float  # decay of the second moment
    epsilon: float  # added to the root of the second moment
    weight_decay: float  # on matrices only, see params.decay_mask
    max_grad_norm: float  # clip gradients to this global norm; 0: off
    first_moment: str  # its dtype: float32, or bfloat16, which saves 2 of 12 bytes per weight
    offload: bool  # keep moments in host memory and fetch one layer's at a time; slower steps

    def __post_init__(self):
        sections.choice("optimizer.name", self.name, OPTIMIZERS)
        sections.choice("optimizer.schedule", self.schedule, SCHEDULES)
        sections.choice("optimizer.first_moment", self.first_moment, ("float32", "bfloat16"))
        if self.offload and self.name == "adafactor":
            raise ValueError(
                "optimizer.offload moves AdamW's moments; adafactor has next to none: set it to "
                "False"
            )
        if not 0 <= self.warmup_ratio < 1:
            raise ValueError(f"optimizer.warmup_ratio is {self.warmup_ratio}; it must be in [0, 1)")
        for name in ("learning_rate", "weight_decay", "max_grad_norm", "warmup_steps"):
            if getattr(self, name) < 0:
                raise ValueError(
                    f"optimizer.{name} is {getattr(self, name)}; it must be at least 0"
                )
        for name in ("beta1", "beta2"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"optimizer.{name} is {getattr(self, name)}; it must be in [0, 1)")
        if not self.epsilon > 0:  # unused embeddings would be divided by 0
            raise ValueError(f"optimizer.epsilon is {self.epsilon}; it must be above 0")


def describe(config: OptimizerConfig) -> str:
    """`adamw, first moment in bfloat16, moments in host memory`."""
    if config.name == "adafactor":
        return "adafactor, moments of rows and columns in float32"
    memory = "host" if config.offload else "device"
    return f"adamw, first moment in {config.first_moment}, moments in {memory} memory"


def warmup_steps(config: OptimizerConfig, num_steps: int) -> int:
    """ceil(ratio * steps), as transformers counts: 37 of 1,218 and 61 of 2,030 at 0.03."""
    return config.warmup_steps or math.ceil(config.warmup_ratio * num_steps)


def schedule(config: OptimizerConfig, num_steps: int) -> optax.Schedule:
    """The learning rate of update k, counted from 0, as `get_*_schedule_with_warmup` gives it.

    k < w:  peak * k / w            (the first update has rate 0)
    else:   peak * (1 + cos(pi * p)) / 2   or   peak * (1 - p),   p = (k - w) / (steps - w)
    """
    warmup = warmup_steps(config, num_steps)

    def rate(count):
        progress = jnp.clip((count - warmup) / max(1, num_steps - warmup), 0.0, 1.0)
        after = {
            "cosine": 0.5 * (1 + jnp.cos(jnp.pi * progress)),
            "linear": 1 - progress,
            "constant": jnp.ones_like(progress),
        }[config.schedule]
        return config.learning_rate * jnp.where(count < warmup, count / max(1, warmup), after)

    return rate


def clip_by_global_norm(max_norm: float) -> optax.GradientTransformationExtraArgs:
    """Scales gradients by min(1, max_norm / (norm + 1e-6)), as torch's `clip_grad_norm_`.

    `update` takes the norm as `grad_norm` when it is given only some of the gradients.

    optax's own divides and selects per element, which XLA stores as a second gradient tree; a
    product with one scalar is recomputed where it is needed.
    """

    def update(updates, state, params=None, *, grad_norm=None, **_):
        del params
        norm = optax.tree.norm(updates) if grad_norm is None else grad_norm
        scale = jnp.minimum(1.0, max_norm / (norm + 1e-6))
        return jax.tree.map(lambda g: g * scale, updates), state

    return optax.GradientTransformationExtraArgs(optax.init_empty_state, update)


class FactoredState(NamedTuple):
    """Means of squared gradients; each has the parameter's rank, with length 1 on reduced axes."""

    count: jax.Array  # updates so far  # pyright: ignore[reportIncompatibleMethodOverride]
    row: Params  # mean over a matrix's columns
    column: Params  # mean over its rows


def scale_by_factored_moment(matrix_axes: MatrixAxes) -> optax.GradientTransformation:
    """Algorithm 4 of arXiv:1804.04235 without a first moment and relative steps.

        V = R C / mean(R),   U = G / sqrt(V),   U / max(1, rms(U) / ADAFACTOR_CLIP)

    for each matrix, that is for each layer of a stacked parameter: one number per row and one per
    column instead of one per element. optax's own takes the two longest axes for the matrix,
    whatever they mean, and clips all layers of a stacked parameter together. A vector is a matrix
    of one column: R C / mean(R) is then R, the whole second moment.
    """

    def axes(path: tuple[Any, ...]) -> tuple[tuple[int, ...], tuple[int, ...]]:
        return matrix_axes[".".join(key.key for key in path)]

    def mean_squares(grads: optax.Updates, reduced: int) -> Params:
        """Over the rows of each matrix (0) or over its columns (1)."""

        def leaf(path, g):
            squares = g * g + ADAFACTOR_EPSILON
            return jnp.mean(squares, axis=axes(path)[reduced], keepdims=True)

        return jax.tree.map_with_path(leaf, grads)

    def init(params: optax.Params) -> FactoredState:
        row, column = (optax.tree.zeros_like(mean_squares(params, i)) for i in (1, 0))
        return FactoredState(jnp.zeros([], jnp.int32), row, column)

    def update(updates: optax.Updates, state: Any, params: optax.Params | None = None):
        del params
        old = 1 - (state.count + 1.0) ** -ADAFACTOR_DECAY

        def moment(before: Params, mean: Params) -> Params:
            return jax.tree.map(lambda m, new: old * m + (1 - old) * new, before, mean)

        def scale(path, g, row, column):
            rows, columns = axes(path)
            row /= jnp.mean(row, axis=rows, keepdims=True)
            u = g * jax.lax.rsqrt(row) * jax.lax.rsqrt(column)
            rms = jnp.sqrt(jnp.mean(u * u, axis=rows + columns, keepdims=True))
            return u / jnp.maximum(1.0, rms / ADAFACTOR_CLIP)

        row = moment(state.row, mean_squares(updates, 1))
        column = moment(state.column, mean_squares(updates, 0))
        scaled = jax.tree.map_with_path(scale, updates, row, column)
        return scaled, FactoredState(state.count + 1, row, column)

    return optax.GradientTransformation(init, update)


def make(
    config: OptimizerConfig, num_steps: int, decay_mask: Params, matrix_axes: MatrixAxes
) -> optax.GradientTransformationExtraArgs:
    """The whole update rule: clip, moments, masked decay, learning rate.

    Its `update` takes all parameters, or some by their top-level names and the `grad_norm` of all.
    `decay_mask` and `matrix_axes` are those of `params`.
    """
    clip = clip_by_global_norm(config.max_grad_norm) if config.max_grad_norm else optax.identity()
    if config.name == "adafactor":
        moments = scale_by_factored_moment(matrix_axes)
    else:
        # The second moment stays float32: in bfloat16 steps of 1 - beta2 = 0.001 are lost.
        mu_dtype = jnp.dtype(config.first_moment)
        moments = optax.scale_by_adam(config.beta1, config.beta2, config.epsilon, mu_dtype=mu_dtype)

    def mask(params: Params) -> Params:
        return {name: decay_mask[name] for name in params}

    return optax.chain(
        clip,
        moments,
        optax.add_decayed_weights(config.weight_decay, mask=mask),
        optax.scale_by_learning_rate(schedule(config, num_steps)),
    )
