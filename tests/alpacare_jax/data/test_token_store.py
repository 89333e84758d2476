"""The arrays of a step, against example by example and column by column."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from alpacare_jax.data.token_store import TokenStore


def example_by_example(ids, loss, rows, shape):
    """The same arrays in plain loops."""
    A, R, T = shape
    names = ("tokens", "targets", "weights", "segments", "positions")
    arrays = {n: np.zeros((A * R, T), np.float32 if n == "weights" else np.int32) for n in names}
    weight = 1 / sum(sum(loss[i]) for row in rows for i in row)
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
                if place + 1 < length and loss[i][place + 1]:
                    arrays["weights"][at] = weight
            start += length
    return {name: array.reshape(shape) for name, array in arrays.items()}


def masks(length):
    """Masks that choose at least one of `length` tokens."""
    return st.lists(st.booleans(), min_size=length, max_size=length).filter(any)


@st.composite
def cases(draw):
    """(ids, loss, rows that fit, shape), with full rows and empty ones among them."""
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
    loss = [[False, *draw(masks(len(tokens) - 1))] for tokens in ids]
    R = draw(st.integers(1, 3))
    A = -(-len(rows) // R) + draw(st.integers(0, 2))
    return ids, loss, rows, (A, R, T)


@settings(max_examples=200, deadline=None)
@given(cases(), st.randoms(use_true_random=False))
def test_arrays_are_those_of_plain_loops(case, random):
    ids, loss, rows, shape = case
    # The step's examples are some of those stored, in an order of their own.
    numbers = random.sample(range(len(ids) + 3), len(ids))
    stored = [np.array([7, 7, 7], np.int32)] * (len(ids) + 3)
    stored_loss = [np.array([False, True, True])] * (len(ids) + 3)
    for number, tokens, mask in zip(numbers, ids, loss, strict=True):
        stored[number], stored_loss[number] = tokens, np.array(mask)
    found = TokenStore(stored, stored_loss).arrays(np.array(numbers), rows, shape)
    for name, want in example_by_example(ids, loss, rows, shape).items():
        assert found[name].dtype == want.dtype
        np.testing.assert_array_equal(found[name], want, err_msg=name)
