"""Generates answers to records with a model.

    python -m alpacare_jax.generate --checkpoint=runs/alpacare-7b --input=test.jsonl \\
        --output=outputs.json

All devices of the machine are used, each with a full copy of the weights; --tensor=4 shards a large
model's weights over groups of four. The output has alpaca_eval's format, in the order of the input.
Answers are collected in OUTPUT.partial; rerunning the same command generates only the missing ones.
A record whose prompt leaves no room for an answer gets an empty one, with finish_reason too_long.

--mode=paper is what the published answers show: Alpaca's template for every model, 1,024 tokens in
total, greedy. --mode=native is what each model's authors did: template, stop strings, sampling.
"""

import dataclasses
import functools
import os
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import jax
from absl import flags
from etils import epath

from alpacare_jax.checkpoints import model_folder
from alpacare_jax.data import prompts
from alpacare_jax.data.encoding import encode_prompt
from alpacare_jax.inference import answer_file, loading, sampling
from alpacare_jax.inference.answering import converse
from alpacare_jax.inference.loading import ModelSource
from alpacare_jax.inference.sampling import Sampling
from common import cli, paths, provenance
from common.messages import heartbeat
from common.records import Example, read_examples, require_unique_ids
from common.sections import UsageError
from common.text.conversations import Turn


@dataclasses.dataclass(frozen=True)
class GenerationConfig:
    """The arguments of a run; they are documented as flags."""

    checkpoint: epath.Path
    adapter: epath.Path | None
    step: str
    input: epath.Path
    output: epath.Path
    template: str
    max_length: int | None  # None: of the model's training, see default_max_length
    max_new_tokens: int
    batch_size: int
    devices: Sequence[jax.Device]  # pyright: ignore[reportInvalidTypeForm] - no stub
    tensor: int
    sampling: Sampling
    stop: Sequence[str]
    dtype: str
    generator: str  # "": the name of the checkpoint's folder

    def __post_init__(self):
        if self.output.suffix not in (".json", ".jsonl"):
            raise UsageError(f"--output {self.output} must end in .json or .jsonl")
        if not all(self.stop):
            raise UsageError("--stop is empty; give a text that ends an answer")


def mode_settings(mode: str, template: str, directory: epath.Path) -> dict[str, Any]:
    """The flags that a mode sets where they are not given."""
    found: Mapping[str, Any] = {}
    if mode == "paper":
        found = {"max_length": 1024}
    elif mode == "native":
        named = prompts.TEMPLATES.get(template)
        found = (named.native if named else {}) or model_folder.native_settings(directory)
    positions = model_folder.read_config(directory).max_position_embeddings
    return {k: min(v, positions) if k == "max_length" else v for k, v in found.items()}


def overlong_prompts(
    examples: Sequence[Example], encoded: Sequence[Sequence[int]], max_length: int
) -> list[int]:
    """Indices of the prompts that leave no room for an answer; they are counted on stderr."""
    found = [i for i, ids in enumerate(encoded) if len(ids) >= max_length]
    if found:
        first = found[0]
        print(
            f"{len(found):,} of {len(encoded):,} prompts leave no room within max_length "
            f"{max_length:,}, the first that of record {examples[first].id} with "
            f"{len(encoded[first]):,} tokens; their answers are empty (finish_reason too_long); "
            "raise --max_length or shorten the records",
            file=sys.stderr,
        )
    return found


def as_record(
    example: Example, answer: dict[str, Any], generator: str, dataset: str
) -> dict[str, Any]:
    """One record of the output; its first three fields, and its format, are alpaca_eval's.

    A conversation has its `messages`, too, up to the last question.
    """
    turns = [*example.history, Turn("user", example.instruction)] if example.history else []
    messages = [{"role": turn.role, "content": turn.text} for turn in turns]
    return {
        "instruction": example.instruction,
        "output": answer["output"],
        "generator": generator,
        "id": example.id,
        "input": example.input,
        "dataset": dataset,
        **({"messages": messages} if turns else {}),
    } | answer


def run(config: GenerationConfig) -> None:
    """Answers every record of the input, those of an unfinished output excepted."""
    model = ModelSource(
        config.checkpoint,
        config.adapter,
        step=config.step,
        template=config.template,
        max_length=config.max_length,
        dtype=config.dtype,
    )
    tokenizer, template, max_length = model.tokenizer, model.template, model.max_length
    examples = read_examples(config.input, answered=False)
    require_unique_ids(config.input, (e.id for e in examples), "answers are matched by id")
    stops = [*template.stop, *config.stop]
    encoded = [encode_prompt(example, tokenizer, template) for example in examples]
    settings = {
        **model.identity(),
        "input": provenance.sha256(config.input),
        "template": config.template,
        "max_length": max_length,
        "max_new_tokens": config.max_new_tokens,
        "sampling": vars(config.sampling),
        "stop": stops,
        "dtype": str(model.dtype),  # "auto" differs between machines
        "generator": config.generator,
    }
    if provenance.is_finished(config.output, settings):
        print(f"{config.output} is already complete", file=sys.stderr)
        return
    record = provenance.describe(config=settings, source=model.origin())
    partial = answer_file.PartialOutput(config.output, settings)
    names = {
        "generator": config.generator or paths.absolute(model.trained).name,
        "dataset": config.input.name.split(".")[0],
    }
    for answer in partial.answers.values():  # model and input may have been renamed since
        names = {name: answer[name] for name in names}
    as_answer = functools.partial(as_record, **names)
    for index in overlong_prompts(examples, encoded, max_length):
        partial.add(index, as_answer(examples[index], answer_file.NO_ANSWER))
    pending = {
        index: functools.reduce(Example.following, partial.turns.get(index, ()), example)
        for index, example in enumerate(examples)
        if index not in partial.answers
    }
    if pending:
        with heartbeat("loading the weights"):
            engine = model.engine(config.devices, config.tensor, config.batch_size, config.sampling)
        limit = config.max_new_tokens or max_length
        for index, example, answer in converse(engine, pending, tokenizer, template, stops, limit):
            if example.further:
                partial.add_turn(index, answer["output"])
            else:
                partial.add(index, as_answer(example, answer))
    partial.finish(record)


def define_flags() -> None:
    """Defines the flags of this command."""
    loading.define_flags()
    flags.DEFINE_string("input", None, "Records: .jsonl or .json, optionally gzipped (.gz).")
    flags.DEFINE_string("output", None, "Answers: .json (read by alpaca_eval) or .jsonl.")
    flags.DEFINE_enum(
        "mode",
        None,
        ["paper", "native"],
        "paper: Alpaca's template for every model, 1,024 tokens in total, greedy. native: sampling "
        "and lengths of the template's authors. Other flags that are given win.",
    )
    flags.DEFINE_integer(
        "max_new_tokens", 0, "Maximum tokens of an answer; 0: up to max_length.", lower_bound=0
    )
    flags.DEFINE_integer(
        "batch_size", 16, "Answers generated at the same time, on all devices.", lower_bound=1
    )
    sampling.define_flags()
    flags.DEFINE_multi_string("stop", [], "End an answer before this text; may be repeated.")
    flags.DEFINE_string("generator", "", "Name in the output; default: the checkpoint's folder.")
    flags.mark_flags_as_required(["input", "output"])


def main(argv: Sequence[str]) -> None:
    """Runs the command."""
    del argv
    FLAGS = flags.FLAGS
    paths.check(FLAGS.checkpoint, FLAGS.adapter or "", FLAGS.input, FLAGS.output)
    directory = epath.Path(FLAGS.checkpoint)
    template = FLAGS.template or loading.default_template(directory, FLAGS.adapter)
    if FLAGS.mode == "paper":
        if FLAGS.template not in (None, "alpaca"):
            raise UsageError("--mode=paper is Alpaca's template for every model; no --template")
        template = "alpaca"
    for name, value in mode_settings(FLAGS.mode, template, directory).items():
        if not FLAGS[name].present:
            setattr(FLAGS, name, value)
    run(
        GenerationConfig(
            checkpoint=directory,
            adapter=epath.Path(FLAGS.adapter) if FLAGS.adapter else None,
            step=FLAGS.step,
            input=epath.Path(FLAGS.input),
            output=epath.Path(FLAGS.output),
            template=template,
            max_length=FLAGS.max_length,
            max_new_tokens=FLAGS.max_new_tokens,
            batch_size=FLAGS.batch_size,
            devices=jax.local_devices(),
            tensor=FLAGS.tensor,
            sampling=sampling.from_flags(FLAGS),
            stop=FLAGS.stop,
            dtype=FLAGS.dtype,
            generator=FLAGS.generator,
        )
    )


if __name__ == "__main__":
    define_flags()
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    cli.run(main, output="output")
