"""One page for several runs: the settings that differ, the losses at the end, the curves."""

from collections.abc import Callable, Sequence
from html import escape
from typing import Any

from alpacare_jax.reporting import run_files
from alpacare_jax.reporting.run_files import RunFiles
from common import sections
from common.messages import duration
from common.reports import curves
from common.reports.curves import Curve
from common.reports.drawing import SERIES, Drawing, Point
from common.reports.lettering import shortened
from common.reports.page import document, panels, table

REST = "rest"
"""The colour of runs beyond the number of colours."""

UNFINISHED = (5.0, 3.0)
"""The dashes of the curves of unfinished runs."""

IGNORED = ("checkpoint.", "train.log_every", "train.samples", "train.tensorboard", "train.wandb")
"""Settings that change no number."""

COMPARISON_STYLE = (
    "td:first-child{min-width:13em}td{white-space:nowrap}td:first-child{white-space:normal}"
)


def differing(runs: Sequence[RunFiles]) -> list[str]:
    """The settings that are not the same in all runs, in the order of the config."""
    configs = [sections.flatten(run.record.get("config", {})) for run in runs]
    keys = dict.fromkeys(key for config in configs for key in config)
    return [
        key
        for key in keys
        if not key.startswith(IGNORED) and any(c.get(key) != configs[0].get(key) for c in configs)
    ]


def colours(runs: Sequence[RunFiles]) -> dict[str, str]:
    """Name -> colour: the best runs have one each, the rest share grey."""
    best = sorted(runs, key=lambda run: run.order)
    return {run.name: f"series{i}" if i < SERIES else REST for i, run in enumerate(best)}


def drawings(runs: Sequence[RunFiles], *, legend: bool) -> list[Drawing]:
    """The curves of all runs, one drawing for each quantity that any of them has."""
    colour = colours(runs)
    ordered = sorted(runs, key=lambda run: run.order, reverse=True)  # the best is drawn on top
    last = max(run.num_steps for run in runs)
    quantities: dict[str, Callable[[RunFiles], list[Point]]] = {
        "Held-out loss, nats a token": lambda run: run.curve("eval_loss"),
        "Training loss, nats a token": lambda run: run.curve("loss"),
        "Learning rate": lambda run: run.curve("learning_rate"),
        "Gradient norm, before clipping": lambda run: run.curve("grad_norm"),
        "Throughput, tokens a second": lambda run: run.pace("tokens_per_second"),
    }
    drawn = []
    for title, values in quantities.items():
        found = [
            Curve(
                run.name,
                values(run),
                colour[run.name],
                dash=None if run.finished else UNFINISHED,
                group="other runs" if colour[run.name] == REST else "",
            )
            for run in ordered
        ]
        if any(curve.points for curve in found):
            drawn.append(curves.chart(title, found, last_x=last, legend=legend))
    return drawn


def page(runs: Sequence[RunFiles], updated: str) -> str:
    """The complete page; `updated` is the time of the content, by `provenance.now`."""
    unfinished = sum(not run.finished for run in runs)
    note = f"{unfinished} of them unfinished (dashed)" if unfinished else "all finished"
    title = f"{len(runs)} training runs"
    body = (
        f"<h1>{title}</h1><p class=muted>{note}; as of {escape(run_files.clock(updated))}</p>"
        f"<section id=runs><h2>Results and settings that differ</h2>{_table(runs)}</section>"
        f"<section id=curves><h2>Curves</h2>{panels(drawings(runs, legend=False))}</section>"
    )
    return document(title, body, style=COMPARISON_STYLE)


def _table(runs: Sequence[RunFiles]) -> str:
    """The runs, best first, in the colours of their curves; the best losses are bold."""
    ordered, keys, colour = sorted(runs, key=lambda run: run.order), differing(runs), colours(runs)
    last = [key.rpartition(".")[2] for key in keys]
    short = [name if last.count(name) == 1 else key for name, key in zip(last, keys, strict=True)]
    head = ["run", "held-out loss", "at step", "last loss", *short, "steps", "tokens/s", "time"]
    rows = []
    for run in ordered:
        config = sections.flatten(run.record.get("config", {}))
        best = (f"{run.best[1]:.4f}", f"{run.best[0]:,}") if run.best else ("–", "–")
        loss = "–" if run.loss is None else f"{run.loss:.4f}"
        settings = [_setting(config.get(key)) for key in keys]
        steps = f"{run.last_step:,} of {run.num_steps:,}"
        pace = f"{run.tokens_per_second:,.0f}" if run.tokens_per_second else "–"
        cells = [*best, loss, *settings, steps, pace, duration(run.seconds)]
        rows.append((run.name if run.finished else f"{run.name} ({run.state})", cells))
    bold = set()
    for column, values in (
        (1, [run.best and run.best[1] for run in ordered]),
        (3, [r.loss for r in ordered]),
    ):
        known = [value for value in values if value is not None]
        bold |= {(i, column) for i, value in enumerate(values) if known and value == min(known)}
    return table(head, rows, bold=bold, colours=[colour[r.name] for r in ordered])


def _setting(value: Any) -> str:
    return "–" if value is None else shortened(str(value), 240, 14)
