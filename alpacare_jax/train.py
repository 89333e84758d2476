"""Fine-tunes a model: mesh -> data -> state -> step -> loop.

    python -m alpacare_jax.train --config=configs/alpacare.py:llama-7b --workdir=runs/alpacare-7b

Run again with the same flags, it goes on from the last checkpoint of the workdir.
"""

import collections
import functools
import math
import os
import signal
import sys
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl import flags
from etils.epath import Path
from jax.sharding import Mesh

from alpacare_jax.checkpoints import checkpoint, model_folder
from alpacare_jax.data import batches, encoding, prompts
from alpacare_jax.distributed import processes, sharding
from alpacare_jax.model import params
from alpacare_jax.model.config import VARIANTS, LlamaConfig
from alpacare_jax.training import optimizers, train_step
from alpacare_jax.training import workdir as workdir_lib
from alpacare_jax.training.config import ModelConfig, RunConfig
from alpacare_jax.training.progress import Progress
from alpacare_jax.training.train_step import State
from common import cli, paths, records, sections


def load_data(
    config: RunConfig, shape: LlamaConfig, mesh: Mesh, report: Callable[[str], None]
) -> tuple[batches.Batcher, batches.Batcher | None]:
    """Training and held-out batchers; the second is None where nothing is held out."""
    tokenizer = model_folder.load_tokenizer(config.model.checkpoint)
    template = prompts.get(config.data.template)
    limit = shape.max_position_embeddings
    if config.data.max_length > limit:
        raise ValueError(
            f"data.max_length {config.data.max_length:,} is over the model's "
            f"max_position_embeddings {limit:,}; lower it"
        )

    def encode(examples: Sequence[records.Example], what: str) -> list[encoding.EncodedExample]:
        tell = lambda text: report(f"{what}: {text}")  # noqa: E731
        return encoding.encode_all(examples, tokenizer, template, config.data, tell)

    examples = records.read_examples(config.data.path)
    if config.data.eval_path:
        held_out = records.read_examples(config.data.eval_path)
    else:
        examples, held_out = batches.split_examples(
            examples, config.data.eval_share, config.train.seed
        )
    training = encode(examples, "training data")
    train = make_batcher(training, config.train.batch_size, config, shape, mesh)
    if not held_out:
        return train, None
    encoded = encode(held_out, "held-out data")
    return train, make_batcher(encoded, len(encoded), config, shape, mesh)


def make_batcher(
    examples: Sequence[encoding.EncodedExample],
    batch_size: int,
    config: RunConfig,
    shape: LlamaConfig,
    mesh: Mesh,
) -> batches.Batcher:
    """Lays examples out for this model on this mesh."""
    sizes = shape.sizes
    return batches.Batcher(
        examples,
        batch_size,
        seed=config.train.seed,
        max_length=config.data.max_length,
        max_row_length=config.data.max_row_length,
        row_multiple=config.data.row_multiple,
        row_groups=sharding.batch_groups(mesh),
        microbatch_tokens=config.train.microbatch_tokens,
        # Attention over a full row of T costs 12 L N H T FLOPs a token, the weights 6 P.
        attention_cost=2 * sizes["L"] * sizes["N"] * sizes["H"] / params.count(shape),
    )


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
    expected = VARIANTS[config.variant].sizes | {"V": shape.vocab_size}
    if shape.sizes != expected:
        differ = {k: (shape.sizes[k], v) for k, v in expected.items() if shape.sizes[k] != v}
        raise ValueError(
            f"{config.checkpoint} is not a {config.variant}: its sizes differ in "
            + ", ".join(f"{k} ({a} instead of {b})" for k, (a, b) in differ.items())
        )


def _due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0


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
    """Remembers Ctrl-C, and SIGTERM, which TPU maintenance and schedulers send before they kill.

    While a run is entered as a context, the first Ctrl-C asks it to save and stop, as SIGTERM does;
    the second ends it at once, as it does before and after.
    """

    def __init__(self):
        self.asked = self.interrupted = False
        signal.signal(signal.SIGTERM, self._ask)

    def __enter__(self) -> "StopRequest":
        self._before = signal.getsignal(signal.SIGINT)
        if self._before != signal.SIG_IGN:  # a script's background job: the script passes on
            signal.signal(signal.SIGINT, self._interrupt)
        return self

    def __exit__(self, *_) -> None:
        signal.signal(signal.SIGINT, self._before)

    def _ask(self, *_) -> None:
        self.asked = True

    def _interrupt(self, *_) -> None:
        print("saving after this step; Ctrl-C again ends at once", file=sys.stderr)
        self.asked = self.interrupted = True
        signal.signal(signal.SIGINT, self._before)


def run(config: RunConfig, workdir: Path, step_seconds: int = processes.STEP_SECONDS) -> int:
    """One training run, from an empty or unfinished workdir to the last checkpoint.

    Several processes run it together, each with the same arguments. Whether to stop is decided by
    all of them: every step's report holds whether any process was asked to.

    Returns:
      The command's exit code: 130 where Ctrl-C stopped it, which is saved, else 0.

    Raises:
      ValueError: bad config, data or checkpoint; OSError: a save failed;
      FloatingPointError: the loss became NaN or infinite; nothing of it is saved.
    """
    stop = StopRequest()
    progress = Progress()
    watchdog = processes.Watchdog(step_seconds)
    watchdog.reset()  # setting up waits for the others too
    # mesh
    mesh = sharding.make_mesh(config.sharding)
    shape = model_folder.read_config(config.model.checkpoint)
    check_variant(shape, config.model)
    kernel = train_step.attention_kernel(shape, config.model, mesh)
    progress.say(
        f"{params.count(shape):,} parameters on {sharding.describe(mesh)}; attention by {kernel}"
    )
    progress.phase("imports and devices")
    # data
    train_data, eval_data = load_data(config, shape, mesh, progress.say)
    num_steps = train_data.steps_per_epoch * config.train.epochs
    left_over = len(train_data.examples) % config.train.batch_size
    progress.say(
        f"{len(train_data.examples):,} examples, {num_steps:,} steps of {config.train.batch_size} "
        f"({config.train.epochs} epochs; {left_over} examples sit out each), "
        f"{optimizers.warmup_steps(config.optimizer, num_steps)} of them warm-up"
    )
    if mesh.size > 1 and config.train.batch_size < train_data.full_batch_size / 2:
        progress.say(
            f"{config.train.batch_size} examples a step do not fill {mesh.size} devices; "
            f"train.batch_size of {train_data.full_batch_size:,} would, or fewer devices"
        )
    progress.phase("data")
    # state
    description = workdir_lib.describe(config)
    workdir_lib.check(workdir, description)
    update = optimizers.make(
        config.optimizer, num_steps, params.decay_mask(shape), params.matrix_axes(shape)
    )
    # What one process sees of a shared folder may be older than what another does.
    first = int(processes.broadcast_from_process_0(checkpoint.latest_step(workdir) or 0))
    if first == num_steps:
        if processes.is_first():
            workdir_lib.finish(workdir)  # a kill may have come between the last save and this
        progress.say(f"{workdir} is finished: {num_steps:,} steps")
        return 0
    if not first:
        state = initial_state(config, shape, update, mesh)
        workdir_lib.make(workdir, config, description)
    saved = checkpoint.TrainingCheckpoints(workdir, config.checkpoint)
    progress.open(workdir, config, shape, mesh, first, num_steps)
    with watchdog, progress, stop, saved:  # a last save waits for the others, too
        if first:
            progress.say(f"going on from step {first:,}")
            state = saved.restore(first, train_step.abstract_state(shape, config, update, mesh))
        progress.phase("weights")
        # step
        step_once, eval_step = train_step.make_steps(shape, config, update, mesh)
        put = functools.partial(sharding.put_batch, mesh=mesh)
        held_out = eval_data.batch(0) if eval_data else None
        held_out_arrays = put(held_out.arrays) if held_out else None

        def evaluate(step: int) -> dict[str, float]:
            if held_out is None:
                return {}
            loss = eval_step(state["params"], held_out_arrays, np.int32(held_out.num_micro))
            values = {"eval_loss": float(loss)}
            require_finite(values, step, saved)
            watchdog.reset()
            return values

        # loop
        if not first:
            progress.start_values(evaluate(0))
            progress.phase("held-out loss")
        profile = config.profile_steps
        batch, stopping = train_data.batch(first), False
        trace = processes.Trace(workdir / "profile")
        stops = {asked: sharding.put_flag(asked, mesh) for asked in (False, True)}
        ahead = collections.deque()  # steps the devices were given whose reports were not read yet
        for step in range(first + 1, num_steps + 1):
            if profile and step == profile[0]:
                trace.start()
            arrays, num_micro = put(batch.arrays), np.int32(batch.num_micro)
            state, report = step_once(state, arrays, num_micro, stops[stop.asked])
            ahead.append((step, batch, report))
            if step < num_steps:  # prepared while the devices work
                batch = train_data.batch(step)
            last = step == num_steps
            evaluating = last or _due(step, config.train.eval_every)
            saving = last or _due(step, config.checkpoint.every_steps)
            profiled = bool(profile) and step in (profile[0] - 1, profile[1])
            # One step stays ahead, so that the devices never wait for Python.
            while len(ahead) > (0 if evaluating or saving or profiled or stopping else 1):
                done, its_batch, report = ahead.popleft()
                report = {name: float(value) for name, value in report.items()}
                seconds = progress.lap()
                watchdog.reset()
                stopping |= report.pop("stop") > 0
                require_finite(report, done, saved)
                found = evaluate(done) if evaluating and done == step else {}
                progress.step(done, its_batch, report | found, seconds)
            if trace.running and (step == profile[1] or last or stopping):
                trace.stop()
            if saving or stopping:
                progress.before_save()
                progress.saved(step, saved.save(step, state, found))
                watchdog.reset()
            if stopping and not last:
                saved.wait()
                why = "Ctrl-C" if stop.interrupted else "SIGTERM"
                progress.say(f"stopped by {why} at step {step}, which is saved; run again to go on")
                return 130 if stop.interrupted else 0
        saved.wait()
        if processes.is_first():
            workdir_lib.finish(workdir)
        progress.finished(workdir)
    return 0


def main(argv: Sequence[str]) -> int:
    del argv
    FLAGS = flags.FLAGS
    config = sections.build(RunConfig, FLAGS.config.to_dict())
    paths.check(FLAGS.workdir, config.model.checkpoint, config.data.path, config.data.eval_path)
    processes.use_compilation_cache()
    processes.join(
        distributed=FLAGS.distributed,
        coordinator=FLAGS.coordinator,
        num_processes=FLAGS.num_processes,
        process_id=FLAGS.process_id,
        join_seconds=FLAGS.join_seconds,
    )
    return run(config, Path(FLAGS.workdir), FLAGS.step_seconds)


if __name__ == "__main__":
    from ml_collections import config_flags

    config_flags.DEFINE_config_file("config", help_string="Config file, with its argument.")
    flags.DEFINE_string("workdir", None, "Where checkpoints and metrics go: a folder or gs://.")
    flags.mark_flags_as_required(["config", "workdir"])
    processes.define_flags()
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    cli.run(main, config=RunConfig)
