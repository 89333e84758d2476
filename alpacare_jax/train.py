"""Fine-tunes a model: mesh -> data -> state -> step -> loop.

    python -m alpacare_jax.train --config=configs/alpacare.py:llama-7b --workdir=runs/alpacare-7b

Run again with the same flags, it goes on from the last checkpoint of the workdir.
"""

import functools
import json
import math
import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import optax
from absl import flags
from jax.sharding import Mesh

from alpacare_jax import (
    checkpoint,
    cli,
    data,
    llama,
    metrics,
    optimizer,
    params,
    prompts,
    provenance,
    records,
    sharding,
    train_step,
)
from alpacare_jax import workdir as workdir_lib
from alpacare_jax.llama import Params
from alpacare_jax.llama_config import LlamaConfig
from alpacare_jax.run_config import ModelConfig, RunConfig
from alpacare_jax.train_step import State


def load_data(
    config: RunConfig, shape: LlamaConfig, mesh: Mesh, report: Callable[[str], None]
) -> tuple[data.Batcher, data.Batcher | None]:
    """Training and held-out batchers; the second is None where nothing is held out."""
    tokenizer = checkpoint.load_tokenizer(config.model.checkpoint)
    template = prompts.get(config.data.template)
    limit = shape.max_position_embeddings
    if config.data.max_length > limit:
        raise ValueError(
            f"data.max_length {config.data.max_length:,} is over the model's "
            f"max_position_embeddings {limit:,}; lower it"
        )

    def encode(examples: Sequence[records.Example], what: str) -> list[data.Encoded]:
        tell = lambda text: report(f"{what}: {text}")  # noqa: E731
        return data.encode_all(examples, tokenizer, template, config.data, tell)

    examples = records.read_examples(config.data.path)
    if config.data.eval_path:
        held_out = records.read_examples(config.data.eval_path)
    else:
        examples, held_out = data.split(examples, config.data.eval_share, config.train.seed)
    # Attention over a full row of T costs 12 L N H T FLOPs a token, the weights 6 P.
    sizes = shape.sizes
    attention_cost = 2 * sizes["L"] * sizes["N"] * sizes["H"] / params.count(shape)

    def batcher(encoded: list[data.Encoded], batch_size: int) -> data.Batcher:
        return data.Batcher(
            encoded,
            batch_size,
            config.train.seed,
            config.data.max_length,
            config.data.row_multiple,
            sharding.batch_groups(mesh),
            config.train.microbatch_tokens,
            attention_cost,
        )

    train = batcher(encode(examples, "training data"), config.train.batch_size)
    if not held_out:
        return train, None
    encoded = encode(held_out, "held-out data")
    return train, batcher(encoded, len(encoded))


def initial_state(
    config: RunConfig,
    shape: LlamaConfig,
    update: optax.GradientTransformation,
    mesh: Mesh,
) -> State:
    """Base weights in float32 and fresh moments, each on its devices."""
    shardings = train_step.state_shardings(shape, config, update, mesh)
    weights = checkpoint.load_params(
        config.model.checkpoint, shape, dtype=jnp.float32, shardings=shardings["params"]
    )
    opt_state = jax.jit(update.init, out_shardings=shardings["opt_state"])(weights)
    return {"params": weights, "opt_state": opt_state}


def check_variant(shape: LlamaConfig, config: ModelConfig) -> None:
    """Raises ValueError where the checkpoint is not of the size the config was written for."""
    expected = llama.VARIANTS[config.variant].sizes | {"V": shape.vocab_size}
    if shape.sizes != expected:
        differ = {k: (shape.sizes[k], v) for k, v in expected.items() if shape.sizes[k] != v}
        raise ValueError(
            f"{config.checkpoint} is not a {config.variant}: its sizes differ in "
            + ", ".join(f"{k} ({a} instead of {b})" for k, (a, b) in differ.items())
        )


def _due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0


def progress_line(
    step: int, num_steps: int, values: dict[str, float], peak_source: str, left: float
) -> str:
    """One line for people; `left` in seconds. metrics.jsonl has the same numbers for programs."""
    parts = [
        f"step {step:,}/{num_steps:,}",
        f"loss {values['loss']:.4f}",
        f"lr {values['learning_rate']:.2e}",
        f"grad norm {values['grad_norm']:.2f}",
        f"{values['tokens_per_second']:,.0f} tokens/s",
        f"real tokens {values['real_token_share']:.0%}",
        f"MFU {values['mfu']:.0%} of {peak_source} peak",
        f"{metrics.duration(left)} left",
    ]
    if "eval_loss" in values:
        parts.append(f"held-out loss {values['eval_loss']:.4f}")
    return " | ".join(parts)


def require_finite(
    values: dict[str, float], step: int, saved: checkpoint.TrainingCheckpoints
) -> None:
    """Raises FloatingPointError, once no save is under way, where a value is NaN or infinite."""
    if all(math.isfinite(value) for value in values.values()):
        return
    saved.wait()
    found = ", ".join(f"{name} {value}" for name, value in values.items())
    raise FloatingPointError(
        f"{found} at step {step}; the last good step is {step - 1}, the last checkpoint "
        f"{saved.latest or 'none'}; lower optimizer.learning_rate or look at the data of this step"
    )


class StopRequest:
    """Remembers SIGTERM, which TPU maintenance and job schedulers send before they kill."""

    def __init__(self):
        self.asked = False
        signal.signal(signal.SIGTERM, self._ask)

    def _ask(self, *_):
        self.asked = True


def run(config: RunConfig, workdir: Path) -> None:
    """One training run, from an empty or unfinished workdir to the last checkpoint.

    Raises:
      ValueError: bad config, data or checkpoint; OSError: a save failed;
      FloatingPointError: the loss became NaN or infinite; nothing of it is saved.
    """
    say = functools.partial(print, file=sys.stderr, flush=True)
    stop = StopRequest()
    # mesh
    mesh = sharding.make_mesh(config.sharding)
    shape = checkpoint.read_config(config.model.checkpoint)
    check_variant(shape, config.model)
    kind = jax.devices()[0].device_kind
    say(f"{params.count(shape):,} parameters on {mesh.size} {kind} device(s)")
    # data
    train_data, eval_data = load_data(config, shape, mesh, say)
    num_steps = train_data.steps_per_epoch * config.train.epochs
    left_over = len(train_data.examples) % config.train.batch_size
    say(
        f"{len(train_data.examples):,} examples, {num_steps:,} steps of {config.train.batch_size} "
        f"({config.train.epochs} epochs; {left_over} examples sit out each), "
        f"{optimizer.warmup_steps(config.optimizer, num_steps)} of them warm-up"
    )
    # state
    description = workdir_lib.describe(config)
    workdir_lib.check(workdir, description)
    rate = optimizer.schedule(config.optimizer, num_steps)
    update = optimizer.make(config.optimizer, num_steps, params.decay_mask(shape))
    first = checkpoint.latest_step(workdir) or 0
    if first == num_steps:
        say(f"{workdir} is finished: {num_steps:,} steps")
        return
    if not first:
        state = initial_state(config, shape, update, mesh)
        workdir_lib.make(workdir, config, description)
    saved = checkpoint.TrainingCheckpoints(workdir, config.checkpoint)
    writer = metrics.MetricsWriter(workdir, first, config.train.tensorboard)
    with writer, saved:  # whatever happens, a save under way is finished
        if first:
            say(f"going on from step {first:,}")
            state = saved.restore(first, train_step.abstract_state(shape, config, update, mesh))
        # step
        step_once, eval_step = train_step.make_steps(shape, config, update, mesh)
        put = functools.partial(jax.device_put, device=sharding.of_batch(mesh))
        held_out = eval_data.batch(0) if eval_data else None
        held_out_arrays = put(held_out.arrays) if held_out else None

        def evaluate(weights: Params) -> dict[str, float]:
            if held_out is None:
                return {}
            loss = eval_step(weights, held_out_arrays, jnp.int32(held_out.num_micro))
            return {"eval_loss": float(loss)}

        # loop
        peak, peak_source = metrics.peak_flops()
        if not first and (values := evaluate(state["params"])):
            writer.write(0, **values)
            say(f"step 0/{num_steps} | held-out loss {values['eval_loss']:.4f}")
        began = lap = time.perf_counter()
        batch = train_data.batch(first)
        for step in range(first + 1, num_steps + 1):
            state, report = step_once(state, put(batch.arrays), jnp.int32(batch.num_micro))
            this = batch
            if step < num_steps:  # prepared while the devices work
                batch = train_data.batch(step)
            report = {name: float(value) for name, value in report.items()}
            now = time.perf_counter()
            seconds = now - lap
            require_finite(report, step, saved)
            needed = metrics.train_flops(shape, this.num_tokens, this.num_pairs, this.num_targets)
            values = report | {
                "learning_rate": float(rate(step - 1)),
                "tokens_per_second": this.num_tokens / seconds,
                "real_token_share": this.num_tokens / this.num_computed,
                "mfu": needed / (seconds * mesh.size * peak),
                "seconds": seconds,
            }
            last = step == num_steps
            if last or _due(step, config.train.eval_every):
                values |= evaluate(state["params"])
                require_finite({k: values[k] for k in values if k == "eval_loss"}, step, saved)
            writer.write(step, **values)
            if last or step == first + 1 or _due(step, config.train.log_every):
                left = (now - began) / (step - first) * (num_steps - step)
                say(progress_line(step, num_steps, values, peak_source, left))
            stopping = stop.asked  # looked at once a step: what is promised below is saved here
            if last or stopping or _due(step, config.checkpoint.every_steps):
                saved.save(step, state, {k: v for k, v in values.items() if k == "eval_loss"})
            lap = time.perf_counter()
            if stopping and not last:
                saved.wait()
                say(f"stopped by SIGTERM at step {step}, which is saved; run again to go on")
                return
        saved.wait()
        record = json.loads((workdir / "run.json").read_text(encoding="utf-8"))
        provenance.write_json(workdir / "run.json", record | {"end": provenance.now()})
        took = metrics.duration(time.perf_counter() - began)
        say(f"finished in {took}; checkpoints are in {workdir}")


def main(argv: Sequence[str]) -> None:
    del argv
    FLAGS = flags.FLAGS
    run(RunConfig.from_dict(FLAGS.config.to_dict()), Path(FLAGS.workdir))


if __name__ == "__main__":
    from ml_collections import config_flags

    config_flags.DEFINE_config_file("config", help_string="Config file, with its argument.")
    flags.DEFINE_string("workdir", None, "Where checkpoints and metrics go.")
    flags.mark_flags_as_required(["config", "workdir"])
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    cli.run(main)
