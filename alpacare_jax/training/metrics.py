"""What a run measures: FLOPs, the hardware's peak, and the file `metrics.jsonl`."""

import dataclasses
import hashlib
import json
import time
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import jax
import jax.numpy as jnp
from etils import epath

from alpacare_jax.model import params
from alpacare_jax.model.config import LlamaConfig
from alpacare_jax.model.params import Adapter
from alpacare_jax.reporting import run_files
from alpacare_jax.training.config import RunConfig
from common import jsonl, messages, paths

PEAK_BF16_FLOPS = {
    "TPU v4": 275e12,
    "TPU v5 lite": 197e12,
    "TPU v5e": 197e12,
    "TPU v5": 459e12,
    "TPU v5p": 459e12,
    "TPU v6 lite": 918e12,
    "TPU v6e": 918e12,
    "NVIDIA GeForce RTX 4090": 165.2e12,
    "NVIDIA A100": 312e12,
    "NVIDIA H100": 989e12,
    "NVIDIA H100 PCIe": 756e12,
    "NVIDIA H100 NVL": 835e12,
    "NVIDIA H200": 989e12,
    "NVIDIA H200 NVL": 835e12,
}
"""Dense bf16 FLOP/s of one device, from the vendors' data sheets; keys begin its `device_kind`."""


def train_flops(
    config: LlamaConfig, tokens: int, pairs: int, targets: int, adapter: Adapter | None = None
) -> float:
    """FLOPs that training needs, forward and backward, without recomputation.

        6 * (parameters of the layers) * tokens
      + 12 * L * N * H * pairs              scores and values, 2 products of 2*H FLOPs, times 3
      + 6 * V * D * targets                 the output embedding, where there is a loss

    What an adapter leaves frozen needs no gradient of itself, 4 in place of 6; its own parameters
    count 6.

    Args:
      tokens: real tokens, without padding.
      pairs: sum over examples of n (n + 1) / 2, the query-key pairs that attention needs.
      targets: tokens that carry loss.

    Source: arXiv:2204.02311 appendix B, with causal attention counted as half.
    """
    sizes = config.sizes
    vocabulary = sizes["V"] * sizes["D"]
    layers = params.count(config) - vocabulary * (1 if config.tie_word_embeddings else 2)
    attention = 12 * sizes["L"] * sizes["N"] * sizes["H"]
    each, added = (4.0, 6.0 * params.count(adapter)) if adapter else (6.0, 0.0)
    return (each * layers + added) * tokens + attention * pairs + each * vocabulary * targets


def measure_peak_flops(size: int | None = None, seconds: float = 0.5) -> float:
    """FLOP/s of one device in a square matrix product, the best rate seen in `seconds`.

    Matrices are random, as weights are: a GPU multiplies ones faster, at less power. Several
    products are queued at a time: the wait for a single one would cost some percent.
    """
    on_cpu = jax.default_backend() == "cpu"
    size = size or (2048 if on_cpu else 8192)  # less does not fill a large GPU
    count = 1 if on_cpu else 8
    dtype = jnp.float32 if on_cpu else jnp.bfloat16
    x = jax.random.normal(jax.random.key(0), (size, size), dtype)
    product = jax.jit(jnp.matmul)
    product(x, x).block_until_ready()
    best, end = float("inf"), time.perf_counter() + seconds
    while time.perf_counter() < end:
        start = time.perf_counter()
        jax.block_until_ready([product(x, x) for _ in range(count)])
        best = min(best, time.perf_counter() - start)
    return 2 * size**3 * count / best


def peak_flops() -> tuple[float, str]:
    """FLOP/s of one device, and its source: `table` or `measured`."""
    kind = jax.devices()[0].device_kind
    matches = [name for name in PEAK_BF16_FLOPS if kind.startswith(name)]
    if matches:
        return PEAK_BF16_FLOPS[max(matches, key=len)], "table"
    # On CPU all virtual devices share the cores, so the machine's peak is divided among them.
    share = jax.local_device_count() if jax.default_backend() == "cpu" else 1
    return measure_peak_flops() / share, "measured"


def known_peak() -> tuple[float, str] | None:
    """`peak_flops`; None on CPU, whose measured peak is mostly noise: no MFU is reported there."""
    return None if jax.default_backend() == "cpu" else peak_flops()


class Sink(Protocol):
    """A further place that gets the numbers of each step."""

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Adds the numbers of a step."""
        ...

    def close(self) -> None:
        """Writes what is buffered."""
        ...


class TensorBoard:
    """Writes to `WORKDIR/tensorboard`."""

    def __init__(self, workdir: epath.Path, first_step: int):
        from tensorboardX import SummaryWriter

        self._board = SummaryWriter(str(workdir / "tensorboard"), purge_step=first_step + 1)

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Adds the numbers of a step."""
        for name, value in values.items():
            self._board.add_scalar(name, value, step)

    def close(self) -> None:
        """Writes what is buffered."""
        self._board.close()


class WeightsAndBiases:
    """Sends to Weights & Biases, as its own variables say (WANDB_MODE, WANDB_PROJECT, ...).

    A resumed run continues its page there, which it finds by the path of the workdir.

    Raises:
      ValueError: W&B does not let the run in.
    """

    def __init__(self, workdir: epath.Path, config: Mapping[str, Any]):
        import wandb

        folder = paths.absolute(workdir)
        try:
            self._run = wandb.init(
                id=hashlib.sha256(str(folder).encode()).hexdigest()[:16],
                resume="allow",
                name=folder.name,
                dir=None if paths.in_bucket(workdir) else str(workdir),
                config=dict(config),
                settings=wandb.Settings(silent=True, console="off"),
            )
        except wandb.Error as error:
            raise ValueError(
                f"train.wandb: {error} (or set WANDB_MODE=offline and run `wandb sync` later)"
            ) from None
        self._run.define_metric("*", step_metric="step")  # a resumed run repeats some steps

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Adds the numbers of a step."""
        self._run.log({"step": step, **values})

    def close(self) -> None:
        """Sends what is buffered."""
        self._run.finish()


def open_sinks(run_config: RunConfig, workdir: epath.Path, first_step: int) -> list[Sink]:
    """The sinks that a config asks for. Raises as they do."""
    sinks: list[Sink] = []
    if run_config.train.tensorboard:
        sinks.append(TensorBoard(workdir, first_step))
    if run_config.train.wandb:
        sinks.append(WeightsAndBiases(workdir, dataclasses.asdict(run_config)))
    return sinks


class MetricsWriter:
    """Appends one JSON object a line to `metrics.jsonl`, and passes the numbers to the sinks.

    In a bucket the file may lag (`jsonl.LineFile`); `sync` before a save completes it for a run
    that resumes from there.
    """

    def __init__(self, workdir: epath.Path, first_step: int, sinks: Sequence[Sink] = ()):
        """Continues the file after `first_step`.

        Steps that a killed run logged after its last checkpoint are dropped; those before it that
        the file lacks are reported.
        """
        path = workdir / run_files.METRICS
        old = run_files.read_steps(path) if first_step else ()
        self.steps = [line for line in old if line["step"] <= first_step]
        self._lines = jsonl.LineFile(path, map(json.dumps, self.steps))
        self._sinks = sinks
        found = {line["step"] for line in self.steps}
        if missing := [step for step in range(1, first_step + 1) if step not in found]:
            messages.log(
                f"{path} is damaged: it lacks {len(missing):,} of the {first_step:,} steps so far, "
                f"the first {missing[0]:,}; continuing without them; to have them, stop this run "
                "and restore the file from a copy"
            )

    def write(self, step: int, **values: float) -> None:
        """Appends a line: `step` and `values`."""
        self.steps.append({"step": step} | values)
        self._lines.add(json.dumps(self.steps[-1]))
        for sink in self._sinks:
            sink.write(step, values)

    def sync(self) -> None:
        """Uploads what was written so far, if the workdir is in a bucket."""
        self._lines.sync()

    def close(self) -> None:
        """Writes and uploads what is buffered."""
        self._lines.close()
        for sink in self._sinks:
            sink.close()
