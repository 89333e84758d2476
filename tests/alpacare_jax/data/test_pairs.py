"""Pairs of answers, from files of several forms and from judgements."""

import dataclasses
import itertools
import json
from pathlib import Path

import pytest

from alpacare_jax.data.pairs import read_pairs
from common import jsonl
from common.records import Example


def write(path: Path, *records: dict) -> Path:
    jsonl.write(path, records)
    return path


CHOSEN = Example("0", "Why?", "", "Because.")
REJECTED = Example("0", "Why?", "", "No idea.")


def says(*texts: str) -> list[dict]:
    return [
        {"role": role, "content": text}
        for role, text in zip(itertools.cycle(("user", "assistant")), texts, strict=False)
    ]


@pytest.mark.parametrize(
    "record",
    [
        {"prompt": "Why?", "chosen": "Because.", "rejected": "No idea."},
        {"instruction": "Why?", "chosen": "Because.", "rejected": "No idea."},
        {"question": "Why?", "input": "N/A", "chosen": "Because.", "rejected": "No idea."},
        {
            "prompt": says("Why?"),
            "chosen": [{"role": "assistant", "content": "Because."}],
            "rejected": [{"role": "assistant", "content": "No idea."}],
        },
        {
            "prompt": "Why?",  # as in UltraFeedback, whose answers repeat it
            "chosen": says("Why?", "Because."),
            "rejected": says("Why?", "No idea."),
        },
        {"chosen": says("Why?", "Because."), "rejected": says("Why?", "No idea.")},
        {
            "prompt": "Why?",
            "chosen": {"from": "gpt", "value": "Because."},
            "rejected": {"from": "gpt", "value": "No idea."},
        },
    ],
    ids=lambda record: "-".join(record),
)
def test_forms_of_files(tmp_path, record):
    assert read_pairs(write(tmp_path / "pairs.jsonl", record)) == [(CHOSEN, REJECTED)]
    (tmp_path / "pairs.json").write_text(json.dumps([record, record]))
    assert [pair[0].id for pair in read_pairs(tmp_path / "pairs.json")] == ["0", "1"]


def test_pairs_of_conversations(tmp_path):
    begun = says("Hello.", "Hello!", "Why?")
    for prompt, before in ((begun, []), ("Why?", begun)):
        chosen, rejected = (
            [*before, {"role": "assistant", "content": text}] for text in ("Because.", "No idea.")
        )
        record = {"prompt": prompt, "chosen": chosen, "rejected": rejected, "system": "Be brief."}
        ((one, other),) = read_pairs(write(tmp_path / "pairs.jsonl", record))
        assert one.history == (("system", "Be brief."), ("user", "Hello."), ("assistant", "Hello!"))
        assert (one.instruction, one.output) == ("Why?", "Because.")
        assert other == dataclasses.replace(one, output="No idea.")


@pytest.mark.parametrize(
    "record, reason",
    [
        (
            {"prompt": "a", "chosen": "b"},
            "field 'rejected' is missing; a pair has chosen, rejected",
        ),
        ({"chosen": "b", "rejected": "c"}, "field 'instruction' is missing"),
        ({"instruction": "a", "output": "b"}, "field 'chosen' is missing"),
        ({"prompt": "a", "chosen": 3, "rejected": "c"}, "field 'chosen' must be a list of turns"),
        (
            {"chosen": says("a", "b"), "rejected": says("c", "d")},
            "'chosen' and 'rejected' answer different prompts",
        ),
        (
            {"prompt": "a", "chosen": says("a"), "rejected": says("a")},
            "does not end with a question",
        ),
    ],
)
def test_wrong_records_are_named(tmp_path, record, reason):
    good = {"prompt": "a", "chosen": "b", "rejected": "c"}
    path = write(tmp_path / "pairs.jsonl", good, record)
    with pytest.raises(ValueError, match=r"pairs\.jsonl:2: ") as raised:
        read_pairs(path)
    assert reason in str(raised.value)


def judge(folder: Path, verdicts: dict[str, tuple[str, ...]], judges=("pairwise/m",)) -> Path:
    """A workdir of `evaluation.judge`: id -> verdicts, by judge and order."""
    lines = [
        {"id": id_, "benchmark": "own", "generator": "mine", "reference": "other", "judge": judge}
        | {"order": order, "verdict": verdict, "raw": "...", "prompt_version": "1"}
        for id_, found in verdicts.items()
        for (judge, order), verdict in zip(
            itertools.product(judges, ("model_first", "reference_first")), found, strict=False
        )
    ]
    items = [
        {"id": id_, "benchmark": "own", "instruction": f"q{id_}", "input": f"x{id_}"}
        for id_ in verdicts
    ]
    outputs = [
        {"id": id_, "benchmark": "own", "generator": name, "output": f"{name} to {id_}"}
        for id_ in verdicts
        for name in ("mine", "other")
    ]
    for name, found in (("items", items), ("outputs", outputs), ("judgements", lines)):
        write(folder / f"{name}.jsonl", *found)
    return folder / "judgements.jsonl"


def test_judgements_that_agree_in_both_orders_are_pairs(tmp_path):
    verdicts = {
        "1": ("model", "model"),
        "2": ("reference", "reference"),
        "3": ("model", "reference"),
        "4": ("tie", "tie"),
        "5": ("model", "tie"),
        "6": ("invalid", "model"),
        "7": ("tie", "invalid"),
    }
    path, reported = judge(tmp_path, verdicts), []
    mine, other = (
        [Example(f"own/{i}", f"q{i}", f"x{i}", f"{name} to {i}") for i in "12"]
        for name in ("mine", "other")
    )
    assert read_pairs(path, report=reported.append) == [(mine[0], other[0]), (other[1], mine[1])]
    assert reported == [
        f"{path}: the verdicts agree on 2 of 7 pairs; left out: 1 contradictory, 2 tied, 2 invalid"
    ]


def test_several_judges_must_agree(tmp_path):
    verdicts = {"1": ("model",) * 4, "2": ("model", "model", "reference", "reference")}
    reported = []
    (pair,) = read_pairs(judge(tmp_path, verdicts, ("a/m", "b/m")), report=reported.append)
    assert pair[0].output == "mine to 1"
    assert reported[0].endswith("agree on 1 of 2 pairs; left out: 1 contradictory")


def test_judgements_without_what_they_need(tmp_path):
    path = judge(tmp_path, {"1": ("model", "model"), "2": ("model",)})
    with pytest.raises(ValueError, match="id '2' lacks the order reference_first by pairwise/m"):
        read_pairs(path)
    judge(tmp_path, {"1": ("tie", "tie")})
    with pytest.raises(ValueError, match="agree on 0 of 1 pairs; left out: 1 tied; judge more"):
        read_pairs(path)
    judge(tmp_path, {"1": ("model", "great")})
    with pytest.raises(ValueError, match="id '1' has the verdict 'great', which is none"):
        read_pairs(path)
    judge(tmp_path, {"1": ("model", "model")})
    write(tmp_path / "outputs.jsonl")
    with pytest.raises(ValueError, match=r"outputs.jsonl lacks '1' of 'mine' of 'own'"):
        read_pairs(path)
    (tmp_path / "items.jsonl").unlink()
    with pytest.raises(FileNotFoundError, match=r"items.jsonl, with the texts, does not exist"):
        read_pairs(path)
    path.write_text("")
    with pytest.raises(ValueError, match="contains no records"):
        read_pairs(path)
