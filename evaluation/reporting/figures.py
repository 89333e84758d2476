"""The figures of a report, from `report.json`: for the page, and one PNG and one SVG each."""

from pathlib import Path

from common.reports import drawing
from evaluation.reporting import charts
from evaluation.reporting.charts import Field, percent
from evaluation.reporting.figure_parts import (
    Figure,
    Row,
    Systems,
    against,
    bar,
    file_end,
    fit,
    headlines,
    p_text,
    panel_title,
    rates_by_cell,
    references,
    series,
)
from evaluation.scoring.results import Results

SHOWN_TOPICS = 12

POSITIONS = (
    ("consistent", "same winner in both orders", "series2"),
    ("mixed", "a tie in one order", "rest"),
    ("for_first", "whichever came first", "series1"),
    ("for_second", "whichever came second", "series3"),
)


def build(results: Results, systems: Systems) -> dict[str, Figure]:
    """The figures by the names of their files; what the verdicts cannot show is left out.

    Raises:
      ValueError: there are more judges, references or backbones than colours.
    """
    fit("judges", results["judges"])
    fit("references", results["references"])
    found = {}
    for judge in results["judges"]:
        end = file_end(judge, results["judges"])
        found[f"win_rates{end}"] = _win_rates(results, systems, judge)
        found[f"backbones{end}"] = _backbones(results, systems, judge)
        found[f"comparisons{end}"] = _comparisons(results, systems, judge)
        found[f"difficulty{end}"] = _by_label(results, systems, judge, "difficulty")
        found[f"topics{end}"] = _by_label(results, systems, judge, "topic")
    found["judges"] = _judges(results, systems)
    found["position"] = _position(results)
    found["lengths"] = _lengths(results)
    return {name: figure for name, figure in found.items() if figure and figure.drawings}


def _win_rates(results: Results, systems: Systems, judge: str) -> Figure:
    rates, drawings = rates_by_cell(results), []
    for benchmark in results["benchmarks"]:
        names = references(results, judge, benchmark)
        groups = []
        for generator in results["systems"]:
            label = systems[generator].label
            rows = [rates.get((judge, benchmark, name, generator)) for name in names]
            if any(rows):
                pairs = zip(rows, names, strict=True)
                groups.append((label, [bar(r, f"{label} against {n}") for r, n in pairs]))
        if groups:
            title = panel_title(benchmark, results)
            if len(names) == 1:  # no legend names it
                title += f", {against(names[0])}"
            colours = series(names, results["references"])
            drawings.append(charts.bars(title, groups, names, colours))
    text = (
        f"Judge: {judge}. A win counts 1, a tie 0.5, a loss 0, averaged over both orders of the "
        "two answers and over the items with valid verdicts. Lines are 95 % intervals, items "
        "resampled whole."
    )
    return Figure(f"Win rates, {judge}", text, drawings)


def _backbones(results: Results, systems: Systems, judge: str) -> Figure | None:
    """The headline rates, a group for each backbone and in it a bar for each method."""
    backbones = list(dict.fromkeys(s.backbone for s in systems.values() if s.backbone))
    methods = list(dict.fromkeys(s.name for s in systems.values() if s.backbone))
    if len(backbones) < 2:
        return None
    fit("methods with a backbone", methods)
    by_both = {(s.backbone, s.name): generator for generator, s in systems.items()}
    rates, drawings = rates_by_cell(results), []
    for (of, benchmark), reference in headlines(results).items():
        if of != judge:
            continue
        groups = []
        for backbone in backbones:
            keys = [(judge, benchmark, reference, by_both.get((backbone, m))) for m in methods]
            rows = zip((rates.get(key) for key in keys), methods, strict=True)
            if any(found := [bar(row, f"{method} on {backbone}") for row, method in rows]):
                groups.append((backbone, found))
        if len(groups) < 2:
            continue
        title = f"{panel_title(benchmark, results)}, {against(reference)}"
        drawings.append(charts.bars(title, groups, methods, series(methods, methods)))
    text = f"Judge: {judge}. The same methods on different base models; lines are 95 % intervals."
    return Figure(f"Backbones, {judge}", text, drawings)


def _judges(results: Results, systems: Systems) -> Figure | None:
    judges = list(results["judges"])
    if len(judges) < 2:
        return None
    rates, stands, drawings = rates_by_cell(results), headlines(results), []
    for benchmark in results["benchmarks"]:
        groups = []
        for generator in results["systems"]:
            rows = [
                rates.get((j, benchmark, stands.get((j, benchmark), ""), generator)) for j in judges
            ]
            if any(rows):
                label = systems[generator].label
                pairs = zip(rows, judges, strict=True)
                groups.append((label, [bar(row, f"{label}, {judge}") for row, judge in pairs]))
        if groups:
            title = panel_title(benchmark, results)
            drawings.append(charts.bars(title, groups, judges, series(judges, judges)))
    text = (
        "The same pairs of answers, judged by each, averaged over the references. Judges may "
        "differ in level and still agree on which system is better."
    )
    return Figure("Judges compared", text, drawings)


def _position(results: Results) -> Figure:
    rows = []
    for judge, found in results["judges"].items():
        counts = found["position"]
        if counts["items"]:
            parts = [
                (
                    counts[f"{name}_share"],
                    f"{judge}: {said}, {counts[name]:,} of {counts['items']:,}",
                )
                for name, said, _ in POSITIONS
            ]
            rows.append((judge, parts))
    if not rows:
        return Figure("", "", [])
    _, names, colours = zip(*POSITIONS, strict=True)
    text = (
        "Each pair of answers is judged twice, with the order swapped. A judge that looks at the "
        "answers alone names the same winner both times; one that looks at the order names the "
        "first, or the second, twice. That counts half a win, so that it pulls every rate towards "
        "50 %."
    )
    chart = charts.shares("Pairs judged in both orders", rows, names, colours)
    return Figure("Does the order of the answers matter?", text, [chart])


def _comparisons(results: Results, systems: Systems, judge: str) -> Figure:
    stands, drawings = headlines(results), []
    for benchmark in results["benchmarks"]:
        found = {}
        for row in results["comparisons"]:
            if (row["judge"], row["benchmark"]) != (judge, benchmark):
                continue
            if row["reference"] == stands[judge, benchmark]:
                found[row["one"], row["other"]] = row
        order = [g for g in results["systems"] if any(g in pair for pair in found)]
        if len(order) < 2:
            continue
        rows = []
        for one in order:
            fields = [_difference(found, systems, one, other) for other in order]
            rows.append((systems[one].label, fields))
        reference = against(stands[judge, benchmark])
        title = f"{benchmark} ({_compared(found, results, benchmark)}), {reference}"
        drawings.append(charts.heat(title, [systems[g].label for g in order], rows))
    text = (
        f"Judge: {judge}. Percentage points by which the row's rate is above the column's, on the "
        "same items. Bold and coloured: p below 0.05 by an exact paired permutation test, after "
        "Holm's correction for all pairs of the table."
    )
    return Figure(f"Which differences are more than chance? {judge}", text, drawings)


def _compared(found: dict, results: Results, benchmark: str) -> str:
    """The items that the differences rest on: fewer than all where verdicts are invalid."""
    items = [row["items"] for row in found.values()]
    every = results["benchmarks"][benchmark]["items"]
    if min(items) == every:
        return f"{every:,} items"
    least = f"{min(items):,} to " if min(items) < max(items) else ""
    return f"pairs on {least}{max(items):,} of {every:,} items"


def _difference(found: dict, systems: Systems, one: str, other: str) -> Field | None:
    row, sign = found.get((one, other)), 1
    if row is None:
        row, sign = found.get((other, one)), -1
    if row is None:
        return None
    points, p = sign * 100 * row["difference"], row["p_holm"]
    ends = sorted((sign * 100 * row["low"], sign * 100 * row["high"]))
    tip = (
        f"{systems[one].label} - {systems[other].label}: {points:+.1f} points "
        f"[{ends[0]:+.1f}, {ends[1]:+.1f}], {p_text(p)} after Holm, {row['items']:,} items"
    )
    text = f"{points:+.0f}".replace("-", "−") if abs(points) >= 0.5 else "0"
    return Field(points / 40 if p < 0.05 else 0.0, text, tip, bold=p < 0.05)


def _by_label(results: Results, systems: Systems, judge: str, field: str) -> Figure:
    drawings = []
    for benchmark, told in results["benchmarks"].items():
        rows = {
            (row["generator"], row[field]): row
            for row in results[f"by_{field}"]
            if (row["judge"], row["benchmark"]) == (judge, benchmark)
        }
        labels = [label for label in told[field] if any(key[1] == label for key in rows)]
        labels = labels if field == "difficulty" else labels[:SHOWN_TOPICS]
        if len(labels) < 2:
            continue
        heads = [f"{label} ({told[field][label]:,})" for label in labels]
        table = []
        for generator in results["systems"]:
            fields = [_rate_field(rows.get((generator, label)), label) for label in labels]
            if any(fields):
                table.append((systems[generator].label, fields))
        reference = against(headlines(results)[judge, benchmark])
        drawings.append(
            charts.heat(f"{panel_title(benchmark, results)}, {reference}", heads, table)
        )
    text = (
        f"Judge: {judge}. Win rates in per cent, of the items of each {field}, whose number stands "
        "in brackets; blue is above 50, orange below."
    )
    return Figure(f"By {field}, {judge}", text, drawings)


def _rate_field(row: Row | None, label: str) -> Field | None:
    if row is None or row["rate"] is None:
        return None
    shown = bar(row, label)
    return Field((row["rate"] - 0.5) / 0.4, percent(row["rate"], 0), shown.tip)


def _lengths(results: Results) -> Figure:
    judges, drawings = list(results["judges"]), []
    for benchmark in results["benchmarks"]:
        found = {
            row["judge"]: row
            for row in results["by_length"]
            if row["benchmark"] == benchmark and row["generator"] is None
        }
        if not found:
            continue
        names = [judge for judge in judges if judge in found]
        groups = [
            (
                stratum,
                [bar(found[name]["strata"][stratum], f"{stratum}, {name}") for name in names],
            )
            for stratum in next(iter(found.values()))["strata"]
        ]
        title = panel_title(benchmark, results)
        drawings.append(charts.bars(title, groups, names, series(names, judges)))
    text = (
        "Win rates of all systems together, by the length of the answer in characters over that of "
        "its reference. Nothing is corrected: systems that write more may also write better. The "
        "tables tell each system's own."
    )
    return Figure("Do longer answers win?", text, drawings)


def write(directory: Path, figures: dict[str, Figure]) -> set[str]:
    """One PNG and one SVG each; returns the characters that no font here can draw in the PNGs."""
    directory.mkdir(parents=True, exist_ok=True)
    missing: set[str] = set()
    for name, figure in figures.items():
        whole = drawing.beside(figure.heading, figure.drawings, min(2, len(figure.drawings)))
        missing |= drawing.write_png(directory / f"{name}.png", whole)
        drawing.write_svg(directory / f"{name}.svg", whole)
    return missing
