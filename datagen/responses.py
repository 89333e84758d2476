"""Has a model answer each task; keeps refusals, cut and empty answers apart from the examples.

    python -m datagen.responses --config=configs/datagen.py --workdir=medinstruct \\
        --input=medinstruct/tasks.jsonl [--config.responses.min_rating=4.5] [--dry_run]

WORKDIR/examples.jsonl is what `alpacare_jax.train` learns from, in the order of the tasks;
unused.jsonl holds the other tasks with their answers, if any, and the reason. Every answer is in
WORKDIR/answers.sqlite before it is used: run again after a stop, nothing is asked for twice.
"""

import dataclasses
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from absl import flags
from ml_collections import config_flags

from common import cli, jsonl, provenance, sections
from common.jsonl import Record
from common.messages import format_counts
from common.prompt_file import Prompt
from common.records import Task, read_records, read_tasks
from common.refusals import is_refusal
from datagen.chat.client import Client, Failure, run_until_done
from datagen.chat.config import ChatRequest
from datagen.chat.progress import Estimate
from datagen.chat.store import AnswerStore, ChatAnswer
from datagen.config import DatagenConfig, ResponsesConfig

PROMPTS = Path(__file__).with_name("prompts")

USUAL_TOKENS = 350
"""Of an answer, in estimates; MedInstruct's have about so many."""

RATING_TOKENS = 80
"""Of a rating with its reasons, in estimates."""

RATING_ATTEMPTS = 3
"""Times that a rater is asked until it says a number."""

_RATING = re.compile(
    r"\W*+Rating\W*+(?<!-)([0-5](?:\.\d+)?)[ \t]*+(?:/[ \t]*+5)?[^\w\n]*+(?:\n|\Z)",
    re.IGNORECASE,
)


def rating(text: str) -> float | None:
    """The number that a rater gives; None where its first line is nothing but one.

    >>> [rating(x) for x in ("Rating: 4.5\\nGood.", "**Rating:** 3/5", "Rating: -3", "4 or 5")]
    [4.5, 3.0, None, None]
    """
    found = _RATING.match(text)
    value = float(found[1]) if found else 6.0
    return value if value <= 5 else None


def what_is_wrong(outcome: ChatAnswer | Failure, included: Sequence[str]) -> str:
    """Why an outcome is no example, or "": it is one."""
    if isinstance(outcome, Failure):
        return "no answer"
    if not outcome.text.strip():
        return "empty"
    refused = outcome.finish_reason == "refusal" or is_refusal(outcome.text)
    if refused and "refused" not in included:
        return "refused"
    if outcome.finish_reason == "length" and "truncated" not in included:
        return "truncated"
    if outcome.finish_reason not in ("stop", "length", "refusal"):
        return f"ends with {outcome.finish_reason}"
    return ""


def ask(task: Task, prompt: Prompt) -> ChatRequest:
    system, user = prompt.fill(task=task.text)
    return ChatRequest(system, user, prompt.version)


def ask_rating(task: Task, answer: ChatAnswer, prompt: Prompt, sample: int = 0) -> ChatRequest:
    system, user = prompt.fill(task=task.text, answer=answer.text.strip())
    return ChatRequest(system, user, prompt.version, sample=sample)


def example(record: Record, answer: ChatAnswer, prompt: Prompt) -> Record:
    """A task with its answer; `source` says where both come from."""
    source = {
        "task": record.get("source"),
        "model": answer.model,
        "reply": answer.id,
        "prompt_version": prompt.version,
        "finish_reason": answer.finish_reason,
    }
    return record | {"output": answer.text.strip(), "source": source}


async def rate(
    client: Client,
    prompt: Prompt,
    answered: Sequence[tuple[Task, ChatAnswer]],
    ratings: list[float | None],
) -> None:
    """Fills in `ratings`; what is no rating is asked for again, a bounded number of times."""
    left = list(range(len(answered)))
    for sample in range(RATING_ATTEMPTS):
        requests = ((i, ask_rating(*answered[i], prompt, sample)) for i in left)
        async for i, outcome in client.stream(requests, len(left)):
            if isinstance(outcome, ChatAnswer):
                ratings[i] = rating(outcome.text)
        left = [i for i in left if ratings[i] is None]
    client.counts["ratings that say no number"] += len(left)


class Answering:
    """Tasks, their outcomes and, where asked for, the ratings of these."""

    def __init__(self, config: ResponsesConfig, path: Path):
        self.config = config
        self.prompt = Prompt.read(config.prompt, PROMPTS)
        self.rating_prompt = Prompt.read(config.rating_prompt, PROMPTS)
        self.records = read_records(path)
        self.tasks = read_tasks(path)
        if twice := [name for name, n in Counter(t.id for t in self.tasks).items() if n > 1]:
            raise ValueError(f"{path}: two tasks have the id {twice[0]!r}; ids must differ")
        self.outcomes: list[Any] = [None] * len(self.tasks)
        self.reasons: list[str] = []
        self.ratings: dict[int, float | None] = {}

    def requests(self) -> list[ChatRequest]:
        return [ask(task, self.prompt) for task in self.tasks]

    def sort(self) -> None:
        """Finds out which outcomes are no examples."""
        self.reasons = [what_is_wrong(o, self.config.included) for o in self.outcomes]

    def take_ratings(self, rated: Sequence[int], ratings: Sequence[float | None]) -> None:
        """Ratings of the tasks of these indices."""
        for i, value in zip(rated, ratings, strict=True):
            self.ratings[i] = value
            if value is None:
                self.reasons[i] = "no rating"
            elif value < self.config.min_rating:
                self.reasons[i] = f"rated under {self.config.min_rating:g}"

    def split(self) -> tuple[list[Record], list[Record]]:
        """(examples, unused)."""
        examples, unused = [], []
        for i, (record, outcome) in enumerate(zip(self.records, self.outcomes, strict=True)):
            if isinstance(outcome, Failure):
                full = record | {"detail": outcome.reason}
            else:
                full = example(record, outcome, self.prompt)
            if i in self.ratings:
                full |= {"rating": self.ratings[i]}
            if self.reasons[i]:
                unused.append({"reason": self.reasons[i]} | full)
            else:
                examples.append(full)
        return examples, unused


def run(config: DatagenConfig, path: Path, workdir: Path, *, dry_run: bool) -> None:
    """Writes the examples.

    Raises:
      FileNotFoundError, ValueError: bad settings or tasks.
      RunStoppedError: the budget is reached, or a signal came; nothing is written then.
    """
    output = workdir / "examples.jsonl"
    if path.resolve() == output.resolve():
        raise ValueError(f"--input {path} would be overwritten; it must hold tasks")
    work = Answering(config.responses, path)
    description = provenance.describe(
        config=dataclasses.asdict(config),
        input={str(path): provenance.sha256(path)},
        prompt_version=work.prompt.version,
    )
    answers = workdir / "answers.sqlite"
    with AnswerStore(answers, read_only=config.offline, dry_run=dry_run) as store:
        client = Client(config.within(config.responder), store)
        client.report(f"answers: {client.estimate(work.requests(), USUAL_TOKENS)}")
        if config.responses.min_rating:  # a rater without a price is found before all is paid
            rater = Client(config.within(config.rater), store)
            client.report(f"ratings: {estimate_ratings(rater, work)}")
        if dry_run:
            return
        work.outcomes = run_until_done(client, lambda: client.ask_all(work.requests()))
        work.sort()
        if config.responses.min_rating:
            # Another one, whose budget counts what the answers have cost.
            rate_all(Client(config.within(config.rater), store), work)
        spent = dataclasses.asdict(store.total_spent())
    examples, unused = work.split()
    counts = {
        "tasks": len(work.tasks),
        "examples": len(examples),
        "unused": dict(Counter(record["reason"] for record in unused).most_common()),
    }
    if news := provenance.replaced(output, description["config"]):
        client.report(news)
    jsonl.write(workdir / "unused.jsonl", unused)
    ended = {"counts": counts, "spent": spent, "end": provenance.now()}
    provenance.write_json(provenance.run_json(output), description | ended)
    jsonl.write(output, examples)  # last: where it is, all three are
    client.report(
        f"{output}: {len(examples):,} examples of {len(work.tasks):,} tasks; "
        f"not used: {format_counts(counts['unused'])}"
    )


def estimate_ratings(client: Client, work: Answering) -> Estimate:
    """What rating takes, before there is any answer."""
    answer = ChatAnswer("word" * USUAL_TOKENS, "stop", "", "", 0, 0)
    requests = (ask_rating(task, answer, work.rating_prompt) for task in work.tasks)
    return client.estimate(requests, RATING_TOKENS)


def rate_all(client: Client, work: Answering) -> None:
    """Rates every outcome that would be an example."""
    rated = [i for i, reason in enumerate(work.reasons) if not reason]
    answered = [(work.tasks[i], work.outcomes[i]) for i in rated]
    requests = (ask_rating(*pair, work.rating_prompt) for pair in answered)
    client.report(f"ratings: {client.estimate(requests, RATING_TOKENS)}")
    ratings: list[float | None] = [None] * len(rated)
    run_until_done(client, lambda: rate(client, work.rating_prompt, answered, ratings))
    work.take_ratings(rated, ratings)


def define_flags() -> None:
    config_flags.DEFINE_config_file("config", None, "Config file.", lock_config=True)
    flags.DEFINE_string("input", None, "Tasks: .jsonl or .json, .gz or not.")
    flags.DEFINE_string("workdir", None, "Where answers are stored and examples are written.")
    flags.DEFINE_bool("dry_run", False, "Say what it would take and end.")
    flags.mark_flags_as_required(["config", "input", "workdir"])


def main(argv: Sequence[str]) -> None:
    del argv
    FLAGS = flags.FLAGS
    config = sections.build(DatagenConfig, FLAGS.config.to_dict())
    run(config, Path(FLAGS.input), Path(FLAGS.workdir), dry_run=FLAGS.dry_run)


if __name__ == "__main__":
    define_flags()
    cli.run(main, config=DatagenConfig)
