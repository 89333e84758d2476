"""Reporting checklists of a paper, filled in from what is known of its runs.

TRIPOD-LLM (Gallifant et al. 2025, Nature Medicine 31:60-69) and CHART (CHART Collaborative 2025,
BMJ Medicine 4:e001632). checklists.json has the number of each item, what it is about in our own
short words, and the topics of `statements` that answer it. What no run knows is the author's to
write, and marked so: nothing is guessed.
"""

import dataclasses
import json
from collections.abc import Iterable, Iterator, Mapping
from html import escape
from pathlib import Path
from typing import Any

from common import provenance
from common.reports.page import document
from evaluation.reporting.table_formats import Table, markdown
from evaluation.scoring.results import AVERAGE

ITEMS = Path(__file__).with_name("checklists.json")

AUTHOR = "AUTHOR"
"""Marks what the author writes."""


@dataclasses.dataclass(frozen=True)
class ChecklistItem:
    """One line of a checklist."""

    number: str
    section: str
    text: str
    answer: str  # what the runs state; "" for the author to write


@dataclasses.dataclass(frozen=True)
class Checklist:
    """A reporting guideline with its answers."""

    name: str
    file: str  # name of its files, without an ending
    source: str
    items: tuple[ChecklistItem, ...]

    @property
    def answered(self) -> int:
        """Items with an answer."""
        return sum(bool(item.answer) for item in self.items)

    @property
    def caption(self) -> str:
        """What it is, and how much of it is answered."""
        return (
            f"{self.name} ({self.source}): {self.answered} of {len(self.items)} items answered by "
            f"run records, the rest marked {AUTHOR}. Check every answer; the items are in short "
            "words, so fill in the guideline's own form from this table."
        )

    def table(self) -> Table:
        """The checklist as a table."""
        rows = [[i.number, i.section, i.text, i.answer or AUTHOR] for i in self.items]
        return Table(self.caption, ["Item", "Section", "About", "Answer"], rows)

    def html(self) -> str:
        """The same for a page: texts, not numbers, and the author's part stands out."""
        rows = "".join(
            f"<tr><td>{escape(i.number)}</td><td>{escape(i.section)}</td><td>{escape(i.text)}</td>"
            + (f"<td>{escape(i.answer)}</td>" if i.answer else f"<td><mark>{AUTHOR}</mark></td>")
            + "</tr>"
            for i in self.items
        )
        head = "".join(f"<th scope=col>{name}</th>" for name in self.table().head)
        return (
            f"<h2>{escape(self.name)}</h2><p class=muted>{escape(self.caption)}</p>"
            f"<div class=scroll><table class=texts><tr>{head}</tr>{rows}</table></div>"
        )


STYLE = """
.texts th,.texts td{text-align:left;padding-right:18px}
.texts :is(th,td):first-child{min-width:3em}.texts td:nth-child(3){min-width:13em}
.texts td:last-child{overflow-wrap:anywhere}
@media (max-width:700px){.texts :is(tbody,tr,td){display:block}.texts th{display:none}
.texts td{border:0;padding:1px 0}.texts tr{border-bottom:1px solid var(--grid);padding:8px 0}}
"""
"""On a phone the cells of a line stand below each other."""


def fill(known: Iterable[tuple[str, str]]) -> list[Checklist]:
    """The checklists, answered by (topic, sentence) pairs; a sentence is given once in an item."""
    by_topic: dict[str, list[str]] = {}
    for topic, sentence in known:
        by_topic.setdefault(topic, []).append(sentence)
    content = json.loads(ITEMS.read_text(encoding="utf-8"))
    return [
        Checklist(
            name,
            guideline["file"],
            guideline["source"],
            tuple(
                ChecklistItem(number, section, text, _answer(by_topic, topics))
                for number, section, text, topics in guideline["items"]
            ),
        )
        for name, guideline in content.items()
    ]


def _answer(by_topic: Mapping[str, list[str]], topics: Iterable[str]) -> str:
    sentences = [sentence for topic in topics for sentence in by_topic.get(topic, [])]
    return " ".join(dict.fromkeys(sentences))


def write(folder: Path, checklists: Iterable[Checklist]) -> None:
    """Writes each as Markdown, and all on one page."""
    folder.mkdir(parents=True, exist_ok=True)
    found = list(checklists)
    for checklist in found:
        provenance.write_text(folder / f"{checklist.file}.md", markdown(checklist.table()))
    body = "".join(checklist.html() for checklist in found)
    page = document("Checklists", f"<h1>Reporting checklists</h1>{body}", style=STYLE)
    provenance.write_text(folder / "checklists.html", page)


def report_statements(report: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """(topic, sentence) of everything that a report.json states."""
    systems, references = report["systems"], report["references"]
    items = ", ".join(f"{name} ({row['items']:,})" for name, row in report["benchmarks"].items())
    yield "systems", f"Systems: {', '.join(systems)}."
    yield "comparisons", f"Each compared with the answers of {', '.join(references)}."
    yield "benchmarks", f"Test sets, with the number of items: {items}."
    yield "flow", f"Every item of {items} for each system; {report['verdicts']:,} verdicts."
    yield "metrics", "Win rate: win 1, tie 0.5, loss 0, over both orders and then over items."
    yield (
        "statistics",
        "95 % intervals over items, paired permutation tests of systems with Holm's correction.",
    )
    yield "access", "By program; the addresses of servers are in the run records."
    yield "all_outputs", "All answers are in outputs.jsonl of the judged workdirs."
    for row in report["win_rates"]:
        if row["rate"] is not None and row["reference"] == headline(report, row):
            yield (
                "results",
                f"{row['generator']} on {row['benchmark']} by {row['judge']}: win rate "
                f"{100 * row['rate']:.1f} % [{100 * row['low']:.1f}, {100 * row['high']:.1f}].",
            )
    invalid = sum(judge["position"]["invalid"] for judge in report["judges"].values())
    yield "cautions", f"{invalid:,} verdicts of the judges are invalid."
    for name, judge in report["judges"].items():
        if (share := judge["position"]["first_preference"]) is not None:
            yield "cautions", f"{name} prefers the first answer in {100 * share:.0f} % of pairs."
    for row in report["signals"]:
        yield (
            "signals",
            f"{row['generator']} on {row['benchmark']}: {row['refused']:,} of {row['outputs']:,} "
            "answers look like refusals (a signal, not a finding).",
        )
    yield from _people(report["people"])


def _people(people: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    for row in people["agreement"]:
        sentence = f"{row['people']:,} people judged, {row['question']} on {row['benchmark']}; "
        if row["alpha"] is None:
            sentence += "how far they agree is unknown."
        else:
            sentence += (
                f"Krippendorff's alpha {row['alpha']:.2f} on {row['units']:,} pairs that several "
                "judged."
            )
        yield "assessors", sentence
        yield "human_agreement", sentence


def headline(report: Mapping[str, Any], row: Mapping[str, Any]) -> str:
    """The reference that represents a judge on a test set: their average, or the only one."""
    panel = [
        other["reference"]
        for other in report["win_rates"]
        if (other["judge"], other["benchmark"]) == (row["judge"], row["benchmark"])
    ]
    return AVERAGE if AVERAGE in panel else panel[0]
