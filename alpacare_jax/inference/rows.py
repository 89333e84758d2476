"""The unfinished answers of an engine, and what its programs need of them as arrays."""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from alpacare_jax.inference.requests import Request, TokenLogprobs
from alpacare_jax.inference.sampling import IN_PROMPT, Rows, Sampling, settings_of

PIECE = 32
"""Tokens of a prompt that are one row of a chunk."""

LEAST_SHARED = 8
"""Fewest tokens of another row that are copied: computing fewer takes no longer."""

USUAL = Sampling()


@dataclasses.dataclass
class Row:
    """An unfinished answer in its slot."""

    request: Request
    sampling: Sampling
    prompt: np.ndarray
    limit: int  # most ids
    placed: bool = False  # its prefix was looked for
    prefilled: int = 0  # tokens of the prompt in the cache
    ids: list[int] = dataclasses.field(default_factory=list)
    scored: list[TokenLogprobs | None] = dataclasses.field(default_factory=lambda: [None])

    @property
    def draw(self) -> int:
        """The number of its stream of random numbers."""
        return self.request.index if self.request.draw is None else self.request.draw

    @property
    def decoding(self) -> bool:
        """Whether its whole prompt is in the cache."""
        return self.prefilled == len(self.prompt)


Piece = tuple[int, int, Row]
"""Slot, position of the first token, and row of a piece of a prompt."""

BLANK = Row(Request(0, [0], 2), USUAL, np.zeros(1, np.int64), limit=2, prefilled=1, ids=[0])
"""A row for a program that is run for nothing."""


def piece_arrays(pieces: Sequence[Piece], size: int) -> Rows:
    """The argument `pieces` of `Programs`.

    The first is repeated up to `size`, but ends its prompt once: the token after it is counted.
    """
    own = len(pieces)
    pieces = [*pieces, *[pieces[0]] * (size - own)] if pieces else []
    arrays = _settings([row for _, _, row in pieces], size) | _blank(size, "start", "count", "slot")
    arrays |= {name: np.zeros((size, PIECE), np.int32) for name in ("tokens", "targets")}
    arrays["ends"] = np.zeros(size, bool)
    for i, (slot, start, row) in enumerate(pieces):
        tokens = row.prompt[start : start + PIECE]
        targets = row.prompt[start + 1 : start + 1 + PIECE]
        arrays["tokens"][i, : len(tokens)] = tokens
        arrays["targets"][i, : len(targets)] = targets
        arrays["start"][i], arrays["count"][i], arrays["slot"][i] = start, len(tokens), slot
        arrays["ends"][i] = i < own and start + len(tokens) == len(row.prompt)
    return arrays


def burst_arrays(active: Mapping[int, Row], size: int) -> Rows:
    """The argument `rows` of `Programs` for the rows that decode, by slot."""
    rows = [active.get(slot) for slot in range(size)]
    arrays = _settings(rows, size) | _blank(size, "tokens", "positions", "left")
    arrays["active"] = np.array([row is not None for row in rows])
    for slot, row in active.items():
        arrays["tokens"][slot] = row.ids[-1]
        arrays["positions"][slot] = len(row.prompt) + len(row.ids) - 1
        arrays["left"][slot] = row.limit - len(row.ids)
    return arrays


def counts_and_bias(row: Row, vocabulary: int) -> tuple[np.ndarray, np.ndarray]:
    """What a row that adjusts its logits begins with, see `sampling.adjust`."""
    counts, bias = np.zeros(vocabulary, np.int32), np.zeros(vocabulary, np.float32)
    counts[row.prompt] = IN_PROMPT
    bias[list(row.sampling.logit_bias)] = list(row.sampling.logit_bias.values())
    return counts, bias


def _settings(rows: Sequence[Row | None], size: int) -> Rows:
    """Settings of these rows, those of a greedy row for others up to `size`."""
    padded = [*rows, *[None] * (size - len(rows))]
    draws = [row.draw if row else 0 for row in padded]
    settings = settings_of([row.sampling if row else USUAL for row in padded], draws)
    wanted = [row is not None and row.request.logprobs is not None for row in padded]
    return settings | {"logprobs": np.array(wanted)}


def _blank(size: int, *names: str) -> Rows:
    return {name: np.zeros(size, np.int32) for name in names}


def of_row(values: Mapping[str, np.ndarray], row: int) -> dict[str, np.ndarray]:
    """What a program returned of one row."""
    return {name: each[row] for name, each in values.items()}


def halves(most: int, least: int) -> list[int]:
    """`most`, its half and so on, down to `least`: what programs are compiled for."""
    sizes = [most]
    while sizes[-1] > least:
        sizes.append(-(-sizes[-1] // 2))
    return sizes


def fit(sizes: Sequence[int], count: int) -> int:
    """The smallest of the sizes that holds so many."""
    return min(size for size in sizes if size >= count)


def fill(sizes: Sequence[int], count: int) -> int:
    """The largest of the sizes that so many fill, or the smallest of all."""
    return max((size for size in sizes if size <= count), default=min(sizes))


def longest_prefix(row: Row, held: Sequence[np.ndarray], unit: int) -> tuple[int, int]:
    """(tokens, number) of the ids that begin with most of the row's prompt.

    Fewer than LEAST_SHARED are none. The last token is never among them: the first new id follows
    from its computation.

    Args:
      unit: the tokens are a multiple of it.
    """

    def common(ids: np.ndarray) -> int:
        n = min(len(row.prompt) - 1, len(ids))
        differ = np.flatnonzero(row.prompt[:n] != ids[:n])
        return (int(differ[0]) if len(differ) else n) // unit * unit

    found = [(common(ids), i) for i, ids in enumerate(held)]
    count, number = max(found, key=lambda each: each[0], default=(0, 0))
    return count if count >= LEAST_SHARED else 0, number


def logprobs_of(scores: Mapping[str, np.ndarray], count: int, top: int) -> list[TokenLogprobs]:
    """The first `count` of these scores, with so many of the most likely tokens."""
    own = scores["logprob"][:count].tolist()
    ids, values = (scores[name][:count, :top].tolist() for name in ("top_ids", "top"))
    tops = (tuple(zip(*each, strict=True)) for each in zip(ids, values, strict=True))
    return [TokenLogprobs(*each) for each in zip(own, tops, strict=True)]
