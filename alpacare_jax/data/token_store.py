"""The tokens of all examples in one array, from which the arrays of a step are taken.

That needs a few calls of NumPy a step, however many examples it has.
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
"""The arrays of `data.Step`."""


class TokenStore:
    """Examples by number.

    Args:
      ids: token ids of each example.
      num_targets: how many of its last tokens carry loss; never the first.
    """

    def __init__(self, ids: Sequence[np.ndarray], num_targets: Sequence[int]):
        self.lengths = np.array([len(tokens) for tokens in ids])
        self.num_targets = np.array(num_targets)
        self._starts = np.cumsum(self.lengths) - self.lengths
        self._ids = np.concatenate([*ids, [0]], dtype=np.int32)  # the last one is for padding

    def arrays(
        self,
        chosen: np.ndarray,
        rows: Sequence[Sequence[int]],
        shape: tuple[int, int, int],
    ) -> dict[str, np.ndarray]:
        """The arrays of `data.Step`.

        Args:
          chosen: [examples of the step], their numbers.
          rows: which of `chosen` each row holds, in this order; further rows are padding.
          shape: [A, R, T].
        """
        T = shape[2]
        # Pieces lie one after the other: a row's examples, and its padding, which may be empty.
        padding = np.cumsum([len(row) + 1 for row in rows]) - 1
        first = np.append(0, padding[:-1] + 1)
        numbers = chosen[np.array([i for row in rows for i in (*row, 0)])]
        lengths, targets = self.lengths[numbers], self.num_targets[numbers]
        lengths[padding] = targets[padding] = 0
        lengths[padding] = T - np.add.reduceat(lengths, first)
        ends = np.cumsum(lengths)
        starts = self._starts[numbers]
        starts[padding] = len(self._ids)  # nothing lies there: `clip` takes the last token
        segments = np.arange(1, len(numbers) + 1) - np.repeat(first, padding - first + 1)
        segments[padding] = 0
        # No loss, loss, and none on an example's last token, which nothing follows.
        after = np.minimum(targets, 1)
        spans = np.stack([lengths - targets - after, targets, after], axis=1).ravel()
        values = np.tile(np.array([0, 1 / targets.sum(), 0], np.float32), len(numbers))

        arrays = {name: np.zeros(shape, dtype) for name, dtype in COLUMNS.items()}
        used = len(rows) * T
        of = {name: array.reshape(-1)[:used] for name, array in arrays.items()}
        place = np.arange(used)
        source = np.repeat(starts + lengths - ends, lengths)
        source += place
        np.take(self._ids, source, mode="clip", out=of["tokens"])
        of["targets"][:-1] = of["tokens"][1:]
        of["targets"][ends - 1] = 0
        of["weights"][:] = np.repeat(values, spans)
        of["segments"][:] = np.repeat(segments, lengths)
        place -= np.repeat(ends - lengths, lengths)
        np.multiply(place, of["segments"] > 0, out=of["positions"], casting="same_kind")
        return arrays
