"""The page for annotators: one self-contained HTML file that names no system."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from common.reports.page import document, json_element
from evaluation.annotation.exports import EXPORT_FORM
from evaluation.annotation.pairs import MODEL, AnswerPair, PageKey

WEB = Path(__file__).parent / "web"


def build(key: PageKey, pairs: Sequence[AnswerPair]) -> str:
    """The page; the same key gives the same bytes.

    Texts are stored once, in an order that is drawn at random, so that their place means nothing.
    """
    by_names = {
        (p.item.benchmark, p.item.id, p.model.generator, p.reference.generator): p for p in pairs
    }
    shown: dict[str, list[tuple[str, str, str, str]]] = {}
    for name, assigned in key.assignments.items():
        pair = by_names[assigned[1:5]]
        answers = pair.model.output, pair.reference.output
        first, second = answers if assigned.first == MODEL else answers[::-1]
        shown.setdefault(assigned.annotator, []).append((name, pair.item.text, first, second))
    texts = sorted({text for rows in shown.values() for row in rows for text in row[1:]})
    order = np.random.default_rng(key.seed).permutation(len(texts))
    place = {text: int(order[i]) for i, text in enumerate(texts)}
    content = {
        "form": EXPORT_FORM,
        "page": key.page,
        "annotators": {
            annotator: [[name, *(place[text] for text in rest)] for name, *rest in rows]
            for annotator, rows in sorted(shown.items())
        },
        "texts": [texts[i] for i in np.argsort(order)],
    }
    body, style, script = (
        (WEB / f"annotate.{end}").read_text("utf-8") for end in ("html", "css", "js")
    )
    body += json_element("pairs", content)
    return document("Compare two answers", body, style=style, script=script)
