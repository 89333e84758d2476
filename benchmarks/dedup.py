"""Claim: 52,000 instructions are compared with each other in seconds, a new one in under 1 ms.

    ALPACARE_DATA=FOLDER python -m benchmarks.dedup [--data=instructions.jsonl]

Three take turns: ours finds all near pairs (ROUGE-L F above 0.7); ours admits new instructions to
the whole pool, one by one; and the original's method, as stanford_alpaca and AlpaCare have it:
rouge_score's `_score_lcs` over lists that are tokenised already, in a process pool that is made
anew for each instruction. The original would take a day, so it does `--sample` instructions, short
and long ones, against the whole pool a round, and its time for all pairs is EXTRAPOLATED from its
pairs a second. AlpaCare's filter compares every pair twice, which doubles that. The near pairs of
the sampled instructions must be the same on both sides.

Targets, on two cores: all pairs in at most 10 s and at least 10,000 x the original's rate, 1 ms for
a new instruction at a pool of 52,000, 1 GiB of memory. Ratios within a round count; absolute times
depend on the machine and the hour.
"""

import functools
import gzip
import itertools
import json
import multiprocessing
import os
import statistics
import time
from collections.abc import Sequence
from pathlib import Path

from absl import flags

from benchmarks.support import race
from common import cli
from common.records import read_records
from common.text.near_duplicates import NearDuplicates

THRESHOLD = 0.7
SECONDS, TIMES, MILLISECONDS, BYTES = 10.0, 10_000.0, 1.0, 2**30
"""Targets."""


def default_data() -> str:
    return str(Path(os.environ.get("ALPACARE_DATA", "")) / "corpora" / "instructions_52k.json.gz")


def load(path: str) -> list[str]:
    """Instructions of a file of records, or a gzipped array of texts."""
    if path.endswith(".json.gz"):
        with gzip.open(path, "rt", encoding="utf-8") as file:
            content = json.load(file)
        if all(isinstance(text, str) for text in content):
            return content
    return [record["instruction"] for record in read_records(path)]


def sampled(texts: list[str], sample: int) -> list[int]:
    """Positions of texts, evenly spread over the lengths: the original's time goes with them."""
    by_length = sorted(range(len(texts)), key=lambda position: len(texts[position]))
    return [by_length[(2 * i + 1) * len(texts) // (2 * sample)] for i in range(sample)]


def all_pairs(texts: list[str]) -> race.Work:
    def work() -> race.Result:
        index, near = NearDuplicates(THRESHOLD), [0] * len(texts)
        index.learn(texts)
        for position, text in enumerate(texts):
            for match in index.matches(text):
                near[position] += 1
                near[match.id] += 1
            index.add(text, position)
        return {
            "pairs": len(texts) * (len(texts) - 1) // 2,
            "near": [near[i] for i in sampled(texts, flags.FLAGS.sample)],
            "near_pairs": sum(near) // 2,
        }

    return work


def one_by_one(texts: list[str]) -> race.Work:
    index = NearDuplicates(THRESHOLD)
    index.learn(texts)
    for position, text in enumerate(texts):
        index.add(text, position)
    # Made-up instructions: the first half of one and the second half of another.
    halves = [text.split() for text in texts]
    new = iter(
        " ".join(one[: len(one) // 2] + other[len(other) // 2 :])
        for one, other in itertools.pairwise(halves)
    )

    def work() -> race.Result:
        pairs, milliseconds = 0, []
        for _ in range(flags.FLAGS.new):
            text = next(new)
            pairs += len(index)
            start = time.perf_counter()
            if index.nearest(text) is None:
                index.add(text, text)
            milliseconds.append(1e3 * (time.perf_counter() - start))
        return {"pairs": pairs, "milliseconds": milliseconds}

    return work


def original(texts: list[str]) -> race.Work:
    from rouge_score import rouge_scorer

    scorer = rouge_scorer.RougeScorer(["rougeL"], use_stemmer=False)
    tokens = [scorer._tokenizer.tokenize(text) for text in texts]

    def work() -> race.Result:
        near = []
        for position in sampled(texts, flags.FLAGS.sample):
            with multiprocessing.Pool(race.cores()) as pool:
                score = functools.partial(rouge_scorer._score_lcs, tokens[position])
                scores = [found.fmeasure for found in pool.map(score, tokens)]
            scores[position] = 0.0  # itself
            near.append(sum(score > THRESHOLD for score in scores))
        return {"pairs": len(near) * len(texts), "near": near}

    return work


CONTENDERS = {
    "ours, all pairs": all_pairs,
    "ours, one by one": one_by_one,
    "rouge_score, a pool": original,
}


def main(argv: Sequence[str]) -> None:
    del argv
    FLAGS = flags.FLAGS
    path = FLAGS.data or default_data()
    texts = load(path)
    if FLAGS.worker:
        race.serve(lambda: CONTENDERS[FLAGS.worker](texts))
        return
    if len(texts) <= FLAGS.new * (FLAGS.rounds + 1):
        raise ValueError(f"{path}: {len(texts):,} texts are too few; lower --new or --rounds")
    contenders = race.run("benchmarks.dedup", list(CONTENDERS), rounds=FLAGS.rounds, warm_ups=1)
    pairs, online, peer = contenders
    if pairs.first["near"] != peer.first["near"]:
        raise ValueError(f"near pairs differ: {pairs.first['near']}, {peer.first['near']}")

    def rate(seconds, result):
        return result["pairs"] / seconds

    title = f"ROUGE-L F > {THRESHOLD}, {len(texts):,} instructions of {Path(path).name}"
    packages = ("rapidfuzz", "numpy", "rouge_score")
    race.report(title, contenders, "thousand pairs per second", lambda *x: rate(*x) / 1e3, packages)
    seconds = statistics.median(pairs.seconds)
    hours = pairs.first["pairs"] / 3600 / statistics.median(map(rate, peer.seconds, peer.results))
    milliseconds = sorted(ms for result in online.results for ms in result["milliseconds"])
    print(
        f"ours: {pairs.first['near_pairs']:,} near pairs\n"
        f"rouge_score, a pool of {race.cores()}: {hours:,.1f} h for all pairs, EXTRAPOLATED from "
        f"{FLAGS.sample * FLAGS.rounds} x {len(texts):,} pairs\n"
        f"ours, one by one, ms: median {statistics.median(milliseconds):.3f}, "
        f"99 % {milliseconds[int(0.99 * len(milliseconds))]:.3f}, most {milliseconds[-1]:.3f}"
    )
    race.verdict("seconds for all pairs", seconds, SECONDS, at_most=True)
    ratio = statistics.median(race.ratios(pairs, peer, rate))
    race.verdict("pairs/s, all pairs, against rouge_score", ratio, TIMES, at_most=False)
    mean = statistics.mean(milliseconds)
    race.verdict("ms to admit one, mean", mean, MILLISECONDS, at_most=True)
    peak = max(pairs.peak_bytes, online.peak_bytes) / BYTES
    race.verdict("GiB at most", peak, 1.0, at_most=True)


if __name__ == "__main__":
    flags.DEFINE_string("data", "", "Records, or .json.gz texts; $ALPACARE_DATA's corpus.")
    flags.DEFINE_integer("sample", 6, "Instructions the original scores a round.", lower_bound=1)
    flags.DEFINE_integer("new", 1000, "Instructions admitted a round.", lower_bound=100)
    flags.DEFINE_integer("rounds", 3, "Times each contender works.", lower_bound=1)
    flags.DEFINE_string("worker", "", "Internal.")
    cli.run(main)
