"""Compiles a run for described machines: memory, speed, cost.

    python -m alpacare_jax.plan --config=configs/alpacare.py:llama-7b --topology=v5e-16
    python -m alpacare_jax.plan --config=configs/alpacare.py:llama-7b --topology=v5e-16 \\
        --generate --slots=64 --config.sharding.tensor=16

The training step, or the engine's prefill and decode steps, are compiled by the TPU's own compiler,
which runs on any Linux machine (extra [tpu]), with nothing allocated; `--topology=local` plans for
this machine's devices. See `planning/roofline.py` for what the ceilings assume.
"""

import dataclasses
import functools
import os
import sys
from collections.abc import Sequence

from absl import flags

from alpacare_jax.model.quantised import FORMATS
from alpacare_jax.planning import generation, roofline, search, topologies, training
from alpacare_jax.planning import table as plan_table
from alpacare_jax.training.config import RunConfig
from common import cli, paths, provenance, sections


def define_flags() -> None:
    """Defines the command's flags."""
    from ml_collections import config_flags

    config_flags.DEFINE_config_file("config", help_string="Config file, with its argument.")
    flags.DEFINE_string("topology", None, "Slice or host: v5e-16, v5p-8, 2xv6e-256, h200-8, local.")
    flags.DEFINE_bool("generate", False, "Plan generation with the config's model and mesh.")
    flags.DEFINE_bool(
        "search", False, "Rank meshes with remat policies and optimizers, or with slots."
    )
    flags.DEFINE_float("price", None, "Price of a chip-hour, in any currency.", lower_bound=0.0)
    flags.DEFINE_string("output", "plan.json", "JSON file of the plan; empty: none.")
    flags.DEFINE_integer("num_examples", 52_002, "Training: number of examples.", lower_bound=1)
    flags.DEFINE_integer("example_tokens", 300, "Their mean length in tokens.", 2, 2**20)
    flags.DEFINE_float("answer_share", 0.6, "Share of tokens in answers.", 0.0, 1.0)
    flags.DEFINE_integer("prompts", 1000, "Generation: prompts to answer.", lower_bound=1)
    flags.DEFINE_integer("prompt_tokens", 256, "Tokens of each prompt.", lower_bound=1)
    flags.DEFINE_integer("new_tokens", 512, "Tokens of each answer.", lower_bound=1)
    flags.DEFINE_integer("slots", 16, "Answers at a time: generate's --batch_size.", lower_bound=1)
    flags.DEFINE_enum(
        "weights", "", ["", *FORMATS], "Generation: projections in fewer bits; serve's --weights."
    )
    flags.mark_flags_as_required(["config", "topology"])


def main(argv: Sequence[str]) -> None:
    """Runs the command."""
    del argv
    FLAGS = flags.FLAGS
    paths.check(FLAGS.output)
    run_config = sections.build(RunConfig, FLAGS.config.to_dict())
    topology = topologies.describe(FLAGS.topology)
    print(f"compiling for {topology.name} (minutes)", file=sys.stderr)
    if FLAGS.generate:
        workload = generation.GenerationWorkload(
            FLAGS.prompts, FLAGS.prompt_tokens, FLAGS.new_tokens, FLAGS.slots, FLAGS.weights
        )
        candidates = search.generation_plans(run_config, topology, workload)
        one_plan = functools.partial(generation.make_plan, run_config, topology, workload)
        table = plan_table.generation_table
    else:
        workload = training.TrainingWorkload(
            FLAGS.num_examples, FLAGS.example_tokens, FLAGS.answer_share
        )
        candidates = search.training_plans(run_config, topology, workload)
        one_plan = functools.partial(training.make_plan, run_config, topology, workload)
        table = plan_table.training_table
    if FLAGS.search:
        plans = search.rank(candidates)
        if not plans:
            raise ValueError(
                f"none of the settings tried works on {topology.name}; use more devices"
            )
        print(*map(search.summary, plans), "", sep="\n")
    else:
        plans = [one_plan()]
    plans = [plan | roofline.run_cost(plan, FLAGS.price) for plan in plans]
    print(table(plans[0]))
    if FLAGS.output:
        record = provenance.describe(config=dataclasses.asdict(run_config), plan=plans[0])
        if FLAGS.search:
            record["ranked"] = plans
        provenance.write_json(FLAGS.output, record | {"end": provenance.now()})


if __name__ == "__main__":
    define_flags()
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    cli.run(main, config=RunConfig, output="output")
