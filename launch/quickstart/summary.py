"""The last page of a quickstart: what every stage gave, with links to the pages of the stages."""

import json
import os
import textwrap
from collections.abc import Iterator
from html import escape
from typing import Any

from etils import epath

from common import provenance
from common.reports import page
from launch.quickstart.plan import Plan

SHOWN = 3
"""Test items whose answers are on the page; the files hold all of them."""

WARNING = (
    "A model of 135M parameters proves that every stage works, not that its data, answers or "
    "verdicts are any good. Never use its answers for care."
)
OTHER_WARNING = "A few examples prove that every stage works. Never use these answers for care."

DATA_LINKS = {"data/stats.html": "Data: topics, tasks, diversity"}
MODEL_LINKS = {
    "../run/report.html": "Training: loss curves",
    "evaluation/report.html": "Evaluation: win rates, every transcript",
}


def counts(path: epath.Path) -> dict[str, Any]:
    """Those of a run.json."""
    return provenance.read_json(path)["counts"]


def data_rows(folder: epath.Path) -> Iterator[tuple[str, str]]:
    """What was written, kept and answered."""
    files = (folder / f"{name}.jsonl.run.json" for name in ("tasks", "unique", "examples"))
    tasks, dedup, answers = map(counts, files)
    yield "teacher's replies", f"{tasks['replies']}"
    yield "tasks in them that could be read, and are new", f"{tasks['kept']}"
    yield "pieces that are no task, or repeat one", f"{sum(tasks['rejected'].values())}"
    yield "seeds that fill up the tasks", f"{dedup['read'] - tasks['kept']}"
    yield "near-duplicates dropped", f"{dedup['read'] - dedup['kept']}"
    yield "tasks with a usable answer", f"{answers['examples']} of {answers['tasks']}"


def model_rows(folder: epath.Path) -> Iterator[tuple[str, str]]:
    """Before and after training, and what the judge says."""
    trained, written = (
        len((folder / f"data/{name}.jsonl").read_text("utf-8").splitlines())
        for name in ("train", "examples")
    )
    steps = map(json.loads, (folder / "run/metrics.jsonl").read_text("utf-8").splitlines())
    losses = [step["eval_loss"] for step in steps if "eval_loss" in step]
    before, after = (
        provenance.read_json(folder / f"{name}.json.run.json")["finish_reasons"]
        for name in ("before", "after")
    )
    stopped = f"{before.get('stop', 0)} → {after.get('stop', 0)} of {sum(after.values())}"
    judged = counts(folder / "judged/run.json")
    (verdicts,) = judged["verdicts"].values()
    readable = judged["judgements"] - verdicts.get("invalid", 0)
    yield "examples trained on", f"{trained}"
    yield "of them from the starter set", f"{trained - written}"
    yield "held-out loss, before and after", f"{losses[0]:.3f} → {losses[-1]:.3f}"
    yield "answers that stop by themselves", stopped
    yield "verdicts that could be read", f"{readable} of {judged['judgements']}"
    yield "of these for the tuned model, in both orders", f"{verdicts.get('model', 0)}"
    yield "for the base model", f"{verdicts.get('reference', 0)}"
    yield "ties", f"{verdicts.get('tie', 0)}"


def examples(folder: epath.Path) -> Iterator[str]:
    """Some answers before and after, as HTML."""
    files = (
        json.loads((folder / f"{name}.json").read_text("utf-8")) for name in ("before", "after")
    )
    for pair in list(zip(*files, strict=True))[:SHOWN]:
        yield f"<h3>{escape(pair[0]['instruction'])}</h3>"
        for record in pair:
            words = " ".join(record["output"].split())
            answer = textwrap.shorten(words, 500, placeholder=" ...") or "(nothing)"
            yield f"<p><b>{record['generator']}</b>: {escape(answer)}</p>"


def write(plan: Plan) -> str:
    """Writes report/index.html; returns the end of the script's output."""
    folder, title = plan.folder, f"Quickstart: {plan.domain}"
    warning = WARNING if plan.teacher.own else OTHER_WARNING
    tables, links, shown = {"Data": [*data_rows(folder / "data")]}, DATA_LINKS, ""
    if plan.domain == "medicine":
        tables |= {"Model": [*model_rows(folder)]}
        links, shown = links | MODEL_LINKS, "<h2>Some answers</h2>" + "".join(examples(folder))
    listed = "".join(f'<li><a href="{to}">{escape(text)}</a></li>' for to, text in links.items())
    numbers = (
        page.table([name, ""], [(label, [text.replace(" ", "\u00a0")]) for label, text in rows])
        for name, rows in tables.items()
    )
    body = (
        f"<h1>{escape(title)}</h1>"
        f"<p>{escape(plan.teacher.model)} wrote tasks, answered and judged. {escape(warning)}</p>"
        f"<h2>Pages</h2><ul>{listed}</ul><h2>Numbers</h2>{''.join(numbers)}{shown}"
    )
    index = folder / "report/index.html"
    provenance.write_text(index, page.document(title, body))
    rows = (f"  {label}: {text}" for group in tables.values() for label, text in group)
    pages = (f"  {os.path.normpath(folder / 'report' / to)}" for to in links)
    return "\n".join([*rows, warning, f"Open {index}; it links", *pages])
