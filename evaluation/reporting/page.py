"""`report.html`: figures, tables and transcripts in one page that opens from disk."""

import base64
import hashlib
import json
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

from common.reports import page
from evaluation.reporting import table_formats
from evaluation.reporting.figure_parts import Figure
from evaluation.reporting.table_formats import Table
from evaluation.reporting.transcripts import Transcripts
from evaluation.scoring.results import Results

FILES = Path(__file__).parent / "web"

SECTIONS = {  # id: heading, figures (their names begin so), tables
    "rates": ("Win rates", ("win_rates", "backbones"), ("win_rates", "counts")),
    "differences": ("Differences between systems", ("comparisons",), ("comparisons",)),
    "judges": ("Judges", ("judges", "position"), ("judges", "agreement")),
    "labels": ("Difficulty and topic", ("difficulty", "topics"), ("difficulty", "topics")),
    "lengths": ("Length", ("lengths",), ("lengths",)),
    "signals": ("Signals without a judge", (), ("signals",)),
}
FIGURES = [name for _, figures, _ in SECTIONS.values() for name in figures]
TABLES = [name for _, _, tables in SECTIONS.values() for name in tables]
"""How the files of all figures begin, and of all tables."""

OPEN = ("judges", "agreement", "signals")
"""Tables that no figure shows; the others open on a click."""

MANY_CUT = 0.05  # of a reference's answers, from where the page warns
LARGE_PREFERENCE = 0.1  # of a judge for a position, away from a half

POLICY = (
    "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; base-uri 'none'; "
    "form-action 'none'; style-src 'unsafe-inline'; script-src 'sha256-{}'\">"
)
"""The page fetches nothing and runs one script, by its hash, whatever a text in it says."""

NOTES = (
    "The win rate is the paper's (AlpaCare, arXiv 2310.14558): win 1, tie 0.5, loss 0, averaged "
    "over the two orders, then over the items. Its code drops an item with an unreadable verdict "
    "and says nothing; here such items are counted, the rate is that of the others, and worst and "
    "best tell between which bounds the rate of all items lies.",
    "MedInstruct-test has 216 items, where the paper says 217. Rates are over what was judged.",
    "Intervals are 95 % percentile bootstrap intervals of the mean over items, both orders of an "
    "item together, computed exactly; of averages over references with invalid verdicts among "
    "them, by drawing. Where all items score the same, Wilson's interval stands.",
    "Differences are tested by an exact permutation test, paired on items; p-values are corrected "
    "by Holm's method within each table. Averages over references are tested on "
    "the items that are valid against all of them.",
    "No rate here is controlled for length. The tables by length show what length does.",
    "All numbers are in report.json; evaluation/scoring/ names each formula's source.",
)


def build(
    results: Results,
    figures: dict[str, Figure],
    tables: dict[str, list[Table]],
    transcripts: Transcripts,
) -> str:
    """The whole page."""
    sections = {
        name: _section(heading, [figures[f] for f in _named(figures, starts)], tables, shown)
        for name, (heading, starts, shown) in SECTIONS.items()
    }
    sections = {name: text for name, text in sections.items() if text}
    headings = {name: SECTIONS[name][0] for name in sections} | {
        "transcripts": "Transcripts",
        "notes": "Notes",
    }
    links = " ".join(f'<a href="#{name}">{escape(text)}</a>' for name, text in headings.items())
    script = (FILES / "report.js").read_text(encoding="utf-8")
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
    style = (FILES / "report.css").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    head = POLICY.format(digest)
    return page.document("Evaluation report", "\n".join(body), style=style, head=head)


def _named(figures: dict[str, Figure], starts: Sequence[str]) -> list[str]:
    return [name for start in starts for name in figures if name.split("-")[0] == start]


def _section(
    heading: str, figures: list[Figure], tables: dict[str, list[Table]], shown: Sequence[str]
) -> str:
    """ "" where there is nothing to show."""
    parts = [
        f"<h3>{escape(figure.heading)}</h3><p>{escape(figure.text)}</p>"
        f"{page.panels(figure.drawings)}"
        for figure in figures
    ]
    for name in shown:
        content = "".join(map(table_formats.html, tables.get(name, [])))
        if content:
            label = f"The numbers: {name.replace('_', ' ')}"
            parts.append(content if name in OPEN else page.foldout(content, label))
    return f"<h2>{escape(heading)}</h2>{''.join(parts)}" if parts else ""


def _summary(results: Results) -> str:
    items = ", ".join(f"{name} ({b['items']:,})" for name, b in results["benchmarks"].items())
    return (
        f"{len(results['systems']):,} systems against {len(results['references']):,} references on "
        f"{items}; {results['verdicts']:,} verdicts by {', '.join(results['judges'])}, each pair "
        "judged in both orders."
    )


def _warnings(results: Results) -> str:
    """What a reader must know before looking at a rate."""
    said = []
    for judge, found in results["judges"].items():
        counts = found["position"]
        if counts["invalid"]:
            said.append(
                f"{judge}: {counts['invalid']:,} of {counts['verdicts']:,} verdicts are invalid."
            )
        preference = counts["first_preference"]
        if preference is not None and abs(preference - 0.5) > LARGE_PREFERENCE:
            side = "first" if preference > 0.5 else "second"
            share = max(preference, 1 - preference)
            said.append(f"{judge} names the {side} answer in {100 * share:.0f} % of its decisions.")
    cut = [
        f"{row['generator']} on {row['benchmark']}: {row['cut']:,} of {row['outputs']:,}"
        for row in results["signals"]
        if row["is_reference"] and row["cut"] > MANY_CUT * row["outputs"]
    ]
    if cut:
        said.append(f"References that seem cut short, which favours the models: {'; '.join(cut)}.")
    return "".join(f"<p class=warning>{escape(text)}</p>" for text in said)


def _transcripts(transcripts: Transcripts) -> str:
    told = "All items are here."
    if transcripts.shown < transcripts.items:
        told = (
            f"{transcripts.shown:,} of {transcripts.items:,} items are here, drawn at random, to "
            "keep the page small: --page_mib takes more."
        )
    select = lambda name, label: f"<label>{label}<select id={name}></select></label>"  # noqa: E731
    return (
        f"<section id=transcripts><h2>Transcripts</h2><p>Two answers side by side, and what each "
        f"judge said of them in both orders. {told}</p>"
        "<div class=controls>"
        + select("benchmark", "Benchmark")
        + select("system", "System")
        + select("reference", "Reference")
        + select("judge", "Judge")
        + select("outcome", "Verdicts")
        + "<label class=wide>Search<input type=search id=query autocomplete=off "
        'placeholder="words of the question"></label>'
        "<label class=check><input type=checkbox id=deep>in both answers too</label></div>"
        "<p id=count class=muted aria-live=polite>JavaScript shows the transcripts.</p>"
        "<div class=reader><div id=found><ul id=list></ul>"
        "<button type=button id=more hidden>Show more</button></div>"
        "<article id=view><div class=steps><button type=button id=back>List</button>"
        "<button type=button id=previous disabled>Previous</button>"
        "<button type=button id=next disabled>Next</button></div>"
        "<div id=shown><p class=muted>Choose an item from the list.</p></div></article></div>"
        "</section>"
    )


def _data(transcripts: Transcripts) -> str:
    """Elements that hold data. JSON in HTML must not end its element: no "<" stays."""
    parts = [f"<script type=application/json id=index>{_safe_json(transcripts.index)}</script>"]
    parts += [
        f"<script type=application/gzip id={name}>{text}</script>"
        for name, text in transcripts.packed.items()
    ]
    return "\n".join(parts)


def _safe_json(content: Any) -> str:
    return json.dumps(content, ensure_ascii=False).replace("<", "\\u003c")
