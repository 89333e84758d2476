"""Claim: the training loop costs less than 1 ms a step beyond the compiled step itself.

    python -m benchmarks.step_overhead [--data=examples.json]

`loop` is `alpacare_jax.train.run`: batches packed, put on the device, reports read, metrics and
progress written. `step alone` is its compiled step on the same batches, which lie on the device
already, one right after the other. A round is the second epoch of a run, for all shapes compile in
the first. The batches are the recipe's 128 examples, cut at `--max_length`; the model is one layer
of next to nothing, so that what comes on top of a step shows.

Two differences are printed. Of the wall clock: it needs a quiet machine, and on a CPU a step's own
time still moves by more than 1 ms from round to round. And of the CPU time of the loop's own
thread, which other programs disturb little: what a device would wait for if nothing of it were
hidden behind the step before.

Target: less than 1 ms a step on the wall clock.
"""

import json
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from absl import flags

from benchmarks import models, race, useful_tokens
from contract import cli

if TYPE_CHECKING:
    from alpacare_jax.llama import LlamaConfig
    from alpacare_jax.run_config import RunConfig

EPOCHS = 2


def smallest() -> "LlamaConfig":
    """The model, which this process's runs know as the variant `smallest` from now on."""
    from alpacare_jax import llama

    sizes = {"hidden_size": 16, "intermediate_size": 32, "vocab_size": 2048}
    shape = llama.LlamaConfig(**sizes, num_hidden_layers=1, num_attention_heads=1)
    llama.VARIANTS["smallest"] = shape
    return shape


def write_model(folder: Path, data: str) -> None:
    """A model directory: random weights, and a tokenizer made for `data`."""
    import jax
    import tokenizers

    from alpacare_jax import checkpoint, params, prompts, records

    shape = smallest()
    (folder / "config.json").write_text(json.dumps(shape.to_hf()), encoding="utf-8")
    checkpoint.save_params(folder, params.init(shape, jax.random.key(0)))
    special = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"}
    template, examples = prompts.get("alpaca"), records.read_examples(data)
    tokenizer = tokenizers.ByteLevelBPETokenizer()
    tokenizer.train_from_iterator(
        (template.prompt(e.instruction, e.input) + e.output for e in examples),
        shape.vocab_size,
        special_tokens=list(special.values()),
        show_progress=False,
    )
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps(special), encoding="utf-8")


def run_config(folder: Path) -> "RunConfig":
    """The recipe, on the smallest model."""
    FLAGS = flags.FLAGS
    smallest()
    length = {"max_length": FLAGS.max_length, "max_row_length": FLAGS.max_length}
    return models.run_config(
        FLAGS.config,
        model={"checkpoint": str(folder), "variant": "smallest", "remat": "none"},
        data={"path": FLAGS.data or useful_tokens.default_data()} | length,
        train={"batch_size": FLAGS.batch_size, "epochs": EPOCHS},
        checkpoint={"every_steps": 0},
    )


def loop(folder: Path) -> race.Work:
    from etils import epath

    from alpacare_jax import progress, train

    config = run_config(folder)
    tell_step, clocks = progress.Progress.step, []

    def step(self, *args) -> None:
        tell_step(self, *args)
        clocks.append(read_clocks())

    progress.Progress.step = step

    def work() -> race.Result:
        clocks.clear()
        with tempfile.TemporaryDirectory() as workdir:
            train.run(config, epath.Path(workdir))
        count = len(clocks) // EPOCHS
        return per_step(clocks[-count - 1], clocks[-1], count)

    return work


def read_clocks() -> tuple[float, float]:
    """Seconds of the wall clock, and of work of this thread."""
    return time.perf_counter(), time.thread_time()


def per_step(start: tuple[float, float], end: tuple[float, float], count: int) -> race.Result:
    wall, thread = (1e3 * (b - a) / count for a, b in zip(start, end, strict=True))
    return {"ms": wall, "thread_ms": thread}


def step_alone(folder: Path) -> race.Work:
    from alpacare_jax import checkpoint, sharding, train

    config, shape = run_config(folder), checkpoint.read_config(folder)
    training = models.OurTraining(config, shape)
    batcher, _ = train.load_data(config, shape, training.mesh, race.tell)
    count = batcher.steps_per_epoch
    batches = [batcher.batch(step) for step in range(EPOCHS * count)]
    shapes = [batch.arrays["tokens"].shape for batch in batches]
    if not set(shapes[count:]) <= set(shapes[:count]):
        raise ValueError("a shape compiles in the second epoch only; change --max_length")
    second = [
        (sharding.put_batch(batch.arrays, training.mesh), batch.num_micro)
        for batch in batches[count:]
    ]
    training.run(second)  # compiles

    def work() -> race.Result:
        start = read_clocks()
        training.run(second)
        return per_step(start, read_clocks(), count)

    return work


CONTENDERS = {"loop": loop, "step alone": step_alone}


def main(argv: Sequence[str]) -> None:
    del argv
    FLAGS = flags.FLAGS
    if FLAGS.worker:
        race.serve(lambda: CONTENDERS[FLAGS.worker](Path(FLAGS.folder)))
        return
    with tempfile.TemporaryDirectory() as folder:
        write_model(Path(folder), FLAGS.data or useful_tokens.default_data())
        lanes = race.run(
            "benchmarks.step_overhead",
            list(CONTENDERS),
            rounds=FLAGS.rounds,
            warm_ups=1,
            arguments=[f"--folder={folder}"],
        )
    title = f"training loop, smallest model, {FLAGS.batch_size} examples a step"
    race.report(title, lanes, "ms a step", lambda seconds, result: result["ms"], ["jax"])
    over = {
        key: [a[key] - b[key] for a, b in zip(lanes[0].results, lanes[1].results, strict=True)]
        for key in ("ms", "thread_ms")
    }
    print(f"over the step alone, wall clock: {race.spread(over['ms'], 2)} ms a step")
    print(f"CPU time of the loop's own thread: {race.spread(over['thread_ms'], 2)} ms a step")
    race.verdict("ms on the wall clock, median", statistics.median(over["ms"]), 1.0, at_most=True)


if __name__ == "__main__":
    from ml_collections import config_flags

    config_flags.DEFINE_config_file("config", "configs/alpacare.py", "Our settings.")
    flags.DEFINE_string("data", "", "Examples; $ALPACARE_DATA's Alpaca, else the starter set.")
    flags.DEFINE_integer("max_length", 256, "Longer examples are cut.")
    flags.DEFINE_integer("batch_size", 128, "Examples of an optimiser step.", lower_bound=1)
    flags.DEFINE_integer("rounds", 5, "Times each contender works.", lower_bound=1)
    flags.DEFINE_string("worker", "", "Internal.")
    flags.DEFINE_string("folder", "", "Internal.")
    cli.run(main)
