"""Accelerators by name: `v5e-16` -> described devices to compile for, and their rates."""

import dataclasses
import importlib.util
import math
import os
import re
from pathlib import Path
from typing import Any

import jax
from jax.experimental import topologies

from alpacare_jax.training import metrics
from common.sections import UsageError


@dataclasses.dataclass(frozen=True)
class Chip:
    """One chip, from the vendors' data sheets and jax-ml.github.io/scaling-book/tpus.

    Rates are bytes per second; FLOPs are in `metrics.PEAK_BF16_FLOPS`. Traffic between slices uses
    the data-center network (DCN). By docs.cloud.google.com/tpu/docs/{v5e,v5p,v6e} a v5p chip has 50
    Gbit/s, a pod of 256 v5e 6.4 Tbit/s (2 x 100 Gbit/s per host of 8) and of v6e 25.6 Tbit/s (4 x
    200). Nothing is published for v4: the book's typical host has 25 GB/s, here for 4 chips.
    """

    hbm_bytes: float
    hbm_rate: float
    link_rate: float  # of one link to a neighbor, one way
    dcn_rate: float  # to other slices, one way
    cores: int  # cores per chip in a slice's name: v4-8 is 4 chips
    devices: int  # JAX devices per chip when compiling without hardware
    bounds: dict[int, str]  # chips of a slice -> its topology


def _by_chips(bounds: str) -> dict[int, str]:
    """ "1x1 2x2" -> {1: "1x1", 4: "2x2"}."""
    return {math.prod(map(int, shape.split("x"))): shape for shape in bounds.split()}


TORUS_2D = _by_chips("1x1 2x2 2x4 4x4 4x8 8x8 8x16 16x16")
TORUS_3D = _by_chips("2x2x1 2x2x2 2x2x4 2x4x4 4x4x4 4x4x8 4x8x8 8x8x8")

CHIPS = {
    "v4": Chip(32 * 2**30, 1.23e12, 45e9, 6.25e9, 2, 2, TORUS_3D),
    "v5p": Chip(95 * 2**30, 2.77e12, 90e9, 6.25e9, 2, 1, TORUS_3D),
    "v5e": Chip(16 * 2**30, 0.82e12, 45e9, 3.125e9, 1, 1, TORUS_2D),
    "v6e": Chip(32 * 2**30, 1.64e12, 90e9, 12.5e9, 1, 1, TORUS_2D),
}
"""Without hardware, JAX compiles for both cores of a v4 chip as devices of half its size."""

TPU_KINDS = {
    "TPU v4": "v4",
    "TPU v5 lite": "v5e",
    "TPU v5e": "v5e",
    "TPU v5": "v5p",
    "TPU v6": "v6e",
}
"""How the name of a device begins -> its chip in CHIPS; the first that does."""

CPU_FLOPS_PER_BYTE = 10.0
"""Of two to sixteen cores with AVX2: 40 to 100 GFLOP/s for each 4 to 12 GB/s."""

HOST_RATE = 15e9
"""Bytes per second between a chip and its host's memory, one way (the same book: PCIe)."""

RESERVED_BYTES = 0.75 * 2**30
"""Bytes of a device that the TPU runtime reserves; the compiler reports 0.75 GiB of a v4 core, 0.25
of a v5e chip."""


@dataclasses.dataclass(frozen=True)
class Topology:
    """The devices of one or more slices, and the rates of one device; infinite where unknown."""

    name: str
    devices: list[Any]
    chips: int
    flops: float
    hbm_bytes: float
    hbm_rate: float
    ici_rate: float  # of all links of one device, one way
    host_rate: float = math.inf  # of one device to its host's memory, one way
    slices: int = 1
    dcn_rate: float = math.inf  # of one device to other slices, one way

    @property
    def flops_per_byte(self) -> float:
        """FLOPs of a device in the time that a byte takes to its memory, or back."""
        known = math.isfinite(self.flops) and math.isfinite(self.hbm_rate)
        return self.flops / self.hbm_rate if known else CPU_FLOPS_PER_BYTE


def describe(name: str) -> Topology:
    """Looks up `v5e-16`, or `2xv5e-16` for two slices; `v4-` and `v5p-` names count cores.

    TPUs require the package libtpu (extra [tpu]) but no TPU; `h200-8`, cards of one host, the extra
    [gpu] but no GPU. `local` is this machine's devices.

    Raises:
      ValueError: there is no such slice or host, or the packages are missing.
    """
    if name == "local":
        return dataclasses.replace(local(), flops=metrics.peak_flops()[0])
    if (found := re.fullmatch(r"(\w+)-(\d+)", name)) and found[1] in GPUS:
        return _gpus(name, found[1], int(found[2]))
    found = re.fullmatch(r"(?:([1-9]\d{0,2})x)?(v4|v5p|v5e|v6e)-(\d+)", name)
    if not found:
        raise UsageError(
            f"unknown topology {name!r}; write e.g. v5e-16, v5p-8, 2xv6e-256, h200-8 or local "
            f"(generations: {', '.join((*CHIPS, *GPUS))})"
        )
    slices, generation, count = int(found[1] or 1), found[2], int(found[3])
    chip = CHIPS[generation]
    if count % chip.cores or count // chip.cores not in chip.bounds:
        sizes = ", ".join(f"{generation}-{n * chip.cores}" for n in chip.bounds)
        raise ValueError(f"there is no slice {generation}-{count}; choose from {sizes}")
    bounds = chip.bounds[count // chip.cores]
    # Else libtpu spends minutes querying a metadata server that only TPU machines have. Nothing is
    # run, so two processes may compile.
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    os.environ.setdefault("TPU_ACCELERATOR_TYPE", "v5litepod-1")
    os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
    os.environ.setdefault("TPU_WORKER_ID", "0")
    os.environ.setdefault("TPU_STDERR_LOG_LEVEL", "3")
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
    if importlib.util.find_spec("libtpu") is None:
        raise ValueError(
            "compiling for a TPU needs libtpu: pip install 'alpacare-jax[tpu]' (no TPU is needed)"
        )
    try:
        description = topologies.get_topology_desc(
            platform="tpu",
            topology_name=f"{generation}:{bounds}",
            **({"num_slices": slices} if slices > 1 else {}),
            **({"chips_per_host_bounds": (1, 1, 1)} if bounds == "1x1" else {}),
        )
    except RuntimeError as error:
        raise ValueError(f"libtpu has no topology {name}: {error}") from error
    links = 2 * (bounds.count("x") + 1)  # two for each dimension of the torus
    return Topology(
        name=name,
        devices=list(description.devices),
        chips=slices * count // chip.cores,
        flops=metrics.PEAK_BF16_FLOPS[f"TPU {generation}"] / chip.devices,
        hbm_bytes=chip.hbm_bytes / chip.devices - RESERVED_BYTES,
        hbm_rate=chip.hbm_rate / chip.devices,
        ici_rate=links * chip.link_rate / chip.devices,
        host_rate=HOST_RATE / chip.devices,
        slices=slices,
        dcn_rate=chip.dcn_rate / chip.devices,
    )


GPU_RATES = {
    "NVIDIA GeForce RTX 4090": (1.008e12, 32e9, 32e9),
    "NVIDIA A100-SXM4-40GB": (1.555e12, 300e9, 32e9),
    "NVIDIA A100": (2.0e12, 300e9, 32e9),
    "NVIDIA H100": (3.35e12, 450e9, 64e9),
    "NVIDIA H200": (4.8e12, 450e9, 64e9),
}
"""Bytes per second to memory, and one way to other GPUs (NVLink) and to the host (PCIe), from their
data sheets."""


@dataclasses.dataclass(frozen=True)
class Gpu:
    """A card for which XLA compiles without one.

    Memory is what CUDA reports. Limits are of the compute capability, from the CUDA programming
    guide; multiprocessors, clock and cache from NVIDIA's papers on the GA100, AD102 and GH100.
    """

    kind: str  # as JAX names it, a key of GPU_RATES
    memory_gib: float
    capability: tuple[int, int]
    cores: int
    units: int  # of float32, in each core
    clock_ghz: float
    threads: int  # of a core
    shared_memory: int  # bytes of a core
    cache: int  # bytes


GPUS = {
    "rtx4090": Gpu("NVIDIA GeForce RTX 4090", 23.6, (8, 9), 128, 128, 2.52, 1536, 102400, 72 << 20),
    "a100_40": Gpu("NVIDIA A100-SXM4-40GB", 39.4, (8, 0), 108, 64, 1.41, 2048, 167936, 40 << 20),
    "h100": Gpu("NVIDIA H100", 79, (9, 0), 132, 128, 1.98, 2048, 233472, 50 << 20),
    "h200": Gpu("NVIDIA H200", 139, (9, 0), 132, 128, 1.98, 2048, 233472, 50 << 20),
}

GPU_COUNTS = (1, 2, 4, 8)
"""GPUs of one host, all connected to each other."""

# stream_executor.GpuTargetConfigProto; a block may have all but 1 KiB of a core's shared memory.
TARGET_CONFIG = """
gpu_device_info {{
  cuda_compute_capability {{ major: {gpu.capability[0]} minor: {gpu.capability[1]} }}
  core_count: {gpu.cores} fpus_per_core: {gpu.units} clock_rate_ghz: {gpu.clock_ghz}
  threads_per_block_limit: 1024 threads_per_warp: 32 threads_per_core_limit: {gpu.threads}
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  thread_dim_limit_x: 1024 thread_dim_limit_y: 1024 thread_dim_limit_z: 64
  registers_per_core_limit: 65536 registers_per_block_limit: 65536
  shared_memory_per_block: 49152 shared_memory_per_block_optin: {optin}
  shared_memory_per_core: {gpu.shared_memory} l2_cache_size: {gpu.cache}
  device_memory_size: {memory} memory_bandwidth: {bandwidth:.0f}
}}
platform_name: "CUDA"
dnn_version_info {{ major: 9 minor: 10 }}
runtime_version {{ major: 13 }}
device_description_str: "{gpu.kind}"
"""


def _gpus(name: str, generation: str, count: int) -> Topology:
    """Cards of one host, described for compilation.

    Autotuning needs a card, so kernels differ from those of a real run, and the workspace of cuBLAS
    and cuDNN is not counted. The descriptions have no host memory, so optimizer.offload cannot be
    planned.
    """
    if count not in GPU_COUNTS:
        sizes = ", ".join(f"{generation}-{n}" for n in GPU_COUNTS)
        raise ValueError(f"there is no host {name}; choose from {sizes}")
    if importlib.util.find_spec("jax_cuda13_plugin") is None:
        raise ValueError(
            "compiling for a GPU needs JAX's CUDA packages: pip install 'alpacare-jax[gpu]' (no "
            "GPU is needed)"
        )
    if not jax.config.jax_platforms:  # pyright: ignore[reportAttributeAccessIssue]
        jax.config.update("jax_platforms", "cpu")  # else the packages look for a GPU driver
    gpu = GPUS[generation]
    kind, memory = gpu.kind, round(gpu.memory_gib * 2**30)
    description = topologies.get_topology_desc(
        platform="cuda",
        topology=f"1x1x{count}",
        target_config=TARGET_CONFIG.format(
            gpu=gpu, memory=memory, optin=gpu.shared_memory - 1024, bandwidth=GPU_RATES[kind][0]
        ),
    )
    peaks, usable = metrics.PEAK_BF16_FLOPS, memory_fraction() * memory
    flops = next(flops for name, flops in peaks.items() if kind.startswith(name))
    return Topology(name, list(description.devices), count, flops, usable, *GPU_RATES[kind])


def memory_fraction() -> float:
    """Share of a GPU's memory that JAX allocates, given the environment of this process."""
    names = ("XLA_CLIENT_MEM_FRACTION", "XLA_PYTHON_CLIENT_MEM_FRACTION")
    return float(next((os.environ[name] for name in names if os.environ.get(name)), 0.75))


def _host_memory() -> float:
    """Bytes of memory that this machine has, or its container may use."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limit = Path("/sys/fs/cgroup/memory.max")
    text = limit.read_text().strip() if limit.exists() else "max"
    return memory if text == "max" else min(memory, float(text))


def local() -> Topology:
    """This machine's devices; what nobody publishes, as a CPU's rates, is infinite.

    On a CPU the devices share three quarters of its memory: a checkpoint is copied while it is
    saved.
    """
    devices, mine = jax.devices(), jax.local_devices()
    kind, limits = mine[0].device_kind, mine[0].memory_stats() or {}
    usable = limits.get("bytes_limit", 0.75 * _host_memory() / len(mine))
    flops, _ = metrics.known_peak() or (math.inf, "")
    chips = {name: (CHIPS[chip].hbm_rate, math.inf, math.inf) for name, chip in TPU_KINDS.items()}
    known = [rates for name, rates in (GPU_RATES | chips).items() if kind.startswith(name)]
    rates = known[0] if known else (math.inf, math.inf, math.inf)
    return Topology("local", devices, len(devices), flops, usable, *rates)
