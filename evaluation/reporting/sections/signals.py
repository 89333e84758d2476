"""Signals of the answers that need no judge."""

from collections.abc import Iterator, Mapping

from common.reports.charts import percent
from evaluation.reporting.content import ReportContent
from evaluation.reporting.table_formats import Table


def tables(content: ReportContent) -> Iterator[Table]:
    """Every system and reference, for each test set."""
    results, systems = content.results, content.systems
    for benchmark, signals in results.signals.items():
        order = [name for name in (*systems, *results.references) if name in signals]
        references = [name for name in results.references if name in signals]
        lines = []
        for name in dict.fromkeys(order):
            texts = signals[name].texts
            counts = (texts.cut, texts.empty)
            lines.append(
                [systems[name].label if name in systems else f"{name} (reference)"]
                + [f"{texts.mean_words:,.0f}"]
                + [percent(count / texts.outputs) for count in counts]
                + [_rouge(signals[name].rouge.get(reference)) for reference in references]
            )
        caption = (
            f"Signals without a judge on {benchmark}: mean words; per cent of the answers that are "
            "truncated, are empty; ROUGE-1 / 2 / L F against each reference, times 100. None of "
            "them is quality."
        )
        head = ["Answers of", "Words", "Cut", "Empty"]
        yield Table(caption, [*head, *(f"ROUGE {name}" for name in references)], lines)


def _rouge(scores: Mapping[str, float] | None) -> str:
    return " / ".join(percent(score) for score in scores.values()) if scores else "–"
