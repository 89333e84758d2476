"""Has a teacher model write tasks, shown a few seed tasks at a time.

    python -m datagen.tasks --config=configs/datagen.py --workdir=medinstruct \\
        --config.tasks.num_tasks=52000 --config.budget_usd=400 [--dry_run]

WORKDIR/tasks.jsonl holds the tasks; rejected.jsonl holds everything else the teacher wrote, with
the reason. Replies are processed in the order of their requests, so both files depend only on the
config and the replies, not on the order in which replies arrive. Every reply is stored in
WORKDIR/answers.sqlite before it is read, so a rerun, also one with a higher `num_tasks`, sends no
request twice.
"""

import dataclasses
import itertools
from collections.abc import Sequence
from pathlib import Path

from absl import flags
from ml_collections import config_flags

from common import cli, jsonl, provenance, sections
from common.messages import format_counts
from common.records import Task, read_tasks
from common.text.prompt_file import Prompt
from datagen.chat.client import Client, run_until_done
from datagen.chat.config import ChatRequest, environment
from datagen.chat.errors import Failure, require_answers
from datagen.chat.progress import Estimate
from datagen.chat.store import AnswerStore
from datagen.config import DATAGEN_PROMPTS, DatagenConfig
from datagen.writing.filters import Filters
from datagen.writing.pool import Pool, TaskCollector
from datagen.writing.requests import TasksConfig, Teacher

TOKENS_PER_TASK = 150
"""Output tokens per task, for estimates: half of the inputs have some 125 words."""

MAX_GAP = 1000
"""Requests in a row without a stored reply after which no later one is looked for."""


def read_seeds(config: TasksConfig) -> list[Task]:
    """The seed tasks, with all labels that the prompt shows.

    Raises:
      FileNotFoundError, ValueError: the file is missing or malformed, a seed lacks a label, or
        there are fewer seeds than a request shows.
    """
    seeds = read_tasks(config.seeds)
    for seed in seeds:
        for field in ("type", "topic", "view", "difficulty"):
            if not getattr(seed, field):
                raise ValueError(
                    f"{config.seeds}: seed {seed.id!r} has no {field}; seeds have instruction, "
                    "input, type, topic, view and difficulty (1 to 5)"
                )
    if len(seeds) < (needed := config.seeds_per_request + config.machine_tasks_per_request):
        raise ValueError(
            f"{config.seeds} contains {len(seeds)} seeds, but a request shows up to {needed}; "
            "lower tasks.seeds_per_request"
        )
    return seeds


def estimate(collector: TaskCollector, client: Client) -> Estimate:
    """What the tasks that are missing take, by what the stored replies gave.

    Args:
      collector: an offline one, which reads the stored replies here.
    """
    teacher, gap = collector.teacher, min(client.window, MAX_GAP)
    to_send: list[ChatRequest] = []
    unstored = 0  # since the last stored reply
    for item in collector.requests():
        assert item, "each request is decided before the next"
        index, request = item
        answer = client.stored(request)
        unstored = 0 if answer else unstored + 1
        if not answer:
            to_send.append(request)
        collector.add(index, answer or Failure("not stored"))
        if unstored == gap:
            break
    number = max(collector.forecast(), len(to_send) - unstored)
    beyond = range(collector.num_sent, collector.num_sent + number)
    further = (teacher.request(teacher.examples(index, [])) for index in beyond)
    needed = itertools.islice(itertools.chain(to_send, further), number)
    expected = client.estimate(needed, teacher.config.tasks_per_request * TOKENS_PER_TASK)
    stored = collector.num_read - collector.missing
    return dataclasses.replace(expected, stored=stored)


def require_same_seeds(output: Path, seeds: str) -> None:
    """Raises ValueError where `output` was made from seeds of another digest."""
    record = provenance.run_json(output)
    if not (output.exists() and record.exists()):
        return
    if (found := provenance.read_record(record).get("seeds", seeds)) != seeds:
        raise ValueError(
            f"{output} was made from other seeds ({found:.12}, now {seeds:.12}); choose another "
            f"--workdir, or delete {output.name}: its replies stay in answers.sqlite"
        )


def run(config: DatagenConfig, workdir: Path, *, dry_run: bool) -> None:
    """Collects tasks and writes them.

    Raises:
      FileNotFoundError, ValueError: bad settings or seeds; no useful replies; or, after everything
        is written, some requests have no reply.
      RunStoppedError: the budget is reached or a signal arrived; nothing is written then.
    """
    settings = config.tasks
    seeds = read_seeds(settings)
    teacher = Teacher(settings, Prompt.read(settings.prompt, DATAGEN_PROMPTS), seeds)

    def new_pool() -> Pool:
        return Pool(settings, Filters(config.filters), seeds)

    pool = new_pool()
    description = provenance.describe(
        config=dataclasses.asdict(config),
        prompt_version=teacher.prompt.version,
        seeds=provenance.sha256(settings.seeds),
        environment=environment(),
    )
    output, answers = workdir / "tasks.jsonl", workdir / "answers.sqlite"
    require_same_seeds(output, description["seeds"])
    with AnswerStore(answers, read_only=config.offline, dry_run=dry_run) as store:
        client = Client(config.within(config.teacher), store)
        client.report(str(estimate(TaskCollector(teacher, new_pool(), gap=MAX_GAP), client)))
        if dry_run:
            return
        gap = min(client.window, settings.num_tasks) if config.offline else 0
        collector = TaskCollector(teacher, pool, gap=gap)
        run_until_done(client, lambda: collect(collector, client))
        spent = dataclasses.asdict(store.total_spent())
    if len(pool.kept) < settings.num_tasks and collector.num_sent == collector.max_requests:
        client.report(f"the limit of {settings.max_requests:,} requests is reached")
    replies, rejected = collector.num_read - collector.missing, pool.reasons()
    counts = {
        "replies": replies,
        "kept": len(pool.kept),
        "rejected": rejected,
        "tasks not needed": collector.surplus,
        "replies not needed": collector.unused,
    }
    if warning := provenance.replaced(output, description["config"]):
        client.report(warning)
    jsonl.write(workdir / "rejected.jsonl", pool.rejected)
    # Last: once tasks.jsonl exists, all three files do.
    run_record = description | {"counts": counts, "spent": spent}
    jsonl.write_output(output, (task.record() for task in pool.kept), run_record)
    client.report(
        f"{output}: {len(pool.kept):,} tasks from {replies:,} replies; "
        f"{sum(rejected.values()):,} rejected ({format_counts(rejected)}); not needed: "
        f"{collector.surplus:,} tasks, {collector.unused:,} replies; a higher num_tasks would use "
        "them"
    )
    require_answers(collector.failures, collector.num_read, output)
    if not pool.kept:
        raise ValueError(f"{output} has no task; see {workdir / 'rejected.jsonl'}")


async def collect(collector: TaskCollector, client: Client) -> None:
    """Sends the collector's requests and gives it their outcomes, until it has enough tasks."""
    async for index, outcome in client.stream(collector.requests(), collector.expected):
        collector.add(index, outcome)


def define_flags() -> None:
    """Defines the flags of this command."""
    config_flags.DEFINE_config_file("config", None, "Config file.", lock_config=True)
    flags.DEFINE_string("workdir", None, "Folder for stored replies and tasks.")
    flags.DEFINE_bool("dry_run", False, "Print requests and cost, then exit.")
    flags.mark_flags_as_required(["config", "workdir"])


def main(argv: Sequence[str]) -> None:
    """The command."""
    del argv
    FLAGS = flags.FLAGS
    config = sections.build(DatagenConfig, FLAGS.config.to_dict())
    run(config, Path(FLAGS.workdir), dry_run=FLAGS.dry_run)


if __name__ == "__main__":
    define_flags()
    cli.run(main, config=DatagenConfig, output="workdir")
