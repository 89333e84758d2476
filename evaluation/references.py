"""Reference answers to a test set: asks a model for them, or imports frozen ones.

    python -m evaluation.references --config=configs/evaluation.py --benchmark=medinstruct \\
        --workdir=D [--data=DIR] [--prompt=plain|medical|FILE.txt] [--dry_run]
    python -m evaluation.references --import=gpt-4 --benchmark=medinstruct --workdir=D [--data=DIR]

A benchmark is a name (medinstruct, icliniq, alpaca_farm; published files are looked for in --data)
or a file of instructions. What --import takes are answers of any form that evaluation.outputs
reads: NAME (published), FILE or NAME=FILE, where FILE#COLUMN is one column of a file.

WORKDIR/references.jsonl holds one answer to each item, in alpaca_eval's format; run.json says how
it was made and how many answers are cut, empty or decline. Answers of a model are in answers.sqlite
as soon as they come: run again after a stop, and only what is missing is asked.
"""

import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from absl import flags
from ml_collections import config_flags

from common import cli, jsonl, provenance, sections
from common.prompt_file import Prompt
from datagen.chat.client import Client, Failure, run_until_done
from datagen.chat.config import ChatConfig, ChatRequest
from datagen.chat.store import AnswerStore, ChatAnswer
from evaluation.config import EvaluationConfig
from evaluation.inputs import benchmarks, outputs
from evaluation.inputs.benchmarks import Item
from evaluation.inputs.outputs import ModelOutput
from evaluation.scoring import text_metrics

PROMPTS = Path(__file__).parent / "reference_prompts"

USUAL_TOKENS = 350
"""Of an answer, in estimates."""


@dataclasses.dataclass(frozen=True)
class Asking:
    """Whom to ask for references, and how."""

    chat: ChatConfig
    prompt: str  # a file of reference_prompts/, or the path of a .txt file
    generator: str  # name of the answers; "": the model's

    @property
    def name(self) -> str:
        return self.generator or self.chat.model


def requests(items: Sequence[Item], prompt: Prompt) -> list[ChatRequest]:
    """What is asked for each item."""
    filled = [prompt.fill(question=item.text) for item in items]
    return [ChatRequest(system, user, prompt.version) for system, user in filled]


def output(item: Item, generator: str, outcome: ChatAnswer | Failure) -> ModelOutput:
    """What is written for an outcome; empty where there is no answer."""
    if isinstance(outcome, Failure):
        return ModelOutput(item.benchmark, item.id, generator, "", "error")
    return ModelOutput(
        item.benchmark,
        item.id,
        generator,
        outcome.text,
        outcome.finish_reason,
        outcome.output_tokens if outcome.usage_reported else None,
    )


def require_own_workdir(path: Path, benchmark: str, generator: str) -> None:
    """Raises ValueError where `path` holds other answers, which would be lost."""
    if not path.exists():
        return
    where, first = next(jsonl.read(path), ("", {}))
    held = first.get("generator"), first.get("dataset")
    if held != (generator, benchmark):
        raise ValueError(
            f"{where}: holds answers of {held[0]!r} to {held[1]}, not of {generator!r} to "
            f"{benchmark}; choose another --workdir or delete it"
        )


def write(
    workdir: Path, items: Sequence[Item], answers: Sequence[ModelOutput], made: dict[str, Any]
) -> None:
    """Writes references.jsonl and run.json, and prints the counts.

    Args:
      made: what the answers come from, for run.json, from provenance.describe.
    """
    path = workdir / "references.jsonl"
    workdir.mkdir(parents=True, exist_ok=True)
    signals = text_metrics.measure(answers)
    ended = {"counts": dataclasses.asdict(signals), "end": provenance.now()}
    provenance.write_json(workdir / "run.json", made | ended)
    pairs = zip(items, answers, strict=True)
    jsonl.write(path, [outputs.model_output_record(item, answer) for item, answer in pairs])
    print(f"{path}: {signals}", file=sys.stderr)


def run_import(source: str, benchmark: str, data: Path, workdir: Path) -> None:
    """Writes frozen answers as references; see the module's docstring for the arguments."""
    items = benchmarks.load(benchmark, data)
    frozen = outputs.load(source, items, data)
    require_own_workdir(workdir / "references.jsonl", items[0].benchmark, frozen[0].generator)
    file = outputs.locate(source, items, data)[0]
    settings = {
        "import": source,
        "file": {str(file): provenance.sha256(file)},
        "benchmark": items[0].benchmark,
    }
    write(workdir, items, frozen, provenance.describe(config=settings))


def run_ask(asking: Asking, benchmark: str, data: Path, workdir: Path, *, dry_run: bool) -> None:
    """Asks a model for references; see the module's docstring for the arguments.

    Raises:
      FileNotFoundError, ValueError: bad settings or items; some items have no answer, and are
        written as empty ones.
      RunStoppedError: a budget is reached, a signal came, or nothing can be answered; nothing is
        written.
    """
    benchmarks.check_name("generator", asking.name)
    items = benchmarks.load(benchmark, data)
    path = workdir / "references.jsonl"
    require_own_workdir(path, items[0].benchmark, asking.name)
    prompt = Prompt.read(asking.prompt, PROMPTS)
    asked = requests(items, prompt)
    settings = {"benchmark": items[0].benchmark, "asking": dataclasses.asdict(asking)}
    made = provenance.describe(config=settings, prompt_version=prompt.version)
    answers = workdir / "answers.sqlite"
    with AnswerStore(answers, read_only=asking.chat.offline, dry_run=dry_run) as store:
        client = Client(asking.chat, store)
        client.report(str(client.estimate(asked, USUAL_TOKENS)))
        if dry_run:
            return
        outcomes = run_until_done(client, lambda: client.ask_all(asked))
        made["spent"] = dataclasses.asdict(store.total_spent())
    pairs = list(zip(items, outcomes, strict=True))
    write(workdir, items, [output(item, asking.name, outcome) for item, outcome in pairs], made)
    failed = [(item, outcome) for item, outcome in pairs if isinstance(outcome, Failure)]
    if failed:
        item, failure = failed[0]
        raise ValueError(
            f"{len(failed):,} of {len(items):,} items have no answer and are empty in {path}, the "
            f"first {item.id!r}: {failure.reason}; run again to ask them again"
        )


def define_flags() -> None:
    config_flags.DEFINE_config_file(
        "config", None, "Whom to ask: section `chat`.", lock_config=True
    )
    flags.DEFINE_string("benchmark", None, "medinstruct, icliniq, alpaca_farm, FILE or NAME=FILE.")
    flags.DEFINE_string("workdir", None, "Where references.jsonl and the answers go.")
    flags.DEFINE_string("data", "data", "Folder of published files: AlpaCare's data/, or alike.")
    flags.DEFINE_string("import", "", "Frozen answers instead of a model: NAME, FILE, NAME=FILE.")
    flags.DEFINE_string("prompt", "plain", "Name in evaluation/reference_prompts, or a .txt file.")
    flags.DEFINE_string("generator", "", "Name of the model's answers; its own by default.")
    flags.DEFINE_bool("dry_run", False, "Say what is left to ask and what it costs; send nothing.")
    flags.mark_flags_as_required(["benchmark", "workdir"])
    flags.register_multi_flags_validator(
        ["config", "import"],
        lambda given: given["import"] or given["config"] is not None,
        message="give --config for the model to ask, or --import for frozen answers",
    )


def main(argv: Sequence[str]) -> None:
    del argv
    FLAGS = flags.FLAGS
    workdir, data = Path(FLAGS.workdir), Path(FLAGS.data)
    if source := FLAGS["import"].value:
        run_import(source, FLAGS.benchmark, data, workdir)
        return
    config = sections.build(EvaluationConfig, FLAGS.config.to_dict())
    asking = Asking(config.within(config.chat), FLAGS.prompt, FLAGS.generator)
    run_ask(asking, FLAGS.benchmark, data, workdir, dry_run=FLAGS.dry_run)


if __name__ == "__main__":
    define_flags()
    cli.run(main, config=EvaluationConfig)
