"""What a training run leaves in its workdir: run.json, metrics.jsonl and events.jsonl."""

import dataclasses
import json
import statistics
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from etils import epath

from common import provenance

METRICS, EVENTS = "metrics.jsonl", "events.jsonl"

KINDS = ("start", "resume", "saved", "stopped", "failed", "finished", "sample")
"""Of the lines of events.jsonl: {"time", "kind", "step", "text"}. A `start` has the run's
`num_steps` too; a `sample`, instead of a text, `prompt`, `reference`, `output`, `finish_reason`."""

LARGEST = 2.0**1000
"""Numbers beyond it are damage, and could not be drawn."""


@dataclasses.dataclass(frozen=True)
class RunFiles:
    """The content of a workdir, complete or not."""

    name: str
    record: Mapping[str, Any]  # run.json
    steps: Sequence[Mapping[str, Any]]  # metrics.jsonl
    events: Sequence[Mapping[str, Any]]  # events.jsonl

    def curve(self, key: str) -> list[tuple[float, float]]:
        """(step, value) of every step that has a finite number under `key`."""
        found = ((step["step"], step.get(key)) for step in self.steps)
        return [(x, y) for x, y in found if isinstance(y, int | float) and abs(y) < LARGEST]

    def pace(self, key: str) -> list[tuple[float, float]]:
        """`curve` without the first step after each start, which compiles, where others exist."""
        starts = {e["step"] + 1 for e in self.events if e["kind"] in ("start", "resume")} or {1}
        found = self.curve(key)
        return [(x, y) for x, y in found if x not in starts] or found

    @property
    def last_step(self) -> int:
        """The last step of metrics.jsonl, 0 without one."""
        return max((step["step"] for step in self.steps), default=0)

    @property
    def num_steps(self) -> int:
        """The planned number of steps; where it is unknown, the last one."""
        planned = [event["num_steps"] for event in self.events if "num_steps" in event]
        return planned[-1] if planned else self.last_step

    @property
    def finished(self) -> bool:
        """Whether all its steps are done and saved."""
        return bool(self.record.get("end"))

    @property
    def state(self) -> str:
        """Finished, or how far it came and what ended it, as far as it is known."""
        if self.finished:
            return "finished"
        ends = [e for e in self.events if e["kind"] in ("start", "resume", "stopped", "failed")]
        if ends and ends[-1]["kind"] in ("stopped", "failed"):
            return f"{ends[-1]['kind']} at step {ends[-1]['step']:,}"
        if not self.record and not self.steps:
            return "not started"
        return f"unfinished, at step {self.last_step:,}"

    @property
    def loss(self) -> float | None:
        """The loss of the last step."""
        found = [y for x, y in self.curve("loss") if x]
        return found[-1] if found else None

    @property
    def best(self) -> tuple[int, float] | None:
        """(step, held-out loss) of the evaluation with the lowest one, the base model's apart."""
        found = [(y, int(x)) for x, y in self.curve("eval_loss") if x]
        return (min(found)[1], min(found)[0]) if found else None

    @property
    def tokens_per_second(self) -> float | None:
        """The median over the steps."""
        found = [y for _, y in self.pace("tokens_per_second")]
        return statistics.median(found) if found else None

    @property
    def seconds(self) -> float:
        """Time spent in steps."""
        return sum(y for _, y in self.curve("seconds"))

    @property
    def order(self) -> tuple[int, float]:
        """Sorts the best first: by held-out loss, then by loss, then runs without either."""
        if self.best:
            return 0, self.best[1]
        return (2, 0.0) if self.loss is None else (1, self.loss)


def is_run(folder: epath.Path) -> bool:
    """Whether a folder is the workdir of a training run, complete or not.

    Raises:
      ValueError: its run.json is damaged.
    """
    if (folder / METRICS).exists():
        return True
    record = provenance.read_record(folder / "run.json") if folder.is_dir() else {}
    return "train" in record.get("config", {})


def read(workdir: epath.Path, name: str = "") -> RunFiles:
    """The run of a workdir; what it does not have is empty.

    Raises:
      ValueError: run.json is damaged.
    """
    record = provenance.read_record(workdir / "run.json")
    steps = read_steps(workdir / METRICS)
    return RunFiles(name or workdir.name, record, steps, read_events(workdir / EVENTS))


def read_events(path: epath.Path) -> list[dict[str, Any]]:
    """The lines of an events.jsonl that are whole."""

    def whole(event: dict[str, Any]) -> bool:
        sampled = ("prompt", "reference", "output", "finish_reason")
        texts = ("time", "text", *(sampled if event.get("kind") == "sample" else ()))
        return (
            event.get("kind") in KINDS
            and all(isinstance(event.get(key), str) for key in texts)
            and _is_count(event.get("num_steps", 0))
        )

    return list(filter(whole, _read_lines(path)))


def read_steps(path: epath.Path) -> list[dict[str, Any]]:
    """The lines of a metrics.jsonl that are whole: a kill may have truncated the last."""
    return list(_read_lines(path))


def _read_lines(path: epath.Path) -> Iterator[dict[str, Any]]:
    """The objects with a `step` in a .jsonl file, if it exists; damaged lines are skipped."""
    for line in path.read_bytes().splitlines() if path.exists() else ():
        try:
            found = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(found, dict) and _is_count(found.get("step")):
            yield found


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value < LARGEST


def clock(time: str) -> str:
    """A time of `provenance.now` for people.

    >>> clock("2026-11-27T04:30:31+00:00")
    '2026-11-27 04:30:31 UTC'
    """
    return time.replace("T", " ").replace("+00:00", " UTC")


def with_unique_names(runs: Mapping[epath.Path, RunFiles]) -> list[RunFiles]:
    """The runs by folder; those that share a name are named by their whole path."""
    names = [run.name for run in runs.values()]
    return [
        run if names.count(run.name) == 1 else dataclasses.replace(run, name=str(path))
        for path, run in runs.items()
    ]
