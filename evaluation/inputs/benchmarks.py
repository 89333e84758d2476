"""Test sets: published ones by name, and any file of instructions.

    items = load("medinstruct", data)            # by name, below a folder of published files
    items = load("cardiology.jsonl", data)       # any file of instructions
    items = load("cardiology=test.jsonl", data)  # the same, with another name

The folder is `data/` of the original repository (XZhang97666/AlpaCare), or one with the layout
`testsets/`, `references/NAME/`, `model_outputs/NAME/`. Where the original repository has no file
for a test set, its items are read from the published outputs, which repeat them.
"""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from common import jsonl, records
from common.sections import UsageError

FILE_ENDINGS = (".jsonl", ".json", ".csv", ".tsv", ".parquet")


@dataclasses.dataclass(frozen=True)
class Item:
    """One question of a test set."""

    id: str
    benchmark: str
    instruction: str
    input: str  # "" when there is none
    topic: str = ""  # "" where unknown
    difficulty: int | None = None  # 1 to 5

    @property
    def text(self) -> str:
        """The prompt to a model: instruction and input as one text, as in the paper."""
        return records.join_text(self.instruction, self.input)


@dataclasses.dataclass(frozen=True)
class Benchmark:
    """A published test set."""

    size: int  # items
    published_names: tuple[str, ...]  # used in the names of published files and folders
    files: tuple[str, ...]  # patterns below the data folder; the first match is read
    topic_field: str = "topic"
    columns: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """Models whose answers the files contain -> the field with their answers."""


BENCHMARKS = {
    # 216 items, not the paper's 217: ids run from 0 to 216 without 143.
    "medinstruct": Benchmark(
        size=216,
        published_names=("medinstruct", "medsi"),
        files=("testsets/MedInstruct-test.jsonl", "MedInstruct-test.jsonl"),
        columns={
            "gpt-4": "gpt-4-answer",
            "gpt-3.5-turbo": "gpt-3.5-turbo-answer",
            "text-davinci-003": "text-davinci-003-answer",
            "claude-2": "claude-2",
        },
    ),
    # Patients' posts under one instruction; published references repeat only the posts.
    "icliniq": Benchmark(
        size=1000,
        published_names=("icliniq", "iCliniq"),
        files=("testsets/iCliniq_1000.json", "model_ouputs/*/iCliniq/seed_0.json"),
    ),
    # 208 items have an input, which published outputs merge into the instruction.
    "alpaca_farm": Benchmark(
        size=805,
        published_names=("alpaca_farm", "alpaca_eval"),
        files=(
            "testsets/alpaca_farm_805.json",
            "model_ouputs/medalpaca-7b/alpaca_eval/seed_0.json",  # has dataset and output
            "model_ouputs/*/alpaca_eval/seed_0.json",
        ),
        topic_field="dataset",
        columns={"text-davinci-003": "output"},  # the model's own answers are `response`
    ),
}


def split_source(source: str) -> tuple[str, str]:
    """(name, file) of "NAME", "FILE" or "NAME=FILE"; "" for the missing part.

    >>> split_source("gpt-4"), split_source("x/y.json.gz"), split_source("gpt-4=y.jsonl#answer")
    (('gpt-4', ''), ('', 'x/y.json.gz'), ('gpt-4', 'y.jsonl#answer'))
    """
    name, equals, file = source.partition("=")
    if equals and ("/" not in name or Path(file.partition("#")[0]).exists()):
        return name, file  # but runs/learning_rate=2e-5/answers.json is a path
    is_file = source.partition("#")[0].lower().removesuffix(".gz").endswith(FILE_ENDINGS)
    return ("", source) if is_file else (source, "")


def published(data: Path, patterns: Sequence[str]) -> Iterator[Path]:
    """Files below `data` by pattern, gzipped or not, in the order of the patterns."""
    for pattern in patterns:
        yield from sorted(path for end in ("", ".gz") for path in data.glob(pattern + end))


def official_name(name: str) -> str:
    """The name in BENCHMARKS of a name that published files use; other names are unchanged.

    >>> official_name("medsi"), official_name("alpaca_eval"), official_name("cardiology")
    ('medinstruct', 'alpaca_farm', 'cardiology')
    """
    return next((own for own, b in BENCHMARKS.items() if name in b.published_names), name)


def check_name(location: str, name: str) -> str:
    """The `name` of a benchmark, a system or a judge, if figures and tables can display it.

    Raises:
      ValueError: it is empty, or contains control characters such as a change of direction.
    """
    if not (name.strip() and name.isprintable()):
        raise ValueError(
            f"{location}: the name {name!r:.40} cannot be displayed; give one of printable "
            "characters: NAME=FILE"
        )
    return name


def load(benchmark: str, data: Path) -> list[Item]:
    """The items of a test set, in its file's order.

    Args:
      benchmark: a name of BENCHMARKS, a file of instructions, or NAME=FILE.
      data: folder of the published files, in which names are looked up.

    Raises:
      FileNotFoundError: the file does not exist.
      ValueError: the name is unknown, a record is malformed, an id is a duplicate, or a published
        set does not have its size in BENCHMARKS.
    """
    name, path = locate(benchmark, data)
    items = read(path, name)
    if not split_source(benchmark)[1] and len(items) != BENCHMARKS[name].size:
        raise ValueError(
            f"{path}: {len(items):,} items, {name} has {BENCHMARKS[name].size:,}; use the complete "
            f"file, or give a part of it another name: NAME={path}"
        )
    return items


def locate(benchmark: str, data: Path) -> tuple[str, Path]:
    """(name, file) of a test set; the arguments are those of `load`."""
    name, file = split_source(benchmark)
    name = official_name(name or Path(file).name.partition(".")[0])
    check_name(f"benchmark {benchmark!r}", name)
    return name, Path(file) if file else find(name, data)


def find(name: str, data: Path) -> Path:
    """The file of a published test set."""
    if name not in BENCHMARKS:
        raise UsageError(
            f"no benchmark {name!r}; choose from {', '.join(BENCHMARKS)}, or give a .jsonl file"
        )
    if path := next(published(data, BENCHMARKS[name].files), None):
        return path
    raise FileNotFoundError(
        f"{name}: none of {', '.join(BENCHMARKS[name].files)} is in {data}/; give the folder of "
        f"the published files (AlpaCare's data/), or {name}=FILE"
    )


def read(path: Path, name: str) -> list[Item]:
    """The items of a file, as those of benchmark `name`; the default `id` is the position."""
    topic = BENCHMARKS[name].topic_field if name in BENCHMARKS else "topic"
    found = records.read_records(path)
    records.require_unique_ids(path, (r["id"] for r in found), "outputs are matched by id")
    return [
        Item(
            id=record["id"],
            benchmark=name,
            instruction=record["instruction"],
            input=record["input"],
            topic=jsonl.text(str(path), {topic: str(record.get(topic) or "")}, topic),
            difficulty=records.difficulty(record.get("difficulty")),
        )
        for record in found
    ]
