"""The stages of a quickstart: their commands, what they read, and what they write."""

import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path

from common import jsonl, records
from common.messages import log
from common.sections import UsageError
from launch.lib.stages import Stage

EVALUATION = "report/evaluation/report.html"
STARTER = Path("datagen/starter")
SMALL_JUDGE = Path("evaluation/prompts/small.txt")
MODEL = "smollm2-135m-instruct"
GENERATION = ("--max_new_tokens=96", "--batch_size=12", "--max_length=320")

NUM_TASKS, NUM_TRAIN, NUM_TEST, NUM_JUDGED = 8, 48, 12, 9
"""Tasks to answer; examples to train on, and to be tested with; test items that are judged: after
20 replies without a verdict a judge is given up, and a small model may never state one."""

API_REQUESTS = ("--config.tasks.num_tasks=8", "--config.tasks.max_requests=6")
BUDGET = "--config.budget_usd=1"
"""Of each of the three commands that ask a model with a price; all of it takes a few cents."""

OWN_ADDRESS = "http://127.0.0.1:0/v1"
"""Stands for the own server's, which is not started where there is nothing to ask."""


@dataclasses.dataclass(frozen=True)
class Teacher:
    """The model that writes tasks, answers them, and judges."""

    base_url: str  # "": OpenAI's
    model: str
    own: bool = False  # the small model, behind a server of ours

    def flags(self, *sections: str) -> list[str]:
        """The overrides that name this model in sections of a config."""
        where = [f"--config.{name}.base_url={self.base_url}" for name in sections]
        return [*where, *(f"--config.{name}.model={self.model}" for name in sections)]


def choose_teacher(base_url: str, model: str) -> Teacher:
    """Who teaches and judges, by the flags and the environment.

    Raises:
      UsageError: one flag lacks the other.
    """
    if base_url:
        if not model:
            raise UsageError("--base_url requires --model, the name that the server knows")
        return Teacher(base_url, model)
    if os.environ.get("OPENAI_API_KEY"):
        return Teacher("", model or "gpt-6-luna")
    if model:
        raise UsageError("--model requires --base_url, or OPENAI_API_KEY in the environment")
    return Teacher(OWN_ADDRESS, MODEL, own=True)


@dataclasses.dataclass(frozen=True)
class Plan:
    """The stages of a run in a folder, for a domain."""

    folder: Path
    domain: str

    @property
    def seeds(self) -> Path:
        """The seed tasks of the domain."""
        own = Path("configs/domains") / self.domain / "seeds.jsonl"
        return STARTER / "seeds.jsonl" if self.domain == "medicine" else own

    def prompts(self, *names: str) -> list[Path]:
        """Files of the domain's prompts."""
        medicine = self.domain == "medicine"
        folder = Path("datagen/prompts") if medicine else Path("configs/domains") / self.domain
        return [folder / f"{name}.txt" for name in names]

    def data(self, teacher: Teacher) -> list[Stage]:
        """Seeds -> tasks -> without near-duplicates -> answers."""
        data, size = self.folder / "data", ",small" if teacher.own else ""
        config = f"--config=configs/datagen.py:{self.domain}{size}"
        kind = "small_" if teacher.own else ""
        priced = [] if teacher.base_url else [BUDGET]
        asking = [config, f"--workdir={data}", *priced]
        tasks, pool, unique = (data / f"{name}.jsonl" for name in ("tasks", "pool", "unique"))
        against = [str(STARTER / f"{name}.jsonl") for name in ("train", "test")]
        limits = [] if teacher.own else API_REQUESTS
        return [
            Stage(
                "tasks",
                f"Tasks: {teacher.model} is shown seeds and writes tasks",
                ["-m", "datagen.tasks", *asking, *teacher.flags("teacher"), *limits],
                [Path("configs/datagen.py"), self.seeds, *self.prompts(f"{kind}tasks")],
                [tasks],
                may_find_nothing="has no task; see",
            ),
            Stage(
                "pool",
                f"Seeds fill up what is missing to {NUM_TASKS} tasks",
                reads=[tasks, self.seeds],
                writes=[pool],
                action=lambda: fill_up(pool, tasks, self.seeds, NUM_TASKS),
            ),
            Stage(
                "dedup",
                "Deduplication, also against the test items",
                ["-m", "datagen.dedup", f"--input={pool}", f"--output={unique}"]
                + [f"--against={','.join(against)}"],
                [pool, *map(Path, against)],
                [unique],
            ),
            Stage(
                "responses",
                f"Responses: {teacher.model} answers the tasks",
                ["-m", "datagen.responses", *asking, *teacher.flags("responder")]
                + [f"--input={unique}"],
                [Path("configs/datagen.py"), unique, *self.prompts(f"{kind}responses")],
                [data / "examples.jsonl"],
                may_find_nothing="has no example; see",
            ),
        ]

    def sets(self) -> list[Stage]:
        """Examples -> what is trained on and tested with, and the page about it."""
        data, output = self.folder / "data", self.folder / "report" / "data"
        examples, train, test = (data / f"{n}.jsonl" for n in ("examples", "train", "test"))
        shown, made = data / "unique.jsonl", []  # tasks, in a domain without starter examples
        if self.domain == "medicine":
            shown, starter = train, [STARTER / f"{name}.jsonl" for name in ("train", "test")]

            def choose() -> None:
                fill_up(train, examples, starter[0], NUM_TRAIN)
                fill_up(test, None, starter[1], NUM_TEST)

            title = (
                f"Starter examples fill up what is missing to {NUM_TRAIN}; {NUM_TEST} test items"
            )
            reads, writes = [examples, *starter], [train, test]
            made = [Stage("sets", title, reads=reads, writes=writes, action=choose)]
        return [
            *made,
            Stage(
                "stats",
                "The page about the data",
                ["-m", "datagen.stats", f"--input={shown},{self.seeds}"]
                + ["--names=Data,Seeds", f"--output={output}"],
                [shown, self.seeds],
                [output / "stats.html"],
            ),
        ]

    def training(self) -> list[Stage]:
        """Answers before, an adapter, answers after."""
        base, run, test = self.folder / "base", self.folder / "run", self.folder / "data/test.jsonl"
        config = Path("configs/quickstart.py")
        made = run / "run.json"
        weights = sorted(base.glob("checkpoints/*/manifest.json"))

        def answers(name: str, title: str, *more: str, reads: Sequence[Path] = ()) -> Stage:
            output = self.folder / f"{name}.json"
            command = ["-m", "alpacare_jax.generate", f"--checkpoint={base}", *more, *GENERATION]
            command += [f"--input={test}", f"--output={output}", f"--generator={name}"]
            return Stage(name, title, command, [test, *weights, *reads], [output])

        return [
            answers("before", "Answers of the base model to the test items"),
            Stage(
                "train",
                "Training: an adapter, one epoch",
                ["-m", "alpacare_jax.train", f"--workdir={run}"]
                + [f"--config={config}:short,dir={self.folder}"],
                [config, self.folder / "data/train.jsonl", test, *weights],
                [run / "metrics.jsonl", made],
            ),
            answers("after", "Answers of the tuned model", f"--adapter={run}", reads=[made]),
        ]

    def judging(self, teacher: Teacher) -> list[Stage]:
        """Which answers are better, in both orders; the report."""
        judged = self.folder / "judged"
        answers = [self.folder / "after.json", self.folder / "before.json"]
        size = ":small" if teacher.own else ""
        priced = [] if teacher.base_url else [BUDGET]
        test = self.folder / "data/test.jsonl"
        ids = [record["id"] for record in records.read_records(test)][:NUM_JUDGED]
        return [
            Stage(
                "judge",
                f"Judging: {teacher.model} compares the answers in both orders",
                ["-m", "evaluation.judge", f"--config=configs/evaluation.py{size}", *priced]
                + [f"--benchmark=starter={test}", f"--outputs={answers[0]}"]
                + [f"--references={answers[1]}", f"--ids={','.join(ids)}", f"--workdir={judged}"]
                + teacher.flags("chat"),
                [
                    Path("configs/evaluation.py"),
                    SMALL_JUDGE,
                    test,
                    *answers,
                ],
                [judged / "judgements.jsonl"],
                may_find_nothing="no reply to .* states a verdict",
            )
        ]

    def report(self) -> list[Stage]:
        """Verdicts -> win rates, and a page."""
        judgements, output = self.folder / "judged/judgements.jsonl", self.folder / EVALUATION
        command = ["-m", "evaluation.report", f"--judgements={judgements.parent}"]
        command += [f"--output={output.parent}"]
        return [Stage("report", "The evaluation report", command, [judgements], [output])]


def fill_up(output: Path, first: Path | None, rest: Path, count: int) -> None:
    """Writes the records of `first`, and from `rest`, without input, those missing to `count`."""
    found = records.read_records(first) if first and first.stat().st_size else []
    more = [record for record in records.read_records(rest) if not record["input"]]
    kept = [*found, *more[: max(0, count - len(found))]]
    jsonl.write(output, kept)
    log(f"  {output}: {len(found)} new, {len(kept) - len(found)} of {rest}")
