"""Converts weights: Hugging Face safetensors both ways, GGUF in; LoRA adapters merged, and out.

    python -m alpacare_jax.convert from_hf   --source=HF_FOLDER  --target=MODEL_DIR
    python -m alpacare_jax.convert to_hf     --source=MODEL_DIR  --target=HF_FOLDER
    python -m alpacare_jax.convert from_gguf --source=FILE.gguf  --target=MODEL_DIR
    python -m alpacare_jax.convert to_peft   --source=WORKDIR    --target=ADAPTER_FOLDER
    python -m alpacare_jax.convert merge     --source=BASE --target=MODEL_DIR --adapter=WORKDIR

GGUF is read with the tokenizers of LLaMA 1 to 3 and SmolLM2, not with RoPE scaling (LLaMA 3.1 and
later). Layouts, names and shapes all come from `params.WEIGHTS`. A target appears only when it is
complete.
"""

import contextlib
import json
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePath
from typing import Any

import jax.numpy as jnp
import numpy as np
from absl import flags
from etils import epath

from alpacare_jax.checkpoints import (
    adapters,
    checkpoint,
    hf_weights,
    identity,
    layerwise,
    model_folder,
    safetensors_file,
)
from alpacare_jax.checkpoints.hf_weights import AssignedTensor
from alpacare_jax.model import params
from alpacare_jax.model.config import LlamaConfig
from common import cli, paths, provenance
from common.messages import heartbeat
from common.sections import UsageError

MAX_SHARD_BYTES = 5_000_000_000
"""The default of transformers."""

PATH_KEYS = ("_file", "name_or_path")
"""Ends of keys under which transformers noted where it had loaded a file from."""


@contextlib.contextmanager
def _new_model(
    direction: str,
    source: PurePath,
    files: Sequence[Path],
    target: Path,
    checked: Sequence[AssignedTensor],
    config: LlamaConfig,
) -> Iterator[Path]:
    """A model directory; the weights, dtypes unchanged, are added to what the block writes.

    Its `run.json` has the digests of `files`, which hold the weights.
    """
    dtypes = {weight.path: tensor.dtype for weight, _, tensor in checked}
    sizes = [tensor.nbytes for *_, tensor in checked]
    with model_folder.new_directory(target, sum(sizes)) as partial:
        yield partial
        with layerwise.Writer(partial, config, dtypes) as store:

            def convert(assigned: AssignedTensor) -> None:
                weight, layer, tensor = assigned
                array = params.from_hf_layout(weight, tensor.read(), config)
                store.write(weight, layer, layerwise.contiguous(array))

            with hf_weights.digests(files) as sums:
                layerwise.for_each(convert, checked, max(sizes))
        command = f"convert {direction}"
        _write_record(partial, command=command, source=str(source), source_sha256=sums)


def from_hf(source: Path, target: Path) -> None:
    """Converts a Hugging Face folder to a model directory, each weight in its stored dtype.

    Raises:
      ValueError, OSError: source and target are checked before anything is written.
    """
    config = model_folder.read_config(source)
    files = hf_weights.files(source)
    tensors, of_keys = hf_weights.tensors(files)
    checked, of_settings = hf_weights.assign(tensors, config), model_folder.check_files(source)
    with _new_model("from_hf", source, files, target, checked, config) as partial:
        model_folder.copy_model_files(source, partial)
    for note in filter(None, (of_keys, of_settings)):
        print(note, file=sys.stderr)


def from_gguf(source: Path, target: Path) -> None:
    """As `from_hf`, of a GGUF file: weights dequantised to float32, the tokenizer is rebuilt."""
    from alpacare_jax.checkpoints import gguf_file

    model = gguf_file.open_gguf(source)
    config = LlamaConfig.from_hf(model.config)
    checked, tokenizer_files = hf_weights.assign(model.tensors(), config), model.files()
    with _new_model("from_gguf", source, [source], target, checked, config) as partial:
        for name, content in tokenizer_files.items():
            if isinstance(content, bytes):
                (partial / name).write_bytes(content)
            else:
                provenance.write_json(partial / name, content)
        model_folder.load_tokenizer(partial)


def to_hf(source: PurePath, target: Path, step: str, dtype: str) -> None:
    """Converts a model directory to a Hugging Face folder that transformers opens unchanged.

    Args:
      source: may be in a bucket.
      dtype: dtype to cast to; "" keeps that of each weight.

    Raises: as `from_hf`, but a number too large for `dtype` is found while converting.
    """
    config = model_folder.read_config(source)
    with heartbeat("verifying the checkpoint"):
        arrays = layerwise.open_arrays(source, config, step)
    cast = {path: jnp.dtype(dtype) if dtype else a.dtype.numpy_dtype for path, a in arrays.items()}
    specs = {
        key: (cast[weight.path], params.hf_shape(weight, config))
        for key, (weight, _) in hf_weights.by_key(config).items()
    }
    total = sum(safetensors_file.nbytes(spec) for spec in specs.values())
    with model_folder.new_directory(target, total) as partial:
        with safetensors_file.FolderWriter(partial, specs, MAX_SHARD_BYTES) as writer:

            def convert(piece: layerwise.Piece) -> None:
                for layer, array in piece.read():
                    key = piece.weight.hf_key.format(layer)
                    array = _cast(key, array, specs[key][0])
                    tensor = params.to_hf_layout(piece.weight, array, config)
                    writer.write(key, layerwise.contiguous(tensor))

            pieces = layerwise.pieces(arrays, config)
            layerwise.for_each(convert, pieces, max(piece.nbytes for piece in pieces))
        model_folder.copy_model_files(source, partial)
        dtypes = {str(dtype) for dtype in cast.values()}
        _set_dtype(partial / "config.json", dtypes.pop() if len(dtypes) == 1 else "float32")
        _remove_paths(partial)
        model = identity.of_model(source, checkpoint.find_step(source, step))
        _write_record(partial, public=True, command="convert to_hf", model=model)


def merge(source: PurePath, adapter_folder: PurePath, target: Path, step: str) -> None:
    """Adds an adapter's updates to its base: a model directory, in the dtypes of the base.

    Args:
      step: of the adapter, where it is a workdir.

    Raises: as `adapters.open_adapter` and `to_hf`; ValueError if the adapter is of another base.
    """
    config = model_folder.read_config(source)
    adapter = adapters.open_adapter(adapter_folder, step)
    adapter.require_base(source)
    factors = adapters.Update(adapter.lora, adapter.load(config, jnp.float32))
    with heartbeat("verifying the checkpoint"):
        arrays = layerwise.open_arrays(source, config, "best")
    dtypes = {path: array.dtype.numpy_dtype for path, array in arrays.items()}
    pieces = layerwise.pieces(arrays, config)
    with model_folder.new_directory(target, sum(piece.nbytes for piece in pieces)) as partial:
        model_folder.copy_model_files(source, partial)
        with layerwise.Writer(partial, config, dtypes) as store:

            def add(piece: layerwise.Piece) -> None:
                for layer, array in piece.read():
                    store.write(piece.weight, layer, factors.added(piece.weight, layer, array))

            layerwise.for_each(add, pieces, max(piece.nbytes for piece in pieces))
        model = identity.of_model(source)
        _write_record(partial, command="convert merge", model=model, adapter=adapter.identity())


def to_peft(source: PurePath, target: Path, step: str, base_name: str) -> None:
    """Writes the adapter of a training run with LoRA as peft does.

    Args:
      base_name: what peft is to load as the base, such as a name on the Hub; "" for nothing.

    Raises:
      FileNotFoundError, ValueError: `source` holds no adapter, or its weights are damaged.
    """
    adapter = adapters.open_adapter(source, step)
    model = model_folder.read_config(source)
    weights = adapter.load(model, jnp.float32)
    config = adapter.lora.adapter(model)
    with model_folder.new_directory(target, 4 * params.count(config)) as partial:
        adapters.write_peft(partial, adapter.lora, config, weights, base_name)
        base = {"weights": adapter.base, "held_in": adapter.lora.base}
        _write_record(
            partial, public=True, command="convert to_peft", base=base, adapter=adapter.identity()
        )


def _cast(key: str, array: np.ndarray, dtype: np.dtype) -> np.ndarray:
    try:
        with np.errstate(over="raise"):
            return array.astype(dtype, copy=False)
    except FloatingPointError:
        raise ValueError(
            f"{key} has values outside the range of {dtype}; choose another --dtype"
        ) from None


def _set_dtype(config_path: Path, dtype: str) -> None:
    """Names the stored dtype in config.json: transformers 5 casts to the dtype it finds there."""
    content = json.loads(config_path.read_text(encoding="utf-8"))
    keys = [key for key in ("dtype", "torch_dtype") if key in content] or ["dtype"]
    if any(content.get(key) != dtype for key in keys):
        provenance.write_json(config_path, content | dict.fromkeys(keys, dtype))


def _remove_paths(directory: Path) -> None:
    """Removes from a release the folders that the model was loaded from before."""
    for name in ("config.json", "tokenizer_config.json"):
        if not (path := directory / name).is_file():
            continue
        content = provenance.read_json(path)
        kept = {
            key: value
            for key, value in content.items()
            if not (key.endswith(PATH_KEYS) and re.search(r"[/\\]", str(value)))
        }
        if kept != content:
            provenance.write_json(path, kept)


def _write_record(directory: Path, *, public: bool = False, **content: Any) -> None:
    record = provenance.describe(**content) | {"end": provenance.now()}
    if public:
        del record["host"]
    provenance.write_json(directory / "run.json", record)


def main(argv: Sequence[str]) -> None:
    """Runs the command."""
    FLAGS = flags.FLAGS
    direction = " ".join(argv[1:])
    directions = ("from_hf", "to_hf", "from_gguf", "merge", "to_peft")
    if direction not in directions:
        raise UsageError(f"give one of {', '.join(directions)}, not {direction!r}")
    exports = direction in ("to_hf", "merge", "to_peft")
    if paths.in_bucket(FLAGS.target) or (paths.in_bucket(FLAGS.source) and not exports):
        raise UsageError(
            "only to_hf, merge and to_peft read from a bucket, and no direction writes to one: "
            "convert to a folder, then copy it (gcloud storage cp --recursive FOLDER gs://BUCKET/)"
        )
    paths.check(FLAGS.source, FLAGS.adapter)
    paths.require(FLAGS.source)
    source, target = Path(FLAGS.source), Path(paths.absolute(FLAGS.target))
    if direction == "from_hf":
        from_hf(source, target)
    elif direction == "from_gguf":
        from_gguf(source, target)
    elif direction == "merge":
        if not FLAGS.adapter:
            raise UsageError("merge needs --adapter, a workdir of train or a folder of peft's")
        merge(epath.Path(FLAGS.source), epath.Path(FLAGS.adapter), target, FLAGS.step)
    elif direction == "to_peft":
        to_peft(epath.Path(FLAGS.source), target, FLAGS.step, FLAGS.base_name)
    else:
        to_hf(epath.Path(FLAGS.source), target, FLAGS.step, FLAGS.dtype)
    size = sum(f.stat().st_size for f in target.rglob("*") if f.is_file())
    print(f"{FLAGS.target}: {size / 1e6:,.0f} MB", file=sys.stderr)


if __name__ == "__main__":
    flags.DEFINE_string(
        "source",
        None,
        "Hugging Face folder, model directory or GGUF file. GGUF: the tokenizers of LLaMA 1 to 3 "
        "and SmolLM2, no RoPE scaling.",
    )
    flags.DEFINE_string("target", None, "Folder to create; must not exist, or be empty.")
    flags.DEFINE_string(
        "step", "best", "to_hf, to_peft, merge: best, latest or the number of a saved step."
    )
    flags.DEFINE_string("adapter", "", "merge: LoRA adapter, workdir of train or peft's folder.")
    flags.DEFINE_string("base_name", "", "to_peft: what peft is to load as the adapter's base.")
    flags.DEFINE_enum(
        "dtype", "", ["", "float32", "bfloat16", "float16"], "to_hf: cast to it; default: keep."
    )
    flags.mark_flags_as_required(["source", "target"])
    cli.run(main, positional=True, output="target")
