"""The partial output: what survives a kill, and whose answers it holds."""

import json

import pytest

from alpacare_jax.inference import answer_file
from common import provenance

SETTINGS = {"step": 7}
RECORDS = [
    {"output": f"患者 {i}\n≥ 37.5 °C", "finish_reason": reason}
    for i, reason in enumerate(["stop", "length", "stop", "length"])
]
ORDER = [2, 0, 3, 1]  # answers finish in any order


def partial_of(output):
    return output.with_name(output.name + ".partial")


@pytest.fixture
def output(tmp_path):
    """The output of a run that was killed after four answers."""
    output = tmp_path / "out" / "answers.json"
    partial = answer_file.PartialOutput(output, SETTINGS)
    for index in ORDER:
        partial.add(index, RECORDS[index])
    return output


def test_a_killed_run_resumes(output, capsys):
    partial = answer_file.PartialOutput(output, SETTINGS)
    assert partial.answers == dict(enumerate(RECORDS))
    assert capsys.readouterr().err == "resuming: 4 answers already generated\n"
    assert not output.exists()


@pytest.mark.parametrize(
    ("cut", "lost"),
    [("line end", 0), ("half a line", 1), ("half a character", 1), ("the header", 4), ("all", 4)],
)
def test_a_line_cut_short_by_a_kill_is_lost_alone(output, cut, lost):
    content = partial_of(output).read_bytes()
    last = content.rstrip(b"\n").rfind(b"\n") + 1
    end = {
        "line end": len(content) - 1,
        "half a line": last + 20,
        "half a character": content.index("患".encode(), last) + 1,
        "the header": 9,
        "all": 0,
    }[cut]
    partial_of(output).write_bytes(content[:end])
    partial = answer_file.PartialOutput(output, SETTINGS)
    kept = ORDER[: 4 - lost]
    assert partial.answers == {index: RECORDS[index] for index in kept}
    for index in set(ORDER) - set(kept):
        partial.add(index, RECORDS[index])
    assert answer_file.PartialOutput(output, SETTINGS).answers == dict(enumerate(RECORDS))


def test_every_flipped_bit_of_an_answer_is_found_and_counted(output, capsys):
    whole = partial_of(output).read_bytes()
    begin = whole.index(b"\n", whole.index(b"\n") + 1) + 1
    for place in range(begin, whole.index(b"\n", begin)):
        damaged = bytearray(whole)
        damaged[place] ^= 1 << place % 7  # for some bits the text stays valid JSON
        partial_of(output).write_bytes(damaged)
        partial = answer_file.PartialOutput(output, SETTINGS)
        assert partial.answers == {index: RECORDS[index] for index in (2, 3, 1)}, bytes(damaged)
        found, resumed = capsys.readouterr().err.splitlines()
        assert found.endswith("the first in line 3; they are generated again")
        assert resumed == "resuming: 3 answers already generated"


@pytest.mark.parametrize("line", [b"", b"null", b'{"index": 0}', b"[" * 100_000, b"\xff", b"7"])
def test_damaged_lines_are_counted(output, capsys, line):
    lines = partial_of(output).read_bytes().split(b"\n")
    partial_of(output).write_bytes(b"\n".join([*lines[:2], line, line, *lines[4:]]))
    partial = answer_file.PartialOutput(output, SETTINGS)
    assert partial.answers == {index: RECORDS[index] for index in (2, 1)}
    assert f"{partial_of(output)}: 2 of 4 answers are damaged" in capsys.readouterr().err


def test_a_damaged_header_is_an_error(output):
    content = partial_of(output).read_bytes()
    for header in (b"", b"[]", b'{"settings": 3}', b'{"settings": {"st'):
        damaged = header + content[content.index(b"\n") :]
        partial_of(output).write_bytes(damaged)
        with pytest.raises(ValueError, match=r"answers\.json\.partial:1 .*delete it"):
            answer_file.PartialOutput(output, SETTINGS)
        assert partial_of(output).read_bytes() == damaged


@pytest.mark.parametrize("suffix", [".json", ".jsonl"])
def test_finish_writes_input_order(tmp_path, suffix, capsys):
    output = tmp_path / f"answers{suffix}"
    partial = answer_file.PartialOutput(output, SETTINGS)
    for index in ORDER:
        partial.add(index, RECORDS[index])
    ended = [{"output": "", "finish_reason": reason} for reason in (answer_file.TOO_LONG, "stop")]
    records = [*RECORDS, *ended]
    for index, record in enumerate(ended, start=4):
        partial.add(index, record)
    partial.finish({"config": SETTINGS})
    text = output.read_text(encoding="utf-8")
    assert (
        json.loads(text) if suffix == ".json" else [json.loads(x) for x in text.split("\n")[:-1]]
    ) == records
    run_json = provenance.run_json(output)
    assert sorted(tmp_path.iterdir()) == [output, run_json]
    assert json.loads(run_json.read_text())["sha256"] == provenance.sha256(output)
    assert provenance.is_finished(output, SETTINGS)
    assert capsys.readouterr().err == (
        f"{output}: 6 answers; 2 of them were truncated at the length limit, 1 are empty because "
        "the model ended them at once, 1 because the prompt is too long\n"
    )


def test_answers_of_another_run_are_left_alone(output):
    before = partial_of(output).read_bytes()
    with pytest.raises(ValueError, match=r"answers\.json\.partial .*\(step: 7 before, 8 now"):
        answer_file.PartialOutput(output, {"step": 8})
    assert partial_of(output).read_bytes() == before
    foreign = output.with_name("foreign.json")
    partial_of(foreign).write_text('{"index": 0, "record": {}}\n')
    with pytest.raises(ValueError, match=r"foreign\.json\.partial:1 .*delete"):
        answer_file.PartialOutput(foreign, SETTINGS)


def test_a_run_without_answers_is_replaced(tmp_path, capsys):
    output = tmp_path / "answers.json"
    partial_of(output).write_text('{"settings": {"step": 8}}\n')
    assert answer_file.PartialOutput(output, SETTINGS).answers == {}
    assert capsys.readouterr().err == ""
