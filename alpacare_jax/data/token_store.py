"""The tokens of all examples, and the arrays of optimizer steps that are assembled from them."""

import dataclasses
from collections.abc import Sequence

import numpy as np

STEP_COLUMNS = {
    "tokens": np.int32,
    "targets": np.int32,
    "weights": np.float32,
    "segments": np.int32,
    "positions": np.int32,
}
"""The arrays of a `Step`, with their dtypes."""

PAIR_COLUMNS = {"references": np.float32, "pair_weights": np.float32}
"""Further arrays of a `Step` of pairs of answers."""


@dataclasses.dataclass(frozen=True)
class Step:
    """The arrays of one optimizer step, [A, R, T]: A micro-batches of R rows of T tokens.

    One row that packs two examples, prompt lengths 2 and 1, ids [1, 10, 20, 2] and [1, 30, 2]:

        tokens    = [ 1, 10, 20,  2,  1, 30,  2,  0]
        targets   = [10, 20,  2,  0, 30,  2,  0,  0]
        weights   = [ 0,  1,  1,  0,  1,  1,  0,  0] / num_targets
        segments  = [ 1,  1,  1,  1,  2,  2,  2,  0]
        positions = [ 0,  1,  2,  3,  0,  1,  2,  0]

    Weights are normalised by the number of targets of the whole step, so gradients of micro-batches
    sum to the gradient of the mean over tokens, on any device layout.

    The same examples as the two answers of a pair, whose reference log-probabilities are -3 and -5:
    weights are divided by the targets of the preferred answers, and the last tokens hold

        references   = [ 0,  0,  0, -3,  0,  0, -5,  0]
        pair_weights = [ 0,  0,  0,  0,  0,  0,  1,  0] / num_records
    """

    arrays: dict[str, np.ndarray]
    num_micro: int  # micro-batches that are not empty; the rest of A is padding
    num_tokens: int  # real tokens
    num_computed: int  # tokens computed, padding included: num_micro * R * T
    num_targets: int
    num_pairs: int  # query-key pairs of causal attention: sum of n (n + 1) / 2
    records: np.ndarray  # numbers of its records, as the rows hold them one after the other


def examples_of(records: np.ndarray, answers: int) -> np.ndarray:
    """The numbers of the examples of records; those of one record are consecutive."""
    return np.add.outer(answers * records, np.arange(answers)).ravel()


class TokenStore:
    """The tokens of all examples in one array, which the arrays of a step are assembled from.

    A step takes a few NumPy calls, however many examples it has.

    Args:
      ids: token ids of each example.
      loss: whether each of these tokens is a target; the first of an example never is.
      answers: consecutive examples that make a record: 2 for pairs, the preferred answer first.
      references: [examples] log-probabilities by the reference, of pairs; zeros by default.
    """

    def __init__(
        self,
        ids: Sequence[np.ndarray],
        loss: Sequence[np.ndarray],
        answers: int = 1,
        references: np.ndarray | None = None,
    ):
        self._answers = answers
        self._references = np.zeros(len(ids), np.float32) if references is None else references
        self.lengths = np.array([len(tokens) for tokens in ids])
        self.num_targets = np.array([mask.sum() for mask in loss])
        self._starts = np.cumsum(self.lengths) - self.lengths
        self._ids = np.concatenate([*ids, [0]], dtype=np.int32)  # the last is the padding token
        self._loss = np.concatenate([*loss, [False]], dtype=bool)

    def arrays(
        self, chosen: np.ndarray, rows: Sequence[Sequence[int]], shape: tuple[int, int, int]
    ) -> dict[str, np.ndarray]:
        """The arrays of `Step`.

        A row is a sequence of pieces: its examples, then its padding, which may be empty. Every
        column is computed by piece and repeated by token. The row of `Step` has examples of 4 and 3
        tokens, stored one after the other, with 2 targets each:

            piece     = example 0, example 1, padding
            lengths   = [ 4,  3,  1]        segments  = [ 1,  2,  0]
            ends      = [ 4,  7,  8]        starts    = [ 0,  4,  8]

            index     = [ 0,  1,  2,  3,  4,  5,  6,  7]  in the row
            source    = [ 0,  1,  2,  3,  4,  5,  6,  8]  in the store: index + start - row offset
            loss      = [ 0,  0,  1,  1,  0,  1,  1,  0]  of the token
            weights   = [ 0,  1,  1,  0,  1,  1,  0,  0] / 4: one token early

        Args:
          chosen: [records of the step], their numbers.
          rows: the indices into `chosen` that each row holds, in order. Further rows are padding.
          shape: [A, R, T].
        """
        T = shape[2]
        chosen = examples_of(chosen, self._answers)
        rows = [[self._answers * i + k for i in row for k in range(self._answers)] for row in rows]
        padding = np.cumsum([len(row) + 1 for row in rows]) - 1  # the last piece of each row
        first = np.append(0, padding[:-1] + 1)  # the first piece of each row
        numbers = chosen[np.array([i for row in rows for i in (*row, 0)])]
        lengths = self.lengths[numbers]
        lengths[padding] = 0
        lengths[padding] = T - np.add.reduceat(lengths, first)
        ends = np.cumsum(lengths)
        starts = self._starts[numbers]
        starts[padding] = len(self._ids)  # out of range: `clip` takes the padding token
        segments = np.arange(1, len(numbers) + 1) - np.repeat(first, padding - first + 1)
        segments[padding] = 0

        columns = STEP_COLUMNS if self._answers == 1 else STEP_COLUMNS | PAIR_COLUMNS
        arrays = {name: np.zeros(shape, dtype) for name, dtype in columns.items()}
        used = len(rows) * T
        flat = {name: array.reshape(-1)[:used] for name, array in arrays.items()}
        index = np.arange(used)
        source = np.repeat(starts + lengths - ends, lengths)
        source += index
        np.take(self._ids, source, mode="clip", out=flat["tokens"])
        flat["targets"][:-1] = flat["tokens"][1:]
        flat["targets"][ends - 1] = 0
        # An example's targets stand one token early; its first token is none, so that nothing
        # stands at the end of the one before.
        flat["weights"][:-1] = np.take(self._loss, source[1:], mode="clip")
        flat["weights"] *= np.float32(1 / self.num_targets[chosen[:: self._answers]].sum())
        flat["segments"][:] = np.repeat(segments, lengths)
        index -= np.repeat(ends - lengths, lengths)
        np.multiply(index, flat["segments"] > 0, out=flat["positions"], casting="same_kind")
        if self._answers == 2:
            ends = np.delete(ends, padding)
            flat["references"][ends - 1] = self._references[np.delete(numbers, padding)]
            flat["pair_weights"][ends[1::2] - 1] = self._answers / len(chosen)
        return arrays
