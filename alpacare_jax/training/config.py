"""A training run's configuration, checked at once: ConfigDict sections -> frozen dataclasses."""

import dataclasses

from alpacare_jax.checkpoints.checkpoint import CheckpointConfig
from alpacare_jax.data.encoding import DataConfig
from alpacare_jax.distributed.sharding import ShardingConfig
from alpacare_jax.model.attention import KERNELS
from alpacare_jax.model.config import VARIANTS
from alpacare_jax.model.layers import REMAT_POLICIES
from alpacare_jax.training.optimizers import OptimizerConfig
from common import sections


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """Which weights training starts from, and how they are computed with."""

    checkpoint: str  # model directory, made by `alpacare_jax.convert`
    variant: str  # key of VARIANTS that the checkpoint must have the shape of
    dtype: str  # compute dtype: float32, bfloat16, or auto (float32 on CPU, else bfloat16)
    remat: str  # key of layers.REMAT_POLICIES
    attention: str  # auto, xla, splash (TPU) or cudnn (GPU)
    loss_tokens: int  # tokens whose logits a device holds at a time

    def __post_init__(self):
        sections.choice("model.variant", self.variant, VARIANTS)
        sections.choice("model.remat", self.remat, REMAT_POLICIES)
        sections.choice("model.attention", self.attention, KERNELS)
        sections.choice("model.dtype", self.dtype, ("auto", "float32", "bfloat16"))
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
