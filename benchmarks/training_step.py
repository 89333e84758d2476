"""Claim: a training step on CPU costs no more time than torch.compile's, and much less memory.

    python -m benchmarks.training_step                                     random weights
    python -m benchmarks.training_step --checkpoint=quickstart/base        real ones
    python -m benchmarks.training_step --remat=auto,dots,full --skip=torch

One AdamW step of SmolLM2-135M on 4 x 256 tokens, float32, clipped at 1.0: `dense` with loss on
every position, `masked` with loss on the second half of each row, as in instruction tuning. The
peer is transformers' LlamaForCausalLM with its own loss (labels -100 where masked), AdamW(fused)
and clip_grad_norm_, eager and under torch.compile. All must see the same first loss to 1e-4.

Target: at most 1.0 x the time of torch.compile and at most 0.75 x its peak memory.
Only ratios within a round count; absolute times depend on the machine and the hour.
"""

import functools
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from absl import flags

from alpacare_jax.checkpoints import model_folder
from alpacare_jax.data import encoding
from benchmarks.support import models, race
from common import cli

ROWS, LENGTH = 4, 256
PROMPT = {"dense": 1, "masked": LENGTH // 2}
"""Tokens at the start of each row that are no targets."""


def tokens(vocab_size: int) -> np.ndarray:
    return np.random.default_rng(0).integers(3, vocab_size, (ROWS, LENGTH)).astype(np.int32)


def ours(folder: Path, case: str, remat: str = "") -> race.Work:
    from alpacare_jax.data import batches

    FLAGS = flags.FLAGS
    path = folder / "ours"
    shape = model_folder.read_config(path)
    model = {"checkpoint": str(path), "variant": FLAGS.size, "dtype": "float32"}
    if remat:
        model["remat"] = remat
    training = models.OurTraining(models.run_config(FLAGS.config, model=model), shape)
    examples = [encoding.EncodedExample(row, PROMPT[case]) for row in tokens(shape.vocab_size)]
    batcher = batches.Batcher(
        examples,
        batch_size=ROWS,
        seed=0,
        max_length=LENGTH,
        max_row_length=LENGTH,
        row_multiple=LENGTH,
        row_groups=1,
        microbatch_tokens=ROWS * LENGTH,
    )
    batch = batcher.batch(0)
    return lambda: {"loss": training.step(batch)}


def theirs(folder: Path, case: str, compiled: bool) -> race.Work:
    import torch

    model = models.load_torch(folder / "theirs")
    training = models.TorchTraining(model, {} if compiled else None)
    ids = torch.from_numpy(tokens(model.config.vocab_size)).long()
    labels = ids.clone()
    labels[:, : PROMPT[case]] = models.IGNORED
    return lambda: {"loss": training.step([{"input_ids": ids, "labels": labels}])}


def contenders() -> dict[str, Callable[[Path, str], race.Work]]:
    policies = {f"ours, {p}": functools.partial(ours, remat=p) for p in flags.FLAGS.remat}
    return (policies or {"ours": ours}) | {
        "torch eager": lambda folder, case: theirs(folder, case, compiled=False),
        "torch.compile": lambda folder, case: theirs(folder, case, compiled=True),
    }


def main(argv: Sequence[str]) -> None:
    del argv
    FLAGS = flags.FLAGS
    if FLAGS.worker:
        race.serve(lambda: contenders()[FLAGS.worker](Path(FLAGS.folder), FLAGS.case))
        return
    names = race.left(contenders(), FLAGS.skip)
    with models.both_forms(FLAGS.checkpoint, FLAGS.size) as folder:
        for case in [FLAGS.case] if FLAGS.case else PROMPT:
            arguments = [f"--folder={folder}", f"--case={case}"]
            found = race.run(
                "benchmarks.training_step",
                names,
                rounds=FLAGS.rounds,
                warm_ups=2,
                arguments=arguments,
            )
            title = f"training step, {case}, {FLAGS.size}, {ROWS} x {LENGTH} tokens, float32"

            def cost(seconds, result):
                return 1e6 * seconds / (ROWS * LENGTH)

            race.report(title, found, "us per computed token", cost)
            models.same_loss({contender.name: contender.first["loss"] for contender in found})
            course = [(x.name, x.first["loss"], x.results[-1]["loss"]) for x in found]
            print("first -> last loss:", *(f"{n} {a:.5f} -> {b:.5f};" for n, a, b in course))
            if found[-1].name == "torch.compile":
                time = statistics.median(race.ratios(found[0], found[-1], cost))
                memory = found[0].peak_bytes / found[-1].peak_bytes
                race.verdict(f"{case}: time against torch.compile", time, 1.0, at_most=True)
                race.verdict(f"{case}: peak memory against it", memory, 0.75, at_most=True)


if __name__ == "__main__":
    from ml_collections import config_flags

    config_flags.DEFINE_config_file("config", "configs/quickstart.py", "Our settings.")
    flags.DEFINE_integer("rounds", 7, "Times each contender works.", lower_bound=1)
    flags.DEFINE_list("skip", [], "Leave contenders out by a word: compile, which takes minutes.")
    flags.DEFINE_list("remat", [], "Policies of ours, each a contender; the config's by default.")
    flags.DEFINE_string("size", "smollm2-135m", "Variant.")
    flags.DEFINE_string(
        "checkpoint", "", "Model directory of that size; random weights by default."
    )
    flags.DEFINE_enum("case", "", ["", *PROMPT], "Only this one.")
    flags.DEFINE_string("worker", "", "Internal.")
    flags.DEFINE_string("folder", "", "Internal.")
    cli.run(main)
