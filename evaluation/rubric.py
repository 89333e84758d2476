"""Grades answers by rubrics, as HealthBench does: one verdict for each criterion.

    python -m evaluation.rubric --config=configs/evaluation.py --input=healthbench.jsonl \\
        --outputs=alpacare-7b=answers.jsonl,... --workdir=D [--repeats=3] [--dry_run]
    python -m evaluation.rubric --input=healthbench.jsonl --base_url=http://localhost:8000/v1 \\
        --workdir=D
    python -m evaluation.rubric --config=... --input=meta_eval.jsonl --workdir=D

--input is a file of HealthBench's form (docs/file_formats.md), FILE or NAME=FILE. Answers are in
files, matched by id, or come from the model at --base_url, which is asked for them; or both. The
grader is the model of the config's `chat`. A file with physicians' labels has its own answers, and
measures the grader.

A complete run writes rubric.json, rubric.html, rubric.md, rubric.tex (the scores), grades.jsonl
(each verdict), outputs.jsonl (the answers) and run.json into D. D/answers.sqlite stores every reply
as soon as it arrives, so an interrupted run resumes with the same command.
"""

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from absl import flags
from ml_collections import config_flags

from common import cli, jsonl, provenance, sections
from common.messages import log
from common.reports.charts import percent
from datagen.chat.client import Client, run_until_done
from datagen.chat.config import environment
from datagen.chat.errors import Failure, require_answers
from datagen.chat.store import AnswerStore
from evaluation.config import EvaluationConfig
from evaluation.grading import answers, grader
from evaluation.grading import presentation as pages
from evaluation.grading.grader import Grade
from evaluation.grading.rubric_run import RubricRun, RubricSettings
from evaluation.inputs import outputs
from evaluation.judging import comparisons
from evaluation.reporting import table_formats
from evaluation.reporting.table_formats import Table, with_interval

DEFAULT_CONFIG = Path(__file__).parents[1] / "configs/evaluation.py"
RUBRIC_FILE, GRADES_FILE = "rubric.json", "grades.jsonl"


def require_kept(path: Path, now: dict[str, Any]) -> None:
    """Requires that a run repeats what `path`, the rubric.json of its workdir, is about, or adds.

    Raises:
      ValueError: the scores there are of other rubrics, answers or prompts, and would be lost.
    """
    before = provenance.read_record(path)
    for name in before.get("kept", {}):
        old, new = before["kept"][name], now[name]
        is_kept = old.items() <= new.items() if isinstance(old, dict) else old == new
        if not is_kept:
            raise ValueError(
                f"{path} holds scores with another {name}, which would be lost; choose another "
                f"--workdir, or delete {path.name}: the replies stay in answers.sqlite"
            )


def ask_system(rubric: RubricRun, store: AnswerStore, *, dry_run: bool) -> None:
    """Has the model at --base_url answer.

    Raises:
      ValueError: some requests have no answer for a reason that is not theirs.
      RunStoppedError: as Client.stream.
    """
    assert rubric.system
    client = Client(rubric.system, store)
    requests = [answers.request(example) for example in rubric.examples]
    client.report(f"answers: {client.estimate(requests, answers.SYSTEM_TOKENS)}")
    if dry_run:
        stored = [client.stored(request) for request in requests]
        unknown = Failure("not asked yet")
        rubric.add_live([found or unknown for found in stored])
        if missing := stored.count(None):
            client.report(f"{missing:,} answers do not exist yet, and are estimated as empty")
        return
    outcomes = run_until_done(client, lambda: client.ask_all(requests))
    require_answers(outcomes, len(requests), Path(rubric.live_name))
    rubric.add_live(outcomes)


def run(rubric: RubricRun, workdir: Path, *, dry_run: bool = False) -> None:
    """Grades, and writes the workdir.

    Raises:
      ValueError: the workdir has scores of something else; or, after everything is written, some
        gradings have no reply, or none has a verdict.
      RunStoppedError: the budget is reached, a signal arrived, or no request can be answered.
    """
    config = rubric.grader
    record = provenance.describe(
        config=dataclasses.asdict(rubric.config),
        rubric=dataclasses.asdict(rubric.settings) | {"benchmark": rubric.benchmark},
        system=dataclasses.asdict(rubric.system) if rubric.system else None,
        input=rubric.input,
        prompt_version=rubric.prompt.version,
        environment=environment(),
    )
    path = workdir / "answers.sqlite"
    with AnswerStore(path, read_only=config.offline, dry_run=dry_run) as store:
        if rubric.system:
            ask_system(rubric, store, dry_run=dry_run)
        rubric.prepare()
        require_kept(workdir / RUBRIC_FILE, rubric.kept())
        client = Client(config, store)
        requests = (grading.request() for grading in rubric.gradings)
        client.report(f"gradings: {client.estimate(requests, grader.GRADE_TOKENS)}")
        if dry_run:
            return
        run_until_done(
            client,
            lambda: comparisons.ask(client, rubric.gradings, rubric.config.reasks, rubric.replies),
        )
        record["spent"] = dataclasses.asdict(store.total_spent())
    found = rubric.score()
    counts = count(rubric)
    write(rubric, workdir, record | {"counts": counts}, found)
    for line in (*comparisons.reasked(counts), *summary(found, counts)):
        log(line)
    require_answers((r.failure for r in rubric.replies), len(rubric.replies), workdir / GRADES_FILE)
    if all(reply.verdict == Grade.INVALID for reply in rubric.replies):
        raise ValueError(
            f"no reply of {config.model} states a verdict; check `raw` in {workdir / GRADES_FILE}"
        )


def count(rubric: RubricRun) -> dict[str, Any]:
    """The counts for run.json."""
    empty = {
        name: sum(not answer.output.strip() for answer in own)
        for name, own in rubric.answers.items()
    }
    cut = {
        name: sum(answer.finish_reason == "length" for answer in own)
        for name, own in rubric.answers.items()
    }
    return {
        "examples": len(rubric.examples) or len(rubric.labelled),
        "gradings": len(rubric.gradings),
        "empty_answers": empty,
        "cut_answers": cut,
    } | comparisons.count_replies(rubric.replies)


def write(rubric: RubricRun, workdir: Path, record: dict[str, Any], found: dict[str, Any]) -> None:
    """Writes the workdir; rubric.json is the last, and marks a complete run."""
    workdir.mkdir(parents=True, exist_ok=True)
    facts = [
        f"{rubric.benchmark}, {record['counts']['examples']:,} examples",
        f"graded by {rubric.grader.model} with prompt {rubric.prompt.version}",
        f"{len(rubric.gradings):,} gradings, {rubric.settings.repeats:,} of each criterion",
        str(record["start"]),
    ]
    built = tables(found)
    item_of = {item.id: item for item in rubric.items}
    lines = (
        outputs.model_output_record(item_of[answer.id], answer)
        for own in rubric.answers.values()
        for answer in own
    )
    jsonl.write(workdir / "outputs.jsonl", lines)
    provenance.write_text(workdir / "rubric.html", pages.page(built, facts))
    table_formats.write(workdir, "rubric", built)
    jsonl.write_output(workdir / GRADES_FILE, rubric.grade_lines(), record, workdir / "run.json")
    plain = {
        kind: [*rows]
        if isinstance(rows, list)
        else {name: dataclasses.asdict(row) for name, row in rows.items()}
        for kind, rows in found.items()
    }
    about = {"benchmark": rubric.benchmark, "grader": rubric.grader.model, "date": record["start"]}
    provenance.write_json(workdir / RUBRIC_FILE, about | {"kept": rubric.kept()} | plain)


def tables(found: dict[str, Any]) -> list[Table]:
    """The tables of the scores."""
    if "agreement" in found:
        return [pages.physicians_table(found["agreement"])]
    return pages.tables(found["systems"])


def summary(found: dict[str, Any], counts: dict[str, Any]) -> Iterator[str]:
    """The main numbers, and what is wrong with the answers, in lines."""
    if "agreement" in found:
        overall = found["agreement"]["overall"]
        value = with_interval(overall.macro_f1, overall.low, overall.high)
        people = percent(overall.physicians)
        yield f"macro F1 against physicians: {value}; of physicians among themselves: {people}"
    for name, score in found.get("systems", {}).items():
        overall = score.overall
        text = with_interval(overall.score, overall.low, overall.high)
        line = f"{name}: {text} on {overall.examples:,} examples"
        if score.missing:
            line += (
                f"; {score.missing:,} of {score.verdicts:,} verdicts are missing: between "
                f"{percent(overall.worst)} and {percent(overall.best)}"
            )
        yield line
        for kind, words in (("empty_answers", "empty"), ("cut_answers", "cut at max_tokens")):
            if number := counts[kind][name]:
                yield f"{name}: {number:,} answers are {words}, and graded as they are"


def define_flags() -> None:
    """Defines the flags of this command."""
    config_flags.DEFINE_config_file(
        "config",
        None,
        "The grader: section `chat`; by default configs/evaluation.py.",
        lock_config=True,
    )
    flags.DEFINE_string("input", None, "Rubrics, or physicians' labels: FILE or NAME=FILE.")
    flags.DEFINE_list("outputs", [], "Answers to grade: each FILE or NAME=FILE.")
    flags.DEFINE_string("base_url", "", "Server of a model to ask for answers, http://HOST/v1.")
    flags.DEFINE_string("model", "", "Its name there; by default the only one that it serves.")
    flags.DEFINE_string("generator", "", "Name of its answers; by default the model's.")
    flags.DEFINE_integer("max_tokens", 2048, "Limit on the tokens of its answers.", lower_bound=1)
    flags.DEFINE_string("workdir", None, "Folder for the scores.")
    flags.DEFINE_string("prompt", "rubric", "Name in evaluation/grader_prompts, or a .txt file.")
    flags.DEFINE_integer(
        "examples", 0, "Number of examples, drawn as simple-evals does; 0: all.", lower_bound=0
    )
    flags.DEFINE_integer("repeats", 1, "How often each criterion is graded.", lower_bound=1)
    flags.DEFINE_bool("dry_run", False, "Only estimate requests, tokens, cost and time.")
    flags.mark_flags_as_required(["input", "workdir"])


def main(argv: Sequence[str]) -> None:
    """Runs the command."""
    del argv
    FLAGS = flags.FLAGS
    given = FLAGS.config.to_dict() if FLAGS.config else cli.load_config(str(DEFAULT_CONFIG))
    fields = (field.name for field in dataclasses.fields(RubricSettings))
    settings = RubricSettings(**{name: getattr(FLAGS, name) for name in fields})
    rubric = RubricRun(sections.build(EvaluationConfig, given), settings)
    run(rubric, Path(FLAGS.workdir), dry_run=FLAGS.dry_run)


if __name__ == "__main__":
    define_flags()
    cli.run(main, config=EvaluationConfig, output="workdir")
