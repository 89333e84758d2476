"""Models leave: as a Hugging Face folder, merged with an adapter, or as an adapter of peft's."""

import re
from pathlib import Path, PurePath
from typing import Any

import jax.numpy as jnp
import numpy as np

from alpacare_jax.checkpoints import adapters, checkpoint, identity, layerwise, model_folder
from alpacare_jax.formats import hf_weights, safetensors_file
from alpacare_jax.model import params
from common import provenance
from common.messages import heartbeat

PATH_KEYS = ("_file", "name_or_path")
"""Ends of keys under which transformers noted where it had loaded a file from."""


def to_hf(source: PurePath, target: Path, step: str, dtype: str, template: str = "") -> None:
    """Converts a model directory to a Hugging Face folder that transformers opens unchanged.

    Args:
      source: may be in a bucket.
      dtype: dtype to cast to; "" keeps that of each weight.
      template: its name; "": that of the model's training.

    Raises:
      ValueError, OSError: source and target are checked before anything is written, but a number
        too large for `dtype` is found while converting.
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
        with safetensors_file.FolderWriter(
            partial, specs, safetensors_file.MAX_SHARD_BYTES
        ) as writer:

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
        template = template or model_folder.trained_template(source)
        if template:
            model_folder.carry_template(partial, template)
        model_folder.set_dtype(
            partial / "config.json", dtypes.pop() if len(dtypes) == 1 else "float32"
        )
        _remove_paths(partial)
        model = identity.of_model(source, checkpoint.find_step(source, step))
        made = {"command": "convert to_hf", "model": model, "template": template}
        write_record(partial, public=True, **made)


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
        trained = model_folder.trained_template
        write_record(
            partial,
            command="convert merge",
            model=identity.of_model(source),
            adapter=adapter.identity(),
            template=trained(adapter_folder) or trained(source),
        )


def to_peft(source: PurePath, target: Path, step: str, base_name: str) -> None:
    """Writes the adapter of a training run with LoRA as peft does.

    Args:
      base_name: what peft is to load as the base, such as a name on the Hub; "" for nothing.

    Raises:
      FileNotFoundError, ValueError: `source` holds no adapter, or its weights are damaged, or it is
        in peft's form already.
    """
    adapter = adapters.open_adapter(source, step)
    if adapter.step is None:
        raise ValueError(f"{source} is in peft's form already; give a workdir of train")
    model = model_folder.read_config(source)
    weights = adapter.load(model, jnp.float32)
    config = adapter.lora.adapter(model)
    with model_folder.new_directory(target, 4 * params.count(config)) as partial:
        adapters.write_peft(partial, adapter.lora, config, weights, base_name)
        write_record(
            partial,
            public=True,
            command="convert to_peft",
            base={"weights": adapter.base, "held_in": adapter.lora.base},
            adapter=adapter.identity(),
            template=model_folder.trained_template(source),
        )


def _cast(key: str, array: np.ndarray, dtype: np.dtype) -> np.ndarray:
    try:
        with np.errstate(over="raise"):
            return array.astype(dtype, copy=False)
    except FloatingPointError:
        raise ValueError(
            f"{key} has values outside the range of {dtype}; choose another --dtype"
        ) from None


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


def write_record(directory: Path, *, public: bool = False, **content: Any) -> None:
    """Writes `run.json`; a `public` one does not name the host."""
    record = provenance.describe(**content) | {"end": provenance.now()}
    if public:
        del record["host"]
    provenance.write_json(directory / "run.json", record)
