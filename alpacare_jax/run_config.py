"""A training run's configuration, checked at once: ConfigDict sections -> frozen dataclasses."""

import dataclasses
import difflib
from collections.abc import Mapping
from typing import Any, TypeVar

from alpacare_jax.attention import KERNELS
from alpacare_jax.checkpoint import CheckpointConfig
from alpacare_jax.data import DataConfig
from alpacare_jax.llama import VARIANTS
from alpacare_jax.optimizer import OptimizerConfig
from alpacare_jax.sharding import ShardingConfig
from alpacare_jax.stack import REMAT_POLICIES

Section = TypeVar("Section")


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """Which weights training starts from, and how they are computed with."""

    checkpoint: str  # model directory, made by `alpacare_jax.convert`
    variant: str  # key of llama.VARIANTS that the checkpoint must have the shape of
    dtype: str  # compute dtype: float32, bfloat16, or auto (float32 on CPU, else bfloat16)
    remat: str  # key of stack.REMAT_POLICIES
    attention: str  # auto, xla, splash (TPU) or cudnn (GPU)
    loss_tokens: int  # tokens whose logits a device holds at a time

    def __post_init__(self):
        _choice("model.variant", self.variant, VARIANTS)
        _choice("model.remat", self.remat, REMAT_POLICIES)
        _choice("model.attention", self.attention, KERNELS)
        _choice("model.dtype", self.dtype, ("auto", "float32", "bfloat16"))
        if self.loss_tokens < 1:
            raise ValueError("model.loss_tokens must be at least 1")


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """The loop."""

    batch_size: int  # examples a step, over all devices and micro-batches
    epochs: int  # passes over the data, each cut into whole batches
    microbatch_tokens: int  # most tokens a device works on at a time; memory grows with it
    log_every: int  # steps between progress lines; metrics.jsonl has every step
    eval_every: int  # steps between evaluations; 0: at the start and the end only
    seed: int  # of the data order and the held-out share
    tensorboard: bool  # write TensorBoard files too (extra [tensorboard])

    def __post_init__(self):
        for name in ("batch_size", "epochs", "microbatch_tokens", "log_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"train.{name} must be at least 1, not {getattr(self, name)}")
        if self.eval_every < 0:
            raise ValueError("train.eval_every must be at least 0")


@dataclasses.dataclass(frozen=True)
class RunConfig:
    """All sections of a training config file."""

    model: ModelConfig
    data: DataConfig
    optimizer: OptimizerConfig
    train: TrainConfig
    checkpoint: CheckpointConfig
    sharding: ShardingConfig
    profile: str  # "10,15": trace these steps, first and last, into WORKDIR/profile; "": none

    def __post_init__(self):
        self.profile_steps  # noqa: B018 - raises where it is not two numbers

    @property
    def profile_steps(self) -> tuple[int, int] | None:
        """First and last step to trace."""
        if not self.profile:
            return None
        first, _, last = self.profile.partition(",")
        if not (first.isdigit() and last.isdigit() and 0 < int(first) <= int(last)):
            raise ValueError(f"profile is {self.profile!r}; give first and last step, as in 10,15")
        return int(first), int(last)

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> "RunConfig":
        """From `ConfigDict.to_dict()`.

        Raises:
          ValueError: a section or key is unknown (the nearest known one is named), missing or bad.
        """
        types = {field.name: field.type for field in dataclasses.fields(cls)}
        _same_keys("config", content, types)
        sections = {}
        for name, section in types.items():
            if not dataclasses.is_dataclass(section):
                sections[name] = content[name]
                continue
            keys = [field.name for field in dataclasses.fields(section)]
            _same_keys(f"config.{name}", content[name], keys)
            sections[name] = section(**content[name])
        return cls(**sections)


def _choice(name: str, value: str, choices: Any) -> None:
    if value not in choices:
        raise ValueError(f"{name} is {value!r}; choose from {', '.join(choices)}")


def _same_keys(where: str, given: Mapping[str, Any], known: Any) -> None:
    for key in given:
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"it has {', '.join(known)}"
            raise ValueError(f"{where} has no key {key!r}; {hint}")
    if missing := [key for key in known if key not in given]:
        raise ValueError(f"{where} lacks {', '.join(missing)}")
