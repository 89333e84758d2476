"""Judges model outputs against reference outputs, each pair in both orders.

    python -m evaluation.judge --config=configs/evaluation.py --benchmark=medinstruct \\
        --outputs=alpacare-7b=outputs.jsonl,... --references=gpt-4,claude-2,... --workdir=D \\
        [--data=data] [--ids=3,17] [--difficulty=4,5] [--dry_run]

Every judge of the config judges every output against every reference. Files are given as FILE,
NAME=FILE or FILE#COLUMN; published ones, below --data, by name. For a judge of another model take
another workdir; evaluation.report reads several.

D holds, once all is judged: judgements.jsonl (one line a verdict), items.jsonl and outputs.jsonl
(what was compared) and run.json (how, and counts). D/answers.sqlite holds every reply from the
moment it came. So run the same command again after any end: it asks for what is missing. A run that
stops before its end (budget, Ctrl-C) leaves judgements.jsonl as it was, since a part of the
verdicts would be a biased sample. Where no reply is to be had, because the server refuses this
request or fails every time, the verdict is invalid, and the command ends with an error that says so
once all is written.
"""

import dataclasses
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from absl import flags
from ml_collections import config_flags

from common import cli, jsonl, provenance, sections
from datagen.chat.client import Client, run_until_done
from datagen.chat.store import AnswerStore
from evaluation.config import EvaluationConfig
from evaluation.inputs import benchmarks, outputs
from evaluation.inputs.benchmarks import Item
from evaluation.inputs.outputs import ModelOutput
from evaluation.judging import comparisons, verdicts, workdirs
from evaluation.judging.comparisons import Comparison, Reply
from evaluation.judging.judges import Judge
from evaluation.judging.parsers import INVALID
from evaluation.scoring import text_metrics


def load_judges(sources: str) -> list[Judge]:
    """
    Raises:
      ValueError: none is named, or two have one name.
    """
    judges = [Judge.load(source.strip()) for source in sources.split(",") if source.strip()]
    if not judges:
        raise ValueError("config.judges names no judge")
    _differ("judges", [judge.name for judge in judges])
    return judges


def select(items: Sequence[Item], ids: Sequence[str], difficulty: Sequence[int]) -> list[int]:
    """Positions of the items to judge: those of `ids`, those of a difficulty, both or all.

    Raises:
      ValueError: no item has one of the ids, or none has all that is asked for.
    """
    known, wanted = {item.id for item in items}, set(ids)
    if unknown := sorted(wanted - known):
        raise ValueError(
            f"--ids: {items[0].benchmark} has no item {unknown[0]!r}; its first is {items[0].id!r}"
        )
    chosen = [
        place
        for place, item in enumerate(items)
        if (not wanted or item.id in wanted) and (not difficulty or item.difficulty in difficulty)
    ]
    if not chosen:
        raise ValueError(
            f"no item of {items[0].benchmark} has what --ids and --difficulty ask for; leave one "
            "of them out"
        )
    return chosen


def _differ(what: str, names: Sequence[str]) -> None:
    if twice := [name for name, count in Counter(names).items() if count > 1]:
        raise ValueError(f"{what}: {twice[0]!r} is there twice; give each a name of its own")


def load_systems(
    sources: dict[str, Sequence[str]], items: Sequence[Item], chosen: Sequence[int], data: Path
) -> list[list[list[ModelOutput]]]:
    """For each flag, for each of its sources: the outputs to the chosen items.

    Raises:
      FileNotFoundError, ValueError: as outputs.load; or two systems have one name.
    """
    loaded = []
    for flag_sources in sources.values():
        whole = [outputs.load(source, items, data) for source in flag_sources]
        loaded.append([[system[place] for place in chosen] for system in whole])
    names = [system[0].generator for group in loaded for system in group]
    _differ(" and ".join(f"--{flag}" for flag in sources), names)
    return loaded


def require_all_kept(path: Path, compared: Sequence[Comparison], model: str) -> None:
    """A run repeats a workdir's judgements or adds to them; it takes none away.

    Raises:
      ValueError: `path` holds a judgement that is not asked for now, or is no whole file.
    """
    asked = {tuple(comparisons.names(comparison, model).values()) for comparison in compared}
    fields = tuple(comparisons.names(compared[0], model))
    for where, record in _read_if_there(path):
        if tuple(record.get(field) for field in fields) not in asked:
            what = ", ".join(f"{field} {record.get(field)}" for field in fields)
            raise ValueError(
                f"{where}: a verdict that this run does not ask for ({what}); choose another "
                "--workdir, or ask for all that was asked for before, too"
            )


def require_same_outputs(path: Path, systems: Sequence[Sequence[ModelOutput]]) -> None:
    """Verdicts on one text are not given out as those on another.

    Raises:
      ValueError: `path` holds another output of a system to an item, or is no whole file.
    """
    now = {(o.benchmark, o.generator, o.id): o.output for system in systems for o in system}
    for where, record in _read_if_there(path):
        key = tuple(record.get(field) for field in ("benchmark", "generator", "id"))
        if now.get(key, record.get("output")) != record.get("output"):
            raise ValueError(
                f"{where}: was judged with another answer of {key[1]} to item {key[2]!r} than it "
                "has now; choose another --workdir"
            )


def _read_if_there(path: Path) -> Iterator[tuple[str, jsonl.Record]]:
    if not path.exists():
        return
    try:
        yield from jsonl.read(path)
    except ValueError as error:
        raise ValueError(
            f"{error}; delete {path}: it is written anew, from the replies in answers.sqlite"
        ) from None


class Judging:
    """What is compared with what, by whom; see the flags for the arguments."""

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
        self.items = [everything[place] for place in chosen]
        sources = {"outputs": outputs_from, "references": references_from}
        self.models, self.references = load_systems(sources, everything, chosen, data)
        self.systems = [*self.models, *self.references]
        self.compared = comparisons.pair(self.judges, self.items, self.models, self.references)
        self.replies = [Reply()] * len(self.compared)
        self.description = {
            "config": dataclasses.asdict(config),
            "benchmark": self.items[0].benchmark,
            "ids": list(ids),
            "difficulty": list(difficulty),
            "prompt_versions": {judge.name: judge.version for judge in self.judges},
        }
        for flag, given in sources.items():
            files = {source: outputs.locate(source, everything, data)[0] for source in given}
            self.description[flag] = {
                source: {"file": str(file), "sha256": provenance.sha256(file)}
                for source, file in files.items()
            }

    def estimate(self, client: Client) -> None:
        """Tells what there is to ask, by judge."""
        for judge in self.judges:
            requests = (c.request() for c in self.compared if c.judge is judge)
            estimate = client.estimate(requests, judge.kind.usual_tokens)
            client.report(f"{judge.name}: {estimate}")

    def counts(self) -> dict[str, Any]:
        cut = {
            system[0].generator: sum(map(text_metrics.is_cut, system)) for system in self.references
        }
        about = {"items": len(self.items), "cut_references": cut}
        return comparisons.count(self.compared, self.replies) | about

    def write(self, workdir: Path, run_record: dict[str, Any]) -> None:
        texts = (output.record() for system in self.systems for output in system)
        jsonl.write(workdir / workdirs.ITEMS, (item.record() for item in self.items))
        jsonl.write(workdir / workdirs.OUTPUTS, texts)
        provenance.write_json(workdir / "run.json", run_record)
        model = self.config.chat.model
        pairs = zip(self.compared, self.replies, strict=True)
        judgements = (comparisons.judgement(*pair, model) for pair in pairs)
        jsonl.write(workdir / verdicts.FILE, judgements)  # last: where it is, all are


def run(judging: Judging, workdir: Path, *, dry_run: bool = False) -> None:
    """Judges, and writes the workdir.

    Raises:
      ValueError: the workdir holds verdicts that are not asked for now; or, once all is written,
        some comparisons have no reply, or a judge gave no verdict at all.
      RunStoppedError: the budget is reached, a signal came, or nothing can be answered.
    """
    config = judging.config.within(judging.config.chat)
    require_all_kept(workdir / verdicts.FILE, judging.compared, config.model)
    require_same_outputs(workdir / workdirs.OUTPUTS, judging.systems)
    record = provenance.describe(**judging.description)
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
    ended = {"counts": counts, "spent": spent, "end": provenance.now()}
    judging.write(workdir, record | ended)
    client.report(comparisons.summary(counts))
    if failures := [reply.failure for reply in judging.replies if reply.failure]:
        raise ValueError(
            f"{len(failures):,} of {len(judging.replies):,} comparisons have no reply and are "
            f"invalid in {workdir / verdicts.FILE}; the first failed so: {failures[0]}; run again "
            "to ask for them again"
        )
    if silent := [n for n, found in counts["verdicts"].items() if set(found) == {INVALID}]:
        raise ValueError(
            f"no reply to {', '.join(silent)} holds a verdict; see `raw` in "
            f"{workdir / verdicts.FILE}, and whether {config.model} can follow that prompt within "
            f"max_tokens {config.max_tokens:,}"
        )


def define_flags() -> None:
    config_flags.DEFINE_config_file("config", None, "Config file.", lock_config=True)
    flags.DEFINE_string("benchmark", None, "Test set: a published one's name, FILE or NAME=FILE.")
    flags.DEFINE_list("outputs", None, "Outputs to judge: each FILE, NAME=FILE or NAME.")
    flags.DEFINE_list("references", None, "Outputs to compare them with: the same.")
    flags.DEFINE_string("data", "data", "Folder of published files, such as AlpaCare's data/.")
    flags.DEFINE_string("workdir", None, "Folder for the judgements.")
    flags.DEFINE_list("ids", [], "Only the items of these ids.")
    flags.DEFINE_list("difficulty", [], "Only the items of these difficulties, 1 to 5.")
    flags.DEFINE_bool("dry_run", False, "Only tell requests, tokens, price and time.")
    flags.mark_flags_as_required(["config", "benchmark", "outputs", "references", "workdir"])
    cli.require_entries("outputs", "references")
    flags.register_validator(
        "difficulty",
        lambda levels: set(levels) <= set("12345"),
        message="must be whole numbers from 1 to 5",
    )


def main(argv: Sequence[str]) -> None:
    del argv
    FLAGS = flags.FLAGS
    judging = Judging(
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
    cli.run(main, config=EvaluationConfig)
