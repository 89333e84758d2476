"""Reads the tasks in a teacher's reply. What cannot be read is told, never dropped silently.

A reply in JSON follows a schema, unless it was cut. One in text is meant to look like this, and
seldom does:

    ###
    1. Type: Open Q&A
    Topic: Cardiology
    View: Patient
    Difficulty: 2
    Instruction: What does a murmur mean?
    Input: <noinput>
    ###
"""

import dataclasses
import json
import re
from collections.abc import Iterator
from typing import Any

from common.jsonl import NO_INPUT
from common.records import difficulty

LABELS = ("type", "topic", "view", "difficulty")

_HEADER = re.compile(  # possessive: teachers may end in thousands of underscores, or of spaces
    r"^[ \t]*+(?:#++[ \t]*+|[-*•][ \t]++)?[*_]*+(?:task[ \t]*+)?(?:\d++[.):][*_]*+[ \t]*+)?[*_]*+"
    r"(type|topic|view|difficulty|instruction|input)[*_]*+[ \t]*+:[*_]*+",
    re.IGNORECASE | re.MULTILINE,
)
_SEPARATOR = re.compile(r"^[ \t]*(?:#{2,}|-{3,}|\*{3,})[ \t]*$", re.MULTILINE)

_TASK_END = re.compile(r"^[ \t]*#{2,}[ \t]*$", re.MULTILINE)
"""What the prompt asks for between tasks; a rule of dashes may be part of a text."""

_NOTHING = re.compile(
    r"^[-*_ \t]*+input[*_]*+[ \t]*+:[*_]*+[ \t]*+<noinput>[*_`.]*+[ \t]*$", re.I | re.M
)
"""Behind it the task has ended; what follows is a remark of the teacher's."""

_RULE = re.compile(
    r"[ \t]*(?:#{2,}.*|(?:-{3,}|\*{3,})[ \t]*(?:(?:task[ \t]*)?\d+[.):].*)?)", re.IGNORECASE
)
"""A separator, with the next task's number or title; "***Take care.***" is text."""

_NUMBER = re.compile(r"(?:\d+[.):])?")


@dataclasses.dataclass(frozen=True)
class ParsedTask:
    """The fields of one task, each as it stands in the reply."""

    type: str
    topic: str
    view: str
    difficulty: int
    instruction: str
    input: str  # "" where there is none


@dataclasses.dataclass(frozen=True)
class Rejected:
    """A piece of a reply that is no task."""

    reason: str
    text: str


def parse(reply: str, *, cut: bool) -> tuple[list[ParsedTask], list[Rejected]]:
    """The tasks of a reply, in its order, and the pieces that are none.

    A task begins where type, topic, view and difficulty, in any order, stand at the beginnings of
    lines and an instruction follows; the same words inside a text, and a later "Input:" at the
    beginning of a line, belong to the text. Separators and numbers may be missing.

    Args:
      cut: whether the reply ended at the limit of its length; its last task is incomplete then.

    >>> tasks, rejected = parse('''1. **Type:** Q&A
    ... Topic: Diabetes
    ... View: Nurse
    ... Difficulty: 3/5
    ... Instruction: Sort these notes.
    ... Input: Type: 2
    ... Type: 1''', cut=False)
    >>> tasks[0].difficulty, tasks[0].input, rejected
    (3, 'Type: 2\\nType: 1', [])
    """
    reply = reply.removeprefix("\ufeff").replace("\r\n", "\n")
    headers = list(_HEADER.finditer(reply))
    names = [header[1].lower() for header in headers]
    starts = [i for i in range(len(names)) if _begins(names, i)]
    first = headers[starts[0]].start() if starts else len(reply)
    rejected = list(_outside(reply[:first]))
    tasks = []
    for k, i in enumerate(starts):
        last = k == len(starts) - 1
        stop = len(reply) if last else headers[starts[k + 1]].start()
        separator = _TASK_END.search(reply, headers[i + 4].end(), stop)
        end = separator.start() if separator else stop
        nothing = _NOTHING.search(reply, headers[i + 4].end(), end)
        if nothing and not (last and cut):
            end = nothing.end()
        rest = list(_outside(reply[end:stop]))
        if last and cut:
            piece = rest.pop().text if rest else reply[headers[i].start() : end]
            rejected += [*rest, Rejected("cut at the length limit", piece)]
            if not separator:
                continue
        else:
            rejected += rest
        found = _read(reply, headers[i : i + 5], names[i : i + 5], end)
        (tasks if isinstance(found, ParsedTask) else rejected).append(found)
    return tasks, rejected


def _begins(names: list[str], i: int) -> bool:
    return sorted(names[i : i + 4]) == sorted(LABELS) and names[i + 4 : i + 5] == ["instruction"]


def _outside(text: str) -> Iterator[Rejected]:
    """Pieces that lie before the first task, or behind the separator of one."""
    for piece in _SEPARATOR.split(text):
        if not piece.strip() or re.fullmatch(r"\s*\d+[.):]?\s*", piece):
            continue  # nothing, or the number of the task that follows
        have = {header[1].lower() for header in _HEADER.finditer(piece)}
        lacking = [name for name in (*LABELS, "instruction") if name not in have]
        reason = f"lacks {', '.join(lacking) or 'the usual order'}" if have else "no task"
        yield Rejected(reason, piece)


def _read(reply: str, headers: list[re.Match], names: list[str], end: int) -> ParsedTask | Rejected:
    whole = reply[headers[0].start() : end]
    ends = [header.start() for header in headers[1:]]
    labels = {
        name: reply[header.end() : stop].strip().strip("*_").strip()
        for name, header, stop in zip(names, headers, ends, strict=False)
    }
    if long := [name for name in LABELS if "\n" in labels[name]]:
        return Rejected(f"{long[0]} is more than a line", whole)
    level = difficulty(labels["difficulty"])
    if level is None:
        return Rejected("difficulty is not 1 to 5", whole)
    start = headers[4].end()
    split = next((h for h in _HEADER.finditer(reply, start, end) if h[1].lower() == "input"), None)
    instruction = _text(reply[start : split.start() if split else end])
    given = _text(reply[split.end() : end]) if split else ""
    return _task(labels | {"difficulty": level, "instruction": instruction, "input": given}, whole)


def _task(fields: dict[str, Any], whole: str) -> ParsedTask | Rejected:
    if re.search(r"[\ud800-\udfff]", "".join(fields[name] for name in _TEXTS)):
        return Rejected("half a surrogate pair", whole)  # written as an escape in JSON
    if not fields["instruction"]:
        return Rejected("the instruction is empty", whole)
    if fields["input"].lower().strip("*_`'\". ") in NO_INPUT:
        fields["input"] = ""
    return ParsedTask(**fields)


def _text(piece: str) -> str:
    """A text less what ends it: a separator, and the next task's number on a line of its own; less
    the end, too, of what is bold from before the field's name on."""
    lines = piece.strip().split("\n")
    last = len(lines) - 1
    while last and _NUMBER.fullmatch(lines[last].strip()):
        last -= 1
    text = "\n".join(lines[:last] if _RULE.fullmatch(lines[last]) else lines).strip()
    return text.removesuffix("**").strip() if text.count("**") % 2 else text


# Replies in JSON.

_OPENING = re.compile(r'\s*(?:```(?:json)?\s*)?\{\s*"tasks"\s*:\s*\[\s*')
_COMMA = re.compile(r"\s*,?\s*")
_CLOSING = re.compile(r"\]\s*\}\s*(?:```\s*)?")
_TEXTS = ("type", "topic", "view", "instruction", "input")


def parse_json(reply: str, *, cut: bool) -> tuple[list[ParsedTask], list[Rejected]]:
    """As `parse`, of a reply in JSON: an object whose `tasks` is a list of objects.

    Args:
      cut: whether the reply ended at the limit of its length; the tasks before the cut are read.

    >>> tasks, rejected = parse_json('{"tasks": [{"type": "Q&A", "topic": "Gout", "view": "Nurse", '
    ...     '"difficulty": 2, "instruction": "Define gout.", "input": "<noinput>"}, {"ty', cut=True)
    >>> tasks[0].instruction, tasks[0].input, rejected
    ('Define gout.', '', [Rejected(reason='cut at the length limit', text='{"ty')])
    """
    opening = _OPENING.match(reply)
    if not opening:
        reason = "cut at the length limit" if cut else "not JSON of the schema"
        return [], [Rejected(reason, reply)]
    tasks: list[ParsedTask] = []
    rejected: list[Rejected] = []
    decoder, at = json.JSONDecoder(), opening.end()
    while at < len(reply) and reply[at] != "]":
        try:
            record, end = decoder.raw_decode(reply, at)
        except (ValueError, RecursionError):  # a number of 5,000 digits is no JSONDecodeError
            reason = "cut at the length limit" if cut else "not JSON of the schema"
            rejected.append(Rejected(reason, reply[at:]))
            break
        found = _read_json(record, reply[at:end])
        (tasks if isinstance(found, ParsedTask) else rejected).append(found)
        at = _COMMA.match(reply, end).end()
    if not rejected and not _CLOSING.fullmatch(reply, at):
        rejected.append(Rejected("cut at the length limit" if cut else "no task", reply[at:]))
    return tasks, rejected


def _read_json(record: Any, whole: str) -> ParsedTask | Rejected:
    if not isinstance(record, dict) or not all(isinstance(record.get(x), str) for x in _TEXTS):
        return Rejected("not JSON of the schema", whole)
    level = difficulty(record.get("difficulty"))
    if level is None:
        return Rejected("difficulty is not 1 to 5", whole)
    return _task({name: record[name].strip() for name in _TEXTS} | {"difficulty": level}, whole)
