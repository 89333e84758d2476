"""Claim: on real lengths, exact packing trains on more real tokens a second than padding does.

    python -m benchmarks.useful_tokens --checkpoint=quickstart/base [--data=examples.json]

Each optimiser step holds the same examples in the same order on both sides. Ours packs them into
full rows (`batching.load_batchers`, `TrainingProgram`). The peer does what the original did:
its collator pads 4 examples to the longest of the four and gradients are accumulated over the step,
in transformers and torch, eager and under torch.compile(dynamic=True). A round is the first
`--steps` steps, batches built included; useful tokens are real ones, not padding. First losses must
agree to 1e-4.

Target: at least 1.4 x the useful tokens a second, against eager and against torch.compile.
Only ratios within a round count; absolute times depend on the machine and the hour.
"""

import os
import statistics
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from absl import flags

from alpacare_jax.checkpoints import model_folder
from alpacare_jax.data import encoding
from benchmarks.support import models, race
from common import cli

COLLATED = 4
"""Examples that the original pads together: its batch a device."""


def ours(folder: Path) -> race.Work:
    from alpacare_jax.training import batching

    FLAGS = flags.FLAGS
    path = folder / "ours"
    config = models.run_config(
        FLAGS.config,
        model={"checkpoint": str(path), "dtype": "float32"},
        data=data_changes(),
        train={"batch_size": FLAGS.batch_size},
    )
    shape = model_folder.read_config(path)
    training = models.OurTraining(config, shape)
    batcher, _ = batching.load_batchers(config, shape, training.mesh, race.log)

    def work() -> race.Result:
        batches = [batcher.batch(step) for step in range(FLAGS.steps)]
        losses = [training.step(batch) for batch in batches]
        return {
            "loss": losses[0],
            "useful": sum(batch.num_tokens for batch in batches),
            "computed": sum(batch.num_computed for batch in batches),
        }

    return work


def data_changes() -> dict[str, object]:
    FLAGS = flags.FLAGS
    return {
        "path": FLAGS.data or default_data(),
        "eval_path": "",
        "max_length": FLAGS.max_length,
        "overlong": "truncate",
    }


def default_data() -> str:
    """Alpaca's real lengths where the data folder exists, else the starter set."""
    real = Path(os.environ.get("ALPACARE_DATA", "")) / "training" / "alpaca_5000.json"
    return str(real) if real.is_file() else "datagen/starter/train.jsonl"


def theirs(folder: Path, options: dict[str, object] | None) -> race.Work:
    import torch

    from alpacare_jax.data import batches as data
    from alpacare_jax.data import prompts, tokenizers
    from common import records

    FLAGS = flags.FLAGS
    config = models.run_config(FLAGS.config, data=data_changes()).data
    encoded = encoding.encode_all(
        records.read_examples(config.path),
        tokenizers.load(folder / "ours"),
        prompts.TEMPLATES[config.template],
        config,
        race.log,
    )
    # Only the order of the examples is taken from it.
    batcher = data.Batcher(
        encoded,
        batch_size=FLAGS.batch_size,
        seed=FLAGS.config.train.seed,
        max_length=config.max_length,
        max_row_length=config.max_length,
        row_multiple=config.row_multiple,
        row_groups=1,
        microbatch_tokens=1,
    )
    training = models.TorchTraining(models.load_torch(folder / "theirs"), options)

    def collate(examples: Sequence[encoding.EncodedExample]) -> dict[str, torch.Tensor]:
        shape = len(examples), max(len(example.ids) for example in examples)
        ids, labels = np.zeros(shape, np.int64), np.full(shape, models.IGNORED)
        mask = np.zeros(shape, np.int64)
        for row, example in enumerate(examples):
            n = len(example.ids)
            ids[row, :n], mask[row, :n] = example.ids, 1
            labels[row, example.prompt_length : n] = example.ids[example.prompt_length :]
        arrays = {"input_ids": ids, "labels": labels, "attention_mask": mask}
        return {name: torch.from_numpy(array) for name, array in arrays.items()}

    def work() -> race.Result:
        losses, useful, computed = [], 0, 0
        for step in range(FLAGS.steps):
            chosen = [encoded[i] for i in batcher.indices(step)]
            micro = [chosen[i : i + COLLATED] for i in range(0, len(chosen), COLLATED)]
            micro = [collate(examples) for examples in micro]
            losses.append(training.step(micro))
            useful += sum(int(m["attention_mask"].sum()) for m in micro)
            computed += sum(m["attention_mask"].numel() for m in micro)
        return {"loss": losses[0], "useful": useful, "computed": computed}

    return work


CONTENDERS = {
    "ours": ours,
    "torch eager": lambda folder: theirs(folder, None),
    "torch.compile": lambda folder: theirs(folder, {"dynamic": True}),
}


def main(argv: Sequence[str]) -> None:
    del argv
    FLAGS = flags.FLAGS
    if FLAGS.worker:
        race.serve(lambda: CONTENDERS[FLAGS.worker](Path(FLAGS.folder)))
        return
    names = race.left(CONTENDERS, FLAGS.skip)
    with models.both_forms(FLAGS.checkpoint) as folder:
        arguments = [f"--folder={folder}"]
        contenders = race.run(
            "benchmarks.useful_tokens",
            names,
            rounds=FLAGS.rounds,
            warm_ups=1,
            arguments=arguments,
        )
    path = FLAGS.data or default_data()

    def speed(seconds, result):
        return result["useful"] / seconds

    title = f"useful tokens, {Path(path).name}, {FLAGS.steps} steps of {FLAGS.batch_size} examples"
    race.report(title, contenders, "useful tokens per second", speed)
    models.same_loss({contender.name: contender.first["loss"] for contender in contenders})
    for contender in contenders:
        computed = contender.first["computed"]
        share = contender.first["useful"] / computed
        print(f"{contender.name}: {share:.1%} of {computed:,} computed tokens are real")
    for contender in contenders[1:]:
        ratio = statistics.median(race.ratios(contenders[0], contender, speed))
        race.verdict(f"useful tokens/s against {contender.name}", ratio, 1.4, at_most=False)


if __name__ == "__main__":
    from ml_collections import config_flags

    config_flags.DEFINE_config_file("config", "configs/quickstart.py", "Our settings.")
    flags.DEFINE_string("checkpoint", "quickstart/base", "Model directory.")
    flags.DEFINE_string("data", "", "Examples; $ALPACARE_DATA's Alpaca, else the starter set.")
    flags.DEFINE_integer("max_length", 512, "Longer examples are cut.")
    flags.DEFINE_integer("batch_size", 32, "Examples of an optimiser step.", lower_bound=COLLATED)
    flags.DEFINE_integer("steps", 2, "Optimiser steps of a round.", lower_bound=1)
    flags.DEFINE_integer("rounds", 5, "Times each contender works.", lower_bound=1)
    flags.DEFINE_list("skip", [], "Leave contenders out by a word: compile, which takes minutes.")
    flags.DEFINE_string("worker", "", "Internal.")
    flags.DEFINE_string("folder", "", "Internal.")
    cli.run(main)
