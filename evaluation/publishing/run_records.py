"""The records of the runs behind a report, by kind, and what they state in sentences."""

import dataclasses
import datetime
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from common import provenance, sections
from common.messages import duration, format_counts
from common.sections import UsageError

RUN_KINDS: Mapping[str, tuple[str, ...]] = {
    "judging": ("prompt_versions",),
    "rubric": ("rubric.repeats",),
    "choices": ("config.method", "config.shots"),
    "training": ("config.optimizer.name", "config.data.path"),
    "generation": ("config.sampling.temperature",),
    "tasks": ("config.teacher.model", "seeds"),
    "responses": ("config.responder.model",),
    "deduplication": ("config.threshold", "config.mode"),
}
"""Kind of a run -> the dotted names that only its record has all of."""


@dataclasses.dataclass(frozen=True)
class RunRecord:
    """The content of a `run.json`."""

    kind: str  # of RUN_KINDS; "" for another
    path: Path
    content: Mapping[str, Any]

    def get(self, name: str) -> Any:
        """A value by its dotted name; None where there is none, or the run did not have it."""
        value: Any = self.content
        for part in name.split("."):
            value = value.get(part) if isinstance(value, Mapping) else None
        return value

    @property
    def dates(self) -> str:
        """The first and the last day."""
        days = [str(self.get(name) or "")[:10] for name in ("start", "end")]
        return " to ".join(dict.fromkeys(filter(None, days)))

    @property
    def spent(self) -> str:
        """What a provider charged."""
        tokens, usd = self.get("spent.tokens"), self.get("spent.usd")
        price = "price unknown" if self.get("spent.unpriced") else f"${usd or 0:,.2f}"
        return "" if tokens is None else f"{tokens:,} tokens, {price}"


def kind_of(content: Mapping[str, Any]) -> str:
    """The kind of a record.

    >>> kind_of({"prompt_versions": {}}), kind_of({"command": "convert"})
    ('judging', '')
    """
    known = RunRecord("", Path(), content)
    for kind, names in RUN_KINDS.items():
        if all(known.get(name) is not None for name in names):
            return kind
    return ""


def read(sources: Sequence[str | Path]) -> list[RunRecord]:
    """The records of folders (every `run.json` and `*.run.json` in them) and of files.

    Raises:
      UsageError: there is none at one of these places.
      ValueError: one is damaged.
    """
    records = []
    for source in map(Path, sources):
        files = [source]
        if source.is_dir():
            files = sorted({*source.glob("run.json"), *source.glob("*.run.json")})
        if not files or not files[0].exists():
            raise UsageError(f"--records: {source} is no run.json, and no folder with one")
        for file in files:
            content = provenance.read_record(file)
            records.append(RunRecord(kind_of(content), file, content))
    return records


def _name(path: Any) -> str:
    return Path(str(path)).name


def _chat(record: RunRecord, section: str) -> str:
    """A model that was asked, with the settings that were sent."""
    names = ("temperature", "top_p", "max_tokens", "reasoning_effort")
    settings = [
        f"{name.replace('_', ' ')} {value}"
        for name in names
        if (value := record.get(f"config.{section}.{name}")) is not None
    ]
    return f"{record.get(f'config.{section}.model')} ({', '.join(settings)})"


def _training(record: RunRecord) -> Iterator[tuple[str, str]]:
    config, digests = record.content["config"], record.get("inputs") or {}
    base = config["model"].get("variant") or _name(config["model"].get("checkpoint"))
    yield "models", f"Fine-tuned from {base}, {record.dates}."
    rank = record.get("config.lora.rank")
    optimizer, train = config["optimizer"], config["train"]
    yield (
        "training",
        f"{'LoRA of rank ' + str(rank) if rank else 'All weights'} tuned from {base}: "
        f"{optimizer['name']}, learning rate {optimizer['learning_rate']}, "
        f"{optimizer['schedule']} schedule, {train['epochs']} epochs, batch of "
        f"{train['batch_size']}, at most {config['data']['max_length']} tokens, template "
        f"{config['data']['template']}, seed {train['seed']}.",
    )
    digest = str(digests.get("data.path", ""))[:12]
    yield "training_data", f"Trained on {_name(config['data']['path'])} (SHA-256 {digest}...)."
    yield "data_digests", f"{_name(config['data']['path'])}: SHA-256 {digest}..."


def _generation(record: RunRecord) -> Iterator[tuple[str, str]]:
    config = record.content["config"]
    sampling, name = config["sampling"], config.get("generator") or _name(record.path)
    yield (
        "inference",
        f"{name}: temperature {sampling['temperature']}, top p {sampling.get('top_p')}, seed "
        f"{sampling.get('seed')}, at most {config.get('max_new_tokens')} new tokens, template "
        f"{config.get('template')}.",
    )
    yield "query_dates", f"{name} answered {record.dates}."
    yield "sessions", "Every item is a conversation of its own."
    if reasons := record.get("finish_reasons"):
        yield "outputs", f"{name}: answers end by {format_counts(reasons)}."


def _asked(record: RunRecord) -> Iterator[tuple[str, str]]:
    is_tasks = record.kind == "tasks"
    section, made = ("teacher", "tasks") if is_tasks else ("responder", "answers")
    version = record.get("prompt_version")
    yield "training_data", f"The {made} were written by {_chat(record, section)}, {record.dates}."
    yield "text_dates", f"The {made} of the training data were written {record.dates}."
    yield "prompts", f"{made.title()} of the training data: prompt {version}."
    flat = sections.flatten(record.get("counts") or {})
    counts = {name: count for name, count in flat.items() if isinstance(count, int)}
    yield "preprocessing", f"{made.title()}: {format_counts(counts)}."


def _deduplication(record: RunRecord) -> Iterator[tuple[str, str]]:
    counts = record.get("counts") or {}
    yield (
        "preprocessing",
        f"Near-duplicates by ROUGE-L of at least {record.get('config.threshold')} removed: "
        f"{counts.get('near_duplicates', 0):,} of {counts.get('read', 0):,} records; "
        f"{sum((counts.get('against') or {}).values()):,} for their likeness to held-out sets.",
    )


def _judging(record: RunRecord) -> Iterator[tuple[str, str]]:
    versions = ", ".join(map(str, (record.get("prompt_versions") or {}).values()))
    judge = f"Judge {_chat(record, 'chat')}, prompts {versions}"
    yield "judges", f"{judge}, on {record.get('benchmark')}."
    yield "blinding", "Judges see no names, and each pair in both orders."
    yield "prompts", f"Judging: prompts {versions}; their text is in the report."
    yield "query_dates", f"{record.get('config.chat.model')} judged {record.dates}."
    for flag in ("outputs", "references"):
        for file in (record.get(flag) or {}).values():
            digest = f"{_name(file.get('file'))}: SHA-256 {str(file.get('sha256'))[:12]}..."
            yield "data_digests", digest


def _rubric(record: RunRecord) -> Iterator[tuple[str, str]]:
    counts = record.get("counts") or {}
    yield (
        "judges",
        f"Grader {_chat(record, 'chat')}, prompt {record.get('prompt_version')}, on "
        f"{counts.get('examples', 0):,} rubrics of {record.get('rubric.benchmark')}.",
    )
    yield "metrics", "Rubric scores as HealthBench publishes them, one verdict a criterion."


def _choices(record: RunRecord) -> Iterator[tuple[str, str]]:
    yield (
        "metrics",
        f"Accuracy on multiple choice by {record.get('config.method')}, "
        f"{record.get('config.shots')} examples shown.",
    )


STATEMENTS = {
    "training": _training,
    "generation": _generation,
    "tasks": _asked,
    "responses": _asked,
    "deduplication": _deduplication,
    "judging": _judging,
    "rubric": _rubric,
    "choices": _choices,
}


def statements(records: Sequence[RunRecord]) -> Iterator[tuple[str, str]]:
    """(topic, sentence) of everything that the records state."""
    for record in records:
        if record.kind:
            yield from STATEMENTS[record.kind](record)
        seconds = _seconds(record)
        used = ", ".join(filter(None, [record.spent, duration(seconds) if seconds else ""]))
        if record.kind and used:
            yield "compute", f"{record.kind.title()} ({record.path.parent.name}): {used}."
        if commit := record.get("git_commit"):
            yield "code", f"alpacare-jax, commit {str(commit)[:12]}."


def _seconds(record: RunRecord) -> float:
    """From the start of a run to its end; 0 where one is unknown."""
    try:
        start, end = (datetime.datetime.fromisoformat(record.get(x)) for x in ("start", "end"))
    except (TypeError, ValueError):
        return 0.0
    return (end - start).total_seconds()
