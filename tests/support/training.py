"""Small training runs and what they leave behind, for tests."""

import contextlib
import dataclasses
import functools
import importlib.util
import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from orbax.checkpoint import v1 as ocp

from alpacare_jax import train
from alpacare_jax.model import llama, params
from alpacare_jax.model.config import VARIANTS
from alpacare_jax.training import metrics, optimizers
from alpacare_jax.training.config import RunConfig
from alpacare_jax.training.train_step import TrainingProgram
from common import cli, provenance, sections
from configs import quickstart
from tests.conftest import COMPILES_QUICKLY, REPOSITORY, make_model, write_examples

TINY = VARIANTS["tiny"]


def settings(folder: Path, **changes) -> dict:
    """What a run on the files of `make_corpus` changes in the quickstart's config: 10 steps."""
    return {
        "model.checkpoint": str(folder / "base"),
        "model.variant": "tiny",
        "model.loss_tokens": 64,
        "data.path": str(folder / "train.jsonl"),
        "data.eval_path": str(folder / "eval.jsonl"),
        "data.max_length": 512,
        "data.max_row_length": 512,
        "data.overlong": "error",
        "data.row_multiple": 512,  # one shape, hence one compilation: see microbatch_tokens
        "optimizer.learning_rate": 1e-3,
        "optimizer.warmup_ratio": 0.1,
        "train.batch_size": 8,
        "train.epochs": 2,
        "train.log_every": 2,
        "train.microbatch_tokens": 512,
    } | {key.replace("__", "."): value for key, value in changes.items()}


def run_config(folder: Path, **changes) -> RunConfig:
    config = quickstart.get_config()
    config.update_from_flattened_dict(settings(folder, **changes))
    return sections.build(RunConfig, config.to_dict())


@functools.cache
def make_corpus(folder: Path) -> Path:
    """A tiny model and its examples, the same ones for every test module."""
    make_model(folder / "base", TINY)
    write_examples(folder / "train.jsonl", 40)
    write_examples(folder / "eval.jsonl", 6)
    return folder


@contextlib.contextmanager
def small_machine():
    """One device, and SIGTERM as it was afterwards."""
    handler = signal.getsignal(signal.SIGTERM)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jax, "device_count", lambda: 1)  # the mesh covers the first device only
        yield patch
    signal.signal(signal.SIGTERM, handler)


@functools.cache
def _compiled(key: str) -> list:
    return []


def compile_once(patch: pytest.MonkeyPatch) -> None:
    """Lets runs of the same config share their compiled steps."""
    make_steps = TrainingProgram.make_steps

    def cached(program):
        config = program.run_config
        loop = dataclasses.replace(
            config.train,
            log_every=1,
            eval_every=0,
            samples=0,
            check_kernel=True,
            tensorboard=False,
            wandb=False,
        )
        examples = dataclasses.replace(config.data, path=provenance.sha256(config.data.path))
        settings = (config.model, config.lora, config.optimizer, config.preference, loop, examples)
        parts = (program.model_config, *settings, program.mesh)
        if not (steps := _compiled(repr(parts))):
            steps.extend(make_steps(program))
        return tuple(steps)

    patch.setattr(TrainingProgram, "make_steps", cached)


def lines(workdir: Path) -> list[dict]:
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def curve(workdir: Path) -> list[tuple]:
    """What must not depend on restarts."""
    keys = ("step", "loss", "grad_norm", "learning_rate", "real_token_share", "eval_loss")
    return [tuple(line.get(key) for key in keys) for line in lines(workdir)]


def saved_state(workdir: Path, step: int) -> dict[str, np.ndarray]:
    content = ocp.load_checkpointables(workdir / "checkpoints" / str(step))
    leaves = jax.tree_util.tree_leaves_with_path(
        {name: content[name] for name in ("params", "opt_state")}
    )
    return {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in leaves}


def assert_same_end(workdir: Path, reference: Path, step: int) -> None:
    assert curve(workdir) == curve(reference)
    state, other = saved_state(workdir, step), saved_state(reference, step)
    assert state.keys() == other.keys()
    assert len(state) > 3 * sum(name.startswith("['params']") for name in state) > 0
    for name, array in state.items():
        np.testing.assert_array_equal(array, other[name], err_msg=name)


def record_reads(patch: pytest.MonkeyPatch) -> set[str]:
    """Collects the config keys that the package itself reads: `asdict` for run.json is no use."""
    read, package = set(), str(Path(train.__file__).parent)
    for section in dataclasses.fields(RunConfig):
        if not dataclasses.is_dataclass(section.type):
            continue

        def getattribute(self, name, section=section.name):
            if sys._getframe(1).f_code.co_filename.startswith(package):
                read.add(f"{section}.{name}")
            return object.__getattribute__(self, name)

        patch.setattr(section.type, "__getattribute__", getattribute, raising=False)
    return read


class Rules(dict):
    """Sharding rules that remember which were looked up."""

    def __init__(self, *args):
        super().__init__(*args)
        self.read = set()

    def __getitem__(self, key):
        self.read.add(key)
        return super().__getitem__(key)


def ten_steps(folder: Path, **changes) -> RunConfig:
    """The run that the tests of restarts interrupt: its steps are of two shapes."""
    held_out = {"data__eval_path": "", "data__eval_share": 0.15, "train__eval_every": 2}
    steps = {"train__batch_size": 6, "train__microbatch_tokens": 1024}
    return run_config(folder, **held_out | steps | changes)


@functools.cache
def finished_run(corpus: Path) -> SimpleNamespace:
    """A whole run of 10 steps that nothing disturbs, and what was seen while it ran."""
    _compiled.cache_clear()  # the model's settings are read while it is traced
    workdir = corpus / "finished"
    board = importlib.util.find_spec("tensorboardX") is not None
    config = ten_steps(corpus, train__tensorboard=board, checkpoint__every_steps=4)
    rules = Rules(config.sharding.rules)
    config = dataclasses.replace(config, sharding=dataclasses.replace(config.sharding, rules=rules))
    with (
        small_machine() as patch,
        open(corpus / "out", "w") as out,
        open(corpus / "err", "w") as err,
    ):
        compile_once(patch)
        make, steps_of_schedule = optimizers.make, []
        patch.setattr(
            optimizers,
            "make",
            lambda recipe, steps, *of_weights: (
                steps_of_schedule.append(steps) or make(recipe, steps, *of_weights)
            ),
        )
        patch.setattr(sys, "stdout", out)
        patch.setattr(sys, "stderr", err)
        read = record_reads(patch)
        train.run(config, workdir)
    return SimpleNamespace(
        config=config,
        workdir=workdir,
        read=read,
        steps_of_schedule=steps_of_schedule,
        out=(corpus / "out").read_text(),
        err=(corpus / "err").read_text(),
    )


def stopped_run(corpus: Path, workdir: Path, step: int, **changes) -> RunConfig:
    """Makes a workdir whose run was asked to stop as it gave the devices step `step`.

    A checkpoint is due there, so the run waits for that very step; else it stops one step later.
    """
    config = ten_steps(corpus, **{"checkpoint__every_steps": step} | changes)
    stop_at(config, workdir, step)
    return config


def stop_at(config: RunConfig, workdir: Path, step: int) -> None:
    """Runs until the run is asked to stop; see `stopped_run`."""

    class RequestedAtStep(contextlib.nullcontext):
        looks, interrupted = 0, False

        @property
        def requested(self):
            self.looks += 1
            return self.looks >= step

        def end_if_requested(self):
            """Before the first step nothing is requested."""

    with small_machine() as patch:
        compile_once(patch)
        patch.setattr(train, "StopRequest", RequestedAtStep)
        train.run(config, workdir)


def resume(config: RunConfig, workdir: Path) -> None:
    with small_machine() as patch:
        compile_once(patch)
        train.run(config, workdir)


def hand_made_params() -> llama.Params:
    """Weights without a random number: sines of squares for matrices, a slope for norms."""
    rows = {weight.path: i for i, weight in enumerate(params.WEIGHTS)}

    def leaf(weight):
        shape = params.weight_shape(weight, TINY)
        size = math.prod(shape)
        if weight.init == "ones":
            return jnp.asarray(np.linspace(0.8, 1.2, size).reshape(shape), jnp.float32)
        wave = np.sin(np.linspace(0, 100 + rows[weight.path], size) ** 2)
        return jnp.asarray(0.06 * wave.reshape(shape), jnp.float32)

    return params.build_tree(TINY, leaf)


def after_write(patch: pytest.MonkeyPatch, step: int, action) -> None:
    """Calls `action` once, when the metrics of `step` have been written."""
    write = metrics.MetricsWriter.write

    def wrapped(self, at, **values):
        write(self, at, **values)
        if at == step:
            action()

    patch.setattr(metrics.MetricsWriter, "write", wrapped)


TWENTY_STEPS = {"train__epochs": 4, "train__eval_every": 5, "checkpoint__every_steps": 3}


def command(folder: Path, workdir: Path, **changes) -> list[str]:
    flags = [f"--config.{key}={value}" for key, value in settings(folder, **changes).items()]
    program = [sys.executable, "-m", "alpacare_jax.train"]
    return [*program, "--config=configs/quickstart.py", f"--workdir={workdir}", *flags]


def start(args: list[str], **options) -> subprocess.Popen:
    env = os.environ | COMPILES_QUICKLY | {"JAX_NUM_CPU_DEVICES": "1"}
    return subprocess.Popen(
        args, cwd=REPOSITORY, env=env, stderr=subprocess.PIPE, text=True, **options
    )


def interrupted(args: list[str], note: Path, text: str) -> list[str]:
    """The command of a run with a signal on its way; see interrupted_train.py for the note."""
    note.write_text(text)
    python, _, _, *flags = args
    return [python, "-m", "tests.support.interrupted_train", str(note), *flags]


def wait_for_step(process: subprocess.Popen, workdir: Path, step: int) -> bool:
    """Whether the run got that far; False where it ended before."""
    path = workdir / "metrics.jsonl"
    while process.poll() is None:
        if path.exists() and f'"step": {step},' in path.read_text():
            return True
        time.sleep(0.01)
    return False


def one_line_error(config, workdir: Path, capsys) -> str:
    """What the command would print; the run must fail in a way that `cli` turns into one line."""
    with small_machine() as patch, pytest.raises(cli.USER_ERRORS) as raised:
        compile_once(patch)
        train.run(config, workdir)
    capsys.readouterr()
    assert cli.fail(raised.value) == 1
    (line,) = capsys.readouterr().err.splitlines()
    return line
