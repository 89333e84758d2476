"""Grouped-query attention over packed rows against its definition in float64."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alpacare_jax.data import packing
from alpacare_jax.model import attention, layers

pytestmark = pytest.mark.usefixtures("quickly_compiled")

B, T, H = 2, 9, 4


attend = jax.jit(attention.attend)


def wave(*dims, shift=0.0):
    size = int(np.prod(dims))
    return np.sin(np.linspace(shift, shift + 2.7 * size, size)).reshape(dims)


def heads(N, K, dtype=jnp.float32, S=T):
    return (
        jnp.asarray(2 * wave(B, T, N, H), dtype),
        jnp.asarray(2 * wave(B, S, K, H, shift=1.0), dtype),
        jnp.asarray(wave(B, S, K, H, shift=2.0), dtype),
    )


def by_definition(q, k, v, visible):
    """One query, one head at a time."""
    q, k, v = (np.asarray(x, np.float64) for x in (q, k, v))
    out, G = np.zeros(q.shape), q.shape[2] // k.shape[2]
    for b, t, n in np.ndindex(q.shape[:3]):
        (seen,) = np.nonzero(np.asarray(visible)[b, t])
        scores = k[b, seen, n // G] @ q[b, t, n] / np.sqrt(q.shape[3])
        weights = np.exp(scores - scores.max())
        out[b, t, n] = weights / weights.sum() @ v[b, seen, n // G]
    return out


PACKED = np.array([[1, 1, 1, 2, 2, 2, 2, 3, 3], [1, 1, 2, 2, 2, 0, 0, 0, 0]])
POSITIONS = np.array([[0, 1, 2, 0, 1, 2, 3, 0, 1], [0, 1, 0, 1, 2, 0, 0, 0, 0]])


def test_columns_of_visible():
    segments = np.array([[1, 1, 1, 2, 2, 0]])
    positions = np.array([[0, 1, 2, 0, 1, 0]])
    seen = attention.attention_mask(segments, positions)
    assert seen[0].astype(int).tolist() == [
        [1, 0, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0],
        [1, 1, 1, 0, 0, 0],
        [0, 0, 0, 1, 0, 0],
        [0, 0, 0, 1, 1, 0],
        [0, 0, 0, 0, 0, 1],
    ]


@pytest.mark.parametrize("N, K", [(4, 4), (4, 2), (6, 2), (4, 1)])
def test_every_head_against_the_definition(N, K):
    q, k, v = heads(N, K)
    visible = attention.attention_mask(PACKED, POSITIONS)
    got = attend(q, k, v, visible)
    np.testing.assert_allclose(got, by_definition(q, k, v, visible), rtol=0, atol=2e-6)


def test_a_cache_longer_than_the_queries():
    q, k, v = heads(4, 2, S=T + 5)
    visible = np.arange(T + 5)[None, None] <= np.arange(T)[None, :, None] + 3
    visible = np.broadcast_to(visible, (B, T, T + 5))
    got = attend(q, k, v, visible)
    np.testing.assert_allclose(got, by_definition(q, k, v, visible), rtol=0, atol=2e-6)


def test_gradients_against_the_plain_form():
    q, k, v = heads(4, 2)
    visible = attention.attention_mask(PACKED, POSITIONS)

    def plain(q, k, v):
        k, v = (jnp.repeat(x, 2, axis=2) for x in (k, v))
        scores = jnp.einsum("btnh,bsnh->bnts", q, k) / 2
        weights = jax.nn.softmax(jnp.where(visible[:, None], scores, -jnp.inf), axis=-1)
        return jnp.einsum("bnts,bsnh->btnh", weights, v)

    def gradients(function):
        def total(*args):
            return jnp.sum(jnp.sin(function(*args)))

        return jax.jit(jax.grad(total, argnums=(0, 1, 2)))(q, k, v)

    ours = gradients(lambda *args: attend(*args, visible))
    for got, want in zip(ours, gradients(plain), strict=True):
        np.testing.assert_allclose(got, want, rtol=0, atol=5e-6)


def test_packed_examples_do_not_see_each_other():
    q, k, v = heads(4, 2)
    whole = attend(q, k, v, attention.attention_mask(PACKED, POSITIONS))
    part = slice(3, 7)  # the second example of the first row, alone in a row of its own
    segments, positions = PACKED[:1, part], POSITIONS[:1, part]
    alone = attend(
        *(x[:1, part] for x in (q, k, v)),
        attention.attention_mask(segments, positions),
    )
    np.testing.assert_allclose(whole[:1, part], alone, rtol=0, atol=1e-6)
    swapped = [x.at[0, :3].set(7.0) for x in (q, k, v)]  # another first example changes nothing
    visible = attention.attention_mask(PACKED, POSITIONS)
    np.testing.assert_array_equal(attend(*swapped, visible)[0, 3:], whole[0, 3:])


def test_padding_may_be_on_either_side():
    q, k, v = heads(4, 2)
    right = np.array([[1] * 6 + [0] * 3] * B), np.array([[*range(6), 0, 0, 0]] * B)
    left = tuple(np.roll(x, 3, axis=1) for x in right)
    rolled = [jnp.roll(x, 3, axis=1) for x in (q, k, v)]
    on_right = attend(q, k, v, attention.attention_mask(*right))
    on_left = attend(*rolled, attention.attention_mask(*left))
    np.testing.assert_allclose(on_left[:, 3:], on_right[:, :6], rtol=0, atol=1e-6)


def test_a_query_that_sees_nothing_is_finite():
    q, k, v = heads(4, 2)
    nothing = np.zeros((B, T, T), bool)

    def total(*args):
        return jnp.sum(attend(*args, nothing))

    value, grads = jax.jit(jax.value_and_grad(total, argnums=(0, 1, 2)))(q, k, v)
    assert np.isfinite(value)
    assert all(np.isfinite(grad).all() for grad in grads)


def test_bfloat16_keeps_a_float32_softmax():
    q, k, v = heads(4, 2, jnp.bfloat16)
    visible = attention.attention_mask(PACKED, POSITIONS)
    got = attend(q, k, v, visible)
    assert got.dtype == jnp.bfloat16
    np.testing.assert_allclose(got, by_definition(q, k, v, visible), rtol=0, atol=2**-7)
    # Scores of about 1,000 differ by less than bfloat16 tells apart: only float32 sees the larger.
    q, k = jnp.full((1, 1, 1, 4), 32.0, jnp.bfloat16), jnp.full((1, 2, 1, 4), 16.0, jnp.bfloat16)
    k = k.at[0, 0, 0, 0].set(16.125)  # score 1,026 against 1,024
    v = jnp.asarray([[[[1.0]], [[0.0]]]], jnp.bfloat16) * jnp.ones((1, 2, 1, 4), jnp.bfloat16)
    out = attend(q, k, v, np.ones((1, 1, 2), bool))
    assert float(out[0, 0, 0, 0]) == pytest.approx(1 / (1 + np.exp(-2)), abs=0.005)


# Kernels


LONG = 256


def packed_rows(name="xla", K=2, N=4, width=128):
    """Two rows: examples of 100, 28 and 90 tokens and padding; and one of 256."""
    dtype = jnp.bfloat16 if "cudnn" in name else jnp.float32  # it knows no float32
    segments = np.zeros((2, LONG), np.int32)
    segments[0, :100], segments[0, 100:128], segments[0, 128:218] = 1, 2, 3
    segments[1] = 1
    positions = np.zeros_like(segments)
    for row, start, end in ((0, 0, 100), (0, 100, 128), (0, 128, 218), (1, 0, 256)):
        positions[row, start:end] = np.arange(end - start)

    def make(heads, shift):
        return jnp.asarray(wave(2, LONG, heads, width, shift=shift), dtype)

    return jnp.asarray(segments), jnp.asarray(positions), make(N, 0.0), make(K, 1.0), make(K, 2.0)


def one_device_mesh() -> jax.sharding.Mesh:
    return jax.sharding.Mesh(
        np.array(jax.devices()[:1]).reshape(1, 1, 1), ("data", "fsdp", "tensor")
    )


def kernel(name: str) -> attention.Kernel:
    """For the rows of `packed_rows`."""
    if name == "splash":
        return attention.splash(one_device_mesh(), ("data", "fsdp"), "tensor", interpret=True)
    bounds = packing.example_bounds(np.asarray(packed_rows()[0])[None], 2)[0]
    return attention.make_kernel(name, one_device_mesh(), ("data", "fsdp"), "tensor", bounds)


on_gpu = pytest.mark.skipif(jax.default_backend() != "gpu", reason="needs a GPU")
RUNNABLE = [
    "xla",
    "splash",
    pytest.param("cudnn", marks=on_gpu),
    pytest.param("cudnn_mask", marks=on_gpu),
]


@pytest.mark.parametrize("name", RUNNABLE)
def test_a_kernel_equals_the_definition_and_so_do_its_gradients(name):
    segments, positions, *qkv = packed_rows(name)
    exact = "cudnn" not in name
    real = (segments > 0)[..., None, None]
    rough = np.random.default_rng(0).standard_normal(qkv[0].shape)  # a wave's gradients cancel out

    def total(name, *qkv):
        out = jnp.where(real, kernel(name)(segments, positions)(*qkv), 0)
        return jnp.sum(out * rough), out

    gradients = jax.value_and_grad(total, argnums=(1, 2, 3), has_aux=True)
    (_, out), grads = gradients(name, *qkv)
    want = by_definition(*qkv, attention.attention_mask(segments, positions))
    out, want = np.asarray(out, np.float32), np.where(real, want, 0)
    np.testing.assert_allclose(out, want, atol=2e-5 if exact else 0.02)
    _, wanted = gradients("xla", *(x.astype(jnp.float32) for x in qkv))
    if exact:
        for got, expected in zip(grads, wanted, strict=True):
            np.testing.assert_allclose(got, expected, atol=2e-4)
        return
    # In bfloat16: about as near to the float32 gradients as XLA's.
    _, same_dtype = gradients("xla", *qkv)
    for got, rounded, expected in zip(grads, same_dtype, wanted, strict=True):
        assert distance(got, expected) <= 3 * distance(rounded, expected)


def distance(a, b) -> float:
    """Of two arrays, relative to the second."""
    a, b = (np.asarray(x, np.float32) for x in (a, b))
    return float(np.linalg.norm(a - b) / np.linalg.norm(b))


@pytest.mark.parametrize("name", RUNNABLE)
def test_a_kernel_keeps_the_examples_of_a_row_apart(name):
    segments, positions, q, k, v = packed_rows(name)
    attend = kernel(name)(segments, positions)
    before = np.asarray(attend(q, k, v), np.float32)
    others = (segments[0] == 1)[:, None, None]
    changed_k = k.at[0].set(jnp.where(others, 100.0, k[0]))
    changed_v = v.at[0].set(jnp.where(others, -100.0, v[0]))
    after = np.asarray(attend(q, changed_k, changed_v), np.float32)
    np.testing.assert_array_equal(after[0, 100:218], before[0, 100:218])
    np.testing.assert_array_equal(after[1], before[1])
    assert np.isfinite(after).all(), "padding, too"
    assert np.abs(after[0, :100] - before[0, :100]).max() > 1, "the test can fail"


HOPPER = {"capability": (9, 0), "cudnn": 91900}
AMPERE = HOPPER | {"capability": (8, 0)}
TURING = HOPPER | {"capability": (7, 5)}
OLD_CUDNN = HOPPER | {"cudnn": 90100}


def setting(platform, dtype, head_dim, **gpu):
    return attention.Setting(platform, jnp.dtype(dtype), head_dim, **gpu)


@pytest.mark.parametrize(
    ("asked", "given", "chosen", "reason"),
    [
        ("auto", setting("cpu", "float32", 128), "xla", ""),
        ("auto", setting("tpu", "bfloat16", 128), "splash", ""),
        ("auto", setting("tpu", "bfloat16", 64), "xla", "splash requires a head_dim"),
        ("auto", setting("gpu", "bfloat16", 64, **HOPPER), "cudnn", ""),
        ("auto", setting("gpu", "bfloat16", 64, **HOPPER, elements=2**31), "cudnn_mask", "2^31"),
        ("auto", setting("gpu", "bfloat16", 64, **OLD_CUDNN), "cudnn_mask", "cuDNN 9.6"),
        ("auto", setting("gpu", "bfloat16", 64, **AMPERE), "cudnn_mask", "cudnn requires compute"),
        ("auto", setting("gpu", "bfloat16", 64, **TURING), "xla", "compute capability 8.0"),
        ("auto", setting("gpu", "bfloat16", 100, **HOPPER), "xla", "multiple of 8"),
        ("auto", setting("gpu", "float32", 64, **HOPPER), "xla", "cudnn_mask requires bfloat16"),
        ("xla", setting("tpu", "bfloat16", 128), "xla", ""),
        ("splash", setting("tpu", "float32", 256), "splash", ""),
        ("cudnn", setting("cuda", "bfloat16", 128, **HOPPER), "cudnn", ""),
    ],
    ids=lambda value: value if isinstance(value, str) else str(value.platform),
)
def test_the_kernel_that_is_chosen(asked, given, chosen, reason):
    kernel, passed_over = attention.choose_kernel(asked, given)
    assert kernel == chosen
    assert bool(passed_over) == bool(reason)
    assert reason in passed_over


@pytest.mark.parametrize(
    ("asked", "given"),
    [
        ("splash", setting("cpu", "bfloat16", 128)),
        ("splash", setting("tpu", "bfloat16", 64)),
        ("cudnn", setting("cpu", "bfloat16", 64)),
        ("cudnn", setting("gpu", "float32", 64, **HOPPER)),
        ("cudnn", setting("gpu", "bfloat16", 256, **HOPPER)),
        ("cudnn", setting("gpu", "bfloat16", 64, **AMPERE)),
        ("cudnn_mask", setting("gpu", "bfloat16", 64, **TURING)),
    ],
    ids=lambda value: value if isinstance(value, str) else str(value.platform),
)
def test_a_kernel_that_cannot_run_is_an_error(asked, given):
    with pytest.raises(ValueError, match=f"model.attention {asked} requires a .PU.* choose xla or"):
        attention.choose_kernel(asked, given)


def test_the_packed_kernel_is_never_run_without_bounds():
    with pytest.raises(ValueError, match="requires the bounds of the examples"):
        attention.make_kernel("cudnn", one_device_mesh(), ("data", "fsdp"), None)


@pytest.mark.parametrize("name", ["cudnn", "cudnn_mask"])
@pytest.mark.parametrize(("remat", "runs"), [("none", 1), ("context", 1), ("dots", 2), ("full", 2)])
def test_what_is_kept_decides_whether_the_fused_forward_pass_runs_twice(
    name, remat, runs, monkeypatch
):
    """By the program for CUDA, which needs no GPU to be made."""
    from jax._src.cudnn import fused_attention_stablehlo as fused

    monkeypatch.setattr(fused, "check_cudnn_version", lambda: 91900)
    monkeypatch.setattr(fused, "check_compute_capability", lambda capability: True)
    monkeypatch.setattr(fused, "is_cuda_compute_capability_equal", lambda capability: False)
    segments, positions, q, k, v = packed_rows(name)
    attend = kernel(name)(segments, positions)

    def layer(x, weight):
        return attend(x * weight, k, v)

    def loss(x, weights, gradients):
        return jnp.sum(layers.run(layer, x, weights, remat, gradients).astype(jnp.float32))

    two = jnp.ones(2, q.dtype)
    step = jax.jit(jax.grad(loss, argnums=1)).trace(q, two, two)
    program = step.lower(lowering_platforms=("cuda",)).as_text()
    forward, backward = (
        len(re.findall(rf"custom_call @__cudnn\$fmha[A-Za-z]*Softmax{kind}\(", program))
        for kind in ("", "Backward")
    )
    assert (forward, backward) == (runs, 1), "of the bodies of both loops"


def test_splash_needs_whole_blocks():
    segments, positions, q, k, v = (x[:, :100] for x in packed_rows())
    with pytest.raises(ValueError, match="multiple of 128 tokens, not 100"):
        kernel("splash")(segments, positions)(q, k, v)
