"""Assembles the arrays of a step from one array that holds the tokens of all examples.

A step takes a few NumPy calls, however many examples it has.
"""

from collections.abc import Sequence

import numpy as np

COLUMNS = {
    "tokens": np.int32,
    "targets": np.int32,
    "weights": np.float32,
    "segments": np.int32,
    "positions": np.int32,
}
"""The arrays of `batches.Step`, with their dtypes."""


class TokenStore:
    """The tokens of all examples.

    Args:
      ids: token ids of each example.
      num_targets: how many of its last tokens are targets; never the first.
    """

    def __init__(self, ids: Sequence[np.ndarray], num_targets: Sequence[int]):
        self.lengths = np.array([len(tokens) for tokens in ids])
        self.num_targets = np.array(num_targets)
        self._starts = np.cumsum(self.lengths) - self.lengths
        self._ids = np.concatenate([*ids, [0]], dtype=np.int32)  # the last is the padding token

    def arrays(
        self,
        chosen: np.ndarray,
        rows: Sequence[Sequence[int]],
        shape: tuple[int, int, int],
    ) -> dict[str, np.ndarray]:
        """The arrays of `batches.Step`.

        A row is a sequence of pieces: its examples, then its padding, which may be empty. Every
        column is computed by piece and repeated by token. The row of `batches.Step` has examples of
        4 and 3 tokens, stored one after the other, with 2 targets each:

            piece     = example 0, example 1, padding
            lengths   = [ 4,  3,  1]        targets   = [ 2,  2,  0]
            ends      = [ 4,  7,  8]        starts    = [ 0,  4,  8]
            segments  = [ 1,  2,  0]        spans     = [1 2 1, 0 2 1, 1 0 0]

            index     = [ 0,  1,  2,  3,  4,  5,  6,  7]  in the row
            source    = [ 0,  1,  2,  3,  4,  5,  6,  8]  in the store: index + start - row offset
            weights   = [ 0,  1,  1,  0,  1,  1,  0,  0] / 4: repeats of 0, 1, 0 by spans

        Args:
          chosen: [examples of the step], their numbers.
          rows: the indices into `chosen` that each row holds, in order. Further rows are padding.
          shape: [A, R, T].
        """
        T = shape[2]
        padding = np.cumsum([len(row) + 1 for row in rows]) - 1  # the last piece of each row
        first = np.append(0, padding[:-1] + 1)  # the first piece of each row
        numbers = chosen[np.array([i for row in rows for i in (*row, 0)])]
        lengths, targets = self.lengths[numbers], self.num_targets[numbers]
        lengths[padding] = targets[padding] = 0
        lengths[padding] = T - np.add.reduceat(lengths, first)
        ends = np.cumsum(lengths)
        starts = self._starts[numbers]
        starts[padding] = len(self._ids)  # out of range: `clip` takes the padding token
        segments = np.arange(1, len(numbers) + 1) - np.repeat(first, padding - first + 1)
        segments[padding] = 0
        # An example's targets stand one token early, and its last token predicts nothing.
        last = np.minimum(targets, 1)
        spans = np.stack([lengths - targets - last, targets, last], axis=1).ravel()
        values = np.tile(np.array([0, 1 / targets.sum(), 0], np.float32), len(numbers))

        arrays = {name: np.zeros(shape, dtype) for name, dtype in COLUMNS.items()}
        used = len(rows) * T
        flat = {name: array.reshape(-1)[:used] for name, array in arrays.items()}
        index = np.arange(used)
        source = np.repeat(starts + lengths - ends, lengths)
        source += index
        np.take(self._ids, source, mode="clip", out=flat["tokens"])
        flat["targets"][:-1] = flat["tokens"][1:]
        flat["targets"][ends - 1] = 0
        flat["weights"][:] = np.repeat(values, spans)
        flat["segments"][:] = np.repeat(segments, lengths)
        index -= np.repeat(ends - lengths, lengths)
        np.multiply(index, flat["segments"] > 0, out=flat["positions"], casting="same_kind")
        return arrays
