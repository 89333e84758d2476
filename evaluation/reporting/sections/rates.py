"""Win rates: by reference, by backbone, of all test sets together, and what they are made of."""

from collections.abc import Iterator

from common.reports.charts import percent
from common.reports.drawing import Drawing
from evaluation.judgements.verdicts import Matchup
from evaluation.reporting.content import ReportContent, ReportFigure
from evaluation.reporting.figures import by_judge, file_suffix, panel_title, rate_panels
from evaluation.reporting.table_formats import Table, interval
from evaluation.scoring.results import AVERAGE, Panel, Results, SheetKey
from evaluation.scoring.score import WinRate

BOLD = (
    "Bold: no system is significantly better in the same column (paired permutation test, Holm "
    "over all comparisons of the report, 5 %)."
)

Cells = frozenset[tuple[int, int]]


def win_rates(content: ReportContent) -> Iterator[tuple[str, ReportFigure]]:
    """Each system's rate against each reference (figures 2, 3 and 6 of the paper)."""
    results = content.results
    labels = {name: system.label for name, system in content.systems.items()}
    for judge, summary in results.judges.items():
        drawings = []
        for benchmark in results.benchmarks:
            references = results.references_of(judge, benchmark)
            only = references[0] if len(references) == 1 else ""  # no legend names it
            drawings += rate_panels(
                results,
                panel_title(benchmark, results, only),
                labels,
                references,
                lambda system, name, of=(judge, benchmark): Matchup(*of, name, system),
                order=results.references,
            )
        orders = "averaged over both orders of the two answers and"
        if summary.one_order:
            orders = "in the one order in which the judge saw the two answers, averaged"
        text = (
            f"Judge: {judge}. A win counts 1, a tie 0.5, a loss 0, {orders} over the items with "
            "valid verdicts. Lines are 95 % intervals."
        )
        heading = f"Win rates, {judge}"
        yield file_suffix(judge, results.judges), ReportFigure(heading, text, drawings)


def backbones(content: ReportContent) -> Iterator[tuple[str, ReportFigure]]:
    """The headline rates by base model (figure 4 of the paper)."""
    results = content.results

    def draw(panel: Panel) -> list[Drawing]:
        return _backbones(content, panel, results.headline.get(panel, ""))

    text = "The same methods on different base models; lines are 95 % intervals."
    return by_judge(results, "Backbones,", text, draw)


def backbones_by_reference(content: ReportContent) -> Iterator[tuple[str, ReportFigure]]:
    """The same against each reference (figure 10 of the paper)."""
    results = content.results

    def draw(panel: Panel) -> Iterator[Drawing]:
        for reference in results.references_of(*panel)[:-1]:  # the average, or the only one
            yield from _backbones(content, panel, reference)

    text = "Each reference by itself; lines are 95 % intervals."
    return by_judge(results, "Backbones by reference,", text, draw)


def _backbones(content: ReportContent, panel: Panel, reference: str) -> list[Drawing]:
    """A group for each backbone, in it a bar for each method; none where there is one backbone."""
    results = content.results
    systems = content.systems.items()
    generators = {(s.backbone, s.name): name for name, s in systems if s.backbone}
    known = list(dict.fromkeys(backbone for backbone, _ in generators))
    methods = list(dict.fromkeys(method for _, method in generators))

    def matchup(backbone: str, method: str) -> Matchup:
        return Matchup(*panel, reference, generators.get((backbone, method), ""))

    rated = {
        name: name for name in known if any(matchup(name, m) in results.rates for m in methods)
    }
    if len(rated) < 2:
        return []
    return rate_panels(results, panel_title(panel[1], results, reference), rated, methods, matchup)


def not_beaten(results: Results, key: SheetKey, generators: list[str]) -> list[bool]:
    """Of each system, whether none is significantly better; all False where there is one system."""
    beaten = set()
    for (one, other), found in results.differences.get(key, {}).items():
        if found.is_significant:
            beaten.add(other if found.difference > 0 else one)
    return [len(generators) > 1 and name not in beaten for name in generators]


def _rates(
    content: ReportContent, columns: list[SheetKey]
) -> tuple[list[str], list[list[WinRate | None]], Cells]:
    """(labels, rows of rates, bold cells) of the (judge, benchmark, reference) in `columns`."""
    results = content.results
    rows = {
        name: [results.rates.get(Matchup(*key, name)) for key in columns]
        for name in content.systems
    }
    rows = {name: row for name, row in rows.items() if any(row)}
    bold = set()
    for j, key in enumerate(columns):
        rated = [name for name, row in rows.items() if (rate := row[j]) and rate.rate is not None]
        best = dict(zip(rated, not_beaten(results, key, rated), strict=True))
        bold |= {(i, j + 1) for i, name in enumerate(rows) if best.get(name)}
    return [content.systems[name].label for name in rows], list(rows.values()), frozenset(bold)


def summary(content: ReportContent) -> Iterator[Table]:
    """All test sets in one table for each judge (table 1 of the paper)."""
    results = content.results
    for judge in results.judges:
        sets = {
            name: results.references_of(judge, name)
            for name in results.benchmarks
            if (judge, name) in results.headline
        }
        columns = [(judge, name, reference) for name, each in sets.items() for reference in each]
        labels, rows, bold = _rates(content, columns)
        lines = [
            [label, *(percent(rate.rate if rate else None) for rate in row)]
            for label, row in zip(labels, rows, strict=True)
        ]
        caption = f"Win rates by {judge} on all test sets, in per cent. {BOLD}"
        head = ["System", *("AVG" if key[2] == AVERAGE else key[2] for key in columns)]
        over = [("", 1), *((name, len(each)) for name, each in sets.items())]
        yield Table(caption, head, lines, bold, over=over)


def win_rate_table(content: ReportContent) -> Iterator[Table]:
    """The same with intervals, a table for each judge and test set."""
    results = content.results
    for judge, benchmark in results.headline:
        references = results.references_of(judge, benchmark)
        labels, rows, bold = _rates(content, [(judge, benchmark, name) for name in references])
        lines = [[label, *map(interval, row)] for label, row in zip(labels, rows, strict=True)]
        caption = (
            f"Win rates on {benchmark}, {results.benchmarks[benchmark].items:,} items, "
            f"judged by {judge}: per cent, with 95 % intervals. {BOLD}"
        )
        yield Table(caption, ["System", *references], lines, bold)


def both_orders(content: ReportContent) -> Iterator[Table]:
    """FastChat's rates, which differ from the win rate where one order is a tie."""
    lines = [
        [content.systems[m.generator].label, m.judge, m.benchmark, m.reference]
        + [f"{position.items:,}", *map(percent, position.agreed_rates.values())]
        for m, position in content.results.positions.items()
        if position.items
    ]
    caption = (
        "Rates if an item is won or lost only where both orders agree, and a tie otherwise, as "
        "FastChat counts; over the items with two valid verdicts, in per cent. Adjusted: a tie is "
        "half a win."
    )
    head = ["System", "Judge", "Benchmark", "Reference", "Items", "Won", "Lost", "Adjusted"]
    yield Table(caption, head, lines)


def counts(content: ReportContent) -> Iterator[Table]:
    """The counts behind each rate with invalid verdicts."""
    lines = [
        [content.systems[m.generator].label, m.judge, m.benchmark, m.reference]
        + [f"{rate.valid:,} of {rate.items:,}"]
        + [percent(share) for share in (rate.rate, rate.worst, rate.best)]
        for m, rate in content.results.rates.items()
        if rate.valid < rate.items and m.reference != AVERAGE
    ]
    caption = (
        "Rates with invalid verdicts: over the items with valid verdicts, and over all items if "
        "every invalid verdict were lost (worst) or won (best); per cent."
    )
    head = ["System", "Judge", "Benchmark", "Reference", "Valid items", "Rate", "Worst", "Best"]
    yield Table(caption, head, lines)
