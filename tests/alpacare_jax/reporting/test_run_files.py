"""What is read from a workdir, whatever state it is in."""

import doctest
import itertools
import json

import pytest
from etils import epath

from alpacare_jax.reporting import comparison, run_files, run_page
from tests.support.run_folders import TIME, event, sample, write


def read(folder):
    return run_files.read(epath.Path(folder))


def test_the_examples_in_the_docstrings_are_true():
    result = doctest.testmod(run_files)
    assert result.attempted and not result.failed


def test_the_numbers_of_a_finished_run(tmp_path):
    run = read(write(tmp_path / "a"))
    assert (run.name, run.state, run.finished) == ("a", "finished", True)
    assert (run.last_step, run.num_steps, run.seconds) == (20, 20, 40.0)
    assert run.loss == pytest.approx(2.9) and run.best == (20, pytest.approx(2.8))
    assert run.tokens_per_second == 1000, "the first step compiled"
    assert [x for x, _ in run.curve("eval_loss")] == [0, 10, 20]
    assert run.curve("unknown") == []


@pytest.mark.parametrize(
    ("events", "state"),
    [
        ([], "unfinished, at step 12"),
        ([event("stopped", 11)], "stopped at step 11"),
        ([event("failed", 12)], "failed at step 12"),
        ([event("stopped", 8), event("resume", 8, num_steps=20)], "unfinished, at step 12"),
        ([event("failed", 9), event("saved", 9)], "failed at step 9"),
    ],
)
def test_what_ended_a_run(tmp_path, events, state):
    run = read(write(tmp_path / "a", steps=12, events=events))
    assert (run.state, run.num_steps) == (state, 20)


def test_the_steps_after_each_start_are_no_pace(tmp_path):
    run = read(write(tmp_path / "a", events=[event("resume", 10, num_steps=20)]))
    assert [x for x, _ in run.pace("seconds")] == [*range(2, 11), *range(12, 21)]
    assert [x for x, _ in read(write(tmp_path / "b", steps=1)).pace("seconds")] == [1]


ODD = (None, [], {"a": 1}, "x", -1, 1.5, 10**400, float("nan"))


def test_a_line_with_an_odd_value_is_skipped_or_has_no_point(tmp_path):
    """Whatever the damage, the run can be shown."""
    folder = write(tmp_path / "a", events=[sample(0, "x"), event("resume", 3), event("failed", 9)])
    for name in ("metrics.jsonl", "events.jsonl"):
        whole = (folder / name).read_text()
        records = [json.loads(line) for line in whole.splitlines()[1:4]]
        for record, value in itertools.product(records, ODD):
            lines = [json.dumps(record | {key: value}) for key in (*record, "num_steps")]
            lines += [json.dumps({k: v for k, v in record.items() if k != key}) for key in record]
            (folder / name).write_text(whole + "\n".join([*lines, '{"a":' * 10**5, "[" * 10**5]))
            run = read(folder)
            assert (run.last_step, run.num_steps) == (20, 20)
            run_page.page(run, TIME.format(59))
            comparison.page([run], TIME.format(59))
        (folder / name).write_text(whole)


def test_damaged_lines_are_skipped_and_an_empty_folder_is_a_run_that_has_not_started(tmp_path):
    folder = write(tmp_path / "a", steps=3)
    for name in ("metrics.jsonl", "events.jsonl"):
        with open(folder / name, "a") as file:
            file.write('[1]\nnull\n{"step": 9, "loss": NaN, "kind": "odd"}\n{"step": 4, "lo')
    run = read(folder)
    assert len(run.events) == 1 and run.curve("loss")[-1][0] == 3
    empty = read(tmp_path)
    assert (empty.state, empty.loss, empty.best, empty.tokens_per_second) == (
        "not started",
        None,
        None,
        None,
    )
    (folder / "run.json").write_text("{")
    with pytest.raises(ValueError, match=r"run\.json is damaged"):
        read(folder)
