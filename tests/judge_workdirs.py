"""Writes small workdirs of evaluation.judge, with any verdicts."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path

ORDERS = ("model_first", "reference_first")


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

    `verdict` is given a judgement without its verdict; `text` a generator and an id.
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
                            said = verdict(record)
                            record |= {"verdict": said, "raw": f"{judge} says {said}"}
                            judged.append(record)
    write_lines(folder / "judgements.jsonl", judged)
    asked = [
        {"id": name, "benchmark": benchmark, "instruction": f"What of {name}?", "input": ""}
        | {"topic": f"topic {place % 2}", "difficulty": 1 + place % 3}
        for benchmark, names in items.items()
        for place, name in enumerate(names)
    ]
    write_lines(folder / "items.jsonl", asked)
    outputs = [
        {"benchmark": item["benchmark"], "id": item["id"], "generator": generator}
        | {"output": text(generator, item["id"]), "finish_reason": "stop", "num_tokens": 4}
        for generator in (*systems, *references)
        for item in asked
    ]
    write_lines(folder / "outputs.jsonl", outputs)
    return folder
