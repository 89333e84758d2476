"""Parses the tasks in a teacher's reply; whatever is no task is rejected with a reason.

A reply in JSON follows a schema, unless it was truncated. A reply in text should look like this,
and seldom does:

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
import string
from collections.abc import Iterator
from typing import Any

from common.records import Task, difficulty
from datagen.writing.no_input import means_none

TASK_LABELS = ("type", "topic", "view", "difficulty")
_TEXTS_IN_LINE = ([], ["instruction"], ["instruction", "input"])
_INVISIBLE = string.whitespace + "\u00a0\u00ad\u200b\u200c\u200d\u202f\u2060\u3000\ufeff"

_SPACE = r"[ \t\u00a0\u00ad\u2000-\u200d\u202f\u2060\u3000\ufeff]"
"""Spaces of any width, none included."""

_BEFORE = (  # possessive: replies may end in thousands of underscores or spaces
    rf"^{_SPACE}*+(?:[#>]++{_SPACE}*+|[-*•●▪◦]{_SPACE}++)?[*_`]*+(?:task{_SPACE}*+)?"
    rf"(?:(?:\d\ufe0f?\u20e3|[(（]?(?:\d++|[a-h]|[ivx]++)[.):．：、）]++)[*_`]*+{_SPACE}*+)?"
    rf"(?:[\u2190-\u2bff\ufe0f\U0001f000-\U0001faff]++{_SPACE}*+)?[*_`\[【]*+"
)
"""Before the name of a field: a bullet, a number or letter, an emoji, markup."""

_AFTER = rf"[*_`\]】]*+{_SPACE}*+[:：﹕][*_`]*+"
_NAMES = "type|topic|view|difficulty|instruction|input"
_FIELD = re.compile(rf"{_BEFORE}({_NAMES}){_AFTER}", re.IGNORECASE | re.MULTILINE)
_FIELD_IN_LINE = re.compile(rf"[|｜]{_SPACE}*+[*_`]*+({_NAMES}){_AFTER}", re.IGNORECASE)
_ANY_FIELD = re.compile(rf"\b({_NAMES}){_AFTER}", re.IGNORECASE)
_SEPARATOR = re.compile(rf"^{_SPACE}*+(?:#{{2,}}|-{{3,}}|\*{{3,}}){_SPACE}*+$", re.MULTILINE)

_TASK_END = re.compile(rf"^{_SPACE}*+#{{2,}}{_SPACE}*+$", re.MULTILINE)
"""The separator that the prompt asks for; a rule of dashes may be part of a text."""

_EMPTY_INPUT = re.compile(
    rf"{_BEFORE}input{_AFTER}{_SPACE}*+<noinput>[*_`.]*+{_SPACE}*$", re.IGNORECASE | re.MULTILINE
)
"""The task ends here; the rest is a remark by the teacher."""

_RULE = re.compile(
    r"[ \t]*(?:#{2,}.*|(?:-{3,}|\*{3,})[ \t]*(?:(?:task[ \t]*)?\d+[.):].*)?)", re.IGNORECASE
)
"""A separator, possibly with the next task's number or title; "***Take care.***" is text."""

_LINE_END = re.compile("\r\n|[\n\r\x0b\x0c\x85\u2028\u2029]")
_NUMBER = re.compile(r"(?:\d+[.):])?")


@dataclasses.dataclass(frozen=True)
class Rejected:
    """A piece of a reply that is no task."""

    reason: str
    text: str


def _sort(found: Task | Rejected, tasks: list[Task], rejected: list[Rejected]) -> None:
    """Appends to one list or the other."""
    if isinstance(found, Task):
        tasks.append(found)
    else:
        rejected.append(found)


def parse(reply: str, *, cut: bool) -> tuple[list[Task], list[Rejected]]:
    """The tasks of a reply, in order and without ids, and the pieces that are no tasks.

    A task starts where lines begin with type, topic, view and difficulty, in any order, followed by
    an instruction. The same words inside a text, and a second "Input:" at the beginning of a line,
    belong to the text. Separators and numbers may be missing.

    Args:
      cut: whether the reply was truncated at its length limit, so that its last task is incomplete.

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
    reply = "\n".join(map(_fields_on_lines, _LINE_END.split(reply)))
    headers = list(_FIELD.finditer(reply))
    names = [header[1].lower() for header in headers]
    starts = [i for i in range(len(names)) if _begins(names, i)]
    if not starts and _JSON_TASK.search(reply):
        return parse_json(reply, cut=cut)
    first = headers[starts[0]].start() if starts else len(reply)
    rejected = list(_outside(reply[:first]))
    tasks = []
    for k, i in enumerate(starts):
        last = k == len(starts) - 1
        stop = len(reply) if last else headers[starts[k + 1]].start()
        separator = _TASK_END.search(reply, headers[i + 4].end(), stop)
        end = separator.start() if separator else stop
        nothing = _EMPTY_INPUT.search(reply, headers[i + 4].end(), end)
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
        _sort(found, tasks, rejected)
    return tasks, rejected


def _fields_on_lines(line: str) -> str:
    """A line of several fields, separated by "|", as lines; as it is where that is ambiguous.

    >>> _fields_on_lines("Type: Q&A | Topic: Gout | View: Nurse | Difficulty: 2")
    'Type: Q&A \\n Topic: Gout \\n View: Nurse \\n Difficulty: 2'
    """
    first = _FIELD.match(line) if "|" in line or "｜" in line else None
    if not first:
        return line
    names = [first[1].lower(), *(found[1].lower() for found in _FIELD_IN_LINE.finditer(line))]
    once = len(_ANY_FIELD.findall(line)) == len(names)
    if not once or sorted(names[:4]) != sorted(TASK_LABELS) or names[4:] not in _TEXTS_IN_LINE:
        return line
    return _FIELD_IN_LINE.sub(lambda found: "\n" + found[0][1:], line)


def _begins(names: list[str], i: int) -> bool:
    labels, following = names[i : i + 4], names[i + 4 : i + 5]
    return sorted(labels) == sorted(TASK_LABELS) and following == ["instruction"]


def _outside(text: str) -> Iterator[Rejected]:
    """The pieces before the first task or after the separator of one."""
    for piece in _SEPARATOR.split(text):
        if not piece.strip() or re.fullmatch(r"\s*\d+[.):]?\s*", piece):
            continue  # blank, or the number of the next task
        present = {header[1].lower() for header in _FIELD.finditer(piece)}
        missing = [name for name in (*TASK_LABELS, "instruction") if name not in present]
        if any(len(set(_ANY_FIELD.findall(line))) > 3 for line in piece.split("\n")):
            reason = "several fields on one line"
        else:
            reason = f"lacks {', '.join(missing) or 'the usual order'}" if present else "no task"
        yield Rejected(reason, piece)


def _read(reply: str, headers: list[re.Match], names: list[str], end: int) -> Task | Rejected:
    whole = reply[headers[0].start() : end]
    ends = [header.start() for header in headers[1:]]
    labels = {
        name: _strip(_strip(reply[header.end() : stop]).strip("*_`"))
        for name, header, stop in zip(names, headers, ends, strict=False)
    }
    if long := [name for name in TASK_LABELS if "\n" in labels[name]]:
        return Rejected(f"{long[0]} is more than a line", whole)
    level = difficulty(labels["difficulty"])
    if level is None:
        return Rejected("difficulty is not 1 to 5", whole)
    start = headers[4].end()
    split = next((h for h in _FIELD.finditer(reply, start, end) if h[1].lower() == "input"), None)
    instruction = _text(reply[start : split.start() if split else end])
    given = _text(reply[split.end() : end]) if split else ""
    return _task(labels | {"difficulty": level, "instruction": instruction, "input": given}, whole)


def _task(fields: dict[str, Any], whole: str) -> Task | Rejected:
    if re.search(r"[\ud800-\udfff]", "".join(fields[name] for name in _JSON_TEXTS)):
        return Rejected("half a surrogate pair", whole)  # written as an escape in JSON
    if not fields["instruction"]:
        return Rejected("the instruction is empty", whole)
    if means_none(fields["input"]):
        fields["input"] = ""
    return Task(id="", **fields)


def _text(piece: str) -> str:
    """A text without the separator and the number of the next task that may end it.

    Also without a final "**" whose counterpart stands before the name of the field.
    """
    lines = _strip(piece).split("\n")
    last = len(lines) - 1
    while last and _NUMBER.fullmatch(lines[last].strip()):
        last -= 1
    text = _strip("\n".join(lines[:last] if _RULE.fullmatch(lines[last]) else lines))
    return _strip(text.removesuffix("**")) if text.count("**") % 2 else text


def _strip(text: str) -> str:
    """The text without whitespace at its ends, invisible characters included."""
    return text.strip(_INVISIBLE)


# Replies in JSON.

_OPENING = re.compile(
    r'(?P<object>\{\s*"\w{1,20}"\s*:\s*)?(?P<array>\[)\s*(?=[{\]])|(?=\{\s*"(?:type|topic|instruction)")',
    re.IGNORECASE,
)
"""An object with a list of tasks, a bare list, or one task after another."""

_JSON_TASK = re.compile(r'\{[^{}]{0,200}"instruction"\s*:', re.IGNORECASE)
_COMMA = re.compile(r"\s*,?\s*")
_FENCE = re.compile(r"\s*(?:```(?:json)?)?\s*", re.IGNORECASE)
_JSON_TEXTS = ("type", "topic", "view", "instruction", "input")


def parse_json(reply: str, *, cut: bool) -> tuple[list[Task], list[Rejected]]:
    """As `parse`, for a reply in JSON: an object whose `tasks` is a list of objects.

    Args:
      cut: whether the reply was truncated at its length limit; the complete tasks are parsed.

    >>> tasks, rejected = parse_json('{"tasks": [{"type": "Q&A", "topic": "Gout", "view": "Nurse", '
    ...     '"difficulty": 2, "instruction": "Define gout.", "input": "<noinput>"}, {"ty', cut=True)
    >>> tasks[0].instruction, tasks[0].input, rejected
    ('Define gout.', '', [Rejected(reason='cut at the length limit', text='{"ty')])
    """
    opening = _OPENING.search(reply)
    if not opening:
        if any(header[1].lower() == "instruction" for header in _ANY_FIELD.finditer(reply)):
            return parse(reply, cut=cut)
        reason = "cut at the length limit" if cut else "not JSON of the schema"
        return [], [Rejected(reason, reply)]
    tasks: list[Task] = []
    rejected: list[Rejected] = []
    if words := _strip(re.sub(r"```(?:json)?\s*$", "", reply[: opening.start()])):
        rejected.append(Rejected("no task", words))
    decoder, at, is_broken = json.JSONDecoder(), opening.end(), False
    while at < len(reply) and (reply[at] == "{" or (opening["array"] and reply[at] != "]")):
        try:
            record, end = decoder.raw_decode(reply, at)
        except (ValueError, RecursionError):  # 5,000 digits raise no JSONDecodeError
            reason = "cut at the length limit" if cut else "not JSON of the schema"
            rejected.append(Rejected(reason, reply[at:]))
            is_broken = True
            break
        found = _read_json(record, reply[at:end])
        _sort(found, tasks, rejected)
        comma = _COMMA.match(reply, end)
        at = comma.end() if comma else end
    closing = r"\]\s*\}" if opening["object"] else r"\]" if opening["array"] else ""
    if not is_broken:
        closed = re.compile(closing + _FENCE.pattern).match(reply, at)
        rest = reply[closed.end() if closed else at :]
        if not closed or rest:
            rejected.append(Rejected("cut at the length limit" if cut else "no task", rest))
    return tasks, rejected


def _read_json(record: Any, whole: str) -> Task | Rejected:
    given = list(record.items()) if isinstance(record, dict) else []
    fields = {"input": ""} | {name.lower(): value for name, value in given}
    fields["input"] = "" if fields["input"] is None else fields["input"]
    unique = len({name.lower() for name, _ in given}) == len(given)
    if not unique or not all(isinstance(fields.get(name), str) for name in _JSON_TEXTS):
        return Rejected("not JSON of the schema", whole)
    level = difficulty(fields.get("difficulty"))
    if level is None:
        return Rejected("difficulty is not 1 to 5", whole)
    return _task(
        {name: _strip(fields[name]) for name in _JSON_TEXTS} | {"difficulty": level}, whole
    )
