"""`report.html`: figures, tables and transcripts in one self-contained page."""

from collections.abc import Sequence, Sized
from html import escape
from pathlib import Path

from common.reports.page import document, foldout, json_element, panels
from evaluation.reporting import judge_settings
from evaluation.reporting.cautions import cautions
from evaluation.reporting.content import Chapter, ReportContent
from evaluation.reporting.judge_settings import JudgeRun
from evaluation.reporting.table_formats import html
from evaluation.reporting.transcripts import Transcripts
from evaluation.scoring.results import Results

WEB_FILES = Path(__file__).parent / "web"


def build(
    content: ReportContent,
    chapters: Sequence[Chapter],
    transcripts: Transcripts,
    *,
    runs: Sequence[JudgeRun],
    title: str,
    made: str,
) -> str:
    """The complete page; `made` says when and with which versions."""
    results = content.results
    headings = {chapter.section.name: chapter.section.heading for chapter in chapters} | {
        "transcripts": "Transcripts",
        "settings": "How it was judged",
        "notes": "Notes",
    }
    links = " ".join(f'<a href="#{name}">{escape(text)}</a>' for name, text in headings.items())
    warnings = "".join(f"<p class=warning>{escape(text)}</p>" for text in cautions(results))
    judged = judge_settings.html(runs)
    body = [
        f"<header><h1>{escape(title)}</h1><p class=muted>{escape(_summary(results))}</p>"
        f"<p class=muted>{escape(made)}</p>{warnings}<nav>{links}</nav></header>",
        *map(_section, chapters),
        _web_file("transcripts.html").replace("COVERAGE", _coverage(transcripts)),
        f"<section id=settings><h2>{headings['settings']}</h2>{judged}</section>",
        _web_file("notes.html"),
        json_element("index", transcripts.index),
        *(
            f"<script type=application/gzip id={name}>{text}</script>"
            for name, text in transcripts.packed.items()
        ),
    ]
    style, script = _web_file("report.css"), _web_file("report.js")
    return document(title, "\n".join(body), style=style, script=script)


def _web_file(name: str) -> str:
    return (WEB_FILES / name).read_text(encoding="utf-8")


def _section(chapter: Chapter) -> str:
    section = chapter.section
    shown = [
        f"<h3>{escape(figure.heading)}</h3><p>{escape(figure.text)}</p>{panels(figure.drawings)}"
        for figure in chapter.figures.values()
    ]
    for name, tables in chapter.tables.items():
        content, label = "".join(map(html, tables)), f"The numbers: {name.replace('_', ' ')}"
        shown.append(content if name in section.opened else foldout(content, label))
    heading = f"<h2>{escape(section.heading)}</h2>"
    return f"<section id={section.name}>{heading}{''.join(shown)}</section>"


def _summary(results: Results) -> str:
    items = ", ".join(f"{name} ({b.items:,})" for name, b in results.benchmarks.items())
    once = [name for name, judge in results.judges.items() if judge.one_order]
    orders = "each pair judged in both orders"
    if once:
        orders += f", except by {', '.join(once)}"
    if len(once) == len(results.judges):
        orders = "each pair judged in one order only"
    systems = _number(results.systems, "system")
    references = _number(results.references, "reference")
    return (
        f"{systems} against {references} on {items}; "
        f"{results.verdicts:,} verdicts by {', '.join(results.judges)}, {orders}."
    )


def _number(found: Sized, noun: str) -> str:
    return f"{len(found):,} {noun}{'s' * (len(found) != 1)}"


def _coverage(transcripts: Transcripts) -> str:
    if transcripts.shown == transcripts.items:
        return "All items are included."
    return (
        f"A random sample of {transcripts.shown:,} of {transcripts.items:,} items is included "
        "to keep the page small; a larger --page_mib includes more."
    )
