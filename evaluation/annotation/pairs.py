"""Pairs of answers for people: which they get, in which order, and the key to who wrote them.

An assignment is one pair shown to one annotator, under a random id. The page holds ids and texts,
the key what they stand for; both come from one seed, which only the key holds.
"""

import collections
import dataclasses
import hashlib
import itertools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from common import provenance
from evaluation.inputs.benchmarks import Item
from evaluation.inputs.outputs import ModelOutput

KEY_FILE = "key.json"
KEY_FORM = "alpacare-annotation-key-1"

MODEL, REFERENCE = "model", "reference"


class AnswerPair(NamedTuple):
    """Two answers to one item."""

    item: Item
    model: ModelOutput
    reference: ModelOutput

    @property
    def digest(self) -> str:
        """Identifies all texts that a person sees."""
        texts = [self.item.text, self.model.output, self.reference.output]
        return hashlib.sha256(json.dumps(texts).encode()).hexdigest()[:16]


class Assignment(NamedTuple):
    """One pair of answers for one annotator."""

    annotator: str
    benchmark: str
    item: str
    generator: str
    reference: str
    first: str  # whose answer is A: MODEL or REFERENCE
    digest: str


@dataclasses.dataclass(frozen=True)
class PageKey:
    """What the ids of a page stand for, in the order in which each annotator sees them."""

    seed: int
    assignments: Mapping[str, Assignment]  # by id

    @property
    def page(self) -> str:
        """Identifies the page; the key's content cannot be changed without it."""
        content = json.dumps([self.seed, list(self.assignments.items())])
        return hashlib.sha256(content.encode()).hexdigest()[:16]

    @property
    def annotators(self) -> list[str]:
        """All who have assignments, in alphabetical order."""
        return sorted({shown.annotator for shown in self.assignments.values()})

    def record(self) -> dict[str, Any]:
        """The content of key.json."""
        assignments = {name: assigned._asdict() for name, assigned in self.assignments.items()}
        return {
            "form": KEY_FORM,
            "page": self.page,
            "seed": self.seed,
            "assignments": assignments,
        }


def draw_items(
    names: Sequence[str], scores: np.ndarray, count: int, draw: np.random.Generator
) -> list[str]:
    """`count` of the items `names`, at random, each with the same chance.

    They are spread evenly over the judge's `scores`, so that labels meet all of its verdicts. To
    choose the interesting ones instead would bias every rate.
    """
    count = min(count, len(names))
    order = np.lexsort((draw.permutation(len(names)), scores))
    places = ((draw.random() + np.arange(count)) * len(names) / max(1, count)).astype(int)
    chosen: list[int] = np.sort(order[places]).tolist()
    return [names[place] for place in chosen]


def assign(
    pairs: Sequence[AnswerPair], annotators: Sequence[str], overlap: int, seed: int
) -> PageKey:
    """Each pair to `overlap` annotators, who get about as many each, in an order of their own.

    The sides of the answers are drawn at random, and alternate between a pair's annotators. Who
    knows the seed can compute who wrote what.
    """
    draw = np.random.default_rng(seed)
    groups = list(itertools.combinations(annotators, overlap))
    draw.shuffle(groups)
    mine: dict[str, list[Assignment]] = collections.defaultdict(list)
    for number, place in enumerate(draw.permutation(len(pairs))):
        pair = pairs[place]
        side = int(draw.integers(2))
        for annotator in groups[number % len(groups)]:
            names = annotator, pair.item.benchmark, pair.item.id
            generators = pair.model.generator, pair.reference.generator
            first = (MODEL, REFERENCE)[side]
            mine[annotator].append(Assignment(*names, *generators, first, pair.digest))
            side = 1 - side
    assignments = {}
    for annotator in sorted(mine):
        for place in draw.permutation(len(mine[annotator])):
            assignments[draw.bytes(6).hex()] = mine[annotator][place]
    return PageKey(seed, assignments)


def read_key(path: Path) -> PageKey:
    """The key of a page.

    Raises:
      FileNotFoundError: there is none.
      ValueError: it is damaged, of another form, or was changed since it was written.
    """
    content = provenance.read_json(path)
    try:
        if content["form"] != KEY_FORM:
            raise KeyError("form")
        assignments = {
            name: Assignment(**fields) for name, fields in content["assignments"].items()
        }
        key = PageKey(content["seed"], assignments)
    except (KeyError, TypeError, AttributeError):
        raise ValueError(f"{path}: not a key that alpacare annotate wrote") from None
    if key.page != content.get("page"):
        raise ValueError(
            f"{path}: was changed since alpacare annotate wrote it, so it no longer says who wrote "
            "which answer; restore it, for example from a copy"
        )
    return key
