"""Draws the training sets of the ablations in configs/ablations.py.

    python -m launch.paper.subsets --input=data/MedInstruct-52k.json --output=data/ablations

Writes heldout.jsonl; all.jsonl, the rest; size-N.jsonl, each contained in the next; and, where the
examples have a topic, topics-P.jsonl: P percent of the topics, the same number of examples in each.
The same input and seed give the same files.
"""

import itertools
import math
import random
from collections.abc import Iterator, Sequence
from pathlib import Path

from absl import flags

from common import cli, jsonl, provenance, records
from common.jsonl import Record
from common.messages import log
from datagen.analysis import labels


def by_size(examples: Sequence[Record], sizes: Sequence[int]) -> Iterator[tuple[str, list[Record]]]:
    """(name, examples) of the sizes that there are enough examples for."""
    for size in sizes:
        if size < len(examples):
            yield f"size-{size}", list(examples[:size])
        else:
            log(f"size-{size} is left out: there are only {len(examples):,} examples")


def by_topics(
    examples: Sequence[Record], percents: Sequence[int], draw: random.Random
) -> Iterator[tuple[str, list[Record]]]:
    """(name, examples) of each share of the topics; as many in each as in the smallest."""
    keys = [labels.key(str(record.get("topic") or ""), "topic") for record in examples]
    topics = sorted(set(keys) - {""})
    if not topics:
        log("no example has a topic, so there are no sets by topic: `alpacare tasks` writes them")
        return
    draw.shuffle(topics)
    chosen = {p: set(topics[: math.ceil(len(topics) * p / 100)]) for p in percents}
    found = {
        percent: [r for r, key in zip(examples, keys, strict=True) if key in some]
        for percent, some in chosen.items()
    }
    size = min(map(len, found.values()))
    for percent, group in found.items():
        yield f"topics-{percent}", group[:size]


def main(argv: Sequence[str]) -> None:
    """The command."""
    del argv
    FLAGS = flags.FLAGS
    examples, draw = records.read_records(FLAGS.input), random.Random(FLAGS.seed)
    if len(examples) <= FLAGS.heldout:
        raise ValueError(
            f"{FLAGS.input} has {len(examples):,} examples; lower --heldout {FLAGS.heldout:,}"
        )
    draw.shuffle(examples)
    heldout, rest = examples[: FLAGS.heldout], examples[FLAGS.heldout :]
    sizes, percents = map(int, FLAGS.sizes), map(int, FLAGS.topics)
    record = provenance.describe(config={}, input=provenance.sha256(FLAGS.input))
    for name, found in itertools.chain(
        [("heldout", heldout), ("all", rest)],
        by_size(rest, sorted(sizes)),
        by_topics(rest, sorted(percents), draw),
    ):
        path = Path(FLAGS.output) / f"{name}.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        jsonl.write_output(path, found, record)
        log(f"{path}: {len(found):,} examples")


if __name__ == "__main__":
    flags.DEFINE_string("input", None, "Examples: .jsonl or .json, optionally .gz.")
    flags.DEFINE_string("output", None, "Folder of the subsets.")
    flags.DEFINE_list("sizes", ["1000", "5000", "10000", "25000"], "Numbers of examples.")
    flags.DEFINE_list("topics", ["10", "50", "100"], "Percent of the topics.")
    flags.DEFINE_integer("heldout", 1000, "Held-out examples.", lower_bound=1)
    flags.DEFINE_integer("seed", 0, "Seed of the draw.")
    flags.mark_flags_as_required(["input", "output"])
    for name in ("sizes", "topics"):
        flags.register_validator(
            name,
            lambda given: all(text.isdecimal() and int(text) for text in given),
            message="must be whole numbers",
        )
    cli.run(main, output="output")
