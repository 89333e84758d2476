"""What the figures of a report have in common."""

import dataclasses
import re
from collections.abc import Iterable, Sequence
from typing import Any

from common.reports.drawing import SERIES, Drawing
from evaluation.reporting.charts import Bar, percent
from evaluation.reporting.systems import System
from evaluation.scoring.results import AVERAGE, Results, headline

Row = dict[str, Any]
Systems = dict[str, System]


@dataclasses.dataclass(frozen=True)
class Figure:
    heading: str
    text: str
    drawings: list[Drawing]


def fit(what: str, names: Sequence[str] | dict) -> None:
    """
    Raises:
      ValueError: there are more names than colours.
    """
    if len(names) > SERIES:
        raise ValueError(f"{len(names)} {what} do not fit in a figure; report at most {SERIES}")


def file_end(judge: str, judges: Iterable[str]) -> str:
    """What tells a judge's figures from the others'; "" for the only one."""
    judges = list(judges)
    if len(judges) == 1:
        return ""
    plain = [re.sub(r"[^A-Za-z0-9.]+", "_", name) for name in judges]
    mine = plain[judges.index(judge)]
    return f"-{mine}" if plain.count(mine) == 1 else f"-{mine}-{judges.index(judge) + 1}"


def series(names: Sequence[str], among: Iterable[str]) -> list[str]:
    """The colour of each name, the same in all panels: its place among all; the average is grey."""
    colours = {name: f"series{i}" for i, name in enumerate(among)} | {AVERAGE: "muted"}
    return [colours[name] for name in names]


def bar(row: Row | None, what: str) -> Bar | None:
    """The bar of a row with rate, low and high; None where there is no rate."""
    if row is None or row["rate"] is None:
        return None
    tip = (
        f"{what}: {percent(row['rate'])} % "
        f"[{percent(row['low'])}, {percent(row['high'])}], {_count(row)}"
    )
    return Bar(row["rate"], row["low"], row["high"], tip)


def _count(row: Row) -> str:
    if "valid" not in row:
        return f"{row['pairs']:,} pairs of {row['items']:,} items"
    invalid = row["items"] - row["valid"]
    if invalid and row["reference"] == AVERAGE:
        return f"{row['items']:,} items, {row['valid']:,} of them valid against all references"
    return f"{row['valid']:,} items" + (f", {invalid:,} more invalid" if invalid else "")


def rates_by_cell(results: Results) -> dict[tuple[str, str, str, str], Row]:
    """(judge, benchmark, reference, generator) -> its row."""
    return {
        (row["judge"], row["benchmark"], row["reference"], row["generator"]): row
        for row in results["win_rates"]
    }


def references(results: Results, judge: str, benchmark: str) -> list[str]:
    """Against what a judge's rates on a benchmark are; their average comes last."""
    there = {
        row["reference"]
        for row in results["win_rates"]
        if (row["judge"], row["benchmark"]) == (judge, benchmark)
    }
    return [name for name in (*results["references"], AVERAGE) if name in there]


def headlines(results: Results) -> dict[tuple[str, str], str]:
    """(judge, benchmark) -> what stands for all references: their average, or the only one."""
    keys = {(row["judge"], row["benchmark"], row["reference"]) for row in results["win_rates"]}
    return {pair: headline(sorted(keys), *pair)[2] for pair in sorted({key[:2] for key in keys})}


def panel_title(benchmark: str, results: Results) -> str:
    return f"{benchmark} ({results['benchmarks'][benchmark]['items']:,} items)"


def against(reference: str) -> str:
    return "average of the references" if reference == AVERAGE else f"against {reference}"


def p_text(p: float) -> str:
    """
    >>> p_text(0.0321), p_text(1e-9), p_text(1)
    ('p = 0.032', 'p < 0.001', 'p = 1.000')
    """
    return "p < 0.001" if p < 0.001 else f"p = {p:.3f}"
