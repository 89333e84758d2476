"""The names of systems in a report: `--systems=F`, a JSON file.

    {"alpacare-7b": {"name": "AlpaCare", "backbone": "LLaMA-7B"},
     "alpaca-7b":   {"name": "Alpaca",   "backbone": "LLaMA-7B"}}

Keys are generators as in the judgements. `backbone` is the base model; with two or more backbones a
figure compares them. Generators that the file does not name keep their own names.
"""

import dataclasses
import json
from collections.abc import Collection
from pathlib import Path

from evaluation.inputs.benchmarks import check_name

SYSTEM_FIELDS = ("name", "backbone")


@dataclasses.dataclass(frozen=True)
class System:
    """A generator, as a report displays it."""

    name: str  # of the method
    backbone: str = ""  # "": not given

    @property
    def label(self) -> str:
        """Name and backbone in one text."""
        return f"{self.name} ({self.backbone})" if self.backbone else self.name


Systems = dict[str, System]  # by generator, in the order of the report: best first


def read(path: str, generators: Collection[str]) -> Systems:
    """The system of each generator.

    Raises:
      FileNotFoundError: the file does not exist.
      ValueError: the file is malformed, names a generator that was not judged, or gives two
        generators the same name and backbone.
    """
    content = {}
    if path:
        try:
            content = json.loads(Path(path).read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise FileNotFoundError(f"no such file: {path}") from None
        except ValueError as error:
            raise ValueError(f"{path}: not JSON in UTF-8: {error}") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path}: must be a JSON object with generators as keys")
    for generator, fields in content.items():
        if generator not in generators:
            raise ValueError(
                f"{path}: {generator!r} was not judged; choose from {', '.join(generators)}"
            )
        if not isinstance(fields, dict) or not all(
            field in SYSTEM_FIELDS and isinstance(text, str) for field, text in fields.items()
        ):
            raise ValueError(
                f"{path}: {generator!r} may have only {' and '.join(SYSTEM_FIELDS)}, as strings"
            )
    systems = {
        generator: System(**({"name": generator} | content.get(generator, {})))
        for generator in generators
    }
    by_label: dict[str, str] = {}
    for generator, system in systems.items():
        check_name(path, system.label)
        if (other := by_label.setdefault(system.label, generator)) != generator:
            raise ValueError(f"{path}: {other!r} and {generator!r} are both {system.label!r}")
    return systems
