"""Claim: scoring and reporting 388,032 verdicts takes under 60 s and 2 GiB.

    python -m benchmarks.report [--items=2021] [--folder=FOLDER]

Makes a judge's workdir of 2,021 items (the paper's three test sets) x 4 references x 12 systems x 2
judges x 2 orders, with answers of words drawn at random, as long as real ones, and reports it with
`evaluation.report` in a process of its own, whose time and peak memory count.
"""

import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from absl import flags

from benchmarks.support import race
from common import cli, jsonl
from evaluation.judgements import verdicts, workdirs

SECONDS, BYTES = 60.0, 2 * 2**30
"""Targets."""

SHARES = {"iCliniq": 1000, "AlpacaFarm": 805, "MedInstruct-test": 216}
REFERENCES = ("gpt-4", "gpt-3.5-turbo", "text-davinci-003", "claude-2")
SYSTEMS = 12
JUDGES = ("judge-one", "judge-two")
CHARACTERS = 1300
"""Of an answer, the mean: as long as the paper's references."""


def make_workdir(folder: Path, total: int) -> None:
    """Writes items.jsonl, outputs.jsonl and judgements.jsonl, the same for the same `total`."""
    draw = np.random.default_rng(0)
    letters = list("eeeeetttaaaooiinnsshhrrddlucmfwypvbgk")
    words = ["".join(draw.choice(letters, draw.integers(2, 11))) for _ in range(20_000)]
    weights = 1 / np.arange(1, len(words) + 1)
    weights /= weights.sum()

    def text(characters: int) -> str:
        return " ".join(words[i] for i in draw.choice(len(words), characters // 7 + 1, p=weights))

    whole = sum(SHARES.values())
    items = [
        (name, f"{i}") for name, n in SHARES.items() for i in range(max(1, n * total // whole))
    ]
    systems = [f"system-{i + 1}" for i in range(SYSTEMS)]
    jsonl.write(
        folder / workdirs.ITEMS_FILE,
        (
            {"id": i, "benchmark": name, "instruction": text(300), "input": "", "topic": ""}
            | {"difficulty": 1 + int(i) % 5}
            for name, i in items
        ),
    )
    jsonl.write(
        folder / workdirs.OUTPUTS_FILE,
        (
            {"benchmark": name, "id": i, "generator": generator, "finish_reason": "stop"}
            | {"output": text(int(draw.gamma(4, CHARACTERS / 4))), "num_tokens": None}
            for generator in (*systems, *REFERENCES)
            for name, i in items
        ),
    )
    jsonl.write(folder / verdicts.JUDGEMENTS_FILE, judgements(items, systems, draw))


def judgements(
    items: list[tuple[str, str]], systems: list[str], draw: np.random.Generator
) -> Iterator[dict]:
    """The next system is better than the last; judges like first answers; few replies are bad."""
    replies = {"model": "Output (a)", "reference": "Output (b)", "tie": "Tie", "invalid": "Sorry."}
    names = list(replies)
    for judge in JUDGES:
        for reference in REFERENCES:
            for number, generator in enumerate(systems):
                better = 0.25 + 0.4 * number / len(systems)
                for name, i in items:
                    for order, shift in (("model_first", 0.1), ("reference_first", -0.1)):
                        wins = better + shift
                        chances = [0.9 * wins, 0.9 * (1 - wins), 0.095, 0.005]
                        verdict = names[np.searchsorted(np.cumsum(chances)[:-1], draw.random())]
                        yield {
                            "id": i,
                            "benchmark": name,
                            "generator": generator,
                            "reference": reference,
                            "judge": judge,
                            "order": order,
                            "verdict": verdict,
                            "raw": replies[verdict],
                            "prompt_version": "alpacare-1",
                            "usage": {"input_tokens": 900, "output_tokens": 5},
                        }


def main(argv: Sequence[str]) -> None:
    del argv
    with tempfile.TemporaryDirectory(prefix="report-") as temporary:
        folder = Path(flags.FLAGS.folder or temporary)
        folder.mkdir(parents=True, exist_ok=True)
        if not (folder / verdicts.JUDGEMENTS_FILE).exists():
            make_workdir(folder, flags.FLAGS.items)
        output = Path(temporary) / "report"
        command = [sys.executable, "-m", "evaluation.report"]
        command += [f"--judgements={folder}", f"--output={output}"]
        start = time.perf_counter()
        subprocess.run(command, check=True)
        seconds = time.perf_counter() - start
        used = resource.getrusage(resource.RUSAGE_CHILDREN)
        peak = used.ru_maxrss * 1024
        found = json.loads((output / "report.json").read_text(encoding="utf-8"))
        page = os.path.getsize(output / "report.html")
        print(f"{found['verdicts']:,} verdicts; report.html {page / 2**20:.1f} MiB")
        print(f"{used.ru_utime + used.ru_stime:.1f} s of processor time")
    race.verdict("seconds", seconds, SECONDS, at_most=True)
    race.verdict("GiB", peak / 2**30, BYTES / 2**30, at_most=True)


if __name__ == "__main__":
    flags.DEFINE_integer("items", sum(SHARES.values()), "Test items.", lower_bound=3)
    flags.DEFINE_string("folder", "", "Where the workdir is, or is made.")
    cli.run(main)
