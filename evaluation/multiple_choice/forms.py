"""The forms in which multiple-choice questions are published. To add one, add a row to FORMS.

medqa       MedQA's {question, options, answer_idx, meta_info}, options by letter
medqa_hf    MedQA with four options, as on the Hugging Face Hub: {sent1, ending0, ..., label}
medmcqa     {question, opa, opb, opc, opd, cop, subject_name}; cop counts from 1, on the Hub from 0
pubmedqa    {QUESTION, CONTEXTS, final_decision} by PMID, or the Hub's {question, context, ...}
headqa      {qtext, ra, answers: [{aid, atext}], category}, in exams or on the Hub
mmlu        {question, subject, choices, answer}, or its CSV files without a header
questions   any other: {question, options or choices, answer}, and id, subject, context
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from common import jsonl
from common.jsonl import Record

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"

DECISIONS = ("yes", "no", "maybe")
"""The options of PubMedQA."""


class Counted(NamedTuple):
    """An answer that is the number of an option; of a file's numbers the first may be 0 or 1."""

    number: int


@dataclasses.dataclass(frozen=True)
class RawQuestion:
    """What a record says, before it is checked."""

    text: str
    options: Sequence[str]
    answer: Counted | int | str  # int: a position; a text: a letter, or the text of an option
    id: str = ""
    subject: str = ""
    context: str = ""


@dataclasses.dataclass(frozen=True)
class Form:
    """One form of records."""

    fields: Sequence[set[str]]  # a record with all fields of one of these has this form
    question: Callable[[str, Record], RawQuestion]  # of (location, record); raises ValueError
    prompt: str  # key of prompts.PROMPTS
    first_answer: int | None = None  # the number of the first option; None: as a file shows

    def fits(self, record: Record) -> bool:
        """Whether a record may have this form."""
        return any(record.keys() >= fields for fields in self.fields)


def text_of(location: str, record: Record, field: str) -> str:
    """A field as text, "" if it is missing; numbers are texts of CSV files and of options."""
    value = record.get(field)
    plain = str(value) if isinstance(value, int | float) and not isinstance(value, bool) else value
    return jsonl.text(location, {field: plain}, field)


def position(location: str, answer: Counted | int | str, options: Sequence[str], first: int) -> int:
    """The position of the right option; `first` is the number of the first one.

    Raises:
      ValueError: it is none of the options, or may be two of them.
    """
    last = LETTERS[len(options) - 1]
    if isinstance(answer, int):
        return answer
    if isinstance(answer, Counted):
        if 0 <= answer.number - first < len(options):
            return answer.number - first
        raise ValueError(
            f"{location}: the answer {answer.number} is not the number of an option, {first} to "
            f"{first + len(options) - 1}; "
            + (
                "the published test set keeps its answers secret: use another split"
                if answer.number < 0
                else "if the first option is another number, give --first_answer"
            )
        )
    answer = answer.strip()
    meant = {i for i, letter in enumerate(LETTERS[: len(options)]) if answer == letter}
    meant |= {i for i, option in enumerate(options) if answer == option.strip()}
    if len(meant) > 1:
        raise ValueError(f"{location}: the answer {answer!r} may be two of the options")
    if not meant:
        raise ValueError(
            f"{location}: the answer {answer!r:.60} is none of the letters A to {last}, and not "
            "the text of an option"
        )
    return meant.pop()


def _counted(location: str, record: Record, field: str) -> Counted:
    value = jsonl.number(record.get(field))
    if value is None or value != int(value):
        raise ValueError(f"{location}: field {field!r} is {record.get(field)!r:.40}, not a number")
    return Counted(int(value))


def _options(location: str, given: Any) -> list[str]:
    """Options in order: a list of texts or of {key, value}, or an object by letter."""
    if isinstance(given, list) and given and all(isinstance(each, Mapping) for each in given):
        given = {each.get("key"): each.get("value") for each in given}
    if isinstance(given, Mapping):
        if list(given) != list(LETTERS[: len(given)]):
            raise ValueError(
                f"{location}: the options' letters are {', '.join(map(str, given)):.60}; they must "
                "be A, B, C, ... in this order, none left out"
            )
        given = list(given.values())
    if not isinstance(given, list):
        raise ValueError(
            f"{location}: options are a list, or an object by letter, not {given!r:.40}"
        )
    return [text_of(location, {"options": option}, "options") for option in given]


def _medqa(location: str, record: Record) -> RawQuestion:
    text, letter, words, subject = (
        text_of(location, record, name)
        for name in ("question", "answer_idx", "answer", "meta_info")
    )
    options = _options(location, record["options"])
    letters = LETTERS[: len(options)]
    if not (letter and letter in letters):
        raise ValueError(
            f"{location}: answer_idx is {letter!r:.40}, none of {', '.join(letters)}; for a "
            "position, call the field answer"
        )
    at = letters.index(letter)
    if words and options[at].strip() != words.strip():
        raise ValueError(
            f"{location}: the answer is {letter}, {options[at]!r:.40}, but also {words!r:.40}"
        )
    return RawQuestion(text, options, at, jsonl.identity(location, record), subject)


def _medqa_hf(location: str, record: Record) -> RawQuestion:
    names = [name for i in range(len(LETTERS)) if (name := f"ending{i}") in record]
    options = [text_of(location, record, name) for name in names]
    texts = [text_of(location, record, name) for name in ("sent1", "sent2")]
    answer = _counted(location, record, "label")
    return RawQuestion(
        " ".join(filter(None, texts)), options, answer, jsonl.identity(location, record)
    )


def _medmcqa(location: str, record: Record) -> RawQuestion:
    names = ("question", "subject_name", "opa", "opb", "opc", "opd")
    text, subject, *options = (text_of(location, record, name) for name in names)
    answer = _counted(location, record, "cop")
    return RawQuestion(text, options, answer, jsonl.identity(location, record), subject)


def _pubmedqa(location: str, record: Record) -> RawQuestion:
    upper = "QUESTION" in record
    contexts = record.get("CONTEXTS") if upper else record.get("context")
    if isinstance(contexts, Mapping):
        contexts = contexts.get("contexts")
    if not isinstance(contexts, list) or not all(isinstance(part, str) for part in contexts):
        raise ValueError(f"{location}: the abstract must be a list of texts, not {contexts!r:.40}")
    id_ = text_of(location, record, "pubid") or jsonl.identity(location, record)
    text = text_of(location, record, "QUESTION" if upper else "question")
    answer = text_of(location, record, "final_decision")
    if answer not in DECISIONS:
        raise ValueError(f"{location}: final_decision is {answer!r:.40}, not yes, no or maybe")
    at = DECISIONS.index(answer)
    return RawQuestion(text, DECISIONS, at, id_, "", "\n".join(contexts))


def _headqa(location: str, record: Record) -> RawQuestion:
    answers = record["answers"]
    if isinstance(answers, Mapping):  # of columns, as data sets of the Hub store lists of objects
        columns = answers.values()
        answers = [dict(zip(answers, row, strict=True)) for row in zip(*columns, strict=True)]
    numbers = [_counted(location, each, "aid").number for each in answers]
    if numbers != list(range(1, len(numbers) + 1)):
        raise ValueError(f"{location}: the answers are numbered {numbers}, not 1, 2, ...")
    right = _counted(location, record, "ra").number
    if not 1 <= right <= len(numbers):
        raise ValueError(f"{location}: field 'ra' is {right}, which is none of the answers")
    name, qid, subject, text = (
        text_of(location, record, field) for field in ("name", "qid", "category", "qtext")
    )
    options = [text_of(location, each, "atext") for each in answers]
    id_ = "-".join(filter(None, (name, qid)))
    return RawQuestion(text, options, right - 1, id_, subject)


def _plain(location: str, record: Record) -> RawQuestion:
    field = next(name for name in ("options", "choices") if name in record)
    name = next(name for name in ("answer", "label") if name in record)
    answer = record[name]
    if isinstance(answer, bool) or not isinstance(answer, int | str):
        raise ValueError(f"{location}: field {name!r} is {answer!r:.40}, not a letter or a number")
    subject = text_of(location, record, "subject") or text_of(location, record, "topic")
    return RawQuestion(
        text_of(location, record, "question"),
        _options(location, record[field]),
        answer if isinstance(answer, str) else Counted(answer),
        jsonl.identity(location, record),
        subject,
        text_of(location, record, "context"),
    )


def _mmlu(location: str, record: Record) -> RawQuestion:
    found = _plain(location, record)
    return dataclasses.replace(found, text=found.text.strip())


FORMS = {
    "medqa": Form([{"question", "options", "answer_idx"}], _medqa, "medqa"),
    "medqa_hf": Form([{"sent1", "ending0", "label"}], _medqa_hf, "medqa", first_answer=0),
    "medmcqa": Form([{"question", "opa", "opb", "opc", "opd", "cop"}], _medmcqa, "medmcqa"),
    "pubmedqa": Form(
        [{"QUESTION", "CONTEXTS", "final_decision"}, {"question", "context", "final_decision"}],
        _pubmedqa,
        "pubmedqa",
    ),
    "headqa": Form([{"qtext", "ra", "answers"}], _headqa, "headqa"),
    "mmlu": Form([{"question", "subject", "choices", "answer"}], _mmlu, "mmlu", first_answer=0),
    "questions": Form(
        [
            {"question", options, answer}
            for options in ("options", "choices")
            for answer in ("answer", "label")
        ],
        _plain,
        "letters",
    ),
}
