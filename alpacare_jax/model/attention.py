"""Grouped-query attention over packed rows, and the kernels for it. Letters as in `llama.py`.

A kernel maps a batch's segments and positions to a function `attend(q, k, v)`. No kernel lets a
token attend to another example of its row.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec
from jax.typing import DTypeLike

from alpacare_jax.model import layers

Attend = Callable[[jax.Array, jax.Array, jax.Array], jax.Array]
"""(q_BTNH, k_BSKH, v_BSKH) -> o_BTNH."""
Kernel = Callable[[jax.Array, jax.Array], Attend]
"""(segments_BT, positions_BT) -> Attend."""

KERNELS = ("auto", "xla", "splash", "cudnn", "cudnn_mask")

MASKED_SCORE = -1e30  # finite, so that a query with no visible key gives a mean, not NaN


def attention_mask(segments_BT: jax.Array, positions_BT: jax.Array) -> jax.Array:
    """Which keys each query attends to, bool [B, T, T]: its own segment's, up to its position.

    Segments number the examples packed into a row from 1; 0 is padding. Positions alone define the
    order, so prompts may be padded on either side.

        tokens    = [ 5,  6,  7,  8,  9,  0]
        segments  = [ 1,  1,  1,  2,  2,  0]
        positions = [ 0,  1,  2,  0,  1,  0]
    """
    same = segments_BT[:, :, None] == segments_BT[:, None, :]
    return same & (positions_BT[:, None, :] <= positions_BT[:, :, None])


def attend(
    q_BTNH: jax.Array, k_BSKH: jax.Array, v_BSKH: jax.Array, mask_BTS: jax.Array
) -> jax.Array:
    """softmax(q k / sqrt(H)) v with a float32 softmax, [B, T, N, H] (arXiv:1706.03762).

    The G query heads that share a key head are folded into the query axis, so each key head is one
    plain matrix product. On CPU this is twice as fast as separate axes, backward pass included.
    """
    B, T, N, H = q_BTNH.shape
    K = k_BSKH.shape[2]
    G = N // K
    q_BKGTH = q_BTNH.reshape(B, T, K, G, H).transpose(0, 2, 3, 1, 4) * H**-0.5
    q_BKRH = q_BKGTH.reshape(B, K, G * T, H)
    scores_BKRS = jnp.einsum("BKRH,BSKH->BKRS", q_BKRH, k_BSKH, preferred_element_type=jnp.float32)
    scores_BKGTS = scores_BKRS.reshape(B, K, G, T, -1)
    scores_BKGTS = jnp.where(mask_BTS[:, None, None], scores_BKGTS, MASKED_SCORE)
    probabilities = jax.nn.softmax(scores_BKGTS, axis=-1).astype(v_BSKH.dtype)
    out_BKRH = jnp.einsum("BKRS,BSKH->BKRH", probabilities.reshape(scores_BKRS.shape), v_BSKH)
    return out_BKRH.reshape(B, K, G, T, H).transpose(0, 3, 1, 2, 4).reshape(B, T, N, H)


@dataclasses.dataclass(frozen=True)
class Setting:
    """What decides which kernels can run."""

    platform: str  # of the devices: cpu, tpu, gpu
    dtype: DTypeLike
    head_dim: int
    elements: int = 0  # of the queries of a micro-batch on one device
    capability: tuple[int, int] = (0, 0)  # compute capability of the GPUs
    cudnn: int = 0  # its version, as 91002 for 9.10.2


def compute_capability(device: Any) -> tuple[int, int]:
    """Of a GPU, (9, 0) on Hopper.

    (8, 0) of cards that are only described: JAX traces the packed form beside a Hopper card alone.
    """
    if jax.default_backend() != "gpu":
        return 8, 0
    major, minor = str(device.compute_capability).split(".")
    return int(major), int(minor)


def cudnn_version() -> int:
    """Of the library that JAX loads, as 91002 for 9.10.2; 0 without one."""
    from jax._src.lib import cuda_versions

    try:
        return cuda_versions.cudnn_get_version() if cuda_versions else 0
    except RuntimeError:  # it finds none
        return 0


def _requirements(kernel: str, s: Setting) -> list[tuple[bool, str]]:
    """(whether it is met, what it is), the platform first.

    Sources: `make_splash_mha`; `check_is_flash_attention` of jax 0.10.2 and 0.11.2; the packed form
    is known to be right from cuDNN 9.6 on, and its offsets are int32 element numbers.
    """
    on_gpu = [
        (s.platform in ("gpu", "cuda"), "a GPU"),
        (jnp.dtype(s.dtype).itemsize == 2, "bfloat16"),
        (s.head_dim <= 128 and s.head_dim % 8 == 0, "a head_dim of at most 128, a multiple of 8"),
    ]
    return {
        "splash": [
            (s.platform == "tpu", "a TPU"),
            (s.head_dim % 128 == 0, "a head_dim that is a multiple of 128"),
        ],
        "cudnn": [
            *on_gpu,
            (s.capability >= (9, 0), "compute capability 9.0"),
            (s.cudnn >= 90600, "cuDNN 9.6"),
            (s.elements < 2**31, "queries of less than 2^31 elements on a device"),
        ],
        "cudnn_mask": [*on_gpu, (s.capability >= (8, 0), "compute capability 8.0")],
        "xla": [],
    }[kernel]


def choose_kernel(name: str, setting: Setting) -> tuple[str, str]:
    """The kernel to run, and why `auto` passed over a faster one for this platform, else "".

    `auto` is splash on TPU, on GPU cuDNN with the bounds of examples, or with a mask; else XLA.

    Raises:
      ValueError: the requested kernel is not supported here; it is never replaced silently.
    """
    passed_over = []
    for kernel in ("splash", "cudnn", "cudnn_mask", "xla") if name == "auto" else [name]:
        requirements = _requirements(kernel, setting)
        missing = [text for met, text in requirements if not met]
        if not missing:
            return kernel, "; ".join(passed_over)
        if requirements[0][0]:
            passed_over.append(f"{kernel} requires {', '.join(missing)}")
    required = ", ".join(text for _, text in _requirements(name, setting))
    raise ValueError(
        f"model.attention {name} requires {required}, which is not so here ({setting}); choose xla "
        "or auto"
    )


def make_kernel(
    name: str,
    mesh: Mesh,
    rows: tuple[str, ...],
    heads: str | None,
    bounds_BM2: jax.Array | None = None,
) -> Kernel:
    """The kernel of this name.

    Args:
      mesh, rows, heads: the mesh axes that rows and heads are sharded over; each device runs the
        kernel on its own shard.
      bounds_BM2: of the rows' examples, which `cudnn` requires.
    """
    if name == "cudnn":
        if bounds_BM2 is None:
            raise ValueError("the kernel cudnn requires the bounds of the examples")
        return cudnn(mesh, rows, heads, bounds_BM2)
    if name == "splash":
        return splash(mesh, rows, heads)
    return {"xla": xla, "cudnn_mask": cudnn_mask}[name]


def xla(segments_BT: jax.Array, positions_BT: jax.Array) -> Attend:
    """Plain XLA operations, on any device."""
    mask_BTS = attention_mask(segments_BT, positions_BT)
    return lambda q, k, v: layers.keep(attend(q, k, v, mask_BTS), layers.ATTENDED)


def cudnn_mask(segments_BT: jax.Array, positions_BT: jax.Array) -> Attend:
    """cuDNN's fused attention with a mask of segments, which it reads in full.

    Rows as training makes them: within a segment, row order is position order.
    """
    del positions_BT
    same_B1TT = (segments_BT[:, :, None] == segments_BT[:, None, :])[:, None]

    def attend_rows(q_BTNH, k_BTKH, v_BTKH):
        return jax.nn.dot_product_attention(
            q_BTNH, k_BTKH, v_BTKH, mask=same_B1TT, is_causal=True, implementation="cudnn"
        )

    return attend_rows


def cudnn(mesh: Mesh, rows: tuple[str, ...], heads: str | None, bounds_BM2: jax.Array) -> Kernel:
    """cuDNN's fused attention of packed examples, which skips what no example holds.

    Args:
      mesh, rows, heads: as for `make_kernel`.
      bounds_BM2: of the examples, as `packing.example_bounds` lays them out for each device.
    """
    sharded = PartitionSpec(rows, None, heads, None)
    attend_rows = fused_attention
    if mesh.size > 1:
        attend_rows = jax.shard_map(
            fused_attention,
            mesh=mesh,
            in_specs=(sharded, sharded, sharded, PartitionSpec(rows)),
            out_specs=sharded,
            check_vma=False,  # the primitive's outputs do not say what they vary over
        )

    def kernel_of_rows(segments_BT, positions_BT):
        del segments_BT, positions_BT
        return lambda q, k, v: attend_rows(q, k, v, bounds_BM2)

    return kernel_of_rows


def fused_attention(q_BTNH, k_BTKH, v_BTKH, bounds_BM2) -> jax.Array:
    """cuDNN's causal attention within the examples that `bounds_BM2` lists: starts and lengths.

    The only use of JAX's private interface; tried with jax 0.10.2 (traced) and 0.11.2 (H200, cuDNN
    9.19). Its offsets [B, M + 1] are starts with -1 behind the last: where an end offset follows,
    as the size suggests, every row but the first comes out as garbage, without an error.
    """
    from jax._src.cudnn import fused_attention_stablehlo as fused

    starts = jnp.pad(bounds_BM2[..., 0], ((0, 0), (0, 1)), constant_values=-1)
    lengths = bounds_BM2[..., 1]
    out: Any = fused.dot_product_attention(
        q_BTNH,
        k_BTKH,
        v_BTKH,
        q_seqlen=lengths,
        kv_seqlen=lengths,
        q_offsets=starts,
        kv_offsets=starts,
        scale=q_BTNH.shape[-1] ** -0.5,
        mask_type=fused.MaskType.PADDING_CAUSAL,
    )
    return out


def splash(
    mesh: Mesh, rows: tuple[str, ...], heads: str | None, *, interpret: bool = False
) -> Kernel:
    """The TPU's flash attention with segment ids (Pallas): scores never reach main memory.

    Args:
      mesh, rows, heads: as for `make_kernel`.
      interpret: emulate the kernel without a TPU, slowly, for tests.
    """
    from jax.experimental.pallas.ops.tpu import splash_attention as kernels

    def attend_row(q_NTH, k_KTH, v_KTH, segments_T):
        N, T, H = q_NTH.shape
        if T % 128:
            raise ValueError(f"splash attention requires rows of a multiple of 128 tokens, not {T}")
        block = max(b for b in range(128, min(T, 1024) + 1, 128) if T % b == 0)
        kernel = kernels.make_splash_mha(
            # Within a segment, row order is position order.
            mask=kernels.MultiHeadMask([kernels.CausalMask((T, T))] * N),
            block_sizes=kernels.BlockSizes(
                block_q=block,
                block_kv=block,
                block_kv_compute=block,
                block_q_dkv=block,
                block_kv_dkv=block,
                block_kv_dkv_compute=block,
                block_q_dq=block,
                block_kv_dq=block,
            ),
            head_shards=1,
            q_seq_shards=1,
            residual_checkpoint_name=layers.ATTENDED,
            interpret=interpret,
        )
        ids = kernels.SegmentIds(q=segments_T, kv=segments_T)
        return kernel(q_NTH * H**-0.5, k_KTH, v_KTH, ids)

    def swap(x):  # [B, T, N, H] <-> [B, N, T, H]
        return x.transpose(0, 2, 1, 3)

    def kernel_of_rows(segments_BT, positions_BT):
        del positions_BT
        sharded = PartitionSpec(rows, heads, None, None)
        attend_rows = jax.shard_map(
            jax.vmap(attend_row),
            mesh=mesh,
            in_specs=(sharded, sharded, sharded, PartitionSpec(rows, None)),
            out_specs=sharded,
            check_vma=False,  # not implemented for Pallas calls
        )
        return lambda q, k, v: swap(attend_rows(swap(q), swap(k), swap(v), segments_BT))

    return kernel_of_rows
