"""Whether longer answers win."""

from collections.abc import Iterator

from common.reports import charts
from common.reports.charts import percent
from common.reports.drawing import SERIES
from evaluation.reporting.content import ReportContent, ReportFigure
from evaluation.reporting.figures import numbered, panel_title, parts, rate_bar
from evaluation.reporting.table_formats import Table, interval, number


def figures(content: ReportContent) -> Iterator[tuple[str, ReportFigure]]:
    """The rates of all systems together, by the length of their answers."""
    results = content.results
    drawings = []
    for benchmark in results.benchmarks:
        known = [judge for judge in results.judges if (judge, benchmark) in results.lengths]
        blocks = parts(known, SERIES)
        for place, judges in enumerate(blocks, start=1):
            strata = {judge: results.lengths[judge, benchmark][None].strata for judge in judges}
            groups = [
                (name, [rate_bar(own[name], f"{name}, {judge}") for judge, own in strata.items()])
                for name in strata[judges[0]]
            ]
            title = numbered(panel_title(benchmark, results), place, len(blocks))
            colours = [f"series{list(results.judges).index(judge) % SERIES}" for judge in judges]
            drawings.append(charts.rate_bars(title, groups, judges, colours))
    text = (
        "Win rates of all systems together, by the length of the answer in characters relative to "
        "its reference. Nothing is corrected: systems that write more may also write better. The "
        "tables show each system."
    )
    yield "", ReportFigure("Do longer answers win?", text, drawings)


def tables(content: ReportContent) -> Iterator[Table]:
    """Each system, for each judge and test set."""
    for (judge, benchmark), effects in content.results.lengths.items():
        lines = [
            [content.systems[name].label if name else "All together"]
            + [interval(stratum) for stratum in effect.strata.values()]
            + [number(effect.correlation, "+.2f"), percent(effect.longer)]
            for name, effect in effects.items()
        ]
        caption = (
            f"Win rates on {benchmark} by {judge}, by the length of the answer over that of the "
            "reference; Spearman's correlation of score and ratio; of the pairs with a winner, the "
            "per cent in which it is the longer answer."
        )
        head = ["System", *effects[None].strata, "Correlation", "Longer wins"]
        yield Table(caption, head, lines)
