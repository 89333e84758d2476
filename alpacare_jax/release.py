"""Makes a folder to publish, proven to answer as the model does here.

    python -m alpacare_jax.release --checkpoint=WORKDIR --target=FOLDER --license=ID \\
        --repo=USER/NAME --base_model=USER/NAME --dataset=USER/NAME [--adapter=WORKDIR]

The folder has the model for transformers (safetensors of at most 5 GB, settings, the trained chat
template and stop tokens), for llama.cpp and Ollama (GGUF in F16 and Q8_0, a Modelfile), a model
card, and proof.json: greedy answers to 32 questions, of our engine, transformers and llama.cpp.
They are equal, or nothing is released (docs/release.md). Nothing is uploaded: the command for it
is printed. Requires the extra [release].
"""

import dataclasses
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

from absl import flags
from etils import epath

from alpacare_jax.checkpoints import export, model_folder, weight_diff
from alpacare_jax.data import chat_template, encoding, prompts, tokenizers
from alpacare_jax.data.prompts import Template
from alpacare_jax.formats import hf_weights
from alpacare_jax.model import params
from alpacare_jax.releasing import card, gguf_writer, modelfile, proof
from alpacare_jax.releasing.card import Names
from alpacare_jax.releasing.programs import Trained
from alpacare_jax.releasing.proof import AnswerAgreement
from alpacare_jax.reporting import run_files
from common import cli, paths, provenance
from common.messages import heartbeat, log
from common.records import join_text, read_examples
from common.sections import UsageError

NUM_QUESTIONS = 32

STARTER = Path(__file__).parents[1] / "datagen/starter/test.jsonl"

NEVER_GUESSED = ("repo", "license", "base_model", "dataset")
"""Flags whose values nobody but the user knows."""


@dataclasses.dataclass(frozen=True)
class ReleaseConfig:
    """The arguments of a release; they are documented as flags."""

    checkpoint: epath.Path
    adapter: epath.Path | None
    step: str
    template: str
    target: Path
    names: Names
    dtype: str
    forms: Sequence[str]
    questions: Path
    max_new_tokens: int
    reports: Sequence[Path]
    eval_results: Sequence[Path]  # files
    limits: str
    diff_base: Path | None

    def __post_init__(self):
        for name in (self.names.repo, self.names.base_model):
            if not card.on_hub(name):
                raise UsageError(f"{name!r} is not of the form USER/NAME, as on the Hub")
        if self.names.licence == "other" and not (
            self.names.licence_name and self.names.licence_link
        ):
            raise UsageError("--license=other needs --license_name and --license_link")
        if odd := set(self.forms) - gguf_writer.FILE_TYPES.keys():
            known = ", ".join(gguf_writer.FILE_TYPES)
            raise UsageError(f"--gguf has {', '.join(sorted(odd))}; choose from {known}")

    @property
    def trained_by(self) -> epath.Path:
        """The folder whose run.json is that of training."""
        return self.adapter or self.checkpoint

    def need_bytes(self) -> int:
        """Disk that the folder takes while it is made."""
        config = model_folder.read_config(self.checkpoint)
        keys = hf_weights.by_key(config)
        shapes = [params.hf_shape(weight, config) for weight, _ in keys.values()]
        count = params.count(config)
        size = count * (4 if self.dtype == "float32" else 2)
        size += sum(gguf_writer.nbytes(shapes, form) for form in self.forms)
        return size + 4 * count * (bool(self.adapter) + bool(self.diff_base))


def load_questions(path: Path) -> list[str]:
    """The first NUM_QUESTIONS records, instruction and input as one message.

    Raises:
      ValueError: there are fewer.
    """
    examples = read_examples(epath.Path(path), answered=False)[:NUM_QUESTIONS]
    if len(examples) < NUM_QUESTIONS:
        raise ValueError(f"{path} has {len(examples)} records; the proof takes {NUM_QUESTIONS}")
    return [join_text(example.instruction, example.input) for example in examples]


def as_trained(config: ReleaseConfig, folder: epath.Path, step: str) -> Trained:
    """The model to release, its tokenizer and template."""
    tokenizer = tokenizers.load(folder)
    template = chat_template.load(config.template, folder, tokenizer)
    end = encoding.end_id(tokenizer, template)
    others = [i for i in model_folder.eos_ids(folder, tokenizer, template) if i != end]
    return Trained(folder, step, config.dtype, tokenizer, template, [end, *others])


def gguf_settings(names: Names, trained: Trained) -> gguf_writer.Settings:
    """What GGUF files say of the model."""
    tokenizer, template = trained.tokenizer, trained.template
    named = isinstance(template, Template)
    adds_bos = tokenizer.adds_bos and trained.prompt("a")[0] == tokenizer.bos_id
    return gguf_writer.Settings(
        name=names.name,
        licence=names.licence_name or names.licence,
        adds_bos=adds_bos,
        # llama.cpp puts it behind control tokens too, as a named template wants behind BOS only.
        adds_space=tokenizer.adds_space and (named or not tokenizer.continues),
        end_ids=trained.end_ids,
        chat_template=template.jinja("bos_token" * adds_bos)
        if isinstance(template, Template)
        else chat_template.source(trained.folder),
    )


def build(
    config: ReleaseConfig, trained: Trained, folder: Path
) -> tuple[dict[str, Path], gguf_writer.Settings]:
    """Makes the files for transformers, llama.cpp and Ollama.

    Returns the GGUF file of each type, and what they hold beside the weights.
    """
    export.to_hf(trained.folder, folder, trained.step, config.dtype, config.template)
    settings = gguf_settings(config.names, trained)
    ggufs = {form: folder / f"{config.names.name}-{form}.gguf" for form in config.forms}
    for form, path in ggufs.items():
        log(f"writing {path.name}")
        gguf_writer.write(folder, path, form, settings)
    if ggufs:
        bos = trained.tokenizer.piece(trained.prompt("a")[0]) if settings.adds_bos else ""
        first = next(iter(ggufs.values())).name
        stops = trained.template.stop
        content = modelfile.content(first, trained.template, bos, stops)
        provenance.write_text(folder / "Modelfile", content)
    return ggufs, settings


def write_card(
    config: ReleaseConfig,
    folder: Path,
    ggufs: Sequence[Path],
    agreements: Mapping[str, AnswerAgreement],
) -> None:
    """Writes README.md, proof.json and .eval_results."""
    tables = [table for report in config.reports for table in card.evaluation_tables(report)]
    run = run_files.read(config.trained_by)
    content = card.text(
        config.names,
        run,
        [path.name for path in ggufs],
        agreements,
        config.dtype,
        tables,
        config.limits,
    )
    provenance.write_text(folder / "README.md", content)
    if config.eval_results:
        (folder / ".eval_results").mkdir()
    for path in config.eval_results:
        shutil.copyfile(path, folder / ".eval_results" / path.name)
    proven = {name: dataclasses.asdict(found) for name, found in agreements.items()}
    record = {"questions": provenance.sha256(config.questions), "programs": proven}
    settings = {"max_new_tokens": config.max_new_tokens, "tolerance": proof.TOLERANCES}
    provenance.write_json(folder / "proof.json", record | settings)


def run(config: ReleaseConfig) -> None:
    """Builds the folder, proves it, and only then gives it its name.

    Raises:
      ReleaseError: it does not answer as the model does.
      OSError, ValueError: what is given is checked before anything is written.
    """
    questions = load_questions(config.questions)
    for path in config.eval_results:
        card.check_eval_results(path)
    diff = config.target.with_name(f"{config.target.name}-diff")
    if config.diff_base:
        weight_diff.Folder.open(config.diff_base)
        if diff.exists():
            raise FileExistsError(f"{diff} exists; choose another --target or delete it")
    with model_folder.new_directory(config.target, config.need_bytes()) as partial:
        source, step = config.checkpoint, config.step
        if config.adapter:
            export.merge(source, config.adapter, partial / "merged", step)
            source, step = epath.Path(partial / "merged"), "best"
        trained, folder = as_trained(config, source, step), partial / "release"
        ggufs, settings = build(config, trained, folder)
        agreements = {}
        arguments = (folder, ggufs, settings, questions, config.max_new_tokens)
        with heartbeat("proving that the folder answers as the model does"):
            for name, found in proof.prove(trained, *arguments):
                agreements[name] = found
                log(
                    f"{name}: {found.equal} of {found.answers} answers equal, {found.near_ties} "
                    f"near ties, {found.different} others; log-probabilities differ by at most "
                    f"{found.largest_error:.2g} over {found.tokens:,} tokens"
                )
        write_card(config, folder, list(ggufs.values()), agreements)
        shutil.rmtree(partial / "merged", ignore_errors=True)
        for path in list(folder.iterdir()):
            path.rename(partial / path.name)
        folder.rmdir()
    if config.diff_base:
        weight_diff.make(config.diff_base, config.target, diff)
    print(f"{config.target} is complete. Look at README.md, then publish it:")
    print(f"  hf upload {config.names.repo} {config.target} .")
    if config.diff_base:
        print(f"or, where the base's licence forbids that, {diff} in its place")


def define_flags() -> None:
    """Defines the flags of this command."""
    flags.DEFINE_string("checkpoint", None, "Workdir of train, or a model directory.")
    flags.DEFINE_string("adapter", "", "LoRA adapter of it: workdir of train, or peft's folder.")
    flags.DEFINE_string(
        "step", "best", "best, latest or a number; of the adapter, if there is one."
    )
    flags.DEFINE_string(
        "template",
        "",
        f"The template it was trained with: {', '.join(prompts.TEMPLATES)}, or chat; default: as "
        "run.json has it.",
    )
    flags.DEFINE_string("target", None, "Folder to create; must not exist, or be empty.")
    flags.DEFINE_string("repo", "", "Name on the Hugging Face Hub, USER/NAME.")
    flags.DEFINE_string("license", "", "Licence of the weights, by the Hub's identifier; or other.")
    flags.DEFINE_string("license_name", "", "Of --license=other.")
    flags.DEFINE_string("license_link", "", "Of --license=other.")
    flags.DEFINE_string("base_model", "", "The base model's name on the Hub, USER/NAME.")
    flags.DEFINE_string("dataset", "", "Training data: name on the Hub, USER/NAME, or words.")
    flags.DEFINE_string("language", "", "Of the data, such as en.")
    flags.DEFINE_enum(
        "dtype", "bfloat16", ["float32", "bfloat16", "float16"], "Of the released weights."
    )
    flags.DEFINE_list("gguf", [*gguf_writer.FILE_TYPES], "GGUF files to make; empty: none.")
    flags.DEFINE_string("questions", str(STARTER), f"Records; the proof takes {NUM_QUESTIONS}.")
    flags.DEFINE_integer("max_new_tokens", 32, "Of each answer of the proof.", lower_bound=1)
    flags.DEFINE_list("reports", [], "Folders of report, choices or rubric, for the card.")
    flags.DEFINE_string(
        "eval_results", "", "Folder of report's eval_results/ for this model, which the Hub shows."
    )
    flags.DEFINE_string(
        "limits", "", "Markdown on intended use and limits, in place of medicine's."
    )
    flags.DEFINE_string(
        "diff_base", "", "Hugging Face folder of the base: TARGET-diff gets the difference to it."
    )
    flags.mark_flags_as_required(["checkpoint", "target"])


def main(argv: Sequence[str]) -> None:
    """Runs the command."""
    del argv
    FLAGS = flags.FLAGS
    if missing := [f"--{name}" for name in NEVER_GUESSED if not FLAGS[name].value]:
        raise UsageError(f"give {', '.join(missing)}: names and licences are never guessed")
    given = [FLAGS.checkpoint, FLAGS.adapter, FLAGS.questions, FLAGS.limits, FLAGS.diff_base]
    for path in filter(None, [*given, *FLAGS.reports, FLAGS.eval_results]):
        paths.check(path)
        paths.require(path)
    checkpoint, adapter = epath.Path(FLAGS.checkpoint), FLAGS.adapter
    if not (template := FLAGS.template or model_folder.trained_template(adapter or checkpoint)):
        raise UsageError(f"run.json of {adapter or checkpoint} has no template; give --template")
    run(
        ReleaseConfig(
            checkpoint=checkpoint,
            adapter=epath.Path(adapter) if adapter else None,
            step=FLAGS.step,
            template=template,
            target=Path(paths.absolute(FLAGS.target)),
            names=Names(
                FLAGS.repo,
                FLAGS.license,
                FLAGS.license_name,
                FLAGS.license_link,
                FLAGS.base_model,
                FLAGS.dataset,
                FLAGS.language,
            ),
            dtype=FLAGS.dtype,
            forms=FLAGS.gguf,
            questions=Path(FLAGS.questions),
            max_new_tokens=FLAGS.max_new_tokens,
            reports=[Path(report) for report in FLAGS.reports],
            eval_results=sorted(Path(FLAGS.eval_results).glob("*.yaml"))
            if FLAGS.eval_results
            else [],
            limits=Path(FLAGS.limits).read_text(encoding="utf-8") if FLAGS.limits else card.LIMITS,
            diff_base=Path(FLAGS.diff_base) if FLAGS.diff_base else None,
        )
    )


if __name__ == "__main__":
    define_flags()
    cli.run(main, output="target")
