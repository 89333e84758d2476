"""The partial output: what survives a kill, and whose answers it holds."""

import json

import pytest

from alpacare_jax.inference import answer_file

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


def test_a_line_damaged_in_the_middle_is_named_and_generated_again(output, capsys):
    lines = partial_of(output).read_bytes().split(b"\n")
    lines[2] = lines[2][:9] + lines[2][20:]
    partial_of(output).write_bytes(b"\n".join(lines))
    partial = answer_file.PartialOutput(output, SETTINGS)
    assert partial.answers == {index: RECORDS[index] for index in (2, 3, 1)}
    damaged, resumed = capsys.readouterr().err.splitlines()
    assert damaged == f"{partial_of(output)}:3 is damaged; its answer is generated again"
    assert resumed == "resuming: 3 answers already generated"


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
    records = [*RECORDS, {"output": "", "finish_reason": answer_file.TOO_LONG}]
    partial.add(4, records[4])
    partial.finish()
    text = output.read_text(encoding="utf-8")
    assert (
        json.loads(text) if suffix == ".json" else [json.loads(x) for x in text.split("\n")[:-1]]
    ) == records
    assert [path.name for path in tmp_path.iterdir()] == [output.name]
    assert capsys.readouterr().err == (
        f"{output}: 5 answers, 2 of them truncated at the length limit, 1 empty because the prompt "
        "is too long\n"
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
