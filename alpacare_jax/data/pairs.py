"""Pairs of answers, one preferred to the other: from judgements, or from a file of pairs."""

import collections
import dataclasses
from collections.abc import Callable, Iterable
from pathlib import PurePath

from etils import epath

from common import data_file, jsonl, messages
from common.jsonl import Record
from common.records import Example
from common.text import conversations
from common.text.conversations import Turn

Pair = tuple[Example, Example]
"""The preferred answer to a prompt, and the other."""

JUDGEMENT = ("id", "benchmark", "generator", "reference", "judge", "order", "verdict")
"""Fields of a line of judgements.jsonl that a pair is made of."""

PROMPT_FIELDS = ("instruction", "prompt", "question")
"""Fields that may hold the prompt of a pair."""


def read_pairs(path: str | PurePath, *, report: Callable[[str], None] = messages.log) -> list[Pair]:
    """The pairs of a file: judgements.jsonl of `evaluation.judge`, or records with two answers.

    Of judgements, the pairs of answers are kept on which all verdicts, in both orders, agree; the
    others are counted. Records have `chosen` and `rejected`, and a prompt in one of PROMPT_FIELDS,
    with `input` and `system` where there are any. Prompt and answers may be lists of turns; an
    answer may repeat the prompt.

    Args:
      report: receives a line about the judgements.

    Raises:
      FileNotFoundError: the file does not exist, or one with the texts of judgements does not.
      ValueError: a record is malformed (file, line and field are named), or no pair is left.
    """
    records = list(data_file.read(path))
    if not records:
        raise ValueError(f"{path}: contains no records")
    if records[0][1].keys() >= set(JUDGEMENT):
        return _judged(epath.Path(path), records, report)
    return [
        _pair(location, record, jsonl.identity(location, record) or str(number))
        for number, (location, record) in enumerate(records)
    ]


def _pair(location: str, record: Record, id_: str) -> Pair:
    chosen, rejected = (_answer(location, record, name, id_) for name in ("chosen", "rejected"))
    if dataclasses.replace(chosen, output="") != dataclasses.replace(rejected, output=""):
        raise ValueError(f"{location}: 'chosen' and 'rejected' answer different prompts")
    return chosen, rejected


def _answer(location: str, record: Record, field: str, id_: str) -> Example:
    """One of the two answers of a record, with its prompt."""
    prompt = next((name for name in PROMPT_FIELDS if record.get(name)), "")
    value = record.get(field)
    if value is None or not (prompt or isinstance(value, list)):
        missing = field if value is None else PROMPT_FIELDS[0]
        raise ValueError(
            f"{location}: field {missing!r} is missing; a pair has chosen, rejected and one of "
            f"{', '.join(PROMPT_FIELDS)}; this record has {', '.join(record):.200}"
        )
    if isinstance(value, str):
        turns = (Turn("assistant", jsonl.text(location, record, field)),)
    else:  # one turn, or several
        value = [value] if isinstance(value, dict) else value
        turns = conversations.read_turns(location, field, value)
    if len(turns) == 1 and isinstance(record.get(prompt), list):
        turns = (*conversations.read_turns(location, prompt, record[prompt]), *turns)
    elif len(turns) == 1 and prompt:
        turns = (Turn("user", jsonl.text(location, record, prompt)), *turns)
    turns = conversations.with_system(location, record, turns)
    if [turn.role for turn in turns[-2:]] != ["user", "assistant"]:
        raise ValueError(f"{location}: field {field!r} does not end with a question and its answer")
    *history, question, answer = turns
    input = jsonl.text(location, record, "input")
    return Example(id_, question.text, input, answer.text, tuple(history))


def _judged(
    path: epath.Path, judgements: Iterable[tuple[str, Record]], report: Callable[[str], None]
) -> list[Pair]:
    """The pairs of a workdir of `evaluation.judge` on whose better answer all verdicts agree."""
    verdicts: dict[tuple[str, ...], dict[tuple[str, str], str]] = {}
    for location, record in judgements:
        *pair, judge, order, verdict = (_required(location, record, name) for name in JUDGEMENT)
        found = verdicts.setdefault(tuple(pair), {})
        if (judge, order) in found:
            raise ValueError(f"{location}: id {pair[0]!r} is judged twice by {judge}, {order}")
        found[judge, order] = verdict
    items = _texts(path, "items.jsonl", ("benchmark", "id"))
    outputs = _texts(path, "outputs.jsonl", ("benchmark", "generator", "id"))
    pairs, left_out = [], collections.Counter()
    for (id_, benchmark, generator, reference), found in verdicts.items():
        agreed = _agreed(path, id_, found)
        if agreed not in ("model", "reference"):
            left_out[agreed] += 1
            continue
        item = _known(items, (benchmark, id_), path, "items.jsonl")
        answers = [
            _known(outputs, (benchmark, name, id_), path, "outputs.jsonl")
            for name in (generator, reference)
        ]
        instruction, input = (jsonl.text(str(path), item, n) for n in ("instruction", "input"))
        model, other = (
            Example(f"{benchmark}/{id_}", instruction, input, jsonl.text(str(path), a, "output"))
            for a in answers
        )
        pairs.append((model, other) if agreed == "model" else (other, model))
    counts = f"; left out: {messages.format_counts(left_out)}" if left_out else ""
    summary = f"{path}: the verdicts agree on {len(pairs):,} of {len(verdicts):,} pairs{counts}"
    if not pairs:
        raise ValueError(f"{summary}; judge more answers")
    report(summary)
    return pairs


def _agreed(path: epath.Path, id_: str, found: dict[tuple[str, str], str]) -> str:
    """What all verdicts on a pair say, else why they say nothing."""
    for judge, _ in found:
        for order in ("model_first", "reference_first"):
            if (judge, order) not in found:
                raise ValueError(
                    f"{path}: id {id_!r} lacks the order {order} by {judge}; rerun "
                    "evaluation.judge with the same --workdir: it resumes"
                )
    verdicts = set(found.values())
    if unknown := verdicts - {"model", "reference", "tie", "invalid"}:
        raise ValueError(f"{path}: id {id_!r} has the verdict {min(unknown)!r:.40}, which is none")
    for verdict, outcome in (("invalid", "invalid"), ("tie", "tied")):
        if verdict in verdicts:
            return outcome
    return verdicts.pop() if len(verdicts) == 1 else "contradictory"


def _required(location: str, record: Record, field: str) -> str:
    if not (value := jsonl.text(location, record, field)):
        raise ValueError(f"{location}: field {field!r} is missing or empty")
    return value


def _texts(path: epath.Path, name: str, key: tuple[str, ...]) -> dict[tuple[str, ...], Record]:
    """The records of a file beside the judgements, by these fields."""
    if not (beside := path.parent / name).exists():
        raise FileNotFoundError(
            f"{path} has verdicts, but {beside}, with the texts, does not exist; name the file in "
            "the workdir of evaluation.judge"
        )
    return {
        tuple(_required(location, record, field) for field in key): record
        for location, record in data_file.read(beside)
    }


def _known(
    texts: dict[tuple[str, ...], Record], key: tuple[str, ...], path: epath.Path, name: str
) -> Record:
    if key not in texts:
        raise ValueError(f"{path.parent / name} lacks {' of '.join(map(repr, key[::-1]))}")
    return texts[key]
