"""GPU descriptions for ahead-of-time compilation without hardware, for `plan`."""

import dataclasses
import importlib.util
import os
from typing import Any

import jax
from jax.experimental import topologies

GPU_COUNTS = (1, 2, 4, 8)
"""GPUs of one host, all connected to each other."""

MEMORY_FRACTION = 0.75
"""Share of a GPU's memory that JAX allocates unless XLA_CLIENT_MEM_FRACTION is set."""


@dataclasses.dataclass(frozen=True)
class Gpu:
    """One card, from its vendor's data sheet; memory as CUDA reports it."""

    kind: str  # as in metrics.PEAK_BF16_FLOPS and topologies.GPU_RATES
    memory_bytes: float


GPUS = {
    "h100": Gpu("NVIDIA H100", 79 * 2**30),
    "h200": Gpu("NVIDIA H200", 139 * 2**30),
}

# stream_executor.GpuTargetConfigProto; limits of compute capability 9.0 from the CUDA programming
# guide, sizes of the SXM cards from NVIDIA's "H100 Tensor Core GPU Architecture".
HOPPER = """
gpu_device_info {{
  cuda_compute_capability {{ major: 9 }}
  core_count: 132 fpus_per_core: 128 clock_rate_ghz: 1.98
  threads_per_block_limit: 1024 threads_per_warp: 32 threads_per_core_limit: 2048
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  thread_dim_limit_x: 1024 thread_dim_limit_y: 1024 thread_dim_limit_z: 64
  registers_per_core_limit: 65536 registers_per_block_limit: 65536
  shared_memory_per_block: 49152 shared_memory_per_block_optin: 232448
  shared_memory_per_core: 233472 l2_cache_size: 52428800
  device_memory_size: {memory:.0f} memory_bandwidth: {bandwidth:.0f}
}}
platform_name: "CUDA"
dnn_version_info {{ major: 9 minor: 10 }}
runtime_version {{ major: 13 }}
device_description_str: "{kind}"
"""


def devices(gpu: Gpu, count: int, bandwidth: float) -> list[Any]:
    """Device descriptions of `count` cards of one host, to compile for.

    Autotuning needs a card, so kernels differ from those of a real run, and the workspace of cuBLAS
    and cuDNN is not counted. The descriptions have no host memory, so optimizer.offload cannot be
    planned.

    Args:
      bandwidth: of the card's memory, bytes a second.

    Raises:
      ValueError: JAX's CUDA packages are missing.
    """
    if importlib.util.find_spec("jax_cuda13_plugin") is None:
        raise ValueError(
            "compiling for a GPU needs JAX's CUDA packages: pip install 'alpacare-jax[gpu]' (no "
            "GPU is needed)"
        )
    if not jax.config.jax_platforms:  # pyright: ignore[reportAttributeAccessIssue]
        jax.config.update("jax_platforms", "cpu")  # else the packages look for a GPU driver
    described = HOPPER.format(memory=gpu.memory_bytes, bandwidth=bandwidth, kind=gpu.kind)
    found = topologies.get_topology_desc(
        platform="cuda", topology=f"1x1x{count}", target_config=described
    )
    return list(found.devices)


def usable_bytes(gpu: Gpu) -> float:
    """Memory that JAX allocates, given the environment of this process."""
    names = ("XLA_CLIENT_MEM_FRACTION", "XLA_PYTHON_CLIENT_MEM_FRACTION")
    given = next((os.environ[name] for name in names if os.environ.get(name)), MEMORY_FRACTION)
    return float(given) * gpu.memory_bytes
