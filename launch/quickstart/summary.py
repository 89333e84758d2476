"""The last page of a quickstart: what every stage gave, with links to the pages of the stages."""

import dataclasses
import json
import os
import textwrap
from html import escape
from pathlib import Path
from typing import Any

from common import provenance
from common.messages import duration
from common.reports import page

SHOWN = 3
"""Test items whose answers are on the page; the files hold all of them."""

WARNING = (
    "A model of 135M parameters proves that every stage works, not that its data, answers or "
    "verdicts are any good. Never use its answers for care."
)
OTHER_WARNING = "A few examples prove that every stage works. Never use these answers for care."

Row = tuple[str, list[str]]


@dataclasses.dataclass(frozen=True)
class Results:
    """What the files of a quickstart's folder hold."""

    folder: Path

    def counts(self, name: str) -> dict[str, Any]:
        """The counts in a file's run.json."""
        return provenance.read_json(self.folder / name)["counts"]

    def data_rows(self) -> list[Row]:
        """What was written, kept and answered."""
        tasks, dedup = (
            self.counts("data/tasks.jsonl.run.json"),
            self.counts("data/unique.jsonl.run.json"),
        )
        answers = self.counts("data/examples.jsonl.run.json")
        dropped = dedup["read"] - dedup["kept"]
        return [
            ("teacher's replies", [f"{tasks['replies']}"]),
            ("tasks in them that could be read, and are new", [f"{tasks['kept']}"]),
            ("pieces that are no task, or repeat one", [f"{sum(tasks['rejected'].values())}"]),
            ("seeds that fill up the tasks", [f"{dedup['read'] - tasks['kept']}"]),
            ("near-duplicates dropped", [f"{dropped}"]),
            (
                "tasks with a usable answer",
                [f"{answers['examples']}\u00a0of\u00a0{answers['tasks']}"],
            ),
        ]

    def training_rows(self) -> list[Row]:
        """Before and after training, and what the judge says."""
        lines = (self.folder / "run/metrics.jsonl").read_text("utf-8").splitlines()
        steps = [json.loads(line) for line in lines]
        losses = [step["eval_loss"] for step in steps if "eval_loss" in step]
        stopped = [
            sum(record["finish_reason"] == "stop" for record in self.answers(name))
            for name in ("before", "after")
        ]
        total = len(self.answers("after"))
        verdicts: dict[str, int] = {}
        for line in (self.folder / "judged/judgements.jsonl").read_text("utf-8").splitlines():
            verdict = json.loads(line)["verdict"]
            verdicts[verdict] = verdicts.get(verdict, 0) + 1
        judged, examples = sum(verdicts.values()), self._size("train")
        return [
            ("examples trained on", [f"{examples}"]),
            ("of them from the starter set", [f"{examples - self._size('examples')}"]),
            ("held-out loss, before and after", [f"{losses[0]:.3f} → {losses[-1]:.3f}"]),
            (
                "answers that stop by themselves",
                [f"{stopped[0]} → {stopped[1]} of {total}"],
            ),
            ("verdicts that could be read", [f"{judged - verdicts.get('invalid', 0)} of {judged}"]),
            ("of these for the tuned model, in both orders", [f"{verdicts.get('model', 0)}"]),
            ("for the base model", [f"{verdicts.get('reference', 0)}"]),
            ("ties", [f"{verdicts.get('tie', 0)}"]),
        ]

    def answers(self, name: str) -> list[dict[str, Any]]:
        """The answers before or after."""
        return json.loads((self.folder / f"{name}.json").read_text(encoding="utf-8"))

    def _size(self, name: str) -> int:
        return len((self.folder / f"data/{name}.jsonl").read_text("utf-8").splitlines())

    def seconds(self) -> float:
        """What all stages took, in the runs in which they were done."""
        records = (self.folder / "stages").glob("*.json")
        return sum(provenance.read_json(path)["seconds"] for path in records)


def examples(results: Results) -> str:
    """Some answers before and after, as HTML."""
    found = []
    pairs = zip(results.answers("before"), results.answers("after"), strict=True)
    for before, after in list(pairs)[:SHOWN]:
        found.append(f"<h3>{escape(before['instruction'])}</h3>")
        for name, record in (("before", before), ("after", after)):
            answer = " ".join(record["output"].split())
            answer = textwrap.shorten(answer, 500, placeholder=" ...") or "(nothing)"
            found.append(f"<p><b>{name}</b>: {escape(answer)}</p>")
    return "".join(found)


def write(folder: Path, domain: str) -> str:
    """Writes report/index.html of a quickstart's folder; returns the end of the script's output."""
    results = Results(folder)
    own = provenance.read_json(folder / "quickstart.json")
    trained = domain == "medicine"
    warning = WARNING if own["base_url"].startswith("http://127.0.0.1:0/") else OTHER_WARNING
    tables = [("Data", results.data_rows())]
    links = {"data/stats.html": "Data: topics, tasks, diversity"}
    if trained:
        tables.append(("Model", results.training_rows()))
        links |= {
            "../run/report.html": "Training: loss curves",
            "evaluation/report.html": "Evaluation: win rates, every transcript",
        }
    listed = "".join(f'<li><a href="{to}">{escape(text)}</a></li>' for to, text in links.items())
    body = (
        f"<h1>Quickstart: {escape(domain)}</h1>"
        f"<p>{escape(own['model'])} wrote tasks, answered and judged. {escape(warning)}</p>"
        f"<h2>Pages</h2><ul>{listed}</ul><h2>Numbers</h2>"
        + "".join(page.table([title, ""], rows) for title, rows in tables)
        + (f"<h2>Some answers</h2>{examples(results)}" if trained else "")
    )
    index = folder / "report/index.html"
    provenance.write_text(index, page.document(f"Quickstart: {domain}", body))
    rows = [f"  {label}: {cells[0]}" for _, group in tables for label, cells in group]
    rows = [row.replace("\u00a0", " ") for row in rows]
    return "\n".join(
        [
            *rows,
            warning,
            f"All stages took {duration(results.seconds())}. Open {index}; it links",
            *(f"  {os.path.normpath(folder / 'report' / to)}" for to in links),
        ]
    )
