"""The judges: compared with each other, and what the order of the answers does to them."""

from collections.abc import Iterator

from common.reports import charts
from common.reports.charts import percent
from common.reports.drawing import Drawing
from evaluation.judgements.verdicts import Matchup
from evaluation.reporting.content import ReportContent, ReportFigure
from evaluation.reporting.figures import panel_title, rate_panels
from evaluation.reporting.table_formats import Table, number, with_interval

OUTCOMES = {  # of an item judged in both orders, a field of Position: name, colour
    "consistent": ("same winner in both orders", "series2"),
    "mixed": ("a tie in one order", "rest"),
    "for_first": ("whichever came first", "series1"),
    "for_second": ("whichever came second", "series3"),
}


def compared(content: ReportContent) -> Iterator[tuple[str, ReportFigure]]:
    """The rates by each judge, averaged over references (figure 5 of the paper)."""
    drawings = []
    for benchmark in content.results.benchmarks:
        drawings += _bars(content, benchmark, "")
    text = (
        "The same pairs of answers, judged by each, averaged over the references. Judges may "
        "differ in level and still agree on which system is better."
    )
    yield "", ReportFigure("Judges compared", text, drawings)


def by_reference(content: ReportContent) -> Iterator[tuple[str, ReportFigure]]:
    """The same against each reference (figures 11 and 12 of the paper)."""
    results = content.results
    drawings = []
    if len(results.references) > 1:
        for benchmark in results.benchmarks:
            for reference in results.references:
                drawings += _bars(content, benchmark, reference)
    text = "The same pairs of answers, judged by each; each reference by itself."
    yield "", ReportFigure("Judges compared, by reference", text, drawings)


def _bars(content: ReportContent, benchmark: str, reference: str) -> list[Drawing]:
    """A group for each system, in it a bar for each judge; "": the headline reference."""
    results = content.results
    if len(results.judges) < 2:
        return []
    labels = {name: system.label for name, system in content.systems.items()}

    def matchup(system: str, judge: str) -> Matchup:
        against = reference or results.headline.get((judge, benchmark), "")
        return Matchup(judge, benchmark, against, system)

    judges = list(results.judges)
    title = panel_title(benchmark, results, reference)
    return rate_panels(results, title, labels, judges, matchup)


def position(content: ReportContent) -> Iterator[tuple[str, ReportFigure]]:
    """What each judge does when the order is swapped."""
    names, colours = zip(*OUTCOMES.values(), strict=True)
    rows = []
    for judge, found in content.results.judges.items():
        if items := found.position.items:
            counts = [getattr(found.position, field) for field in OUTCOMES]
            parts = [
                (count / items, f"{judge}: {name}, {count:,} of {items:,}")
                for count, name in zip(counts, names, strict=True)
            ]
            rows.append((judge, parts))
    text = (
        "Each pair of answers is judged twice, with the order swapped. A judge that considers only "
        "the answers names the same winner both times; one that is influenced by the order names "
        "the first, or the second, twice. That counts as half a win, so it pulls every rate "
        "towards 50 %."
    )
    chart = charts.shares("Pairs judged in both orders", rows, names, colours)
    heading = "Does the order of the answers matter?"
    yield "", ReportFigure(heading, text, [chart] if rows else [])


def table(content: ReportContent) -> Iterator[Table]:
    """Every judge's habits."""
    lines = []
    for judge, found in content.results.judges.items():
        place = found.position
        first = with_interval(place.first_preference, found.low, found.high)
        lines.append(
            [judge, found.prompt_version, f"{place.verdicts:,}"]
            + [percent(place.invalid_rate), percent(place.tie_rate), first]
            + [percent(share) for share in place.item_shares.values()]
        )
    caption = (
        "Judges, in per cent: invalid of all verdicts, ties of the valid ones, the first answer of "
        "those that name a side (50 is no preference); of pairs with two valid verdicts, the same "
        "in both orders, the first twice, the second twice, a tie in one. A judge in one order has "
        "none of the last five: what the order changed is unknown."
    )
    head = ["Judge", "Prompt", "Verdicts", "Invalid", "Ties", "First answer"]
    head += ["Same twice", "First twice", "Second twice", "Half a tie"]
    yield Table(caption, head, lines)


def agreement(content: ReportContent) -> Iterator[Table]:
    """How far each pair of judges agrees, people first."""
    lines = []
    for (one, other, benchmark), found in content.results.agreement.items():
        kappa = with_interval(found.kappa, found.kappa_low, found.kappa_high, number)
        lines.append(
            [f"{one} – {other}", benchmark, f"{found.units:,}", percent(found.same)]
            + [percent(found.same_decided), f"{found.decided:,}", kappa]
            + [number(found.alpha_nominal), number(found.alpha_interval)]
        )
    caption = (
        "Agreement of two judges on the same pairs of answers: per cent with the same outcome "
        "(model, reference, neither), the same where both decide, Cohen's kappa with its 95 % "
        "interval, Krippendorff's alpha on outcomes and on scores."
    )
    head = ["Judges", "Benchmark", "Pairs", "Same", "Same, decided", "Decided", "Kappa"]
    yield Table(caption, [*head, "Alpha (outcomes)", "Alpha (scores)"], lines)
