"""The texts that a report shows, packed for its page: questions, answers, verdicts, replies.

Every text is stored once. Blocks of items are gzipped separately, so that the page unpacks only
what is viewed. If all of them exceed the allowed size, a random sample of items is kept.
"""

import base64
import dataclasses
import gzip
import json
from typing import Any

import numpy as np

from evaluation.judging.verdicts import Matchup, VerdictCode, Verdicts, natural, replies
from evaluation.judging.workdirs import ReportTexts
from evaluation.reporting.systems import Systems

BLOCK_ITEMS = 16

Tables = dict[Matchup, tuple[Verdicts, np.ndarray]]  # with the verdicts that hold each


@dataclasses.dataclass(frozen=True)
class Transcripts:
    """The data of a page."""

    index: dict[str, Any]  # names and matchups; see web/report.js
    packed: dict[str, str]  # id of its HTML element -> gzip in base64
    shown: int  # items in the page
    items: int  # items in all


@dataclasses.dataclass(frozen=True)
class _Names:
    """The page's lists of names, in the order of its menus."""

    benchmarks: list[str]
    judges: list[str]
    references: list[str]
    systems: list[str]
    generators: list[str]  # systems and references

    def positions(self, matchup: Matchup) -> list[int]:
        return [
            self.judges.index(matchup.judge),
            self.benchmarks.index(matchup.benchmark),
            self.references.index(matchup.reference),
            self.systems.index(matchup.generator),
        ]


def pack(
    verdicts: Verdicts,
    people: Verdicts | None,
    texts: ReportTexts,
    *,
    systems: Systems,
    seed: int,
    max_bytes: float,
) -> Transcripts:
    """The transcripts in at most about `max_bytes` of base64."""
    tables: Tables = {}
    for source in filter(None, (verdicts, people)):
        tables |= {matchup: (source, table) for matchup, table in source.tables.items()}
    references = sorted(verdicts.names("reference"), key=natural)
    names = _Names(
        benchmarks=sorted(verdicts.ids),
        judges=list(dict.fromkeys(matchup.judge for matchup in tables)),
        references=references,
        systems=list(systems),
        generators=list(dict.fromkeys((*systems, *references))),
    )
    everything = [
        (benchmark, place)
        for benchmark in names.benchmarks
        for place in range(len(verdicts.ids[benchmark]))
    ]
    packed, rows, size = {"verdicts": _pack(_codes(tables))}, [], 0
    order = np.random.default_rng(seed).permutation(len(everything))
    for first in range(0, len(order), BLOCK_ITEMS):
        chosen = [everything[i] for i in sorted(order[first : first + BLOCK_ITEMS])]
        block = _pack(_json(_block(verdicts, tables, texts, names, chosen)))
        if rows and size + len(block) > max_bytes:
            break
        size += len(block)
        number = first // BLOCK_ITEMS
        packed[f"block-{number}"] = block
        rows += [(*item, number, row) for row, item in enumerate(chosen)]
    packed["items"] = _pack(_json([_row(verdicts, texts, names, *row) for row in sorted(rows)]))
    return Transcripts(_index(verdicts, tables, names, systems), packed, len(rows), len(everything))


def _index(verdicts: Verdicts, tables: Tables, names: _Names, systems: Systems) -> dict[str, Any]:
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
        "cells": [names.positions(matchup) for matchup in tables],
    }


def _codes(tables: Tables) -> bytes:
    """A byte for each item of each matchup: both codes, shifted to start at 0, as two digits."""
    packed = []
    for _, table in tables.values():
        one, other = (table[:, order] - VerdictCode.MISSING.value for order in (0, 1))
        packed.append((one * len(VerdictCode) + other).astype(np.uint8).tobytes())
    return b"".join(packed)


def _row(
    verdicts: Verdicts,
    texts: ReportTexts,
    names: _Names,
    benchmark: str,
    place: int,
    block: int,
    row: int,
) -> list[Any]:
    item = texts.items[benchmark, verdicts.ids[benchmark][place]]
    fields = [item.id, item.instruction, item.input, item.topic, item.difficulty]
    return [names.benchmarks.index(benchmark), place, *fields, block, row]


def _block(
    verdicts: Verdicts,
    tables: Tables,
    texts: ReportTexts,
    names: _Names,
    chosen: list[tuple[str, int]],
) -> dict[str, Any]:
    """Answers and replies to some items; of equal replies, which are common, one copy."""
    items: list[dict[str, Any]] = []
    wanted: dict[int, list[tuple[int, int, int, np.ndarray]]] = {}  # by source
    sources = {id(source): source for source, _ in tables.values()}
    for row, (benchmark, place) in enumerate(chosen):
        name = verdicts.ids[benchmark][place]
        outputs = {}
        for number, generator in enumerate(names.generators):
            output = texts.outputs.get((benchmark, generator), {}).get(name)
            if output:
                outputs[number] = [output.output, output.finish_reason]
        items.append({"outputs": outputs, "replies": {}})
        for number, (matchup, (source, table)) in enumerate(tables.items()):
            if matchup.benchmark == benchmark:
                for order in np.flatnonzero(table[place] != VerdictCode.MISSING):
                    spot = row, number, int(order), source.spans[matchup][place, order]
                    wanted.setdefault(id(source), []).append(spot)
    unique: dict[str, int] = {}
    for source, spots in wanted.items():
        raw = replies(sources[source], np.array([spot[3] for spot in spots]))
        for (row, number, order, _), text in zip(spots, raw, strict=True):
            if text:
                both = items[row]["replies"].setdefault(number, [-1, -1])
                both[order] = unique.setdefault(text, len(unique))
    return {"items": items, "replies": list(unique)}


def _json(content: Any) -> bytes:
    """JSON in UTF-8; half a surrogate pair, which UTF-8 cannot encode, becomes a question mark."""
    text = json.dumps(content, ensure_ascii=False, separators=(",", ":"))
    return text.encode("utf-8", errors="replace")


def _pack(content: bytes) -> str:
    return base64.b64encode(gzip.compress(content, 6, mtime=0)).decode()
