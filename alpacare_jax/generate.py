"""Answers records with a model.

    python -m alpacare_jax.generate --checkpoint=runs/alpacare-7b --input=test.jsonl \\
        --output=outputs.json

All devices of the machine answer, each with all weights; --tensor=4 spreads a large model's weights
over groups of four. The output has alpaca_eval's format, in the order of the input. While it runs,
answers gather in OUTPUT.partial; run again with the same flags, it answers only what is missing.
"""

import bisect
import json
import os
import sys
import time
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from absl import flags
from etils.epath import Path

from alpacare_jax.checkpoints import checkpoint, model_folder
from alpacare_jax.data import prompts
from alpacare_jax.data.encoding import encode_prompt
from alpacare_jax.data.records import Example, read_examples
from alpacare_jax.data.tokenizers import Tokenizer
from alpacare_jax.distributed import sharding
from alpacare_jax.inference import answer_file
from alpacare_jax.inference import engine as decoding
from alpacare_jax.model import llama
from alpacare_jax.model.config import LlamaConfig
from alpacare_jax.training import metrics
from common import cli, paths, provenance

RULES = dict.fromkeys(("vocab", "heads", "kv_heads", "ffn"), "tensor")
RULES |= dict.fromkeys(("layers", "embed", "head_dim", "norm"), "")
"""Sharding rules: each large weight has one of the first axes. Nothing is gathered for a token."""


def eos_ids(directory: Path, tokenizer: Tokenizer) -> list[int]:
    """All ids that end an answer: the tokenizer's, config.json's and generation_config.json's."""
    ids = {tokenizer.eos_id, *model_folder.read_config(directory).eos_token_ids}
    path = directory / "generation_config.json"
    if path.is_file():
        more = json.loads(path.read_text(encoding="utf-8")).get("eos_token_id") or []
        ids |= set(more if isinstance(more, list) else [more])
    return sorted(ids)


def answer_text(
    ids: Sequence[int], tokenizer: Tokenizer, stops: Sequence[str]
) -> tuple[str, int, bool]:
    """(text, tokens it took, whether a stop string ended it).

    The stop string that was complete first counts, so the result does not depend on how many more
    tokens were generated before somebody looked.
    """
    decode = lambda n: tokenizer.decode(ids[:n], continuation=True)  # noqa: E731
    used = 1 + bisect.bisect_left(
        range(1, len(ids) + 1), True, key=lambda n: cut_at_stop(decode(n), stops)[1]
    )
    text, stopped = cut_at_stop(decode(used), stops)
    return text.strip(), min(used, len(ids)), stopped


def cut_at_stop(text: str, stops: Sequence[str]) -> tuple[str, bool]:
    """The text before the first stop string, and whether there was one."""
    found = [at for at in (text.find(stop) for stop in stops) if at >= 0]
    return (text[: min(found)], True) if found else (text, False)


def encode_prompts(
    examples: Sequence[Example], tokenizer: Tokenizer, template: prompts.Template, max_length: int
) -> list[list[int]]:
    """Prompt ids of every record.

    Raises:
      ValueError: a prompt leaves no room for an answer.
    """
    encoded = [encode_prompt(example, tokenizer, template) for example in examples]
    for example, ids in zip(examples, encoded, strict=True):
        if len(ids) >= max_length:
            raise ValueError(
                f"prompt of record {example.id} is {len(ids):,} tokens, which leaves no room in "
                f"max_length {max_length:,}; raise --max_length or shorten the record"
            )
    return encoded


def require_unique_ids(examples: Sequence[Example]) -> None:
    """Raises ValueError where two records share an id: answers are paired with records by it."""
    first: dict[str, int] = {}
    for number, example in enumerate(examples):
        if example.id in first:
            raise ValueError(
                f"records {first[example.id]} and {number} share the id {example.id!r}; answers "
                "are paired by id: give every record its own, or none"
            )
        first[example.id] = number


def load_engine(
    directory: Path,
    step: int,
    config: LlamaConfig,
    devices: Sequence[jax.Device],
    tensor: int,
    *,
    dtype: jnp.dtype,
    slots: int,
    **settings: Any,
) -> decoding.Engine:
    """The engine of a checkpoint: weights over `tensor` devices, slots over the groups of them.

    `slots` is rounded up to a multiple of the groups.
    """
    if len(devices) % tensor:
        raise ValueError(
            f"--tensor={tensor} does not divide the {len(devices)} devices here; choose a divisor"
        )
    how = sharding.ShardingConfig(-1, 1, tensor, RULES, allow_replicated="")
    mesh = sharding.make_mesh(how, devices)
    groups = sharding.batch_groups(mesh)
    weights = checkpoint.load_params(
        directory,
        config,
        step=str(step),
        dtype=dtype,
        shardings=sharding.of_params(config, mesh, how),
    )
    return decoding.Engine(
        weights,
        config,
        dtype=dtype,
        slots=-(-slots // groups) * groups,
        mesh=mesh if mesh.size > 1 else None,
        rules=RULES,
        **settings,
    )


def check_flags(output: Path, stops: Sequence[str], max_length: int, config: LlamaConfig) -> None:
    """Raises ValueError where a flag has no meaning, or none for this model."""
    if output.suffix not in (".json", ".jsonl"):
        raise ValueError(f"--output {output} must end in .json or .jsonl")
    if not all(stops):
        raise ValueError("--stop is empty; give the text that ends an answer")
    if max_length > config.max_position_embeddings:
        raise ValueError(
            f"--max_length {max_length:,} is over the model's max_position_embeddings "
            f"{config.max_position_embeddings:,}; lower it"
        )


def answers(
    engine: decoding.Engine,
    requests: Sequence[decoding.Request],
    tokenizer: Tokenizer,
    stops: Sequence[str],
) -> Iterator[tuple[int, dict[str, Any]]]:
    """(index of the request, what is known of its answer), as they end; tells how it goes."""
    began, tokens, shown = time.perf_counter(), 0, 0.0

    def stop_early(ids: list[int]) -> bool:
        return bool(stops) and cut_at_stop(tokenizer.decode(ids, continuation=True), stops)[1]

    for done, answer in enumerate(engine.run(requests, stop_early), start=1):
        text, used, stopped = answer_text(answer.ids, tokenizer, stops)
        reason = "stop" if stopped else answer.finish_reason
        yield answer.index, {"output": text, "finish_reason": reason, "num_tokens": used}
        tokens += used
        seconds = time.perf_counter() - began
        if seconds - shown > 5 or done == len(requests):
            shown = seconds
            left = metrics.duration(seconds / done * (len(requests) - done))
            print(
                f"{done}/{len(requests)} answers | {tokens:,} tokens | {tokens / seconds:,.0f} "
                f"tokens/s | {left} left",
                file=sys.stderr,
            )


def as_record(example: Example, answer: dict[str, Any], settings: dict[str, Any]) -> dict[str, Any]:
    """One answer of the output; the order is alpaca_eval's."""
    return {
        "instruction": example.instruction,
        "output": answer["output"],
        "generator": settings["generator"],
        "id": example.id,
        "input": example.input,
        "dataset": settings["dataset"],
        "finish_reason": answer["finish_reason"],
        "num_tokens": answer["num_tokens"],
    }


def run(
    *,
    directory: Path,
    step: str,
    input_path: Path,
    output: Path,
    template: str,
    max_length: int,
    max_new_tokens: int,
    batch_size: int,
    devices: Sequence[jax.Device],
    tensor: int,
    sampling: decoding.Sampling,
    stops: Sequence[str],
    dtype: str,
    generator: str,
) -> None:
    """Answers every record of `input_path`; see the flags for the arguments."""
    config = model_folder.read_config(directory)
    check_flags(output, stops, max_length, config)
    tokenizer = model_folder.load_tokenizer(directory)
    examples = read_examples(input_path, answered=False)
    require_unique_ids(examples)
    encoded = encode_prompts(examples, tokenizer, prompts.get(template), max_length)
    number = checkpoint.find_step(directory, step)
    kind = llama.compute_dtype(dtype, jax.default_backend())
    settings = {
        "checkpoint": str(paths.absolute(directory)),
        "step": number,
        "input": provenance.sha256(input_path),
        "dataset": input_path.name.split(".")[0],
        "template": template,
        "max_length": max_length,
        "max_new_tokens": max_new_tokens,
        "sampling": vars(sampling),
        "stop": list(stops),
        "dtype": str(kind),  # "auto" differs between machines
        "generator": generator,
    }
    if provenance.is_finished(output, settings):
        print(f"{output} is finished", file=sys.stderr)
        return
    record = provenance.describe(config=settings)
    partial = answer_file.go_on(output, settings)
    engine = load_engine(
        directory,
        number,
        config,
        devices,
        tensor,
        dtype=kind,
        eos_ids=eos_ids(directory, tokenizer),
        max_length=max_length,
        slots=batch_size,
        sampling=sampling,
    )
    prompts_left = ((i, ids) for i, ids in enumerate(encoded) if i not in partial.answers)
    requests = [decoding.Request(i, ids, max_new_tokens or max_length) for i, ids in prompts_left]
    for index, answer in answers(engine, requests, tokenizer, stops):
        partial.add(index, as_record(examples[index], answer, settings))
    provenance.write_json(provenance.run_json(output), record | {"end": provenance.now()})
    partial.finish(output)


def define_flags() -> None:
    flags.DEFINE_string("checkpoint", None, "Model directory: from convert, or a train workdir.")
    flags.DEFINE_string("step", "best", "best (by eval loss, else latest), latest or a number.")
    flags.DEFINE_string("input", None, "Records: .jsonl or .json, .gz or not.")
    flags.DEFINE_string("output", None, "Answers: .json (alpaca_eval reads it) or .jsonl.")
    flags.DEFINE_string("template", "alpaca", "Prompt template.")
    flags.DEFINE_integer(
        "max_length", 1024, "Most tokens of prompt and answer together.", lower_bound=2
    )
    flags.DEFINE_integer(
        "max_new_tokens", 0, "Most tokens of an answer; 0: what max_length leaves.", lower_bound=0
    )
    flags.DEFINE_integer(
        "batch_size", 16, "Answers generated at a time, by all devices.", lower_bound=1
    )
    flags.DEFINE_integer("tensor", 1, "Devices that share the weights.", lower_bound=1)
    flags.DEFINE_float("temperature", 0.0, "0: always the most likely token.")
    flags.DEFINE_integer("top_k", 0, "Draw from the k most likely; 0: all.")
    flags.DEFINE_float("top_p", 1.0, "Draw from the fewest whose probabilities reach p.")
    flags.DEFINE_float("repetition_penalty", 1.0, "Over 1: repeat less.")
    flags.DEFINE_integer("seed", 0, "Of the random numbers.")
    flags.DEFINE_multi_string("stop", [], "End an answer before this text; may be given again.")
    flags.DEFINE_enum("dtype", "auto", ["auto", "float32", "bfloat16"], "Compute dtype.")
    flags.DEFINE_string("generator", "", "Name in the output; the checkpoint's folder by default.")
    flags.mark_flags_as_required(["checkpoint", "input", "output"])


def main(argv: Sequence[str]) -> None:
    del argv
    FLAGS = flags.FLAGS
    paths.check(FLAGS.checkpoint, FLAGS.input, FLAGS.output)
    directory = Path(FLAGS.checkpoint)
    run(
        directory=directory,
        step=FLAGS.step,
        input_path=Path(FLAGS.input),
        output=Path(FLAGS.output),
        template=FLAGS.template,
        max_length=FLAGS.max_length,
        max_new_tokens=FLAGS.max_new_tokens,
        batch_size=FLAGS.batch_size,
        devices=jax.local_devices(),
        tensor=FLAGS.tensor,
        sampling=decoding.Sampling(
            FLAGS.temperature, FLAGS.top_k, FLAGS.top_p, FLAGS.repetition_penalty, FLAGS.seed
        ),
        stops=FLAGS.stop,
        dtype=FLAGS.dtype,
        generator=FLAGS.generator or paths.absolute(directory).name,
    )


if __name__ == "__main__":
    define_flags()
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    cli.run(main)
