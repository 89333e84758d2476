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

from evaluation.judgements.verdicts import Matchup, VerdictCode, Verdicts, natural, replies
from evaluation.judgements.workdirs import ReportTexts
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
class _Source:
    """What is packed, and the page's lists of names in the order of its menus."""

    verdicts: Verdicts
    tables: Tables
    texts: ReportTexts
    benchmarks: list[str]
    judges: list[str]
    references: list[str]
    systems: Systems
    generators: list[str]  # systems and references

    def index(self) -> dict[str, Any]:
        return {
            "benchmarks": self.benchmarks,
            "sizes": [len(self.verdicts.ids[benchmark]) for benchmark in self.benchmarks],
            "judges": self.judges,
            "references": self.references,
            "systems": [system.label for system in self.systems.values()],
            "generators": self.generators,
            "answers": {
                "systems": [self.generators.index(name) for name in self.systems],
                "references": [self.generators.index(name) for name in self.references],
            },
            "cells": [
                [
                    self.judges.index(matchup.judge),
                    self.benchmarks.index(matchup.benchmark),
                    self.references.index(matchup.reference),
                    list(self.systems).index(matchup.generator),
                ]
                for matchup in self.tables
            ],
            "unordered": [
                number
                for number, matchup in enumerate(self.tables)
                if matchup in self.verdicts.unordered
            ],
        }

    def codes(self) -> bytes:
        """A byte for each item of each matchup: both codes, from 0 on, as two digits."""
        packed = []
        for _, table in self.tables.values():
            one, other = (table - VerdictCode.MISSING.value).T
            packed.append((one * len(VerdictCode) + other).astype(np.uint8).tobytes())
        return b"".join(packed)

    def row(self, benchmark: str, place: int, block: int, row: int) -> list[Any]:
        item = self.texts.items[benchmark, self.verdicts.ids[benchmark][place]]
        fields = [item.id, item.instruction, item.input, item.topic, item.difficulty]
        return [self.benchmarks.index(benchmark), place, *fields, block, row]

    def block(self, chosen: list[tuple[str, int]]) -> dict[str, Any]:
        """Answers and replies to some items; of equal replies, which are common, one copy."""
        items: list[dict[str, Any]] = []
        wanted: dict[int, list[tuple[int, int, int, np.ndarray]]] = {}  # by source
        sources = {id(source): source for source, _ in self.tables.values()}
        for row, (benchmark, place) in enumerate(chosen):
            name = self.verdicts.ids[benchmark][place]
            outputs = {}
            for number, generator in enumerate(self.generators):
                if output := self.texts.outputs.get((benchmark, generator), {}).get(name):
                    outputs[number] = [output.output, output.finish_reason]
            items.append({"outputs": outputs, "replies": {}})
            for number, (matchup, (source, table)) in enumerate(self.tables.items()):
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
    source = _Source(
        verdicts,
        tables,
        texts,
        benchmarks=sorted(verdicts.ids),
        judges=list(dict.fromkeys(matchup.judge for matchup in tables)),
        references=references,
        systems=systems,
        generators=list(dict.fromkeys((*systems, *references))),
    )
    everything = [
        (benchmark, place)
        for benchmark in source.benchmarks
        for place in range(len(verdicts.ids[benchmark]))
    ]
    packed, rows, size = {"verdicts": _pack(source.codes())}, [], 0
    order = np.random.default_rng(seed).permutation(len(everything))
    for first in range(0, len(order), BLOCK_ITEMS):
        chosen = [everything[i] for i in sorted(order[first : first + BLOCK_ITEMS])]
        block = _pack(_json(source.block(chosen)))
        if rows and size + len(block) > max_bytes:
            break
        size += len(block)
        number = first // BLOCK_ITEMS
        packed[f"block-{number}"] = block
        rows += [(*item, number, row) for row, item in enumerate(chosen)]
    packed["items"] = _pack(_json([source.row(*row) for row in sorted(rows)]))
    return Transcripts(source.index(), packed, len(rows), len(everything))


def _json(content: Any) -> bytes:
    """JSON in UTF-8; half a surrogate pair, which UTF-8 cannot encode, becomes a question mark."""
    text = json.dumps(content, ensure_ascii=False, separators=(",", ":"))
    return text.encode("utf-8", errors="replace")


def _pack(content: bytes) -> str:
    return base64.b64encode(gzip.compress(content, 6, mtime=0)).decode()
