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
    ("cut", "lost"), [("line end", 0), ("half a line", 1), ("half a character", 1), ("all", 4)]
)
def test_a_line_cut_short_by_a_kill_is_lost_alone(output, cut, lost):
    content = partial_of(output).read_bytes()
    last = content.rstrip(b"\n").rfind(b"\n") + 1
    end = {
        "line end": len(content) - 1,
        "half a line": last + 20,
        "half a character": content.index("患".encode(), last) + 1,
        "all": 0,
    }[cut]
    partial_of(output).write_bytes(content[:end])
    partial = answer_file.PartialOutput(output, SETTINGS)
    kept = ORDER[: 4 - lost]
    assert partial.answers == {index: RECORDS[index] for index in kept}
    for index in set(ORDER) - set(kept):
        partial.add(index, RECORDS[index])
    assert answer_file.PartialOutput(output, SETTINGS).answers == dict(enumerate(RECORDS))


@pytest.mark.parametrize("suffix", [".json", ".jsonl"])
def test_finish_writes_input_order(tmp_path, suffix, capsys):
    output = tmp_path / f"answers{suffix}"
    partial = answer_file.PartialOutput(output, SETTINGS)
    for index in ORDER:
        partial.add(index, RECORDS[index])
    partial.finish()
    text = output.read_text(encoding="utf-8")
    assert (
        json.loads(text) if suffix == ".json" else [json.loads(x) for x in text.split("\n")[:-1]]
    ) == RECORDS
    assert [path.name for path in tmp_path.iterdir()] == [output.name]
    assert capsys.readouterr().err == (
        f"{output}: 4 answers, 2 of them truncated at the length limit\n"
    )


def test_answers_of_another_run_are_left_alone(output):
    before = partial_of(output).read_bytes()
    with pytest.raises(ValueError, match=r"answers\.json\.partial .*different flags.*delete"):
        answer_file.PartialOutput(output, {"step": 8})
    assert partial_of(output).read_bytes() == before
    foreign = output.with_name("foreign.json")
    partial_of(foreign).write_text('{"index": 0, "record": {}}\n')
    with pytest.raises(ValueError, match=r"foreign\.json\.partial .*different flags.*delete"):
        answer_file.PartialOutput(foreign, SETTINGS)


def test_a_run_without_answers_is_replaced(tmp_path, capsys):
    output = tmp_path / "answers.json"
    partial_of(output).write_text('{"fingerprint": "of a run that came to no answer"}\n')
    assert answer_file.PartialOutput(output, SETTINGS).answers == {}
    assert capsys.readouterr().err == ""
