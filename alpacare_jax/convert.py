"""Converts weights: Hugging Face, Meta's LLaMA, GGUF, weight diffs, LoRA adapters.

    python -m alpacare_jax.convert from_hf   --source=HF_FOLDER --target=MODEL_DIR
    python -m alpacare_jax.convert to_hf     --source=MODEL_DIR --target=HF_FOLDER
    python -m alpacare_jax.convert from_meta --source=META_FOLDER --target=MODEL_DIR
    python -m alpacare_jax.convert from_gguf --source=FILE.gguf --target=MODEL_DIR
    python -m alpacare_jax.convert recover   --source=DIFF --base=HF_FOLDER --target=HF_FOLDER
    python -m alpacare_jax.convert diff      --source=HF_FOLDER --base=HF_FOLDER --target=DIFF
    python -m alpacare_jax.convert to_peft   --source=WORKDIR --target=ADAPTER_FOLDER
    python -m alpacare_jax.convert merge     --source=BASE --target=MODEL_DIR --adapter=WORKDIR

PyTorch's files (.bin, .pth) require the extra [torch], and are read as weights only. GGUF is read
with the tokenizers of LLaMA 1 to 3 and SmolLM2, not with RoPE scaling (LLaMA 3.1 and later).
Layouts, names and shapes all come from `params.WEIGHTS`. A target appears only when it is complete.
"""

import contextlib
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePath
from typing import Any

from absl import flags
from etils import epath

from alpacare_jax.checkpoints import export, identity, layerwise, model_folder, weight_diff
from alpacare_jax.formats import hf_weights, meta_folder
from alpacare_jax.formats.hf_weights import AssignedTensor
from alpacare_jax.model import params
from alpacare_jax.model.config import LlamaConfig
from common import cli, paths, provenance
from common.messages import log
from common.sections import UsageError

DIRECTIONS = "from_hf to_hf from_meta from_gguf diff recover to_peft merge".split()


@contextlib.contextmanager
def _new_model(
    direction: str,
    source: PurePath,
    files: Sequence[Path],
    target: Path,
    checked: Sequence[AssignedTensor],
    config: LlamaConfig,
    template: str = "",
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
        export.write_record(
            partial,
            command=f"convert {direction}",
            source=str(source),
            source_sha256=sums,
            template=template,
            files=identity.of_files(partial),
        )


def from_hf(source: Path, target: Path) -> None:
    """Converts a Hugging Face folder to a model directory, each weight in its stored dtype.

    Raises:
      ValueError, OSError: source and target are checked before anything is written.
    """
    stored, files = model_folder.read_config(source), hf_weights.files(source)
    tensors, of_keys = hf_weights.tensors(files)
    assigned = hf_weights.assign(tensors, stored)
    config, of_settings = model_folder.check_files(source)
    checked = [hf_weights.with_rows(each, config.vocab_size) for each in assigned]
    template = model_folder.trained_template(source)
    with _new_model("from_hf", source, files, target, checked, config, template) as partial:
        model_folder.copy_model_files(source, partial)
        model_folder.set_rows(partial / "config.json", config.vocab_size)
    for note in filter(None, (of_keys, of_settings)):
        print(note, file=sys.stderr)


def from_meta(source: Path, target: Path) -> None:
    """As `from_hf`, of a folder of Meta's LLaMA 1 to 3."""
    model = meta_folder.open_folder(source)
    checked = hf_weights.assign(model.tensors, model.config)
    with _new_model("from_meta", source, model.files, target, checked, model.config) as partial:
        _write_settings(partial, model.settings)
    print(model.note, file=sys.stderr)


def from_gguf(source: Path, target: Path) -> None:
    """As `from_hf`, of a GGUF file: weights dequantised to float32, the tokenizer is rebuilt."""
    from alpacare_jax.formats import gguf_file

    model = gguf_file.open_gguf(source)
    config = LlamaConfig.from_hf(model.config)
    checked, settings = hf_weights.assign(model.tensors(), config), model.files()
    with _new_model("from_gguf", source, [source], target, checked, config) as partial:
        _write_settings(partial, settings)


def _write_settings(folder: Path, settings: Mapping[str, Any]) -> None:
    """Writes the files beside the weights, JSON or bytes, and checks the tokenizer they make."""
    for name, content in settings.items():
        if isinstance(content, bytes):
            (folder / name).write_bytes(content)
        else:
            provenance.write_json(folder / name, content)
    model_folder.load_tokenizer(folder)


def main(argv: Sequence[str]) -> None:
    """Runs the command."""
    FLAGS = flags.FLAGS
    direction = " ".join(argv[1:])
    if direction not in DIRECTIONS:
        raise UsageError(f"give one of {', '.join(DIRECTIONS)}, not {direction!r}")
    read = [FLAGS.source, *filter(None, [FLAGS.base])]
    exports = direction in ("to_hf", "merge", "to_peft")
    if paths.in_bucket(FLAGS.target) or (any(map(paths.in_bucket, read)) and not exports):
        raise UsageError(
            "only to_hf, merge and to_peft read from a bucket, and no direction writes to one: "
            "convert to a folder, then copy it (gcloud storage cp --recursive FOLDER gs://BUCKET/)"
        )
    if (direction in ("diff", "recover")) != bool(FLAGS.base):
        raise UsageError("diff and recover need --base, and nothing else takes it")
    if direction == "merge" and not FLAGS.adapter:
        raise UsageError("merge needs --adapter, a workdir of train or a folder of peft's")
    paths.check(*read, FLAGS.adapter)
    for path in read:
        paths.require(path)
    source, target = Path(FLAGS.source), Path(paths.absolute(FLAGS.target))
    if direction == "merge":
        export.merge(epath.Path(FLAGS.source), epath.Path(FLAGS.adapter), target, FLAGS.step)
    elif direction == "to_peft":
        export.to_peft(epath.Path(FLAGS.source), target, FLAGS.step, FLAGS.base_name)
    elif direction == "to_hf":
        export.to_hf(epath.Path(FLAGS.source), target, FLAGS.step, FLAGS.dtype)
    elif direction == "diff":
        weight_diff.make(Path(FLAGS.base), source, target)
    elif direction == "recover":
        weight_diff.recover(Path(FLAGS.base), source, target, FLAGS.dtype, log)
    else:
        {"from_hf": from_hf, "from_meta": from_meta, "from_gguf": from_gguf}[direction](
            source, target
        )
    size = sum(f.stat().st_size for f in target.rglob("*") if f.is_file())
    print(f"{FLAGS.target}: {size / 1e6:,.0f} MB", file=sys.stderr)


if __name__ == "__main__":
    flags.DEFINE_string(
        "source",
        None,
        "Hugging Face folder, model directory, Meta's folder or GGUF file. GGUF: the tokenizers of "
        "LLaMA 1 to 3 and SmolLM2, no RoPE scaling. recover: the diff; diff: the tuned model.",
    )
    flags.DEFINE_string("target", None, "Folder to create; must not exist, or be empty.")
    flags.DEFINE_string(
        "step", "best", "to_hf, to_peft, merge: best, latest or the number of a saved step."
    )
    flags.DEFINE_string("adapter", "", "merge: LoRA adapter, workdir of train or peft's folder.")
    flags.DEFINE_string("base_name", "", "to_peft: what peft is to load as the adapter's base.")
    flags.DEFINE_string("base", None, "diff, recover: Hugging Face folder of the base model.")
    flags.DEFINE_enum(
        "dtype",
        "",
        ["", "float32", "bfloat16", "float16"],
        "to_hf: cast to it; default: keep. recover: default float32.",
    )
    flags.mark_flags_as_required(["source", "target"])
    cli.run(main, positional=True, output="target")
