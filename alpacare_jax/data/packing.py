"""Examples of any length in rows of few lengths, and which shapes of micro-batches to compile.

A shape (T, r) is a micro-batch of r rows of T tokens on each device.
"""

from bisect import bisect_left
from collections.abc import Callable, Iterable, Sequence

import numpy as np

MicroShape = tuple[int, int]

MICRO_COST = 256
"""What a micro-batch costs a device beyond its tokens, in tokens: weights are read, gathered and
their gradients added up once more. By the roofline of a 7B model 400 on one GPU, 50 to 300 under
FSDP over a pod; 25 on CPU."""

MAX_SHAPES = 6
"""Shapes of micro-batches in one run: each is a compilation of half a minute at 7B."""

WORTH_COMPILING = 0.001
"""A further shape must save this share of the time."""


def pack(lengths: Sequence[int], row_length: int) -> list[list[int]]:
    """Rows of items; each holds the longest item left, and of the others those that fill it best.

    What sums of others leave free is a bit set, which one shift per item extends, longest first,
    until the row can be filled. No two rows would fit into one. Instruction data takes as few rows
    as its tokens fill, but for one more in some steps; best-fit decreasing takes 0.2 to 1.2 more.

    >>> pack([5, 4, 3, 2, 2], row_length=8)
    [[0, 2], [1, 3, 4]]
    """
    items = sorted(range(len(lengths)), key=lambda item: (-lengths[item], item))
    left = [-lengths[item] for item in items]  # bisect wants what grows
    rows = []
    while items:
        room = row_length + left[0]
        free, looked_at = 1 << room, []  # bit f: some of those looked at leave f tokens free
        at = max(1, bisect_left(left, -room))
        while at < len(left) and not free & 1:
            length = -left[at]
            more = free | free >> length
            if more == free:  # and so it is for all of this length
                at = bisect_left(left, 1 - length, at)
            else:
                looked_at.append((at, free))
                free, at = more, at + 1
        rest, chosen = (free & -free).bit_length() - 1, []
        for at, before in reversed(looked_at):
            if not before >> rest & 1:  # not without this one
                rest -= left[at]
                chosen.append(at)
        row = []
        for at in [*chosen, 0]:  # from the end, so that no index moves
            del left[at]
            row.append(items.pop(at))
        rows.append(row[::-1])
    return rows


def possible_shapes(row_multiple: int, longest_row: int, micro_tokens: int) -> list[MicroShape]:
    """Rows of every multiple, and as many of them on a device as `micro_tokens` allow, or one."""
    return [
        (T, r)
        for T in range(row_multiple, longest_row + 1, row_multiple)
        for r in range(1, max(1, micro_tokens // T) + 1)
    ]


def cost(
    shape: MicroShape, num_rows: np.ndarray, row_groups: int, attention_cost: float
) -> np.ndarray:
    """What `num_rows` rows over `row_groups` devices cost each device, in tokens.

    Args:
      attention_cost: of a token attending to one more, relative to a token.
    """
    T, r = shape
    num_micro = np.ceil(num_rows / (r * row_groups))
    return num_micro * (MICRO_COST + r * T * (1 + attention_cost * T))


def choose_shapes(costs: np.ndarray, safe: np.ndarray) -> list[int]:
    """Which shapes to compile, at most MAX_SHAPES: those with which the steps together cost least.

    Steps differ by some percent in tokens, so a step wastes what its best shape has over it. Shapes
    are added one by one; after each, every one is taken out in turn and the best put in its place,
    until that helps no more.

    Args:
      costs: [shapes, steps], infinite where a step's longest example does not fit.
      safe: [shapes], whether every example that there may be fits; one of these is chosen.
    """

    def best_with(others: list[int]) -> tuple[float, int]:
        so_far = costs[others].min(axis=0, initial=np.inf)
        totals = np.minimum(so_far, costs).sum(axis=1)
        if not safe[others].any():
            totals = np.where(safe, totals, np.inf)
        return float(totals.min()), int(totals.argmin())

    chosen, total = [], np.inf
    while len(chosen) < MAX_SHAPES:
        new_total, added = best_with(chosen)
        new, before = [*chosen, added], np.inf
        while new_total < before:
            before = new_total
            for _ in new:
                new_total, added = best_with(new[1:])
                new = [*new[1:], added]
        if new_total > (1 - WORTH_COMPILING) * total:
            break
        chosen, total = new, new_total
    return chosen


def cheapest_layout(
    lengths: Sequence[int], shapes: Iterable[MicroShape], price: Callable[[MicroShape, int], float]
) -> tuple[MicroShape, list[list[int]]]:
    """The shape that costs least for these examples, and its rows.

    Args:
      price: what a number of rows costs in a shape. Shapes that could not be the cheapest even with
        full rows are not tried.
    """
    tokens, longest = sum(lengths), max(lengths)
    at_least = {s: price(s, -(-tokens // s[0])) for s in shapes if longest <= s[0]}
    packed: dict[int, list[list[int]]] = {}
    found, least = None, np.inf
    for shape in sorted(at_least, key=at_least.get):
        if at_least[shape] >= least:
            break
        T = shape[0]
        rows = packed[T] = packed.get(T) or pack(lengths, T)
        if (its_price := price(shape, len(rows))) < least:
            found, least = shape, its_price
    return found, packed[found[0]]
