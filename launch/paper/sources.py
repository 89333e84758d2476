"""What the stages work on: the systems, the test sets, and where files are."""

import dataclasses
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from etils import epath

from common import cli, jsonl, paths, provenance, sections
from datagen.config import DatagenConfig
from evaluation.config import EvaluationConfig
from evaluation.inputs import benchmarks, outputs
from evaluation.inputs.benchmarks import Item
from launch.lib.stage import entries, resolved
from launch.paper.config import BenchmarkConfig, PaperConfig

OWN_DATA = "data/MedInstruct-52k.json"
"""The data of the rows of configs/baselines.py that are AlpaCare's."""


@dataclasses.dataclass(frozen=True)
class System:
    """A model that answers the test sets here."""

    name: str
    folder: epath.Path  # of the model, or of the adapter
    base: str = ""  # the model that an adapter is of
    flags: Sequence[str] = ()  # of alpacare_jax.train; (): it is trained
    inputs: Sequence[epath.Path] = ()  # of its training: data and base model

    @property
    def model(self) -> list[str]:
        """The flags that name it."""
        adapter = [f"--adapter={self.folder}"] if self.base else []
        return [f"--checkpoint={self.base or self.folder}", *adapter]


@dataclasses.dataclass(frozen=True)
class TestSet:
    """A test set, and who answers it without our help."""

    name: str
    items: Sequence[Item]
    file: epath.Path  # that `Sources.write_items` writes
    references: Sequence[str]  # published ones
    live: Mapping[str, epath.Path]  # references that are asked for -> their file
    imported: Sequence[str]
    published: Sequence[epath.Path]  # files of the published answers


class Sources:
    """The systems and test sets of a config.

    Raises:
      FileNotFoundError, ValueError: the config is wrong, or published files are missing or do not
        match: before anything is spent.
    """

    def __init__(self, config: PaperConfig, workdir: Path):
        self.config, self.workdir = config, epath.Path(workdir)
        self.devices = epath.Path(config.devices.folder or workdir)
        self.datagen = sections.build(DatagenConfig, config.datagen)
        self.live = evaluations("live", config.live)
        self.judges = evaluations("judges", config.judges)
        self.sets = [self._test_set(name, given) for name, given in config.benchmarks.items()]
        self.examples = epath.Path(config.examples or self.workdir / "data/examples.jsonl")
        self.systems = [self._system(entry) for entry in entries(config.trained)]

    def far(self, path: epath.Path) -> epath.Path:
        """Where the devices find a file of the workdir."""
        here = not self.config.devices.folder or paths.in_bucket(path)
        return path if here else self.devices / "inputs" / path.name

    def answers(self, system: System, test_set: TestSet) -> epath.Path:
        """A system's answers on this machine."""
        return self.workdir / "outputs" / self.config.mode / system.name / f"{test_set.name}.json"

    def write_items(self) -> None:
        """Writes the test sets in one form, where they differ from what is there."""
        for test_set in self.sets:
            test_set.file.parent.mkdir(parents=True, exist_ok=True)
            known = benchmarks.BENCHMARKS.get(test_set.name)
            field = known.topic_field if known else "topic"
            rows = (dataclasses.asdict(item) | {field: item.topic} for item in test_set.items)
            text = "".join(map(jsonl.line, rows))
            if not test_set.file.exists() or test_set.file.read_text() != text:
                provenance.write_text(test_set.file, text)

    def _test_set(self, name: str, given: Mapping[str, Any]) -> TestSet:
        try:
            keys = BenchmarkConfig(**given)
        except TypeError as error:
            raise sections.UsageError(f"benchmarks.{name}: {error}") from None
        folder, references = Path(self.config.published), entries(keys.references)
        items = benchmarks.load(f"{name}={keys.file}" if keys.file else name, folder)
        known = [source for source in references if source not in self.live]
        published = [*known, *entries(keys.imported)]
        for source in published:
            outputs.load(source, items, folder)  # raises where they do not match
        if not references or not (entries(self.config.trained) or entries(keys.imported)):
            raise sections.UsageError(
                f"benchmarks.{name} compares nothing; name references, and imported or trained "
                "systems"
            )
        made = self.workdir / "references"
        return TestSet(
            name,
            items,
            self.workdir / "testsets" / f"{name}.jsonl",
            known,
            {n: made / n / name / "references.jsonl" for n in references if n in self.live},
            entries(keys.imported),
            [epath.Path(outputs.locate(source, items, folder)[0]) for source in published],
        )

    def _system(self, entry: str) -> System:
        name, equals, folder = entry.partition("=")
        if equals:
            return System(name, epath.Path(folder))
        row, changes = f"configs/baselines.py:{name}", ""
        usual = sections.flatten(cli.load_config(row))
        if usual["data.path"] == OWN_DATA:
            changes += f",data={self.far(self.examples)}"
        if usual["model.checkpoint"].startswith("runs/"):  # another system of the table
            changes += f",checkpoint={self.devices / usual['model.checkpoint']}"
        flags = [f"--config={row}{changes}", *shlex.split(self.config.flags.train)]
        config = resolved(flags)
        data, base = config["data.path"], config["model.checkpoint"]
        adapted = base if config["lora.rank"] else ""
        inputs = [epath.Path(data), epath.Path(base)]
        return System(name, self.devices / "runs" / name, adapted, flags, inputs)


def evaluations(section: str, models: Mapping[str, Any]) -> dict[str, EvaluationConfig]:
    """The models of a section, by name, each checked."""
    found = {}
    for name, settings in models.items():
        try:
            found[name] = sections.build(EvaluationConfig, settings)
        except sections.UsageError as error:
            raise sections.UsageError(f"{section}.{name}: {error}") from None
    return found
