"""From encoded examples to packed batches: `batch(step)` is a pure function.

encoded examples -> shuffled steps -> packed rows -> arrays
"""

import dataclasses
import math
from collections.abc import Sequence
from functools import cached_property, lru_cache
from typing import TypeVar

import numpy as np

from alpacare_jax.data import packing
from alpacare_jax.data.encoding import NOUNS, EncodedExample
from alpacare_jax.data.token_store import Step, TokenStore, examples_of
from common.records import Example

SAMPLED_STEPS, SAMPLED_EPOCHS = 64, 3
"""Shapes are chosen by a sample of steps, evenly spaced over the first epoch, or over several if it
has fewer."""

MICRO_HEADROOM = 1.25
"""Arrays have room for this multiple of the micro-batches that any step of the sample needs. The
tokens of 128 real examples vary by 3 to 6 % from step to step, so no step should need it all."""

Record = TypeVar("Record", bound=tuple[Example, ...])


def split_records(
    records: Sequence[Record], share: float, seed: int
) -> tuple[list[Record], list[Record]]:
    """(training, held-out) records: a random `share`, rounded up, is held out.

    A record is an example, or the two of a pair. Pairs are split by their prompts: other answers to
    a held-out prompt are held out, too.
    """
    groups = [(r[0].instruction, r[0].input) if len(r) == 2 else i for i, r in enumerate(records)]
    distinct = list(dict.fromkeys(groups))
    order = _shuffled(len(distinct), seed, epoch=-1)
    held_out = {distinct[i] for i in order[: math.ceil(share * len(distinct))]}
    split = [], []
    for group, record in zip(groups, records, strict=True):
        split[group in held_out].append(record)
    return split


@lru_cache(maxsize=4)  # takes 5 ms for 52,002 items; every step of an epoch needs it
def _shuffled(n: int, seed: int, epoch: int) -> np.ndarray:
    """A random order of n items, a function of (n, seed, epoch) alone; epoch -1 is the split."""
    draws = np.random.Generator(np.random.Philox(key=[seed, epoch + 1])).random(n)
    order = np.argsort(draws, kind="stable")
    order.flags.writeable = False
    return order


@dataclasses.dataclass(frozen=True)
class Batcher:
    """Divides encoded examples into optimizer steps.

    The examples of a step are a function of (examples, seed, batch_size, step) alone: the same on
    any mesh, on any number of hosts and after any restart. Their layout in rows also depends on the
    device count, which changes no result beyond rounding.

    A record is an example, or the `answers` consecutive ones of a pair, which share a row.
    """

    examples: Sequence[EncodedExample]
    batch_size: int  # records per step, over all devices
    seed: int
    max_length: int  # of an example, in tokens
    max_row_length: int  # or the length of the longest record, if that is more
    row_multiple: int
    row_groups: int  # devices that the rows of a batch are sharded over
    microbatch_tokens: int  # maximum tokens of a micro-batch per device
    attention_cost: float = 0.0  # see packing.cost
    bounds: bool = False  # whether steps list the bounds of examples, for `attention.cudnn`
    answers: int = 1  # examples of a record
    references: np.ndarray | None = None  # see TokenStore

    def __post_init__(self):
        if self.num_records < self.batch_size:
            raise ValueError(
                f"{self.num_records:,} training {self.noun} do not fill one batch of "
                f"{self.batch_size:,}; lower train.batch_size or add {self.noun}"
            )

    @property
    def num_records(self) -> int:
        """Examples, or pairs of them."""
        return len(self.examples) // self.answers

    @property
    def noun(self) -> str:
        """What a message calls the records."""
        return NOUNS[self.answers]

    @property
    def steps_per_epoch(self) -> int:
        """Whole batches only, as in the original: 52,002 examples give 406 of 128."""
        return self.num_records // self.batch_size

    def indices(self, step: int) -> np.ndarray:
        """The records of step `step`, counted from 0; each epoch is shuffled anew."""
        epoch, within = divmod(step, self.steps_per_epoch)
        order = _shuffled(self.num_records, self.seed, epoch)
        return order[within * self.batch_size : (within + 1) * self.batch_size]

    @cached_property
    def shapes(self) -> dict[packing.MicroShape, int]:
        """The micro-batch shapes of a run -> A, the number of micro-batches that arrays hold.

        Chosen by a sample of steps and then fixed, so that each compiles once. A row may be longer
        than any example.
        """
        stride = max(1, self.steps_per_epoch // SAMPLED_STEPS)
        count = min(SAMPLED_STEPS, SAMPLED_EPOCHS * self.steps_per_epoch)
        steps = [self._lengths[self.indices(stride * i)].tolist() for i in range(count)]
        longest = -(-self.max_length * self.answers // self.row_multiple) * self.row_multiple
        limit = max(longest, self.max_row_length // self.row_multiple * self.row_multiple)
        max_rows = -(-self.batch_size // self.row_groups)  # more would hold no example
        possible = packing.possible_shapes(
            self.row_multiple, limit, self.microbatch_tokens, max_rows
        )
        num_rows = {
            T: np.array([len(packing.pack(s, T)) if max(s) <= T else np.inf for s in steps])
            for T in {T for T, _ in possible}
        }
        costs = np.array([self._cost((T, r), num_rows[T]) for T, r in possible])
        # Steps outside the sample may hold the longest possible example.
        safe = np.array([longest <= T for T, _ in possible])
        chosen = sorted(possible[i] for i in packing.choose_shapes(costs, safe))
        shapes = {}
        for T, r in chosen:
            most_rows = num_rows[T][np.isfinite(num_rows[T])].max()
            needed = math.ceil(most_rows / (r * self.row_groups))
            shapes[T, r] = min(self._max_micro((T, r)), math.ceil(MICRO_HEADROOM * needed))
        return shapes

    @property
    def largest(self) -> dict[str, np.ndarray]:
        """Arrays of the shape whose micro-batches have the most tokens; their content is open."""
        T, rows = max(self.shapes, key=lambda shape: (math.prod(shape), shape))
        shape = self.shapes[T, rows], rows * self.row_groups
        return {
            name: np.empty((*shape, *((T,) if of.ndim == 3 else of.shape[2:])), of.dtype)
            for name, of in self.batch(0).arrays.items()
        }

    def _max_micro(self, shape: packing.MicroShape) -> int:
        """Micro-batches of a step with one record per row."""
        return -(-self.batch_size // (shape[1] * self.row_groups))

    @cached_property
    def full_batch_size(self) -> int:
        """The batch size that would fill every device, with ten row multiples of tokens on each.

        Rows are padded to a multiple; half of one is wasted on average, then 5 %.
        """
        tokens = np.mean(self._lengths)
        return math.ceil(10 * self.row_multiple * self.row_groups / tokens)

    @cached_property
    def _store(self) -> TokenStore:
        return TokenStore(
            [example.ids for example in self.examples],
            [example.loss for example in self.examples],
            self.answers,
            self.references,
        )

    @cached_property
    def _lengths(self) -> np.ndarray:
        """Tokens of each record."""
        return self._store.lengths.reshape(-1, self.answers).sum(axis=1)

    def _cost(self, shape: packing.MicroShape, num_rows: np.ndarray) -> np.ndarray:
        return packing.cost(shape, num_rows, self.row_groups, self.attention_cost)

    def _price(self, shape: packing.MicroShape, num_rows: int) -> float:
        return float(self._cost(shape, np.array(num_rows)))

    def batch(self, step: int) -> Step:
        """The arrays of optimizer step `step`, counted from 0."""
        return self.batch_of(self.indices(step))

    def batch_of(self, chosen: np.ndarray) -> Step:
        """The arrays of the records of these numbers, at most `batch_size`."""
        lengths = self._lengths[chosen]
        shape, rows = packing.cheapest_layout(lengths.tolist(), self.shapes, self._price)
        T, R = shape[0], shape[1] * self.row_groups
        num_micro = -(-len(rows) // R)
        A = self.shapes[shape]
        if num_micro > A:  # far from the sample: one more compilation
            A = self._max_micro(shape)
        if self.bounds:
            rows = packing.deal(rows, num_micro * self.row_groups, shape[1])
        examples = examples_of(chosen, self.answers)
        each = self._store.lengths[examples]
        arrays = self._store.arrays(chosen, rows, (A, R, T))
        if self.bounds:
            arrays["bounds"] = packing.example_bounds(arrays["segments"], shape[1])
        return Step(
            arrays=arrays,
            num_micro=num_micro,
            num_tokens=int(lengths.sum()),
            num_computed=num_micro * R * T,
            num_targets=int(self._store.num_targets[examples].sum()),
            num_pairs=int((each * (each + 1) // 2).sum()),
            records=chosen[[i for row in rows for i in row]],
        )
