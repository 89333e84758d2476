"""What a report is made from, and the form that its sections have."""

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence

from common.reports.drawing import Drawing
from evaluation.inputs.benchmarks import Item
from evaluation.reporting.systems import Systems
from evaluation.reporting.table_formats import Table
from evaluation.scoring.results import Results


@dataclasses.dataclass(frozen=True)
class ShownAnswer:
    """One answer to a question that is shown."""

    name: str  # of the system or reference
    text: str
    note: str  # what the judges made of it


@dataclasses.dataclass(frozen=True)
class ShownQuestion:
    """A question with every answer to it."""

    item: Item
    answers: Sequence[ShownAnswer]


@dataclasses.dataclass(frozen=True)
class ReportContent:
    """What sections arrange."""

    results: Results
    systems: Systems
    questions: Sequence[ShownQuestion] = ()


@dataclasses.dataclass(frozen=True)
class ReportFigure:
    """Drawings under a heading; one file has `columns` of them side by side."""

    heading: str
    text: str
    drawings: list[Drawing]
    columns: int = 2


FigureBuilder = Callable[[ReportContent], Iterable[tuple[str, ReportFigure]]]
"""Makes figures, each with what follows the builder's name in the names of its files."""

TableBuilder = Callable[[ReportContent], Iterable[Table]]


@dataclasses.dataclass(frozen=True)
class Section:
    """A part of the report: figures, then tables, by the names of their files.

    A builder that makes nothing leaves no trace, and neither does a section without content.
    """

    name: str  # the id of its HTML element
    heading: str
    figures: Mapping[str, FigureBuilder] = dataclasses.field(default_factory=dict)
    tables: Mapping[str, TableBuilder] = dataclasses.field(default_factory=dict)
    opened: Sequence[str] = ()  # tables that no figure shows; the others open on a click


@dataclasses.dataclass(frozen=True)
class Chapter:
    """A section with its content."""

    section: Section
    figures: Mapping[str, ReportFigure]
    tables: Mapping[str, list[Table]]

    @classmethod
    def build(cls, section: Section, content: ReportContent) -> "Chapter":
        """The section's figures and tables, without those that are empty."""
        figures = {
            name + suffix: figure
            for name, builder in section.figures.items()
            for suffix, figure in builder(content)
            if figure.drawings
        }
        tables = {
            name: [table for table in builder(content) if table.rows]
            for name, builder in section.tables.items()
        }
        return cls(section, figures, {name: found for name, found in tables.items() if found})
