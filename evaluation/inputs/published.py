"""Published answers by name: models' and references' files of AlpaCare, and how they are called."""

import glob
from pathlib import Path

from common import jsonl
from evaluation.inputs import benchmarks
from evaluation.inputs.benchmarks import BENCHMARKS


def find(name: str, benchmark: str, data: Path) -> tuple[Path, str]:
    """(file, column) of the answers by model or reference `name`; "" for a file of its own.

    Raises:
      FileNotFoundError: there are none; the names that there are are told.
    """
    if path := next(benchmarks.published(data, _patterns(glob.escape(name), benchmark)), None):
        return path, ""
    path, columns = _columns(benchmark, data)
    if name in columns:
        return path, columns[name]
    known = ", ".join(names(benchmark, data)) or "none at all"
    raise FileNotFoundError(
        f"{data}/ has no answers of {name!r} to {benchmark}, but of {known}; give one of these, or "
        "NAME=FILE"
    )


def names(benchmark: str, data: Path) -> list[str]:
    """The models and references whose answers to `benchmark` are below `data`."""
    _, columns = _columns(benchmark, data)
    found = set(columns)
    for pattern in _patterns("*", benchmark):
        depth = pattern.split("/").index("*")
        for path in benchmarks.published(data, [pattern]):
            found.add(path.relative_to(data).parts[depth])
    return sorted(found)


def _patterns(name: str, benchmark: str) -> list[str]:
    known = BENCHMARKS.get(benchmark)
    return [
        pattern
        for called in (known.published_names if known else (glob.escape(benchmark),))
        for pattern in (
            f"model_outputs/{name}/{called}.json",
            f"references/{name}/{called}.jsonl",
            f"references/{name}/{called}.json",
            f"model_ouputs/{name}/{called}/seed_0.json",  # the original's spelling
            f"reference_outputs/{name}/{called}_output.jsonl",
        )
    ]


def _columns(benchmark: str, data: Path) -> tuple[Path, dict[str, str]]:
    """The test set's file and who answered in it, as name -> field."""
    known = BENCHMARKS.get(benchmark)
    path = known and next(benchmarks.published(data, known.files), None)
    if not path:
        return data, {}
    _, first = next(jsonl.read(path), ("", {}))
    return path, {name: field for name, field in known.columns.items() if field in first}
