"""A Hugging Face folder's weights: which files hold them, and which weight each tensor is."""

import concurrent.futures
import contextlib
import dataclasses
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from alpacare_jax.formats import safetensors_file, torch_file
from alpacare_jax.formats.safetensors_file import Tensor
from alpacare_jax.model import params
from alpacare_jax.model.config import LlamaConfig
from alpacare_jax.model.params import WeightSpec
from common import provenance

BUFFERS = re.compile(
    r"rotary_emb\.(original_)?inv_freq|rotary_emb\.(cos|sin)_cached|causal_mask"
    r"|\.(self_attn|attention|attn)\.(masked_)?bias$"
)
"""What old versions of transformers saved beside the weights; the config determines it, and
transformers too ignores it."""

WRAPPERS = frozenset("_orig_mod module _fsdp_wrapped_module _checkpoint_wrapped_module".split())
"""Parts of keys that torch.compile, DataParallel, FSDP and activation checkpointing add."""

EMBEDDING = "embed_tokens.weight"

OTHER_FORMS = {
    "adapter_config.json": "an adapter, not a model: give generate its base and "
    "--adapter={folder}, or merge them, with convert merge",
    "*.gguf": "GGUF: convert from_gguf --source={file}",
    "consolidated*": "Meta's own format: convert from_meta --source={folder}",
    "*.index.json": "the index of shards that are not here: download them",
    "model*-of-*.safetensors": "a shard: download model.safetensors.index.json too",
    "pytorch_model*-of-*.bin": "a shard: download pytorch_model.bin.index.json too",
    "*.safetensors": "not a name that transformers reads: rename it to model.safetensors",
    "checkpoints": "the weights of a model directory: it is converted already",
    "*.h5": "TensorFlow's format: take a release with safetensors",
    "*.msgpack": "Flax's format: take a release with safetensors",
}
"""Files of folders that have no weights of Hugging Face's -> what they are, and what to do."""

WEIGHT_FILES = ("model.safetensors", "pytorch_model.bin")
"""The files of weights in the order in which transformers looks for them; each may have shards."""

AssignedTensor = tuple[WeightSpec, int | None, Tensor]
"""A tensor, its weight and its layer (None if not stacked)."""


def files(folder: Path) -> list[Path]:
    """The files of a folder's weights that transformers reads: one, or the shards of an index.

    Raises:
      FileNotFoundError: there are none, or the index lists one that is not there.
      ValueError: the folder holds two models, or its index is damaged.
    """
    candidates = [(folder / name, folder / f"{name}.index.json") for name in WEIGHT_FILES]
    there = (pair for pair in candidates if any(path.is_file() for path in pair))
    single, index = next(there, candidates[0])
    shards = _shards(index) if index.is_file() else []
    missing = [path for path in shards if not path.is_file()]
    if single.is_file():
        if shards and shards != [single] and not missing:
            raise ValueError(
                f"{folder} holds two models: {single.name}, which transformers reads, and the "
                f"shards of {index.name}; delete the older one"
            )
        return [single]
    if missing:
        raise FileNotFoundError(
            f"{folder} lacks {missing[0].name}, which {index.name} lists; download it again"
        )
    if not shards:
        raise FileNotFoundError(
            f"{folder} has neither {single.name} nor {index.name}{_other_form(folder)}"
        )
    return shards


def _shards(index: Path) -> list[Path]:
    """The files that an index lists; it is damaged if it lists none, or one outside its folder."""
    weight_map = provenance.read_json(index).get("weight_map")
    names = weight_map.values() if isinstance(weight_map, dict) else ()
    if not names or not all(isinstance(name, str) and Path(name).name == name for name in names):
        raise ValueError(
            f"{index}: weight_map must name the file of each weight; download it again"
        )
    return [index.parent / name for name in sorted(set(names))]


def _other_form(folder: Path) -> str:
    """What a folder without safetensors weights holds instead; "" if that is not known."""
    for pattern, advice in OTHER_FORMS.items():
        for file in sorted(folder.glob(pattern)):
            if not file.exists():
                return f"; {file.name} is a link to a file that is not there: download it again"
            return f"; {file.name} is {advice.format(folder=str(folder), file=file)}"
    return ""


@contextlib.contextmanager
def digests(paths: Sequence[Path]) -> Iterator[dict[str, str]]:
    """{file name: sha256}, complete when the block ends, during which the files are read.

    Raises:
      ValueError: a file is not the one that `hf download` found on the Hub.
    """
    sums: dict[str, str] = {}
    reader = concurrent.futures.ThreadPoolExecutor(1)
    try:
        futures = {path: reader.submit(provenance.sha256, path) for path in paths}
        yield sums
        for path, future in futures.items():
            sums[path.name] = future.result()
            if _published_sha256(path) not in (None, sums[path.name]):
                raise ValueError(
                    f"{path} is damaged: its sha256 is {sums[path.name]}, not that of the file on "
                    "the Hugging Face Hub; delete it and download it again"
                )
    finally:
        reader.shutdown(cancel_futures=True)


def _published_sha256(path: Path) -> str | None:
    """The digest that `hf download --local-dir` noted; None if it did not, or of an older file.

    Three lines: the commit, the digest (of files that git-lfs keeps), the time of the download.
    """
    note = path.parent / ".cache/huggingface/download" / f"{path.name}.metadata"
    found = re.fullmatch(
        r".*\n([0-9a-f]{64})\n(\d+[.]?\d*)\s*", note.read_text() if note.is_file() else ""
    )
    return found[1] if found and path.stat().st_mtime <= float(found[2]) + 1 else None


def tensors(paths: Sequence[Path]) -> tuple[list[Tensor], str]:
    """The tensors of these files under the keys of LlamaForCausalLM, without buffers.

    The second result says which keys were others, "" if none.

    Keys of a model that was saved inside a wrapper have its prefix, those of a LlamaModel lack
    theirs:

        saved = _orig_mod.model.norm.weight, module.model.norm.weight, norm.weight
        key   = model.norm.weight

    Raises: as `safetensors_file.tensors` and `torch_file.tensors`.
    """
    found = [
        tensor
        for path in paths
        for tensor in (
            torch_file.tensors(path, BUFFERS)
            if path.suffix == ".bin"
            else safetensors_file.tensors(path, BUFFERS)
        )
    ]
    keys = [".".join(p for p in tensor.key.split(".") if p not in WRAPPERS) for tensor in found]
    stem = next((k.removesuffix(EMBEDDING) for k in keys if k.endswith(EMBEDDING)), "model.")
    outer = stem.removesuffix("model.")
    keys = [key.removeprefix(outer) for key in keys]
    if not stem.endswith("model."):
        keys = [key if key.startswith("lm_head.") else f"model.{key}" for key in keys]
    renamed = [(t.key, key) for t, key in zip(found, keys, strict=True) if t.key != key]
    note = ""
    if renamed:
        note = (
            f"{len(renamed)} keys are not those of LlamaForCausalLM: {renamed[0][0]} is read as "
            f"{renamed[0][1]}"
        )
    return [dataclasses.replace(t, key=key) for t, key in zip(found, keys, strict=True)], note


def by_key(config: LlamaConfig) -> dict[str, tuple[WeightSpec, int | None]]:
    """Hugging Face key -> weight and layer (None if not stacked), in Hugging Face's order."""
    return {
        weight.hf_key.format(layer): (weight, layer)
        for layer in [None, *range(config.num_hidden_layers)]
        for weight in params.weight_specs(config)
        if weight.stacked == (layer is not None)
    }


def assign(tensors: Sequence[Tensor], config: LlamaConfig) -> list[AssignedTensor]:
    """Assigns every tensor to its weight and layer, before any of them is read.

    Raises:
      ValueError: a key is missing, unexpected, duplicate, misshapen or of an inconsistent dtype.
    """
    if config.num_hidden_layers > len(tensors):  # as many as a damaged number says
        raise ValueError(
            f"config.json has num_hidden_layers {config.num_hidden_layers:,}, but there are only "
            f"{len(tensors):,} tensors"
        )
    expected, tied = by_key(config), None
    found: dict[str, Tensor] = {}
    dtypes: dict[str, np.dtype] = {}
    for tensor in tensors:
        key = tensor.key
        if key == "lm_head.weight" and config.tie_word_embeddings:
            tied = tensor  # some tied models store the same matrix twice
            continue
        if key not in expected:
            raise ValueError(f"unexpected key {key}: config.json does not describe this model")
        if key in found:
            raise ValueError(f"{key} appears in two files, or under two names")
        weight, _ = expected[key]
        if tensor.shape != (shape := params.hf_shape(weight, config)):
            raise ValueError(f"{key} has shape {tensor.shape}, config.json requires {shape}")
        if dtypes.setdefault(weight.path, tensor.dtype) != tensor.dtype:
            raise ValueError(f"{key} is {tensor.dtype}, other layers are {dtypes[weight.path]}")
        found[key] = tensor
    if missing := [key for key in expected if key not in found]:
        remedy = ""
        if missing == ["lm_head.weight"]:
            remedy = "; if the model ties it to the embedding, set tie_word_embeddings to true"
        raise ValueError(f"{len(missing)} missing keys, the first is {missing[0]}{remedy}")
    if tied and not np.array_equal(tied.read(), found["model.embed_tokens.weight"].read()):
        raise ValueError(
            "config.json ties the embeddings, but lm_head.weight differs from the input embedding; "
            "set tie_word_embeddings to false in it"
        )
    return [(*expected[key], tensor) for key, tensor in found.items()]


def resized(array: np.ndarray, rows: int) -> np.ndarray:
    """An embedding with `rows` rows; new ones are the mean of the others (stanford_alpaca)."""
    if len(array) == rows:
        return array
    mean = array.mean(axis=0, keepdims=True, dtype=np.float64).astype(array.dtype)
    return np.concatenate([array, np.repeat(mean, rows - len(array), axis=0)])


def with_rows(assigned: AssignedTensor, rows: int) -> AssignedTensor:
    """A tensor of a model whose vocabulary is resized to `rows` tokens."""
    weight, layer, tensor = assigned
    if not tensor.key.endswith((EMBEDDING, "lm_head.weight")):
        return assigned
    shape = (rows, *tensor.shape[1:])
    larger = dataclasses.replace(tensor, shape=shape, read=lambda: resized(tensor.read(), rows))
    return weight, layer, larger
