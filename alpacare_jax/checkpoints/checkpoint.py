"""Where weights live, on disk or in a bucket.

A model directory, made by `convert` or by `train`, holds:

    config.json, tokenizer files ...      as in a Hugging Face model folder
    checkpoints/STEP/params               Orbax; a converted model is step 0
    checkpoints/STEP/opt_state            only where training left it
"""

import contextlib
import dataclasses
import math
import shutil
import time
from pathlib import PurePath
from typing import Any

import jax
import jax.numpy as jnp
from etils.epath import Path
from orbax.checkpoint import v1 as ocp

from alpacare_jax.distributed import processes
from alpacare_jax.model import params as params_lib
from alpacare_jax.model.config import LlamaConfig
from alpacare_jax.model.llama import Params
from common import paths

CHUNK_BYTES = 2**28
"""A device's share of a stacked array that is larger than this is stored layer by layer."""


@dataclasses.dataclass(frozen=True)
class CheckpointConfig:
    """How often training saves, and how much is kept.

    The best by held-out loss is always kept, of the saves that were evaluated: set train.eval_every
    to every_steps, or a run that goes astray slowly may leave only what it strayed to.
    """

    every_steps: int  # save every so many steps, and at the end; 0: at the end only
    keep: int  # how many of the latest are kept

    def __post_init__(self):
        if self.every_steps < 0 or self.keep < 1:
            raise ValueError(
                "checkpoint.every_steps must be at least 0, checkpoint.keep at least 1"
            )


def _steps(directory: Path) -> list[ocp.training.CheckpointMetadata]:
    if not (directory / "checkpoints").exists():
        return []
    with ocp.training.Checkpointer(directory / "checkpoints") as checkpointer:
        return list(checkpointer.checkpoints)


def _eval_loss(metrics: Any) -> float:
    return (metrics or {}).get("eval_loss", float("inf"))


def latest_step(directory: str | PurePath) -> int | None:
    """The last step whose save is complete, None where there is none."""
    saved = _steps(paths.absolute(directory))
    return saved[-1].step if saved else None


def find_step(directory: str | PurePath, step: str = "best") -> int:
    """Resolves `best` (lowest eval loss, else latest), `latest` or a number to a saved step."""
    saved = _steps(paths.absolute(directory))
    if not saved:
        raise FileNotFoundError(f"{directory} holds no finished checkpoint")
    if step == "latest":
        return saved[-1].step
    if step == "best":
        return min(reversed(saved), key=lambda c: _eval_loss(c.metrics)).step
    steps = [c.step for c in saved]
    if not step.isdigit() or int(step) not in steps:
        raise ValueError(f"no step {step!r} in {directory}; saved steps are {steps}, best, latest")
    return int(step)


def stored_weights(
    directory: str | PurePath, config: LlamaConfig, step: str = "best"
) -> tuple[Path, dict[str, Any]]:
    """The folder of a saved step, and {weight path: what has its shape and dtype}.

    Raises:
      ValueError: a stored weight is missing, extra or misshapen for `config`; it is named.
    """
    directory = paths.absolute(directory)
    path = directory / "checkpoints" / str(find_step(directory, step))
    stored = params_lib.flatten(ocp.metadata(path, "params").metadata)
    wanted = params_lib.flatten(params_lib.abstract(config))
    for name in wanted.keys() | stored.keys():
        if name not in stored or name not in wanted:
            raise ValueError(
                f"{path} {'lacks' if name in wanted else 'has an extra'} weight {name}: "
                "its config.json belongs to another model"
            )
        if stored[name].shape != wanted[name].shape:
            raise ValueError(
                f"{path}: weight {name} has shape {stored[name].shape}, config.json asks for "
                f"{wanted[name].shape}: it belongs to another model"
            )
    return path, stored


def load_params(
    directory: str | PurePath,
    config: LlamaConfig,
    *,
    step: str = "best",
    dtype: jnp.dtype | None = None,
    shardings: Params | None = None,
) -> Params:
    """Restores the weights of a model directory.

    Args:
      dtype: cast to it while reading; None keeps each array's stored dtype.
      shardings: tree of NamedSharding; None puts all on the first device.

    Raises:
      ValueError: a stored weight is missing, extra or misshapen for `config`; it is named.
    """
    path, stored = stored_weights(directory, config, step)
    wanted = params_lib.flatten(params_lib.abstract(config))
    one = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    shardings = shardings or jax.tree.map(lambda _: one, wanted)
    flat_shardings = params_lib.flatten(shardings)
    target = params_lib.build_tree(
        config,
        lambda w: jax.ShapeDtypeStruct(
            wanted[w.path].shape, dtype or stored[w.path].dtype, sharding=flat_shardings[w.path]
        ),
    )
    return ocp.load(path, target, checkpointable_name="params")


def save_params(directory: str | PurePath, params: Params) -> None:
    """Writes the weights as step 0 of a model directory that already has its `config.json`."""
    path = paths.absolute(directory) / "checkpoints" / "0"
    ocp.save_checkpointables(path, {"params": params})


class TrainingCheckpoints:
    """Saves and restores {params, opt_state} by step, in the background."""

    def __init__(self, directory: Path, config: CheckpointConfig):
        policies = ocp.training.preservation_policies
        self._checkpointer = ocp.training.Checkpointer(
            paths.absolute(directory) / "checkpoints",
            save_decision_policy=_SaveWhenAsked(),
            preservation_policy=policies.AnyPreservationPolicy(
                [
                    policies.LatestN(config.keep),
                    policies.BestN(
                        get_metric_fn=lambda metrics: -_eval_loss(metrics),
                        n=1,
                        keep_checkpoints_without_metrics=False,
                    ),
                ]
            ),
            cleanup_tmp_directories=True,  # what a killed save left behind
            context=_storage(),
        )
        self._directory = directory
        self._pending: tuple[int, ocp.AsyncResponse] | None = None
        self._closed = self._failed = False
        self._bucket = paths.in_bucket(directory)
        self._whole = self.latest  # a bucket that failed would not tell

    @property
    def latest(self) -> int | None:
        """The last step whose save is complete."""
        latest = self._checkpointer.latest
        return None if latest is None else latest.step

    def save(self, step: int, state: dict[str, Any], metrics: dict[str, float]) -> float:
        """Copies the state off the devices and writes it in the background.

        Returns:
          Seconds that the caller was held up: the save before had to end, the state to be copied.

        Raises:
          OSError: this save or the one before failed; earlier checkpoints stay usable.
        """
        began = time.perf_counter()
        self.wait()
        need = sum(leaf.nbytes for leaf in jax.tree.leaves(state))
        free = math.inf if self._bucket else shutil.disk_usage(self._directory).free
        free = processes.broadcast_from_process_0(free)
        if free < need:
            raise OSError(
                f"step {step} not saved: it needs {need / 1e9:.1f} GB, {free / 1e9:.1f} GB are "
                f"free; the last good checkpoint is step {self.latest}; free space and run again"
            )
        try:
            # A copy: Orbax adds the metrics to the dict it is given.
            response = self._checkpointer.save_checkpointables_async(
                step, dict(state), metrics=metrics
            )
        except _save_errors() as error:
            raise self._save_error(step, error) from error
        self._pending = (step, response) if response else None
        return time.perf_counter() - began

    def wait(self) -> None:
        """Returns when nothing is being written; raises OSError where the last save failed."""
        if self._pending:
            (step, response), self._pending = self._pending, None
            try:
                response.result()
            except _save_errors() as error:
                raise self._save_error(step, error) from error
            self._whole = step

    def _save_error(self, step: int, error: Exception) -> OSError:
        self._failed = True
        reason = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
        remedy = "once the bucket answers," if self._bucket else "free disk space and"
        return OSError(
            f"step {step} not saved ({reason}); the last good checkpoint is step {self._whole}; "
            f"{remedy} run again"
        )

    def restore(self, step: int, abstract_state: dict[str, Any]) -> dict[str, Any]:
        """The state saved at `step`, in the dtypes and shardings of `abstract_state`."""
        return self._checkpointer.load_checkpointables(step, abstract_state)

    def __enter__(self) -> "TrainingCheckpoints":
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def close(self) -> None:
        """Finishes a save under way and lets go of the folder; may be called again.

        Raises:
          OSError: that save failed; earlier checkpoints stay usable.
        """
        if self._closed:
            return
        self._closed = True
        try:
            self.wait()
        finally:
            # A failed save was told as it should be; Orbax raises it once more when it is closed.
            told = _save_errors() if self._failed else ()
            with contextlib.suppress(*told):
                self._checkpointer.close()


def _save_errors() -> tuple[type[Exception], ...]:
    """What Orbax raises where a save fails."""
    return (OSError, ValueError, RuntimeError, *paths.outages())


def _storage() -> ocp.Context:
    """Large arrays are stored layer by layer, for `convert`; Orbax has a chunk for each device."""

    def options(path: tuple, array: jax.Array) -> Any:
        if "layers" not in jax.tree_util.keystr(path) or array.ndim < 2:
            return None
        share = math.prod(array.sharding.shard_shape(array.shape)) * array.dtype.itemsize
        axes = (0,) if share > CHUNK_BYTES else None
        return ocp.options.ArrayOptions.Saving.StorageOptions(shard_axes=axes)

    context = ocp.Context()
    context.array.saving.scoped_storage_options_creator = options
    return context


class _SaveWhenAsked:
    """The training loop decides when to save, not Orbax."""

    def should_save(self, *_, **__) -> bool:
        return True
