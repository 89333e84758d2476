"""The tables of a report: the numbers of its figures, and more."""

from collections.abc import Iterator, Mapping, Sequence

from common.reports.charts import percent
from evaluation.judging.verdicts import Matchup
from evaluation.reporting import leaderboard, people
from evaluation.reporting.systems import Systems
from evaluation.reporting.table_formats import Table
from evaluation.scoring.lengths import Stratum
from evaluation.scoring.results import AVERAGE, Difference, Results
from evaluation.scoring.score import WinRate


def build(results: Results, systems: Systems) -> dict[str, list[Table]]:
    """The tables by the names of their files, without those that would be empty."""
    found = {
        "people": people.agreement(results),
        "corrected": people.corrected(results, systems),
        "people_rates": people.rates(results, systems),
        "win_rates": _win_rates(results, systems),
        "leaderboard": leaderboard.tables(results, systems),
        "both_orders": _both_orders(results, systems),
        "counts": _counts(results, systems),
        "judges": [_judges(results)],
        "agreement": [_agreement(results)] if results.agreement else [],
        "comparisons": _comparisons(results, systems),
        "difficulty": _by_label(results, systems, "difficulty"),
        "topics": _by_label(results, systems, "topic"),
        "lengths": _lengths(results, systems),
        "signals": _signals(results, systems),
    }
    return {name: tables for name, each in found.items() if (tables := list(each))}


def interval(rate: WinRate | Stratum | None) -> str:
    """A rate and its interval, in per cent.

    >>> interval(Stratum(8, 4, rate=0.5, low=0.41, high=0.59)), interval(None)
    ('50.0 [41.0, 59.0]', '–')
    """
    if rate is None or rate.rate is None:
        return "–"
    return f"{percent(rate.rate)} [{percent(rate.low)}, {percent(rate.high)}]"


def number(value: float | None, form: str = ".2f") -> str:
    """A number in a format, or a dash.

    >>> number(0.456), number(None)
    ('0.46', '–')
    """
    return "–" if value is None else f"{value:{form}}"


def _best(rates: Sequence[Sequence[float | None]]) -> frozenset[tuple[int, int]]:
    """(row, column) of the highest rate of each column, after one of labels; none of one row."""
    best = set()
    for j in range(len(rates[0]) if len(rates) > 1 else 0):
        column = [(rate, i) for i, row in enumerate(rates) if (rate := row[j]) is not None]
        best |= {(i, j + 1) for rate, i in column if rate == max(column)[0]}
    return frozenset(best)


def _win_rates(results: Results, systems: Systems) -> Iterator[Table]:
    for judge, benchmark in results.headline:
        references = results.references_of(judge, benchmark)
        lines, rates = [], []
        for generator, system in systems.items():
            row = [
                results.rates.get(Matchup(judge, benchmark, name, generator)) for name in references
            ]
            if any(row):
                lines.append([system.label, *map(interval, row)])
                rates.append([rate.rate if rate else None for rate in row])
        caption = (
            f"Win rates on {benchmark}, {results.benchmarks[benchmark].items:,} items, "
            f"judged by {judge}: per cent, with 95 % intervals."
        )
        yield Table(caption, ["System", *references], lines, _best(rates))


def _both_orders(results: Results, systems: Systems) -> Iterator[Table]:
    """FastChat's rates, which differ from the win rate where one order is a tie."""
    lines = [
        [systems[m.generator].label, m.judge, m.benchmark, m.reference, f"{position.items:,}"]
        + [percent(rate) for rate in position.agreed_rates.values()]
        for m, position in results.positions.items()
        if position.items
    ]
    caption = (
        "Rates if an item is won or lost only where both orders agree, and a tie otherwise, as "
        "FastChat counts; over the items with two valid verdicts, in per cent. Adjusted: a tie is "
        "half a win."
    )
    head = ["System", "Judge", "Benchmark", "Reference", "Items", "Won", "Lost", "Adjusted"]
    if lines:
        yield Table(caption, head, lines)


def _counts(results: Results, systems: Systems) -> Iterator[Table]:
    """The counts behind each rate with invalid verdicts."""
    lines = [
        [systems[m.generator].label, m.judge, m.benchmark, m.reference]
        + [f"{rate.valid:,} of {rate.items:,}"]
        + [percent(share) for share in (rate.rate, rate.worst, rate.best)]
        for m, rate in results.rates.items()
        if rate.valid < rate.items and m.reference != AVERAGE
    ]
    caption = (
        "Rates with invalid verdicts: over the items with valid verdicts, and over all items if "
        "every invalid verdict were lost (worst) or won (best); per cent."
    )
    head = ["System", "Judge", "Benchmark", "Reference", "Valid items", "Rate", "Worst", "Best"]
    if lines:
        yield Table(caption, head, lines)


def _judges(results: Results) -> Table:
    lines = []
    for judge, summary in results.judges.items():
        position = summary.position
        first = percent(position.first_preference)
        if summary.low is not None:
            first += f" [{percent(summary.low)}, {percent(summary.high)}]"
        lines.append(
            [judge, summary.prompt_version, f"{position.verdicts:,}"]
            + [percent(position.invalid_rate), percent(position.tie_rate), first]
            + [percent(share) for share in position.item_shares.values()]
        )
    caption = (
        "Judges, in per cent: invalid of all verdicts, ties of the valid ones, the first answer of "
        "those that name a side (50 is no preference); of pairs with two valid verdicts, the same "
        "in both orders, the first twice, the second twice, a tie in one. A judge in one order has "
        "none of the last five: what the order changed is unknown."
    )
    head = ["Judge", "Prompt", "Verdicts", "Invalid", "Ties", "First answer"]
    head += ["Same twice", "First twice", "Second twice", "Half a tie"]
    return Table(caption, head, lines)


def _agreement(results: Results) -> Table:
    lines = []
    for (one, other, benchmark), found in results.agreement.items():
        kappa = number(found.kappa)
        if found.kappa_low is not None:
            kappa += f" [{number(found.kappa_low)}, {number(found.kappa_high)}]"
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
    return Table(caption, [*head, "Alpha (outcomes)", "Alpha (scores)"], lines)


def points(found: Difference) -> str:
    """A difference and its interval, in percentage points.

    >>> points(Difference(9, difference=0.123, low=-0.01, high=0.2, p=0.1, p_holm=0.2))
    '+12.3 [-1.0, +20.0]'
    """
    return f"{100 * found.difference:+.1f} [{100 * found.low:+.1f}, {100 * found.high:+.1f}]"


def _comparisons(results: Results, systems: Systems) -> Iterator[Table]:
    for (judge, benchmark), reference in results.headline.items():
        lines = [
            [f"{systems[one].label} – {systems[other].label}", f"{found.items:,}", points(found)]
            + ["< 0.0001" if p < 1e-4 else f"{p:.4f}" for p in (found.p, found.p_holm)]
            for (one, other), found in results.differences[judge, benchmark, reference].items()
        ]
        caption = (
            f"Differences of win rates on {benchmark} by {judge}, reference: {reference}, in "
            "percentage points with 95 % intervals; exact paired permutation test, and Holm's "
            "correction for all rows."
        )
        if lines:
            head = ["Systems", "Items", "Difference", "p", "p (Holm)"]
            yield Table(caption, head, lines)


def _by_label(results: Results, systems: Systems, field: str) -> Iterator[Table]:
    for (judge, benchmark, reference), rates in results.rates_by_label[field].items():
        rated = {label for _, label in rates}
        counts = results.benchmarks[benchmark].labels[field]
        generators = [name for name in systems if any(name == key[0] for key in rates)]
        lines = [
            [f"{label} ({count:,})", *(interval(rates[name, label]) for name in generators)]
            for label, count in counts.items()
            if label in rated
        ]
        caption = (
            f"Win rates on {benchmark} by {field} (items), {judge}, reference: {reference}; per "
            "cent, with 95 % intervals."
        )
        if lines:
            head = [field.capitalize(), *(systems[name].label for name in generators)]
            yield Table(caption, head, lines)


def _lengths(results: Results, systems: Systems) -> Iterator[Table]:
    for (judge, benchmark), effects in results.lengths.items():
        lines = [
            [systems[name].label if name else "All together"]
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


def _signals(results: Results, systems: Systems) -> Iterator[Table]:
    for benchmark, signals in results.signals.items():
        order = [name for name in (*systems, *results.references) if name in signals]
        references = [name for name in results.references if name in signals]
        lines = []
        for name in dict.fromkeys(order):
            texts = signals[name].texts
            counts = (texts.cut, texts.run_on, texts.refused, texts.empty)
            lines.append(
                [systems[name].label if name in systems else f"{name} (reference)"]
                + [f"{texts.mean_words:,.0f}"]
                + [percent(count / texts.outputs) for count in counts]
                + [_rouge(signals[name].rouge.get(reference)) for reference in references]
            )
        caption = (
            f"Signals without a judge on {benchmark}: mean words; per cent of the answers that are "
            "truncated, run on, start as refusals do, are empty; ROUGE-1 / 2 / L F against each "
            "reference, times 100. None of them is quality."
        )
        head = ["Answers of", "Words", "Cut", "Run on", "Refuse", "Empty"]
        if lines:
            yield Table(caption, [*head, *(f"ROUGE {name}" for name in references)], lines)


def _rouge(scores: Mapping[str, float] | None) -> str:
    return " / ".join(percent(score) for score in scores.values()) if scores else "–"
