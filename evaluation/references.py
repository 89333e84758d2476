"""Creates reference answers to a test set: by a model, or imported from a file.

    python -m evaluation.references --config=configs/evaluation.py --benchmark=medinstruct \\
        --workdir=D [--data=DIR] [--prompt=plain|medical|FILE.txt] [--dry_run]
    python -m evaluation.references --import=gpt-4 --benchmark=medinstruct --workdir=D [--data=DIR]

A benchmark is a name (medinstruct, icliniq, alpaca_farm; published files are looked up in --data)
or a file of instructions. --import takes answers of any form that evaluation/inputs/outputs.py
reads: a published NAME, FILE or NAME=FILE, where FILE#COLUMN is one column of a file.

WORKDIR/references.jsonl has one answer to each item, in alpaca_eval's format; run.json records the
settings and how many answers are truncated, empty or refusals. A model's answers are stored in
answers.sqlite as soon as they arrive: an interrupted run resumes with the same command.
"""

import dataclasses
import itertools
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from absl import flags
from ml_collections import config_flags

from common import cli, data_file, jsonl, provenance, records, sections
from common.text.prompt_file import Prompt
from datagen.chat.client import Client, run_until_done
from datagen.chat.config import ChatConfig, ChatRequest, environment
from datagen.chat.errors import Failure, require_answers
from datagen.chat.store import AnswerStore
from evaluation.config import EvaluationConfig
from evaluation.grading.answers import output
from evaluation.inputs import benchmarks, outputs
from evaluation.inputs.benchmarks import Item
from evaluation.inputs.outputs import ModelOutput
from evaluation.scoring.text_metrics import measure_texts

REFERENCE_PROMPTS = Path(__file__).parent / "reference_prompts"

TYPICAL_TOKENS = 350
"""Of an answer, in estimates."""


@dataclasses.dataclass(frozen=True)
class ReferenceSettings:
    """The model that writes references, and its prompt."""

    chat: ChatConfig
    prompt: str  # a file of reference_prompts/, or the path of a .txt file
    generator: str  # name of the answers; "": the model's

    @property
    def name(self) -> str:
        """The generator of the answers."""
        return self.generator or self.chat.model


def require_own_workdir(path: Path, items: Sequence[Item], generator: str) -> None:
    """Raises ValueError where `path` contains other answers, which would be overwritten."""
    if not path.exists():
        return
    benchmark = items[0].benchmark
    location, first = next(data_file.read(path), ("", {}))
    known = first.get("generator"), first.get("dataset")
    if known != (generator, benchmark):
        raise ValueError(
            f"{location}: contains answers of {known[0]!r} to {known[1]}, not of {generator!r} to "
            f"{benchmark}; choose another --workdir or delete it"
        )
    records.require_kept([path], ((item.id, item.text) for item in items), benchmark)


def write(
    workdir: Path, items: Sequence[Item], answers: Sequence[ModelOutput], run_record: dict[str, Any]
) -> None:
    """Writes references.jsonl and run.json, which starts as `run_record`; prints the counts."""
    path = workdir / "references.jsonl"
    workdir.mkdir(parents=True, exist_ok=True)
    signals = measure_texts(answers)
    lines = itertools.starmap(outputs.model_output_record, zip(items, answers, strict=True))
    run_record |= {"counts": dataclasses.asdict(signals)}
    jsonl.write_output(path, lines, run_record, workdir / "run.json")
    print(f"{path}: {signals}", file=sys.stderr)


def run_import(source: str, benchmark: str, data: Path, workdir: Path) -> None:
    """Writes existing answers as references; see the module's docstring for the arguments."""
    items = benchmarks.load(benchmark, data)
    imported = outputs.load(source, items, data)
    require_own_workdir(workdir / "references.jsonl", items, imported[0].generator)
    file, _ = outputs.locate(source, items, data)
    hashed = {str(file): provenance.sha256(file)}
    settings = {"import": source, "file": hashed, "benchmark": items[0].benchmark}
    write(workdir, items, imported, provenance.describe(config=settings))


def run_ask(
    reference: ReferenceSettings, benchmark: str, data: Path, workdir: Path, *, dry_run: bool
) -> None:
    """Asks a model for references; see the module's docstring for the arguments.

    Raises:
      FileNotFoundError, ValueError: bad settings or items; or, after everything is written, some
        items have no answer for a reason that is not theirs, or none has one.
      RunStoppedError: the budget is reached, a signal arrived, or no request can be answered;
        nothing is written.
    """
    benchmarks.check_name("generator", reference.name)
    items = benchmarks.load(benchmark, data)
    path = workdir / "references.jsonl"
    require_own_workdir(path, items, reference.name)
    prompt = Prompt.read(reference.prompt, REFERENCE_PROMPTS)
    filled = [prompt.fill(question=item.text) for item in items]
    requests = [ChatRequest(system, user, prompt.version) for system, user in filled]
    settings = {
        "benchmark": items[0].benchmark,
        "benchmark_sha256": provenance.sha256(benchmarks.locate(benchmark, data)[1]),
        "asking": dataclasses.asdict(reference),
    }
    run_record = provenance.describe(
        config=settings, prompt_version=prompt.version, environment=environment()
    )
    answers = workdir / "answers.sqlite"
    with AnswerStore(answers, read_only=reference.chat.offline, dry_run=dry_run) as store:
        client = Client(reference.chat, store)
        client.report(str(client.estimate(requests, TYPICAL_TOKENS)))
        if dry_run:
            return
        outcomes = run_until_done(client, lambda: client.ask_all(requests))
        run_record["spent"] = dataclasses.asdict(store.total_spent())
    pairs = list(zip(items, outcomes, strict=True))
    found = [output(item, reference.name, outcome) for item, outcome in pairs]
    write(workdir, items, found, run_record)
    require_answers(outcomes, len(items), path)
    refused = [(item, outcome) for item, outcome in pairs if isinstance(outcome, Failure)]
    if refused:
        item, failure = refused[0]
        client.report(
            f"{len(refused):,} items are refused by the server and empty, the first {item.id!r}: "
            f"{failure.reason}"
        )
    if not any(answer.output for answer in found):
        raise ValueError(f"{path}: all {len(items):,} references are empty")


def define_flags() -> None:
    """Defines the flags of this command."""
    config_flags.DEFINE_config_file(
        "config", None, "The model to ask: section `chat`.", lock_config=True
    )
    flags.DEFINE_string("benchmark", None, "medinstruct, icliniq, alpaca_farm, FILE or NAME=FILE.")
    flags.DEFINE_string("workdir", None, "Folder for references.jsonl and the answers.")
    flags.DEFINE_string("data", "data", "Folder of published files, such as AlpaCare's data/.")
    flags.DEFINE_string(
        "import", "", "Existing answers instead of a model: NAME, FILE or NAME=FILE."
    )
    flags.DEFINE_string("prompt", "plain", "Name in evaluation/reference_prompts, or a .txt file.")
    flags.DEFINE_string("generator", "", "Name of the model's answers; its own by default.")
    flags.DEFINE_bool("dry_run", False, "Only estimate requests, tokens, cost and time.")
    flags.mark_flags_as_required(["benchmark", "workdir"])
    flags.register_multi_flags_validator(
        ["config", "import"],
        lambda given: given["import"] or given["config"] is not None,
        message="give --config for the model to ask, or --import for existing answers",
    )


def main(argv: Sequence[str]) -> None:
    """Runs the command."""
    del argv
    FLAGS = flags.FLAGS
    workdir, data = Path(FLAGS.workdir), Path(FLAGS.data)
    if source := FLAGS["import"].value:
        run_import(source, FLAGS.benchmark, data, workdir)
        return
    config = sections.build(EvaluationConfig, FLAGS.config.to_dict())
    reference = ReferenceSettings(config.within(config.chat), FLAGS.prompt, FLAGS.generator)
    run_ask(reference, FLAGS.benchmark, data, workdir, dry_run=FLAGS.dry_run)


if __name__ == "__main__":
    define_flags()
    cli.run(main, config=EvaluationConfig, output="workdir")
