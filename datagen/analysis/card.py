"""A Hugging Face dataset card (README.md) for instruction sets, from their stats and run.json.

Licence and language are the user's to say; nothing legal is guessed.
"""

import dataclasses
import json
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from common.jsonl import Record
from datagen.analysis.tables import Stats, summary_rows

_SIZES = ((10**3, "1K"), (10**4, "10K"), (10**5, "100K"), (10**6, "1M"), (10**7, "10M"))

NOTICE = (
    "For research on language models only. Machine-written medical text can be wrong, outdated or "
    "harmful. No clinician has reviewed the records unless their provenance below says so; do not "
    "use them, or a model trained on them alone, for diagnosis, treatment or any other decision "
    "about care."
)

_TOLD = ("model", "models", "prompt_version", "prompt", "threshold", "mode", "tokenizer", "against")
"""Keys of a run's config that say how records came to be."""


@dataclasses.dataclass(frozen=True)
class Settings:
    """What only the user can say about the data."""

    license: str  # Hugging Face's identifier
    language: tuple[str, ...]  # ISO 639 codes
    title: str
    tags: tuple[str, ...]

    def __post_init__(self) -> None:
        missing = [f"--{name}" for name in ("license", "language", "title") if not vars(self)[name]]
        if missing:
            raise ValueError(f"--card needs {', '.join(missing)}: they are never guessed")
        if not re.fullmatch(r"[a-z0-9][a-z0-9.\-]*", self.license):
            raise ValueError(
                f"--license={self.license!r} is no Hugging Face identifier; write it as "
                "apache-2.0, cc-by-nc-4.0 or other"
            )
        for code in self.language:
            if not re.fullmatch(r"[a-z]{2,3}", code):
                raise ValueError(f"--language: {code!r} is no code of two or three letters, as en")


def size_category(records: int) -> str:
    """Hugging Face's name for a number of records.

    >>> size_category(167), size_category(52002)
    ('n<1K', '10K<n<100K')
    """
    lower = ""
    for limit, name in _SIZES:
        if records < limit:
            return f"{lower}<n<{name}" if lower else f"n<{name}"
        lower = name
    return "n>10M"


def front_matter(settings: Settings, stats: Stats, files: dict[str, Path]) -> str:
    """The card's YAML. Texts are quoted as JSON, which YAML includes.

    Raises:
      ValueError: two data files share a name, so that the card could not tell them apart.
    """
    listed = [path.name for path in files.values()]
    if len(set(listed)) < len(listed):
        raise ValueError("two --input files have the same name; rename one for the card")
    records = sum(found["records"] for found in stats["sets"].values())
    lines = [
        f"license: {json.dumps(settings.license)}",
        f"pretty_name: {json.dumps(settings.title, ensure_ascii=False)}",
        *_list("language", settings.language),
        *_list("size_categories", [size_category(records)]),
        *_list("task_categories", ["text-generation"]),
        *_list("tags", ["instruction-tuning", *settings.tags]),
        "configs:",
    ]
    for name, path in files.items():
        lines.append(f"- config_name: {json.dumps(config_name(name))}")
        lines.append(f"  data_files: {json.dumps(path.name, ensure_ascii=False)}")
    return "\n".join(["---", *lines, "---"])


def config_name(name: str) -> str:
    """A name that the Hub accepts: it refuses < > : / \\ | ? * and quotation marks."""
    return re.sub(r"[<>:/\\|?*\"']", "_", name)


def _list(key: str, values: Sequence[str]) -> Iterator[str]:
    yield f"{key}:"
    yield from (f"- {json.dumps(value, ensure_ascii=False)}" for value in values)


def card(
    settings: Settings,
    stats: Stats,
    files: dict[str, Path],
    sets: dict[str, list[Record]],
    figures: dict[str, str],
) -> str:
    """The whole README.md; `figures` gives the heading of each picture by its relative path."""
    rows = summary_rows(stats)
    body = [f"# {_plain(settings.title)}", "## Use", NOTICE, "## Numbers"]
    head = ["", *map(_plain, stats["sets"])]
    lines = [_row(head), _row(["---", *("---:" for _ in stats["sets"])])]
    for label, values in rows:
        empty = [""] * len(stats["sets"])
        lines.append(_row([label, *values] if values else [f"**{label}**", *empty]))
    body += ["\n".join(lines), "## Provenance"]
    for name, path in files.items():
        body.append(f"### {_plain(name)} (`{path.name}`)")
        body.append("\n".join(_sources(sets[name])))
        body += [_run(record) for record in run_records(path)]
    body.append("## Figures")
    body += [f"### {heading}\n\n![{heading}]({path})" for path, heading in figures.items()]
    return front_matter(settings, stats, files) + "\n\n" + "\n\n".join(filter(None, body)) + "\n"


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _plain(text: object) -> str:
    """Text that Markdown and HTML show as it is, on one line, also inside a table."""
    line = " ".join(str(text).split()).replace("&", "&amp;").replace("<", "&lt;")
    return re.sub(r"([\\`*_\[\]|#])", r"\\\1", line)


def _sources(records: Sequence[Record], most: int = 10) -> list[str]:
    """What the records say of their source: texts, or model and prompt version."""
    told: Counter[str] = Counter()
    for record in records:
        source = record.get("source")
        if isinstance(source, dict):
            known = [f"{key} {source[key]}" for key in ("model", "prompt_version") if key in source]
            told[", ".join(known) or "source without a model"] += 1
        else:
            told[str(source) if source else "no source given"] += 1
    lines = [f"- {count:,} records: {_plain(text)}" for text, count in told.most_common(most)]
    rest = told.total() - sum(count for _, count in told.most_common(most))
    return [*lines, f"- {rest:,} records: {len(told) - most:,} other sources"] if rest else lines


def run_records(path: Path) -> list[dict[str, Any]]:
    """The run.json of a data file: FILE.run.json, and the one of its folder."""
    beside = (path.with_name(path.name + ".run.json"), path.with_name("run.json"))
    found = []
    for file in beside:
        if not file.is_file():
            continue
        content = json.loads(file.read_text(encoding="utf-8"))
        if isinstance(content, dict):
            found.append({"file": file.name} | content)
    return found


def _run(record: dict[str, Any]) -> str:
    lines = [f"From `{record['file']}`:", ""]
    lines += [f"- {key}: {_plain(record[key])}" for key in ("start", "end") if record.get(key)]
    lines += [f"- {key}: {_plain(value)}" for key, value in _settings(record.get("config"))]
    lines += [f"- {key}: {value:,}" for key, value in _counts(record.get("counts"))]
    return "\n".join(lines)


def _settings(config: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in config.items() if isinstance(config, dict) else ():
        if isinstance(value, dict):
            yield from _settings(value, f"{prefix}{key}.")
        elif key in _TOLD and value not in (None, "", []):
            yield prefix + key, value


def _counts(counts: Any, prefix: str = "") -> Iterator[tuple[str, int]]:
    for key, value in counts.items() if isinstance(counts, dict) else ():
        if isinstance(value, dict):
            yield from _counts(value, f"{prefix}{key}.")
        elif isinstance(value, int):
            yield prefix + key, value
