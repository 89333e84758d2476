"""Reads judgements into arrays, and checks their consistency.

Each item of a matchup must have been judged once in both orders, with one prompt. Judgements from
elsewhere may be in one order; the name of their judge then says so, in every table and figure.
"""

import dataclasses
import json
from array import array
from collections import defaultdict
from collections.abc import Sequence
from itertools import islice
from operator import attrgetter, itemgetter
from pathlib import Path
from typing import Any

import numpy as np

from evaluation.judgements import consistency
from evaluation.judgements.foreign import ForeignJudgements
from evaluation.judgements.verdicts import (
    CODE_OF_VERDICT,
    JUDGEMENTS_FILE,
    ORDERS,
    Matchup,
    VerdictCode,
    Verdicts,
)

ONE_ORDER = " (one order)"
"""Added to the name of a judge that saw each pair once."""


def read(
    sources: Sequence[str | Path | ForeignJudgements],
    labels: Sequence[str | Path | ForeignJudgements] = (),
) -> tuple[Verdicts, Verdicts | None]:
    """(verdicts of workdirs and from elsewhere, verdicts of people); the second may be None.

    `labels` are files of judgements by people. They may cover only some items, and only one order
    of each; every (id, benchmark, generator, reference) must be one that `sources` judge.

    Raises:
      FileNotFoundError: a file does not exist.
      ValueError: a line is malformed or contradicts others; file, line and remedy are named.
    """
    verdicts = _read(
        [
            source if isinstance(source, ForeignJudgements) else Path(source) / JUDGEMENTS_FILE
            for source in sources
        ]
    )
    for matchup, table in verdicts.tables.items():
        consistency.check_orders(verdicts, matchup, table)
    consistency.check_items(verdicts)
    verdicts = _marked(verdicts)
    return verdicts, read_people(labels, verdicts) if labels else None


def read_people(labels: Sequence[str | Path | ForeignJudgements], verdicts: Verdicts) -> Verdicts:
    """People's verdicts on what `verdicts` are on; see `read`."""
    people = _read(
        [one if isinstance(one, ForeignJudgements) else Path(one) for one in labels],
        ids=verdicts.ids,
    )
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
    return people


_MATCHUP_FIELDS = ("judge", "benchmark", "reference", "generator", "prompt_version")
_MATCHUP, _MATCHUP_OF = itemgetter(*_MATCHUP_FIELDS), attrgetter(*_MATCHUP_FIELDS)
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


def _read(
    sources: Sequence[Path | ForeignJudgements], ids: dict[str, list[str]] | None = None
) -> Verdicts:
    """The judgements of all files; with `ids`, other items than those are errors."""
    matchups, items = _Numbering(), _Numbering()
    for benchmark, known in (ids or {}).items():
        for name in known:
            items[benchmark, name]
    known_items = len(items)
    paths = [s.path if isinstance(s, ForeignJudgements) else s for s in sources]
    rows = array("q")  # matchup, item, order, verdict, file, offset, length of each line in turn
    scores: dict[int, float] = {}  # of graded verdicts, by row
    unordered: set[int] = set()
    for number, source in enumerate(sources):
        seen = len(matchups), len(items)
        if isinstance(source, ForeignJudgements):
            unordered |= _add(source, number, matchups, items, rows, scores)
        else:
            _read_file(source, number, matchups, items, rows)
        consistency.check_names(
            paths[number], islice(matchups, seen[0], None), islice(items, seen[1], None)
        )
    consistency.check_prompts(matchups)
    if not rows:
        remedy = consistency.RESUME if ids is None else "add people's judgements or omit --labels"
        raise ValueError(f"{paths[0]}: contains no judgements; {remedy}")
    columns = np.array(rows).reshape(-1, 7)
    if ids is not None and len(items) > known_items:
        benchmark, name = list(items)[known_items]
        path = paths[columns[columns[:, 1] == known_items][0, 4]]
        raise ValueError(
            f"{path}: no workdir judges id {name!r} of {benchmark}; correct or remove it"
        )
    found = _tabulate(paths, list(matchups), list(items), columns, scores)
    foreign = {
        number: [judged.raw for judged in source.judgements]
        for number, source in enumerate(sources)
        if isinstance(source, ForeignJudgements)
    }
    names = list(matchups)
    without = frozenset(Matchup(*names[number][:4]) for number in unordered)
    return dataclasses.replace(found, foreign=foreign, unordered=without)


def _add(
    source: ForeignJudgements,
    number: int,
    matchups: _Numbering,
    items: _Numbering,
    rows: array,
    scores: dict[int, float],
) -> set[int]:
    """Adds the judgements of a file from elsewhere; returns the matchups without an order."""
    orders: dict[int, set[str]] = {}
    for place, judged in enumerate(source.judgements):
        matchup = matchups[_MATCHUP_OF(judged)]
        if judged.score is not None:
            scores[len(rows) // 7] = judged.score
        orders.setdefault(matchup, set()).add(judged.order)
        order = _CODE_OF_ORDER.get(judged.order, 0)
        code = CODE_OF_VERDICT[judged.verdict]
        rows.extend((matchup, items[judged.benchmark, judged.id], order, code, number, place, 0))
    names = list(matchups)
    for matchup, found in orders.items():
        if "" in found and len(found) > 1:
            raise ValueError(
                f"{source.path}: some judgements have an `order` and some have none: "
                f"{Matchup(*names[matchup][:4])}; give it to all of them, or to none"
            )
    return {matchup for matchup, found in orders.items() if found == {""}}


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
                        raise consistency.line_error(f"{path}:{line_number}", line) from None
                else:
                    extend((matchup, item, order, code, number, offset, length))
                offset += length
    except (FileNotFoundError, NotADirectoryError):
        raise FileNotFoundError(
            f"no such file: {path}; --judgements takes workdirs of evaluation.judge, and files of "
            "judgements that docs/file_formats.md describes; --labels files and folders"
        ) from None


def _tabulate(
    paths: list[Path],
    matchups: list,
    items: list,
    columns: np.ndarray,
    graded: dict[int, float],
) -> Verdicts:
    """Rows of (matchup, item, order, verdict, file, offset, length) into a table per matchup."""
    ids: dict[str, list[str]] = {}
    row_of_item = np.empty(len(items), np.int64)  # within its benchmark
    for number, (benchmark, name) in enumerate(items):
        row_of_item[number] = len(ids.setdefault(benchmark, []))
        ids[benchmark].append(name)
    matchup = columns[:, 0]
    consistency.check_unique(paths, matchups, items, columns)
    points = np.full(len(columns), np.nan)
    points[list(graded)] = list(graded.values())
    tables, spans, scores = {}, {}, {}
    by_matchup = np.argsort(matchup, kind="stable")
    ends = np.cumsum(np.bincount(matchup, minlength=len(matchups)))
    for number, fields in enumerate(matchups):
        own = by_matchup[ends[number - 1] if number else 0 : ends[number]]
        rows, key = columns[own], Matchup(*fields[:4])
        table = np.full((len(ids[fields[1]]), 2), VerdictCode.MISSING, np.int8)
        span = np.full((len(table), 2, 3), -1, np.int64)
        place = row_of_item[rows[:, 1]], rows[:, 2]
        table[place] = rows[:, 3]
        span[place] = rows[:, 4:]
        tables[key], spans[key] = table, span
        if not np.isnan(points[own]).all():
            scores[key] = np.full(table.shape, np.nan)
            scores[key][place] = points[own]
    return Verdicts(
        ids=ids,
        tables={key: tables[key] for key in sorted(tables)},
        prompts={fields[0]: fields[4] for fields in sorted(matchups)},
        paths=paths,
        spans={key: spans[key] for key in sorted(tables)},
        scores=scores,
        foreign={},
        one_order=frozenset(),
        unordered=frozenset(),
    )


def _marked(verdicts: Verdicts) -> Verdicts:
    """With the names of judges that saw each pair once marked by `ONE_ORDER`."""
    new = {key: key for key in verdicts.tables}
    for key, table in verdicts.tables.items():
        if ((table == VerdictCode.MISSING).sum(axis=1) == 1).any():
            new[key] = key._replace(judge=key.judge + ONE_ORDER)
            if new[key] in verdicts.tables:
                raise ValueError(f"two judges are named {new[key].judge!r}; rename one of them")
    one_order = frozenset(new[key].judge for key in new if new[key] != key)
    return dataclasses.replace(
        verdicts,
        tables={new[key]: table for key, table in verdicts.tables.items()},
        spans={new[key]: span for key, span in verdicts.spans.items()},
        scores={new[key]: scores for key, scores in verdicts.scores.items()},
        prompts={new[key].judge: verdicts.prompts[key.judge] for key in new},
        unordered=frozenset(new[key] for key in verdicts.unordered),
        one_order=one_order,
    )
