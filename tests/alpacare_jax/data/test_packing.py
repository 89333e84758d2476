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
