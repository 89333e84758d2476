"""What training saves: {params, opt_state} by step, in the background, whole and finite."""

import concurrent.futures
import contextlib
import dataclasses
import math
import shutil
import time
from collections.abc import Iterator
from pathlib import PurePath
from typing import Any

import jax
from orbax.checkpoint import v1 as ocp

from alpacare_jax.checkpoints import checkpoint, digests, finite
from alpacare_jax.checkpoints.digests import Manifest
from alpacare_jax.distributed import processes
from common import messages, paths

CHUNK_BYTES = 2**28
"""A stacked array whose share per device exceeds this is stored layer by layer."""

ORBAX_PARTIAL = ".orbax-checkpoint-tmp"
"""In the name of a folder that Orbax is writing, which it renames at the end."""


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


class TrainingCheckpoints(contextlib.AbstractContextManager["TrainingCheckpoints"]):
    """Saves {params, opt_state} by step, in the background, and restores it.

    A step counts once its manifest is written; only then are older ones removed. A context manager:
    leaving it waits for the save in progress.
    """

    def __init__(self, directory: PurePath, config: CheckpointConfig, first_step: int):
        """Opens a run's folder, and removes what killed saves left behind.

        Args:
          first_step: the one that the run resumes from, 0 for a new run; later ones are damaged.
        """
        self._folder = checkpoint.steps_folder(directory)
        self._keep, self._context = config.keep, _storage_context()
        self._bucket = paths.in_bucket(self._folder)
        self._pending: tuple[int, concurrent.futures.Future[None]] | None = None
        self._background = concurrent.futures.ThreadPoolExecutor(1)
        found, _ = checkpoint.manifests(self._folder)
        self._saved = {step: one for step, one in found.items() if step <= first_step}
        if processes.is_first():
            if self._folder.exists():
                self._remove_leftovers()
            self._folder.mkdir(parents=True, exist_ok=True)

    def _remove_leftovers(self) -> None:
        """Removes what is left of saves and removals that were cut off."""
        unfinished = {str(step) for step in checkpoint.unfinished_steps(self._folder)}
        leftovers = [
            path
            for path in self._folder.iterdir()
            if path.name in unfinished or ORBAX_PARTIAL in path.name
        ]
        for path in leftovers:
            path.rmtree()
        checkpoint.mark_changing(self._folder, [])
        if leftovers:
            names = ", ".join(sorted({path.name.partition(".")[0] for path in leftovers}))
            messages.log(f"removed what was left of a save that was cut off: step {names}")

    @property
    def latest(self) -> int | None:
        """The last step whose save is complete."""
        return max(self._saved, default=None)

    def save(self, step: int, state: dict[str, Any], metrics: dict[str, float]) -> float:
        """Copies the state off the devices and writes it in the background.

        Returns:
          Seconds that the caller was blocked, waiting for the previous save and for the copy.

        Raises:
          OSError: this save or the previous one failed; earlier checkpoints stay usable.
          FloatingPointError: a weight or moment is NaN or infinite.
        """
        began = time.perf_counter()
        self.wait()
        self._require_room(step, state)
        if unusable := finite.unusable(state["params"], state["opt_state"]):
            raise FloatingPointError(
                f"step {step} not saved: {unusable}; the last checkpoint is "
                f"{self.latest or 'none'}; lower optimizer.learning_rate or look at the data of "
                "the last steps"
            )
        weights = finite.weights_digest(state["params"])
        with self._describing_failure(step):
            if processes.is_first():
                checkpoint.mark_changing(self._folder, [step])
            with self._context:  # a damaged step of this number is replaced
                response = ocp.save_checkpointables_async(
                    self._folder / str(step), state, overwrite=True
                )
        manifest = Manifest(step, {**metrics}, weights, {})
        self._pending = step, self._background.submit(self._complete, response, manifest)
        return time.perf_counter() - began

    def _require_room(self, step: int, state: dict[str, Any]) -> None:
        required = sum(leaf.nbytes for leaf in jax.tree.leaves(state))
        free = math.inf if self._bucket else shutil.disk_usage(self._folder).free
        free = processes.broadcast_from_process_0(free)
        if free < required:
            raise OSError(
                f"step {step} not saved: it requires {required / 1e9:.1f} GB, {free / 1e9:.1f} GB "
                f"are free; the last complete checkpoint is step {self.latest}; free space and "
                "rerun the command"
            )

    def _complete(self, response: ocp.AsyncResponse[Any], manifest: Manifest) -> None:
        """Once all processes have written: the manifest, then the removal of older steps."""
        response.result()
        if processes.is_first():
            digests.write(self._folder / str(manifest.step), manifest)
        self._saved[manifest.step] = manifest
        kept = {*sorted(self._saved)[-self._keep :], checkpoint.best_step(self._saved)}
        self._saved = {step: self._saved[step] for step in kept}
        if processes.is_first():
            self._remove([s for s in checkpoint.saved_steps(self._folder) if s not in kept])

    def _remove(self, steps: list[int]) -> None:
        checkpoint.mark_changing(self._folder, steps)
        for step in steps:
            # Without a manifest it counts as removed, however far the rest comes.
            (self._folder / str(step) / digests.NAME).unlink(missing_ok=True)
            (self._folder / str(step)).rmtree()
        checkpoint.mark_changing(self._folder, [])

    def wait(self) -> None:
        """Waits for the save in progress; raises OSError if it failed."""
        if self._pending:
            (step, saved), self._pending = self._pending, None
            with self._describing_failure(step):
                saved.result()

    @contextlib.contextmanager
    def _describing_failure(self, step: int) -> Iterator[None]:
        try:
            yield
        except (OSError, ValueError, RuntimeError, *paths.outages()) as error:  # Orbax's, too
            reason = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
            remedy = "once the bucket responds," if self._bucket else "free disk space and"
            raise OSError(
                f"step {step} not saved ({reason}); the last complete checkpoint is step "
                f"{self.latest}; {remedy} rerun the command"
            ) from error

    def restore(self, step: int, abstract_state: dict[str, Any]) -> dict[str, Any]:
        """The state saved at `step`, in the dtypes and shardings of `abstract_state`."""
        return ocp.load_checkpointables(self._folder / str(step), abstract_state)

    def __exit__(self, *_) -> None:
        self.close()

    def close(self) -> None:
        """Waits for the save in progress, as `wait`; may be called again."""
        try:
            self.wait()
        finally:
            self._background.shutdown()


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
