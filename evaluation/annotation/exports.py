"""What annotators send back: the JSON files that their page exports, as judgements.

    labels = load(["annotation", "second/lee.json", "labels.jsonl"])

An export is read with the key.json beside it; a folder stands for all exports in it. Everything
else is a file of judgements by people. The judge of an export is human/ANNOTATOR.
"""

import collections
import dataclasses
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from common.jsonl import Record
from common.messages import format_counts, log
from evaluation.annotation.pairs import (
    KEY_FILE,
    KEY_FORM,
    MODEL,
    AnswerPair,
    Assignment,
    PageKey,
    read_key,
)
from evaluation.judgements.foreign import ForeignJudgements, Judgement
from evaluation.judgements.verdicts import MODEL_FIRST, REFERENCE_FIRST, Verdict, shown
from evaluation.judgements.workdirs import ReportTexts
from evaluation.scoring.people import PREFERENCE

EXPORT_FORM = "alpacare-annotations-1"

QUESTIONS = (PREFERENCE, "correctness", "helpfulness")
"""What the page asks about a pair: which answer is better, and in which respect."""

A, B, EQUAL, CANNOT_JUDGE = "a", "b", "equal", "cannot judge"

NOT_EXPORTS = (KEY_FILE, "run.json")
"""JSON files in the folder of a page that are no exports."""


@dataclasses.dataclass(frozen=True)
class PeopleLabels:
    """The labels of a report."""

    sources: Mapping[str, list[Path | ForeignJudgements]]  # by question
    paths: list[Path]
    assignments: list[tuple[Path, Assignment]]  # of the answers in exports

    def require_same_texts(self, texts: ReportTexts) -> None:
        """Requires that people saw the texts that were judged.

        Raises:
          ValueError: an item or answer was edited; the first is named.
        """
        edited = {}
        for path, assigned in self.assignments:
            item = texts.items.get((assigned.benchmark, assigned.item))
            model, reference = (
                texts.outputs.get((assigned.benchmark, name), {}).get(assigned.item)
                for name in (assigned.generator, assigned.reference)
            )
            known = item and model and reference and AnswerPair(item, model, reference)
            if known and known.digest != assigned.digest:
                edited.setdefault(assigned[1:5], (path, assigned))
        if edited:
            path, assigned = next(iter(edited.values()))
            raise ValueError(
                f"{path}: the question {assigned.item!r} of {assigned.benchmark}, or the answer of "
                f"{assigned.generator} or {assigned.reference} to it, is not what "
                f"{assigned.annotator} saw ({len(edited):,} such pairs); report the files that the "
                "page was made from, or have the new ones annotated"
            )


def load(sources: Sequence[str]) -> PeopleLabels:
    """The labels in files and folders.

    Raises:
      FileNotFoundError: a file, or the key of an export, does not exist.
      ValueError: an export is damaged or of another page, or two are of one annotator.
    """
    found: dict[str, list[Path | ForeignJudgements]] = collections.defaultdict(list)
    paths: list[Path] = []
    assignments: list[tuple[Path, Assignment]] = []
    exported: dict[tuple[str, str], tuple[Path, Record]] = {}
    for path in _files(sources):
        paths.append(path)
        export = _read(path)
        if export is None:
            found[PREFERENCE].append(path)
            continue
        key = _key(path, export)
        if other := exported.get((key.page, export["annotator"])):
            raise ValueError(_twice(*other, path, export))
        exported[key.page, export["annotator"]] = path, export
        answers = {name: (key.assignments[name], a) for name, a in export["answers"].items()}
        assignments += [(path, assigned) for assigned, _ in answers.values()]
        _report(path, export, key)
        for question in QUESTIONS:
            if judged := _judgements(question, answers.values()):
                found[question].append(ForeignJudgements(path, judged, [], []))
    return PeopleLabels(found, paths, assignments)


def _files(sources: Sequence[str]) -> list[Path]:
    files = []
    for source in map(Path, sources):
        if not source.is_dir():
            files.append(source)
            continue
        exports = [path for path in sorted(source.glob("*.json")) if path.name not in NOT_EXPORTS]
        if not exports:
            raise FileNotFoundError(
                f"{source}: holds no export; put the JSON files that annotators send back beside "
                f"{KEY_FILE}, or give their names"
            )
        files += exports
    return files


def _read(path: Path) -> Record | None:
    """The content of an export; None for a file of another kind, which is read as judgements."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise FileNotFoundError(f"no such file: {path}; --labels takes files and folders") from None
    except UnicodeDecodeError:
        return None  # gzipped, or of an encoding that the reader of judgements names
    try:
        content = json.loads(text)
    except ValueError as error:
        beside_key = path.suffix == ".json" and path.with_name(KEY_FILE).exists()
        if EXPORT_FORM in text or beside_key:  # cut at its very start, or empty
            raise ValueError(f"{path}: a damaged export ({error}); export it again") from None
        return None
    form = content.get("form") if isinstance(content, dict) else None
    if form == KEY_FORM:
        raise ValueError(f"{path}: the key of a page, not what an annotator exported from it")
    if form != EXPORT_FORM:
        return None
    names = ("page", "annotator")
    if not (
        all(isinstance(content.get(name), str) for name in names)
        and isinstance(content.get("answers"), dict)
    ):
        raise ValueError(f"{path}: page, annotator or answers is missing; export it again")
    return content


def _key(path: Path, export: Record) -> PageKey:
    """The key of an export, after a check that the two belong together."""
    key_path = path.with_name(KEY_FILE)
    if not key_path.exists():
        raise FileNotFoundError(
            f"{path}: an export of alpacare annotate, whose {KEY_FILE} is not beside it; copy the "
            "export into the folder that alpacare annotate wrote"
        )
    key = read_key(key_path)
    if key.page != export["page"]:
        raise ValueError(
            f"{path}: exported from another page ({export['page']}) than that of {key_path} "
            f"({key.page}); move it to the folder of its page"
        )
    for name, answer in export["answers"].items():
        assigned = key.assignments.get(name)
        if assigned is None or assigned.annotator != export["annotator"]:
            raise ValueError(
                f"{path}: {name!r:.40} is no pair of {export['annotator']}, so the file was "
                "edited; export it again"
            )
        _check(path, name, answer)
    return key


def _check(path: Path, name: str, answer: Any) -> None:
    allowed: dict[str, list[str]] = {question: [A, B, EQUAL] for question in QUESTIONS}
    allowed[PREFERENCE].append(CANNOT_JUDGE)
    if not isinstance(answer, dict):
        raise ValueError(f"{path}: the answer to pair {name!r} must be an object")
    for question, choices in allowed.items():
        if answer.get(question) not in (None, *choices):
            raise ValueError(
                f"{path}: {question} of pair {name!r} is {answer[question]!r:.40}; it must be one "
                f"of {', '.join(choices)}"
            )


def _twice(one: Path, first: Record, other: Path, second: Record) -> str:
    newer = other if str(second.get("exported")) > str(first.get("exported")) else one
    counts = f"{len(first['answers']):,} and {len(second['answers']):,} pairs"
    return (
        f"{other}: {second['annotator']} has an export of the same page in {one} ({counts}); keep "
        f"one, such as the newer, {newer.name}"
    )


def _report(path: Path, export: Record, key: PageKey) -> None:
    """How far an annotator got."""
    answers = export["answers"].values()
    unable = sum(answer.get(PREFERENCE) == CANNOT_JUDGE for answer in answers)
    whole = sum(all(answer.get(question) for question in QUESTIONS) for answer in answers)
    given = sum(a.annotator == export["annotator"] for a in key.assignments.values())
    counts = {
        "finished": whole,
        "cannot be judged": unable,
        "without an answer to some question": given - whole - unable,
    }
    log(f"{path}: {export['annotator']}, {given:,} pairs: {format_counts(Counter(counts))}")


def _judgements(question: str, answers: Iterable[tuple[Assignment, Record]]) -> list[Judgement]:
    judged = []
    for assigned, answer in answers:
        choice = answer.get(question)
        if choice is None:
            continue
        order = MODEL_FIRST if assigned.first == MODEL else REFERENCE_FIRST
        first, second = shown(order, Verdict.MODEL, Verdict.REFERENCE)
        verdict = {A: first, B: second, EQUAL: Verdict.TIE}.get(choice, Verdict.INVALID)
        judged.append(
            Judgement(
                id=assigned.item,
                benchmark=assigned.benchmark,
                generator=assigned.generator,
                reference=assigned.reference,
                judge=f"human/{assigned.annotator}",
                prompt_version=EXPORT_FORM,
                order=order,
                verdict=verdict,
                score=None,
                raw=str(answer.get("comment") or ""),
            )
        )
    return judged
