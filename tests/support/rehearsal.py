"""The settings, files and server with which launch/paper.sh --size=tiny rehearses the paper.

One tiny model with random weights is trained and asked; a scripted server writes tasks, answers,
references and verdicts, the same ones whenever it is asked the same.
"""

import contextlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from common import jsonl, records
from tests.support import teacher
from tests.support.chat_server import ChatServer, question

ITEMS = 6


def answer(body: dict) -> str:
    """What the server says to a request."""
    draw = teacher.drawn(body)
    if teacher.is_for_tasks(body):
        return teacher.write_tasks(body)
    if "Output (a), Output (b) or Tie" in question(body):
        return draw.choice(("Output (a)", "Output (b)", "Tie"))
    if "criteria_met" in question(body):
        return json.dumps({"explanation": "", "criteria_met": draw.random() < 0.5})
    return f"{' '.join(draw.sample(teacher.WORDS, 6))}."


def write_answers(path: Path, seeds: list[dict], step: int) -> None:
    """Published answers: each is every so many-th letter of its question."""
    texts = [records.join_text(seed["instruction"], seed["input"]) for seed in seeds]
    jsonl.write(path, ({"instruction": text, "output": text[::step]} for text in texts))


def write_files(folder: Path) -> None:
    """The base model, a test set, and published answers to it; those that are there stay."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = Path("datagen/starter/test.jsonl").read_text().splitlines()[:ITEMS]
    seeds = [json.loads(line) for line in lines]
    jsonl.write(folder / "test.jsonl", seeds)
    write_answers(folder / "reference.jsonl", seeds, step=2)
    write_answers(folder / "published.jsonl", seeds[::-1], step=3)
    question_of = {"options": ["fever", "cough"], "answer": "A"}
    jsonl.write(folder / "choices.jsonl", [{"id": "1", "question": "What is hot?"} | question_of])
    criteria = [{"criterion": f"Names {word}.", "points": 5} for word in ("fever", "cough")]
    asked = ((seed["id"], [{"role": "user", "content": seed["instruction"]}]) for seed in seeds[:2])
    lines = ({"id": name, "prompt": turns, "rubrics": criteria} for name, turns in asked)
    jsonl.write(folder / "rubric.jsonl", lines)
    if not (folder / "base").exists():
        from alpacare_jax.model.config import VARIANTS
        from tests.conftest import make_model

        made = make_model(folder / f"base-{os.getpid()}", VARIANTS["tiny"])
        made.rename(folder / "base")


@contextlib.contextmanager
def server(folder: Path) -> Iterator[str]:
    """The address of a server of this process, the same one whenever it is started."""
    port = folder / "port"
    try:
        started = ChatServer(port=int(port.read_text()) if port.exists() else 0)
    except OSError:  # another program has it now
        started = ChatServer()
    started.answer = answer
    port.write_text(started.url.rpartition(":")[2])
    try:
        yield f"{started.url}/v1"
    finally:
        started.close()


@contextlib.contextmanager
def prepare(settings: dict[str, Any], folder: Path, base_url: str) -> Iterator[str]:
    """Changes the paper's settings, and writes the files; yields the server's address.

    Args:
      base_url: of a server that is there; "": one is started.
    """
    write_files(folder)
    settings["datagen"]["tasks"]["num_tasks"] = 24
    settings["trained"] = "alpacare-7b"
    settings["benchmarks"] = {
        "tiny": {
            "file": str(folder / "test.jsonl"),
            "references": f"gpt-4={folder}/reference.jsonl,sol",
            "imported": f"published={folder}/published.jsonl",
        }
    }
    luna = settings["judges"]["luna"]
    settings["judges"] = {"luna": luna}
    settings["live"] = {"sol": luna | {"chat": luna["chat"] | {"model": "gpt-6.1-sol"}}}
    training = {
        "model.checkpoint": folder / "base",
        "model.variant": "tiny",
        "data.max_length": 512,
        "data.max_row_length": 512,
        "train.batch_size": 8,
        "train.epochs": 1,
        "train.microbatch_tokens": 1024,
    }
    settings["flags"] |= {
        "train": " ".join(f"--config.{key}={value}" for key, value in training.items()),
        "generate": "--max_new_tokens=16 --batch_size=4",
        "rubric": "--max_tokens=8",
        "serve": "--slots=1 --max_length=160 --template=plain",
    }
    settings |= {"choices": f"{folder}/choices.jsonl", "rubric": f"{folder}/rubric.jsonl"}
    settings["devices"] |= {
        "topology": settings["devices"]["topology"] and "local",
        "price": 1.0,
        "example_tokens": 64,
        "new_tokens": 16,
        "slots": 4,
        "generate": "--prompt_tokens=64 --config.sharding.fsdp=1",
    }
    with server(folder) if not base_url else contextlib.nullcontext(base_url) as url:
        yield url
