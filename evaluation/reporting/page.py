"""`report.html`: figures, tables and transcripts in one self-contained page."""

import json
from collections.abc import Sequence
from html import escape
from pathlib import Path

from common.reports.page import document, foldout, panels
from evaluation.reporting import people
from evaluation.reporting.figures import ReportFigure
from evaluation.reporting.table_formats import Table, html
from evaluation.reporting.transcripts import Transcripts
from evaluation.scoring.results import Results

WEB_FILES = Path(__file__).parent / "web"

SECTIONS = {  # id: heading, prefixes of figures, tables
    "people": ("People", (), ("people", "corrected", "people_rates")),
    "rates": (
        "Win rates",
        ("win_rates", "backbones"),
        ("win_rates", "leaderboard", "both_orders", "counts"),
    ),
    "differences": ("Differences between systems", ("comparisons",), ("comparisons",)),
    "judges": ("Judges", ("judges", "position"), ("judges", "agreement")),
    "labels": ("Difficulty and topic", ("difficulty", "topics"), ("difficulty", "topics")),
    "lengths": ("Length", ("lengths",), ("lengths",)),
    "signals": ("Signals without a judge", (), ("signals",)),
}
FIGURE_PREFIXES = [name for _, figures, _ in SECTIONS.values() for name in figures]
TABLE_PREFIXES = [name for _, _, tables in SECTIONS.values() for name in tables]
"""How the file names of figures and of tables start."""

OPEN_TABLES = ("people", "corrected", "leaderboard", "judges", "agreement", "signals")
"""Tables that no figure shows; the others open on a click."""

MAX_CUT_SHARE = 0.05  # of a reference's answers; the page warns above it
MAX_PREFERENCE = 0.1  # of a judge for a position, from 0.5; the page warns above it


def build(
    results: Results,
    figures: dict[str, ReportFigure],
    tables: dict[str, list[Table]],
    transcripts: Transcripts,
) -> str:
    """The complete page."""
    sections = {}
    for name, (heading, prefixes, shown) in SECTIONS.items():
        drawn = [figures[f] for p in prefixes for f in figures if f.split("-")[0] == p]
        if content := _section(heading, drawn, tables, shown):
            sections[name] = content
    headings = {name: SECTIONS[name][0] for name in sections} | {
        "transcripts": "Transcripts",
        "notes": "Notes",
    }
    links = " ".join(f'<a href="#{name}">{escape(text)}</a>' for name, text in headings.items())
    # JSON in HTML must not close its element, so each "<" is escaped.
    index = json.dumps(transcripts.index, ensure_ascii=False).replace("<", "\\u003c")
    body = [
        f"<header><h1>Evaluation report</h1><p class=muted>{escape(_summary(results))}</p>"
        f"{_warnings(results)}<nav>{links}</nav></header>",
        *(f"<section id={name}>{text}</section>" for name, text in sections.items()),
        _web_file("transcripts.html").replace("COVERAGE", _coverage(transcripts)),
        _web_file("notes.html"),
        f"<script type=application/json id=index>{index}</script>",
        *(
            f"<script type=application/gzip id={name}>{text}</script>"
            for name, text in transcripts.packed.items()
        ),
    ]
    style, script = _web_file("report.css"), _web_file("report.js")
    return document("Evaluation report", "\n".join(body), style=style, script=script)


def _web_file(name: str) -> str:
    return (WEB_FILES / name).read_text(encoding="utf-8")


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
    once = [name for name, judge in results.judges.items() if judge.one_order]
    orders = "each pair judged in both orders"
    if once:
        orders += f", except by {', '.join(once)}"
    if len(once) == len(results.judges):
        orders = "each pair judged in one order only"
    return (
        f"{len(results.systems):,} systems against {len(results.references):,} references on "
        f"{items}; {results.verdicts:,} verdicts by {', '.join(results.judges)}, {orders}."
    )


def _warnings(results: Results) -> str:
    """What a reader must know before looking at a rate."""
    warnings = []
    for judge, summary in results.judges.items():
        position = summary.position
        if summary.one_order:
            warnings.append(
                f"{judge}: each pair was judged once, so a preference for the first or the second "
                "answer is part of its rates, and cannot be measured."
            )
        if position.invalid:
            warnings.append(
                f"{judge}: {position.invalid:,} of {position.verdicts:,} verdicts are invalid."
            )
        preference = position.first_preference
        if preference is not None and abs(preference - 0.5) > MAX_PREFERENCE:
            side = "first" if preference > 0.5 else "second"
            share = 100 * max(preference, 1 - preference)
            warnings.append(f"{judge} names the {side} answer in {share:.0f} % of its decisions.")
    partly = [
        f"{m.generator} by {m.judge} on {m.benchmark}: {rate.items:,} of {total:,}"
        for m, rate in results.rates.items()
        if rate.items < (total := results.benchmarks[m.benchmark].items)
        and m.reference == results.headline[m.judge, m.benchmark]
    ]
    if partly:
        warnings.append(
            f"Not all items were judged, so rates are over different ones: {'; '.join(partly)}."
        )
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
    empty = [
        f"{generator} on {benchmark}: {found.texts.empty:,} of {found.texts.outputs:,}"
        + f" ({found.texts.too_long:,} because the prompt is too long)" * bool(found.texts.too_long)
        for benchmark, signals in results.signals.items()
        for generator, found in signals.items()
        if found.texts.empty
    ]
    if empty:
        warnings.append(f"Empty answers, judged as they are: {'; '.join(empty)}.")
    warnings += people.warnings(results)
    return "".join(f"<p class=warning>{escape(text)}</p>" for text in warnings)


def _coverage(transcripts: Transcripts) -> str:
    if transcripts.shown == transcripts.items:
        return "All items are included."
    return (
        f"A random sample of {transcripts.shown:,} of {transcripts.items:,} items is included "
        "to keep the page small; a larger --page_mib includes more."
    )
