"""Has a model answer tasks; sets refused, cut and empty answers aside.

    python -m datagen.responses --config=configs/datagen.py --workdir=medinstruct \\
        --input=medinstruct/tasks.jsonl [--config.responses.min_rating=4.5] [--dry_run]

WORKDIR/examples.jsonl is the training data of `alpacare_jax.train`, in the order of the tasks;
unused.jsonl holds the other tasks with their answers, if any, and the reason. Every answer is
stored in WORKDIR/answers.sqlite before it is used, so a rerun sends no request twice.
"""

import dataclasses
import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from absl import flags
from ml_collections import config_flags

from common import cli, jsonl, provenance, sections
from common.jsonl import Record
from common.messages import format_counts
from common.records import Task, read_records, require_kept, require_unique_ids
from common.sections import UsageError
from common.text.prompt_file import Prompt
from common.text.refusals import is_refusal
from datagen.chat.client import Client, run_until_done
from datagen.chat.config import ChatRequest, environment
from datagen.chat.errors import Failure, require_answers
from datagen.chat.progress import Estimate
from datagen.chat.replies import ChatAnswer
from datagen.chat.store import AnswerStore
from datagen.config import DATAGEN_PROMPTS, DatagenConfig, ResponsesConfig

ANSWER_TOKENS = 350
"""Tokens of an answer, for estimates; about MedInstruct's mean."""

RATING_TOKENS = 80
"""Tokens of a rating with its reasons, for estimates."""

RATING_ATTEMPTS = 3
"""Requests per rating until the reply contains a number."""

_RATING = re.compile(
    r"^[^\w\n]*+(?:(?:final|my|overall|the)[ \t]++)*+rating(?:[ \t]++is)?+[^\w\n]*+(?<![-−–<>~±≈])"
    r"(\d(?:[.,]\d{1,2})?)[ \t]*+(?:(?:/|out of|of)[ \t]*+5(?:[.,]0+)?)?[ \t]*+(?:stars?\b)?+"
    r"[ \t*_`.,;:!)\]\"'★⭐]*+$",
    re.IGNORECASE | re.MULTILINE,
)
_NUMBER_ALONE = re.compile(r"\s*\d(?:[.,]\d{1,2})?(?:\s*/\s*5)?\s*")


def parse_rating(text: str) -> float | None:
    """The rating, 0 to 5, in a rater's reply; None unless exactly one is on a line of its own.

    >>> replies = "Rating: 4.5\\nGood.", "**Rating:** 3/5", "I rate it:\\nRating: 4,5 out of 5"
    >>> [parse_rating(reply) for reply in replies]
    [4.5, 3.0, 4.5]
    >>> replies = "Rating: -3", "4 or 5", "Rating: 4\\nRating: 2", "Rating: 45", "Rating: 4/10"
    >>> [parse_rating(reply) for reply in replies]
    [None, None, None, None, None]
    """
    text = re.sub("[\u200b-\u200d\u2060\ufeff]", "", unicodedata.normalize("NFKC", text))
    found = {float(number.replace(",", ".")) for number in _RATING.findall(text)}
    if _NUMBER_ALONE.fullmatch(text):
        found = {float(text.partition("/")[0].replace(",", "."))}
    return found.pop() if len(found) == 1 and max(found) <= 5 else None


def rejection_reason(outcome: ChatAnswer | Failure, included: Sequence[str]) -> str:
    """Why an outcome is no example; "" if it is one.

    Args:
      included: of `INCLUDABLE`, answers that are examples all the same.
    """
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


class ResponseRun:
    """The tasks of a run, their outcomes and, if a rater is used, ratings."""

    def __init__(self, config: ResponsesConfig, path: Path):
        self.config = config
        self.prompt = Prompt.read(config.prompt, DATAGEN_PROMPTS)
        self.rating_prompt = Prompt.read(config.rating_prompt, DATAGEN_PROMPTS)
        self.records = read_records(path)
        self.tasks = list(map(Task.from_record, self.records))
        require_unique_ids(path, (task.id for task in self.tasks), "examples keep their ids")
        self.outcomes: list[ChatAnswer | Failure] = []
        self.reasons: list[str] = []  # rejection reason of each outcome; "" for examples
        self.ratings: dict[int, float | None] = {}  # by position of the task
        self.rating_failures: list[Failure] = []

    def requests(self) -> list[ChatRequest]:
        """The request of each task."""
        prompt = self.prompt
        return [ChatRequest(*prompt.fill(task=task.text), prompt.version) for task in self.tasks]

    def rating_request(self, task: Task, answer: str, sample: int = 0) -> ChatRequest:
        """Asks the rater about an answer; each `sample` is a request of its own."""
        system, user = self.rating_prompt.fill(task=task.text, answer=answer.strip())
        return ChatRequest(system, user, self.rating_prompt.version, sample=sample)

    def estimate_ratings(self, client: Client, answers: dict[int, str]) -> Estimate:
        """What rating these answers, by position of the task, takes."""
        requests = (self.rating_request(self.tasks[i], text) for i, text in answers.items())
        return client.estimate(requests, RATING_TOKENS)

    def answer(self, client: Client) -> None:
        """Has every task answered and finds out which outcomes are no examples."""
        self.outcomes = run_until_done(client, lambda: client.ask_all(self.requests()))
        included = self.config.included
        self.reasons = [rejection_reason(outcome, included) for outcome in self.outcomes]

    def rate(self, client: Client) -> None:
        """Has every outcome rated that would be an example, and rejects low ratings."""
        answers = {
            i: outcome.text
            for i, (outcome, reason) in enumerate(zip(self.outcomes, self.reasons, strict=True))
            if isinstance(outcome, ChatAnswer) and not reason
        }
        client.report(f"ratings: {self.estimate_ratings(client, answers)}")
        self.ratings = dict.fromkeys(answers)
        run_until_done(client, lambda: self._collect_ratings(client, answers))
        for i, rating in self.ratings.items():
            if rating is None:
                self.reasons[i] = "no rating"
            elif rating < self.config.min_rating:
                self.reasons[i] = f"rated under {self.config.min_rating:g}"

    async def _collect_ratings(self, client: Client, answers: dict[int, str]) -> None:
        """Asks for each rating up to `RATING_ATTEMPTS` times."""
        missing, ask = list(answers), self.rating_request
        for sample in range(RATING_ATTEMPTS):
            requests = ((i, ask(self.tasks[i], answers[i], sample)) for i in missing)
            async for i, outcome in client.stream(requests, len(missing)):
                if isinstance(outcome, Failure):
                    self.rating_failures.append(outcome)
                else:
                    self.ratings[i] = parse_rating(outcome.text)
            missing = [i for i in missing if self.ratings[i] is None]
        client.counts["ratings without a number"] += len(missing)

    def split(self) -> tuple[list[Record], list[Record]]:
        """(examples, unused); the `source` of an answer names task, model and prompt."""
        examples, unused = [], []
        for i, (record, outcome) in enumerate(zip(self.records, self.outcomes, strict=True)):
            if isinstance(outcome, Failure):
                added: Record = {"detail": outcome.reason}
            else:
                source = {
                    "task": record.get("source"),
                    "model": outcome.model,
                    "reply": outcome.id,
                    "prompt_version": self.prompt.version,
                    "finish_reason": outcome.finish_reason,
                }
                added = {"output": outcome.text.strip(), "source": source}
            if i in self.ratings:
                added["rating"] = self.ratings[i]
            if self.reasons[i]:
                unused.append({"reason": self.reasons[i]} | record | added)
            else:
                examples.append(record | added)
        return examples, unused


def run(config: DatagenConfig, path: Path, workdir: Path, *, dry_run: bool) -> None:
    """Answers the tasks of `path` and writes the examples.

    Raises:
      FileNotFoundError, ValueError: bad settings or tasks, or other tasks than the workdir has; or,
        after everything is written, there is no example, or some tasks have no answer for a reason
        that is not theirs.
      RunStoppedError: the budget is reached or a signal arrived; nothing is written then.
    """
    output = workdir / "examples.jsonl"
    if path.resolve() == output.resolve():
        raise UsageError(f"--input {path} would be overwritten; it must contain tasks")
    answering = ResponseRun(config.responses, path)
    held = output, workdir / "unused.jsonl"
    require_kept(held, ((task.id, task.text) for task in answering.tasks), path)
    description = provenance.describe(
        config=dataclasses.asdict(config),
        input={str(path): provenance.sha256(path)},
        prompt_version=answering.prompt.version,
        rating_prompt_version=answering.rating_prompt.version,
        environment=environment(),
    )
    answers = workdir / "answers.sqlite"
    with AnswerStore(answers, read_only=config.offline, dry_run=dry_run) as store:
        client = Client(config.within(config.responder), store)
        client.report(f"answers: {client.estimate(answering.requests(), ANSWER_TOKENS)}")
        if config.responses.min_rating:  # fails here, before any cost, if the rater has no price
            typical = dict.fromkeys(range(len(answering.tasks)), "word" * ANSWER_TOKENS)
            rater = Client(config.within(config.rater), store)
            client.report(f"ratings: {answering.estimate_ratings(rater, typical)}")
        if dry_run:
            return
        answering.answer(client)
        if config.responses.min_rating:
            # A new client, whose budget includes the cost of the answers.
            answering.rate(Client(config.within(config.rater), store))
        spent = dataclasses.asdict(store.total_spent())
    examples, unused = answering.split()
    counts = {
        "tasks": len(answering.tasks),
        "examples": len(examples),
        "unused": dict(Counter(record["reason"] for record in unused).most_common()),
    }
    if warning := provenance.replaced(output, description["config"]):
        client.report(warning)
    jsonl.write(workdir / "unused.jsonl", unused)
    # Last: once it exists, all three files do.
    jsonl.write_output(output, examples, description | {"counts": counts, "spent": spent})
    client.report(
        f"{output}: {len(examples):,} examples from {len(answering.tasks):,} tasks; "
        f"not used: {format_counts(counts['unused'])}"
    )
    failures = [*answering.outcomes, *answering.rating_failures]
    if not config.offline:
        require_answers(failures, len(answering.tasks), output)
    if not examples:
        raise ValueError(f"{output} has no example; see {workdir / 'unused.jsonl'}")


def define_flags() -> None:
    """Defines the flags of this command."""
    config_flags.DEFINE_config_file("config", None, "Config file.", lock_config=True)
    flags.DEFINE_string("input", None, "Tasks: .jsonl or .json, optionally .gz.")
    flags.DEFINE_string("workdir", None, "Folder for stored answers and examples.")
    flags.DEFINE_bool("dry_run", False, "Print requests and cost, then exit.")
    flags.mark_flags_as_required(["config", "input", "workdir"])


def main(argv: Sequence[str]) -> None:
    """The command."""
    del argv
    FLAGS = flags.FLAGS
    config = sections.build(DatagenConfig, FLAGS.config.to_dict())
    run(config, Path(FLAGS.input), Path(FLAGS.workdir), dry_run=FLAGS.dry_run)


if __name__ == "__main__":
    define_flags()
    cli.run(main, config=DatagenConfig, output="workdir")
