"""A Hugging Face dataset card (README.md) for an instruction set, from its stats and run.json.

The first set of the stats is the data set; the others appear as comparisons only. The licence must
be given; nothing legal is guessed.
"""

import dataclasses
import json
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from common import sections
from common.jsonl import Record
from common.sections import UsageError
from datagen.analysis.page import Stats, summary_rows

_SIZES = ("1K", "10K", "100K", "1M", "10M")
"""Hugging Face's bounds of size categories: 10^3 to 10^7."""

_SHOWN_SETTINGS = frozenset("model models prompt_version prompt threshold mode tokenizer".split())
"""Keys of a run's config that explain how its records were made."""


@dataclasses.dataclass(frozen=True)
class CardSettings:
    """What only the user can say about the data."""

    license: str  # Hugging Face's identifier
    language: tuple[str, ...]  # ISO 639 codes; empty: not stated
    title: str
    tags: tuple[str, ...]
    notice: str = ""  # what readers are warned of

    def __post_init__(self) -> None:
        if not self.license:
            raise UsageError("--card requires --license: a licence is never guessed")
        if not re.fullmatch(r"[a-z0-9][a-z0-9.\-]*", self.license):
            raise UsageError(
                f"--license={self.license!r} is no Hugging Face identifier; write it as "
                "apache-2.0, cc-by-nc-4.0 or other"
            )
        for code in self.language:
            if not re.fullmatch(r"[a-z]{2,3}", code):
                raise UsageError(
                    f"--language: {code!r} is no code of two or three letters, such as en"
                )


def size_category(records: int) -> str:
    """Hugging Face's size category for a number of records.

    >>> size_category(167), size_category(52002)
    ('n<1K', '10K<n<100K')
    """
    reached = [size for i, size in enumerate(_SIZES) if records >= 10 ** (3 + i)]
    if len(reached) == len(_SIZES):
        return f"n>{_SIZES[-1]}"
    return "<".join([*reached[-1:], "n", _SIZES[len(reached)]])


def front_matter(settings: CardSettings, name: str, file: str, records: int) -> str:
    """The card's YAML for the set `name` in the data file `file`; JSON is valid YAML."""
    # The Hub refuses < > : / \ | ? * and quotation marks in the name of a config.
    config = {"config_name": re.sub(r"[<>:/\\|?*\"']", "_", name), "data_files": file}
    language = {"language": settings.language} if settings.language else {}
    content = {"license": settings.license, "pretty_name": settings.title} | language
    content |= {
        "size_categories": [size_category(records)],
        "task_categories": ["text-generation"],
        "tags": ["instruction-tuning", *settings.tags],
        "configs": [config],
    }
    lines = [f"{key}: {json.dumps(value, ensure_ascii=False)}" for key, value in content.items()]
    return "\n".join(["---", *lines, "---"])


def card(
    settings: CardSettings,
    stats: Stats,
    path: Path,
    records: Sequence[Record],
    figures: dict[str, str],
) -> str:
    """The whole README.md of the first set of `stats`.

    Args:
      path: its data file.
      records: its records.
      figures: heading of each picture by its relative path.
    """
    name, *others = stats["sets"]
    compared = ", ".join(map(_plain, others))
    columns = len(stats["sets"])
    lines = [_row(["", *map(_plain, stats["sets"])]), _row(["---", *["---:"] * columns])]
    for label, values in summary_rows(stats):
        lines.append(_row([label, *values] if values else [f"**{label}**", *[""] * columns]))
    note = f"{_plain(name)} is this data set. For comparison only, not part of it: {compared}."
    body = [
        front_matter(settings, name, path.name, stats["sets"][name]["records"]),
        f"# {_plain(settings.title)}",
        "## Use",
        settings.notice,
        "## Numbers",
        note if others else "",
        "\n".join(lines),
        "## Provenance",
        f"`{path.name}`:",
        "\n".join(f"- {_plain(line)}" for line in sources(records)),
        *_runs(path),
        "## Figures",
        note if others else "",
        *(f"### {heading}\n\n![{heading}]({file})" for file, heading in figures.items()),
    ]
    return "\n\n".join(filter(None, body)) + "\n"


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _plain(text: object) -> str:
    """Text escaped for Markdown and HTML, on one line, so that it also fits into a table."""
    line = " ".join(str(text).split()).replace("&", "&amp;").replace("<", "&lt;")
    return re.sub(r"([\\`*_\[\]|#])", r"\\\1", line)


def sources(records: Sequence[Record], shown: int = 10) -> list[str]:
    """Record counts by source: its text, or its model and prompt version."""
    counts: Counter[str] = Counter()
    for record in records:
        source = record.get("source")
        if isinstance(source, dict):
            known = [f"{key} {source[key]}" for key in ("model", "prompt_version") if key in source]
            counts[", ".join(known) or "source without a model"] += 1
        else:
            counts[str(source) if source else "no source given"] += 1
    lines = [f"{n:,} records: {text}" for text, n in counts.most_common(shown)]
    if rest := sum(n for _, n in counts.most_common()[shown:]):
        lines.append(f"{rest:,} records: {len(counts) - shown:,} other sources")
    return lines


def run_facts(path: Path) -> dict[str, dict[str, str]]:
    """File -> facts of the run records of a data file: FILE.run.json and its folder's run.json.

    The facts are the times, the settings that explain the records, and the counts; of paths only
    the names, since a card is published.
    """
    found = {}
    for file in (path.with_name(path.name + ".run.json"), path.with_name("run.json")):
        record = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else None
        if not isinstance(record, dict):
            continue
        shown = {key: record[key] for key in ("start", "end") if record.get(key)}
        for name, value in _flatten(record.get("config")).items():
            if name.rpartition(".")[2] in _SHOWN_SETTINGS and value not in (None, "", []):
                shown[name] = value
        for name, count in _flatten(record.get("counts")).items():
            if isinstance(count, int):
                shown[name] = f"{count:,}"
        pairs = shown.items()
        found[file.name] = {_without_folders(n): _without_folders(value) for n, value in pairs}
    return found


def _runs(path: Path) -> Iterator[str]:
    """The facts of each run record as lines."""
    for file, facts in run_facts(path).items():
        lines = [f"- {name}: {_plain(value)}" for name, value in facts.items()]
        yield "\n".join([f"From `{file}`:", "", *lines])


def _without_folders(text: object) -> str:
    """`text` with the last part only of each absolute path in it.

    >>> _without_folders("against./home/x/test.jsonl"), _without_folders("meta-llama/Llama-2-7b")
    ('against.test.jsonl', 'meta-llama/Llama-2-7b')
    """
    return re.sub(r"(?<![^\s.'\"])~?/[^\s'\"]*/", "", str(text))


def _flatten(content: object) -> dict[str, Any]:
    return sections.flatten(content) if isinstance(content, dict) else {}
