"""Claim: greedy decoding on CPU is faster than transformers', alone and in batches.

    python -m benchmarks.decoding --checkpoint=quickstart/base

`single`: 64 new tokens after one prompt of about 60. `batch`: 48 prompts of the starter set, 16 at
a time, each with its own number of new tokens, 10 to 160, drawn once: an answer ends there on both
sides, and EOS is ignored. Ours is `inference.engine.Engine`, which refills a slot as its answer
ends. The peer is transformers' generate, left-padded, where a batch runs until its longest answer
is done. Beside it run our engine with one slot, and with `invariant`, which computes all slots in
every step. `first token`: how long a request waits while 15 answers are generated, and how long
they wait for a prompt of many chunks.

Targets: at least 1.5 x the tokens a second alone; in batches 2.5 x generate's and 4 x those of one
slot. The first token is there after the burst of decode steps under way and one chunk of prefill.
Only ratios within a round count; absolute times depend on the machine and the hour.
"""

import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from absl import flags

from alpacare_jax.checkpoints import model_folder
from alpacare_jax.data import encoding
from benchmarks.support import models, race
from common import cli

if TYPE_CHECKING:
    from alpacare_jax.inference.engine import Engine

SLOTS, MAX_LENGTH = 16, 1024

CASES = {
    "single": {"generate": 1.5},
    "batch": {"generate": 2.5, "one slot": 4.0, "invariant": None},
}
"""Who works beside ours, and the ratio of tokens a second to reach; None: its price is asked."""

FIRST_TOKEN = "first token"
"""The case that measures waits, of ours only."""

MARGIN = 1.15
"""What a measured wait may be of a burst and a chunk."""

Answerer = Callable[[list[list[int]], list[int]], list[list[int]]]
"""A function of prompts and of how many new tokens each gets."""


def work_list(folder: Path, case: str, count: int) -> tuple[list[list[int]], list[int]]:
    """Prompts, and how many new tokens each gets."""
    from alpacare_jax.data import prompts, tokenizers
    from common import records

    starter = Path(__file__).parents[1] / "datagen" / "starter"
    examples = [
        example
        for name in ("test.jsonl", "train.jsonl")
        for example in records.read_examples(starter / name)
    ]
    text, template = tokenizers.load(folder / "ours"), prompts.TEMPLATES["alpaca"]
    encoded = [encoding.encode_prompt(example, text, template) for example in examples]
    if case == "single":
        return [min(encoded, key=lambda ids: abs(len(ids) - 60))], [64]
    return encoded[:count], np.random.default_rng(0).integers(10, 161, count).tolist()


def make_engine(folder: Path, slots: int = SLOTS, invariant: bool = False) -> "Engine":
    import jax.numpy as jnp

    from alpacare_jax.checkpoints import checkpoint
    from alpacare_jax.inference.engine import Engine
    from alpacare_jax.model import layers

    path = folder / "ours"
    config = model_folder.read_config(path)
    params = checkpoint.load_params(path, config, dtype=jnp.float32)
    params |= {"layers": layers.unstack(params["layers"])}  # as `loading` does on CPUs
    engine = Engine(
        params,
        config,
        dtype=jnp.dtype("float32"),
        eos_ids=[-1],  # none: every answer goes on to its limit
        max_length=MAX_LENGTH,
        slots=slots,
        invariant=invariant,
    )
    engine.compile(race.log)
    return engine


def ours(folder: Path, slots: int = SLOTS, invariant: bool = False) -> Answerer:
    from alpacare_jax.inference.requests import Request

    engine = make_engine(folder, slots, invariant)

    def answer(prompts: list[list[int]], limits: list[int]) -> list[list[int]]:
        engine.use(engine.params)  # or prompts of the last round would not be computed again
        pairs = enumerate(zip(prompts, limits, strict=True))
        answers = engine.run([Request(i, *pair) for i, pair in pairs])
        return [answer.ids for answer in sorted(answers, key=lambda answer: answer.index)]

    return answer


def theirs(folder: Path) -> Answerer:
    import torch
    from transformers import StoppingCriteria, StoppingCriteriaList

    model = models.load_torch(folder / "theirs").eval()
    model.generation_config.eos_token_id = None

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
        )
        new = output[:, width:].tolist()
        return [row[:limit] for row, limit in zip(new, limits, strict=True)]

    def answer(prompts: list[list[int]], limits: list[int]) -> list[list[int]]:
        starts = range(0, len(prompts), SLOTS)
        batches = [(prompts[i : i + SLOTS], limits[i : i + SLOTS]) for i in starts]
        return [ids for batch in batches for ids in generate(*batch)]

    return answer


def first_token(folder: Path, rounds: int = 5) -> race.Work:
    """Seconds of a chunk and of a burst, and of what is made of both."""
    from alpacare_jax.inference.requests import Request

    engine, draw = make_engine(folder), np.random.default_rng(0)

    def submit(index: int, length: int, limit: int) -> None:
        ids = draw.integers(3, engine.config.vocab_size, length).tolist()
        engine.submit(Request(index, ids, limit))

    def steps(index: int) -> list[float]:
        """Seconds of each step until a request is reported."""
        took, found = [], []
        while all(progress.index != index for progress in found):
            began = time.perf_counter()
            found = engine.step()
            took.append(time.perf_counter() - began)
        return took

    def work(rounds: int) -> race.Result:
        result = {name: [] for name in ("chunks", "bursts", "waits", "pauses")}
        newcomer = SLOTS
        for _ in range(rounds):
            submit(newcomer, engine.chunk, 1)
            result["chunks"].append(sum(steps(newcomer)))
        for i in range(SLOTS - 1):
            submit(i, 40, MAX_LENGTH)
        steps(SLOTS - 2)
        for _ in range(rounds):
            burst = sum(steps(0))
            submit(newcomer, engine.chunk, 1)  # it has come when the burst began, the worst moment
            result["waits"].append(burst + sum(steps(newcomer)))
            result["bursts"].append(burst)
        steps(0)
        submit(newcomer, MAX_LENGTH - 1, 1)
        result["pauses"] = steps(newcomer)
        for i in range(SLOTS - 1):
            engine.cancel(i)
        return result

    work(1)
    return lambda: work(rounds)


CONTENDERS: dict[str, Callable[[Path], Answerer]] = {
    "ours": ours,
    "generate": theirs,
    "one slot": lambda folder: ours(folder, slots=1),
    "invariant": lambda folder: ours(folder, invariant=True),
}


def set_up(name: str, folder: Path, case: str, count: int) -> race.Work:
    """A contender that has compiled, and answered a prompt."""
    prompts, limits = work_list(folder, case, count)
    answer = CONTENDERS[name](folder)
    answer(prompts[:1], [2])
    return lambda: {"answers": answer(prompts, limits)}


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


def compare(folder: Path, case: str) -> None:
    """Races the contenders of a case, and prints what came out."""

    def speed(seconds, result):
        return sum(map(len, result["answers"])) / seconds

    contenders = race.run(
        "benchmarks.decoding",
        ["ours", *CASES[case]],
        rounds=flags.FLAGS.rounds,
        warm_ups=0,
        arguments=[f"--folder={folder}", f"--case={case}"],
    )
    race.report(f"greedy decoding, {case}, float32", contenders, "new tokens per second", speed)
    for contender in contenders[1:]:
        report_agreement(contenders[0], contender)
        ratio = statistics.median(race.ratios(contenders[0], contender, speed))
        if target := CASES[case][contender.name]:
            what = f"{case}: tokens/s against {contender.name}"
            race.verdict(what, ratio, target, at_most=False)


def report_waits(folder: Path) -> None:
    """Measures the waits of requests, and prints them."""
    arguments = [f"--folder={folder}", f"--case={FIRST_TOKEN}"]
    (found,) = race.run("benchmarks.decoding", ["ours"], rounds=1, warm_ups=0, arguments=arguments)
    race.headline("first token among 15 answers, float32", ("jax",))
    result = found.results[0]
    for name, what in (
        ("chunks", "a chunk of prefill, alone"),
        ("bursts", "a burst of decode steps"),
        ("waits", "a first token that is asked for as a burst begins"),
        ("pauses", f"between two bursts of the others, a prompt of {MAX_LENGTH - 1:,} tokens"),
    ):
        print(f"{what:<60} {race.spread(result[name], 2)} s")
    bound = sum(statistics.median(result[name]) for name in ("chunks", "bursts"))
    for name in ("waits", "pauses"):
        ratio = statistics.median(result[name]) / bound
        race.verdict(f"{name} against a burst and a chunk", ratio, MARGIN, at_most=True)


def main(argv: Sequence[str]) -> None:
    del argv
    FLAGS = flags.FLAGS
    if FLAGS.worker:
        folder, case = Path(FLAGS.folder), FLAGS.case
        race.serve(
            lambda: (
                first_token(folder)
                if case == FIRST_TOKEN
                else set_up(FLAGS.worker, folder, case, FLAGS.prompts)
            )
        )
        return
    with models.both_forms(FLAGS.checkpoint) as folder:
        for case in CASES:
            if FLAGS.case in ("", case):
                compare(folder, case)
        if FLAGS.case in ("", FIRST_TOKEN):
            report_waits(folder)


def define_flags() -> None:
    flags.DEFINE_string("checkpoint", "quickstart/base", "Model directory.")
    flags.DEFINE_integer("rounds", 2, "Times each contender works.", lower_bound=1)
    flags.DEFINE_integer("prompts", 48, "batch: how many.", lower_bound=2)
    flags.DEFINE_enum("case", "", ["", *CASES, FIRST_TOKEN], "Only this one.")
    flags.DEFINE_string("worker", "", "Internal.")
    flags.DEFINE_string("folder", "", "Internal.")


if __name__ == "__main__":
    define_flags()
    cli.run(main)
