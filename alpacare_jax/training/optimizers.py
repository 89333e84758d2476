"""AdamW or Adafactor with the learning-rate schedules of the recipes."""

import dataclasses
import math
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import optax

from alpacare_jax.model.llama import Params
from alpacare_jax.training import adafactor

OPTIMIZERS = ("adamw", "adafactor")
SCHEDULES = ("cosine", "linear", "constant")


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """AdamW (arXiv:1711.05101) or Adafactor; the names are Hugging Face's where it has one.

    Adafactor has no use for the betas, epsilon and first_moment. As transformers' Trainer runs it
    (`--optim adafactor`), the learning rate is the size of a step, not relative to the weight's.
    """

    name: str  # adamw, or adafactor: of 8 bytes a weight for moments next to none is left
    learning_rate: float  # the peak
    schedule: str  # after warm-up: cosine or linear to 0, or constant
    warmup_ratio: float  # share of all steps with a linear rise from 0
    beta1: float
    beta2: float
    epsilon: float
    weight_decay: float  # on matrices only: params.decay_mask
    max_grad_norm: float  # clip by global norm; 0 is off
    first_moment: str  # its dtype: float32, or bfloat16, which saves 2 of 12 bytes a weight
    offload: bool  # keep the moments in the host's memory, and fetch a layer's at a time

    def __post_init__(self):
        if self.name not in OPTIMIZERS:
            raise ValueError(
                f"optimizer.name is {self.name!r}; choose from {', '.join(OPTIMIZERS)}"
            )
        if self.offload and self.name == "adafactor":
            raise ValueError(
                "optimizer.offload moves AdamW's moments; adafactor has next to none: set it to "
                "False"
            )
        if self.schedule not in SCHEDULES:
            raise ValueError(
                f"optimizer.schedule is {self.schedule!r}; choose from {', '.join(SCHEDULES)}"
            )
        if self.first_moment not in ("float32", "bfloat16"):
            raise ValueError(
                f"optimizer.first_moment is {self.first_moment!r}; choose float32 or bfloat16"
            )
        if not 0 <= self.warmup_ratio < 1:
            raise ValueError(f"optimizer.warmup_ratio is {self.warmup_ratio}; it must be in [0, 1)")


def describe(config: OptimizerConfig) -> str:
    """`adamw, first moment in bfloat16, moments in host memory`."""
    if config.name == "adafactor":
        return "adafactor, moments of rows and columns in float32"
    where = "host" if config.offload else "device"
    return f"adamw, first moment in {config.first_moment}, moments in {where} memory"


def warmup_steps(config: OptimizerConfig, num_steps: int) -> int:
    """ceil(ratio * steps), as transformers counts: 37 of 1,218 and 61 of 2,030 at 0.03."""
    return math.ceil(config.warmup_ratio * num_steps)


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

    `update` takes the norm as `grad_norm` where it is given some of the gradients only.

    optax's own divides and selects in every element, which XLA stores as a second gradient tree; a
    product with one scalar it computes again where it is needed.
    """

    def update(grads, state, params=None, *, grad_norm=None, **_):
        del params
        norm = optax.tree.norm(grads) if grad_norm is None else grad_norm
        scale = jnp.minimum(1.0, max_norm / (norm + 1e-6))
        return jax.tree.map(lambda g: g * scale, grads), state

    return optax.GradientTransformationExtraArgs(lambda _: optax.EmptyState(), update)


def make(
    config: OptimizerConfig,
    num_steps: int,
    decay_mask: Params,
    matrix_axes: Mapping[str, tuple[tuple[int, ...], tuple[int, ...]]],
) -> optax.GradientTransformationExtraArgs:
    """The whole update rule: clip, moments, masked decay, learning rate.

    Its `update` may be given a part of the weights, by their top names, and then the `grad_norm` of
    all. `decay_mask` and `matrix_axes` are those of `params`.
    """
    clip = clip_by_global_norm(config.max_grad_norm) if config.max_grad_norm else optax.identity()
    if config.name == "adafactor":
        moments = adafactor.scale_by_factored_moment(matrix_axes)
    else:
        # The second moment stays float32: in bfloat16 steps of 1 - beta2 = 0.001 are lost.
        mu_dtype = jnp.dtype(config.first_moment)
        moments = optax.scale_by_adam(config.beta1, config.beta2, config.epsilon, mu_dtype=mu_dtype)
    decays = lambda weights: {name: decay_mask[name] for name in weights}  # noqa: E731
    return optax.chain(
        clip,
        moments,
        optax.add_decayed_weights(config.weight_decay, mask=decays),
        optax.scale_by_learning_rate(schedule(config, num_steps)),
    )
