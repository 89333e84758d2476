"""Questions with options, read and checked: from published files, or from any of that kind."""

import csv
import dataclasses
import io
from collections.abc import Iterator, Sequence
from pathlib import Path

from common import data_file, records
from common.jsonl import Record
from common.messages import log, suggestion
from common.sections import UsageError
from evaluation.multiple_choice import forms
from evaluation.multiple_choice.forms import FORMS, LETTERS, Counted, RawQuestion


@dataclasses.dataclass(frozen=True)
class Question:
    """One question, of whose options one is right."""

    id: str
    text: str
    options: tuple[str, ...]
    answer: int  # position of the right option
    subject: str  # "" where unknown
    context: str  # a text that the question is about; "" for none
    form: str  # key of FORMS


def read(files: Sequence[Path], form: str, first_answer: int | None = None) -> list[Question]:
    """The questions of some files, each of which may have another form.

    Args:
      form: a key of FORMS; "": recognised by the fields of each file's first record.
      first_answer: 0 or 1, the number of the first option; None: as the answers of a file show.

    Raises:
      FileNotFoundError, ValueError: a file cannot be read; or a record is malformed, and is named.
    """
    found = []
    for path in files:
        rows = list(_records(path))
        if not rows:
            raise ValueError(f"{path}: contains no questions")
        name = form or _recognised(*rows[0])
        raw = [(location, _raw(location, record, name)) for location, record in rows]
        own = FORMS[name].first_answer if first_answer is None else first_answer
        first = _first_answer(raw) if own is None else own
        prefix = f"{path.name.partition('.')[0]}-" if len(files) > 1 else ""
        for number, (location, one) in enumerate(raw):
            question = _checked(location, one, first, name)
            given = one.id or str(number)
            found.append(dataclasses.replace(question, id=prefix + given))
    source = files[0] if len(files) == 1 else "--input"
    records.require_unique_ids(source, (q.id for q in found), "answers are stored by id")
    if same := sum(len(set(q.options)) < len(q.options) for q in found):
        log(f"{same:,} questions have two options with the same text")
    return found


def of_subjects(questions: Sequence[Question], subjects: Sequence[str]) -> list[Question]:
    """The questions of these subjects; all, if none is given. Raises UsageError for an unknown."""
    known = sorted({question.subject for question in questions} - {""})
    for subject in subjects:
        if subject not in known:
            raise UsageError(
                f"--subjects: no question is of {subject!r}; {suggestion(subject, known)}"
            )
    return [q for q in questions if not subjects or q.subject in subjects]


def _raw(location: str, record: Record, form: str) -> RawQuestion:
    if not FORMS[form].fits(record):
        expected = " or ".join(", ".join(sorted(fields)) for fields in FORMS[form].fields[:2])
        raise ValueError(
            f"{location}: a record of the form {form} has {expected}; this one has "
            f"{', '.join(record) or 'fewer or more cells':.200}"
        )
    return FORMS[form].question(location, record)


def _recognised(location: str, record: Record) -> str:
    if name := next((name for name, form in FORMS.items() if form.fits(record)), ""):
        return name
    raise ValueError(
        f"{location}: no form of multiple choice has only the fields {', '.join(record):.200}; "
        "rename them to question, options (a list, or an object of letters) and answer (a letter, "
        "a position from 0, or the text of an option)"
    )


def _records(path: Path) -> Iterator[tuple[str, Record]]:
    """The records of a file, of an object by id (PubMedQA), or of exams (HEAD-QA)."""
    if rows := _headless(path):
        yield from rows
        return
    for location, record in data_file.read(path):
        if isinstance(exams := record.get("exams"), dict):
            for exam, content in exams.items():
                for item in content["data"]:
                    where = f"{location}, exam {exam}, question {item.get('qid')}"
                    yield where, {"name": exam, "category": content.get("category")} | item
        elif record and all(isinstance(value, dict) for value in record.values()):
            for id_, item in record.items():
                yield f"{location}, record {id_!r}", {"id": id_} | item
        else:
            yield location, record


def _headless(path: Path) -> list[tuple[str, Record]]:
    """The rows of one of MMLU's own CSV files, which have no header; [] if it is none."""
    if path.suffix != ".csv" or not path.is_file():
        return []
    rows = list(csv.reader(io.StringIO(path.read_text(encoding="utf-8-sig"))))
    if not rows or len(rows[0]) != 6 or rows[0][5] not in LETTERS[:4]:
        return []
    subject = path.stem
    for split in ("_test", "_dev", "_val"):
        subject = subject.removesuffix(split)
    return [
        (
            f"{path}, row {number}",
            {"question": row[0], "subject": subject, "choices": row[1:5], "answer": row[5]}
            if len(row) == 6
            else {},
        )
        for number, row in enumerate(rows, 1)
    ]


def _first_answer(raw: Sequence[tuple[str, RawQuestion]]) -> int:
    """The number of the first option: 0 if an answer is 0, 1 if one is the number of options."""
    numbers = [
        (where, question.answer.number, len(question.options))
        for where, question in raw
        if isinstance(question.answer, Counted)
    ]
    if not numbers:
        return 0
    zero = next((where for where, number, _ in numbers if number == 0), "")
    beyond = next((where for where, number, options in numbers if number == options), "")
    if zero and beyond:
        raise ValueError(
            f"{beyond}: the answer is no option: another ({zero}) is 0, so they count from 0"
        )
    if not (zero or beyond):
        raise ValueError(
            f"{numbers[0][0]}: no answer of the file is 0 or its number of options, so it is "
            "unknown whether they count from 0 or from 1; give --first_answer"
        )
    if beyond:
        log(f"{beyond}: the answers count from 1")
    return 0 if zero else 1


def _checked(location: str, raw: RawQuestion, first: int, form: str) -> Question:
    options = tuple(raw.options)  # as they are: their lengths count
    if not raw.text.strip():
        raise ValueError(f"{location}: the question is empty")
    if not 2 <= len(options) <= len(LETTERS):
        raise ValueError(
            f"{location}: {len(options)} options; there must be 2 to {len(LETTERS)}, each a text"
        )
    for letter, option in zip(LETTERS, options, strict=False):
        if not option.strip():
            raise ValueError(f"{location}: option {letter} is missing or empty")
    answer = forms.position(location, raw.answer, options, first)
    return Question(raw.id, raw.text, options, answer, raw.subject, raw.context, form)
