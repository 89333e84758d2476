"""A training run's configuration, checked at once: ConfigDict sections -> frozen dataclasses."""

import dataclasses

from alpacare_jax.checkpoints import model_folder
from alpacare_jax.checkpoints.saving import CheckpointConfig
from alpacare_jax.data.encoding import DataConfig
from alpacare_jax.distributed.sharding import ShardingConfig
from alpacare_jax.model.attention import KERNELS
from alpacare_jax.model.config import VARIANTS, LlamaConfig
from alpacare_jax.model.layers import REMAT_POLICIES
from alpacare_jax.model.lora import LoraConfig
from alpacare_jax.training.optimizers import OptimizerConfig
from alpacare_jax.training.preference import PreferenceConfig
from common import sections

MAX_EPOCHS = 100_000
"""The learning rate of every step is computed at the start: more would not fit into memory."""


@dataclasses.dataclass(frozen=True)
class BaseModelConfig:
    """The base model, and how its computation trades memory for time."""

    checkpoint: str  # model directory, written by `alpacare_jax.convert`
    variant: str  # size that the checkpoint must have, such as llama-7b; "" takes any
    dtype: str  # compute dtype: float32, bfloat16, or auto (float32 on CPU, else bfloat16)
    remat: str  # recomputed in the backward pass, from most memory to least: none, context (all but
    # projections and attention), dots (all but projections), full; auto: the fastest that fits
    attention: str  # kernel: auto, xla, splash (TPU), cudnn or cudnn_mask (GPU)
    loss_tokens: int  # tokens whose logits a device holds at a time

    def __post_init__(self):
        if not (self.checkpoint or self.variant):
            raise ValueError("model.checkpoint is empty; give a model directory")
        if self.variant:
            sections.choice("model.variant", self.variant, VARIANTS)
        sections.choice("model.remat", self.remat, ("auto", *REMAT_POLICIES))
        sections.choice("model.attention", self.attention, KERNELS)
        sections.choice("model.dtype", self.dtype, ("auto", "float32", "bfloat16"))
        if self.loss_tokens < 1:
            raise ValueError("model.loss_tokens must be at least 1")

    def shape(self) -> LlamaConfig:
        """The model of a plan: `variant`, which needs no checkpoint, else the checkpoint's."""
        return VARIANTS[self.variant] if self.variant else model_folder.read_config(self.checkpoint)

    def check_variant(self, model_config: LlamaConfig) -> None:
        """Raises ValueError if the checkpoint's sizes are not those of `variant`, where given."""
        if not self.variant:
            return
        expected = VARIANTS[self.variant].sizes | {"V": model_config.vocab_size}
        sizes = model_config.sizes
        differences = [
            f"{name} ({sizes[name]} instead of {size})"
            for name, size in expected.items()
            if sizes[name] != size
        ]
        if differences:
            raise ValueError(
                f"{self.checkpoint} is not a {self.variant}: its sizes differ in "
                + ", ".join(differences)
            )


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """The training loop."""

    batch_size: int  # examples per step, over all devices and micro-batches
    epochs: int  # passes over the data; an incomplete last batch is skipped in each
    microbatch_tokens: int  # maximum tokens of a micro-batch on a device; memory grows with it
    log_every: int  # steps between progress lines; metrics.jsonl has every step
    eval_every: int  # steps between evaluations; 0: at the start and the end only
    fp8: bool  # multiply the layers' projections in 8-bit floats; see `model.projections`
    seed: int  # of the data order and the choice of held-out examples
    samples: int  # held-out prompts answered at each evaluation, for report.html; 0: none
    check_kernel: bool  # before step 1, compare the attention kernel with its definition
    tensorboard: bool  # also write TensorBoard files (extra [tensorboard])
    wandb: bool  # also send the metrics to Weights & Biases (extra [wandb])

    def __post_init__(self):
        for name in ("batch_size", "epochs", "microbatch_tokens", "log_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"train.{name} must be at least 1, not {getattr(self, name)}")
        for name in ("eval_every", "samples"):
            if getattr(self, name) < 0:
                raise ValueError(f"train.{name} must be at least 0")
        if self.epochs > MAX_EPOCHS:
            raise ValueError(f"train.epochs is {self.epochs:,}; the most are {MAX_EPOCHS:,}")
        if not 0 <= self.seed < 2**32:
            raise ValueError(f"train.seed is {self.seed}; it must be from 0 to 2^32 - 1")


@dataclasses.dataclass(frozen=True)
class RunConfig:
    """All sections of a training config file."""

    model: BaseModelConfig
    lora: LoraConfig
    data: DataConfig
    optimizer: OptimizerConfig
    train: TrainConfig
    preference: PreferenceConfig
    checkpoint: CheckpointConfig
    sharding: ShardingConfig
    profile: str  # "10,15": trace these steps, first and last, into WORKDIR/profile; "": none

    def __post_init__(self):
        profiled_steps(self.profile)
        if self.train.fp8 and (self.lora.rank or self.preference.beta):
            key = "lora.rank" if self.lora.rank else "preference.beta"
            raise ValueError(f"train.fp8 has no {key}: set it to False, or {key} to 0")
        if self.train.samples and not (self.data.eval_path or self.data.eval_share):
            raise ValueError(
                "train.samples answers held-out prompts: set data.eval_path or data.eval_share"
            )


def profiled_steps(profile: str) -> tuple[int, int] | None:
    """First and last step to trace, parsed from `RunConfig.profile`.

    >>> profiled_steps("10,15"), profiled_steps("")
    ((10, 15), None)

    Raises:
      ValueError: `profile` is not two positive numbers in order.
    """
    if not profile:
        return None
    first, _, last = profile.partition(",")
    if not (first.isdigit() and last.isdigit() and 0 < int(first) <= int(last)):
        raise ValueError(f"profile is {profile!r}; give first and last step, as in 10,15")
    return int(first), int(last)
