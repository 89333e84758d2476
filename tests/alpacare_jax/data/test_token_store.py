"""The arrays of a step, against example by example and column by column."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from alpacare_jax.data.batches import TokenStore


def example_by_example(ids, num_targets, rows, shape):
    """The same arrays in plain loops."""
    A, R, T = shape
    names = ("tokens", "targets", "weights", "segments", "positions")
    arrays = {n: np.zeros((A * R, T), np.float32 if n == "weights" else np.int32) for n in names}
    weight = 1 / sum(num_targets[i] for row in rows for i in row)
    for row, items in enumerate(rows):
        start = 0
        for segment, i in enumerate(items, start=1):
            length = len(ids[i])
            for place in range(length):
                at = row, start + place
                arrays["tokens"][at] = ids[i][place]
                arrays["segments"][at] = segment
                arrays["positions"][at] = place
                if place + 1 < length:
                    arrays["targets"][at] = ids[i][place + 1]
                if length - num_targets[i] <= place + 1 < length:
                    arrays["weights"][at] = weight
            start += length
    return {name: array.reshape(shape) for name, array in arrays.items()}


@st.composite
def cases(draw):
    """(ids, num_targets, rows that fit, shape), with full rows and empty ones among them."""
    T = draw(st.integers(2, 12))
    rows, ids = [], []
    for _ in range(draw(st.integers(1, 5))):
        left, row = T, []
        while left >= 2 and (not row or draw(st.booleans())):
            length = draw(st.integers(2, left))
            row.append(len(ids))
            ids.append(np.arange(1, length + 1, dtype=np.int32) + 100 * len(ids))
            left -= length
        rows.append(row)
    num_targets = [draw(st.integers(1, len(tokens) - 1)) for tokens in ids]
    R = draw(st.integers(1, 3))
    A = -(-len(rows) // R) + draw(st.integers(0, 2))
    return ids, num_targets, rows, (A, R, T)


@settings(max_examples=200, deadline=None)
@given(cases(), st.randoms(use_true_random=False))
def test_arrays_are_those_of_plain_loops(case, random):
    ids, num_targets, rows, shape = case
    # The step's examples are some of those stored, in an order of their own.
    numbers = random.sample(range(len(ids) + 3), len(ids))
    stored, stored_targets = [np.array([7, 7, 7], np.int32)] * (len(ids) + 3), [2] * (len(ids) + 3)
    for number, tokens, targets in zip(numbers, ids, num_targets, strict=True):
        stored[number], stored_targets[number] = tokens, targets
    found = TokenStore(stored, stored_targets).arrays(np.array(numbers), rows, shape)
    for name, want in example_by_example(ids, num_targets, rows, shape).items():
        assert found[name].dtype == want.dtype
        np.testing.assert_array_equal(found[name], want, err_msg=name)
