"""The batches of a run: its config and mesh applied to the records it names."""

import dataclasses
import itertools
from collections.abc import Callable, Sequence

import jax.numpy as jnp
from jax.sharding import Mesh

from alpacare_jax.checkpoints import model_folder
from alpacare_jax.data import batches, chat_template, encoding, pairs
from alpacare_jax.distributed import sharding
from alpacare_jax.model import attention, llama, params
from alpacare_jax.model.config import LlamaConfig
from alpacare_jax.training.config import RunConfig
from common import records

Record = tuple[records.Example, ...]
"""An example, or the two of a pair."""


def load_batchers(
    run_config: RunConfig, model_config: LlamaConfig, mesh: Mesh, log: Callable[[str], None]
) -> tuple[batches.Batcher, batches.Batcher | None]:
    """Training and held-out batchers; the second is None where nothing is held out.

    Raises:
      ValueError: data.max_length exceeds the model's positions, or the records are unusable.
    """
    tokenizer = model_folder.load_tokenizer(run_config.model.checkpoint)
    template = chat_template.load(run_config.data.template, run_config.model.checkpoint, tokenizer)
    limit = model_config.max_position_embeddings
    if run_config.data.max_length > limit:
        raise ValueError(
            f"data.max_length {run_config.data.max_length:,} is over the model's "
            f"max_position_embeddings {limit:,}; lower it"
        )

    answers, data = run_config.preference.answers, run_config.data
    if answers == 2:  # of a conversation, what is compared
        data = dataclasses.replace(data, loss="last")

    def batcher(
        found: Sequence[Record], name: str, batch_size: int | None = None
    ) -> batches.Batcher:
        examples = list(itertools.chain.from_iterable(found))
        try:
            encoded = encoding.encode_all(
                examples,
                tokenizer,
                template,
                data,
                lambda text: log(f"{name}: {text}"),
                answers,
            )
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from None
        size = batch_size or len(encoded) // answers
        return make_batcher(encoded, size, run_config, model_config, mesh)

    def read(path: str) -> list[Record]:
        if answers == 2:
            return list(pairs.read_pairs(path, report=log))
        return [(example,) for example in records.read_examples(path, report=log)]

    found = read(run_config.data.path)
    if run_config.data.eval_path:
        held_out = read(run_config.data.eval_path)
    else:
        share = run_config.data.eval_share
        found, held_out = batches.split_records(found, share, run_config.train.seed)
    train = batcher(found, "training data", run_config.train.batch_size)
    return train, batcher(held_out, "held-out data") if held_out else None


def make_batcher(
    examples: Sequence[encoding.EncodedExample],
    batch_size: int,
    run_config: RunConfig,
    model_config: LlamaConfig,
    mesh: Mesh,
) -> batches.Batcher:
    """Lays examples out for this model on this mesh."""
    sizes = model_config.sizes
    return batches.Batcher(
        examples,
        batch_size,
        seed=run_config.train.seed,
        max_length=run_config.data.max_length,
        max_row_length=run_config.data.max_row_length,
        row_multiple=run_config.data.row_multiple,
        row_groups=sharding.batch_groups(mesh),
        microbatch_tokens=run_config.train.microbatch_tokens,
        # Attention over a full row of T costs 12 L N H T FLOPs per token, the parameters 6 P.
        bounds=choose_kernel(run_config, model_config, mesh)[0] == "cudnn",
        attention_cost=2 * sizes["L"] * sizes["N"] * sizes["H"] / params.count(model_config),
        answers=run_config.preference.answers,
    )


def compute_dtype(run_config: RunConfig, mesh: Mesh) -> jnp.dtype:
    """What a run computes in."""
    return llama.compute_dtype(run_config.model.dtype, mesh.devices.flat[0].platform)


def choose_kernel(run_config: RunConfig, model_config: LlamaConfig, mesh: Mesh) -> tuple[str, str]:
    """The attention kernel of a run, and why no faster one; see `attention.choose_kernel`."""
    sizes, device = model_config.sizes, mesh.devices.flat[0]
    row = max(run_config.train.microbatch_tokens, run_config.data.max_row_length)
    on_gpu = device.platform in ("gpu", "cuda")
    setting = attention.Setting(
        device.platform,
        compute_dtype(run_config, mesh),
        sizes["H"],
        elements=row * sizes["N"] * sizes["H"],
        capability=attention.compute_capability(device) if on_gpu else (0, 0),
        cudnn=attention.cudnn_version() if on_gpu else 0,
    )
    return attention.choose_kernel(run_config.model.attention, setting)


def check_fp8(mesh: Mesh) -> str:
    """The line of the log about `train.fp8`. Raises ValueError where the devices cannot do it."""
    device = mesh.devices.flat[0]
    if device.platform == "cpu":
        return "projections in fp8: emulated on CPU, slower than without, for comparisons only"
    if tuple(map(int, getattr(device, "compute_capability", "0").split("."))) >= (8, 9):
        return "projections in fp8, whose peak is twice the bfloat16 peak that MFU is of"
    raise ValueError(
        f"train.fp8 needs a GPU of compute capability 8.9 (Ada, Hopper) or newer, and this is a "
        f"{device.device_kind}; set train.fp8=False"
    )
