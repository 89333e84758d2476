"""How systems are called and grouped in a report: `--systems=F`, a JSON file.

    {"alpacare-7b": {"name": "AlpaCare", "backbone": "LLaMA-7B"},
     "alpaca-7b":   {"name": "Alpaca",   "backbone": "LLaMA-7B"}}

Keys are generators as in the judgements. `backbone` is the model that was tuned; with two backbones
or more there is a figure that compares them. Generators that are not named keep their own names.
"""

import dataclasses
import json
from collections.abc import Collection
from pathlib import Path

from evaluation.inputs.benchmarks import check_name

FIELDS = ("name", "backbone")


@dataclasses.dataclass(frozen=True)
class System:
    name: str  # as tables and figures call the method
    backbone: str = ""  # "": not told

    @property
    def label(self) -> str:
        """One text for both, where a backbone is told."""
        return f"{self.name} ({self.backbone})" if self.backbone else self.name


def read(path: str, generators: Collection[str]) -> dict[str, System]:
    """The system behind each generator.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: the file is malformed, names a generator that was not judged, or gives two one
        name and backbone.
    """
    told = {}
    if path:
        try:
            told = json.loads(Path(path).read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise FileNotFoundError(f"no such file: {path}") from None
        except ValueError as error:
            raise ValueError(f"{path}: not JSON in UTF-8: {error}") from None
    if not isinstance(told, dict):
        raise ValueError(f"{path}: must be one JSON object, of generators")
    for generator, fields in told.items():
        if generator not in generators:
            raise ValueError(
                f"{path}: {generator!r} was not judged; choose from {', '.join(generators)}"
            )
        if not isinstance(fields, dict) or not all(
            field in FIELDS and isinstance(text, str) for field, text in fields.items()
        ):
            raise ValueError(f"{path}: {generator!r} must have texts {' and '.join(FIELDS)} alone")
    systems = {
        generator: System(**({"name": generator} | told.get(generator, {})))
        for generator in generators
    }
    by_label: dict[str, str] = {}
    for generator, system in systems.items():
        check_name(path, system.label)
        if (other := by_label.setdefault(system.label, generator)) != generator:
            raise ValueError(f"{path}: {other!r} and {generator!r} are both {system.label!r}")
    return systems
