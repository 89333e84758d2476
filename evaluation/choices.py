"""Measures accuracy on multiple-choice questions, by likelihood or by letter.

    python -m evaluation.choices --input=medqa_test.jsonl --base_url=http://127.0.0.1:8000/v1 \\
        --workdir=D [--method=likelihood|letter] [--shots=5 --shots_from=dev.jsonl] [--dry_run]

--input are files of MedQA, MedMCQA, PubMedQA, HEAD-QA and MMLU as they are published, or of
{question, options, answer}; evaluation/multiple_choice/forms.py describes the forms. `likelihood`
compares options by their log-likelihood through /v1/completions (`alpacare serve`, vLLM), as
lm-evaluation-harness does; `letter` asks through /v1/chat/completions and reads a letter.

A complete run writes choices.jsonl (a line for each question), summary.json, choices.html, tables/,
figures/ and run.json into D. Replies are stored in D/answers.sqlite as soon as they arrive: an
interrupted run resumes with the same command.
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from absl import flags

from common import cli, jsonl, provenance
from common.reports import drawing
from common.sections import UsageError
from datagen.chat.client import Client, run_until_done
from datagen.chat.config import ChatConfig, ChatRequest, LikelihoodRequest, environment
from datagen.chat.connection import only_model
from datagen.chat.errors import Failure, require_answers
from datagen.chat.replies import ChatAnswer, likelihoods
from datagen.chat.store import AnswerStore
from evaluation.multiple_choice import presentation, prompts, questions, results
from evaluation.multiple_choice.forms import FORMS
from evaluation.multiple_choice.prompts import PROMPTS, Prompter
from evaluation.multiple_choice.questions import Question
from evaluation.multiple_choice.results import Answered
from evaluation.reporting import table_formats

METHODS = ("likelihood", "letter")

OUTPUT = "choices.jsonl"

LETTER_TOKENS = 16
"""Limit on a reply with a letter; one that reasons first needs more."""


@dataclasses.dataclass(frozen=True)
class ChoiceSettings:
    """What is asked, and how."""

    files: Sequence[Path]
    form: str  # key of FORMS; "": recognised
    subjects: Sequence[str]  # none: all
    first_answer: int | None  # number of the first option; None: recognised
    method: str
    prompt: str  # key of PROMPTS; "": that of the form
    shots: int
    shots_from: Path | None


def request(settings: ChoiceSettings, prompter: Prompter, question: Question) -> ChatRequest:
    """The request about a question."""
    prompt = prompter.prompt(question)
    if settings.method == "letter":
        return ChatRequest("", prompt + prompts.ASK_FOR_LETTER, "letter")
    texts = tuple(f" {text}" for text in prompter.continuations(question))
    return LikelihoodRequest("", prompt, "likelihood", continuations=texts)


def answered(
    settings: ChoiceSettings, prompter: Prompter, question: Question, outcome: ChatAnswer | Failure
) -> Answered:
    """What the model chose."""
    if isinstance(outcome, Failure):
        return Answered(question, None, failure=outcome.reason)
    if settings.method == "letter":
        letter = prompts.read_letter(outcome.text, question.options)
        return Answered(question, letter, raw=outcome.raw or outcome.text)
    texts = prompter.continuations(question)
    return Answered.by_likelihood(question, likelihoods(outcome), texts)


def write(workdir: Path, found: Sequence[Answered], about: str, record: dict[str, Any]) -> str:
    """Writes everything into the workdir; returns the summary.

    choices.jsonl is the last file: it marks a complete run.
    """
    measured = results.measure(found)
    figures = workdir / "figures"
    figures.mkdir(parents=True, exist_ok=True)
    for name, table in presentation.tables(measured).items():
        table_formats.write(workdir / "tables", name, [table])
    if figure := presentation.reliability(measured):
        drawing.write_figures(figures / "reliability", figure.title, [figure])
    provenance.write_json(workdir / "summary.json", measured.record())
    html = presentation.page("Multiple choice", about, measured)
    provenance.write_text(workdir / "choices.html", html)
    lines = (each.record() for each in found)
    jsonl.write_output(workdir / OUTPUT, lines, record, workdir / "run.json")
    return presentation.summary(measured)


def require_own_workdir(workdir: Path, config: dict[str, Any]) -> None:
    """Raises ValueError where the workdir has the results of another run."""
    if not (workdir / OUTPUT).exists():
        return
    before = provenance.read_record(workdir / "run.json").get("config", {})
    if found := provenance.as_text(provenance.differences(before, config)):
        raise ValueError(f"{workdir} has results of other settings ({found}); choose another")


def run(
    settings: ChoiceSettings, config: ChatConfig, workdir: Path, *, dry_run: bool = False
) -> None:
    """Asks about all questions, and writes the workdir.

    Raises:
      FileNotFoundError, ValueError: bad settings or questions; or, after everything is written,
        some questions have no answer for a reason that is not theirs, or none has one.
      RunStoppedError: the budget is reached, a signal arrived, or no request can be answered;
        nothing is written.
    """
    if not config.model:
        config = dataclasses.replace(config, model=only_model(config))
    asked = questions.read(settings.files, settings.form, settings.first_answer)
    asked = questions.of_subjects(asked, settings.subjects)
    examples = []
    if settings.shots_from:
        examples = questions.read([settings.shots_from], settings.form, settings.first_answer)
    name = settings.prompt or ("letters" if settings.method == "letter" else "")
    prompter = Prompter(name, examples, settings.shots)
    requests = [request(settings, prompter, question) for question in asked]
    described = dataclasses.asdict(settings) | {
        "files": [provenance.sha256(path) for path in settings.files],  # they may have moved
        "shots_from": settings.shots_from and provenance.sha256(settings.shots_from),
        "prompts": sorted({name or FORMS[question.form].prompt for question in asked}),
        "model": config.model,
        "extra_body": config.extra_body,
        "max_tokens": config.max_tokens,
    }
    require_own_workdir(workdir, described)
    record = provenance.describe(
        config=described,
        files=[str(path) for path in settings.files],
        base_url=config.base_url,
        environment=environment(),
    )
    answers = workdir / "answers.sqlite"
    with AnswerStore(answers, read_only=config.offline, dry_run=dry_run) as store:
        client = Client(config, store)
        client.report(str(client.estimate(requests, 1)))
        if dry_run:
            return
        outcomes = run_until_done(client, lambda: client.ask_all(requests))
        record["spent"] = dataclasses.asdict(store.total_spent())
    found = [answered(settings, prompter, *pair) for pair in zip(asked, outcomes, strict=True)]
    shots = f", {settings.shots} examples" if settings.shots else ""
    about = (
        f"{config.model} on {', '.join(path.name for path in settings.files)}, by "
        f"{settings.method}; prompts: {', '.join(described['prompts'])}{shots}."
    )
    client.report(f"{workdir / OUTPUT}: {write(workdir, found, about, record)}")
    failures = [(each.question.id, each.failure) for each in found if each.failure]
    if failures:
        client.report(f"the first without an answer: question {failures[0][0]!r}: {failures[0][1]}")
    require_answers(outcomes, len(asked), workdir / OUTPUT)
    if len(failures) == len(found):
        raise ValueError(f"{workdir / OUTPUT}: no question has an answer; {failures[0][1]}")


def define_flags() -> None:
    """Defines the flags of this command."""
    flags.DEFINE_list("input", None, "Files of questions.")
    flags.DEFINE_string("base_url", None, "Address of a server, such as http://127.0.0.1:8000/v1.")
    flags.DEFINE_string("workdir", None, "Folder for the results and the answers.")
    flags.DEFINE_string("model", "", "Name of the model; by default the only one of the server.")
    flags.DEFINE_enum("method", "likelihood", METHODS, "How a model chooses an option.")
    flags.DEFINE_enum("form", "", ["", *FORMS], "Form of the files; by default recognised.")
    flags.DEFINE_enum("prompt", "", ["", *PROMPTS], "Prompt; by default that of the form.")
    flags.DEFINE_list("subjects", [], "Only questions of these subjects.")
    flags.DEFINE_enum(
        "first_answer", "", ["", "0", "1"], "Number of the first option; by default recognised."
    )
    flags.DEFINE_integer("shots", 0, "Examples before each question.", lower_bound=0)
    flags.DEFINE_string("shots_from", "", "File of examples; the first of a subject are taken.")
    flags.DEFINE_integer("max_tokens", LETTER_TOKENS, "Limit on a reply with a letter.", 1)
    flags.DEFINE_integer("concurrency", 16, "Maximum number of concurrent requests.", 1)
    flags.DEFINE_string("extra_body", "", "JSON object of further request parameters.")
    flags.DEFINE_float("budget_usd", 0.0, "Cap on the total spending of the workdir; 0: none.", 0)
    flags.DEFINE_bool("dry_run", False, "Only estimate requests, tokens, cost and time.")
    flags.mark_flags_as_required(["input", "base_url", "workdir"])
    cli.require_entries("input")
    flags.register_multi_flags_validator(
        ["shots", "shots_from"],
        lambda given: bool(given["shots"]) == bool(given["shots_from"]),
        message="give --shots and --shots_from together",
    )
    flags.register_multi_flags_validator(
        ["method", "prompt"],
        lambda given: (
            given["method"] != "letter" or not given["prompt"] or PROMPTS[given["prompt"]].letters
        ),
        message="--method=letter needs a prompt that lists options by letter",
    )


def main(argv: Sequence[str]) -> None:
    """Runs the command."""
    del argv
    FLAGS = flags.FLAGS
    settings = ChoiceSettings(
        files=[Path(path) for path in FLAGS.input],
        form=FLAGS.form,
        subjects=FLAGS.subjects,
        first_answer=int(FLAGS.first_answer) if FLAGS.first_answer else None,
        method=FLAGS.method,
        prompt=FLAGS.prompt,
        shots=FLAGS.shots,
        shots_from=Path(FLAGS.shots_from) if FLAGS.shots_from else None,
    )
    try:
        config = ChatConfig(
            provider="openai",
            base_url=FLAGS.base_url,
            model=FLAGS.model,
            max_tokens=FLAGS.max_tokens,
            temperature=0.0,
            top_p=None,
            presence_penalty=None,
            reasoning_effort=None,
            extra_body=FLAGS.extra_body,
            concurrency=FLAGS.concurrency,
            attempts=8,
            timeout_seconds=600.0,
            price_input=None,
            price_output=None,
            batch=False,
            batch_requests=1,
            poll_seconds=60.0,
            budget_usd=FLAGS.budget_usd,
        )
    except ValueError as error:
        raise UsageError(str(error)) from error
    run(settings, config, Path(FLAGS.workdir), dry_run=FLAGS.dry_run)


if __name__ == "__main__":
    define_flags()
    cli.run(main, output="workdir")
