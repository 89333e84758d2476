"""Converts weights: Hugging Face safetensors both ways, GGUF in.

    python -m alpacare_jax.convert from_hf   --source=HF_FOLDER  --target=MODEL_DIR
    python -m alpacare_jax.convert to_hf     --source=MODEL_DIR  --target=HF_FOLDER
    python -m alpacare_jax.convert from_gguf --source=FILE.gguf  --target=MODEL_DIR

GGUF is read with the tokenizers of LLaMA 1 to 3 and SmolLM2, not with RoPE scaling (LLaMA 3.1 and
later). Layouts, names and shapes all come from `params.WEIGHTS`. A target appears only when it is
complete.
"""

import contextlib
import json
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path, PurePath

import jax.numpy as jnp
import numpy as np
from absl import flags
from etils import epath

from alpacare_jax.checkpoints import layerwise, model_folder, safetensors_file
from alpacare_jax.checkpoints.safetensors_file import Tensor
from alpacare_jax.model import params
from alpacare_jax.model.config import LlamaConfig
from alpacare_jax.model.params import WeightSpec
from common import cli, paths, provenance
from common.sections import UsageError

MAX_SHARD_BYTES = 5_000_000_000
"""The default of transformers."""

IGNORED_KEYS = re.compile(r"model\.layers\.\d+\.self_attn\.rotary_emb\.inv_freq")
"""Buffers saved by old LLaMA 1 conversions; the config determines them."""

AssignedTensor = tuple[WeightSpec, int | None, Tensor]
"""A tensor, its weight and its layer (None if not stacked)."""


def weights_by_hf_key(config: LlamaConfig) -> dict[str, tuple[WeightSpec, int | None]]:
    """Hugging Face key -> weight and layer (None if not stacked), in Hugging Face's order."""
    return {
        weight.hf_key.format(layer): (weight, layer)
        for layer in [None, *range(config.num_hidden_layers)]
        for weight in params.weight_specs(config)
        if weight.stacked == (layer is not None)
    }


def check(tensors: Iterable[Tensor], config: LlamaConfig) -> list[AssignedTensor]:
    """Assigns every tensor to its weight and layer, before any of them is read.

    Raises:
      ValueError: a key is missing, unexpected, duplicate, misshapen or of an inconsistent dtype.
    """
    expected, tied = weights_by_hf_key(config), None
    found: dict[str, Tensor] = {}
    dtypes: dict[str, np.dtype] = {}
    for tensor in tensors:
        key = tensor.key
        if IGNORED_KEYS.fullmatch(key):
            continue
        if key == "lm_head.weight" and config.tie_word_embeddings:
            tied = tensor  # some tied models store the same matrix twice
            continue
        if key not in expected:
            raise ValueError(f"unexpected key {key}: config.json does not describe this model")
        if key in found:
            raise ValueError(f"{key} appears in two files")
        weight, _ = expected[key]
        if tensor.shape != (shape := params.hf_shape(weight, config)):
            raise ValueError(f"{key} has shape {tensor.shape}, config.json requires {shape}")
        if dtypes.setdefault(weight.path, tensor.dtype) != tensor.dtype:
            raise ValueError(f"{key} is {tensor.dtype}, other layers are {dtypes[weight.path]}")
        found[key] = tensor
    if missing := [key for key in expected if key not in found]:
        raise ValueError(f"{len(missing)} missing keys, the first is {missing[0]}")
    if tied and not np.array_equal(tied.read(), found["model.embed_tokens.weight"].read()):
        raise ValueError(
            "config.json ties the embeddings, but lm_head.weight differs from the input embedding; "
            "set tie_word_embeddings to false in it"
        )
    return [(*expected[key], tensor) for key, tensor in found.items()]


@contextlib.contextmanager
def _new_model(
    direction: str,
    source: PurePath,
    target: Path,
    checked: Sequence[AssignedTensor],
    config: LlamaConfig,
) -> Iterator[Path]:
    """A model directory; the weights, dtypes unchanged, are added to what the block writes."""
    dtypes = {weight.path: tensor.dtype for weight, _, tensor in checked}
    sizes = [tensor.nbytes for *_, tensor in checked]
    with model_folder.new_directory(target, sum(sizes)) as partial:
        yield partial
        with layerwise.Writer(partial, config, dtypes) as store:

            def convert(assigned: AssignedTensor) -> None:
                weight, layer, tensor = assigned
                array = params.from_hf_layout(weight, tensor.read(), config)
                store.write(weight, layer, layerwise.contiguous(array))

            layerwise.for_each(convert, checked, max(sizes))
        _record(partial, direction, source)


def from_hf(source: Path, target: Path) -> None:
    """Converts a Hugging Face folder to a model directory, each weight in its stored dtype.

    Raises:
      ValueError, OSError: source and target are checked before anything is written.
    """
    config = model_folder.read_config(source)
    checked = check(safetensors_file.folder_tensors(source), config)
    model_folder.load_tokenizer(source)
    with _new_model("from_hf", source, target, checked, config) as partial:
        model_folder.copy_model_files(source, partial)


def from_gguf(source: Path, target: Path) -> None:
    """As `from_hf`, of a GGUF file: weights dequantised to float32, the tokenizer is rebuilt."""
    from alpacare_jax.checkpoints import gguf_file

    model = gguf_file.open_gguf(source)
    config = LlamaConfig.from_hf(model.config)
    checked, files = check(model.tensors(), config), model.files()
    with _new_model("from_gguf", source, target, checked, config) as partial:
        for name, content in files.items():
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
    arrays = layerwise.open_arrays(source, config, step)
    cast = {path: jnp.dtype(dtype) if dtype else a.dtype.numpy_dtype for path, a in arrays.items()}
    specs = {
        key: (cast[weight.path], params.hf_shape(weight, config))
        for key, (weight, _) in weights_by_hf_key(config).items()
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
        _record(partial, "to_hf", source)


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


def _record(directory: Path, direction: str, source: PurePath) -> None:
    record = provenance.describe(command=f"convert {direction}", source=str(source))
    provenance.write_json(directory / "run.json", record | {"end": provenance.now()})


def main(argv: Sequence[str]) -> None:
    """Runs the command."""
    FLAGS = flags.FLAGS
    direction = " ".join(argv[1:])
    if direction not in ("from_hf", "to_hf", "from_gguf"):
        raise UsageError(f"give one of from_hf, to_hf, from_gguf, not {direction!r}")
    if paths.in_bucket(FLAGS.target) or (paths.in_bucket(FLAGS.source) and direction != "to_hf"):
        raise UsageError(
            "only to_hf reads from a bucket, and no direction writes to one: convert to a folder, "
            "then copy it (gcloud storage cp --recursive FOLDER gs://BUCKET/)"
        )
    paths.check(FLAGS.source)
    if not epath.Path(FLAGS.source).exists():
        raise FileNotFoundError(f"no such --source: {FLAGS.source}")
    source, target = Path(FLAGS.source), Path(paths.absolute(FLAGS.target))
    if direction == "from_hf":
        from_hf(source, target)
    elif direction == "from_gguf":
        from_gguf(source, target)
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
    flags.DEFINE_string("step", "best", "to_hf: best, latest or the number of a saved step.")
    flags.DEFINE_enum(
        "dtype", "", ["", "float32", "bfloat16", "float16"], "to_hf: cast to it; default: keep."
    )
    flags.mark_flags_as_required(["source", "target"])
    cli.run(main, positional=True)
