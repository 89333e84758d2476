"""`report.html`: the curves, answers, events and settings of a training run, while it runs too."""

import itertools
import statistics
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from alpacare_jax.reporting.run_files import RunFiles, clock
from common import sections
from common.messages import duration
from common.reports import curves
from common.reports.curves import Curve, Mark
from common.reports.drawing import Drawing
from common.reports.page import document, foldout, panels, table

RELOAD_SECONDS = 60

PACE = ("tokens_per_second", "mfu")

SPREAD = 30
"""Gradient norms whose largest is this multiple of the smallest are drawn on a logarithmic axis."""

RUN_STYLE = """
h1{overflow-wrap:anywhere}progress{width:100%;max-width:430px;accent-color:var(--series0)}
.state{display:inline-block;padding:1px 9px;border-radius:9px;background:var(--series5);
color:var(--paper);font-weight:600}.state.finished{background:var(--series2)}
.state.failed{background:var(--series1)}
.warning{border-left:4px solid var(--series1);padding:4px 10px;overflow-wrap:anywhere}
.tiles{display:grid;grid-template-columns:repeat(auto-fill,minmax(150px,1fr));gap:10px 24px;
margin:16px 0;padding:0}.tiles dt{color:var(--muted);font-size:13px}
.tiles dd{margin:0;font-size:18px;font-weight:600;font-variant-numeric:tabular-nums}
.tiles dd small{display:block;font-size:12.5px;font-weight:400;color:var(--muted)}
.answers{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,340px),1fr));
gap:12px 32px;max-width:1000px}.answers h4{margin:0;font-size:13px;color:var(--muted)}
.text{white-space:pre-wrap;overflow:auto;overflow-wrap:anywhere;margin:2px 0 8px;max-width:75ch;
max-height:13.5em}
.prompt{border-left:3px solid var(--grid);padding-left:10px}
article{margin:18px 0 26px}td.what{text-align:left}
#events td:nth-child(3),#events th:nth-child(3),#settings td,#settings th{text-align:left}
#settings td{overflow-wrap:anywhere}
"""


def drawings(run: RunFiles) -> list[Drawing]:
    """The curves of a run; those that it has no values for are left out."""
    starts = [e for e in run.events if e["kind"] == "resume"]
    failures = [e for e in run.events if e["kind"] == "failed"]
    marks = [Mark(e["step"], f"resumed from step {e['step']:,}") for e in starts]
    marks += [Mark(e["step"], e["text"]) for e in failures]

    def draw(title: str, *curves_of: Curve, log: bool = False, share: bool = False) -> Drawing:
        shown = list(curves_of)
        return curves.chart(title, shown, last_x=run.num_steps, marks=marks, log=log, share=share)

    def one(title: str, key: str, name: str, **options: bool) -> Drawing | None:
        found = run.pace(key) if key in PACE else run.curve(key)
        return draw(title, Curve(name, found, "series0"), **options) if found else None

    def both(title: str, key: str, **options: bool) -> Drawing | None:
        training = Curve("training", run.curve(key), "series0")
        held_out = Curve("held out", run.curve(f"eval_{key}"), "series1", dots=True)
        found = training.points or held_out.points
        return draw(title, training, held_out, **options) if found else None

    answers = [
        Curve(name, run.curve(f"{name}_log_prob"), f"series{number}")
        for number, name in enumerate(("chosen", "rejected"))
    ]
    pairs = bool(answers[0].points)
    norms = [y for _, y in run.curve("grad_norm")]
    wide = bool(norms) and max(norms) > SPREAD * min(norms) > 0
    found = [
        both("Loss of a pair, nats" if pairs else "Loss, nats a token", "loss"),
        both("Reward margin of the chosen answers", "reward_margin"),
        both("Pairs whose chosen answer has the higher reward", "pair_accuracy", share=True),
        draw("Log-probability of an answer, nats", *answers) if pairs else None,
        both("Loss of the chosen answers, nats a token", "chosen_loss"),
        one("Learning rate", "learning_rate", "learning rate"),
        one("Gradient norm, before clipping", "grad_norm", "gradient norm", log=wide),
        one("Throughput, tokens a second", "tokens_per_second", "tokens/s"),
        one("Real tokens among those computed", "real_token_share", "real tokens", share=True),
        one("Model FLOPs utilisation", "mfu", "MFU", share=True),
    ]
    return [each for each in found if each]


def page(run: RunFiles, updated: str) -> str:
    """The complete page; one of an unfinished run reloads itself.

    Args:
      updated: time of the content, by `provenance.now`.
    """
    shown = drawings(run)
    parts = {
        "curves": ("Curves", panels(shown) if shown else "<p>No step has ended yet.</p>"),
        "answers": ("Answers to held-out prompts", _answers(run)),
        "events": ("Events", _events(run)),
        "settings": ("Settings", _settings(run)),
    }
    body = "\n".join(
        f"<section id={name}><h2>{heading}</h2>{content}</section>"
        for name, (heading, content) in parts.items()
        if content
    )
    running = _running(run)
    head = _header(run, updated, running)
    return document(
        f"Training of {run.name}",
        f"{head}\n{body}",
        style=RUN_STYLE,
        reload_seconds=RELOAD_SECONDS if running else 0,
    )


def _running(run: RunFiles) -> bool:
    """Whether nothing has ended the run, as far as its files show."""
    return not run.finished and run.state.startswith(("unfinished", "not started"))


def _header(run: RunFiles, updated: str, running: bool) -> str:
    last, planned = run.last_step, run.num_steps
    if running:
        state, label = "running", "running"
    else:
        state, label = run.state.partition(" ")[0], run.state
    note = f"; this page reloads every {RELOAD_SECONDS} s" if running else ""
    failed = [event["text"] for event in run.events if event["kind"] == "failed"]
    warning = f"<p class=warning>{escape(failed[-1])}</p>" if failed and state == "failed" else ""
    bar = f"<progress max={max(planned, 1)} value={last}></progress>" if running else ""
    model = sections.flatten(run.record.get("config", {})).get("model.checkpoint", "")
    progress = f"step {last:,} of {planned:,}, as of {clock(updated)}{note}"
    return (
        f"<header><h1>{escape(run.name)}</h1><p><span class='state {state}'>{escape(label)}</span> "
        f"<span class=muted>{escape(progress)}</span></p>"
        f"{bar}{warning}<dl class=tiles>{_tiles(run, str(model))}</dl></header>"
    )


def _tiles(run: RunFiles, model: str) -> str:
    tiles: list[tuple[str, str, str]] = []
    if held_out := run.curve("eval_loss"):
        before = f"{held_out[0][1]:.4f} at step {held_out[0][0]:,.0f}"
        if run.best and run.best[0] != held_out[-1][0]:
            before += f", best {run.best[1]:.4f} at step {run.best[0]:,}"
        tiles.append(("held-out loss", f"{held_out[-1][1]:.4f}", before))
    if run.loss is not None:
        first = next(y for x, y in run.curve("loss") if x)
        tiles.append(("training loss", f"{run.loss:.4f}", f"{first:.4f} at the first step"))
    if run.seconds:
        tiles.append(("time in steps", duration(run.seconds), f"{run.last_step:,} steps"))
    if run.tokens_per_second:
        tiles.append(("tokens a second", f"{run.tokens_per_second:,.0f}", "median of the steps"))
    if shares := [y for _, y in run.curve("real_token_share")]:
        tiles.append(("real tokens", f"{100 * sum(shares) / len(shares):.0f} %", "the rest pads"))
    if utilisation := run.pace("mfu"):
        middle = statistics.median(y for _, y in utilisation)
        tiles.append(("MFU", f"{100 * middle:.1f} %", "median, of the bfloat16 peak"))
    if model:
        tiles.append(("base model", Path(model).name, model))
    return "".join(
        f"<div><dt>{escape(name)}</dt><dd>{escape(value)}<small>{escape(note)}</small></dd></div>"
        for name, value, note in tiles
    )


def _answers(run: RunFiles) -> str:
    """Every sampled prompt with its reference and its answers, the newest first."""
    prompts: dict[str, dict[int, Mapping[str, Any]]] = {}
    for event in run.events:
        if event["kind"] == "sample":
            prompts.setdefault(event["prompt"], {})[event["step"]] = event
    return "".join(_article(prompt, answers) for prompt, answers in prompts.items())


def _article(prompt: str, answers: Mapping[int, Mapping[str, Any]]) -> str:
    (newest, last), *older = sorted(answers.items(), reverse=True)

    def block(title: str, text: str) -> str:
        return f"<div><h4>{escape(title)}</h4><p class=text>{escape(text) or '(empty)'}</p></div>"

    def answer(step: int, event: Mapping[str, Any]) -> str:
        cut = " (cut)" if event["finish_reason"] == "length" else ""
        return block(f"step {step:,}{cut}", event["output"])

    earlier = "".join(answer(*each) for each in older)
    shown = answer(newest, last) + block("reference", last["reference"])
    return (
        f"<article><p class='text prompt'>{escape(prompt)}</p><div class=answers>{shown}</div>"
        + (foldout(f"<div class=answers>{earlier}</div>", "Earlier answers") if earlier else "")
        + "</article>"
    )


def _events(run: RunFiles) -> str:
    rows = []
    events = [event for event in run.events if event["kind"] != "sample"]
    for kind, group in itertools.groupby(events, key=lambda event: event["kind"]):
        alike = list(group)
        if kind == "saved" and len(alike) > 3:
            text = f"{len(alike):,} checkpoints saved, from step {alike[0]['step']:,} on"
            alike = [{**alike[-1], "text": text}]
        rows += [(clock(e["time"]), [f"{e['step']:,}", e["text"]]) for e in alike]
    return table(["time", "step", "event"], rows) if rows else ""


def _settings(run: RunFiles) -> str:
    config = sections.flatten(run.record.get("config", {}))
    rows: list[tuple[str, Sequence[str]]] = [(key, [str(v)]) for key, v in config.items()]
    packages = {k: str(v) for k, v in run.record.get("packages", {}).items() if v}
    software = [("code", str(run.record.get("git_commit"))), *packages.items()]
    if not rows:
        return ""
    return (
        f"{foldout(table(['key', 'value'], rows), f'{len(rows)} settings')}"
        f"{foldout(table(['package', 'version'], [(k, [v]) for k, v in software]), 'Software')}"
    )
