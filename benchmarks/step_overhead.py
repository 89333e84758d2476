"""Claim: the training loop costs less than 1 ms a step beyond the compiled step itself.

    python -m benchmarks.step_overhead [--data=examples.json]

What the loop adds depends on the batches, not on what is computed with them. So the compiled step
is a stand-in that only looks at its batch: behind a real one's time hides what is to be shown, and
that time moves by more than 1 ms from round to round. All else is `alpacare_jax.train.run` on a
model of one layer, with the recipe's batches: 128 examples of real lengths (a token for every four
characters), rows of up to `data.max_row_length`.

A round is `--steps` steps of the loop, between two reported steps. At its end the loop is paused
and the same steps run alone: the compiled step, on the same batches, which lie on the device
already, one right after the other. The difference is what the loop adds: batches packed and filled,
put on the device, reports fetched, metrics, progress lines. Not in it are checkpoints, held-out
losses, and launching the compiled step, which both do. In training nearly all of it hides behind
the device's work, for the loop prepares a batch meanwhile; here nothing does.

The second line is the same of the CPU time of the loop's own thread, which other programs disturb
less.

Target: less than 1 ms a step on the wall clock, as the median of the rounds.
"""

import json
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import tokenizers
from absl import flags
from etils import epath

from alpacare_jax import train
from alpacare_jax.checkpoints import checkpoint, model_folder
from alpacare_jax.data import batches as data
from alpacare_jax.distributed import sharding
from alpacare_jax.model import params
from alpacare_jax.model.config import VARIANTS, LlamaConfig
from alpacare_jax.training import progress
from alpacare_jax.training.config import RunConfig
from alpacare_jax.training.train_step import TrainingProgram
from benchmarks import useful_tokens
from benchmarks.support import models, race
from common import cli, records

SETTLING = 3
"""Steps of the loop before each round's clock: it comes from a pause."""

Clocks = tuple[float, float]
"""Seconds of the wall clock, and of work of this thread."""


def smallest() -> LlamaConfig:
    """The model, which this process's runs know as the variant `smallest` from now on.

    Its weights and its attention cost a token as much of each other as in 7B, as shapes of
    micro-batches depend on that.
    """
    sizes = {"hidden_size": 2, "intermediate_size": 16384, "vocab_size": 3}
    shape = LlamaConfig(**sizes, num_hidden_layers=1, num_attention_heads=1)
    VARIANTS["smallest"] = shape
    return shape


def write_model(folder: Path) -> None:
    """A model directory: random weights, and a tokenizer to which all text is unknown."""
    shape = smallest()
    (folder / "config.json").write_text(json.dumps(shape.to_hf()), encoding="utf-8")
    checkpoint.save_params(folder, params.init(shape, jax.random.key(0)))
    special = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"}
    vocabulary = {token: i for i, token in enumerate(special.values())}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, "<unk>"))
    four = tokenizers.Regex(r"[\s\S]{1,4}")
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Split(four, "isolated")
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps(special), encoding="utf-8")


def run_config(folder: Path, num_steps: int) -> RunConfig:
    """The recipe, on the smallest model, for `num_steps` or a few more."""
    FLAGS = flags.FLAGS
    path, batch_size = FLAGS.data or useful_tokens.default_data(), FLAGS.batch_size
    steps_per_epoch = len(records.read_examples(path)) // batch_size
    return models.run_config(
        FLAGS.config,
        model={"checkpoint": str(folder), "variant": "smallest", "remat": "full"},
        data={"path": path},
        train={"batch_size": batch_size, "epochs": -(-num_steps // max(1, steps_per_epoch))},
        checkpoint={"every_steps": 0},
    )


def make_steps(program: TrainingProgram) -> tuple[Callable, None]:
    """Stands in for `TrainingProgram.make_steps`: a step that only looks at its batch."""

    def step(state, arrays, num_micro, stops, base):
        read = sum(array[0, 0, 0].astype(jnp.float32) for array in arrays.values())
        return state, {"loss": read, "grad_norm": read / num_micro, "stop": jnp.max(stops)}

    shardings, mesh = program.state_shardings, program.mesh
    batch, whole = sharding.batch_sharding(mesh), sharding.replicated(mesh)
    compiled = jax.jit(
        step,
        in_shardings=(shardings, batch, whole, sharding.flag_sharding(mesh), {}),
        out_shardings=(shardings, whole),
        donate_argnums=0,
    )
    return compiled, None


def read_clocks() -> Clocks:
    return time.perf_counter(), time.thread_time()


def per_step(start: Clocks, end: Clocks) -> Clocks:
    wall, thread = (1e3 * (b - a) / flags.FLAGS.steps for a, b in zip(start, end, strict=True))
    return wall, thread


def alone(training: models.OurTraining, batches: Sequence[data.Step]) -> Clocks:
    """Milliseconds of a step on batches that lie on the device already."""
    placed = [(sharding.put_batch(b.arrays, training.mesh), b.num_micro) for b in batches]
    training.run(placed)  # compiles what is new; meanwhile the loop's last step ends
    start = read_clocks()
    training.run(placed)
    return per_step(start, read_clocks())


class Rounds:
    """Observes each step of the loop; keeps each round's milliseconds a step."""

    def __init__(self, training: models.OurTraining):
        self.loop: list[Clocks] = []
        self.alone: list[Clocks] = []
        self._training = training
        self._told: list[tuple[Clocks, data.Step]] = []

    def step(self, batch: data.Step) -> None:
        self._told.append((read_clocks(), batch))
        if len(self._told) < SETTLING + flags.FLAGS.steps:
            return
        clocks, batches = zip(*self._told[SETTLING - 1 :], strict=True)
        self.loop.append(per_step(clocks[0], clocks[-1]))
        self.alone.append(alone(self._training, batches[1:]))
        self._told.clear()


def observed(report_step: Callable, rounds: Rounds) -> Callable:
    """`TrainingProgress.step`, reporting to `rounds` as well."""

    def step(self: progress.TrainingProgress, number: int, batch: data.Step, *rest) -> None:
        report_step(self, number, batch, *rest)
        rounds.step(batch)

    return step


def main(argv: Sequence[str]) -> None:
    del argv
    FLAGS = flags.FLAGS
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_model(folder)
        TrainingProgram.make_steps = make_steps
        config = run_config(folder, (SETTLING + FLAGS.steps) * (FLAGS.rounds + 1))
        rounds = Rounds(models.OurTraining(config, model_folder.read_config(folder)))
        progress.TrainingProgress.step = observed(progress.TrainingProgress.step, rounds)
        train.run(config, epath.Path(folder / "run"))
    race.headline(f"training loop, smallest model, {FLAGS.batch_size} examples a step", ["jax"])
    print("ms a step: median [min, max]")
    over = []
    for clock, name in enumerate(("wall clock", "CPU time of the loop's thread")):
        loop, step = ([each[clock] for each in of[1:]] for of in (rounds.loop, rounds.alone))
        over.append([a - b for a, b in zip(loop, step, strict=True)])
        parts = (race.spread(values, 2) for values in (loop, step, over[-1]))
        print("{}: loop {}, step alone {}, difference {}".format(name, *parts))
    race.verdict("ms on the wall clock, median", statistics.median(over[0]), 1.0, at_most=True)


if __name__ == "__main__":
    from ml_collections import config_flags

    config_flags.DEFINE_config_file("config", "configs/alpacare.py", "Our settings.")
    flags.DEFINE_string("data", "", "Examples; $ALPACARE_DATA's Alpaca, else the starter set.")
    flags.DEFINE_integer("batch_size", 128, "Examples of an optimiser step.", lower_bound=1)
    flags.DEFINE_integer("rounds", 100, "Rounds that count; one goes before.", lower_bound=1)
    flags.DEFINE_integer("steps", 10, "Steps of a round.", lower_bound=1)
    cli.run(main)
