"""The sections of a report in their order. To add one, write its builders and a row here."""

from evaluation.reporting.content import Chapter, ReportContent, Section
from evaluation.reporting.sections import (
    comparisons,
    judges,
    labels,
    leaderboard,
    lengths,
    people,
    questions,
    rates,
    safety,
    signals,
)

SECTIONS = (
    Section(
        "people",
        "People",
        tables={
            "people": people.agreement,
            "corrected": people.corrected,
            "people_rates": people.rates,
        },
        opened=("people", "corrected"),
    ),
    Section(
        "rates",
        "Win rates",
        {
            "win_rates": rates.win_rates,
            "backbones": rates.backbones,
            "backbones_by_reference": rates.backbones_by_reference,
        },
        {
            "summary": rates.summary,
            "win_rates": rates.win_rate_table,
            "leaderboard": leaderboard.tables,
            "both_orders": rates.both_orders,
            "counts": rates.counts,
        },
        opened=("summary", "leaderboard"),
    ),
    Section(
        "differences",
        "Differences between systems",
        {"comparisons": comparisons.figures},
        {"comparisons": comparisons.tables},
    ),
    Section(
        "judges",
        "Judges",
        {
            "judges": judges.compared,
            "judges_by_reference": judges.by_reference,
            "position": judges.position,
        },
        {"judges": judges.table, "agreement": judges.agreement},
        opened=("judges", "agreement"),
    ),
    Section(
        "labels",
        "Difficulty and topic",
        {"difficulty": labels.by_difficulty, "topics": labels.by_topic},
        {"difficulty": labels.difficulty_tables, "topics": labels.topic_tables},
    ),
    Section("lengths", "Length", {"lengths": lengths.figures}, {"lengths": lengths.tables}),
    Section(
        "signals",
        "Signals without a judge",
        tables={
            "signals": signals.tables,
            "safety": safety.tables,
            "contamination": safety.contamination,
        },
        opened=("signals", "safety", "contamination"),
    ),
    Section(
        "questions",
        "Questions with all answers",
        {"question": questions.figures},
        {"questions": questions.tables},
    ),
)

FIGURE_PREFIXES = [name for section in SECTIONS for name in section.figures]
TABLE_PREFIXES = [name for section in SECTIONS for name in section.tables]
"""How the file names of figures and of tables start."""


def build(content: ReportContent) -> list[Chapter]:
    """Every section that has content."""
    chapters = [Chapter.build(section, content) for section in SECTIONS]
    return [chapter for chapter in chapters if chapter.figures or chapter.tables]
