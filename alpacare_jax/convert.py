"""Weights in and out: Hugging Face safetensors both ways, and GGUF in.

    python -m alpacare_jax.convert from_hf   --source=HF_FOLDER  --target=MODEL_DIR
    python -m alpacare_jax.convert to_hf     --source=MODEL_DIR  --target=HF_FOLDER
    python -m alpacare_jax.convert from_gguf --source=FILE.gguf  --target=MODEL_DIR

Layouts, names and shapes all come from `params.WEIGHTS`. A target appears only when it is whole.
"""

import contextlib
import json
import os
import platform
import re
import shutil
import sys
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import jax.numpy as jnp
import numpy as np
from absl import flags
from etils import epath

from alpacare_jax.checkpoints import layerwise, model_folder, safetensors_file
from alpacare_jax.checkpoints.safetensors_file import Tensor
from alpacare_jax.model import params
from alpacare_jax.model.config import LlamaConfig
from alpacare_jax.model.llama import Params
from alpacare_jax.model.params import WeightSpec
from common import cli, paths, provenance

MAX_SHARD_BYTES = 5_000_000_000
"""transformers' own default shard size."""

IGNORED_KEYS = re.compile(r"model\.layers\.\d+\.self_attn\.rotary_emb\.inv_freq")
"""Buffers that old LLaMA-1 conversions saved; they follow from the config."""


@contextlib.contextmanager
def new_directory(target: Path, need_bytes: int) -> Iterator[Path]:
    """A folder beside `target` that takes its name once the block ends well, else goes away.

    Raises:
      OSError: the target exists, or the disk has not `need_bytes` free.
    """
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise FileExistsError(f"{target} exists; choose another --target or delete it")
    target.parent.mkdir(parents=True, exist_ok=True)
    _remove_dead(target)
    free = shutil.disk_usage(target.parent).free
    if free < need_bytes:
        raise OSError(
            f"{target.parent} has {free / 1e9:.1f} GB free, the result needs "
            f"{need_bytes / 1e9:.1f} GB; free space or choose another --target"
        )
    prefix = f"{_partial_prefix(target)}{os.getpid()}-"
    partial = Path(tempfile.mkdtemp(prefix=prefix, dir=target.parent))
    try:
        yield partial
        partial.chmod(0o755)
        os.replace(partial, target)  # an empty folder at the target is replaced
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _partial_prefix(target: Path) -> str:
    return f".{target.name}-partial-{platform.node()}-"


def _remove_dead(target: Path) -> None:
    """Removes what conversions to this target left that were killed on this machine."""
    prefix = _partial_prefix(target)
    for path in target.parent.iterdir():
        pid = path.name.removeprefix(prefix).split("-")[0]
        if not path.name.startswith(prefix) or not pid.isdigit():
            continue
        try:
            os.kill(int(pid), 0)  # signal 0 only asks whether the process lives
        except ProcessLookupError:
            shutil.rmtree(path, ignore_errors=True)
        except PermissionError:
            pass  # it lives, and is somebody else's


def read_hf(source: Path) -> list[Tensor]:
    """Every tensor in a Hugging Face folder, single file or sharded; still on disk."""
    index, single = source / "model.safetensors.index.json", source / "model.safetensors"
    if index.is_file():
        files = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    elif single.is_file():
        files = [single.name]
    else:
        raise FileNotFoundError(f"{source} has neither {single.name} nor {index.name}")
    result = []
    for name in files:
        if not (source / name).is_file():
            raise FileNotFoundError(f"{source} lacks {name}, which {index.name} lists")
        result += safetensors_file.tensors(source / name)
    return result


def hf_places(config: LlamaConfig) -> dict[str, tuple[WeightSpec, int | None]]:
    """Hugging Face key -> weight and layer, in the order of a Hugging Face file."""
    return {
        weight.hf_key.format(layer): (weight, layer)
        for layer in [None, *range(config.num_hidden_layers)]
        for weight in params.weight_specs(config)
        if weight.stacked == (layer is not None)
    }


def check(
    tensors: Iterable[Tensor], config: LlamaConfig
) -> list[tuple[WeightSpec, int | None, Tensor]]:
    """Says where each tensor belongs, before any of them is read.

    Raises:
      ValueError: a key is missing, left over, twice there, misshapen or of another dtype.
    """
    places, tied = hf_places(config), None
    found: dict[str, Tensor] = {}
    dtypes: dict[str, np.dtype] = {}
    for tensor in tensors:
        key = tensor.key
        if IGNORED_KEYS.fullmatch(key):
            continue
        if key == "lm_head.weight" and config.tie_word_embeddings:
            tied = tensor  # some tied models save the same matrix twice
            continue
        if key not in places:
            raise ValueError(f"left-over key {key}: config.json does not describe this model")
        if key in found:
            raise ValueError(f"{key} is there twice, in two files")
        weight, _ = places[key]
        if tensor.shape != params.hf_shape(weight, config):
            raise ValueError(
                f"{key} has shape {tensor.shape}, config.json asks for "
                f"{params.hf_shape(weight, config)}"
            )
        if dtypes.setdefault(weight.path, tensor.dtype) != tensor.dtype:
            raise ValueError(f"{key} is {tensor.dtype}, other layers {dtypes[weight.path]}")
        found[key] = tensor
    if missing := [key for key in places if key not in found]:
        raise ValueError(f"{len(missing)} missing keys, the first is {missing[0]}")
    if tied and not np.array_equal(tied.read(), found["model.embed_tokens.weight"].read()):
        raise ValueError(
            "config.json ties the embeddings, but lm_head.weight differs from the input embedding; "
            "set tie_word_embeddings to false there"
        )
    return [(*places[key], tensor) for key, tensor in found.items()]


def params_to_hf(tree: Params, config: LlamaConfig) -> Iterator[tuple[str, np.ndarray]]:
    """(key, tensor) in Hugging Face's names and layouts, layer by layer."""
    flat = params.flatten(tree)
    for key, (weight, layer) in hf_places(config).items():
        array = flat[weight.path] if layer is None else flat[weight.path][layer]
        yield key, params.to_hf_layout(weight, np.asarray(array), config)


def _write_weights(
    directory: Path, checked: list[tuple[WeightSpec, int | None, Tensor]], config: LlamaConfig
) -> None:
    """Tensors in Hugging Face's layout -> step 0 of a model directory, in their own dtype."""
    dtypes = {weight.path: tensor.dtype for weight, _, tensor in checked}
    with layerwise.Writer(directory, config, dtypes) as store:

        def convert(place: tuple[WeightSpec, int | None, Tensor]) -> None:
            weight, layer, tensor = place
            array = params.from_hf_layout(weight, tensor.read(), config)
            store.write(weight, layer, layerwise.contiguous(array))

        largest = max(tensor.nbytes for *_, tensor in checked)
        layerwise.for_each(convert, checked, largest)


def from_hf(source: Path, target: Path) -> None:
    """Hugging Face folder -> model directory, each weight in its stored dtype."""
    config = model_folder.read_config(source)
    checked = check(read_hf(source), config)
    model_folder.load_tokenizer(source)
    with new_directory(target, sum(tensor.nbytes for *_, tensor in checked)) as partial:
        model_folder.copy_model_files(source, partial)
        _write_weights(partial, checked, config)
        _record(partial, "from_hf", source)


def to_hf(source: Path, target: Path, step: str, dtype: str) -> None:
    """Model directory -> Hugging Face folder that transformers opens unchanged."""
    config = model_folder.read_config(source)
    arrays = layerwise.open_arrays(source, config, step)
    cast = {path: jnp.dtype(dtype) if dtype else a.dtype.numpy_dtype for path, a in arrays.items()}
    specs = {
        key: (cast[weight.path], params.hf_shape(weight, config))
        for key, (weight, _) in hf_places(config).items()
    }
    total = sum(safetensors_file.nbytes(spec) for spec in specs.values())
    with new_directory(target, total) as partial:
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
        _record(partial, "to_hf", source)


def _cast(key: str, array: np.ndarray, dtype: np.dtype) -> np.ndarray:
    try:
        with np.errstate(over="raise"):
            return array.astype(dtype, copy=False)
    except FloatingPointError:
        raise ValueError(f"{key} has numbers beyond {dtype}; choose another --dtype") from None


def _set_dtype(config_path: Path, dtype: str) -> None:
    """transformers 5 casts to the dtype that config.json names, so it must name the right one."""
    content = json.loads(config_path.read_text(encoding="utf-8"))
    keys = [key for key in ("dtype", "torch_dtype") if key in content] or ["dtype"]
    if any(content.get(key) != dtype for key in keys):
        provenance.write_json(config_path, content | dict.fromkeys(keys, dtype))


def _record(directory: Path, direction: str, source: Path) -> None:
    record = provenance.describe(command=f"convert {direction}", source=str(source))
    provenance.write_json(directory / "run.json", record | {"end": provenance.now()})


def from_gguf(source: Path, target: Path) -> None:
    """GGUF file -> model directory: weights dequantised to float32, tokenizer rebuilt."""
    from alpacare_jax.checkpoints import gguf_file

    model = gguf_file.open_gguf(source)
    config = LlamaConfig.from_hf(model.config)
    checked = check(model.tensors(), config)
    with new_directory(target, sum(tensor.nbytes for *_, tensor in checked)) as partial:
        for name, content in model.files().items():
            provenance.write_json(partial / name, content)
        model_folder.load_tokenizer(partial)
        _write_weights(partial, checked, config)
        _record(partial, "from_gguf", source)


def main(argv: Sequence[str]) -> None:
    FLAGS = flags.FLAGS
    if paths.in_bucket(FLAGS.target) or (paths.in_bucket(FLAGS.source) and "to_hf" not in argv):
        raise ValueError(
            "only to_hf reads from a bucket, and nothing converts into one: convert to a folder, "
            "then copy it (gcloud storage cp --recursive FOLDER gs://BUCKET/)"
        )
    paths.check(FLAGS.source)
    kind = epath.Path if paths.in_bucket(FLAGS.source) else Path
    source, target = kind(FLAGS.source), Path(FLAGS.target)
    if not source.exists():
        raise FileNotFoundError(f"no such --source: {source}")
    match argv[1:]:
        case ["from_hf"]:
            from_hf(source, target)
        case ["to_hf"]:
            to_hf(source, target, FLAGS.step, FLAGS.dtype)
        case ["from_gguf"]:
            from_gguf(source, target)
        case other:
            raise ValueError(f"give one of from_hf, to_hf, from_gguf, not {' '.join(other)!r}")
    size = sum(f.stat().st_size for f in target.rglob("*") if f.is_file())
    print(f"{target}: {size / 1e6:,.0f} MB", file=sys.stderr)


if __name__ == "__main__":
    flags.DEFINE_string("source", None, "What is converted.")
    flags.DEFINE_string("target", None, "The folder to make; it must not exist.")
    flags.DEFINE_string("step", "best", "to_hf: best, latest or the number of a saved step.")
    flags.DEFINE_enum(
        "dtype", "", ["", "float32", "bfloat16", "float16"], "to_hf: cast to it; empty keeps."
    )
    flags.mark_flags_as_required(["source", "target"])
    cli.run(main, positional=True)
