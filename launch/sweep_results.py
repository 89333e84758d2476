"""Results of training runs, read from run.json and metrics.jsonl, as one table."""

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from etils import epath

from alpacare_jax.reporting import run_files
from common import provenance


def read_record(workdir: epath.Path) -> dict[str, Any]:
    """A run's run.json; empty where there is none, or a damaged one, which train reports."""
    try:
        return provenance.read_record(workdir / "run.json")
    except ValueError:
        return {}


def row(name: str, workdir: epath.Path, failure: tuple[int, str] | None = None) -> dict[str, Any]:
    """A row of the table; `failure` is an exit code and a line of stderr."""
    record = read_record(workdir)
    steps = run_files.read_steps(workdir / run_files.METRICS)
    # At step 0 every run has the loss of the base model.
    values = {
        key: [step[key] for step in steps if step["step"] and key in step]
        for key in ("step", "loss", "eval_loss", "tokens_per_second", "seconds")
    }
    last = max(values["step"], default=0)
    state = "finished" if record.get("end") else f"stopped at step {last:,}"
    if failure:
        state = f"failed {failure[0]}"
    elif not record and not steps:
        state = "not started"
    return {
        "name": name,
        "steps": last,
        "loss": values["loss"][-1] if values["loss"] else None,
        "eval_loss": min(values["eval_loss"], default=None),
        "tokens_per_second": statistics.median(values["tokens_per_second"] or [0]) or None,
        "hours": sum(values["seconds"]) / 3600,
        "state": state,
        "error": failure[1] if failure else None,
        "workdir": str(workdir),
    }


def best_first(row: Mapping[str, Any]) -> tuple[int, float]:
    """Sorts by held-out loss, then runs without it by training loss, then those without either."""
    for place, name in enumerate(("eval_loss", "loss")):
        if row[name] is not None and math.isfinite(row[name]):
            return place, row[name]
    return 2, 0.0


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """The rows as aligned text."""
    columns = {
        "steps": "{:,}",
        "loss": "{:.4f}",
        "eval_loss": "{:.4f}",
        "tokens_per_second": "{:,.0f}",
        "hours": "{:.3f}",
    }
    lines = [["name", "steps", "last loss", "best eval loss", "tokens/s", "hours", "state"]]
    for row in rows:
        numbers = ("-" if row[k] is None else text.format(row[k]) for k, text in columns.items())
        state = f"{row['state']}: {row['error']}" if row["error"] else row["state"]
        lines.append([row["name"], *numbers, state])
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(
            [line[0].ljust(widths[0])]
            + [text.rjust(width) for text, width in zip(line[1:-1], widths[1:-1], strict=True)]
            + [line[-1]]
        )
        for line in lines
    )
