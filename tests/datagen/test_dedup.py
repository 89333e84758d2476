"""The dedup command: modes, --against, what the files hold, kills and errors."""

import gzip
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from common import messages
from datagen import dedup
from datagen.dedup import Nearest, nearest_neighbours
from tests.common.text.test_near_duplicates import CORPUS, expected, score, variants
from tests.conftest import LIMIT, REPOSITORY, needs_data
from tests.support import commands

CHAIN = ["a b c d e f g h", "a b c d e f x h", "a b c d y f x h", "p q r"]
"""0 and 1 are near, 1 and 2 too, 0 and 2 are not quite at 0.8."""


def write(path: Path, records) -> Path:
    lines = (json.dumps(record, ensure_ascii=False) + "\n" for record in records)
    path.write_text("".join(lines), encoding="utf-8")
    return path


def read(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def kept(texts, *args, **options) -> list[int]:
    nearest = nearest_neighbours(texts, *args, **options)
    return [position for position, neighbour in enumerate(nearest) if neighbour is None]


@pytest.fixture
def run(tmp_path, capsys):
    """Runs the command's work: (kept, dropped, lines on stderr)."""

    def run(records, **changes):
        source = changes.pop("input_path", tmp_path / "in.jsonl")
        if records is not None:
            write(source, records)
        output = changes.pop("output", tmp_path / "out" / "kept.jsonl")
        usual = {"against": [], "threshold": 0.7, "mode": "greedy", "tokenizer": "rouge"}
        options = usual | {"fields": "instruction"} | changes
        dedup.run(input_path=source, output=output, **options)
        dropped = output.with_name(output.name + ".dropped.jsonl")
        return read(output), read(dropped), capsys.readouterr().err.splitlines()

    return run


# Modes.


def test_greedy_compares_with_what_is_kept_only():
    close = score(CHAIN[0], CHAIN[1])
    assert score(CHAIN[0], CHAIN[2]) < 0.8 < close == score(CHAIN[1], CHAIN[2])
    nearest = nearest_neighbours(CHAIN, threshold=0.8)
    assert nearest == [None, Nearest(False, 0, close), None, None]
    assert kept(CHAIN[1:] + CHAIN[:1], threshold=0.8) == [0, 2]


def test_drop_both_drops_every_member_of_a_near_pair():
    close = score(CHAIN[0], CHAIN[1])
    nearest = nearest_neighbours(CHAIN, threshold=0.8, mode="drop_both")
    assert nearest == [Nearest(False, i, close) for i in (1, 0, 1)] + [None]
    assert kept(["same", "same"], mode="drop_both") == []
    assert kept(["same", "same"], mode="greedy") == [0]


def test_drop_both_names_the_nearest_before_or_after():
    texts = ["a b c d e f g h", "a b c d e f x h", "a b c d e f g h i"]
    nearest = nearest_neighbours(texts, mode="drop_both")
    assert [neighbour.position for neighbour in nearest] == [2, 0, 0]


@pytest.mark.parametrize("threshold", [0.3, 0.5, 0.7, 0.9])
@pytest.mark.parametrize("mode", dedup.MODES)
def test_modes_against_brute_force(mode, threshold):
    texts = variants(120, seed=2)
    outside, texts = texts[:30], texts[30:]
    pairs = expected(outside + texts, threshold)
    gone, reasons = set(), {}
    for i in range(30, 120):
        near = {j: pairs[i, j] for j in range(i) if (i, j) in pairs}
        if mode == "drop_both":
            near |= {j: pairs[j, i] for j in range(i, 120) if (j, i) in pairs}
        else:
            near = {j: value for j, value in near.items() if j not in gone}
        near = {j: value for j, value in near.items() if j < 30} or near
        if near:
            gone.add(i)
            j = max(near, key=lambda j: (near[j], -j))
            reasons[i - 30] = Nearest(j < 30, j if j < 30 else j - 30, near[j])
    assert len(reasons) > 10
    ours = nearest_neighbours(texts, outside, threshold=threshold, mode=mode)
    assert {i: neighbour for i, neighbour in enumerate(ours) if neighbour} == reasons


@needs_data
@pytest.mark.slow
@pytest.mark.parametrize(("mode", "count"), [("greedy", 48_088), ("drop_both", 45_169)])
def test_what_is_kept_of_the_corpus(mode, count):
    texts = json.loads(gzip.decompress(CORPUS.read_bytes()))
    assert len(kept(texts, mode=mode)) == count


def test_an_unknown_mode():
    with pytest.raises(ValueError, match="unknown mode 'both'; "):
        nearest_neighbours(["a"], mode="both")


# What the files hold.

RECORDS = [
    {"id": "a", "instruction": "List three causes of chest pain.", "topic": "heart", "n": 1},
    {"id": "b", "instruction": "Why is the sky blue?", "input": "", "output": "x"},
    {"id": "c", "instruction": "List four causes of chest pain!", "source": {"seeds": [1]}},
    {"id": "d", "instruction": "高血压的症状"},
    {"id": "e", "instruction": "高血压的症状"},
]


def test_kept_records_keep_their_fields_and_order(run):
    kept, dropped, said = run(RECORDS)
    assert [record["id"] for record in kept] == ["a", "b", "d", "e"]
    assert kept[0] == RECORDS[0] | {"input": ""}
    assert kept[1] == RECORDS[1]
    assert len(dropped) == 1
    nearest = dropped[0].pop("nearest")
    assert dropped[0] == RECORDS[2] | {"input": ""}
    assert Path(nearest.pop("file")).name == "in.jsonl"
    text = RECORDS[0]["instruction"]
    assert nearest == {"id": "a", "text": text, "score": score(text, RECORDS[2]["instruction"])}
    assert said == [
        "5 records read, 4 kept",
        "1 dropped as near-duplicates of other records",
        "2 texts without tokens, never dropped; use --tokenizer=unicode for other scripts",
    ]


def test_the_unicode_tokenizer_reads_every_script(run):
    kept, _, said = run(RECORDS, tokenizer="unicode")
    assert [record["id"] for record in kept] == ["a", "b", "d"]
    assert said == ["5 records read, 3 kept", "2 dropped as near-duplicates of other records"]


def test_records_without_id_are_named_by_position(run):
    kept, dropped, _ = run([{"instruction": text} for text in ("one two", "x", "One, two")])
    assert [record["id"] for record in kept] == ["0", "1"]
    assert (dropped[0]["id"], dropped[0]["nearest"]["id"]) == ("2", "0")


def test_against_names_the_nearest_test_item_and_its_file(run, tmp_path):
    seeds = write(tmp_path / "seeds.jsonl", [{"instruction": "Name the bones of the hand."}])
    test = tmp_path / "test.json"
    items = ["List two causes of chest pain now.", "List five causes of chest pain.", "?"]
    test.write_text(json.dumps([{"id": 7 + i, "instruction": t} for i, t in enumerate(items)]))
    records = [*RECORDS[:3], {"id": "f", "instruction": "Name all the bones of the hand."}]
    kept, dropped, said = run(records, against=[seeds, test])
    assert [record["id"] for record in kept] == ["b"]
    found = {record["id"]: record["nearest"] for record in dropped}
    assert [found[id]["file"] for id in "acf"] == [str(test), str(test), str(seeds)]
    assert [found[id]["id"] for id in "acf"] == ["8", "8", "0"]
    assert found["c"]["text"] == items[1]
    assert found["c"]["score"] == score(records[2]["instruction"], items[1])
    assert said == [
        "4 records read, 1 kept",
        "0 dropped as near-duplicates of other records",
        f"1 dropped against {seeds}",
        f"2 dropped against {test}",
    ]


def test_a_test_item_is_named_before_a_nearer_record(run, tmp_path):
    test = write(tmp_path / "test.jsonl", [{"instruction": "a b c d e f g x"}])
    records = [{"instruction": "a b c d e f g h"}] * 2
    for mode in dedup.MODES:
        kept, dropped, _ = run(
            records, against=[test], mode=mode, output=tmp_path / f"{mode}.jsonl"
        )
        assert not kept
        assert {record["nearest"]["file"] for record in dropped} == {str(test)}


@pytest.mark.parametrize(("fields", "left"), [("instruction", 1), ("instruction_input", 2)])
def test_which_fields_are_compared(run, fields, left):
    texts = ["I have had a fever for a week", "my left knee hurts on stairs"] * 2
    kept, dropped, _ = run(
        [{"instruction": "Answer it", "input": text} for text in texts], fields=fields
    )
    assert len(kept) == left
    separator = {"instruction": "", "instruction_input": "\n\n" + texts[1]}[fields]
    assert dropped[-1]["nearest"]["text"] == "Answer it" + separator


def test_the_compared_text_is_what_a_person_would_send():
    record = {"instruction": "Explain.", "input": "Fever"}
    assert dedup.compared_text(record, "instruction_input") == "Explain.\n\nFever"
    assert dedup.compared_text(record | {"input": ""}, "instruction_input") == "Explain."
    assert dedup.compared_text(record, "instruction") == "Explain."


def test_run_json_explains_the_output(run, tmp_path):
    test = write(tmp_path / "test.jsonl", [{"instruction": "Why is the sky so blue?"}])
    run(RECORDS, against=[test], mode="drop_both")
    record = json.loads((tmp_path / "out" / "kept.jsonl.run.json").read_text())
    assert record["config"]["mode"] == "drop_both"
    assert record["config"]["threshold"] == 0.7
    assert record["files"]["against"] == [str(test)]
    assert record["packages"]["rapidfuzz"]
    assert record["end"] >= record["start"]
    assert record["counts"] == {
        "read": 5,
        "kept": 2,
        "near_duplicates": 2,
        "against": {str(test): 1},
        "without_tokens": 2,
    }


def test_the_same_input_gives_the_same_bytes(run, tmp_path):
    records = [{"instruction": text} for text in variants(200) if text]
    for folder in ("one", "two"):
        run(records, output=tmp_path / folder / "kept.jsonl", threshold=0.6)
    for name in ("kept.jsonl", "kept.jsonl.dropped.jsonl"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


def test_run_again_it_is_finished_and_other_flags_do_not_overwrite(run, tmp_path):
    run(RECORDS)
    output = tmp_path / "out" / "kept.jsonl"
    before = output.stat().st_mtime_ns
    assert run(RECORDS)[2] == [f"{output} is complete; nothing to do"]
    with pytest.raises(ValueError, match=r"kept\.jsonl exists .*\(threshold: 0.7 before, 0.5 now"):
        run(RECORDS, threshold=0.5)
    with pytest.raises(ValueError, match=r"\(input: '[0-9a-f]{12}\.\.\.' before, "):
        run(RECORDS[:4])
    assert output.stat().st_mtime_ns == before


def test_input_that_was_only_moved_is_the_same_input(run, tmp_path):
    run(RECORDS)
    moved = (tmp_path / "in.jsonl").rename(tmp_path / "moved.jsonl")
    output = tmp_path / "out" / "kept.jsonl"
    assert run(None, input_path=moved)[2] == [f"{output} is complete; nothing to do"]


def test_progress_is_shown(capsys, monkeypatch):
    monkeypatch.setattr(messages, "LOG_INTERVAL", -1.0)
    nearest_neighbours(["a", "b"])
    assert capsys.readouterr().err == "1/2 texts compared\n2/2 texts compared\n"


# The command, in a process of its own.

KILLED = """
import os, signal, sys
from absl import flags
from common import cli
from datagen import dedup

replace, left = os.replace, int(sys.argv.pop())

def die_instead(*args):
    global left
    left -= 1
    if left < 0:
        os.kill(os.getpid(), signal.SIGKILL)
    replace(*args)

os.replace = die_instead
dedup.define_flags()
cli.run(dedup.main)
"""


def command(*arguments: object, program=("-m", "datagen.dedup")) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, *program, *map(str, arguments)],
        env=os.environ | {"PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
        timeout=LIMIT,
    )


@pytest.mark.slow
def test_killed_at_any_write_the_output_is_whole_or_not_there(tmp_path):
    source = write(tmp_path / "in.jsonl", [{"instruction": text} for text in variants(50) if text])
    whole = tmp_path / "whole.jsonl"
    assert command(f"--input={source}", f"--output={whole}").returncode == 0
    output = tmp_path / "kept.jsonl"
    flags = f"--input={source}", f"--output={output}"
    for writes in range(3):
        done = command(*flags, writes, program=("-c", KILLED))
        assert done.returncode == -signal.SIGKILL
        assert not output.exists()
    done = command(*flags, 3, program=("-c", KILLED))
    assert (done.returncode, done.stdout) == (0, "")
    assert output.read_bytes() == whole.read_bytes()
    names = {path.name for path in tmp_path.iterdir() if path.name.startswith("kept")}
    made = {"kept.jsonl", "kept.jsonl.dropped.jsonl", "kept.jsonl.run.json"}
    assert names == made  # nothing of the dead is left


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["--threshold=1"], 2, "threshold"),
        (["--threshold=0"], 2, "must be between 0 and 1"),
        (["--threshold=nan"], 2, "threshold"),
        (["--mode=both"], 2, "greedy"),
        (["--tokenizer=latin"], 2, "unicode"),
        (["--fields=output"], 2, "instruction_input"),
        (["--against=absent.jsonl"], 1, "no such file: absent.jsonl"),
    ],
)
def test_errors_are_one_line(tmp_path, arguments, code, said):
    source = write(tmp_path / "in.jsonl", RECORDS)
    output = tmp_path / "x.jsonl"
    done = commands.run("datagen.dedup", f"--input={source}", f"--output={output}", *arguments)
    assert (done.returncode, done.stdout) == (code, "")
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1
    assert said in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["in.jsonl"]


def test_files_that_are_read_are_not_overwritten(run, tmp_path):
    source = write(tmp_path / "kept.jsonl.dropped.jsonl", RECORDS)
    for output in (source, tmp_path / "kept.jsonl"):
        with pytest.raises(ValueError, match=r"dropped\.jsonl would be overwritten"):
            run(None, input_path=source, output=output)
        with pytest.raises(ValueError, match=r"dropped\.jsonl would be overwritten"):
            run(RECORDS, against=[source], output=output)
    assert read(source) == RECORDS
    with pytest.raises(ValueError, match="--against contains the input"):
        run(None, input_path=source, against=[tmp_path / "." / source.name])
    with pytest.raises(ValueError, match=r"kept\.json must end in \.jsonl"):
        run(RECORDS, output=tmp_path / "kept.json")


@pytest.mark.parametrize("text", ["", '{"instruction": 3}\n', "{\n"])
def test_a_bad_input_is_named(run, tmp_path, text):
    source = tmp_path / "bad.jsonl"
    source.write_text(text)
    with pytest.raises(ValueError, match=r"bad\.jsonl"):
        run(None, input_path=source)
