"""Weights in and out: Hugging Face safetensors both ways, and GGUF in.

    python -m alpacare_jax.convert from_hf   --source=HF_FOLDER  --target=MODEL_DIR
    python -m alpacare_jax.convert to_hf     --source=MODEL_DIR  --target=HF_FOLDER
    python -m alpacare_jax.convert from_gguf --source=FILE.gguf  --target=MODEL_DIR

Layouts, names and shapes all come from `params.WEIGHTS`. A target appears only when it is whole.
"""

import contextlib
import json
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import jax.numpy as jnp
import ml_dtypes  # noqa: F401 - registers bfloat16 with numpy, for safetensors
import numpy as np
from absl import flags

from alpacare_jax import checkpoint, cli, params, provenance
from alpacare_jax.llama import Params
from alpacare_jax.llama_config import LlamaConfig

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
    free = shutil.disk_usage(target.parent).free
    if free < need_bytes:
        raise OSError(
            f"{target.parent} has {free / 1e9:.1f} GB free, the result needs "
            f"{need_bytes / 1e9:.1f} GB; free space or choose another --target"
        )
    partial = Path(tempfile.mkdtemp(prefix=f".{target.name}-partial-", dir=target.parent))
    try:
        yield partial
        partial.chmod(0o755)
        os.replace(partial, target)  # an empty folder at the target is replaced
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _read_shard(path: Path) -> Iterator[tuple[str, np.ndarray]]:
    """Tensors of one safetensors file, memory-mapped one at a time."""
    import safetensors

    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            for key in file.keys():  # noqa: SIM118 - not a dict
                yield key, file.get_tensor(key)
    except safetensors.SafetensorError as error:
        raise ValueError(
            f"{path} is truncated or not a safetensors file ({error}); download it again"
        ) from None


def read_hf(source: Path) -> Iterator[tuple[str, np.ndarray]]:
    """(key, tensor) of every tensor in a Hugging Face folder, single file or sharded."""
    index, single = source / "model.safetensors.index.json", source / "model.safetensors"
    if index.is_file():
        files = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    elif single.is_file():
        files = [single.name]
    else:
        raise FileNotFoundError(f"{source} has neither {single.name} nor {index.name}")
    for name in files:
        if not (source / name).is_file():
            raise FileNotFoundError(f"{source} lacks {name}, which {index.name} lists")
        yield from _read_shard(source / name)


def params_from_hf(tensors: Iterable[tuple[str, np.ndarray]], config: LlamaConfig) -> Params:
    """Stacks Hugging Face tensors into our parameter tree, in their own dtype.

    Raises:
      ValueError: a key is missing, left over, twice there, misshapen or of another dtype.
    """
    rows = {}
    for weight in params.weights(config):
        layers = range(config.num_hidden_layers) if weight.stacked else [None]
        rows |= {weight.hf_key.format(layer): (weight, layer) for layer in layers}
    result: dict[str, np.ndarray] = {}
    seen: set[str] = set()
    tied = None
    for key, tensor in tensors:
        if IGNORED_KEYS.fullmatch(key):
            continue
        if key == "lm_head.weight" and config.tie_word_embeddings:
            tied = tensor  # some tied models save the same matrix twice
            continue
        if key not in rows:
            raise ValueError(f"left-over key {key}: config.json does not describe this model")
        if key in seen:
            raise ValueError(f"{key} is there twice, in two files")
        weight, layer = rows[key]
        if tensor.shape != params.hf_shape(weight, config):
            raise ValueError(
                f"{key} has shape {tensor.shape}, config.json asks for "
                f"{params.hf_shape(weight, config)}"
            )
        array = params.from_hf_layout(weight, tensor, config)
        if weight.path not in result:
            result[weight.path] = np.empty(params.shape(weight, config), tensor.dtype)
        if result[weight.path].dtype != tensor.dtype:
            raise ValueError(f"{key} is {tensor.dtype}, other layers {result[weight.path].dtype}")
        result[weight.path][... if layer is None else layer] = array
        seen.add(key)
    if missing := [key for key in rows if key not in seen]:
        raise ValueError(f"{len(missing)} missing keys, the first is {missing[0]}")
    if tied is not None and not np.array_equal(tied, result["embed_tokens"]):
        raise ValueError(
            "config.json ties the embeddings, but lm_head.weight differs from the input embedding; "
            "set tie_word_embeddings to false there"
        )
    return params.tree(config, lambda w: result[w.path])


def params_to_hf(tree: Params, config: LlamaConfig) -> Iterator[tuple[str, np.ndarray]]:
    """(key, tensor) in Hugging Face's names and layouts, layer by layer."""
    flat = params.flatten(tree)
    for layer in [None, *range(config.num_hidden_layers)]:
        for weight in params.weights(config):
            if weight.stacked == (layer is not None):
                array = flat[weight.path] if layer is None else flat[weight.path][layer]
                yield (
                    weight.hf_key.format(layer),
                    params.to_hf_layout(weight, np.asarray(array), config),
                )


def from_hf(source: Path, target: Path) -> None:
    """Hugging Face folder -> model directory, each weight in its stored dtype."""
    config = checkpoint.read_config(source)
    size = sum(f.stat().st_size for f in source.glob("*.safetensors"))
    with new_directory(target, size) as partial:
        tree = params_from_hf(read_hf(source), config)
        checkpoint.copy_model_files(source, partial)
        checkpoint.load_tokenizer(partial)
        _finish(partial, tree, "from_hf", source)


def to_hf(source: Path, target: Path, step: str, dtype: str) -> None:
    """Model directory -> Hugging Face folder that transformers opens unchanged."""
    from safetensors.numpy import save_file

    config = checkpoint.read_config(source)
    tree = checkpoint.load_params(
        source, config, step=step, dtype=jnp.dtype(dtype) if dtype else None
    )
    sizes = {key: tensor.nbytes for key, tensor in params_to_hf(tree, config)}
    shards = _shards(sizes)
    with new_directory(target, sum(sizes.values())) as partial:
        checkpoint.copy_model_files(source, partial)
        dtypes = {str(leaf.dtype) for leaf in params.flatten(tree).values()}
        _set_dtype(partial / "config.json", dtypes.pop() if len(dtypes) == 1 else "float32")
        tensors, written = params_to_hf(tree, config), {}
        for i, keys in enumerate(shards, start=1):
            name = (
                f"model-{i:05}-of-{len(shards):05}.safetensors"
                if len(shards) > 1
                else "model.safetensors"
            )
            shard = dict(next(tensors) for _ in keys)
            contiguous = {key: np.ascontiguousarray(tensor) for key, tensor in shard.items()}
            save_file(contiguous, partial / name, metadata={"format": "pt"})
            written |= dict.fromkeys(keys, name)
        if len(shards) > 1:
            index = {"metadata": {"total_size": sum(sizes.values())}, "weight_map": written}
            provenance.write_json(partial / "model.safetensors.index.json", index)
        _record(partial, "to_hf", source)


def _shards(sizes: dict[str, int]) -> list[list[str]]:
    """Cuts keys, in order, into files of at most MAX_SHARD_BYTES."""
    shards: list[list[str]] = [[]]
    room = MAX_SHARD_BYTES
    for key, size in sizes.items():
        if size > room and shards[-1]:
            shards.append([])
            room = MAX_SHARD_BYTES
        shards[-1].append(key)
        room -= size
    return shards


def _set_dtype(config_path: Path, dtype: str) -> None:
    """transformers 5 casts to the dtype that config.json names, so it must name the right one."""
    content = json.loads(config_path.read_text(encoding="utf-8"))
    keys = [key for key in ("dtype", "torch_dtype") if key in content] or ["dtype"]
    if any(content.get(key) != dtype for key in keys):
        provenance.write_json(config_path, content | dict.fromkeys(keys, dtype))


def _record(directory: Path, direction: str, source: Path) -> None:
    record = provenance.describe(command=f"convert {direction}", source=str(source))
    provenance.write_json(directory / "run.json", record | {"end": provenance.now()})


def _finish(partial: Path, tree: Params, direction: str, source: Path) -> None:
    checkpoint.save_params(partial, tree)
    _record(partial, direction, source)


def from_gguf(source: Path, target: Path) -> None:
    """GGUF file -> model directory: weights dequantised to float32, tokenizer rebuilt."""
    from alpacare_jax import gguf_reader

    model = gguf_reader.open_gguf(source)
    config = LlamaConfig.from_hf(model.config)
    with new_directory(target, 4 * params.count(config)) as partial:
        tree = params_from_hf(model.tensors(), config)
        for name, content in model.files().items():
            provenance.write_json(partial / name, content)
        checkpoint.load_tokenizer(partial)
        _finish(partial, tree, "from_gguf", source)


def main(argv: Sequence[str]) -> None:
    FLAGS = flags.FLAGS
    source, target = Path(FLAGS.source), Path(FLAGS.target)
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
