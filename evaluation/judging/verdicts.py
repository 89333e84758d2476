"""Reads the judgements of one or several workdirs into arrays, and checks that they fit together.

A cell is one judge on one system against one reference on one benchmark. Every item of it must have
been judged in both orders, once, with one prompt.
"""

import dataclasses
import json
import re
from array import array
from collections import defaultdict
from collections.abc import Iterable, Sequence
from itertools import islice
from operator import itemgetter
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from evaluation.inputs.benchmarks import check_name

FILE = "judgements.jsonl"
ORDERS = ("model_first", "reference_first")
VERDICTS = ("model", "reference", "tie", "invalid")
MODEL, REFERENCE, TIE, INVALID = range(4)
MISSING = -1
"""Verdicts as numbers: positions in `VERDICTS`, and `MISSING` where an item was not judged."""

AGAIN = "run evaluation.judge again with the same --workdir: it goes on where it stopped"


class Cell(NamedTuple):
    judge: str
    benchmark: str
    reference: str
    generator: str

    def __str__(self) -> str:
        return f"{self.judge} on {self.generator} against {self.reference}, {self.benchmark}"


@dataclasses.dataclass(frozen=True)
class Verdicts:
    ids: dict[str, list[str]]  # of each benchmark, in the order of the files
    cells: dict[Cell, np.ndarray]  # [items of the benchmark, 2 ORDERS] int8: VERDICTS or MISSING
    prompts: dict[str, str]  # judge -> prompt version
    paths: list[Path]
    places: dict[Cell, np.ndarray]  # [items, 2, 3] int64: file, first byte, bytes; -1: MISSING

    @property
    def count(self) -> int:
        return sum(int((table != MISSING).sum()) for table in self.cells.values())

    def names(self, field: str) -> list[str]:
        """All judges, benchmarks, references or generators, in alphabetical order."""
        return sorted({getattr(cell, field) for cell in self.cells})


def read(
    workdirs: Sequence[str | Path], labels: Sequence[str | Path] = ()
) -> tuple[Verdicts, Verdicts | None]:
    """(verdicts of the workdirs, verdicts of people), the second None without `labels`.

    `labels` are files of judgements by people. They may hold some of the items only, and one order
    of them; each (id, benchmark, generator, reference) must be one that the workdirs judge.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: a line, or how lines fit together, is wrong; file, line and remedy are named.
    """
    verdicts = _read([Path(directory) / FILE for directory in workdirs])
    for cell, table in verdicts.cells.items():
        _check_orders(verdicts, cell, table)
    _check_items(verdicts)
    if not labels:
        return verdicts, None
    people = _read([Path(path) for path in labels], ids=verdicts.ids)
    known = {cell[1:] for cell in verdicts.cells}
    for cell in people.cells:
        if cell.judge in verdicts.names("judge"):
            raise ValueError(
                f"{_file(people, cell)}: judge {cell.judge!r} is a judge of the workdirs too; "
                "give people another name, such as human"
            )
        if cell[1:] not in known:
            raise ValueError(
                f"{_file(people, cell)}: no workdir judges {cell.generator} against "
                f"{cell.reference} on {cell.benchmark}; correct the names or leave these labels out"
            )
    return verdicts, people


def _file(verdicts: Verdicts, cell: Cell) -> Path:
    """One that holds judgements of the cell."""
    return verdicts.paths[verdicts.places[cell][..., 0].max()]


def replies(verdicts: Verdicts, places: np.ndarray) -> list[str]:
    """The judges' own texts, "" where there is none, of `places` [n, 3] as in `Verdicts.places`."""
    texts = [""] * len(places)
    for file, path in enumerate(verdicts.paths):
        mine = np.flatnonzero(places[:, 0] == file)
        if not len(mine):
            continue
        with path.open("rb") as lines:
            for at in mine[np.argsort(places[mine, 1])]:
                lines.seek(places[at, 1])
                texts[at] = json.loads(lines.read(places[at, 2])).get("raw") or ""
    return texts


_CELL = itemgetter("judge", "benchmark", "reference", "generator", "prompt_version")
_CODES = {name: code for code, name in enumerate(VERDICTS)}
_RAW = (str, type(None))  # what the field may be
_ORDERS = {name: code for code, name in enumerate(ORDERS)}


class _Names(defaultdict):
    """Numbers for names, in the order in which they come."""

    def __missing__(self, name: Any) -> int:
        self[name] = number = len(self)
        return number


def _read(paths: list[Path], ids: dict[str, list[str]] | None = None) -> Verdicts:
    cells, items = _Names(), _Names()
    for benchmark, known in (ids or {}).items():
        for name in known:
            items[benchmark, name]
    known_items = len(items)
    rows = array("q")  # cell, item, order, verdict, file, offset, length of each line in turn
    for file, path in enumerate(paths):
        seen = len(cells), len(items)
        _read_file(path, file, cells, items, rows)
        _check_names(path, islice(cells, seen[0], None), islice(items, seen[1], None))
    _check_prompts(cells)
    if not rows:
        remedy = AGAIN if ids is None else "give people's judgements or leave --labels out"
        raise ValueError(f"{paths[0]}: holds no judgement; {remedy}")
    columns = np.array(rows).reshape(-1, 7)
    if ids is not None and len(items) > known_items:
        benchmark, name = list(items)[known_items]
        path = paths[columns[columns[:, 1] == known_items][0, 4]]
        raise ValueError(
            f"{path}: no workdir judges id {name!r} of {benchmark}; correct it or leave it out"
        )
    return _fold(paths, list(cells), list(items), columns)


def _read_file(path: Path, file: int, cells: _Names, items: _Names, rows: array) -> None:
    """The inner loop: some 400,000 lines are usual, so nothing is checked twice here."""
    loads, add = json.loads, rows.extend
    offset = 0
    try:
        with path.open("rb") as lines:
            for number, line in enumerate(lines, start=1):
                length = len(line)
                try:
                    record = loads(line)
                    cell = cells[_CELL(record)]
                    item = items[record["benchmark"], record["id"]]
                    order, code = _ORDERS[record["order"]], _CODES[record["verdict"]]
                    if type(record.get("raw")) not in _RAW:
                        raise TypeError
                except (ValueError, LookupError, TypeError):
                    if line.strip():
                        raise _complaint(f"{path}:{number}", line) from None
                else:
                    add((cell, item, order, code, file, offset, length))
                offset += length
    except (FileNotFoundError, NotADirectoryError):
        raise FileNotFoundError(
            f"no such file: {path}; --judgements takes workdirs of evaluation.judge, --labels files"
        ) from None


def _complaint(where: str, line: bytes) -> ValueError:
    """What is wrong with a line that could not be used."""
    try:
        record = json.loads(line)
    except ValueError as error:
        return ValueError(f"{where}: not JSON in UTF-8 ({error}); {AGAIN}")
    if not isinstance(record, dict):
        return ValueError(f"{where}: a judgement must be a JSON object")
    needed = ("id", "benchmark", "generator", "reference", "judge", "prompt_version")
    for field in (*needed, "order", "verdict"):
        if field not in record:
            return ValueError(f"{where}: field {field!r} is missing")
    for field, allowed in (("order", ORDERS), ("verdict", VERDICTS)):
        if record[field] not in allowed:
            return ValueError(
                f"{where}: {field} is {record[field]!r:.40}; it must be one of {', '.join(allowed)}"
            )
    bad = next((field for field in needed if not isinstance(record[field], str)), "raw")
    return ValueError(f"{where}: field {bad!r} must be a string")


def _check_names(path: Path, cells: Iterable[tuple], items: Iterable[tuple]) -> None:
    """Names are texts that can be shown, and ids are texts."""
    cells = list(cells)
    for names in (*cells, *items):
        for name in names:
            if not isinstance(name, str) or not name:
                raise ValueError(
                    f"{path}: {name!r:.40} is a name or id; each must be a text that is not empty"
                )
    for name in {name for cell in cells for name in cell}:
        check_name(str(path), name)


def _check_prompts(cells: Iterable[tuple]) -> None:
    """A judge has one prompt."""
    prompts: dict[str, str] = {}
    for judge, *_, prompt in cells:
        if prompts.setdefault(judge, prompt) != prompt:
            both = " and ".join(sorted((prompts[judge], prompt)))
            raise ValueError(
                f"judge {judge!r} has verdicts by two prompts, {both}, which are not comparable: "
                "report one of the workdirs, or give the judges different names"
            )


def _fold(paths: list[Path], cells: list, items: list, columns: np.ndarray) -> Verdicts:
    """Rows of (cell, item, order, verdict, file, offset, length) into one table a cell."""
    ids: dict[str, list[str]] = {}
    row = np.empty(len(items), np.int64)  # of each item among those of its benchmark
    for number, (benchmark, name) in enumerate(items):
        row[number] = len(ids.setdefault(benchmark, []))
        ids[benchmark].append(name)
    cell, item, order = columns[:, 0], columns[:, 1], columns[:, 2]
    key = (cell * len(items) + item) * 2 + order
    _check_twice(paths, cells, items, columns, key)
    tables, places = {}, {}
    by_cell = np.argsort(cell, kind="stable")
    ends = np.cumsum(np.bincount(cell, minlength=len(cells)))
    for number, name in enumerate(cells):
        mine = columns[by_cell[ends[number - 1] if number else 0 : ends[number]]]
        table = np.full((len(ids[name[1]]), 2), MISSING, np.int8)
        place = np.full((len(table), 2, 3), -1, np.int64)
        table[row[mine[:, 1]], mine[:, 2]] = mine[:, 3]
        place[row[mine[:, 1]], mine[:, 2]] = mine[:, 4:]
        tables[Cell(*name[:4])], places[Cell(*name[:4])] = table, place
    order_of = sorted(tables)
    return Verdicts(
        ids=ids,
        cells={name: tables[name] for name in order_of},
        prompts={name[0]: name[4] for name in sorted(cells)},
        paths=paths,
        places={name: places[name] for name in order_of},
    )


def _check_twice(
    paths: list[Path], cells: list, items: list, columns: np.ndarray, key: np.ndarray
) -> None:
    by_key = np.argsort(key, kind="stable")
    same = np.flatnonzero(np.diff(key[by_key]) == 0)
    if not len(same):
        return
    first, second = columns[by_key[same[0]]], columns[by_key[same[0] + 1]]
    files = sorted({str(paths[first[4]]), str(paths[second[4]])})
    raise ValueError(
        f"{' and '.join(files)}: id {items[first[1]][1]!r} was judged twice, "
        f"{ORDERS[first[2]]}: {Cell(*cells[first[0]][:4])}; give each workdir once, and keep one "
        "line of the two"
    )


def _check_orders(verdicts: Verdicts, cell: Cell, table: np.ndarray) -> None:
    absent = table == MISSING
    one = np.flatnonzero(absent[:, 0] != absent[:, 1])
    if not len(one):
        return
    item = one[0]
    there = int(absent[item, 0])
    path = verdicts.paths[verdicts.places[cell][item, there, 0]]
    raise ValueError(
        f"{path}: id {verdicts.ids[cell.benchmark][item]!r} lacks the order "
        f"{ORDERS[1 - there]} ({len(one):,} such): {cell}; {AGAIN}"
    )


def _check_items(verdicts: Verdicts) -> None:
    """All cells that a workdir has on a benchmark hold the same items."""
    first: dict[tuple[int, str], tuple[Cell, np.ndarray]] = {}
    for cell, place in verdicts.places.items():
        for file in np.unique(place[:, 0, 0]):
            if file < 0:
                continue
            mine = place[:, 0, 0] == file
            other, theirs = first.setdefault((int(file), cell.benchmark), (cell, mine))
            if (differ := np.flatnonzero(mine != theirs)).size:
                lacks = other if mine[differ[0]] else cell
                raise ValueError(
                    f"{verdicts.paths[file]}: id {verdicts.ids[cell.benchmark][differ[0]]!r} is "
                    f"not judged everywhere ({differ.size:,} such): not by {lacks}; {AGAIN}"
                )


def natural(name: str) -> list[tuple[int, int | str]]:
    """A key that sorts "7" before "10", and "7B" before "13B"."""
    parts = enumerate(re.split(r"(\d+)", name))  # texts and numbers take turns
    return [(0, int(part)) if place % 2 else (1, part) for place, part in parts if part]
