"""Conversations in the forms that data sets have: ShareGPT's `from, value`, or `role, content`."""

import re
from collections.abc import Sequence
from typing import Any, NamedTuple

from common import jsonl
from common.jsonl import Record

ROLES = {
    "system": "system",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "ai": "assistant",
    "gpt": "assistant",
    "model": "assistant",
}
"""What data sets call who speaks, in lower case -> our word."""

FIELDS = ("messages", "conversations", "conversation")
"""Names of fields that hold a conversation."""


SPEAKER = re.compile(r"^\[\|(Human|AI)\|\]", re.MULTILINE)
"""What a turn begins with in Baize's data, whose records have a whole dialogue in `input`."""


class Turn(NamedTuple):
    """What one side says."""

    role: str  # system, user or assistant
    text: str


def read_turns(location: str, field: str, value: Any, questions: bool = False) -> tuple[Turn, ...]:
    """The turns of a field of a record: an optional system prompt, then user and assistant.

    Args:
      questions: several questions may stand at the end.

    Raises:
      ValueError: it is no list of turns, or they do not take turns; the turn is named.
    """
    if not isinstance(value, list) or not value:
        raise ValueError(f"{location}: field {field!r} must be a list of turns, not {value!r:.40}")
    turns = tuple(
        read_turn(f"{location}: field {field!r}, turn {number}", turn)
        for number, turn in enumerate(value)
    )
    expected, last = "user", len(turns)
    while questions and last > 1 and turns[last - 1].role == turns[last - 2].role == "user":
        last -= 1
    for number, turn in enumerate(turns[:last]):
        if number == 0 and turn.role in ("system", "assistant"):  # an answer alone is allowed
            expected = "user" if turn.role == "system" else turn.role
            if turn.role == "system":
                continue
        if turn.role != expected:
            raise ValueError(
                f"{location}: field {field!r}, turn {number}: {turn.role} where {expected} must "
                "speak; after an optional system turn user and assistant alternate"
            )
        expected = "assistant" if turn.role == "user" else "user"
    return turns


def read_turn(location: str, turn: Any) -> Turn:
    """One turn. Raises: ValueError as `read_turns`."""
    if not isinstance(turn, dict):
        raise ValueError(f"{location}: a turn must be an object, not {turn!r:.40}")
    role, text = ("from", "value") if "value" in turn else ("role", "content")
    for name in (role, text):
        if turn.get(name) is None:
            raise ValueError(f"{location}: field {name!r} is missing; it has {', '.join(turn)}")
    speaker = ROLES.get(str(turn[role]).lower())
    if speaker is None:
        raise ValueError(
            f"{location}: {role} is {turn[role]!r:.40}; it must be one of {', '.join(ROLES)}"
        )
    return Turn(speaker, jsonl.text(location, turn | {text: _joined(turn[text])}, text))


def _joined(content: Any) -> Any:
    """OpenAI's list of parts as one text, if all are texts; anything else unchanged."""
    if not isinstance(content, list):
        return content
    found = (part.get("text") for part in content if isinstance(part, dict))
    texts = [text for text in found if isinstance(text, str)]
    return "".join(texts) if len(texts) == len(content) else content


def of_record(location: str, record: Record) -> tuple[Turn, ...] | None:
    """The conversation of a record, with its field `system` as the first turn; None if it has none.

    It may end with several questions, which are asked one after the other.

    Raises: as `read_turns`.
    """
    field = next((name for name in FIELDS if record.get(name)), "")
    if not field:
        return None
    turns = read_turns(location, field, record[field], questions=True)
    turns = with_system(location, record, turns)
    if next((turn.role for turn in turns if turn.role != "system"), "") != "user":
        raise ValueError(f"{location}: field {field!r} must begin with a question of the user")
    return turns


def of_text(record: Record) -> Record:
    """A record of Baize's data, {topic, input}, with `messages` for its text; others unchanged."""
    text = record.get("input")
    if "instruction" in record or not isinstance(text, str) or not SPEAKER.search(text):
        return record
    _, *parts = SPEAKER.split(text)
    spoken = zip(parts[::2], map(str.strip, parts[1::2]), strict=True)
    turns = [{"role": role, "content": said} for role, said in spoken]
    whole = turns[:-1] if not turns[-1]["content"] else turns  # the human is to speak next
    return {key: value for key, value in record.items() if key != "input"} | {"messages": whole}


def with_system(location: str, record: Record, turns: Sequence[Turn]) -> tuple[Turn, ...]:
    """The turns after the text of the record's field `system`, if it has one."""
    system = jsonl.text(location, record, "system")
    if not system:
        return tuple(turns)
    if turns and turns[0].role == "system":
        raise ValueError(f"{location}: a field 'system' and a system turn; keep one of them")
    return Turn("system", system), *turns


class Parts(NamedTuple):
    """A conversation as a question with its answer, what precedes it, and what is asked next."""

    history: tuple[Turn, ...]
    question: str
    answer: str
    further: tuple[str, ...]


def split(location: str, turns: tuple[Turn, ...], answered: bool) -> Parts:
    """The last question with its answer or, unless `answered`, the first that has none.

    Raises:
      ValueError: no question has an answer, but `answered`.
    """
    end = max((i for i, turn in enumerate(turns, 1) if turn.role == "assistant"), default=0)
    if answered and not end:
        raise ValueError(f"{location}: the conversation has no question with an answer")
    if answered or end == len(turns):
        return Parts(turns[: end - 2], turns[end - 2].text, turns[end - 1].text, ())
    asked = end or int(turns[0].role == "system")
    return Parts(turns[:asked], turns[asked].text, "", tuple(t.text for t in turns[asked + 1 :]))
