"""What a model is, and what a run reads, wherever the files are: digests of their content."""

from pathlib import PurePath
from typing import Any

from etils import epath

from alpacare_jax.checkpoints import checkpoint, model_folder
from alpacare_jax.distributed import processes
from common import messages, provenance, sections


def of_files(directory: str | PurePath) -> dict[str, str]:
    """Name -> SHA-256 of the config and tokenizer files of a model folder."""
    paths = [epath.Path(directory) / name for name in model_folder.MODEL_FILES]
    return {path.name: provenance.sha256(path) for path in paths if path.is_file()}


def of_model(directory: str | PurePath, step: int | None = None) -> dict[str, str]:
    """The digest of the weights saved at `step`, by default the best, and those of `of_files`.

    Files that are not as `run.json` has them, of a conversion or a training run, are reported.
    """
    step = checkpoint.find_step(directory) if step is None else step
    record, files = provenance.read_record(epath.Path(directory) / "run.json"), of_files(directory)
    written = sections.flatten({"model": record.get("files")} | record.get("inputs", {}))
    changed = [name for name in files if written.get(f"model.{name}", files[name]) != files[name]]
    if changed and processes.is_first():
        messages.log(
            f"{directory}: {', '.join(changed)} changed after the model was made; if nobody edited "
            "it, it is damaged: make the model again"
        )
    return {"weights": checkpoint.weights_digest(directory, step)} | files


def of_inputs(base: str, data: str, eval_data: str) -> dict[str, Any]:
    """What a training run reads, as its `run.json` records it; `eval_data` may be empty.

    Raises:
      FileNotFoundError: one of them does not exist.
    """
    return {
        "model": of_model(base),
        "data.path": provenance.sha256(data),
        "data.eval_path": provenance.sha256(eval_data) if eval_data else "",
    }
