"""The tables of a report: what its figures show, and more, as numbers."""

from typing import Any

from evaluation.reporting.charts import percent
from evaluation.reporting.figure_parts import Systems, headlines, rates_by_cell, references
from evaluation.reporting.table_formats import Table
from evaluation.scoring.results import AVERAGE, Results


def build(results: Results, systems: Systems) -> dict[str, list[Table]]:
    """The tables by the names of their files, which are also the sections of the page."""
    found = {
        "win_rates": _win_rates(results, systems),
        "counts": _counts(results, systems),
        "judges": [_judges(results)],
        "agreement": [_agreement(results)] if results["agreement"] else [],
        "comparisons": _comparisons(results, systems),
        "difficulty": _by_label(results, systems, "difficulty"),
        "topics": _by_label(results, systems, "topic"),
        "lengths": _lengths(results, systems),
        "signals": _signals(results, systems),
    }
    return {name: tables for name, tables in found.items() if tables}


def interval(row: dict[str, Any]) -> str:
    """
    >>> interval({"rate": 0.5, "low": 0.41, "high": 0.59})
    '50.0 [41.0, 59.0]'
    """
    if row["rate"] is None:
        return "–"
    return f"{percent(row['rate'])} [{percent(row['low'])}, {percent(row['high'])}]"


def _best(rates: list[list[float | None]]) -> frozenset[tuple[int, int]]:
    """The highest of each column; of one row none."""
    best = set()
    for j in range(len(rates[0]) if len(rates) > 1 else 0):
        column = [(row[j], i) for i, row in enumerate(rates) if row[j] is not None]
        best |= {(i, j + 1) for rate, i in column if rate == max(column)[0]}
    return frozenset(best)


def _win_rates(results: Results, systems: Systems) -> list[Table]:
    rows, tables = rates_by_cell(results), []
    for judge, benchmark in sorted({key[:2] for key in rows}):
        names = references(results, judge, benchmark)
        lines, rates = [], []
        for generator in results["systems"]:
            mine = [rows.get((judge, benchmark, name, generator)) for name in names]
            if any(mine):
                lines.append([systems[generator].label, *(interval(r) if r else "–" for r in mine)])
                rates.append([r["rate"] if r else None for r in mine])
        caption = (
            f"Win rates on {benchmark}, {results['benchmarks'][benchmark]['items']:,} items, "
            f"judged by {judge}: per cent, with 95 % intervals."
        )
        tables.append(Table(caption, ["System", *names], lines, _best(rates)))
    return tables


def _counts(results: Results, systems: Systems) -> list[Table]:
    """What stands behind each rate, where verdicts were invalid."""
    rows = [row for row in results["win_rates"] if row["valid"] < row["items"]]
    lines = [
        [
            systems[row["generator"]].label,
            *(row[field] for field in ("judge", "benchmark", "reference")),
            f"{row['valid']:,} of {row['items']:,}",
            percent(row["rate"]),
            percent(row["worst"]),
            percent(row["best"]),
        ]
        for row in rows
        if row["reference"] != AVERAGE
    ]
    if not lines:
        return []
    caption = (
        "Rates with invalid verdicts: over the items whose verdicts are valid, and over all items "
        "if every invalid verdict were lost (worst) or won (best); per cent."
    )
    head = ["System", "Judge", "Benchmark", "Reference", "Valid items", "Rate", "Worst", "Best"]
    return [Table(caption, head, lines)]


def _judges(results: Results) -> Table:
    lines = []
    for judge, found in results["judges"].items():
        counts = found["position"]
        first = percent(counts["first_preference"])
        if counts["first_preference_low"] is not None:
            low, high = (percent(counts[f"first_preference_{end}"]) for end in ("low", "high"))
            first += f" [{low}, {high}]"
        shares = ("consistent_share", "for_first_share", "for_second_share", "mixed_share")
        lines.append(
            [judge, found["prompt_version"], f"{counts['verdicts']:,}"]
            + [percent(counts[name]) for name in ("invalid_rate", "tie_rate")]
            + [first, *(percent(counts[name]) for name in shares)]
        )
    caption = (
        "Judges, in per cent: invalid of all verdicts, ties of the valid ones, the first answer of "
        "those that name a side (50 is no preference); of pairs with two valid verdicts, the same "
        "in both orders, the first twice, the second twice, a tie in one."
    )
    head = ["Judge", "Prompt", "Verdicts", "Invalid", "Ties", "First answer"]
    head += ["Same twice", "First twice", "Second twice", "Half a tie"]
    return Table(caption, head, lines)


def _agreement(results: Results) -> Table:
    number = lambda value: "–" if value is None else f"{value:.2f}"  # noqa: E731
    lines = []
    for row in results["agreement"]:
        kappa = number(row["kappa"])
        if row["kappa_low"] is not None:
            kappa += f" [{number(row['kappa_low'])}, {number(row['kappa_high'])}]"
        lines.append(
            [f"{row['one']} – {row['other']}", row["benchmark"], f"{row['units']:,}"]
            + [percent(row["same"]), percent(row["same_decided"]), f"{row['decided']:,}", kappa]
            + [number(row["alpha_nominal"]), number(row["alpha_interval"])]
        )
    caption = (
        "Agreement of two judges on the same pairs of answers: per cent with the same outcome "
        "(model, reference, neither), the same where both decide, Cohen's kappa with its 95 % "
        "interval, Krippendorff's alpha on outcomes and on scores."
    )
    head = ["Judges", "Benchmark", "Pairs", "Same", "Same, decided", "Decided", "Kappa"]
    return Table(caption, [*head, "Alpha (outcomes)", "Alpha (scores)"], lines)


def points(row: dict[str, Any]) -> str:
    """
    >>> points({"difference": 0.123, "low": -0.01, "high": 0.2})
    '+12.3 [-1.0, +20.0]'
    """
    middle, low, high = (100 * row[field] for field in ("difference", "low", "high"))
    return f"{middle:+.1f} [{low:+.1f}, {high:+.1f}]"


def _comparisons(results: Results, systems: Systems) -> list[Table]:
    tables = []
    for (judge, benchmark), reference in headlines(results).items():
        key = (judge, benchmark, reference)
        rows = [
            row
            for row in results["comparisons"]
            if (row["judge"], row["benchmark"], row["reference"]) == key
        ]
        lines = [
            [
                f"{systems[row['one']].label} – {systems[row['other']].label}",
                f"{row['items']:,}",
                points(row),
                *("< 0.0001" if p < 1e-4 else f"{p:.4f}" for p in (row["p"], row["p_holm"])),
            ]
            for row in rows
        ]
        if lines:
            caption = (
                f"Differences of win rates on {benchmark} by {judge}, reference: {reference}, in "
                "percentage points with 95 % intervals; exact paired permutation test, and Holm's "
                "correction for all rows."
            )
            head = ["Systems", "Items", "Difference", "p", "p (Holm)"]
            tables.append(Table(caption, head, lines))
    return tables


def _by_label(results: Results, systems: Systems, field: str) -> list[Table]:
    tables = []
    for (judge, benchmark), reference in headlines(results).items():
        rows = {
            (row["generator"], row[field]): row
            for row in results[f"by_{field}"]
            if (row["judge"], row["benchmark"]) == (judge, benchmark)
        }
        told = results["benchmarks"][benchmark][field]
        labels = [label for label in told if any(key[1] == label for key in rows)]
        if not labels:
            continue
        generators = [g for g in results["systems"] if any(key[0] == g for key in rows)]
        lines = [
            [f"{label} ({told[label]:,})", *(interval(rows[g, label]) for g in generators)]
            for label in labels
        ]
        caption = (
            f"Win rates on {benchmark} by {field} (items), {judge}, reference: {reference}; per "
            "cent, with 95 % intervals."
        )
        tables.append(
            Table(caption, [field.capitalize(), *(systems[g].label for g in generators)], lines)
        )
    return tables


def _lengths(results: Results, systems: Systems) -> list[Table]:
    tables = []
    for judge, benchmark in headlines(results):
        rows = [
            row
            for row in results["by_length"]
            if (row["judge"], row["benchmark"]) == (judge, benchmark)
        ]
        strata = list(rows[0]["strata"])
        lines = []
        for row in rows:
            name = systems[row["generator"]].label if row["generator"] else "All together"
            correlation = row["correlation"]
            lines.append(
                [name, *(interval(row["strata"][stratum]) for stratum in strata)]
                + ["–" if correlation is None else f"{correlation:+.2f}", percent(row["longer"])]
            )
        caption = (
            f"Win rates on {benchmark} by {judge}, by the length of the answer over that of the "
            "reference; Spearman's correlation of score and ratio; of the pairs with a winner, the "
            "per cent in which it is the longer answer."
        )
        tables.append(Table(caption, ["System", *strata, "Correlation", "Longer wins"], lines))
    return tables


def _signals(results: Results, systems: Systems) -> list[Table]:
    tables = []
    for benchmark in results["benchmarks"]:
        rows = {r["generator"]: r for r in results["signals"] if r["benchmark"] == benchmark}
        order = [name for name in (*results["systems"], *results["references"]) if name in rows]
        references = [name for name in results["references"] if name in rows]
        lines = []
        for name in dict.fromkeys(order):
            row = rows[name]
            label = systems[name].label if name in systems else f"{name} (reference)"
            parts = ("cut", "run_on", "refused", "empty")
            rouge = [row["rouge"].get(reference) for reference in references]
            lines.append(
                [label, f"{row['mean_words']:,.0f}"]
                + [percent(row[part] / row["outputs"]) for part in parts]
                + [
                    " / ".join(percent(score) for score in found.values()) if found else "–"
                    for found in rouge
                ]
            )
        caption = (
            f"Signals without a judge on {benchmark}: mean words; per cent of the answers that are "
            "cut, run on, begin as refusals do, are empty; ROUGE-1 / 2 / L F against each "
            "reference, times 100. None of them is quality."
        )
        head = ["Answers of", "Words", "Cut", "Run on", "Refuse", "Empty"]
        tables.append(Table(caption, [*head, *(f"ROUGE {name}" for name in references)], lines))
    return tables
