"""Fine-tunes a model: mesh -> data -> state -> step -> loop.

    python -m alpacare_jax.train --config=configs/alpacare.py:llama-7b --workdir=runs/alpacare-7b

Run again with the same flags, it resumes from the last checkpoint of the workdir.
"""

import dataclasses
import os
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

import jax
import numpy as np
from absl import flags
from etils import epath
from jax.sharding import Mesh

from alpacare_jax.checkpoints import checkpoint, model_folder
from alpacare_jax.checkpoints.saving import TrainingCheckpoints
from alpacare_jax.data.batches import Batcher
from alpacare_jax.distributed import processes, sharding
from alpacare_jax.model import params
from alpacare_jax.model.config import LlamaConfig
from alpacare_jax.model.llama import Params
from alpacare_jax.planning import remat, topologies
from alpacare_jax.training import batching, optimizers, preference
from alpacare_jax.training import workdir as workdir_lib
from alpacare_jax.training.config import RunConfig, profiled_steps
from alpacare_jax.training.console import Compilations, StartupTimer, log, waiting
from alpacare_jax.training.evaluation import Evaluation
from alpacare_jax.training.progress import TrainingProgress
from alpacare_jax.training.train_step import State, TrainingProgram
from common import cli, paths, sections


class StoppedEarlyError(Exception):
    """The run was asked to stop before its first step, when there is nothing to save."""


class StopRequest:
    """Records Ctrl-C and SIGTERM, which TPU maintenance and schedulers send before they kill.

    Inside `with`, the first Ctrl-C asks the run to save and stop, as SIGTERM does at any time; the
    second one ends it immediately, as the first one does outside.
    """

    def __init__(self):
        self.requested = self.interrupted = False
        self._previous_handler = signal.getsignal(signal.SIGINT)
        signal.signal(signal.SIGTERM, self._request)

    def __enter__(self) -> "StopRequest":
        if self._previous_handler != signal.SIG_IGN:  # a background job: its script forwards it
            signal.signal(signal.SIGINT, self._request)
        return self

    def __exit__(self, *_) -> None:
        signal.signal(signal.SIGINT, self._previous_handler)

    def end_if_requested(self) -> None:
        """Raises StoppedEarlyError in every process if one was asked to stop."""
        if processes.smallest_of_all(not self.requested) == 0:
            raise StoppedEarlyError

    def _request(self, number: int, _) -> None:
        self.requested = True
        if number == signal.SIGINT:
            print("saving after this step; press Ctrl-C again to quit immediately", file=sys.stderr)
            self.interrupted = True
            signal.signal(signal.SIGINT, self._previous_handler)


def run(
    run_config: RunConfig, workdir: epath.Path, step_seconds: int = processes.STEP_SECONDS
) -> int:
    """One training run, from an empty or unfinished workdir to the last checkpoint.

    Several processes run it together, with the same arguments; if one is asked to stop, all do.

    Returns:
      The command's exit code: 130 if Ctrl-C stopped it (after saving a checkpoint), else 0.

    Raises:
      ValueError: bad config, data or checkpoint; OSError: a save failed;
      FloatingPointError: a loss, weight or moment became NaN or infinite, which is not saved; or
        the attention kernel is wrong.
    """
    stop, startup = StopRequest(), StartupTimer()
    watchdog = processes.Watchdog(step_seconds)
    watchdog.reset()  # set-up waits for the other processes too
    # mesh
    mesh = sharding.make_mesh(run_config.sharding)
    model_config = model_folder.read_config(run_config.model.checkpoint)
    run_config.model.check_variant(model_config)
    log_model(run_config, model_config, mesh)
    startup.end_phase("imports and devices")
    # data
    with waiting("encoding the data"):
        train_data, eval_data = batching.load_batchers(run_config, model_config, mesh, log)
    num_steps = train_data.steps_per_epoch * run_config.train.epochs
    log_data(run_config, train_data, num_steps, mesh.size)
    startup.end_phase("data")
    # state
    description = workdir_lib.describe(run_config)
    workdir_lib.check(workdir, description)
    program = TrainingProgram(model_config, run_config, num_steps, mesh)
    with waiting("checking the saved steps"):
        first = checkpoint.newest_whole(workdir)
    if first == num_steps:
        workdir_lib.finish(workdir)  # a kill may have come between the last save and this
        log(f"{workdir} is finished: {num_steps:,} steps")
        return 0
    program, (train_step, eval_step), choice = announced_steps(program, train_data)
    startup.end_phase("choice of remat")
    watchdog.reset()
    with waiting("loading the weights"):
        base, state = program.load_base(), None if first else program.initial_state()
    workdir_lib.make(workdir, run_config, description, first, choice)
    checkpoints = TrainingCheckpoints(workdir, run_config.checkpoint, first)
    if run_config.preference.beta:
        inputs, data, states = description["inputs"], (train_data, eval_data), (state, base)
        wait = watchdog, stop
        try:
            train_data, eval_data = with_references(program, workdir, inputs, data, states, wait)
        except StoppedEarlyError:
            log("stopped by SIGTERM before the first step; run the same command again")
            return 0
    evaluation = Evaluation(program, eval_data, eval_step, base)
    progress = TrainingProgress(workdir, program, first, startup, watchdog, checkpoints, evaluation)
    with watchdog, progress, stop, checkpoints:  # the last save waits for the others, too
        if state is None:
            log(f"resuming from step {first:,}, the newest that is whole and finite")
            with waiting("loading the checkpoint"):
                state = checkpoints.restore(first, program.abstract_state())
        startup.end_phase("weights")
        batch = train_data.batch(first)
        if checked := program.check_kernel(state["params"], batch, base):
            log(checked)
        # loop
        stop_flags = {flag: sharding.put_flag(flag, mesh) for flag in (False, True)}
        progress.start(state)
        if not first:
            startup.end_phase("held-out loss")
        trace = processes.Trace(workdir / "profile")
        trace_first, trace_last = profiled_steps(run_config.profile) or (0, 0)
        for step in range(first + 1, num_steps + 1):
            if step == trace_first:
                trace.start()
            arrays, num_micro = sharding.put_batch(batch.arrays, mesh), np.int32(batch.num_micro)
            state, report = train_step(state, arrays, num_micro, stop_flags[stop.requested], base)
            progress.add(step, batch, report)
            last = step == num_steps
            if not last:  # prepared while the devices work
                batch = train_data.batch(step)
            evaluating = last or is_due(step, run_config.train.eval_every)
            saving = last or is_due(step, run_config.checkpoint.every_steps)
            wait = evaluating or saving or step in (trace_first - 1, trace_last)
            held_out = progress.drain(step, state, wait=wait, evaluating=evaluating)
            if trace.running and (step == trace_last or last or progress.stopping):
                trace.stop()
            if saving or progress.stopping:
                progress.save(step, state, held_out)
            if progress.stopping and not last:
                checkpoints.wait()
                progress.stop(step, "Ctrl-C" if stop.interrupted else "SIGTERM")
                return 130 if stop.interrupted else 0
        checkpoints.wait()
        workdir_lib.finish(workdir)
        progress.finish()
    return 0


def log_model(run_config: RunConfig, model_config: LlamaConfig, mesh: Mesh) -> None:
    """Reports weights, devices, the attention kernel, why no faster one, and fp8. Raises: its."""
    kernel, passed_over = batching.choose_kernel(run_config, model_config, mesh)
    weights = describe_weights(run_config, model_config)
    log(f"{weights} on {sharding.describe(mesh)}; attention kernel: {kernel}")
    if passed_over:
        log(f"no faster attention kernel: {passed_over}")
    if run_config.train.fp8:
        log(batching.check_fp8(mesh))


def describe_weights(run_config: RunConfig, model_config: LlamaConfig) -> str:
    """`6,738,415,616 parameters`, and with LoRA how many of an adapter are trained."""
    text, lora = f"{params.count(model_config):,} parameters", run_config.lora
    if not lora.rank:
        return text
    return f"{params.count(lora.adapter(model_config)):,} parameters of an adapter, {text} frozen,"


def log_data(run_config: RunConfig, train_data: Batcher, num_steps: int, num_devices: int) -> None:
    """Reports how many examples and steps a run has, and whether a step fills the devices."""
    batch_size, epochs = run_config.train.batch_size, run_config.train.epochs
    skipped, noun = train_data.num_records % batch_size, train_data.noun
    log(
        f"{train_data.num_records:,} {noun}, {num_steps:,} steps of {batch_size} ({epochs} "
        f"epochs), {optimizers.warmup_steps(run_config.optimizer, num_steps)} of them warm-up"
    )
    if skipped:
        log(f"{skipped} {noun} are skipped each epoch (incomplete batch)")
    if num_devices > 1 and batch_size < train_data.full_batch_size / 2:
        log(
            f"{batch_size} {noun} per step do not fill {num_devices} devices; use a "
            f"train.batch_size of {train_data.full_batch_size:,}, or fewer devices"
        )


def with_references(
    program: TrainingProgram,
    workdir: epath.Path,
    inputs: Mapping[str, Any],
    data: tuple[Batcher, Batcher | None],
    states: tuple[State | None, Params],
    wait: tuple[processes.Watchdog, StopRequest],
) -> tuple[Batcher, Batcher | None]:
    """The batchers of pairs, with the log-probabilities that the base model gives to the answers.

    They are read from the workdir, or computed by what a run begins with, trained and frozen
    weights, and stored. A new adapter changes nothing: with LoRA the reference is its base.

    Raises:
      ValueError: those of the workdir are damaged, or of another model or other pairs.
      StoppedEarlyError: the run was asked to stop while they were computed.
    """
    watchdog, stop = wait
    path, batchers = workdir / preference.REFERENCES, [batcher for batcher in data if batcher]
    identity = {"model": inputs["model"], "pairs": preference.digest(batchers)}
    if processes.broadcast_from_process_0(path.exists()):
        values = preference.read_references(path, identity)
        log(f"{path} has the reference log-probabilities")
    else:
        state, base = states
        params, step = (state or program.initial_state())["params"], program.make_reference_step()

        def sums(arrays: dict[str, np.ndarray]) -> jax.Array:
            watchdog.reset()
            stop.end_if_requested()
            return step(params, sharding.put_batch(arrays, program.mesh), base)

        with waiting("computing the reference log-probabilities"):
            values = [preference.reference_log_probs(batcher, sums) for batcher in batchers]
        log(f"reference log-probabilities of {sum(map(len, values)):,} answers are computed")
        if processes.is_first():
            preference.write_references(path, identity, values)
        processes.barrier("references stored")
    train_data, *held_out = (
        dataclasses.replace(batcher, references=each)
        for batcher, each in zip(batchers, values, strict=True)
    )
    return train_data, held_out[0] if held_out else None


def announced_steps(
    program: TrainingProgram, train_data: Batcher
) -> tuple[TrainingProgram, list[Callable[..., Any]], dict[str, Any]]:
    """The two programs of a run, which announce their compilations, and what `auto` has chosen.

    The program that is returned has the policy of remat that runs; the training step of `auto` is
    compiled already.

    Raises:
      ValueError: no policy fits the devices' memory.
    """
    config, record, name = program.run_config, {}, "the training step"
    settings = config.model, config.lora, config.optimizer, program.mesh.shape
    compilations = Compilations(program.model_config, *settings)
    if config.model.remat == "auto":
        arrays = train_data.largest

        def compiling(policy: str) -> AbstractContextManager[None]:
            return compilations.announce(f"{name} with remat {policy}", arrays["tokens"].shape)

        program, choice = remat.choose(program, arrays, topologies.local(), compiling)
        choice.check()
        log(str(choice))
        record, name = dataclasses.asdict(choice), f"{name} with remat {choice.policy}"
    train_step, eval_step = program.steps
    steps = [
        compilations.announced(train_step, name),
        compilations.announced(eval_step, "the held-out loss"),
    ]
    return program, steps, record


def is_due(step: int, every: int) -> bool:
    """Whether `step` is a multiple of `every`; 0 means never."""
    return every > 0 and step % every == 0


def main(argv: Sequence[str]) -> int:
    """Runs the command."""
    del argv
    FLAGS = flags.FLAGS
    run_config = sections.build(RunConfig, FLAGS.config.to_dict())
    paths.check(
        FLAGS.workdir,
        run_config.model.checkpoint,
        run_config.data.path,
        run_config.data.eval_path,
    )
    processes.use_compilation_cache(FLAGS.workdir)
    processes.join(
        distributed=FLAGS.distributed,
        coordinator=FLAGS.coordinator,
        num_processes=FLAGS.num_processes,
        process_id=FLAGS.process_id,
        join_seconds=FLAGS.join_seconds,
    )
    with processes.hold_lock(FLAGS.workdir):
        return run(run_config, epath.Path(FLAGS.workdir), FLAGS.step_seconds)


if __name__ == "__main__":
    from ml_collections import config_flags

    config_flags.DEFINE_config_file("config", help_string="Config file, with its argument.")
    flags.DEFINE_string("workdir", None, "Folder or gs:// path of checkpoints and metrics.")
    flags.mark_flags_as_required(["config", "workdir"])
    processes.define_flags()
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    cli.run(main, config=RunConfig)
