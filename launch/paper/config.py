"""The config of the pipeline, configs/paper.py."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from common import sections


@dataclasses.dataclass(frozen=True)
class FlagsConfig:
    """Further flags of a stage's command, as one would type them."""

    train: str  # such as --config.sharding.tensor=2
    generate: str  # such as --batch_size=64
    choices: str  # such as --method=letter
    rubric: str  # such as --repeats=3
    serve: str  # of the servers that choices and rubric ask, such as --weights=int8
    report: str  # such as --systems=FILE


@dataclasses.dataclass(frozen=True)
class DevicesConfig:
    """Where training and generation run, and the machine for which they are planned."""

    train_launcher: str  # put in front of the command, such as "bash launch/tpu_run.sh run ... --"
    generate_launcher: str  # the same, on one host; "": here
    folder: str  # where they read and write, such as gs://BUCKET/paper; "": the workdir
    topology: str  # of their plans, as alpacare_jax.plan has it; "": no plans
    price: float | None  # of a chip-hour, in any currency; None: unknown
    example_tokens: int  # mean length of a training example
    new_tokens: int  # mean length of an answer
    slots: int  # answers at a time
    generate: str  # further flags of plans of generation: the mesh


@dataclasses.dataclass(frozen=True)
class PaperConfig:
    """What is trained, asked and judged."""

    published: str  # folder of published test sets and answers, such as AlpaCare's data/
    examples: str  # training data of AlpaCare's systems; "": written by `datagen`
    datagen: Mapping[str, Any]  # the settings of configs/datagen.py
    trained: str  # rows of configs/baselines.py with commas, or NAME=FOLDER of a trained model
    mode: str  # of alpacare_jax.generate: paper or native
    benchmarks: Mapping[str, Any]  # NAME -> the keys of BenchmarkConfig
    live: Mapping[
        str, Any
    ]  # NAME -> settings of configs/evaluation.py: a model asked for references
    judges: Mapping[str, Any]  # NAME -> settings of configs/evaluation.py
    choices: str  # files of evaluation.choices, with commas; "": none
    rubric: str  # files of evaluation.rubric, with commas, graded by the first judge; "": none
    flags: FlagsConfig
    devices: DevicesConfig

    def __post_init__(self):
        sections.choice("mode", self.mode, ("paper", "native"))
        for name in ("benchmarks", "judges"):
            if not getattr(self, name):
                raise ValueError(f"{name} is empty; name at least one")


@dataclasses.dataclass(frozen=True)
class BenchmarkConfig:
    """A test set, and whose published answers to it are used."""

    file: str  # its items; "": those of the published set of this name
    references: str  # published names, NAME=FILE, or names of `live`; with commas
    imported: str  # published answers of systems, or NAME=FILE; with commas
