"""A training run's folder: which run it belongs to, and what lies in it from the start."""

import dataclasses
import json
from typing import Any

from etils.epath import Path

from alpacare_jax.checkpoints import model_folder
from alpacare_jax.distributed import processes
from alpacare_jax.training.config import RunConfig
from common import provenance

SAME_RUN = ("model", "data", "optimizer", "train")
"""Config sections that decide the numbers: a workdir goes on only with the same ones."""

MAY_CHANGE = {
    *("model.remat", "model.loss_tokens", "train.microbatch_tokens"),  # memory against time
    "optimizer.offload",  # likewise
    "model.attention",  # rounding apart, all kernels give the same
    *("train.log_every", "train.eval_every", "train.tensorboard"),
}
"""Keys of those sections that may differ when a run goes on."""


def describe(config: RunConfig) -> dict[str, Any]:
    """The content of this run's `run.json`."""
    content = json.loads(json.dumps(dataclasses.asdict(config)))  # tuples become lists, as read
    paths = [path for path in (config.data.path, config.data.eval_path) if path]
    digests = {path: provenance.sha256(path) for path in paths}
    return provenance.describe(config=content, data=digests)


def check(workdir: Path, run: dict[str, Any]) -> None:
    """Raises ValueError where the workdir holds a run of another config or of changed data."""
    path = workdir / "run.json"
    if not path.exists():
        return
    before = json.loads(path.read_text(encoding="utf-8"))
    if "train" not in before.get("config", {}):
        raise ValueError(f"{workdir} is not a training workdir; choose another --workdir")
    changed = [
        f"{name}: {what}"
        for name, what in provenance.differences(before["config"], run["config"]).items()
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


def make(workdir: Path, config: RunConfig, run: dict[str, Any]) -> None:
    """Once nothing can be wrong with the input any more: config, tokenizer and `run.json`."""
    if processes.is_first():
        workdir.mkdir(parents=True, exist_ok=True)
        model_folder.copy_model_files(config.model.checkpoint, workdir)
        provenance.write_json(workdir / "run.json", run)
    processes.barrier("workdir made")


def finish(workdir: Path) -> None:
    """Notes the end of the run in its `run.json`, once."""
    run = json.loads((workdir / "run.json").read_text(encoding="utf-8"))
    if run["end"]:
        return
    provenance.write_json(workdir / "run.json", run | {"end": provenance.now()})
