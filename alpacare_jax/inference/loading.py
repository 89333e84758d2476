"""A trained model to answer with: its settings first, its weights when an engine is made."""

from collections.abc import Sequence
from pathlib import PurePath
from typing import Any

import jax
from absl import flags
from etils import epath

from alpacare_jax.checkpoints import adapters, checkpoint, identity, model_folder
from alpacare_jax.checkpoints.frozen import FrozenBase
from alpacare_jax.data import chat_template, prompts
from alpacare_jax.distributed import sharding
from alpacare_jax.inference.engine import Engine
from alpacare_jax.inference.sampling import Sampling
from alpacare_jax.model import layers, llama, projections
from alpacare_jax.model.config import LlamaConfig
from common import paths, provenance
from common.sections import UsageError, flatten

GENERATION_RULES = {
    **dict.fromkeys(["vocab", "heads", "kv_heads", "ffn"], "tensor"),
    **dict.fromkeys(["layers", "embed", "head_dim", "norm"], ""),
}
"""Sharding rules: every large weight has one of the first four axes, so that none is all-gathered
for each token."""


def default_max_length(directory: epath.Path, model_config: LlamaConfig) -> int:
    """data.max_length of the run that trained the model, else 1024; never over its positions."""
    record = provenance.read_record(directory / "run.json")
    trained = flatten(record.get("config", {})).get("data.max_length", 1024)
    if type(trained) is not int or trained < 2:
        raise ValueError(
            f"{directory / 'run.json'} is damaged: data.max_length is {trained!r:.80}; restore it "
            "from a copy, or give --max_length"
        )
    return min(trained, model_config.max_position_embeddings)


def default_template(checkpoint: str | PurePath, adapter: str | PurePath | None) -> str:
    """The template of the model's training, else Alpaca's."""
    return model_folder.trained_template(adapter or checkpoint) or "alpaca"


class ModelSource:
    """A model folder or workdir, with an adapter or without; only its settings have been read.

    Args:
      step: best, latest or a number; of the adapter, where there is one.
      template: its name; None: that of the model's training, else Alpaca's.
      max_length: tokens of prompt and answer together; None: see `default_max_length`.
      dtype: auto, float32 or bfloat16.

    Raises:
      UsageError: `max_length` exceeds the model's positions, or it has no such template or step.
      ValueError, FileNotFoundError: the folder is none of a model, or damaged.
    """

    def __init__(
        self,
        checkpoint_directory: epath.Path,
        adapter: epath.Path | None,
        *,
        step: str,
        template: str | None,
        max_length: int | None,
        dtype: str,
    ):
        self.directory, self.trained = checkpoint_directory, adapter or checkpoint_directory
        self.config = model_folder.read_config(checkpoint_directory)
        self.max_length = max_length or default_max_length(self.trained, self.config)
        if self.max_length > self.config.max_position_embeddings:
            raise UsageError(
                f"--max_length {self.max_length:,} exceeds the model's max_position_embeddings "
                f"{self.config.max_position_embeddings:,}; lower it"
            )
        self.tokenizer = model_folder.load_tokenizer(checkpoint_directory)
        self.template_name = template or default_template(checkpoint_directory, adapter)
        self.template = chat_template.load(self.template_name, checkpoint_directory, self.tokenizer)
        self.adapter = adapters.open_adapter(adapter, step) if adapter else None
        self.step = checkpoint.find_step(checkpoint_directory, "best" if adapter else step)
        self.dtype = llama.compute_dtype(dtype, jax.default_backend())

    def identity(self) -> dict[str, Any]:
        """Digests of the weights, and what else determines the answers.

        Raises:
          ValueError: the adapter is of another model.
        """
        found: dict[str, Any] = {"model": identity.of_model(self.directory, self.step)}
        if self.adapter:
            self.adapter.require_base(self.directory)
            found["adapter"] = self.adapter.identity()
        return found

    def origin(self) -> dict[str, Any]:
        """Where the weights are, for a `run.json`."""
        found = {"checkpoint": str(paths.absolute(self.directory)), "step": self.step}
        if self.adapter:
            adapter = str(paths.absolute(self.adapter.directory))
            found |= {"adapter": adapter, "step": self.adapter.step}
        return found

    def engine(
        self,
        devices: Sequence[jax.Device],  # pyright: ignore[reportInvalidTypeForm] - no stub
        tensor: int,
        slots: int,
        sampling: Sampling,
        weights: str = "",
        invariant: bool = False,
    ) -> Engine:
        """Loads the weights: sharded over `tensor` devices, slots over such groups.

        The engine has `slots` slots, rounded up to a multiple of the number of groups.

        Args:
          weights: form of the projections, one of `quantised.FORMATS`; "": that in which the
            adapter was trained, else the compute dtype.
          invariant: see `Engine`.
        """
        if len(devices) % tensor:
            raise UsageError(
                f"--tensor={tensor} does not divide the number of devices, {len(devices)}; choose "
                "a divisor"
            )
        rules = sharding.ShardingConfig(-1, 1, tensor, GENERATION_RULES, allow_replicated="")
        mesh = sharding.make_mesh(rules, devices)
        groups = sharding.batch_groups(mesh)
        form = weights or (self.adapter.lora.quantised if self.adapter else "")
        base = FrozenBase(self.config, mesh, rules, self.dtype, form)
        params = base.load(self.directory, str(self.step))
        if self.adapter:
            factors = self.adapter.lora.adapter(self.config)
            shardings = sharding.param_shardings(factors, mesh, rules)
            factors = self.adapter.load(self.config, self.dtype, shardings)
            params = projections.join(params, factors, self.adapter.lora.scaling)
        if devices[0].platform in layers.UNSTACKED_ON:
            params |= {"layers": layers.unstack(params["layers"])}
        return Engine(
            params,
            self.config,
            dtype=self.dtype,
            eos_ids=model_folder.eos_ids(self.directory, self.tokenizer, self.template),
            max_length=self.max_length,
            slots=-(-slots // groups) * groups,
            sampling=sampling,
            invariant=invariant,
            mesh=mesh if mesh.size > 1 else None,
            rules=GENERATION_RULES,
        )


def define_flags() -> None:
    """Defines the flags that name a model, and how it is loaded."""
    flags.DEFINE_string("checkpoint", None, "Model directory, of convert, or workdir of train.")
    flags.DEFINE_string(
        "adapter", None, "LoRA adapter of the checkpoint: workdir of train, or a folder of peft's."
    )
    flags.DEFINE_string(
        "step",
        "best",
        "best (by eval loss, else latest), latest or a number; of the adapter, where one is given.",
    )
    flags.DEFINE_string(
        "template",
        None,
        f"Prompt template: {', '.join(prompts.TEMPLATES)}, or chat, the tokenizer's own; default: "
        "that of the model's training, else alpaca.",
    )
    flags.DEFINE_integer(
        "max_length",
        None,
        "Maximum tokens of prompt and answer together; default: data.max_length of the run that "
        "trained the model, else 1024, but no more than its positions.",
        lower_bound=2,
    )
    flags.DEFINE_integer("tensor", 1, "Devices over which weights are sharded.", lower_bound=1)
    flags.DEFINE_enum("dtype", "auto", ["auto", "float32", "bfloat16"], "Compute dtype.")
    flags.mark_flag_as_required("checkpoint")


def from_flags(given: flags.FlagValues) -> ModelSource:
    """The model that the flags of `define_flags` name."""
    paths.check(given.checkpoint, given.adapter or "")
    return ModelSource(
        epath.Path(given.checkpoint),
        epath.Path(given.adapter) if given.adapter else None,
        step=given.step,
        template=given.template,
        max_length=given.max_length,
        dtype=given.dtype,
    )
