"""`report.html`: figures, tables and transcripts in one self-contained page."""

import base64
import hashlib
import json
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

from common.reports.page import document, foldout, panels
from evaluation.reporting.figures import ReportFigure
from evaluation.reporting.table_formats import Table, html
from evaluation.reporting.transcripts import Transcripts
from evaluation.scoring.results import Results

WEB_FILES = Path(__file__).parent / "web"

SECTIONS = {  # id: heading, prefixes of figures, tables
    "rates": ("Win rates", ("win_rates", "backbones"), ("win_rates", "counts")),
    "differences": ("Differences between systems", ("comparisons",), ("comparisons",)),
    "judges": ("Judges", ("judges", "position"), ("judges", "agreement")),
    "labels": ("Difficulty and topic", ("difficulty", "topics"), ("difficulty", "topics")),
    "lengths": ("Length", ("lengths",), ("lengths",)),
    "signals": ("Signals without a judge", (), ("signals",)),
}
FIGURE_PREFIXES = [name for _, figures, _ in SECTIONS.values() for name in figures]
TABLE_PREFIXES = [name for _, _, tables in SECTIONS.values() for name in tables]
"""How the file names of figures and of tables start."""

OPEN_TABLES = ("judges", "agreement", "signals")
"""Tables that no figure shows; the others open on a click."""

MAX_CUT_SHARE = 0.05  # of a reference's answers; the page warns above it
MAX_PREFERENCE = 0.1  # of a judge for a position, from 0.5; the page warns above it

POLICY = (
    "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; base-uri 'none'; "
    "form-action 'none'; style-src 'unsafe-inline'; script-src 'sha256-{}'\">"
)
"""The page fetches nothing and runs one script, identified by its hash, whatever its texts say."""

NOTES = (
    "The win rate is the paper's (AlpaCare, arXiv 2310.14558): win 1, tie 0.5, loss 0, averaged "
    "over the two orders, then over the items. Its code silently drops items with an unreadable "
    "verdict; here such items are counted, the rate is that of the others, and worst and best are "
    "the bounds of the rate over all items.",
    "MedInstruct-test has 216 items, where the paper reports 217. Rates are over what was judged.",
    "Intervals are 95 % percentile bootstrap intervals of the mean over items, both orders of an "
    "item together. They are exact, except those of averages over references with invalid "
    "verdicts, which are sampled. Where all items score the same, the interval is Wilson's.",
    "Differences are tested by an exact permutation test, paired on items; p-values are corrected "
    "by Holm's method within each table. Averages over references are tested on the items that "
    "are valid against all of them.",
    "No rate here is controlled for length. The tables by length show its effect.",
    "All numbers are in report.json; evaluation/scoring/ names the source of each formula.",
)


def build(
    results: Results,
    figures: dict[str, ReportFigure],
    tables: dict[str, list[Table]],
    transcripts: Transcripts,
) -> str:
    """The complete page."""
    sections = {
        name: _section(heading, [figures[f] for f in _named(figures, prefixes)], tables, shown)
        for name, (heading, prefixes, shown) in SECTIONS.items()
    }
    sections = {name: text for name, text in sections.items() if text}
    headings = {name: SECTIONS[name][0] for name in sections} | {
        "transcripts": "Transcripts",
        "notes": "Notes",
    }
    links = " ".join(f'<a href="#{name}">{escape(text)}</a>' for name, text in headings.items())
    script = (WEB_FILES / "report.js").read_text(encoding="utf-8")
    body = [
        f"<header><h1>Evaluation report</h1><p class=muted>{escape(_summary(results))}</p>"
        f"{_warnings(results)}<nav>{links}</nav></header>",
        *(f"<section id={name}>{text}</section>" for name, text in sections.items()),
        _transcripts(transcripts),
        "<section id=notes><h2>Notes</h2>",
        *(f"<p>{escape(note)}</p>" for note in NOTES),
        "</section>",
        _data(transcripts),
        f"<script>{script}</script>",
    ]
    style = (WEB_FILES / "report.css").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    head = POLICY.format(digest)
    return document("Evaluation report", "\n".join(body), style=style, head=head)


def _named(figures: dict[str, ReportFigure], prefixes: Sequence[str]) -> list[str]:
    return [name for prefix in prefixes for name in figures if name.split("-")[0] == prefix]


def _section(
    heading: str, figures: list[ReportFigure], tables: dict[str, list[Table]], shown: Sequence[str]
) -> str:
    """ "" where there is nothing to show."""
    parts = [
        f"<h3>{escape(figure.heading)}</h3><p>{escape(figure.text)}</p>{panels(figure.drawings)}"
        for figure in figures
    ]
    for name in shown:
        content = "".join(map(html, tables.get(name, [])))
        if content:
            label = f"The numbers: {name.replace('_', ' ')}"
            parts.append(content if name in OPEN_TABLES else foldout(content, label))
    return f"<h2>{escape(heading)}</h2>{''.join(parts)}" if parts else ""


def _summary(results: Results) -> str:
    items = ", ".join(f"{name} ({b.items:,})" for name, b in results.benchmarks.items())
    return (
        f"{len(results.systems):,} systems against {len(results.references):,} references on "
        f"{items}; {results.verdicts:,} verdicts by {', '.join(results.judges)}, each pair "
        "judged in both orders."
    )


def _warnings(results: Results) -> str:
    """What a reader must know before looking at a rate."""
    warnings = []
    for judge, summary in results.judges.items():
        position = summary.position
        if position.invalid:
            warnings.append(
                f"{judge}: {position.invalid:,} of {position.verdicts:,} verdicts are invalid."
            )
        preference = position.first_preference
        if preference is not None and abs(preference - 0.5) > MAX_PREFERENCE:
            side = "first" if preference > 0.5 else "second"
            share = 100 * max(preference, 1 - preference)
            warnings.append(f"{judge} names the {side} answer in {share:.0f} % of its decisions.")
    cut = [
        f"{generator} on {benchmark}: {found.texts.cut:,} of {found.texts.outputs:,}"
        for benchmark, signals in results.signals.items()
        for generator, found in signals.items()
        if found.is_reference and found.texts.cut > MAX_CUT_SHARE * found.texts.outputs
    ]
    if cut:
        warnings.append(
            f"References that appear truncated, which favours the models: {'; '.join(cut)}."
        )
    return "".join(f"<p class=warning>{escape(text)}</p>" for text in warnings)


def _transcripts(transcripts: Transcripts) -> str:
    coverage = "All items are included."
    if transcripts.shown < transcripts.items:
        coverage = (
            f"A random sample of {transcripts.shown:,} of {transcripts.items:,} items is included "
            "to keep the page small; a larger --page_mib includes more."
        )
    menus = {
        "benchmark": "Benchmark",
        "system": "System",
        "reference": "Reference",
        "judge": "Judge",
        "outcome": "Verdicts",
    }
    selects = [f"<label>{label}<select id={id_}></select></label>" for id_, label in menus.items()]
    return (
        f"<section id=transcripts><h2>Transcripts</h2><p>Two answers side by side, and each "
        f"judge's replies in both orders. {coverage}</p>"
        f"<div class=controls>{''.join(selects)}"
        "<label class=wide>Search<input type=search id=query autocomplete=off "
        'placeholder="words of the question"></label>'
        "<label class=check><input type=checkbox id=deep>also in both answers</label></div>"
        "<p id=count class=muted aria-live=polite>The transcripts require JavaScript.</p>"
        "<div class=reader><div id=found><ul id=list></ul>"
        "<button type=button id=more hidden>Show more</button></div>"
        "<article id=view><div class=steps><button type=button id=back>List</button>"
        "<button type=button id=previous disabled>Previous</button>"
        "<button type=button id=next disabled>Next</button></div>"
        "<div id=shown><p class=muted>Choose an item from the list.</p></div></article></div>"
        "</section>"
    )


def _data(transcripts: Transcripts) -> str:
    """Elements that hold data. JSON in HTML must not close its element, so each "<" is escaped."""
    parts = [f"<script type=application/json id=index>{_safe_json(transcripts.index)}</script>"]
    parts += [
        f"<script type=application/gzip id={name}>{text}</script>"
        for name, text in transcripts.packed.items()
    ]
    return "\n".join(parts)


def _safe_json(content: Any) -> str:
    return json.dumps(content, ensure_ascii=False).replace("<", "\\u003c")
