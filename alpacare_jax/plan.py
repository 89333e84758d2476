"""Compiles a run for machines that are not there: does it fit, how fast could it be, what it costs.

    python -m alpacare_jax.plan --config=configs/alpacare.py:llama-7b --topology=v5e-16
    python -m alpacare_jax.plan --config=configs/alpacare.py:llama-7b --topology=v5e-16 \\
        --generate --slots=64 --config.sharding.tensor=16

The training step, or the engine's prefill and decode steps, are compiled by the TPU's own compiler,
which runs on any Linux machine (extra [tpu]), with nothing allocated; `--topology=local` takes the
devices that are there. What the ceilings assume is said in `roofline.py`.
"""

import dataclasses
import os
import sys
from collections.abc import Sequence

from absl import flags

from alpacare_jax.planning import generation, search, topologies, training
from alpacare_jax.planning import table as plan_table
from alpacare_jax.training.config import RunConfig
from common import cli, paths, provenance, sections


def define_flags() -> None:
    from ml_collections import config_flags

    config_flags.DEFINE_config_file("config", help_string="Config file, with its argument.")
    flags.DEFINE_string("topology", None, "Slice or host: v5e-16, v5p-8, 2xv6e-256, h200-8, local.")
    flags.DEFINE_bool("generate", False, "Plan generation with the config's model and mesh.")
    flags.DEFINE_bool("search", False, "Try meshes, remat, optimizers ..., or slots; rank them.")
    flags.DEFINE_float("price", None, "Money a chip-hour.", lower_bound=0.0)
    flags.DEFINE_string("output", "plan.json", "Where the plan goes for programs; empty: nowhere.")
    flags.DEFINE_integer("num_examples", 52_002, "Training: examples of the run.", lower_bound=1)
    flags.DEFINE_integer("example_tokens", 300, "Their mean length in tokens.", lower_bound=2)
    flags.DEFINE_float("answer_share", 0.6, "Share of their tokens that are answers.")
    flags.DEFINE_integer("prompts", 1000, "Generation: prompts to answer.", lower_bound=1)
    flags.DEFINE_integer("prompt_tokens", 256, "Length of each.", lower_bound=1)
    flags.DEFINE_integer("new_tokens", 512, "Length of each answer.", lower_bound=1)
    flags.DEFINE_integer("slots", 16, "Answers at a time; generate's --batch_size.", lower_bound=1)
    flags.mark_flags_as_required(["config", "topology"])


def main(argv: Sequence[str]) -> None:
    del argv
    FLAGS = flags.FLAGS
    paths.check(FLAGS.output)
    config = sections.build(RunConfig, FLAGS.config.to_dict())
    if FLAGS.generate:
        work = generation.Workload(
            FLAGS.prompts, FLAGS.prompt_tokens, FLAGS.new_tokens, FLAGS.slots
        )
        make_plan, candidates = generation.make_plan, search.generation
        table = plan_table.of_generation
    else:
        work = training.Workload(FLAGS.num_examples, FLAGS.example_tokens, FLAGS.answer_share)
        make_plan, candidates = training.make_plan, search.training
        table = plan_table.of_training
    where = topologies.describe(FLAGS.topology)
    print(f"compiling for {where.name} (minutes)", file=sys.stderr)
    if FLAGS.search:
        plans = search.rank(candidates(config, where, work, FLAGS.price))
        if not plans:
            raise ValueError(f"nothing that was tried suits {where.name}; take more devices")
        print(*map(search.summary, plans), "", sep="\n")
    else:
        plans = [make_plan(config, where, work, FLAGS.price)]
    print(table(plans[0]))
    if FLAGS.output:
        record = provenance.describe(config=dataclasses.asdict(config), plan=plans[0])
        if FLAGS.search:
            record["ranked"] = plans
        provenance.write_json(FLAGS.output, record | {"end": provenance.now()})


if __name__ == "__main__":
    define_flags()
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    cli.run(main, config=RunConfig)
