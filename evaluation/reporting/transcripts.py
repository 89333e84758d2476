"""The texts that a report can show, packed for the page: questions, answers, verdicts, replies.

Every text is in the page once. Blocks of items are gzipped on their own, so that the page unpacks
what is looked at. Where all would make the page larger than allowed, items are left out at random.
"""

import base64
import dataclasses
import gzip
import json
from typing import Any

import numpy as np

from evaluation.judging import verdicts as judgements
from evaluation.judging.verdicts import Cell, Verdicts, natural
from evaluation.judging.workdirs import Texts
from evaluation.reporting.systems import System

ITEMS = 16
"""Of a block."""

CODES = len(judgements.VERDICTS) + 1  # one more for MISSING


@dataclasses.dataclass(frozen=True)
class Transcripts:
    index: dict[str, Any]  # names and cells; see page/report.js
    packed: dict[str, str]  # id of the element that holds it -> gzip in base64
    shown: int  # items
    items: int  # that there are


@dataclasses.dataclass(frozen=True)
class _Names:
    """Positions of names in the page's lists, whose order the menus have."""

    benchmarks: list[str]
    judges: list[str]
    references: list[str]
    systems: list[str]
    generators: list[str]  # systems and references

    def cell(self, cell: Cell) -> list[int]:
        return [
            self.judges.index(cell.judge),
            self.benchmarks.index(cell.benchmark),
            self.references.index(cell.reference),
            self.systems.index(cell.generator),
        ]


def pack(
    verdicts: Verdicts,
    people: Verdicts | None,
    texts: Texts,
    *,
    systems: dict[str, System],
    seed: int,
    most_bytes: float,
) -> Transcripts:
    """`systems` in the order of the menu. At most about `most_bytes` of base64 come out."""
    cells: dict[Cell, tuple[Verdicts, np.ndarray]] = {}
    for source in filter(None, (verdicts, people)):
        cells |= {cell: (source, table) for cell, table in source.cells.items()}
    references = sorted(verdicts.names("reference"), key=natural)
    names = _Names(
        benchmarks=sorted(verdicts.ids),
        judges=list(dict.fromkeys(cell.judge for cell in cells)),
        references=references,
        systems=list(systems),
        generators=list(dict.fromkeys((*systems, *references))),
    )
    everything = [
        (benchmark, place)
        for benchmark in names.benchmarks
        for place in range(len(verdicts.ids[benchmark]))
    ]
    packed, rows, size = {"verdicts": _pack(_codes(verdicts, cells))}, [], 0
    order = np.random.default_rng(seed).permutation(len(everything))
    for first in range(0, len(order), ITEMS):
        chosen = [everything[i] for i in sorted(order[first : first + ITEMS])]
        block = _pack(_json(_block(verdicts, cells, texts, names, chosen)))
        if rows and size + len(block) > most_bytes:
            break
        size += len(block)
        number = first // ITEMS
        packed[f"block-{number}"] = block
        rows += [(*item, number, row) for row, item in enumerate(chosen)]
    packed["items"] = _pack(_json([_row(verdicts, texts, names, *row) for row in sorted(rows)]))
    return Transcripts(_index(verdicts, cells, names, systems), packed, len(rows), len(everything))


def _index(
    verdicts: Verdicts, cells: dict, names: _Names, systems: dict[str, System]
) -> dict[str, Any]:
    return {
        "benchmarks": names.benchmarks,
        "sizes": [len(verdicts.ids[benchmark]) for benchmark in names.benchmarks],
        "judges": names.judges,
        "references": names.references,
        "systems": [systems[generator].label for generator in names.systems],
        "generators": names.generators,
        "answers": {
            "systems": [names.generators.index(name) for name in names.systems],
            "references": [names.generators.index(name) for name in names.references],
        },
        "cells": [names.cell(cell) for cell in cells],
    }


def _codes(verdicts: Verdicts, cells: dict) -> bytes:
    """A byte for each item of each cell: both verdicts, counted from MISSING on, in base CODES."""
    found = []
    for _, table in cells.values():
        one, other = (table[:, order].astype(np.uint8) + 1 for order in (0, 1))
        found.append((one * CODES + other).astype(np.uint8).tobytes())
    return b"".join(found)


def _row(
    verdicts: Verdicts,
    texts: Texts,
    names: _Names,
    benchmark: str,
    place: int,
    block: int,
    row: int,
) -> list[Any]:
    item = texts.items[benchmark, verdicts.ids[benchmark][place]]
    told = [item.id, item.instruction, item.input, item.topic, item.difficulty]
    return [names.benchmarks.index(benchmark), place, *told, block, row]


def _block(
    verdicts: Verdicts,
    cells: dict[Cell, tuple[Verdicts, np.ndarray]],
    texts: Texts,
    names: _Names,
    chosen: list[tuple[str, int]],
) -> dict[str, Any]:
    """Answers and replies to some items; replies, which are often alike, once each."""
    items: list[dict[str, Any]] = []
    wanted: dict[int, list[tuple[int, int, int, np.ndarray]]] = {}  # by source
    sources = {id(source): source for source, _ in cells.values()}
    for row, (benchmark, place) in enumerate(chosen):
        name = verdicts.ids[benchmark][place]
        outputs = {}
        for number, generator in enumerate(names.generators):
            output = texts.outputs.get((benchmark, generator), {}).get(name)
            if output:
                outputs[number] = [output.output, output.finish_reason]
        items.append({"outputs": outputs, "replies": {}})
        for number, (cell, (source, table)) in enumerate(cells.items()):
            if cell.benchmark == benchmark:
                for order in np.flatnonzero(table[place] != judgements.MISSING):
                    spot = row, number, int(order), source.places[cell][place, order]
                    wanted.setdefault(id(source), []).append(spot)
    replies: dict[str, int] = {}
    for source, spots in wanted.items():
        said = judgements.replies(sources[source], np.array([spot[3] for spot in spots]))
        for (row, number, order, _), text in zip(spots, said, strict=True):
            if text:
                both = items[row]["replies"].setdefault(number, [-1, -1])
                both[order] = replies.setdefault(text, len(replies))
    return {"items": items, "replies": list(replies)}


def _json(content: Any) -> bytes:
    """Half a surrogate pair, which a reply may hold and UTF-8 cannot, becomes a question mark."""
    text = json.dumps(content, ensure_ascii=False, separators=(",", ":"))
    return text.encode("utf-8", errors="replace")


def _pack(content: bytes) -> str:
    return base64.b64encode(gzip.compress(content, 6, mtime=0)).decode()
