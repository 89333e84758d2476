"""Encoded examples -> packed batches: columns, packing, and `batch(step)` as a pure function."""

import dataclasses
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from alpacare_jax.data import batches, packing, prompts, token_store
from alpacare_jax.data.batches import Batcher
from alpacare_jax.data.encoding import EncodedExample
from alpacare_jax.training import optimizers
from common import records
from common.records import Example
from configs import alpacare
from tests.conftest import DATA, needs_data


def example(id: str) -> Example:
    return Example(id, "10", "", "20")


def encoded(length: int, prompt_length: int, first: int = 100) -> EncodedExample:
    return EncodedExample(np.arange(first, first + length, dtype=np.int32), prompt_length)


def batcher(examples, batch_size, **changes):
    usual = {"seed": 3, "max_length": 40, "max_row_length": 40, "row_multiple": 8, "row_groups": 1}
    return Batcher(examples, batch_size, **(usual | {"microbatch_tokens": 64} | changes))


def contents(step: token_store.Step) -> list[tuple]:
    """The examples that the arrays hold, each as (ids, targets, share of loss), sorted."""
    a = {name: array.reshape(-1, array.shape[-1]) for name, array in step.arrays.items()}
    found = []
    for row in range(len(a["tokens"])):
        for segment in range(1, a["segments"][row].max() + 1):
            (at,) = np.nonzero(a["segments"][row] == segment)
            assert list(a["positions"][row, at]) == list(range(len(at)))
            assert list(at) == list(range(at[0], at[0] + len(at)))
            columns = (a[name][row, at].tolist() for name in ("tokens", "targets", "weights"))
            found.append(tuple(tuple(column) for column in columns))
    return sorted(found)


def expected(examples) -> list[tuple]:
    """What `contents` must find for these examples."""
    share = np.float32(1 / sum(e.num_targets for e in examples)).item()
    return sorted(
        (
            tuple(e.ids.tolist()),
            (*e.ids[1:].tolist(), 0),
            tuple(share * (e.prompt_length - 1 <= i < len(e.ids) - 1) for i in range(len(e.ids))),
        )
        for e in examples
    )


# Columns.


def test_columns_of_one_example():
    one = EncodedExample(np.array([1, 10, 11, 12, 20, 21, 2]), prompt_length=4)
    arrays = batcher([one], 1, max_length=7, row_multiple=7).batch(0).arrays
    tokens = [1, 10, 11, 12, 20, 21, 2]
    targets = [10, 11, 12, 20, 21, 2, 0]
    mask = [0, 0, 0, 1, 1, 1, 0]
    assert arrays["tokens"][0, 0].tolist() == tokens
    assert arrays["targets"][0, 0].tolist() == targets
    assert (arrays["weights"][0, 0] * 3).tolist() == mask


def test_columns_of_a_packed_row():
    examples = [
        EncodedExample(np.array([1, 10, 20, 2]), 2),
        EncodedExample(np.array([1, 30, 2]), 1),
    ]
    arrays = batcher(examples, 2, max_length=8).batch(0).arrays
    columns = {name: array[0, 0].tolist() for name, array in arrays.items()}
    weights = (arrays["weights"][0, 0] * 4).tolist()
    assert columns | {"weights": weights} == {
        "tokens": [1, 10, 20, 2, 1, 30, 2, 0],
        "targets": [10, 20, 2, 0, 30, 2, 0, 0],
        "weights": [0, 1, 1, 0, 1, 1, 0, 0],
        "segments": [1, 1, 1, 1, 2, 2, 2, 0],
        "positions": [0, 1, 2, 3, 0, 1, 2, 0],
    }


def test_columns_of_a_pair():
    answers = [
        EncodedExample(np.array([1, 10, 20, 2]), 2),
        EncodedExample(np.array([1, 30, 2]), 1),
    ]
    one = batcher(answers, 1, max_length=4)
    pairs = dataclasses.replace(one, answers=2, references=np.array([-3, -5], np.float32))
    step = pairs.batch(0)
    columns = {name: array[0, 0].tolist() for name, array in step.arrays.items()}
    assert columns["segments"] == [1, 1, 1, 1, 2, 2, 2, 0]
    assert columns["references"] == [0, 0, 0, -3, 0, 0, -5, 0]
    assert columns["pair_weights"] == [0, 0, 0, 0, 0, 0, 1, 0]
    assert columns["weights"] == [0, 0.5, 0.5, 0, 0.5, 0.5, 0, 0]  # by the preferred answer's two
    assert (step.num_targets, step.num_pairs, step.records.tolist()) == (4, 10 + 6, [0])


# The held-out share.


@pytest.mark.parametrize("share, held", [(0.0, 0), (0.1, 2), (0.5, 8), (0.01, 1)])
def test_split_covers_every_example_once(share, held):
    examples = [(example(str(i)),) for i in range(15)]
    train, held_out = batches.split_records(examples, share, seed=5)
    assert len(held_out) == held
    assert sorted(train + held_out, key=lambda record: int(record[0].id)) == examples
    assert (train, held_out) == batches.split_records(examples, share, seed=5)


def test_split_depends_on_the_seed():
    examples = [(example(str(i)),) for i in range(50)]
    assert batches.split_records(examples, 0.5, seed=5) != batches.split_records(
        examples, 0.5, seed=6
    )


def test_pairs_of_one_prompt_are_not_split():
    pairs = [(Example(str(i), f"prompt {i % 7}", "", "a"),) * 2 for i in range(30)]
    train, held_out = batches.split_records(pairs, 0.3, seed=5)
    prompts = [{pair[0].instruction for pair in part} for part in (train, held_out)]
    assert len(train) + len(held_out) == 30
    assert len(prompts[1]) == 3 and not prompts[0] & prompts[1]


# Steps.


def test_recipe_steps_and_warm_up():
    for variant, steps, warm_up in (("llama-7b", 1218, 37), ("llama-13b", 2030, 61)):
        config = alpacare.get_config(variant)
        examples = [encoded(3, 1)] * 52_002
        one = batcher(examples, config.train.batch_size)
        num_steps = one.steps_per_epoch * config.train.epochs
        assert num_steps == steps
        recipe = optimizers.OptimizerConfig(**config.optimizer.to_dict())
        assert optimizers.warmup_steps(recipe, num_steps) == warm_up


def test_fewer_examples_than_a_batch():
    with pytest.raises(ValueError, match=r"3 training examples do not fill one batch of 4; lower"):
        batcher([encoded(3, 1)] * 3, 4)


@pytest.mark.parametrize("count, batch_size", [(12, 4), (15, 4), (7, 7), (9, 1)])
def test_an_epoch_visits_each_example_at_most_once(count, batch_size):
    one = batcher([encoded(3, 1)] * count, batch_size)
    epochs = []
    for epoch in range(4):
        steps = range(epoch * one.steps_per_epoch, (epoch + 1) * one.steps_per_epoch)
        seen = np.concatenate([one.indices(step) for step in steps]).tolist()
        assert len(seen) == len(set(seen)) == count // batch_size * batch_size
        assert set(seen) <= set(range(count))
        epochs.append(tuple(seen))
    assert len(set(epochs)) == 4, "every epoch has an order of its own"


def test_order_is_the_same_in_every_version():
    """A run that is restarted under a newer NumPy must see the same batches."""
    one = batcher([encoded(3, 1)] * 10, 5, seed=42)
    orders = [np.concatenate([one.indices(2 * e), one.indices(2 * e + 1)]).tolist() for e in (0, 1)]
    assert orders == [[4, 9, 5, 3, 0, 2, 7, 1, 6, 8], [9, 6, 0, 7, 2, 5, 1, 4, 8, 3]]


lengths_and_prompts = st.lists(
    st.integers(2, 40).flatmap(lambda n: st.tuples(st.just(n), st.integers(1, n - 1))),
    min_size=3,
    max_size=20,
)


@settings(max_examples=60, deadline=None)
@given(lengths_and_prompts, st.integers(1, 3), st.integers(0, 30), st.integers(1, 300))
def test_a_step_holds_the_same_examples_on_any_layout(shapes, batch_size, step, microbatch_tokens):
    examples = [encoded(n, p, first=100 * i) for i, (n, p) in enumerate(shapes, start=1)]
    chosen = batcher(examples, batch_size).indices(step)
    want = expected([examples[i] for i in chosen])
    for row_groups in (1, 2, 8):
        for micro in (1, 64, microbatch_tokens):
            one = batcher(examples, batch_size, row_groups=row_groups, microbatch_tokens=micro)
            got = one.batch(step)
            assert contents(got) == want
            A, R, T = got.arrays["tokens"].shape
            assert R % row_groups == 0
            assert T % 8 == 0
            rows_of_a_device = R // row_groups
            assert rows_of_a_device == 1 or rows_of_a_device * T <= micro
            # The step runs only `num_micro` micro-batches: nothing may lie beyond.
            assert 0 < got.num_micro <= A
            assert not got.arrays["segments"][got.num_micro :].any()
            assert got.num_computed == got.num_micro * R * T
            assert got.num_tokens == np.count_nonzero(got.arrays["segments"])
            assert got.num_targets == np.count_nonzero(got.arrays["weights"])
            assert got.arrays["weights"].sum() == pytest.approx(1)
            seen_pairs = sum(len(ids) * (len(ids) + 1) // 2 for ids, _, _ in want)
            assert got.num_pairs == seen_pairs


def test_a_step_far_beyond_the_sample_gets_larger_arrays():
    short = [encoded(2, 1, first=10 * i) for i in range(8 * 130)]
    rows_of_8 = {"max_length": 8, "max_row_length": 8, "microbatch_tokens": 8}
    unsampled = batcher(short, 8, **rows_of_8).indices(1)  # of 130 steps every second is looked at
    examples = [encoded(8, 1, 10 * i) if i in unsampled else e for i, e in enumerate(short)]
    one = batcher(examples, 8, **rows_of_8)
    assert one.batch(0).arrays["tokens"].shape == (3, 1, 8), "2 rows and one to spare"
    beyond = one.batch(1)
    assert (beyond.num_micro, len(beyond.arrays["tokens"])) == (8, 8)
    assert contents(beyond) == expected([examples[i] for i in unsampled])


def test_batches_depend_on_nothing_that_was_asked_before():
    examples = [encoded(2 + i % 9, 1, first=50 * i) for i in range(30)]
    first, second = batcher(examples, 4), batcher(examples, 4)
    forwards = [first.batch(step) for step in range(14)]
    backwards = [second.batch(step) for step in reversed(range(14))][::-1]
    for a, b in zip(forwards, backwards, strict=True):
        assert a.num_micro == b.num_micro
        for name in a.arrays:
            np.testing.assert_array_equal(a.arrays[name], b.arrays[name])


def test_another_seed_gives_other_batches():
    examples = [encoded(2 + i % 9, 1, first=50 * i) for i in range(30)]
    one, other = batcher(examples, 4, seed=1), batcher(examples, 4, seed=2)
    assert contents(one.batch(0)) != contents(other.batch(0))


def realistic(count: int, mean: float) -> list[EncodedExample]:
    """Log-normal lengths between 60 and 1,024, the shape that instruction data has."""
    draws = np.random.default_rng(0).lognormal(np.log(mean) - 0.125, 0.5, count)
    return [encoded(int(n), min(int(n) - 1, 60)) for n in np.clip(draws, 60, 1024)]


def steps_of(config, row_groups, mean, count=16):
    one = batcher(
        realistic(5000, mean),
        config.train.batch_size,
        max_length=config.data.max_length,
        max_row_length=config.data.max_row_length,
        row_multiple=config.data.row_multiple,
        row_groups=row_groups,
        microbatch_tokens=config.train.microbatch_tokens,
        attention_cost=1e-4,
    )
    return [one.batch(step) for step in range(count)]


@pytest.mark.parametrize("mean", [130, 180, 300])
@pytest.mark.parametrize("row_groups, least", [(1, 0.965), (8, 0.94), (16, 0.92)])
def test_most_of_what_is_computed_is_real_tokens(row_groups, least, mean):
    steps = steps_of(alpacare.get_config(), row_groups, mean, count=39)
    share = sum(s.num_tokens for s in steps) / sum(s.num_computed for s in steps)
    assert share >= least
    shapes = {step.arrays["tokens"].shape for step in steps}
    assert len(shapes) <= packing.MAX_SHAPES
    assert all(T % 128 == 0 and T <= 2048 for _, _, T in shapes)


PREAMBLE = prompts.TEMPLATES["alpaca"].prompt("", "")
REAL = ("alpaca_5000.json", "medical_meadow_small.json.gz", "chatdoctor5k.json.gz")


@needs_data
@pytest.mark.slow
@pytest.mark.parametrize("name", REAL)
def test_the_real_token_share_of_real_data(name):
    lengths = [  # four bytes a token is near enough
        len(PREAMBLE + example.instruction + example.input + example.output) // 4
        for example in records.read_examples(DATA / "training" / name)
    ]
    examples = [encoded(min(n, 1024), min(n, 1024) - 1) for n in lengths]
    config = alpacare.get_config()
    for row_groups, least in ((1, 0.97), (8, 0.92), (16, 0.92)):
        one = batcher(
            examples,
            128,
            max_length=1024,
            max_row_length=config.data.max_row_length,
            row_multiple=config.data.row_multiple,
            row_groups=row_groups,
            microbatch_tokens=config.train.microbatch_tokens,
        )
        steps = [one.batch(step) for step in range(one.steps_per_epoch)]
        share = sum(s.num_tokens for s in steps) / sum(s.num_computed for s in steps)
        assert share >= least, (row_groups, share)
        assert len({step.arrays["tokens"].shape for step in steps}) <= 6


def test_how_large_a_batch_fills_many_devices():
    one = batcher([encoded(100, 1)] * 20, 4, max_length=128, row_multiple=128, row_groups=64)
    assert one.full_batch_size == math.ceil(10 * 128 * 64 / 100)
