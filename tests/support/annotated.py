"""A judged workdir, the page of its pairs, and what two annotators sent back."""

import json
from pathlib import Path

from evaluation.annotation import exports
from evaluation.annotation.candidates import draw, from_judgements
from evaluation.annotation.pairs import MODEL, PageKey, assign
from evaluation.judgements import reading, workdirs
from tests.support import judge_workdirs

ITEMS = {"heart": [f"h{i}" for i in range(24)]}


def write(folder: Path, *, seed: int = 1, count: int = 24) -> Path:
    """`folder`/work, and `folder`/page with key.json, lee.json and patel.json."""
    work = judge_workdirs.write(folder / "work", judge_workdirs.a_verdict, items=ITEMS)
    verdicts, _ = reading.read([work])
    candidates = from_judgements(verdicts, workdirs.read([work], verdicts), [], [])
    pairs = draw(candidates, set(), {"heart": count}, seed)
    key = assign(pairs, ["lee", "patel"], 2, seed)
    page = folder / "page"
    page.mkdir()
    (page / "key.json").write_text(json.dumps(key.record()))
    for name in key.annotators:
        (page / f"{name}.json").write_text(json.dumps(export(key, name)))
    return folder


def export(key: PageKey, annotator: str) -> dict:
    """An annotator who prefers the system, and finds the reference as correct, but more helpful."""
    answers = {}
    for name, shown in key.assignments.items():
        if shown.annotator == annotator:
            mine, other = ("a", "b") if shown.first == MODEL else ("b", "a")
            chosen = {"preference": mine, "correctness": "equal", "helpfulness": other}
            answers[name] = chosen | {"at": "2026-11-27T12:00:00.000Z"}
    return {
        "form": exports.EXPORT_FORM,
        "page": key.page,
        "annotator": annotator,
        "exported": "2026-11-27T13:00:00.000Z",
        "answers": answers,
    }
