"""A rubric run: what is graded, the gradings with their replies, and the scores they give."""

import dataclasses
import hashlib
import json
import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from common import provenance
from common.jsonl import Record
from common.sections import UsageError
from datagen.chat.config import ChatConfig
from evaluation.config import EvaluationConfig
from evaluation.grading import answers, grader, physicians, rubrics, scores
from evaluation.grading.grader import Grade, Grading
from evaluation.grading.rubrics import LabelledAnswer, RubricExample
from evaluation.inputs import benchmarks
from evaluation.inputs.outputs import ModelOutput
from evaluation.judging import comparisons
from evaluation.judging.comparisons import Reply

EXAMPLES_SEED = 0
"""simple-evals' own: the same --examples are drawn."""


@dataclasses.dataclass(frozen=True)
class RubricSettings:
    """What to grade, and how; see the flags."""

    input: str
    outputs: Sequence[str] = ()
    base_url: str = ""
    model: str = ""
    generator: str = ""
    max_tokens: int = 2048
    prompt: str = "rubric"
    examples: int = 0  # 0: all
    repeats: int = 1

    @property
    def source(self) -> tuple[str, Path]:
        """(name, file) of the input."""
        name, file = benchmarks.split_source(self.input)
        path = Path(file or name)
        name = name if file and name else path.name.split(".")[0]
        return benchmarks.check_name("--input", name), path


class RubricRun:
    """The answers, their gradings, and the replies to these."""

    def __init__(self, config: EvaluationConfig, settings: RubricSettings):
        self.config, self.settings = config, settings
        self.grader = config.within(config.chat)
        self.benchmark, path = settings.source
        self.prompt = grader.load_prompt(settings.prompt)
        rows = _drawn(rubrics.read(path), settings.examples)
        self.examples = [row for row in rows if isinstance(row, RubricExample)]
        self.labelled = [row for row in rows if isinstance(row, LabelledAnswer)]
        self.items = [example.item(self.benchmark) for example in self.examples]
        self.system: ChatConfig | None = None
        self._require_answers_of(path)
        self.answers: dict[str, list[ModelOutput]] = {}
        for own in answers.load(settings.outputs, self.items):
            self._add(own)
        if settings.base_url:
            self.system = answers.system_config(
                self.grader, settings.base_url, settings.model, settings.max_tokens
            )
            benchmarks.check_name("--generator", self.live_name)
        self.gradings: list[Grading] = []
        self.replies: list[Reply] = []
        self.input = {"file": path.name, "sha256": provenance.sha256(path)}

    def _require_answers_of(self, path: Path) -> None:
        given = bool(self.settings.outputs or self.settings.base_url)
        if self.labelled and given:
            raise UsageError(
                f"{path} has answers with physicians' labels, so it takes no --outputs and no "
                "--base_url"
            )
        if self.examples and not given:
            raise UsageError("give the answers to grade: --outputs=FILE,... or --base_url=URL")

    @property
    def live_name(self) -> str:
        """The generator of the answers of --base_url."""
        return self.settings.generator or (self.system.model if self.system else "")

    def _add(self, own: list[ModelOutput]) -> None:
        name = own[0].generator
        if name in self.answers:
            raise UsageError(f"duplicate name {name!r} of answers; names must be unique")
        self.answers[name] = own

    def add_live(self, outcomes: Sequence[Any]) -> None:
        """Takes the answers of --base_url; empty where the model refused or failed."""
        pairs = zip(self.items, outcomes, strict=True)
        self._add([answers.output(item, self.live_name, outcome) for item, outcome in pairs])

    def prepare(self) -> None:
        """Makes the gradings: for each system and repeat, every criterion of every example."""
        repeats = range(self.settings.repeats)
        self.gradings = [
            Grading(self.prompt, row.turns, row.answer, row.criterion, repeat)
            for repeat in repeats
            for row in self.labelled
        ] or [
            Grading(self.prompt, example.turns, answer.output, str(criterion), repeat)
            for own in self.answers.values()
            for repeat in repeats
            for example, answer in zip(self.examples, own, strict=True)
            for criterion in example.criteria
        ]
        self.replies = [Reply()] * len(self.gradings)

    def score(self) -> dict[str, Any]:
        """What rubric.json holds beyond the settings, as dataclasses."""
        verdicts = np.array([str(reply.verdict) for reply in self.replies], dtype=object)
        if self.labelled:
            table = verdicts.reshape(self.settings.repeats, -1)
            first = list(table[0])
            found = {"overall": physicians.agreement(self.labelled, first)}
            repeats = [physicians.agreement(self.labelled, list(row)).macro_f1 for row in table]
            return {
                "agreement": found | dict(physicians.by_category(self.labelled, first)),
                "repeats": repeats,
            }
        sizes = [len(example.criteria) for example in self.examples]
        by_system = verdicts.reshape(len(self.answers), self.settings.repeats, sum(sizes))
        cuts = np.cumsum(sizes)[:-1]
        return {
            "systems": {
                name: scores.system_scores(
                    self.examples, [o.output for o in own], np.split(table, cuts, axis=1)
                )
                for (name, own), table in zip(self.answers.items(), by_system, strict=True)
            }
        }

    def grade_lines(self) -> Iterator[Record]:
        """The lines of grades.jsonl."""
        for about, grading, reply in zip(self._about(), self.gradings, self.replies, strict=True):
            answer = reply.answer
            yield about | {
                "rubric": grading.criterion,
                "repeat": grading.repeat,
                "criteria_met": {Grade.MET: True, Grade.NOT_MET: False}.get(Grade(reply.verdict)),
                "raw": answer.text if answer else "",
                "grader": self.grader.model,
                "prompt_version": self.prompt.version,
                "usage": comparisons.usage(answer),
                "asked": reply.asked,
            }

    def _about(self) -> Iterator[Record]:
        """Of each grading, what it is about, in the order of `prepare`."""
        for _ in range(self.settings.repeats):
            for row in self.labelled:
                yield {"id": row.conversation, "category": row.category, "labels": row.labels}
        for name in self.answers:
            for _ in range(self.settings.repeats):
                for example in self.examples:
                    for number, _ in enumerate(example.criteria):
                        yield {"id": example.id, "generator": name, "criterion": number}

    def kept(self) -> dict[str, Any]:
        """What a later run with the same workdir must have again."""
        digests = {
            name: hashlib.sha256(json.dumps([o.output for o in own]).encode()).hexdigest()
            for name, own in self.answers.items()
        }
        return {"input": self.input, "prompt": self.prompt.version, "answers": digests}


def _drawn(rows: Sequence[Any], count: int) -> Sequence[Any]:
    """`count` of the rows, drawn as simple-evals draws them; 0: all."""
    if not count or count >= len(rows):
        return rows
    return random.Random(EXAMPLES_SEED).sample(list(rows), count)
