"""Judges model outputs against reference outputs, each pair in both orders.

    python -m evaluation.judge --config=configs/evaluation.py --benchmark=medinstruct \\
        --outputs=alpacare-7b=outputs.jsonl,... --references=gpt-4,claude-2,... --workdir=D \\
        [--data=data] [--ids=3,17] [--difficulty=4,5] [--dry_run]

Every judge of the config judges every output against every reference. Files are given as FILE,
NAME=FILE or FILE#COLUMN; published ones, below --data, by name. Use a separate workdir for each
judging model; evaluation.report reads several.

A complete run writes judgements.jsonl (one verdict per line), items.jsonl and outputs.jsonl (what
was compared) and run.json (settings and counts) into D. D/answers.sqlite stores every reply as soon
as it arrives, so an interrupted run resumes with the same command. A run that stops early (budget,
Ctrl-C) does not change judgements.jsonl, since part of the verdicts would be a biased sample. Where
the server rejects a request or always fails, the verdict is invalid, and the command ends with an
error after everything is written.
"""

import dataclasses
import itertools
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from absl import flags
from ml_collections import config_flags

from common import cli, data_file, jsonl, provenance, records, sections
from common.sections import UsageError
from datagen.chat.client import Client, run_until_done
from datagen.chat.config import environment
from datagen.chat.errors import require_answers
from datagen.chat.store import AnswerStore
from evaluation.config import EvaluationConfig
from evaluation.inputs import benchmarks, outputs
from evaluation.inputs.benchmarks import Item
from evaluation.inputs.outputs import ModelOutput
from evaluation.judgements import workdirs
from evaluation.judgements.verdicts import JUDGEMENTS_FILE, Verdict
from evaluation.judging import comparisons
from evaluation.judging.comparisons import Comparison, Reply
from evaluation.judging.judges import Judge
from evaluation.scoring import text_metrics


def load_judges(sources: str) -> list[Judge]:
    """The judges of a comma-separated list, at least one, each with another name."""
    judges = [Judge.load(source.strip()) for source in sources.split(",") if source.strip()]
    if not judges:
        raise UsageError("config.judges is empty; name at least one judge")
    _require_unique("judges", [judge.name for judge in judges])
    return judges


def select(items: Sequence[Item], ids: Sequence[str], difficulty: Sequence[int]) -> list[int]:
    """Positions of the items to judge: with one of `ids` and of `difficulty`, if given."""
    known, wanted = {item.id for item in items}, set(ids)
    if unknown := sorted(wanted - known):
        raise UsageError(
            f"--ids: {items[0].benchmark} has no item {unknown[0]!r}; its first is {items[0].id!r}"
        )
    chosen = [
        position
        for position, item in enumerate(items)
        if (not wanted or item.id in wanted) and (not difficulty or item.difficulty in difficulty)
    ]
    if not chosen:
        raise UsageError(
            f"no item of {items[0].benchmark} matches --ids and --difficulty; omit one of them"
        )
    return chosen


def _require_unique(kind: str, names: Sequence[str]) -> None:
    for name, count in Counter(names).items():
        if count > 1:
            raise UsageError(f"{kind}: duplicate name {name!r}; names must be unique")


def load_systems(
    sources: dict[str, Sequence[str]], items: Sequence[Item], chosen: Sequence[int], data: Path
) -> list[list[list[ModelOutput]]]:
    """For each flag, for each of its sources: the outputs to the chosen items."""
    loaded = []
    for flag_sources in sources.values():
        systems = [outputs.load(source, items, data) for source in flag_sources]
        loaded.append([[system[position] for position in chosen] for system in systems])
    names = [system[0].generator for group in loaded for system in group]
    _require_unique(" and ".join(f"--{flag}" for flag in sources), names)
    return loaded


def require_all_kept(path: Path, compared: Sequence[Comparison], model: str) -> None:
    """Requires that a run repeats a workdir's judgements in `path` or adds to them."""
    requested = {tuple(comparisons.names(comparison, model).values()) for comparison in compared}
    fields = tuple(comparisons.names(compared[0], model))
    for location, record in _read_existing(path):
        if tuple(record.get(field) for field in fields) not in requested:
            names = ", ".join(f"{field} {record.get(field)}" for field in fields)
            raise ValueError(
                f"{location}: this run does not request this verdict ({names}); choose another "
                "--workdir, or include all earlier items, systems and judges"
            )


def require_same_outputs(path: Path, systems: Sequence[Sequence[ModelOutput]]) -> None:
    """Requires that a workdir's verdicts are on the same texts as its `path` contains."""
    outputs_now: dict[tuple[str, ...], str] = {
        (o.benchmark, o.generator, o.id): o.output for group in systems for o in group
    }
    for location, record in _read_existing(path):
        key = tuple(str(record.get(field)) for field in ("benchmark", "generator", "id"))
        judged = record.get("output")
        if outputs_now.get(key, judged) != judged:
            raise ValueError(
                f"{location}: judged with another answer of {key[1]} to item {key[2]!r} than the "
                "present one; choose another --workdir"
            )


def _read_existing(path: Path) -> Iterator[tuple[str, jsonl.Record]]:
    if not path.exists():
        return
    try:
        yield from data_file.read(path)
    except ValueError as error:
        raise ValueError(
            f"{error}; delete {path}: it is rebuilt from the replies in answers.sqlite"
        ) from None


class JudgingRun:
    """All comparisons of a run and their replies; see the flags for the arguments."""

    def __init__(
        self,
        config: EvaluationConfig,
        *,
        benchmark: str,
        outputs_from: Sequence[str],
        references_from: Sequence[str],
        data: Path,
        ids: Sequence[str] = (),
        difficulty: Sequence[int] = (),
    ):
        self.config = config
        self.judges = load_judges(config.judges)
        for judge in self.judges:
            benchmarks.check_name("judge", f"{judge.name}/{config.chat.model}")
        everything = benchmarks.load(benchmark, data)
        chosen = select(everything, ids, difficulty)
        self.items = [everything[position] for position in chosen]
        sources = {"outputs": outputs_from, "references": references_from}
        self.models, self.references = load_systems(sources, everything, chosen, data)
        self.systems = [*self.models, *self.references]
        self.compared = comparisons.pair(self.judges, self.items, self.models, self.references)
        self.replies = [Reply()] * len(self.compared)
        self.description = {
            "config": dataclasses.asdict(config),
            "benchmark": self.items[0].benchmark,
            "benchmark_sha256": provenance.sha256(benchmarks.locate(benchmark, data)[1]),
            "ids": list(ids),
            "difficulty": list(difficulty),
            "prompt_versions": {judge.name: judge.version for judge in self.judges},
            "prompts": {
                judge.version: {"system": judge.prompt.system, "user": judge.prompt.user}
                for judge in self.judges
            },
        }
        for flag, given in sources.items():
            files = {source: outputs.locate(source, everything, data)[0] for source in given}
            self.description[flag] = {
                source: {"file": str(file), "sha256": provenance.sha256(file)}
                for source, file in files.items()
            }

    def estimate(self, client: Client) -> None:
        """Reports what remains to be requested, by judge."""
        for judge in self.judges:
            requests = (c.request() for c in self.compared if c.judge is judge)
            estimate = client.estimate(requests, judge.spec.typical_tokens)
            client.report(f"{judge.name}: {estimate}")

    def counts(self) -> dict[str, Any]:
        """The counts for run.json."""
        cut = {
            system[0].generator: sum(map(text_metrics.is_cut, system)) for system in self.references
        }
        counts = comparisons.count(self.compared, self.replies)
        empty = {
            system[0].generator: sum(not output.output.strip() for output in system)
            for system in self.systems
        }
        return counts | {"items": len(self.items), "cut_references": cut, "empty_answers": empty}

    def write(self, workdir: Path, run_record: dict[str, Any]) -> None:
        """Writes the workdir."""
        answers = itertools.chain.from_iterable(self.systems)
        jsonl.write(workdir / workdirs.ITEMS_FILE, map(dataclasses.asdict, self.items))
        jsonl.write(workdir / workdirs.OUTPUTS_FILE, map(dataclasses.asdict, answers))
        model = self.config.chat.model
        pairs = zip(self.compared, self.replies, strict=True)
        judgements = (comparisons.judgement(*pair, model) for pair in pairs)
        # Last: it marks a complete run.
        jsonl.write_output(workdir / JUDGEMENTS_FILE, judgements, run_record, workdir / "run.json")


def run(judging: JudgingRun, workdir: Path, *, dry_run: bool = False) -> None:
    """Judges, and writes the workdir.

    Raises:
      ValueError: the workdir contains verdicts that this run does not request; or, after everything
        is written, some comparisons have no reply, or a judge gave no verdict at all.
      RunStoppedError: the budget is reached, a signal arrived, or no request can be answered.
    """
    config = judging.config.within(judging.config.chat)
    require_all_kept(workdir / JUDGEMENTS_FILE, judging.compared, config.model)
    require_same_outputs(workdir / workdirs.OUTPUTS_FILE, judging.systems)
    asked = ((item.id, item.text) for item in judging.items)
    records.require_kept([workdir / workdirs.ITEMS_FILE], asked, judging.items[0].benchmark)
    record = provenance.describe(**judging.description, environment=environment())
    answers = workdir / "answers.sqlite"
    with AnswerStore(answers, read_only=config.offline, dry_run=dry_run) as store:
        client = Client(config, store)
        judging.estimate(client)
        if dry_run:
            return
        reasks = judging.config.reasks
        run_until_done(
            client, lambda: comparisons.ask(client, judging.compared, reasks, judging.replies)
        )
        spent = dataclasses.asdict(store.total_spent())
    counts = judging.counts()
    judging.write(workdir, record | {"counts": counts, "spent": spent})
    client.report(comparisons.summary(counts))
    failures = [reply.failure for reply in judging.replies if reply.failure]
    if refused := [failure for failure in failures if failure.own]:
        client.report(f"{len(refused):,} comparisons are refused; the first: {refused[0].reason}")
    require_answers(failures, len(judging.replies), workdir / JUDGEMENTS_FILE)
    if silent := [n for n, found in counts["verdicts"].items() if set(found) == {Verdict.INVALID}]:
        raise ValueError(
            f"no reply to {', '.join(silent)} states a verdict; check `raw` in "
            f"{workdir / JUDGEMENTS_FILE}, and whether {config.model} can follow the prompt within "
            f"max_tokens {config.max_tokens:,}"
        )


def define_flags() -> None:
    """Defines the flags of this command."""
    config_flags.DEFINE_config_file("config", None, "Config file.", lock_config=True)
    flags.DEFINE_string("benchmark", None, "Test set: published NAME, FILE or NAME=FILE.")
    flags.DEFINE_list("outputs", None, "Outputs to judge: each FILE, NAME=FILE or published NAME.")
    flags.DEFINE_list("references", None, "Outputs to compare them with, in the same form.")
    flags.DEFINE_string("data", "data", "Folder of published files, such as AlpaCare's data/.")
    flags.DEFINE_string("workdir", None, "Folder for the judgements.")
    flags.DEFINE_list("ids", [], "Only items with these ids.")
    flags.DEFINE_list("difficulty", [], "Only items of these difficulties, 1 to 5.")
    flags.DEFINE_bool("dry_run", False, "Only estimate requests, tokens, cost and time.")
    flags.mark_flags_as_required(["config", "benchmark", "outputs", "references", "workdir"])
    cli.require_entries("outputs", "references")
    flags.register_validator(
        "difficulty",
        lambda levels: set(levels) <= set("12345"),
        message="must be whole numbers from 1 to 5",
    )


def main(argv: Sequence[str]) -> None:
    """Runs the command."""
    del argv
    FLAGS = flags.FLAGS
    judging = JudgingRun(
        sections.build(EvaluationConfig, FLAGS.config.to_dict()),
        benchmark=FLAGS.benchmark,
        outputs_from=FLAGS.outputs,
        references_from=FLAGS.references,
        data=Path(FLAGS.data),
        ids=FLAGS.ids,
        difficulty=[int(level) for level in FLAGS.difficulty],
    )
    run(judging, Path(FLAGS.workdir), dry_run=FLAGS.dry_run)


if __name__ == "__main__":
    define_flags()
    cli.run(main, config=EvaluationConfig, output="workdir")
