"""Single questions with the answers of all systems side by side (figures 8 and 9 of the paper)."""

from collections.abc import Iterator, Sequence

import numpy as np

from common.reports import charts
from evaluation.judgements.verdicts import Verdicts
from evaluation.judgements.workdirs import ReportTexts
from evaluation.reporting.content import (
    ReportContent,
    ReportFigure,
    ShownAnswer,
    ShownQuestion,
)
from evaluation.reporting.systems import Systems
from evaluation.reporting.table_formats import Table
from evaluation.scoring import score

MAX_CHARACTERS = 2500
"""Of a text in a figure; the tables have all of it."""


def choose(
    verdicts: Verdicts, texts: ReportTexts, wanted: Sequence[str], count: int, seed: int
) -> list[tuple[str, int]]:
    """(benchmark, place) of the questions that are `wanted`, ID or BENCHMARK/ID, or drawn.

    Raises:
      ValueError: no question, or several, have the id.
    """
    places = {
        (benchmark, name): place
        for benchmark, names in sorted(verdicts.ids.items())
        for place, name in enumerate(names)
    }
    chosen = []
    for one in wanted:
        found = [key for key in places if one in (key[1], "/".join(key))]
        if len(found) != 1:
            problem = "is of several test sets; write BENCHMARK/ID" if found else "was not judged"
            raise ValueError(f"question {one!r} {problem}")
        chosen.append((found[0][0], places[found[0]]))
    if wanted:
        return chosen
    shown = [key for key in places if texts.items[key].instruction]  # unknown from elsewhere
    drawn = np.random.default_rng(seed).permutation(len(shown))[:count]
    return [(shown[i][0], places[shown[i]]) for i in drawn]


def collect(
    verdicts: Verdicts, texts: ReportTexts, systems: Systems, chosen: Sequence[tuple[str, int]]
) -> list[ShownQuestion]:
    """The questions with the answers of all systems, then of all references."""
    found = []
    for benchmark, place in chosen:
        name = verdicts.ids[benchmark][place]
        labels = {generator: system.label for generator, system in systems.items()}
        labels |= {
            reference: f"{reference} (reference)"
            for reference in verdicts.names("reference")
            if reference not in labels
        }
        answers = [
            ShownAnswer(label, output.output, _note(verdicts, benchmark, generator, place))
            for generator, label in labels.items()
            if (output := texts.outputs.get((benchmark, generator), {}).get(name))
        ]
        if answers:
            found.append(ShownQuestion(texts.items[benchmark, name], answers))
    return found


def _note(verdicts: Verdicts, benchmark: str, generator: str, place: int) -> str:
    """The points of an answer against all references, by judge."""
    won: dict[str, list[float]] = {}
    for matchup, table in verdicts.tables.items():
        if (matchup.benchmark, matchup.generator) == (benchmark, generator):
            row = table[[place]]
            graded = verdicts.scores.get(matchup)
            bounds = score.item_bounds(row, None if graded is None else graded[[place]])
            own = score.item_scores(bounds)[0]
            if not np.isnan(own):
                won.setdefault(matchup.judge, []).append(float(own))
    return "; ".join(f"{judge}: {sum(s):g} of {len(s)}" for judge, s in won.items())


def figures(content: ReportContent) -> Iterator[tuple[str, ReportFigure]]:
    """A figure for each question: the question, then the answers side by side."""
    for number, question in enumerate(content.questions, start=1):
        item = question.item
        heading = f"Question {item.id} of {item.benchmark}"
        asked = charts.text_block(heading, "", _cut(item.text))
        answers = [charts.text_block(a.name, a.note, _cut(a.text)) for a in question.answers]
        text = (
            "Every answer to one question. Under a system's name: its points against the "
            "references, by judge; a win is 1, a tie 0.5, both orders averaged."
        )
        figure = ReportFigure(heading, text, [asked, *answers], columns=4)
        yield f"-{number}" if len(content.questions) > 1 else "", figure


def _cut(text: str) -> str:
    if len(text) <= MAX_CHARACTERS:
        return text
    return f"{text[:MAX_CHARACTERS]} … ({len(text) - MAX_CHARACTERS:,} more characters)"


def tables(content: ReportContent) -> Iterator[Table]:
    """The whole texts, to copy from."""
    for question in content.questions:
        item = question.item
        lines = [[a.name, a.text, a.note] for a in question.answers]
        caption = f"Answers to question {item.id} of {item.benchmark}: {item.text}"
        yield Table(caption, ["Answer of", "Text", "Points"], lines, prose=True)
