"""Published answers by name: AlpaCare's files of models and references, and their naming."""

import glob
from pathlib import Path

from common import jsonl
from evaluation.inputs import benchmarks
from evaluation.inputs.benchmarks import BENCHMARKS


def find(name: str, benchmark: str, data: Path) -> tuple[Path, str]:
    """(file, column) of the answers by model or reference `name`; "" for a separate file."""
    if path := next(benchmarks.published(data, _patterns(glob.escape(name), benchmark)), None):
        return path, ""
    path, columns = _columns(benchmark, data)
    if name in columns:
        return path, columns[name]
    known = ", ".join(names(benchmark, data)) or "nothing"
    raise FileNotFoundError(
        f"{data}/ has no answers of {name!r} to {benchmark}, only of {known}; give one of these, "
        "or NAME=FILE"
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
        for published_name in (known.published_names if known else (glob.escape(benchmark),))
        for pattern in (
            f"model_outputs/{name}/{published_name}.json",
            f"references/{name}/{published_name}.jsonl",
            f"references/{name}/{published_name}.json",
            f"model_ouputs/{name}/{published_name}/seed_0.json",  # sic
            f"reference_outputs/{name}/{published_name}_output.jsonl",
        )
    ]


def _columns(benchmark: str, data: Path) -> tuple[Path, dict[str, str]]:
    """The test set's file, and the fields of the models whose answers it contains, by name."""
    known = BENCHMARKS.get(benchmark)
    path = next(benchmarks.published(data, known.files), None) if known else None
    if not known or not path:
        return data, {}
    _, first = next(jsonl.read(path), ("", {}))
    return path, {name: field for name, field in known.columns.items() if field in first}
