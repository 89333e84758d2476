"""Tables and page of rubric scores."""

from collections.abc import Mapping, Sequence
from html import escape

from common.reports.charts import percent
from common.reports.page import document
from evaluation.grading.physicians import GraderAgreement
from evaluation.grading.scores import RubricScore, SystemScores
from evaluation.reporting.table_formats import Table, html, with_interval

TAG_TITLES = {
    "axis": "Axes: of the criteria with the tag, examples where these have positive points",
    "theme": "Themes: of the examples with the tag, all criteria",
}
"""Of tables of tags, by what stands before the colon; other tags are in rubric.json alone."""

SCORE_NOTE = (
    "Points of the criteria that an answer meets over all positive points; the mean over the "
    "examples, clipped to 0 to 1 after averaging, as HealthBench publishes it; in percent, with "
    "95 % intervals over examples."
)


def _score(score: RubricScore | None) -> str:
    return with_interval(score.score, score.low, score.high) if score else "–"


def tables(systems: Mapping[str, SystemScores]) -> list[Table]:
    """The scores of all systems, by axis and theme, and how steady the grader is."""
    head = ["System", "Examples", "Score", "Length-adjusted", "Characters"]
    rows = [
        [
            name,
            f"{found.overall.examples:,}",
            _score(found.overall),
            percent(found.length_adjusted),
            f"{found.mean_characters:,.0f}",
        ]
        for name, found in systems.items()
    ]
    if any(found.missing for found in systems.values()):
        head.append("Missing verdicts against, for")
        for row, found in zip(rows, systems.values(), strict=True):
            row.append(f"{percent(found.overall.worst)}, {percent(found.overall.best)}")
    built = [Table(f"Rubric scores. {SCORE_NOTE}", head, rows)]
    for prefix, title in TAG_TITLES.items():
        by_system = {
            name: {**found.by_criterion_tag, **found.by_example_tag}
            for name, found in systems.items()
        }
        found = {tag for scores in by_system.values() for tag in scores}
        if tags := sorted(tag for tag in found if tag.startswith(f"{prefix}:")):
            names = [tag.partition(":")[2].replace("_", " ") for tag in tags]
            lines = [
                [name, *(_score(scores.get(tag)) for tag in tags)]
                for name, scores in by_system.items()
            ]
            built.append(Table(f"{title}.", ["System", *names], lines))
    return [*built, _grader(systems)]


def _grader(systems: Mapping[str, SystemScores]) -> Table:
    rows = [
        [
            name,
            f"{found.verdicts:,}",
            f"{found.missing:,}",
            percent(found.met / max(1, found.verdicts - found.missing)),
            " ".join(map(percent, found.repeats)),
            percent(found.repeat_deviation),
            percent(found.unstable),
        ]
        for name, found in systems.items()
    ]
    head = ["System", "Verdicts", "Missing", "Met, %", "Score of each repeat", "Deviation"]
    caption = (
        "The grader. Unstable: criteria, in percent, on which its repeats differ. An answer with a "
        "missing verdict has no score in that repeat."
    )
    return Table(caption, [*head, "Unstable, %"], rows)


def physicians_table(found: Mapping[str, GraderAgreement]) -> Table:
    """Macro F1 of the grader and of the physicians, overall and by category."""
    rows = [
        [
            name,
            f"{row.answers:,}",
            f"{row.pairs:,}",
            with_interval(row.macro_f1, row.low, row.high),
            percent(row.physicians),
            f"{row.compared:,}",
        ]
        for name, row in found.items()
    ]
    caption = (
        "Macro F1 of the grader against physicians' labels, and of physicians against each other "
        "(mean of those who have one); in percent, with 95 % intervals over conversations."
    )
    head = ["Category", "Answers", "Pairs", "Grader", "Physicians", "Compared"]
    return Table(caption, head, rows)


def page(built: Sequence[Table], facts: Sequence[str]) -> str:
    """`rubric.html`: the tables, under what was graded and how."""
    about = escape("; ".join(facts))
    body = f"<header><h1>Rubric scores</h1><p class=muted>{about}.</p></header>"
    return document("Rubric scores", f"{body}<main>{''.join(map(html, built))}</main>")
