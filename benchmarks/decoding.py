"""Claim: greedy decoding on CPU is faster than transformers', alone and in batches.

    python -m benchmarks.decoding --checkpoint=quickstart/base

`single`: 64 new tokens after one prompt of about 60. `batch`: 48 prompts of the starter set, 16 at
a time, each with its own number of new tokens, 10 to 160, drawn once: an answer ends there on both
sides, and EOS is ignored. Ours is `inference.engine.Engine`, which refills a slot as its
answer ends. The peer is transformers' generate, left-padded, where a batch runs until its longest
answer is done. Beside it run, where they work on this machine, its compiled form with a static
cache and its newer continuous batching, which refills as ours does.

Target: at least 1.5 x the tokens a second alone and 2 x in batches, against generate.
Only ratios within a round count; absolute times depend on the machine and the hour.
"""

import statistics
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from absl import flags

from alpacare_jax.checkpoints import model_folder
from alpacare_jax.data import encoding
from benchmarks.support import models, race
from common import cli

TARGETS = {"single": 1.5, "batch": 2.0}
OPTIONAL = ("continuous batching", "generate, compiled")
"""They may fail here, or take too long; the table then says so."""


def work_list(folder: Path, case: str) -> tuple[list[list[int]], list[int]]:
    """Prompts, and how many new tokens each gets."""
    from alpacare_jax.data import prompts, tokenizers
    from common import records

    FLAGS = flags.FLAGS
    starter = Path("datagen/starter")
    examples = [
        example
        for name in ("test.jsonl", "train.jsonl")
        for example in records.read_examples(starter / name)
    ]
    text, template = tokenizers.load(folder / "ours"), prompts.TEMPLATES["alpaca"]
    encoded = [encoding.encode_prompt(example, text, template) for example in examples]
    if case == "single":
        return [min(encoded, key=lambda ids: abs(len(ids) - 60))], [FLAGS.new_tokens]
    count = FLAGS.prompts
    return encoded[:count], np.random.default_rng(0).integers(10, 161, count).tolist()


def ours(folder: Path, case: str, slots: int | None = None) -> race.Work:
    import jax.numpy as jnp

    from alpacare_jax.checkpoints import checkpoint
    from alpacare_jax.inference.engine import Engine
    from alpacare_jax.inference.requests import Request

    path = folder / "ours"
    config = model_folder.read_config(path)
    prompts, limits = work_list(folder, case)
    engine = Engine(
        checkpoint.load_params(path, config, dtype=jnp.float32),
        config,
        dtype=jnp.dtype("float32"),
        eos_ids=[-1],  # none: every answer goes on to its limit
        max_length=1024,
        slots=slots or min(flags.FLAGS.slots, len(prompts)),
    )

    def work() -> race.Result:
        engine.use(engine.params)  # or prompts of the last round would not be computed again
        pairs = enumerate(zip(prompts, limits, strict=True))
        requests = [Request(i, prompt, limit) for i, (prompt, limit) in pairs]
        answers = sorted(engine.run(requests), key=lambda answer: answer.index)
        return {"answers": [answer.ids for answer in answers]}

    return work


def theirs(folder: Path, case: str, compiled: bool) -> race.Work:
    import torch
    from transformers import CompileConfig, StoppingCriteria, StoppingCriteriaList

    slots = flags.FLAGS.slots
    prompts, limits = work_list(folder, case)
    model = models.load_torch(folder / "theirs").eval()
    model.generation_config.eos_token_id = None
    options = {}
    if compiled:
        compile_config = CompileConfig(mode="default")
        compile_config._compile_all_devices = True  # else generate compiles on GPUs only
        options = {"cache_implementation": "static", "compile_config": compile_config}

    class RowsDone(StoppingCriteria):
        """Which rows have their number of new tokens."""

        def __init__(self, width: int, limits: Sequence[int]):
            self.ends = width + torch.tensor(limits)

        def __call__(self, input_ids, scores, **_):
            return input_ids.shape[1] >= self.ends

    def generate(prompts: Sequence[list[int]], limits: Sequence[int]) -> list[list[int]]:
        width = max(map(len, prompts))
        ids = torch.zeros((len(prompts), width), dtype=torch.long)
        mask = torch.zeros_like(ids)
        for row, prompt in enumerate(prompts):
            ids[row, width - len(prompt) :] = torch.tensor(prompt)
            mask[row, width - len(prompt) :] = 1
        output = model.generate(
            ids,
            attention_mask=mask,
            do_sample=False,
            pad_token_id=0,
            max_new_tokens=max(limits),
            stopping_criteria=StoppingCriteriaList([RowsDone(width, limits)]),
            **options,
        )
        new = output[:, width:].tolist()
        return [row[:limit] for row, limit in zip(new, limits, strict=True)]

    def work() -> race.Result:
        answers = []
        for i in range(0, len(prompts), slots):
            answers += generate(prompts[i : i + slots], limits[i : i + slots])
        return {"answers": answers}

    return work


def continuous(folder: Path, case: str) -> race.Work:
    """transformers' own continuous batching."""
    from transformers import ContinuousBatchingConfig, GenerationConfig

    prompts, limits = work_list(folder, case)
    model = models.load_torch(folder / "theirs").eval()
    slots, page = flags.FLAGS.slots, 256
    settings = ContinuousBatchingConfig(
        page_size=page,
        num_blocks=slots * 1024 // page,
        max_batch_tokens=1024,
        max_requests_per_batch=slots,
    )
    greedy = GenerationConfig(do_sample=False, eos_token_id=-1, pad_token_id=0)

    def work() -> race.Result:
        manager = model.continuous_batching_context_manager(
            generation_config=greedy, continuous_batching_config=settings
        )
        answers = {}
        with manager as running:
            for i, (prompt, limit) in enumerate(zip(prompts, limits, strict=True)):
                running.add_request(prompt, request_id=str(i), max_new_tokens=limit)
            for result in running:
                if result.is_finished():
                    answers[int(result.request_id)] = result.generated_tokens
                if len(answers) == len(prompts):
                    break
        if len(answers) < len(prompts):
            raise RuntimeError(f"only {len(answers)} of {len(prompts)} answers came")
        return {"answers": [answers[i] for i in sorted(answers)]}

    return work


CONTENDERS = {
    "ours": ours,
    "generate": lambda folder, case: theirs(folder, case, compiled=False),
    "ours, one by one": lambda folder, case: ours(folder, case, slots=1),
    "continuous batching": continuous,
    "generate, compiled": lambda folder, case: theirs(folder, case, compiled=True),
}


def same_start(a: Sequence[int], b: Sequence[int]) -> int:
    """How many tokens come before the first difference."""
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=True)) if x != y), len(a))


def report_agreement(ours: race.Contender, other: race.Contender) -> None:
    pairs = list(zip(ours.results[-1]["answers"], other.results[-1]["answers"], strict=True))
    whole = sum(a == b for a, b in pairs)
    share = sum(same_start(a, b) for a, b in pairs) / sum(len(a) for a, _ in pairs)
    print(
        f"ours and {other.name}: {whole} of {len(pairs)} answers are equal, {share:.1%} of all "
        "tokens come before a first difference"
    )


def main(argv: Sequence[str]) -> None:
    del argv
    FLAGS = flags.FLAGS
    if FLAGS.worker:
        race.serve(lambda: CONTENDERS[FLAGS.worker](Path(FLAGS.folder), FLAGS.case))
        return

    def speed(seconds, result):
        return sum(map(len, result["answers"])) / seconds

    with models.both_forms(FLAGS.checkpoint) as folder:
        for case in [FLAGS.case] if FLAGS.case else TARGETS:
            contenders = race.run(
                "benchmarks.decoding",
                race.left(CONTENDERS, FLAGS.skip),
                rounds=FLAGS.rounds,
                warm_ups=1,
                arguments=[f"--folder={folder}", f"--case={case}"],
                optional=OPTIONAL,
                limit_s=FLAGS.limit_s,
            )
            race.report(
                f"greedy decoding, {case}, float32", contenders, "new tokens per second", speed
            )
            for contender in contenders[1:]:
                if not contender.failure:
                    report_agreement(contenders[0], contender)
            ratio = statistics.median(race.ratios(contenders[0], contenders[1], speed))
            what = f"{case}: tokens/s against generate"
            race.verdict(what, ratio, TARGETS[case], at_most=False)


if __name__ == "__main__":
    flags.DEFINE_string("checkpoint", "quickstart/base", "Model directory.")
    flags.DEFINE_integer("rounds", 5, "Times each contender works.", lower_bound=1)
    flags.DEFINE_integer("new_tokens", 64, "single: tokens of the answer.", lower_bound=2)
    flags.DEFINE_integer("prompts", 48, "batch: how many.", lower_bound=2)
    flags.DEFINE_integer("slots", 16, "batch: answers at a time.", lower_bound=1)
    flags.DEFINE_integer("limit_s", 900, "The compiled one is out if it takes longer to be ready.")
    flags.DEFINE_list("skip", [], "Leave contenders out by a word: compile, which takes minutes.")
    flags.DEFINE_enum("case", "", ["", *TARGETS], "Only this one.")
    flags.DEFINE_string("worker", "", "Internal.")
    flags.DEFINE_string("folder", "", "Internal.")
    cli.run(main)
