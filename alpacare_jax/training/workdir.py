"""A training run's folder: which run it belongs to, and the files it has from the start."""

import dataclasses
import json
from typing import Any

from etils import epath

from alpacare_jax.checkpoints import model_folder
from alpacare_jax.distributed import processes
from alpacare_jax.training.config import RunConfig
from common import provenance

SAME_RUN = ("model", "data", "optimizer", "train")
"""Config sections that determine the numbers: a run resumes only with the same ones."""

MAY_CHANGE = (
    "model.remat",  # this and the next three: memory against time
    "model.loss_tokens",
    "train.microbatch_tokens",
    "optimizer.offload",
    "model.attention",  # all kernels give the same, up to rounding
    "train.log_every",
    "train.eval_every",
    "train.samples",
    "train.tensorboard",
    "train.wandb",
)
"""Keys of those sections that may differ when a run resumes."""


def describe(run_config: RunConfig) -> dict[str, Any]:
    """The content of this run's `run.json`."""
    content = json.loads(json.dumps(dataclasses.asdict(run_config)))  # tuples become lists
    paths = [path for path in (run_config.data.path, run_config.data.eval_path) if path]
    digests = {path: provenance.sha256(path) for path in paths}
    return provenance.describe(config=content, data=digests)


def check(workdir: epath.Path, run: dict[str, Any]) -> None:
    """Raises ValueError if the workdir holds a run of another config or of changed data."""
    path = workdir / "run.json"
    if not path.exists():
        return
    before = json.loads(path.read_text(encoding="utf-8"))
    if "train" not in before.get("config", {}):
        raise ValueError(f"{workdir} is not a training workdir; choose another --workdir")
    changed = [
        f"{name}: {difference}"
        for name, difference in provenance.differences(before["config"], run["config"]).items()
        if name.partition(".")[0] in SAME_RUN and name not in MAY_CHANGE
    ]
    changed += [
        f"{name} has changed"
        for name, digest in run["data"].items()
        if before["data"].get(name, digest) != digest
    ]
    if changed:
        raise ValueError(
            f"{workdir} belongs to another run ({'; '.join(changed)}); "
            "choose another --workdir or delete it"
        )


def make(workdir: epath.Path, run_config: RunConfig, run: dict[str, Any]) -> None:
    """Writes config, tokenizer and `run.json`; called once all input has been checked."""
    if processes.is_first():
        workdir.mkdir(parents=True, exist_ok=True)
        model_folder.copy_model_files(run_config.model.checkpoint, workdir)
        provenance.write_json(workdir / "run.json", run)
    processes.barrier("workdir made")


def finish(workdir: epath.Path) -> None:
    """Records the end of the run in its `run.json`, once."""
    if not processes.is_first():
        return
    run = json.loads((workdir / "run.json").read_text(encoding="utf-8"))
    if not run["end"]:
        provenance.write_json(workdir / "run.json", run | {"end": provenance.now()})
