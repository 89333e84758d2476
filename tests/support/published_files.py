"""Small synthetic files with every quirk of the published ones."""

import dataclasses
import gzip
import json
from pathlib import Path

import pytest

from evaluation.inputs import benchmarks

QUESTIONS = [
    "What is fever?",
    "Is it flu,\n or a cold?",
    "Name a DNA repair gene.",
    "Why rest?",
]
IDS = [0, 1, 2, 4]  # one is missing, so that rows and ids differ
POSTS = ["Hello doctor, my knee hurts.", "Hi,\nI cough at night. ", "Is RNA a vaccine?"]
DOCTOR = "If you are a doctor, answer the patient."
FARM = [("Name a river.", ""), ("Put it into French.", "Good day"), ("Put it into French.", "Bye")]


def merged(instruction: str, given: str) -> str:
    return f"{instruction}\n\n{given}" if given else instruction


def write(path: Path, records: list[dict]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    name = path.name.removesuffix(".gz")
    lines = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records)
    content = (json.dumps(records) if name.endswith(".json") else lines).encode()
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return path


def medinstruct(answers: bool = True) -> list[dict]:
    columns = ("gpt-4-answer", "claude-2", "gpt-3.5-turbo-answer", "text-davinci-003-answer")
    return [
        {"id": number, "instruction": question, "difficulty": str(number % 5 + 1)}
        | ({column: f"{column} on {number}" for column in columns} if answers else {})
        for number, question in zip(IDS, QUESTIONS, strict=True)
    ]


def published_outputs(texts: list[tuple[str, str]], by: str, **more) -> list[dict]:
    """Model outputs as published: ids are rows, and the answer is `response`."""
    return [
        more
        | {"id": row, "instruction": instruction}
        | ({"input": given} if given else {})
        | {"raw_output": f"Below ... ### Response:{by} {row}", "response": f"{by} {row}"}
        for row, (instruction, given) in enumerate(texts)
    ]


def references(model: str) -> tuple[list[dict], list[dict]]:
    """(MedInstruct, iCliniq) references of a model as published: without ids."""
    field = "response" if model == "claude-2" else "output"
    questions = [
        {"instruction": question, "input": "", field: f"{model}: {question}"}
        for question in QUESTIONS
    ]
    if model == "claude-2":
        posts = [
            {
                "response": f" {model}: {post}",
                "prompt": f"Human: {DOCTOR}\n\n{post.rstrip()}\nAssistant:",
            }
            for post in POSTS
        ]
    else:
        posts = [{"instruction": "", "input": p, "output": f"{model}: {p}"} for p in POSTS]
    return questions, posts


def write_original(data: Path) -> Path:
    """The layout of `data/` in the original repository."""
    write(data / "MedInstruct-test.jsonl", medinstruct())
    questions, posts = [(q, "") for q in QUESTIONS], [(DOCTOR, post) for post in POSTS]
    farm = [(merged(*pair), "") for pair in FARM]
    for model, name in (("AlpaCare-7b", "medinstruct"), ("alpaca-13b", "medsi")):
        folder = data / "model_ouputs" / model
        write(folder / name / "seed_0.json", published_outputs(questions, model))
        write(folder / "iCliniq/seed_0.json", published_outputs(posts, model))
        write(folder / "alpaca_eval/seed_0.json", published_outputs(farm, model))
    beside = {"dataset": "vicuna", "output": "the reference", "generator": "text_davinci_003"}
    folder = data / "model_ouputs/medalpaca-7b"
    write(folder / "alpaca_eval/seed_0.json", published_outputs(farm, "medalpaca", **beside))
    for model in ("gpt-4", "claude-2"):
        folder = data / "reference_outputs" / model
        for name, records in zip(("medsi", "iCliniq"), references(model), strict=True):
            write(folder / f"{name}_output.jsonl", records)
    return data


def write_flat(data: Path) -> Path:
    """The layout testsets/, references/NAME/, model_outputs/NAME/."""
    write(data / "testsets/MedInstruct-test.jsonl", medinstruct())
    posts = [{"id": i, "instruction": DOCTOR, "input": post} for i, post in enumerate(POSTS)]
    write(data / "testsets/iCliniq_1000.json", posts)
    farm = [
        {"instruction": a, "input": b, "datasplit": "eval", "dataset": "koala"} for a, b in FARM
    ]
    write(data / "testsets/alpaca_farm_805.json", farm)
    pairs = [(merged(*pair), "") for pair in FARM]
    folder = data / "model_outputs/alpacare-7b"
    write(folder / "alpaca_farm.json", published_outputs(pairs, "alpacare"))
    posts = [(DOCTOR, post) for post in POSTS]
    write(folder / "icliniq.json.gz", published_outputs(posts, "alpacare"))
    for model in ("gpt-4", "claude-2"):
        folder = data / "references" / model
        for name, records in zip(("medinstruct", "icliniq"), references(model), strict=True):
            write(folder / f"{name}.jsonl", records)
    answers = [{"instruction": a, "input": b, "output": a[::-1], "generator": "x"} for a, b in FARM]
    write(data / "references/gpt-3.5-turbo-0301/alpaca_farm.json", answers)
    return data


@pytest.fixture
def small(monkeypatch):
    """Published test sets have the sizes of the files here."""
    for name, size in {"medinstruct": 4, "icliniq": 3, "alpaca_farm": 3}.items():
        smaller = dataclasses.replace(benchmarks.BENCHMARKS[name], size=size)
        monkeypatch.setitem(benchmarks.BENCHMARKS, name, smaller)


@pytest.fixture
def original(tmp_path, small) -> Path:
    return write_original(tmp_path / "data")


@pytest.fixture
def flat(tmp_path, small) -> Path:
    return write_flat(tmp_path / "flat")
