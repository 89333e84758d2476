"""Results of training runs, read from run.json and metrics.jsonl, as one table."""

from collections.abc import Mapping, Sequence
from typing import Any

from etils import epath

from alpacare_jax.reporting import run_files
from alpacare_jax.reporting.run_files import RunFiles
from common.messages import aligned


def read(workdir: epath.Path) -> RunFiles:
    """The run of a workdir; a damaged run.json counts as missing here, train reports it."""
    try:
        return run_files.read(workdir)
    except ValueError:
        return RunFiles(workdir.name, {}, run_files.read_steps(workdir / run_files.METRICS), [])


def row(name: str, workdir: epath.Path, failure: tuple[int, str] | None = None) -> dict[str, Any]:
    """A row of the table; `failure` is an exit code and a line of stderr."""
    run = read(workdir)
    return {
        "name": name,
        "steps": run.last_step,
        "loss": run.loss,
        "eval_loss": run.best[1] if run.best else None,
        "tokens_per_second": run.tokens_per_second,
        "hours": run.seconds / 3600,
        "state": f"failed {failure[0]}" if failure else run.state,
        "error": failure[1] if failure else None,
        "workdir": str(workdir),
    }


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
    return aligned(lines, numbers=slice(1, -1))
