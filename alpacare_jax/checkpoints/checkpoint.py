"""Finding, verifying and loading saved steps, on disk or in a bucket.

A model directory, written by `convert` or by `train`, contains:

    config.json, tokenizer files ...      as in a Hugging Face model folder
    checkpoints/STEP/params               Orbax; a converted model is step 0
    checkpoints/STEP/opt_state            written by training only
    checkpoints/STEP/manifest.json        sizes and checksums of all files; written last
    checkpoints/changing.json             steps that are being written or removed at this moment
"""

import json
import math
import sys
from collections.abc import Iterable
from pathlib import PurePath
from typing import Any

import jax
import jax.numpy as jnp
from etils import epath
from orbax.checkpoint import v1 as ocp

from alpacare_jax.checkpoints import digests, finite
from alpacare_jax.checkpoints.digests import DamagedError, Manifest
from alpacare_jax.distributed import processes
from alpacare_jax.model import params as params_lib
from alpacare_jax.model.config import LlamaConfig
from alpacare_jax.model.llama import Params
from common import messages, paths, provenance
from common.sections import UsageError

CHANGING = "changing.json"


def steps_folder(directory: str | PurePath) -> epath.Path:
    """Where a model directory has its steps."""
    return paths.absolute(directory) / "checkpoints"


def mark_changing(folder: epath.Path, steps: Iterable[int]) -> None:
    """Records the steps whose folders are about to be written or removed; none: deletes the record.

    A step without a manifest is then either in this record, cut off by a kill and safe to delete,
    or it was damaged later, which is reported.
    """
    if steps := list(steps):
        provenance.write_text(folder / CHANGING, json.dumps(steps))
    else:
        (folder / CHANGING).unlink(missing_ok=True)


def unfinished_steps(folder: epath.Path) -> list[int]:
    """Steps whose writing or removal was cut off, or is in progress; some may be gone."""
    try:
        noted = [int(step) for step in json.loads((folder / CHANGING).read_text(encoding="utf-8"))]
    except FileNotFoundError:
        return []
    except (ValueError, TypeError, OverflowError, RecursionError):
        raise DamagedError(f"{folder / CHANGING} is damaged; delete it") from None
    return [step for step in noted if not (folder / str(step) / digests.NAME).exists()]


def saved_steps(folder: epath.Path) -> list[int]:
    """The steps in a folder, ascending, without `unfinished_steps`; some may be damaged."""
    if not folder.exists():
        return []
    names = [path.name for path in folder.iterdir()]
    steps = sorted(int(name) for name in names if name.isdecimal() and name == str(int(name)))
    unfinished = unfinished_steps(folder) if CHANGING in names else []
    return [step for step in steps if step not in unfinished]


def manifests(folder: epath.Path) -> tuple[dict[int, Manifest], dict[int, str]]:
    """The manifests of the saved steps, ascending, and what is wrong where one cannot be read."""
    found, damaged = {}, {}
    for step in saved_steps(folder):
        try:
            found[step] = digests.read(folder / str(step))
        except DamagedError as error:
            damaged[step] = str(error)
    return found, damaged


def eval_loss(manifest: Manifest) -> float:
    """The held-out loss of a step, infinity where it was not evaluated."""
    return manifest.metrics.get("eval_loss", math.inf)


def best_step(found: dict[int, Manifest]) -> int:
    """The step of the lowest held-out loss, the latest of several; without any, the latest step."""
    return min(sorted(found, reverse=True), key=lambda step: eval_loss(found[step]))


def latest_step(directory: str | PurePath) -> int | None:
    """The last step whose save is complete, None if there is none; its files are not read."""
    return max(manifests(steps_folder(directory))[0], default=None)


def find_step(directory: str | PurePath, step: str = "best") -> int:
    """Resolves `best` (lowest eval loss, else latest), `latest` or a number to a saved step.

    Raises:
      FileNotFoundError: no step is saved.
      DamagedError: the step, or one that may be the best, is damaged.
      ValueError: the step is not saved.
    """
    folder = steps_folder(directory)
    found, damaged = manifests(folder)
    steps = sorted([*found, *damaged])
    if not steps:
        converted = not any(epath.Path(directory).glob("*.safetensors"))
        advice = "" if converted else ": a Hugging Face folder; convert it first, with from_hf"
        raise FileNotFoundError(f"{directory} has no complete checkpoint{advice}")
    if step == "best" and damaged:
        raise _damaged(folder, max(damaged), damaged[max(damaged)])
    if step == "best":
        return best_step(found)
    if step != "latest" and step not in map(str, steps):
        raise UsageError(f"no step {step!r} in {directory}; choose from {steps}, best, latest")
    number = steps[-1] if step == "latest" else int(step)
    if number in damaged:
        raise _damaged(folder, number, damaged[number])
    return number


def problem(folder: epath.Path, part: str = "") -> str:
    """What is wrong with the step in a folder; "" if it is whole.

    Names and sizes of all files are compared, and the content of those in `part`. Each
    process reads its share of them, and all get the same answer.
    """
    own, text = _first_problem(folder, part, jax.process_index(), jax.process_count())
    worst = processes.smallest_of_all(own)
    if 0 <= worst < own:  # all look at the file that another process found
        _, text = _first_problem(folder, part, int(worst), sys.maxsize)
    return text if worst == math.inf or text else "files are damaged, as another process reads them"


def _first_problem(folder: epath.Path, part: str, index: int, count: int) -> tuple[float, str]:
    """The number of the first file that is wrong, and what is wrong; (infinity, "") if nothing.

    Only every `count`-th file from `index` on is read. -1 is the manifest, or the list of files.
    """
    try:
        manifest = digests.read(folder)
    except DamagedError as error:
        return -1, str(error)
    # Hosts other than the first may see an older listing of a shared folder.
    if index == 0 and (text := digests.missing_or_extra(folder, manifest)):
        return -1, text
    names = sorted(name for name in manifest.files if name.startswith(part) or "/" not in name)
    if name := digests.first_damaged(folder, manifest, names[index::count]):
        return names.index(name), f"{name} is damaged: its checksum differs"
    return math.inf, ""


def _damaged(folder: epath.Path, step: int, text: str, part: str = "") -> DamagedError:
    """The error for a damaged step, which names those that are whole."""
    others = [other for other in saved_steps(folder) if other != step]
    whole = [s for s in others if not _first_problem(folder / str(s), part, 0, 1)[1]]
    remedy = f"whole steps: {whole}" if whole else "no other is whole; copy or make it again"
    return DamagedError(f"step {step} in {folder} is damaged: {text}; {remedy}")


def newest_whole(directory: str | PurePath) -> int:
    """The step that training resumes from, 0 to begin; newer ones are damaged, and reported.

    All processes verify it together, and agree on it.

    Raises:
      DamagedError: there are steps, and none is whole.
    """
    folder, damaged = steps_folder(directory), {}
    # One process may see an older state of a shared folder than another.
    steps = saved_steps(folder) if processes.is_first() else []
    while step := int(processes.broadcast_from_process_0(steps[-1] if steps else 0)):
        if not (text := problem(folder / str(step))):
            break
        damaged[step] = text
        steps = steps[:-1]
    if damaged:
        found = "; ".join(f"step {number}: {text}" for number, text in damaged.items())
        if not step:
            raise DamagedError(
                f"no step in {folder} is whole ({found}); copy it again, or delete it to train "
                "from the beginning"
            )
        if processes.is_first():
            messages.log(f"damaged steps in {folder} are skipped: {found}")
    return step


def weights_digest(directory: str | PurePath, step: int) -> str:
    """Digest of the values and dtypes of a step's weights, by which they are compared with others.

    Raises:
      DamagedError: the step's manifest cannot be read.
    """
    folder = steps_folder(directory)
    try:
        return digests.read(folder / str(step)).weights
    except DamagedError as error:
        raise _damaged(folder, step, str(error)) from None


def stored_weights(
    directory: str | PurePath, config: params_lib.Weighted, step: str = "best"
) -> tuple[epath.Path, dict[str, Any]]:
    """The folder of a saved step, verified, and weight path -> metadata with shape and dtype.

    Raises:
      DamagedError: a file of the step is not as it was written; it is named.
      ValueError: a stored weight is missing, extra or misshapen for `config`; it is named.
    """
    folder, number = steps_folder(directory), find_step(directory, step)
    path = folder / str(number)
    if text := problem(path, "params/"):
        raise _damaged(folder, number, text, "params/")
    stored = params_lib.flatten(ocp.metadata(path, "params").metadata)
    expected = params_lib.flatten(params_lib.abstract(config))
    if isinstance(config, LlamaConfig) and any(name.endswith("_lora_b") for name in stored):
        raise ValueError(
            f"{directory} holds an adapter, not a model: give its base as the model and "
            f"--adapter={directory}, or merge them, with convert merge"
        )
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
    config: params_lib.Weighted,
    *,
    step: str = "best",
    dtype: jnp.dtype | None = None,
    shardings: Params | None = None,
) -> Params:
    """Restores the weights of a model directory.

    Args:
      dtype: dtype to cast to while reading; None keeps the stored dtype of each array.
      shardings: tree of NamedSharding; None places everything on the first device.

    Raises: as `stored_weights`, and ValueError if a weight is NaN or infinite; it is named.
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
    params = ocp.load(path, target, checkpointable_name="params")
    if unusable := finite.unusable(params):
        raise ValueError(f"{path}: weight {unusable}; {finite.TAKE_ANOTHER}")
    return params


def save_params(directory: str | PurePath, params: Params) -> None:
    """Writes the weights as step 0 of a model directory, which has its `config.json` already."""
    path = steps_folder(directory) / "0"
    ocp.save_checkpointables(path, {"params": params})
    digests.write(path, Manifest(0, {}, finite.weights_digest(params), {}))
