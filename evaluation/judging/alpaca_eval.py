"""alpaca_eval's annotations as judgements: annotations.json, of any version.

An annotation has `instruction`, `output_1` and `output_2` of `generator_1`, the reference, and
`generator_2`, the model; `annotator`, the judge; `dataset`; and `preference`, from 1 (the reference
is better) to 2 (the model is), 0 or 1.5 for a draw, null where the judge's reply was unusable. The
raw reply is in `raw_completion` or `preference_raw_completion`, or nowhere.

alpaca_eval shows each pair once, in an order drawn at random that it does not keep, so the
judgements have no `order`. Its `win_rate` is the mean of preference - 1 over the preferences that
are not null, in per cent (metrics/helpers.py, `describe_head2head`): the same as the win rate here,
`evaluation.scoring.score.WinRate.rate`.
"""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from common import jsonl
from common.jsonl import Record

FILE_NAME = "annotations.json"
ALPACA_EVAL = "alpaca_eval"
ANNOTATION_FIELDS = frozenset({"instruction", "output_1", "output_2", "preference"})


def converter(path: Path) -> Callable[[Record], Iterator[Record]]:
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
            "raw": _raw(record),
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


def _raw(record: Record) -> str:
    """The judge's text; of a completion with log-probabilities only what it wrote."""
    raw = record.get("raw_completion") or record.get("preference_raw_completion") or ""
    if isinstance(raw, dict) and isinstance(raw.get("text"), str):
        raw = raw["text"]
    return raw if isinstance(raw, str) else json.dumps(raw, ensure_ascii=False)
