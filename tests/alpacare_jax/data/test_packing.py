"""Rows of examples, and the shapes of micro-batches that they are computed in."""

import doctest
import itertools

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from alpacare_jax.data import packing

row_and_lengths = st.integers(1, 60).flatmap(
    lambda T: st.tuples(st.just(T), st.lists(st.integers(1, T), max_size=60))
)


def test_doctests():
    results = doctest.testmod(packing)
    assert results.attempted
    assert not results.failed


# Rows.


@settings(max_examples=200, deadline=None)
@given(row_and_lengths)
def test_packing_covers_every_item_once_and_never_overflows(case):
    row_length, lengths = case
    rows = packing.pack(lengths, row_length)
    assert sorted(item for row in rows for item in row) == list(range(len(lengths)))
    used = sorted(sum(lengths[i] for i in row) for row in rows)
    assert all(0 < tokens <= row_length for tokens in used)
    assert len(used) < 2 or used[0] + used[1] > row_length, "two rows would have fitted into one"


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 40).flatmap(lambda T: st.tuples(st.just(T), st.lists(st.integers(1, T)))))
def test_every_row_holds_the_longest_item_left_and_is_as_full_as_it_can_be(case):
    row_length, lengths = case
    left = set(range(len(lengths)))
    for row in packing.pack(lengths, row_length):
        longest = max(lengths[i] for i in left)
        assert lengths[row[0]] == longest
        left.remove(row[0])
        sums = {longest}  # that the longest and any others make
        for i in left:
            sums |= {total + lengths[i] for total in sums if total + lengths[i] <= row_length}
        assert sum(lengths[i] for i in row) == max(sums)
        left -= set(row)


def test_an_item_is_passed_over_where_shorter_ones_fill_the_row():
    """Best-fit decreasing puts 5 and 4 together, and then needs a third row."""
    assert packing.pack([5, 4, 4, 3, 2, 2], row_length=10) == [[0, 3, 4], [1, 2, 5]]
    assert packing.pack([4, 4, 4], row_length=8) == [[0, 1], [2]]
    assert packing.pack([], row_length=8) == []


# Shapes.


def test_possible_shapes_fill_a_micro_batch_or_are_one_row():
    assert packing.possible_shapes(128, 300, 300, 9) == [(128, 1), (128, 2), (256, 1)]
    assert packing.possible_shapes(128, 256, 1, 9) == [(128, 1), (256, 1)]
    assert packing.possible_shapes(128, 256, 2**62, 1) == [(128, 1), (256, 1)]


def test_the_cost_counts_whole_micro_batches():
    cost = packing.cost((128, 2), np.array([1, 8, 9]), row_groups=4, attention_cost=1 / 128)
    assert cost.tolist() == [packing.MICRO_COST + 512, packing.MICRO_COST + 512, 2 * cost[0]]


costs_and_safe = st.tuples(st.integers(1, 12), st.integers(1, 6)).flatmap(
    lambda size: st.tuples(
        st.lists(
            st.lists(st.integers(1, 99), min_size=size[1], max_size=size[1]),
            min_size=size[0],
            max_size=size[0],
        ),
        st.integers(0, size[0] - 1),
    )
)


@settings(max_examples=100, deadline=None)
@given(costs_and_safe)
def test_no_exchange_of_one_shape_would_help(case):
    costs, safe = np.array(case[0], float), np.arange(len(case[0])) >= case[1]
    costs[~safe, 0] = np.inf  # the first step's longest example fits the safe shapes only
    chosen = packing.choose_shapes(costs, safe)
    assert 1 <= len(set(chosen)) == len(chosen) <= packing.MAX_SHAPES
    assert safe[chosen].any()
    total = costs[chosen].min(axis=0).sum()
    for place, other in itertools.product(range(len(chosen)), range(len(costs))):
        changed = [*chosen[:place], other, *chosen[place + 1 :]]
        if safe[changed].any():
            assert costs[changed].min(axis=0).sum() >= total


def test_the_best_pair_is_found_where_neither_is_the_best_alone(monkeypatch):
    monkeypatch.setattr(packing, "MAX_SHAPES", 2)
    costs = np.array([[2.0, 2, 2, 2], [1, 1, 9, 9], [9, 9, 1, 1]])
    assert sorted(packing.choose_shapes(costs, np.array([True, True, True]))) == [1, 2]
    assert 0 in packing.choose_shapes(costs, np.array([True, False, False])), "one must be safe"


def test_a_shape_that_saves_next_to_nothing_is_not_compiled():
    either = np.array([True, True])
    assert packing.choose_shapes(np.array([[1000.0, 1000], [1100, 999]]), either) == [0]
    assert sorted(packing.choose_shapes(np.array([[1000.0, 1000], [1100, 990]]), either)) == [0, 1]


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(1, 60), min_size=1, max_size=30), st.integers(1, 4))
def test_the_cheapest_shape_is_taken(lengths, row_groups):
    shapes = [(16, 3), (32, 1), (32, 2), (48, 2), (64, 1)]

    def price(shape, num_rows):
        return packing.cost(shape, num_rows, row_groups, attention_cost=0.01)

    (T, r), rows = packing.cheapest_layout(lengths, shapes, price)
    wide = [shape for shape in shapes if max(lengths) <= shape[0]]
    least = min(price(shape, len(packing.pack(lengths, shape[0]))) for shape in wide)
    assert price((T, r), len(rows)) == least
    assert rows == packing.pack(lengths, T)


# Bounds of examples


@st.composite
def segments_of_devices(draw):
    """Segments [A, R, T] of rows dealt or in any order, and the rows of a device."""
    T, size = draw(st.integers(1, 40)), draw(st.integers(1, 4))
    groups, A = draw(st.integers(1, 3)), draw(st.integers(1, 2))
    count = draw(st.integers(0, A * groups * size))
    rows = []
    for _ in range(count):
        lengths = draw(st.lists(st.integers(1, T), min_size=1, max_size=T))
        ends = np.cumsum(lengths)
        rows.append(np.array(lengths)[ends <= T].tolist() or [T])
    if draw(st.booleans()):
        rows = packing.deal(rows, A * groups, size)
    segments = np.zeros((A * groups * size, T), np.int32)
    for row, lengths in zip(segments, rows, strict=False):
        numbers = np.repeat(np.arange(1, len(lengths) + 1), lengths)
        row[: len(numbers)] = numbers
    return segments.reshape(A, -1, T), size


def as_the_kernel_reads(starts, lengths, T):
    """JAX's `_fix_seqlen_offsets`: row numbers are added to the starts, and -1 is taken out."""
    flat = np.where(starts >= 0, starts + np.arange(len(starts))[:, None] * T, -1).ravel()
    return flat[flat >= 0].tolist(), lengths[lengths >= 0].tolist()


@settings(max_examples=300)
@given(segments_of_devices())
def test_bounds_list_every_example_of_a_device_once(drawn):
    segments, size = drawn
    A, R, T = segments.shape
    bounds = packing.example_bounds(segments, size)
    assert bounds.shape[:2] == (A, R)
    assert bounds.shape[2] >= 2
    of_devices = bounds.reshape(-1, size, bounds.shape[2], 2)
    for tokens, listed in zip(segments.reshape(-1, size, T), of_devices, strict=True):
        wanted = []
        for row, numbers in enumerate(tokens):
            begins = [i for i in range(T) if i == 0 or 0 < numbers[i] != numbers[i - 1]]
            ends = [*begins[1:], T]
            wanted += [(row * T + i, end - i) for i, end in zip(begins, ends, strict=True)]
        found = as_the_kernel_reads(listed[..., 0], listed[..., 1], T)
        assert list(zip(*found, strict=True)) == wanted
        assert sum(found[1]) == size * T, "every token is computed"


@settings(max_examples=200)
@given(segments_of_devices())
def test_dealt_rows_need_little_more_than_the_mean(drawn):
    segments, size = drawn
    counts = np.maximum(segments.max(axis=2).ravel(), 1)
    rows = [list(range(n)) for n in segments.max(axis=2).ravel() if n]
    groups = len(counts) // size
    dealt = packing.deal(rows, groups, size)
    assert sorted(map(len, dealt)) == sorted(segments.max(axis=2).ravel().tolist())
    each = np.maximum([len(row) for row in dealt], 1).reshape(groups, size)
    assert (np.diff(each, axis=1) >= 0).all(), "ascending, so that the mean suffices"
    totals = each.sum(axis=1)
    assert totals.max() - totals.min() <= counts.max() - counts.min()


def test_one_long_list_is_spread_over_the_rows_before():
    """Rows of 2 and of 6 examples take 4 slots each; the other way round they take 6."""
    few, many = np.repeat([1, 2], 6), np.repeat(np.arange(1, 7), 2)
    bounds = packing.example_bounds(np.array([[few, many]]), 2)[0]
    assert bounds[..., 0].tolist() == [[0, 6, 12, 14], [4, 6, 8, 10]]
    assert bounds[..., 1].tolist() == [[6, 6, 2, 2], [2, 2, 2, 2]]
    other = packing.example_bounds(np.array([[many, few]]), 2)[0]
    assert other[..., 0].tolist() == [[0, 2, 4, 6, 8, 10], [0, 6, -1, -1, -1, -1]]
