"""Writes small workdirs of evaluation.judge, with any verdicts."""

import functools
import json
import tempfile
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path

from evaluation.judgements import reading, workdirs
from evaluation.judgements.verdicts import ORDERS
from evaluation.scoring.measurement import measure
from evaluation.scoring.results import Results


def write_lines(path: Path, records: Sequence[dict]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return path


def judgement(
    name: str,
    order: str,
    verdict: str,
    *,
    benchmark: str = "heart",
    generator: str = "ours",
    reference: str = "gpt-4",
    judge: str = "j",
) -> dict:
    return {
        "id": name,
        "benchmark": benchmark,
        "generator": generator,
        "reference": reference,
        "judge": judge,
        "order": order,
        "verdict": verdict,
        "raw": f"{judge} says {verdict}",
        "prompt_version": f"{judge}-1",
        "usage": None,
    }


def write(
    folder: Path,
    verdict: Callable[[dict], str],
    *,
    items: dict[str, Sequence[str]],
    systems: Sequence[str] = ("ours",),
    references: Sequence[str] = ("gpt-4",),
    judges: Sequence[str] = ("j",),
    text: Callable[[str, str], str] = lambda generator, name: f"{generator} on {name}.",
) -> Path:
    """A workdir with every judge on every pair; `items` are ids by benchmark.

    `verdict` maps a judgement without its verdict to one; `text` maps a generator and an id.
    """
    judged = []
    for judge in judges:
        for benchmark, names in items.items():
            for reference in references:
                for generator in systems:
                    for name in names:
                        for order in ORDERS:
                            record = judgement(
                                name,
                                order,
                                "",
                                benchmark=benchmark,
                                generator=generator,
                                reference=reference,
                                judge=judge,
                            )
                            chosen = verdict(record)
                            record |= {"verdict": chosen, "raw": f"{judge} says {chosen}"}
                            judged.append(record)
    write_lines(folder / "judgements.jsonl", judged)
    questions = [
        {"id": name, "benchmark": benchmark, "instruction": f"What of {name}?", "input": ""}
        | {"topic": f"topic {place % 2}", "difficulty": 1 + place % 3}
        for benchmark, names in items.items()
        for place, name in enumerate(names)
    ]
    write_lines(folder / "items.jsonl", questions)
    outputs = [
        {"benchmark": item["benchmark"], "id": item["id"], "generator": generator}
        | {"output": text(generator, item["id"]), "finish_reason": "stop", "num_tokens": 4}
        for generator in (*systems, *references)
        for item in questions
    ]
    write_lines(folder / "outputs.jsonl", outputs)
    return folder


SET = {
    "items": {"heart": [f"h{i}" for i in range(12)], "lung": [f"l{i}" for i in range(4)]},
    "systems": ("ours-7b", "ours-13b", "theirs-7b"),
    "references": ("claude-2", "gpt-4"),
    "judges": ("strict", "lenient/gpt"),
}
HOSTILE = '</script><script>document.title = "hacked"</script><b>&amp;{output_1}\u2028' + 200 * "w"


def a_verdict(record: dict) -> str:
    """A reproducible pseudo-random verdict that favours `ours` and first answers."""
    drawn = zlib.crc32(repr(sorted(record.items())).encode()) % 100
    if drawn < 4:
        return "invalid"
    if drawn < 14:
        return "tie"
    bonus = 20 * record["generator"].startswith("ours") + 10 * (record["order"] == ORDERS[0])
    return "model" if drawn < 45 + bonus else "reference"


def write_set(folder: Path) -> Path:
    """Two judges on three systems, two references and two test sets; one answer is hostile."""
    hostile = ("ours-7b", "h1")

    def text(generator: str, name: str) -> str:
        if (generator, name) == hostile:
            return HOSTILE
        return f"{generator} on {name}. " * (1 + len(generator) % 4)

    return write(folder, a_verdict, text=text, **SET)


@functools.cache
def read_set() -> tuple:
    """Verdicts, people's verdicts and texts of `write_set`, whose files are deleted."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = write_set(Path(temporary))
        found, people = reading.read([folder], [write_labels(folder / "labels.jsonl")])
        return found, people, workdirs.read([folder], found)


@functools.cache
def measure_set() -> Results:
    """The results of `write_set`."""
    return measure(*read_set(), seed=0)


def write_labels(path: Path) -> Path:
    """Verdicts of a person on some pairs, in one order each."""
    pairs = [
        judgement(name, ORDERS[place % 2], ("model", "reference", "tie")[place % 3], judge="human")
        | {"generator": generator, "reference": "gpt-4"}
        for generator in SET["systems"]
        for place, name in enumerate(SET["items"]["heart"][:7])
    ]
    return write_lines(path, pairs)
