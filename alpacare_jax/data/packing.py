"""Packs examples into rows, and chooses the shapes of micro-batches to compile."""

import functools
from bisect import bisect_left
from collections.abc import Callable, Iterable, Sequence

import numpy as np

MicroShape = tuple[int, int]
"""(T, r): a micro-batch of r rows of T tokens on each device."""

MICRO_COST = 256
"""Cost of a micro-batch to a device beyond its tokens, in tokens: weights are read and gathered,
and their gradients accumulated, once more. By the roofline of a 7B model it is 400 on one GPU and
50 to 300 under FSDP over a pod; on CPU 25."""

MAX_SHAPES = 6
"""Shapes of micro-batches in one run: each takes half a minute to compile at 7B."""

MIN_SAVING = 0.001
"""Another shape must save at least this share of the time."""


def pack(lengths: Sequence[int], row_length: int) -> list[list[int]]:
    """Rows of item numbers: each takes the longest item left, then those that fill it best.

    Best means the least free space, a subset-sum problem. It is solved with a bit set: bit f is set
    when some of the items considered leave f tokens free, and one shift per item, longest first,
    extends it until bit 0 is set. No two rows would fit into one. On instruction data this takes at
    most one row more than the tokens require; best-fit decreasing takes 0.2 to 1.2 more on average.

    >>> pack([5, 4, 3, 2, 2], row_length=8)
    [[0, 2], [1, 3, 4]]

        row 0                          bits   row 1                          bits
        item 0, 5 tokens: 3 are free   1000   item 1, 4 tokens: 4 are free   10000
        item 2, 3 tokens: 3 or 0       1001   item 3, 2 tokens: 4 or 2       10100
        (item 1, 4 tokens, never fits)        item 4, 2 tokens: 4, 2 or 0    10101

    Then backwards from bit 0: an item was needed where the bit was not set before it.
    """
    items = sorted(range(len(lengths)), key=lambda item: (-lengths[item], item))
    negated = [-lengths[item] for item in items]  # ascending, as bisect requires
    rows = []
    while items:
        room = row_length + negated[0]
        reachable = 1 << room
        considered: list[tuple[int, int]] = []  # (index, bits before it)
        i = max(1, bisect_left(negated, -room))
        while i < len(negated) and not reachable & 1:
            length = -negated[i]
            extended = reachable | reachable >> length
            if extended == reachable:  # so it is for all items of this length
                i = bisect_left(negated, 1 - length, i)
            else:
                considered.append((i, reachable))
                reachable, i = extended, i + 1
        free = (reachable & -reachable).bit_length() - 1  # the lowest bit set
        chosen = []
        for i, before in reversed(considered):
            if not before >> free & 1:
                free -= negated[i]
                chosen.append(i)
        row = []
        for i in [*chosen, 0]:  # in descending order, so that no index shifts
            del negated[i]
            row.append(items.pop(i))
        rows.append(row[::-1])
    return rows


def possible_shapes(
    row_multiple: int, max_row_length: int, micro_tokens: int, max_rows: int
) -> list[MicroShape]:
    """Rows of every multiple; per device as many as both limits allow, and at least one."""
    return [
        (T, r)
        for T in range(row_multiple, max_row_length + 1, row_multiple)
        for r in range(1, max(1, min(max_rows, micro_tokens // T)) + 1)
    ]


def cost(
    shape: MicroShape, num_rows: np.ndarray, row_groups: int, attention_cost: float
) -> np.ndarray:
    """Cost of `num_rows` rows over `row_groups` devices to each device, in tokens.

    Args:
      attention_cost: of attending to one token, relative to the rest of a token's computation.
    """
    T, r = shape
    num_micro = np.ceil(num_rows / (r * row_groups))
    return num_micro * (MICRO_COST + r * T * (1 + attention_cost * T))


def choose_shapes(costs: np.ndarray, safe: np.ndarray) -> list[int]:
    """The shapes to compile, at most MAX_SHAPES: those that minimise the total cost of the steps.

    Each step takes the cheapest of the chosen shapes. Shapes are added greedily; after each
    addition, every chosen shape in turn is exchanged for the best replacement until none helps.

    Args:
      costs: [shapes, steps], infinite where a step's longest example does not fit.
      safe: [shapes], whether the longest possible example fits; at least one of these is chosen.

    >>> costs = np.array([[2.0, 2, 2, 2], [1, 1, 9, 9], [9, 9, 1, 1]])
    >>> choose_shapes(costs, safe=np.array([True, True, True]))
    [2, 1]

        chosen          cost of each step    total
        [0]             2  2  2  2           8      the best alone
        [0, 1]          1  1  2  2           6      added
        [1, 2]          1  1  1  1           4      0 exchanged for 2
        [2, 1]          1  1  1  1           4      1 stays; a third shape would save nothing
    """

    def best_addition(others: list[int]) -> tuple[float, int]:
        step_costs = costs[others].min(axis=0, initial=np.inf)
        totals = np.minimum(step_costs, costs).sum(axis=1)
        if not safe[others].any():
            totals = np.where(safe, totals, np.inf)
        return float(totals.min()), int(totals.argmin())

    chosen, total = [], np.inf
    while len(chosen) < MAX_SHAPES:
        new_total, added = best_addition(chosen)
        new, before = [*chosen, added], np.inf
        while new_total < before:
            before = new_total
            for _ in new:
                new_total, added = best_addition(new[1:])
                new = [*new[1:], added]
        if new_total > (1 - MIN_SAVING) * total:
            break
        chosen, total = new, new_total
    return chosen


def cheapest_layout(
    lengths: Sequence[int], shapes: Iterable[MicroShape], price: Callable[[MicroShape, int], float]
) -> tuple[MicroShape, list[list[int]]]:
    """The shape that is cheapest for these examples, and its rows.

    Args:
      price: (shape, number of rows) -> cost. Shapes that would lose even with full rows are
        skipped without packing.
    """
    num_tokens, longest = sum(lengths), max(lengths)

    @functools.cache
    def rows_of(T: int) -> list[list[int]]:
        return pack(lengths, T)

    def lower_bound(shape: MicroShape) -> float:
        return price(shape, -(-num_tokens // shape[0]))

    best, *others = sorted((s for s in shapes if longest <= s[0]), key=lower_bound)
    best_price = price(best, len(rows_of(best[0])))
    for shape in others:
        if lower_bound(shape) >= best_price:
            break
        if (shape_price := price(shape, len(rows_of(shape[0])))) < best_price:
            best, best_price = shape, shape_price
    return best, rows_of(best[0])


def deal(rows: Sequence[list[int]], groups: int, size: int) -> list[list[int]]:
    """The rows in groups of `size`, each with about as many items, ascending within a group.

    Missing rows are empty, so groups may begin with some.

    >>> deal([[0, 1, 2], [3], [4, 5]], groups=2, size=2)
    [[], [4, 5], [3], [0, 1, 2]]
    """
    ascending = [[] for _ in range(groups * size - len(rows))] + sorted(rows, key=len)
    return [row for group in range(groups) for row in ascending[group::groups]]


def example_bounds(segments: np.ndarray, size: int) -> np.ndarray:
    """Starts and lengths of the examples of each device's rows, for `attention.cudnn`.

    The padding behind a row's last example is counted to that example: no example sees it. A row
    without examples is one. The kernel takes a list of a device's examples, M for each row, and -1
    behind the last. Row b of the list has starts relative to token b T, none negative, so it may
    hold examples of later rows, not of earlier ones. M is the least that allows it: where rows
    ascend by their number of examples, their mean. For a device with size = 2 rows of T = 4:

        segments  = [[1, 1, 1, 0],        examples of 4, 1, 1 and 2 tokens
                     [1, 2, 3, 3]]
        starts    = [[ 0,  4],            of the first and the second example, from token 0
                     [ 1,  2]]            of the third and the fourth, from token 4
        lengths   = [[ 4,  1],
                     [ 1,  2]]

    Args:
      segments: [A, R, T], as in `Step`.
      size: rows of a device in a micro-batch; it divides R.

    Returns:
      int32 [A, R, M, 2]; M is at least 2, which the packed form of the kernel requires.
    """
    A, R, T = segments.shape
    rows = segments.reshape(-1, T)
    begins = np.ones(rows.shape, bool)
    begins[:, 1:] = (rows[:, 1:] != rows[:, :-1]) & (rows[:, 1:] > 0)
    begins = begins.reshape(-1, size * T)  # by device
    count = begins.reshape(-1, size, T).sum(axis=2).cumsum(axis=1)
    needed = int(np.ceil(count / np.arange(1, size + 1)).max())
    M = next(m * 2**k for k in range(64) for m in (2, 3, 4, 6) if m * 2**k >= needed)
    bounds = np.full((len(begins), size * M, 2), -1, np.int32)
    device, token = np.nonzero(begins)
    number = np.arange(len(device)) - np.searchsorted(device, device)  # within its device
    ends = np.append(token[1:], 0)
    ends[np.append(device[1:] != device[:-1], True)] = size * T
    bounds[device, number, 0] = token - number // M * T
    bounds[device, number, 1] = ends - token
    return bounds.reshape(A, R, M, 2)
