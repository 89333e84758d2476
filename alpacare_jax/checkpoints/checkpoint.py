"""Checkpoints of weights and training states, on disk or in a bucket.

A model directory, written by `convert` or by `train`, contains:

    config.json, tokenizer files ...      as in a Hugging Face model folder
    checkpoints/STEP/params               Orbax; a converted model is step 0
    checkpoints/STEP/opt_state            written by training only
"""

import contextlib
import dataclasses
import math
import shutil
import time
from collections.abc import Iterator
from pathlib import PurePath
from typing import Any

import jax
import jax.numpy as jnp
from etils import epath
from orbax.checkpoint import v1 as ocp

from alpacare_jax.distributed import processes
from alpacare_jax.model import params as params_lib
from alpacare_jax.model.config import LlamaConfig
from alpacare_jax.model.llama import Params
from common import paths
from common.sections import UsageError

CHUNK_BYTES = 2**28
"""A stacked array whose share per device exceeds this is stored layer by layer."""


@dataclasses.dataclass(frozen=True)
class CheckpointConfig:
    """How often training saves, and how many checkpoints are kept.

    The checkpoint with the lowest eval loss is always kept, among those that were evaluated: set
    train.eval_every to every_steps, or a run that diverges slowly may keep only diverged ones.
    """

    every_steps: int  # save every this many steps, and at the end; 0: at the end only
    keep: int  # number of latest checkpoints kept

    def __post_init__(self):
        if self.every_steps < 0 or self.keep < 1:
            raise ValueError(
                "checkpoint.every_steps must be at least 0, checkpoint.keep at least 1"
            )


def _steps(directory: epath.Path) -> list[ocp.training.CheckpointMetadata[Any]]:
    if not (directory / "checkpoints").exists():
        return []
    with ocp.training.Checkpointer(directory / "checkpoints") as checkpointer:
        return list(checkpointer.checkpoints)


def _eval_loss(metrics: Any) -> float:
    return (metrics or {}).get("eval_loss", float("inf"))


def latest_step(directory: str | PurePath) -> int | None:
    """The last step whose save is complete, None if there is none."""
    saved = _steps(paths.absolute(directory))
    return saved[-1].step if saved else None


def find_step(directory: str | PurePath, step: str = "best") -> int:
    """Resolves `best` (lowest eval loss, else latest), `latest` or a number to a saved step.

    Raises:
      FileNotFoundError: no checkpoint is complete.
      ValueError: the step is not saved.
    """
    saved = _steps(paths.absolute(directory))
    if not saved:
        raise FileNotFoundError(f"{directory} has no complete checkpoint")
    if step == "latest":
        return saved[-1].step
    if step == "best":
        return min(reversed(saved), key=lambda c: _eval_loss(c.metrics)).step
    steps = [c.step for c in saved]
    if not step.isdigit() or int(step) not in steps:
        raise UsageError(f"no step {step!r} in {directory}; choose from {steps}, best, latest")
    return int(step)


def stored_weights(
    directory: str | PurePath, config: LlamaConfig, step: str = "best"
) -> tuple[epath.Path, dict[str, Any]]:
    """The folder of a saved step, and weight path -> metadata with shape and dtype.

    Raises:
      ValueError: a stored weight is missing, extra or misshapen for `config`; it is named.
    """
    directory = paths.absolute(directory)
    path = directory / "checkpoints" / str(find_step(directory, step))
    stored = params_lib.flatten(ocp.metadata(path, "params").metadata)
    expected = params_lib.flatten(params_lib.abstract(config))
    for name in expected.keys() | stored.keys():
        if name not in stored or name not in expected:
            raise ValueError(
                f"{path} {'lacks' if name in expected else 'has an extra'} weight {name}: "
                "its config.json belongs to another model"
            )
        if stored[name].shape != expected[name].shape:
            raise ValueError(
                f"{path}: weight {name} has shape {stored[name].shape}, config.json requires "
                f"{expected[name].shape}: it belongs to another model"
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
    """Restores the weights of a model directory; raises as `stored_weights`.

    Args:
      dtype: dtype to cast to while reading; None keeps the stored dtype of each array.
      shardings: tree of NamedSharding; None places everything on the first device.
    """
    path, stored = stored_weights(directory, config, step)
    first_device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    flat_shardings = params_lib.flatten(shardings) if shardings else {}
    target = params_lib.build_tree(
        config,
        lambda weight: jax.ShapeDtypeStruct(
            stored[weight.path].shape,
            dtype or stored[weight.path].dtype,
            sharding=flat_shardings.get(weight.path, first_device),
        ),
    )
    return ocp.load(path, target, checkpointable_name="params")


def save_params(directory: str | PurePath, params: Params) -> None:
    """Writes the weights as step 0 of a model directory, which has its `config.json` already."""
    path = paths.absolute(directory) / "checkpoints" / "0"
    ocp.save_checkpointables(path, {"params": params})


class TrainingCheckpoints(contextlib.AbstractContextManager["TrainingCheckpoints"]):
    """Saves {params, opt_state} by step, in the background, and restores it.

    A context manager: leaving it waits for the save in progress.
    """

    def __init__(self, directory: epath.Path, config: CheckpointConfig):
        save_policy = ocp.training.save_decision_policies.FixedIntervalPolicy(1)
        policies = ocp.training.preservation_policies
        self._checkpointer = ocp.training.Checkpointer(
            paths.absolute(directory) / "checkpoints",
            # Policies are declared for a supertype of what Orbax passes to them. The training loop
            # decides when to save.
            save_decision_policy=save_policy,  # pyright: ignore[reportArgumentType]
            preservation_policy=policies.AnyPreservationPolicy(  # pyright: ignore[reportArgumentType]
                [
                    policies.LatestN(config.keep),
                    policies.BestN(
                        get_metric_fn=lambda metrics: -_eval_loss(metrics),
                        n=1,
                        keep_checkpoints_without_metrics=False,
                    ),
                ]
            ),
            cleanup_tmp_directories=True,  # left behind by a killed save
            context=_storage_context(),
        )
        self._directory = directory
        self._pending: tuple[int, ocp.AsyncResponse[Any]] | None = None
        self._closed = self._failed = False
        self._bucket = paths.in_bucket(directory)
        self._last_complete = self.latest  # a bucket that failed could not list it

    @property
    def latest(self) -> int | None:
        """The last step whose save is complete."""
        latest = self._checkpointer.latest
        return None if latest is None else latest.step

    def save(self, step: int, state: dict[str, Any], metrics: dict[str, float]) -> float:
        """Copies the state off the devices and writes it in the background.

        Returns:
          Seconds that the caller was blocked, waiting for the previous save and for the copy.

        Raises:
          OSError: this save or the previous one failed; earlier checkpoints stay usable.
        """
        began = time.perf_counter()
        self.wait()
        required = sum(leaf.nbytes for leaf in jax.tree.leaves(state))
        free = math.inf if self._bucket else shutil.disk_usage(self._directory).free
        free = processes.broadcast_from_process_0(free)
        if free < required:
            raise OSError(
                f"step {step} not saved: it requires {required / 1e9:.1f} GB, {free / 1e9:.1f} GB "
                f"are free; the last complete checkpoint is step {self.latest}; free space and "
                "rerun the command"
            )
        with self._describing_failure(step):
            # A copy of the state: Orbax adds the metrics to the dict it is given.
            response = self._checkpointer.save_checkpointables_async(
                step, dict(state), metrics={**metrics}
            )
        self._pending = (step, response) if response else None
        return time.perf_counter() - began

    def wait(self) -> None:
        """Waits for the save in progress; raises OSError if it failed."""
        if self._pending:
            (step, response), self._pending = self._pending, None
            with self._describing_failure(step):
                response.result()
            self._last_complete = step

    @contextlib.contextmanager
    def _describing_failure(self, step: int) -> Iterator[None]:
        try:
            yield
        except _save_errors() as error:
            self._failed = True
            reason = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
            remedy = "once the bucket responds," if self._bucket else "free disk space and"
            raise OSError(
                f"step {step} not saved ({reason}); the last complete checkpoint is step "
                f"{self._last_complete}; {remedy} rerun the command"
            ) from error

    def restore(self, step: int, abstract_state: dict[str, Any]) -> dict[str, Any]:
        """The state saved at `step`, in the dtypes and shardings of `abstract_state`."""
        return self._checkpointer.load_checkpointables(step, abstract_state)

    def __exit__(self, *_) -> None:
        self.close()

    def close(self) -> None:
        """Waits for the save in progress, as `wait`, and closes the folder; may be called again."""
        if self._closed:
            return
        self._closed = True
        try:
            self.wait()
        finally:
            # Orbax raises a failed save, which was already reported, again on closing.
            reported = _save_errors() if self._failed else ()
            with contextlib.suppress(*reported):
                self._checkpointer.close()


def _save_errors() -> tuple[type[Exception], ...]:
    """The exceptions that Orbax raises for a failed save."""
    return (OSError, ValueError, RuntimeError, *paths.outages())


def _storage_context() -> ocp.Context:
    """Stores large arrays layer by layer, for `convert`; Orbax's default is a chunk per device."""

    def options(key: tuple[Any, ...], value: Any) -> Any:
        if "layers" not in jax.tree_util.keystr(key) or value.ndim < 2:
            return None
        share = math.prod(value.sharding.shard_shape(value.shape)) * value.dtype.itemsize
        axes = (0,) if share > CHUNK_BYTES else None
        return ocp.options.ArrayOptions.Saving.StorageOptions(shard_axes=axes)

    context = ocp.Context()
    context.array.saving.scoped_storage_options_creator = options
    return context
