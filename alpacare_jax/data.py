"""From instruction records to packed batches: `batch(step)` is a pure function.

records -> token ids and loss mask -> shuffled steps -> rows packed exactly -> arrays
"""

import dataclasses
import math
from collections.abc import Callable, Sequence
from functools import cached_property, lru_cache

import numpy as np

from alpacare_jax import packing
from alpacare_jax.prompts import Template
from alpacare_jax.records import Example
from alpacare_jax.token_store import TokenStore
from alpacare_jax.tokenizer import Tokenizer

FITTED_STEPS, FITTED_EPOCHS = 64, 3
"""Steps that shapes are chosen by, spread over the first epoch or, if it has fewer, over more."""

SPARE_MICRO = 1.25
"""Arrays hold so many times the micro-batches that any of those steps needs. Tokens of 128 real
examples deviate by 3 to 6 % from step to step, so no step of a run comes near."""


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """What is trained on."""

    path: str  # Examples: .jsonl or .json, .gz or not
    eval_path: str  # held-out Examples; "" takes eval_share of path instead
    eval_share: float  # share of path held out, 0 for none
    template: str  # key of prompts.TEMPLATES
    max_length: int  # longest example in tokens, BOS and EOS included
    overlong: str  # what to do with longer ones: truncate, drop or error
    row_multiple: int  # packed rows have a multiple of this many tokens
    max_row_length: int  # and are at most this long, or as long as max_length

    def __post_init__(self):
        if self.overlong not in ("truncate", "drop", "error"):
            raise ValueError(f"data.overlong is {self.overlong!r}; choose truncate, drop or error")
        if not 0 <= self.eval_share < 1:
            raise ValueError(f"data.eval_share is {self.eval_share}; it must be in [0, 1)")
        if self.eval_share and self.eval_path:
            raise ValueError("set data.eval_path or data.eval_share, not both")
        if self.row_multiple < 1 or self.max_length < 2:
            raise ValueError("data.row_multiple must be at least 1, data.max_length at least 2")


@dataclasses.dataclass(frozen=True)
class Encoded:
    """Token ids of prompt, response and EOS; loss falls on ids[prompt_length:]."""

    ids: np.ndarray  # int32
    prompt_length: int

    @property
    def num_targets(self) -> int:
        return len(self.ids) - self.prompt_length


def encode_prompt(example: Example, tokenizer: Tokenizer, template: Template) -> list[int]:
    """BOS, where the tokenizer has the habit, and the prompt."""
    bos = [tokenizer.bos_id] if tokenizer.adds_bos else []
    return bos + tokenizer.encode(template.prompt(example.instruction, example.input))


def encode_example(example: Example, tokenizer: Tokenizer, template: Template) -> Encoded:
    """Prompt and response are tokenised apart, so no token straddles the boundary.

    ids           = [BOS, 10, 11, 12, 20, 21, EOS]
    prompt_length = 4
    """
    prompt = encode_prompt(example, tokenizer, template)
    response = tokenizer.encode(example.output, continuation=True)
    ids = np.array([*prompt, *response, tokenizer.eos_id], np.int32)
    return Encoded(ids, len(prompt))


def encode_all(
    examples: Sequence[Example],
    tokenizer: Tokenizer,
    template: Template,
    config: DataConfig,
    report: Callable[[str], None],
) -> list[Encoded]:
    """Encodes every example that can be trained on; `report` is told of each kind left out.

    Truncation cuts the end, EOS included, as the original does: a cut answer must not teach the
    model to stop there.

    Raises:
      ValueError: an example is over-long under `overlong="error"`, or none is left.
    """
    kept, empty, overlong, promptonly = [], 0, 0, 0
    for example in examples:
        if not example.output.strip():
            empty += 1
            continue
        encoded = encode_example(example, tokenizer, template)
        if len(encoded.ids) > config.max_length:
            if config.overlong == "error":
                raise ValueError(
                    f"example {example.id} is {len(encoded.ids):,} tokens, over data.max_length "
                    f"{config.max_length:,}; raise it or set data.overlong to truncate or drop"
                )
            overlong += 1
            encoded = Encoded(encoded.ids[: config.max_length], encoded.prompt_length)
            if config.overlong == "drop":
                continue
            if encoded.num_targets <= 0:
                promptonly += 1
                continue
        kept.append(encoded)
    done = {"truncate": "truncated", "drop": "dropped"}.get(config.overlong, "")
    for number, what in (
        (empty, "with an empty output dropped"),
        (overlong, f"over {config.max_length:,} tokens {done}"),
        (promptonly, "of those dropped: the prompt alone fills the length"),
    ):
        if number:
            report(f"{number:,} of {len(examples):,} examples {what}")
    if not kept:
        raise ValueError("no example is left to train on; see data.max_length and data.overlong")
    return kept


def split(
    examples: Sequence[Example], share: float, seed: int
) -> tuple[list[Example], list[Example]]:
    """(training, held-out) examples: a random `share`, rounded up, is held out."""
    held = math.ceil(share * len(examples))
    order = _shuffled(len(examples), seed, epoch=-1)
    chosen = set(order[:held].tolist())
    return (
        [example for i, example in enumerate(examples) if i not in chosen],
        [example for i, example in enumerate(examples) if i in chosen],
    )


@lru_cache(maxsize=4)  # 5 ms for 52,002 items, and every step of an epoch asks
def _shuffled(n: int, seed: int, epoch: int) -> np.ndarray:
    """A random order of n items that depends on (n, seed, epoch) alone; epoch -1 is the split's."""
    draws = np.random.Generator(np.random.Philox(key=[seed, epoch + 1])).random(n)
    order = np.argsort(draws, kind="stable")
    order.flags.writeable = False
    return order


@dataclasses.dataclass(frozen=True)
class Step:
    """The arrays of one optimiser step, [A, R, T]: A micro-batches of R rows of T tokens.

    One row that packs two examples, prompt lengths 2 and 1, ids [1, 10, 20, 2] and [1, 30, 2]:

        tokens    = [ 1, 10, 20,  2,  1, 30,  2,  0]
        targets   = [10, 20,  2,  0, 30,  2,  0,  0]
        weights   = [ 0,  1,  1,  0,  1,  1,  0,  0] / num_targets
        segments  = [ 1,  1,  1,  1,  2,  2,  2,  0]
        positions = [ 0,  1,  2,  3,  0,  1,  2,  0]

    Weights are divided by the number of targets of the whole step, so gradients of micro-batches
    add up to the gradient of the mean over tokens, wherever the rows lie.
    """

    arrays: dict[str, np.ndarray]
    num_micro: int  # micro-batches that hold anything; the rest of A is padding
    num_tokens: int  # real tokens
    num_computed: int  # tokens the device works on: num_micro * R * T
    num_targets: int
    num_pairs: int  # query-key pairs that attention needs: sum of n (n + 1) / 2


@dataclasses.dataclass(frozen=True)
class Batcher:
    """Cuts encoded examples into optimiser steps.

    Which examples a step holds depends on (examples, seed, batch_size, step) alone: the same on
    any mesh, on any number of hosts and after any restart. How they are laid out in rows depends
    on the device count too, which changes no result beyond rounding.
    """

    examples: Sequence[Encoded]
    batch_size: int  # examples a step, over all devices
    seed: int
    max_length: int  # no example is longer, in tokens
    max_row_length: int  # rows are at most this long, or as long as the longest example
    row_multiple: int
    row_groups: int  # rows come in multiples of this: the devices that share the batch
    microbatch_tokens: int  # most tokens of one micro-batch on one device
    attention_cost: float = 0.0  # cost of a token attending to one more, relative to a token

    def __post_init__(self):
        if len(self.examples) < self.batch_size:
            raise ValueError(
                f"{len(self.examples):,} training examples do not fill one batch of "
                f"{self.batch_size:,}; lower train.batch_size or add examples"
            )

    @property
    def steps_per_epoch(self) -> int:
        """Whole batches only, as in the original: 52,002 examples give 406 of 128."""
        return len(self.examples) // self.batch_size

    def indices(self, step: int) -> np.ndarray:
        """Which examples step `step` (from 0) holds; every epoch has an order of its own."""
        epoch, within = divmod(step, self.steps_per_epoch)
        order = _shuffled(len(self.examples), self.seed, epoch)
        return order[within * self.batch_size : (within + 1) * self.batch_size]

    @cached_property
    def shapes(self) -> dict[packing.Shape, int]:
        """The micro-batches of a run: (row length T, rows on one device) -> A, the most in arrays.

        Chosen by a sample of its steps and then fixed, so that each compiles once. A row may be
        longer than any example.
        """
        every = max(1, self.steps_per_epoch // FITTED_STEPS)
        count = min(FITTED_STEPS, FITTED_EPOCHS * self.steps_per_epoch)
        steps = [self._store.lengths[self.indices(every * i)].tolist() for i in range(count)]
        longest = -(-self.max_length // self.row_multiple) * self.row_multiple
        limit = max(longest, self.max_row_length // self.row_multiple * self.row_multiple)
        possible = packing.possible_shapes(self.row_multiple, limit, self.microbatch_tokens)
        num_rows = {
            T: np.array([len(packing.pack(s, T)) if max(s) <= T else np.inf for s in steps])
            for T in {T for T, _ in possible}
        }
        costs = np.array([self._cost((T, r), num_rows[T]) for T, r in possible])
        # Epochs to come may hold every example that there may be.
        safe = np.array([longest <= T for T, _ in possible])
        chosen = sorted(possible[i] for i in packing.choose(costs, safe))
        return {(T, r): self._room((T, r), num_rows[T]) for T, r in chosen}

    def _room(self, shape: packing.Shape, num_rows: np.ndarray) -> int:
        """Micro-batches that arrays of this shape hold: more than any step of the sample needs."""
        most = math.ceil(num_rows[np.isfinite(num_rows)].max() / (shape[1] * self.row_groups))
        return min(self._most_micro(shape), math.ceil(SPARE_MICRO * most))

    def _most_micro(self, shape: packing.Shape) -> int:
        """Micro-batches of one example a row."""
        return -(-self.batch_size // (shape[1] * self.row_groups))

    @cached_property
    def full_batch_size(self) -> int:
        """Examples a step that would fill every device: ten row multiples of tokens on each.

        Rows end at a multiple, so half of one is wasted on average: then 5 %.
        """
        tokens = np.mean(self._store.lengths)
        return math.ceil(10 * self.row_multiple * self.row_groups / tokens)

    @cached_property
    def _store(self) -> TokenStore:
        return TokenStore(
            [example.ids for example in self.examples],
            [example.num_targets for example in self.examples],
        )

    def _cost(self, shape: packing.Shape, num_rows: np.ndarray | int) -> np.ndarray:
        return packing.cost(shape, num_rows, self.row_groups, self.attention_cost)

    def batch(self, step: int) -> Step:
        """The arrays of optimiser step `step`, counted from 0."""
        chosen = self.indices(step)
        lengths = self._store.lengths[chosen]
        shape, rows = packing.lay_out(lengths.tolist(), self.shapes, self._cost)
        T, R = shape[0], shape[1] * self.row_groups
        num_micro = -(-len(rows) // R)
        A = self.shapes[shape]
        if num_micro > A:  # far from the sample: one more compilation
            A = self._most_micro(shape)
        return Step(
            arrays=self._store.arrays(chosen, rows, (A, R, T)),
            num_micro=num_micro,
            num_tokens=int(lengths.sum()),
            num_computed=num_micro * R * T,
            num_targets=int(self._store.num_targets[chosen].sum()),
            num_pairs=int((lengths * (lengths + 1) // 2).sum()),
        )
