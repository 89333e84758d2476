"""Has a teacher model write tasks, shown a few seed tasks at a time, until there are enough.

    python -m datagen.tasks --config=configs/datagen.py --workdir=medinstruct \\
        --config.tasks.num_tasks=52000 --config.budget_usd=400 [--dry_run]

WORKDIR/tasks.jsonl holds the tasks, rejected.jsonl everything else that the teacher wrote, with the
reason. Replies are read in the order of their requests, so both depend on the config and on what
the teacher said, not on which reply came first. Every reply is in WORKDIR/answers.sqlite before it
is read: run again after a stop, or with a higher `num_tasks`, and nothing is asked for twice.
"""

import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from absl import flags
from ml_collections import config_flags

from common import cli, jsonl, provenance, sections
from common.messages import format_counts
from common.prompt_file import Prompt
from common.records import Task, read_tasks
from datagen.chat.client import Client, run_until_done
from datagen.chat.progress import Estimate
from datagen.chat.store import AnswerStore
from datagen.config import DatagenConfig
from datagen.writing.config import TasksConfig
from datagen.writing.filters import Filters
from datagen.writing.pool import FIRST_YIELD, Pool, Writing
from datagen.writing.requests import Teacher

PROMPTS = Path(__file__).with_name("prompts")

TOKENS_PER_TASK = 150
"""Of a reply, in estimates: half of the inputs have some 125 words."""


def read_seeds(config: TasksConfig) -> list[Task]:
    """
    Raises:
      FileNotFoundError, ValueError: the file, or a seed without a label that the prompt shows.
    """
    seeds = read_tasks(config.seeds)
    for seed in seeds:
        for field in ("type", "topic", "view", "difficulty"):
            if not getattr(seed, field):
                raise ValueError(f"{config.seeds}: seed {seed.id!r} has no {field}")
    if len(seeds) < (needed := config.seeds_per_request + config.machine_tasks_per_request):
        raise ValueError(
            f"{config.seeds} holds {len(seeds)} seeds, and a request may show {needed}; lower "
            "tasks.seeds_per_request"
        )
    return seeds


def estimate(config: TasksConfig, teacher: Teacher, client: Client) -> Estimate:
    """What all tasks should take, with seeds alone as examples: near enough."""
    number = math.ceil(config.num_tasks / (config.tasks_per_request * FIRST_YIELD))
    requests = (teacher.request(teacher.examples(i, [])) for i in range(number))
    return client.estimate(requests, config.tasks_per_request * TOKENS_PER_TASK)


def run(config: DatagenConfig, workdir: Path, *, dry_run: bool) -> None:
    """Writes the tasks; what it raises is for the user.

    Raises:
      FileNotFoundError, ValueError: bad settings or seeds; no useful replies.
      RunStoppedError: the budget is reached, or a signal came; nothing is written then.
    """
    settings = config.tasks
    seeds = read_seeds(settings)
    teacher = Teacher(
        prompt=Prompt.read(settings.prompt, PROMPTS),
        reply=settings.reply,
        number=settings.tasks_per_request,
        seeds=seeds,
        seeds_per_request=settings.seeds_per_request,
        machine_tasks_per_request=settings.machine_tasks_per_request,
        seed=settings.seed,
    )
    pool = Pool(settings, Filters(config.filters), seeds)
    description = provenance.describe(
        config=dataclasses.asdict(config),
        prompt_version=teacher.prompt.version,
        seeds=provenance.sha256(settings.seeds),
    )
    answers = workdir / "answers.sqlite"
    with AnswerStore(answers, read_only=config.offline, dry_run=dry_run) as store:
        client = Client(config.within(config.teacher), store)
        client.report(str(estimate(settings, teacher, client)))
        if dry_run:
            return
        gap = min(client.window, settings.num_tasks) if config.offline else 0
        writing = Writing(settings, teacher, pool, gap=gap)
        run_until_done(client, lambda: write(writing, client))
        spent = dataclasses.asdict(store.total_spent())
    counts = {
        "replies": writing.read - writing.missing,
        "kept": len(pool.kept),
        "rejected": pool.reasons(),
        "tasks not needed": writing.surplus,
        "replies not needed": writing.unused,
    }
    output = workdir / "tasks.jsonl"
    if news := provenance.replaced(output, description["config"]):
        client.report(news)
    jsonl.write(workdir / "rejected.jsonl", pool.rejected)
    ended = {"counts": counts, "spent": spent, "end": provenance.now()}
    provenance.write_json(provenance.run_json(output), description | ended)
    jsonl.write(output, (task.record() for task in pool.kept))  # last: where it is, all three are
    client.report(report(counts, output))


async def write(writing: Writing, client: Client) -> None:
    async for index, outcome in client.stream(writing.requests(), writing.expected):
        writing.take(index, outcome)


def report(counts: dict[str, Any], output: Path) -> str:
    kept, rejected = counts["kept"], counts["rejected"]
    return (
        f"{output}: {kept:,} tasks from {counts['replies']:,} replies; {sum(rejected.values()):,} "
        f"rejected ({format_counts(rejected)}); not needed: {counts['tasks not needed']:,} tasks, "
        f"{counts['replies not needed']:,} replies, for a higher num_tasks"
    )


def define_flags() -> None:
    config_flags.DEFINE_config_file("config", None, "Config file.", lock_config=True)
    flags.DEFINE_string("workdir", None, "Where answers are stored and tasks are written.")
    flags.DEFINE_bool("dry_run", False, "Say what it would take and end.")
    flags.mark_flags_as_required(["config", "workdir"])


def main(argv: Sequence[str]) -> None:
    del argv
    FLAGS = flags.FLAGS
    config = sections.build(DatagenConfig, FLAGS.config.to_dict())
    run(config, Path(FLAGS.workdir), dry_run=FLAGS.dry_run)


if __name__ == "__main__":
    define_flags()
    cli.run(main, config=DatagenConfig)
