"""`.eval_results/*.yaml` of a model repository on the Hugging Face Hub, from results.

The Hub's form (huggingface_hub 2.4, `EvalResultEntry`; hub-docs, eval-results.md): a list of
`dataset: {id, task_id}`, `value`, `date`, `notes`, one file for each score of a benchmark. A result
names a data set of the Hub, which only the user can: results on others are counted, not written.
"""

import dataclasses
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from common import provenance
from common.messages import log
from common.sections import UsageError
from evaluation.publishing.checklists import headline
from evaluation.publishing.run_records import RunRecord
from evaluation.scoring.results import AVERAGE

FOLDER = "eval_results"

_DATASET = re.compile(r"[\w.-]+/[\w.-]+(?::[\w.-]+)?")


@dataclasses.dataclass(frozen=True)
class PublishedResult:
    """One number of one system on one test set."""

    system: str
    benchmark: str
    measure: str  # names the file, beside the benchmark
    value: float  # in percent
    notes: str
    date: str  # of the run, YYYY-MM-DD; "" where unknown

    def yaml(self, dataset: str) -> str:
        """The file's content; JSON strings are YAML.

        >>> print(PublishedResult("a", "b", "c", 61.2345, "win rate", "2026-11-27").yaml("o/n"))
        - dataset:
            id: "o/n"
            task_id: "default"
          value: 61.23
          date: "2026-11-27"
          notes: "win rate"
        <BLANKLINE>
        """
        id_, _, task = dataset.partition(":")
        lines = [
            "- dataset:",
            f"    id: {json.dumps(id_)}",
            f"    task_id: {json.dumps(task or 'default')}",
            f"  value: {round(self.value, 2)}",
            *([f"  date: {json.dumps(self.date)}"] if self.date else []),
            f"  notes: {json.dumps(self.notes, ensure_ascii=False)}",
        ]
        return "\n".join(lines) + "\n"


def hub_datasets(given: Sequence[str]) -> dict[str, str]:
    """Test set -> ORG/NAME or ORG/NAME:TASK, from BENCHMARK=ORG/NAME[:TASK].

    >>> hub_datasets(["medinstruct=xz97/MedInstruct"])
    {'medinstruct': 'xz97/MedInstruct'}

    Raises:
      UsageError: an entry has another form.
    """
    pairs = {}
    for entry in given:
        name, _, dataset = entry.partition("=")
        if not name or not _DATASET.fullmatch(dataset):
            raise UsageError(
                f"--hub_datasets: {entry!r} is not BENCHMARK=ORG/NAME or BENCHMARK=ORG/NAME:TASK"
            )
        pairs[name] = dataset
    return pairs


def of_report(report: Mapping[str, Any], date: str) -> Iterator[PublishedResult]:
    """The win rates of a report.json against the reference that represents each panel."""
    for row in report["win_rates"]:
        if row["rate"] is None or row["reference"] != headline(report, row):
            continue
        against = row["reference"]
        if against == AVERAGE:
            against = f"the average of {', '.join(report['references'])}"
        notes = f"win rate in % against {against}, judge {row['judge']}; {_interval(row)}"
        measure = f"win-rate-{row['judge']}"
        value = 100 * row["rate"]
        yield PublishedResult(row["generator"], row["benchmark"], measure, value, notes, date)


def of_records(records: Sequence[RunRecord]) -> Iterator[PublishedResult]:
    """The results beside the run.json of rubric and choices runs.

    Raises:
      FileNotFoundError: a run is not complete.
    """
    for record in records:
        folder, date = record.path.parent, str(record.get("start") or "")[:10]
        if record.kind == "rubric":
            found = provenance.read_json(folder / "rubric.json")
            for name, row in found.get("systems", {}).items():
                score = row["overall"]
                if score["score"] is None:
                    continue
                notes = f"rubric score in %, grader {found['grader']}; {_interval(score)}"
                value = 100 * score["score"]
                yield PublishedResult(name, found["benchmark"], "rubric", value, notes, date)
        elif record.kind == "choices":
            yield from _of_choices(record, provenance.read_json(folder / "summary.json"), date)


def _of_choices(
    record: RunRecord, found: Mapping[str, Any], date: str
) -> Iterator[PublishedResult]:
    config = record.content["config"]
    row = found["accuracy"]
    asked = [name for name in config["files"] if name != config.get("shots_from")]
    names = [Path(str(name)).name.split(".")[0] for name in asked]
    notes = f"accuracy in % by {config['method']}, {config['shots']} examples; {_interval(row)}"
    value = 100 * row["rate"]
    yield PublishedResult(config["model"], "+".join(names), "accuracy", value, notes, date)


def _interval(row: Mapping[str, Any]) -> str:
    count = next(row[name] for name in ("valid", "examples", "questions") if name in row)
    low, high = (f"{100 * row[name]:.1f}" for name in ("low", "high"))
    return f"95 % interval {low} to {high}, {count:,} items"


def write(folder: Path, results: Sequence[PublishedResult], datasets: Mapping[str, str]) -> None:
    """Writes FOLDER/SYSTEM/NAME.yaml; the content of FOLDER/SYSTEM is a model's `.eval_results`.

    Raises:
      UsageError: a test set of `datasets` has no result.
    """
    known = {result.benchmark for result in results}
    if unknown := sorted(datasets.keys() - known):
        names = ", ".join(sorted(known)) or "none"
        raise UsageError(f"--hub_datasets: no result on {unknown[0]!r}, only on {names}")
    for old in folder.glob("*/*.yaml"):
        old.unlink()
    written = 0
    for result in results:
        if result.benchmark not in datasets:
            continue
        place = folder / _slug(result.system)
        place.mkdir(parents=True, exist_ok=True)
        name = f"{_slug(result.benchmark)}-{_slug(result.measure)}.yaml"
        provenance.write_text(place / name, result.yaml(datasets[result.benchmark]))
        written += 1
    if datasets:
        missing = len(results) - written
        log(
            f"{folder}: {written:,} results for .eval_results"
            + (f"; {missing:,} on test sets without --hub_datasets are left out" if missing else "")
        )


def _slug(name: str) -> str:
    """A name as part of a file name.

    >>> _slug("alpacare/gpt-6 luna"), _slug("LLaMA 2")
    ('alpacare-gpt-6-luna', 'LLaMA-2')
    """
    return re.sub(r"[^\w.]+", "-", name).strip("-.") or "x"
