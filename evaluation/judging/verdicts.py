"""Reads the judgements of one or several workdirs into arrays, and checks their consistency.

A matchup is one judge on one system against one reference on one benchmark. Each of its items must
have been judged once in both orders, with one prompt.
"""

import dataclasses
import json
import re
from array import array
from collections import defaultdict
from collections.abc import Iterable, Sequence
from enum import IntEnum, StrEnum
from itertools import islice
from operator import itemgetter
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from evaluation.inputs.benchmarks import check_name

JUDGEMENTS_FILE = "judgements.jsonl"
MODEL_FIRST, REFERENCE_FIRST = ORDERS = ("model_first", "reference_first")

RESUME = "rerun evaluation.judge with the same --workdir: it resumes"


class Verdict(StrEnum):
    """Whose answer a judgement prefers, as judgements.jsonl spells it."""

    MODEL = "model"
    REFERENCE = "reference"
    TIE = "tie"
    INVALID = "invalid"  # the reply states no verdict


class VerdictCode(IntEnum):
    """Verdicts as the numbers that arrays hold."""

    MISSING = -1  # not judged
    MODEL = 0
    REFERENCE = 1
    TIE = 2
    INVALID = 3


CODE_OF_VERDICT: dict[str, int] = {v.value: VerdictCode[v.name].value for v in Verdict}


class Matchup(NamedTuple):
    """One judge on one system (`generator`) against one reference on one benchmark."""

    judge: str
    benchmark: str
    reference: str
    generator: str

    def __str__(self) -> str:
        return f"{self.judge} on {self.generator} against {self.reference}, {self.benchmark}"


@dataclasses.dataclass(frozen=True)
class Verdicts:
    """All judgements that were read."""

    ids: dict[str, list[str]]  # of each benchmark, in the order of the files
    tables: dict[Matchup, np.ndarray]  # [items of the benchmark, 2 ORDERS] int8: VerdictCode
    prompts: dict[str, str]  # judge -> prompt version
    paths: list[Path]
    spans: dict[Matchup, np.ndarray]  # [items, 2, 3] int64: path, first byte, bytes; -1: MISSING

    @property
    def count(self) -> int:
        """Judgements in all."""
        return sum(int((table != VerdictCode.MISSING).sum()) for table in self.tables.values())

    def names(self, field: str) -> list[str]:
        """All judges, benchmarks, references or generators, in alphabetical order."""
        return sorted({getattr(matchup, field) for matchup in self.tables})


def read(
    workdirs: Sequence[str | Path], labels: Sequence[str | Path] = ()
) -> tuple[Verdicts, Verdicts | None]:
    """(verdicts of the workdirs, verdicts of people), the second None without `labels`.

    `labels` are files of judgements by people. They may cover only some items, and only one order
    of each; every (id, benchmark, generator, reference) must be one that the workdirs judge.

    Raises:
      FileNotFoundError: a file does not exist.
      ValueError: a line is malformed or contradicts others; file, line and remedy are named.
    """
    verdicts = _read([Path(directory) / JUDGEMENTS_FILE for directory in workdirs])
    for matchup, table in verdicts.tables.items():
        _check_orders(verdicts, matchup, table)
    _check_items(verdicts)
    if not labels:
        return verdicts, None
    people = _read([Path(path) for path in labels], ids=verdicts.ids)
    known = {matchup[1:] for matchup in verdicts.tables}
    for matchup, spans in people.spans.items():
        path = people.paths[spans[..., 0].max()]  # one of the matchup's files
        if matchup.judge in verdicts.names("judge"):
            raise ValueError(
                f"{path}: judge {matchup.judge!r} is also a judge of the workdirs; give people "
                "another name, such as human"
            )
        if matchup[1:] not in known:
            raise ValueError(
                f"{path}: no workdir judges {matchup.generator} against {matchup.reference} on "
                f"{matchup.benchmark}; correct the names or remove these labels"
            )
    return verdicts, people


def replies(verdicts: Verdicts, spans: np.ndarray) -> list[str]:
    """The judges' raw replies, "" where there is none, of `spans` [n, 3] as in `Verdicts.spans`."""
    texts = [""] * len(spans)
    for number, path in enumerate(verdicts.paths):
        in_file = np.flatnonzero(spans[:, 0] == number)
        if not len(in_file):
            continue
        with path.open("rb") as lines:
            for row in in_file[np.argsort(spans[in_file, 1])]:
                lines.seek(spans[row, 1])
                texts[row] = json.loads(lines.read(spans[row, 2])).get("raw") or ""
    return texts


_MATCHUP = itemgetter("judge", "benchmark", "reference", "generator", "prompt_version")
_RAW_TYPES = (str, type(None))
_CODE_OF_ORDER = {name: code for code, name in enumerate(ORDERS)}


class _Numbering(defaultdict):
    """Numbers keys in the order of their first use.

    >>> numbers = _Numbering()
    >>> numbers["b"], numbers["a"], numbers["b"]
    (0, 1, 0)
    """

    def __missing__(self, name: Any) -> int:
        self[name] = number = len(self)
        return number


def _read(paths: list[Path], ids: dict[str, list[str]] | None = None) -> Verdicts:
    """The judgements of all files; with `ids`, other items than those are errors."""
    matchups, items = _Numbering(), _Numbering()
    for benchmark, known in (ids or {}).items():
        for name in known:
            items[benchmark, name]
    known_items = len(items)
    rows = array("q")  # matchup, item, order, verdict, file, offset, length of each line in turn
    for number, path in enumerate(paths):
        seen = len(matchups), len(items)
        _read_file(path, number, matchups, items, rows)
        _check_names(path, islice(matchups, seen[0], None), islice(items, seen[1], None))
    _check_prompts(matchups)
    if not rows:
        remedy = RESUME if ids is None else "add people's judgements or omit --labels"
        raise ValueError(f"{paths[0]}: contains no judgements; {remedy}")
    columns = np.array(rows).reshape(-1, 7)
    if ids is not None and len(items) > known_items:
        benchmark, name = list(items)[known_items]
        path = paths[columns[columns[:, 1] == known_items][0, 4]]
        raise ValueError(
            f"{path}: no workdir judges id {name!r} of {benchmark}; correct or remove it"
        )
    return _tabulate(paths, list(matchups), list(items), columns)


def _read_file(
    path: Path, number: int, matchups: _Numbering, items: _Numbering, rows: array
) -> None:
    """The inner loop: files of 400,000 lines are common, so nothing is checked twice here."""
    loads, extend = json.loads, rows.extend
    offset = 0
    try:
        with path.open("rb") as lines:
            for line_number, line in enumerate(lines, start=1):
                length = len(line)
                try:
                    record = loads(line)
                    matchup = matchups[_MATCHUP(record)]
                    item = items[record["benchmark"], record["id"]]
                    order = _CODE_OF_ORDER[record["order"]]
                    code = CODE_OF_VERDICT[record["verdict"]]
                    if type(record.get("raw")) not in _RAW_TYPES:
                        raise TypeError
                except (ValueError, LookupError, TypeError):
                    if line.strip():
                        raise _line_error(f"{path}:{line_number}", line) from None
                else:
                    extend((matchup, item, order, code, number, offset, length))
                offset += length
    except (FileNotFoundError, NotADirectoryError):
        raise FileNotFoundError(
            f"no such file: {path}; --judgements takes workdirs of evaluation.judge, --labels files"
        ) from None


def _line_error(location: str, line: bytes) -> ValueError:
    """What is wrong with a line that could not be used."""
    try:
        record = json.loads(line)
    except ValueError as error:
        return ValueError(f"{location}: not JSON in UTF-8 ({error}); {RESUME}")
    if not isinstance(record, dict):
        return ValueError(f"{location}: a judgement must be a JSON object")
    names = ("id", "benchmark", "generator", "reference", "judge", "prompt_version")
    for field in (*names, "order", "verdict"):
        if field not in record:
            return ValueError(f"{location}: field {field!r} is missing")
    for field, allowed in (("order", ORDERS), ("verdict", tuple(Verdict))):
        if record[field] not in allowed:
            return ValueError(
                f"{location}: {field} is {record[field]!r:.40}; it must be one of "
                f"{', '.join(allowed)}"
            )
    bad = next((field for field in names if not isinstance(record[field], str)), "raw")
    return ValueError(f"{location}: field {bad!r} must be a string")


def _check_names(path: Path, matchups: Iterable[tuple], items: Iterable[tuple]) -> None:
    """Requires that names can be displayed, and that ids are non-empty strings."""
    matchups = list(matchups)
    for names in (*matchups, *items):
        for name in names:
            if not isinstance(name, str) or not name:
                raise ValueError(
                    f"{path}: {name!r:.40} is used as a name or id; these must be non-empty strings"
                )
    for name in {name for matchup in matchups for name in matchup}:
        check_name(str(path), name)


def _check_prompts(matchups: Iterable[tuple]) -> None:
    """Requires that each judge has one prompt."""
    prompts: dict[str, str] = {}
    for judge, *_, prompt in matchups:
        if prompts.setdefault(judge, prompt) != prompt:
            both = " and ".join(sorted((prompts[judge], prompt)))
            raise ValueError(
                f"judge {judge!r} has verdicts by two prompts, {both}, which are not comparable: "
                "report only one of the workdirs, or give the judges different names"
            )


def _tabulate(paths: list[Path], matchups: list, items: list, columns: np.ndarray) -> Verdicts:
    """Rows of (matchup, item, order, verdict, file, offset, length) into a table per matchup."""
    ids: dict[str, list[str]] = {}
    row_of_item = np.empty(len(items), np.int64)  # within its benchmark
    for number, (benchmark, name) in enumerate(items):
        row_of_item[number] = len(ids.setdefault(benchmark, []))
        ids[benchmark].append(name)
    matchup = columns[:, 0]
    _check_unique(paths, matchups, items, columns)
    tables, spans = {}, {}
    by_matchup = np.argsort(matchup, kind="stable")
    ends = np.cumsum(np.bincount(matchup, minlength=len(matchups)))
    for number, fields in enumerate(matchups):
        rows = columns[by_matchup[ends[number - 1] if number else 0 : ends[number]]]
        table = np.full((len(ids[fields[1]]), 2), VerdictCode.MISSING, np.int8)
        span = np.full((len(table), 2, 3), -1, np.int64)
        table[row_of_item[rows[:, 1]], rows[:, 2]] = rows[:, 3]
        span[row_of_item[rows[:, 1]], rows[:, 2]] = rows[:, 4:]
        tables[Matchup(*fields[:4])], spans[Matchup(*fields[:4])] = table, span
    return Verdicts(
        ids=ids,
        tables={key: tables[key] for key in sorted(tables)},
        prompts={fields[0]: fields[4] for fields in sorted(matchups)},
        paths=paths,
        spans={key: spans[key] for key in sorted(tables)},
    )


def _check_unique(paths: list[Path], matchups: list, items: list, columns: np.ndarray) -> None:
    """Requires that no two rows have the same matchup, item and order."""
    key = (columns[:, 0] * len(items) + columns[:, 1]) * 2 + columns[:, 2]
    by_key = np.argsort(key, kind="stable")
    same = np.flatnonzero(np.diff(key[by_key]) == 0)
    if not len(same):
        return
    first, second = columns[by_key[same[0]]], columns[by_key[same[0] + 1]]
    files = sorted({str(paths[first[4]]), str(paths[second[4]])})
    raise ValueError(
        f"{' and '.join(files)}: id {items[first[1]][1]!r} was judged twice, "
        f"{ORDERS[first[2]]}: {Matchup(*matchups[first[0]][:4])}; list each workdir once, and keep "
        "only one of the two lines"
    )


def _check_orders(verdicts: Verdicts, matchup: Matchup, table: np.ndarray) -> None:
    """Requires both orders of every item."""
    absent = table == VerdictCode.MISSING
    incomplete = np.flatnonzero(absent[:, 0] != absent[:, 1])
    if not len(incomplete):
        return
    item = incomplete[0]
    present = int(absent[item, 0])
    path = verdicts.paths[verdicts.spans[matchup][item, present, 0]]
    raise ValueError(
        f"{path}: id {verdicts.ids[matchup.benchmark][item]!r} lacks the order "
        f"{ORDERS[1 - present]} ({len(incomplete):,} such): {matchup}; {RESUME}"
    )


def _check_items(verdicts: Verdicts) -> None:
    """Requires that all matchups of a workdir on a benchmark have the same items."""
    first: dict[tuple[int, str], tuple[Matchup, np.ndarray]] = {}
    for matchup, span in verdicts.spans.items():
        for number in np.unique(span[:, 0, 0]):
            if number < 0:
                continue
            judged = span[:, 0, 0] == number
            key = int(number), matchup.benchmark
            other, judged_by_other = first.setdefault(key, (matchup, judged))
            if (differ := np.flatnonzero(judged != judged_by_other)).size:
                incomplete = other if judged[differ[0]] else matchup
                name = verdicts.ids[matchup.benchmark][differ[0]]
                raise ValueError(
                    f"{verdicts.paths[number]}: id {name!r} is not judged everywhere "
                    f"({differ.size:,} such): not by {incomplete}; {RESUME}"
                )


def natural(name: str) -> list[tuple[int, int | str]]:
    """A sort key that puts "7" before "10", and "7B" before "13B".

    >>> natural("a-13B")
    [(1, 'a-'), (0, 13), (1, 'B')]
    """
    parts = enumerate(re.split(r"(\d+)", name))  # text and numbers alternate
    return [(0, int(part)) if place % 2 else (1, part) for place, part in parts if part]
