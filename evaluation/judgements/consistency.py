"""Checks that judgements can be used together; every error names file, place and remedy."""

import json
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from evaluation.inputs.benchmarks import check_name
from evaluation.judgements.verdicts import ORDERS, Matchup, Verdict, VerdictCode, Verdicts

RESUME = "rerun evaluation.judge with the same --workdir: it resumes"


def line_error(location: str, line: bytes) -> ValueError:
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


def check_names(path: Path, matchups: Iterable[tuple], items: Iterable[tuple]) -> None:
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


def check_prompts(matchups: Iterable[tuple]) -> None:
    """Requires that each judge has one prompt."""
    prompts: dict[str, str] = {}
    for judge, *_, prompt in matchups:
        if prompts.setdefault(judge, prompt) != prompt:
            both = " and ".join(sorted((prompts[judge], prompt)))
            raise ValueError(
                f"judge {judge!r} has verdicts by two prompts, {both}, which are not comparable: "
                "report only one of the workdirs, or give the judges different names"
            )


def check_unique(paths: list[Path], matchups: list, items: list, columns: np.ndarray) -> None:
    """Requires that no two rows have the same matchup, item and order."""
    key = (columns[:, 0] * len(items) + columns[:, 1]) * 2 + columns[:, 2]
    by_key = np.argsort(key, kind="stable")
    same = np.flatnonzero(np.diff(key[by_key]) == 0)
    if not len(same):
        return
    one, other = columns[by_key[same]], columns[by_key[same + 1]]
    files = sorted({str(paths[one[0, 4]]), str(paths[other[0, 4]])})
    differ = int((one[:, 3] != other[:, 3]).sum())
    raise ValueError(
        f"{' and '.join(files)}: id {items[one[0, 1]][1]!r} was judged twice in the same order: "
        f"{Matchup(*matchups[one[0, 0]][:4])} ({len(same):,} such, {differ:,} of them with "
        "different verdicts); list each source once, and keep only one of the two judgements"
    )


def check_orders(verdicts: Verdicts, matchup: Matchup, table: np.ndarray) -> None:
    """Requires both orders of every item; of a matchup from elsewhere, the same for every item."""
    absent = table == VerdictCode.MISSING
    judged = ~absent.all(axis=1)
    incomplete = np.flatnonzero(absent[:, 0] != absent[:, 1])
    files = set(verdicts.spans[matchup][..., 0].flat) - {-1}
    foreign = files <= verdicts.foreign.keys()
    if not foreign and files & verdicts.foreign.keys():
        both = " and ".join(str(verdicts.paths[number]) for number in sorted(files))
        raise ValueError(f"{both}: both hold verdicts of {matchup}; rename the judge of one")
    if not len(incomplete) or (foreign and len(incomplete) == judged.sum()):
        return
    item = incomplete[0]
    present = int(absent[item, 0])
    path = verdicts.paths[verdicts.spans[matchup][item, present, 0]]
    remedy = "complete them, or keep one order of each" if foreign else RESUME
    raise ValueError(
        f"{path}: id {verdicts.ids[matchup.benchmark][item]!r} lacks the order "
        f"{ORDERS[1 - present]} ({len(incomplete):,} such, {judged.sum() - len(incomplete):,} have "
        f"both): {matchup}; {remedy}"
    )


def check_items(verdicts: Verdicts) -> None:
    """Requires that all matchups of a workdir on a benchmark have the same items."""
    first: dict[tuple[int, str], tuple[Matchup, np.ndarray]] = {}
    for matchup, span in verdicts.spans.items():
        for number in np.unique(span[:, 0, 0]):
            if number < 0 or int(number) in verdicts.foreign:
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
