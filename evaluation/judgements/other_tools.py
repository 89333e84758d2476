"""Judgements of alpaca_eval and FastChat, converted into the form of docs/file_formats.md.

**alpaca_eval**: annotations.json, of any version. An annotation has `instruction`; `output_1` of
`generator_1`, the reference, and `output_2` of `generator_2`, the model; `annotator`, the judge;
`dataset`; and `preference`, from 1 (the reference is better) to 2 (the model is), 0 or 1.5 for a
draw, null where the judge's reply was unusable. The reply is in `raw_completion` or
`preference_raw_completion`, or nowhere.

alpaca_eval shows each pair once, in an order drawn at random that it does not keep, so the
judgements have no `order`. Its `win_rate` is the mean of preference - 1 over the preferences that
are not null, in per cent (metrics/helpers.py, `describe_head2head`): the same as the win rate here,
`evaluation.scoring.score.WinRate.rate`.

**FastChat**: MODEL_pair.jsonl of llm_judge, for MT-bench and others. A record is a question
(`question_id`, `turn`) with the answers of `model_1` and `model_2`, judged twice: `g1_winner` with
model_1 shown first, `g2_winner` with model_2 shown first. Both are model_1, model_2, tie, or error
where the reply held no verdict. `judge` is the model and its prompt, which depends on the category
of the question and is not kept. Records with only one of the two winners, with one `winner`, or
with `m1_score` and `m2_score` (each answer graded alone, both winners made of the grades) are
judgements in one order.

FastChat's rates (show_result.py, `display_result_pairwise`) count a win where both orders name the
model, a loss where both name the other, and a tie otherwise, over the records without error. They
are in the table `both_orders`, and differ from the win rate where only one order is a tie.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from common import data_file, jsonl
from common.jsonl import Record
from common.sections import UsageError
from evaluation.judgements.verdicts import MODEL_FIRST, REFERENCE_FIRST

ANNOTATIONS_FILE = "annotations.json"
ALPACA_EVAL = "alpaca_eval"
ANNOTATION_FIELDS = frozenset({"instruction", "output_1", "output_2", "preference"})


def annotations(path: Path) -> Callable[[Record], Iterator[Record]]:
    """Makes judgements of the annotations of a file.

    Those of May 2023 do not name the generators: the model is named by the folder, as in
    results/MODEL/annotations.json or results/MODEL/ANNOTATOR/annotations.json.
    """

    def convert(record: Record) -> Iterator[Record]:
        folder = path.resolve().parent
        judge = jsonl.text("", record, "annotator")
        model = folder.parent.name if folder.name == judge else folder.name
        yield {
            "benchmark": ALPACA_EVAL,
            "generator": record.get("generator_2") or model,
            "reference": record.get("generator_1") or "reference",
            "judge": judge,
            "instruction": record["instruction"],
            "input": record.get("input"),
            "topic": record.get("dataset"),
            "output": record["output_2"],
            "reference_output": record["output_1"],
            "raw": _completion(record),
            **_preferred(record.get("preference")),
        }

    return convert


def _preferred(preference: Any) -> Record:
    """`score` or `verdict` for a preference, which may be a text in a table."""
    if preference in (None, ""):
        return {"verdict": "invalid"}
    value = jsonl.number(preference)
    if value is None or not (value == 0 or 1 <= value <= 2):
        raise ValueError(
            f"preference is {preference!r:.40}; it must be a number from 1 to 2, 0 or null"
        )
    return {"score": value - 1 if value else 0.5}


def _completion(record: Record) -> str:
    """The judge's text; of a completion with log-probabilities only what it wrote."""
    raw = record.get("raw_completion") or record.get("preference_raw_completion") or ""
    if isinstance(raw, dict) and isinstance(raw.get("text"), str):
        raw = raw["text"]
    return raw if isinstance(raw, str) else json.dumps(raw, ensure_ascii=False)


MT_BENCH = "mt_bench"
PAIR_FIELDS = frozenset({"question_id", "model_1", "model_2"})
WINNERS = frozenset({"g1_winner", "g2_winner", "winner"})
GRADE_FIELDS = frozenset({"question_id", "model", "score"})
SIDES = ("model_1", "model_2")


def pairs(
    path: Path, found: Sequence[Record], baseline: str
) -> Callable[[Record], Iterator[Record]]:
    """Makes judgements against one reference of the pairs `found` in a file.

    Questions and answers are read too if they are where FastChat has them: BENCHMARK/question.jsonl
    and BENCHMARK/model_answer/MODEL.jsonl beside BENCHMARK/model_judgment/FILE.
    """
    reference = _reference(path, found, baseline)
    is_placed = path.resolve().parent.name == "model_judgment"
    folder = path.resolve().parents[1] if is_placed else None
    models = sorted({str(record.get(side)) for record in found for side in SIDES})
    texts = _texts(folder, models) if folder else {}
    benchmark = folder.name if folder else MT_BENCH

    def convert(record: Record) -> Iterator[Record]:
        names = [_name(record, side) for side in SIDES]
        if reference not in names:
            return
        model = names[1 - names.index(reference)]
        judge = record.get("judge")
        question, turn = jsonl.identity("", {"id": record["question_id"]}), record.get("turn")
        asked = texts.get(("", question), {})
        place = turn - 1 if turn in (1, 2) else 0
        judged = {
            "id": f"{question}-{turn}" if turn else question,
            "benchmark": benchmark,
            "generator": model,
            "reference": reference,
            "judge": judge[0] if isinstance(judge, list) and judge else judge,
            "topic": asked.get("category"),
            "instruction": _turn(asked, place),
            "output": _turn(texts.get((model, question)), place),
            "reference_output": _turn(texts.get((reference, question)), place),
        }
        orders = MODEL_FIRST, REFERENCE_FIRST
        if names[0] == reference:
            orders = orders[::-1]
        for winner, raw, order in _games(record, orders):
            yield judged | {"verdict": _verdict(winner, names, model), "raw": raw, "order": order}

    return convert


def _games(record: Record, orders: Sequence[str]) -> Iterator[tuple[object, object, str]]:
    """(winner, reply, order) of each time that a pair was judged."""
    if "m1_score" in record or not record.keys() & {"g1_winner", "g2_winner"}:
        yield record.get("winner", record.get("g1_winner")), record.get("g1_judgment"), ""
        return
    games = [
        (record.get(f"{game}_winner"), record.get(f"{game}_judgment"), order)
        for game, order in zip(("g1", "g2"), orders, strict=True)
    ]
    yield from [game for game in games if game[0] is not None] or games


def _verdict(winner: object, names: Sequence[str], model: str) -> str:
    if winner in ("tie", "error"):
        return "tie" if winner == "tie" else "invalid"
    if winner not in SIDES:
        raise ValueError(f"the winner is {winner!r:.40}; it must be model_1, model_2, tie or error")
    return "model" if names[SIDES.index(str(winner))] == model else "reference"


def _name(record: Record, side: str) -> str:
    if not (name := jsonl.text("", record, side)):
        raise ValueError(f"field {side!r} is missing")
    return name


def _reference(path: Path, found: Sequence[Record], baseline: str) -> str:
    """The model that every pair has; of two such, `model_2`, where FastChat has its baseline."""
    sides = [{str(record.get(side)) for side in SIDES} for record in found]
    models = set.union(*sides)
    if baseline:
        if baseline not in models:
            raise UsageError(
                f"--baseline: {path} has no pair with {baseline!r}, only of "
                f"{', '.join(sorted(models)):.200}"
            )
        return baseline
    common = set.intersection(*sides)
    if not common:
        raise UsageError(
            f"{path}: no model takes part in all of the {len(sides):,} pairs; name the one to "
            f"compare with, --baseline=MODEL: {', '.join(sorted(models)):.200}"
        )
    second = str(found[0].get("model_2"))
    return second if second in common else common.pop()


def _texts(folder: Path, models: Sequence[str]) -> dict[tuple[str, str], Record]:
    """("" or model, question id) -> its record, as far as the files exist."""
    files = {"": folder / "question.jsonl"}
    files |= {name: folder / "model_answer" / f"{name}.jsonl" for name in models}
    return {
        (name, str(record.get("question_id"))): record
        for name, file in files.items()
        if file.exists()
        for _, record in data_file.read(file)
    }


def _turn(record: Record | None, place: int) -> str | None:
    """The text of a turn of a question, or of the first choice of an answer; None where unknown."""
    choices = (record or {}).get("choices")
    holder = choices[0] if isinstance(choices, list) and choices else record
    turns = holder.get("turns") if isinstance(holder, dict) else None
    return turns[place] if isinstance(turns, list) and place < len(turns) else None
