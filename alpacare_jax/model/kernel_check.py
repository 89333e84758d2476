"""Compares an attention kernel with its definition, on a run's own first batch, before step 1.

A fused kernel that is fed wrongly does not fail: it trains a model on garbage. So the kernel is run
as the step runs it, over all rows and heads, with the queries, keys and values of the first layer,
forward and backward; and for a few rows and key heads its results are compared with attention as
`attention.attend` defines it, in float32.
"""

import jax
import jax.numpy as jnp
import numpy as np

from alpacare_jax.model import attention

RESULTS = ("output", "gradient of the queries", "gradient of the keys", "gradient of the values")

NEXT_KERNEL = {"cudnn": "cudnn_mask", "cudnn_mask": "xla", "splash": "xla"}
"""What to train with where a kernel is wrong."""

MAX_ROUNDING = 4.0
"""Errors may be this multiple of those that the definition has in the compute dtype. On an H200
cuDNN has 0.8 to 1.2 times as much; the faults of the tests have 40 times as much or more."""

MIN_ERROR = 1e-3
"""Relative errors below are not judged: in float32 the definition has none against itself."""


def rows_to_check(segments: np.ndarray) -> np.ndarray:
    """The first and the last of the rows [R, T] that have the most examples."""
    counts = segments.max(axis=1)
    (most,) = np.nonzero(counts == counts.max())
    return most[[0, -1]]


def relative_errors(
    kernel: attention.Kernel,
    qkv: tuple[jax.Array, jax.Array, jax.Array],
    segments_RT: jax.Array,
    positions_RT: jax.Array,
    rows: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    """Errors [4] of RESULTS: of the kernel, and of the definition in the dtype of the inputs.

    An error is ||x - y|| / ||y|| over the tokens of a row and a key head; of several, the largest.

    Args:
      qkv: q [R, T, N, H], k and v [R, T, K, H].
      rows: those to compare; of the key heads, the first and the last are.
    """
    N, K = qkv[0].shape[2], qkv[1].shape[2]
    key_heads = np.unique([0, K - 1])
    heads = (key_heads[:, None] * (N // K) + np.arange(N // K)).ravel()
    direction = jax.random.normal(jax.random.key(0), qkv[0].shape, qkv[0].dtype)
    inputs = *qkv, jnp.where((segments_RT > 0)[..., None, None], direction, 0)
    places = segments_RT, positions_RT

    def results(kernel, inputs, places):
        q, k, v, direction = inputs
        out, pullback = jax.vjp(kernel(*places), q, k, v)
        return out, *pullback(direction)

    def chosen(q, k, v, direction):
        """The chosen heads of the chosen rows; of results likewise: o, dq, dk, dv."""
        picks = zip((q, k, v, direction), (heads, key_heads, key_heads, heads), strict=True)
        return [x[rows][:, :, each] for x, each in picks]

    part, part_places = chosen(*inputs), [x[rows] for x in places]
    out, *gradients = results(kernel, inputs, places)
    *of_qkv, out = chosen(gradients[0], gradients[1], gradients[2], out)
    rounded = results(attention.xla, part, part_places)
    with jax.default_matmul_precision("highest"):
        exact = results(attention.xla, [x.astype(jnp.float32) for x in part], part_places)
    real = (part_places[0] > 0)[..., None, None]

    def norms(x):
        """[rows, key heads]"""
        x = jnp.where(real, x.reshape(*x.shape[:2], len(key_heads), -1), 0)
        return jnp.sqrt(jnp.sum(x * x, axis=(1, 3)))

    def errors(found):
        pairs = zip(found, exact, strict=True)
        return jnp.stack([jnp.max(norms(x - y) / jnp.maximum(norms(y), 1e-30)) for x, y in pairs])

    return errors((out, *of_qkv)), errors(rounded)


def judge(name: str, errors: np.ndarray, rounding: np.ndarray) -> str:
    """The line of the log for the errors of the kernel `name`; see `relative_errors`.

    Raises:
      FloatingPointError: an error is more than rounding explains.
    """
    for result, error, rounded in zip(RESULTS, errors.tolist(), rounding.tolist(), strict=True):
        if not error <= max(MAX_ROUNDING * rounded, MIN_ERROR):  # NaN is not
            raise FloatingPointError(
                f"the attention kernel {name} is wrong on this machine: its {result} differs by "
                f"{error:.2%} from the float32 definition ({rounded:.2%} is rounding); nothing was "
                f"trained; choose --config.model.attention={NEXT_KERNEL[name]}, and report this"
            )
    return (
        f"attention kernel {name} checked on the first batch: within {errors.max():.2%} of the "
        f"float32 definition ({rounding.max():.2%} is rounding)"
    )
