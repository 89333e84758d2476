"""A training run's folder: which run it belongs to, and the files it has from the start."""

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

from etils import epath

from alpacare_jax.checkpoints import identity, model_folder
from alpacare_jax.distributed import processes
from alpacare_jax.training.config import RunConfig
from alpacare_jax.training.console import log
from common import provenance, sections

SAME_RUN = ("model", "lora", "data", "optimizer", "train", "preference")
"""Config sections that determine the numbers: a run resumes only with the same ones."""

MAY_CHANGE = (
    "model.remat",  # this and the next three: memory against time
    "model.loss_tokens",
    "train.microbatch_tokens",
    "optimizer.offload",
    "model.attention",  # all kernels give the same, up to rounding
    "train.check_kernel",
    "train.log_every",
    "train.eval_every",
    "train.samples",
    "train.tensorboard",
    "train.wandb",
)
"""Keys of those sections that may differ when a run resumes."""

BY_CONTENT = ("model.checkpoint", "data.path", "data.eval_path")
"""Keys whose paths may change, too: what they lead to must not."""

ENVIRONMENT = ("git_commit", "python", "packages", "host")
"""What `run.json` has of each start, beside its time, step and changed settings."""


def describe(run_config: RunConfig) -> dict[str, Any]:
    """The content of this run's `run.json`."""
    config = json.loads(json.dumps(dataclasses.asdict(run_config)))  # tuples become lists
    data = run_config.data
    inputs = identity.of_inputs(run_config.model.checkpoint, data.path, data.eval_path)
    return provenance.describe(config=config, inputs=inputs)


def check(workdir: epath.Path, run: dict[str, Any]) -> None:
    """Raises ValueError if the workdir holds another run, or one of other data or base model."""
    before = provenance.read_record(workdir / "run.json")
    if not before:
        checkpoints, base = workdir / "checkpoints", run["inputs"]["model"]
        found = ["checkpoints"] if checkpoints.is_dir() and any(checkpoints.iterdir()) else []
        files = identity.of_files(workdir)  # those of another model would be overwritten
        if found := [*found, *(name for name in files if files[name] != base.get(name))]:
            raise ValueError(
                f"{workdir} has {found[0]} but no run.json, which records the run it belongs to; "
                "restore it from a copy, or choose another --workdir"
            )
        return
    starts = before.get("starts")
    whole = isinstance(starts, list) and all(isinstance(start, dict) for start in starts)
    if not (whole and {"config", "inputs"} <= before.keys() and "train" in before["config"]):
        raise ValueError(
            f"{workdir} is not a training workdir, or its run.json is damaged; choose another "
            "--workdir, or restore the file from a copy"
        )
    changed = {
        name: difference
        for name, difference in provenance.differences(before["config"], run["config"]).items()
        if name.partition(".")[0] in SAME_RUN and name not in (*MAY_CHANGE, *BY_CONTENT)
    }
    for name, difference in provenance.differences(before["inputs"], run["inputs"]).items():
        changed[f"content of {name}"] = difference
    copied = {
        name.removeprefix("model."): digest
        for name, digest in sections.flatten(before["inputs"]).items()
        if name.startswith("model.") and name != "model.weights"
    }
    for name, difference in provenance.differences(copied, identity.of_files(workdir)).items():
        changed[f"content of {workdir / name}"] = difference
    if changed:
        raise ValueError(
            f"{workdir} belongs to another run ({provenance.as_text(changed)}); "
            "choose another --workdir or delete it"
        )


def make(
    workdir: epath.Path,
    run_config: RunConfig,
    run: dict[str, Any],
    step: int,
    remat: Mapping[str, Any] | None = None,
) -> None:
    """Adds a start at `step` to `run.json`, and prints how it differs from the start before.

    At step 0 config and tokenizer are copied. Called once all input has been checked.

    Args:
      remat: what `model.remat=auto` has chosen.
    """
    if processes.is_first():
        before = provenance.read_record(workdir / "run.json")
        if not step:
            workdir.mkdir(parents=True, exist_ok=True)
            model_folder.copy_model_files(run_config.model.checkpoint, workdir)
        content, starts = before if step else run, before.get("starts", [])
        config, now = (sections.flatten(record["config"]) for record in (content, run))
        start = {"time": run["start"], "step": step} | {key: run[key] for key in ENVIRONMENT}
        start["settings"] = {key: value for key, value in now.items() if config.get(key) != value}
        if remat:
            start["settings"]["model.remat"] = remat["policy"]
            start["remat"] = dict(remat)
        provenance.write_json(workdir / "run.json", content | {"starts": [*starts, start]})
        if starts and (changes := _changes(before["config"], starts[-1], start)):
            log(f"since the start before: {changes}")
    processes.barrier("workdir made")


def _changes(config: dict[str, Any], before: dict[str, Any], now: dict[str, Any]) -> str:
    """What differs between two starts of a run: "jax 0.10.2 before, 0.11.2 now"."""
    old, new = (
        sections.flatten(config)
        | start.get("settings", {})
        | {key: start.get(key) for key in ENVIRONMENT}
        for start in (before, now)
    )
    return ", ".join(
        f"{name.removeprefix('packages.')} {change.replace(chr(39), '')}"
        for name, change in provenance.differences(old, new).items()
    )


def finish(workdir: epath.Path) -> None:
    """Records the end of the run in its `run.json`, once."""
    if not processes.is_first():
        return
    run = provenance.read_record(workdir / "run.json")
    if not run.get("end"):
        provenance.write_json(workdir / "run.json", run | {"end": provenance.now()})
