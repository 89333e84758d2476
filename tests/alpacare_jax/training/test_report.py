"""events.jsonl and report.html while a run goes on; what cannot be written stops nothing."""

import json

import pytest
from etils import epath

from alpacare_jax.reporting import run_page
from alpacare_jax.training import report
from alpacare_jax.training.report import RunReport
from tests.support.training import resume, stopped_run

pytestmark = pytest.mark.usefixtures("quickly_compiled")


def events(workdir, *kinds):
    lines = (workdir / "events.jsonl").read_text().splitlines()
    found = [json.loads(line) for line in lines]
    return [(e["kind"], e["step"]) for e in found if not kinds or e["kind"] in kinds]


def test_a_whole_run_notes_its_start_saves_and_end(finished):
    assert events(finished.workdir) == [
        ("start", 0),
        ("saved", 4),
        ("saved", 8),
        ("saved", 10),
        ("finished", 10),
    ]
    for step in (4, 8, 10):
        assert finished.err.count(f"\nsaved step {step}\n") == 1
    assert finished.err.index("saved step 10\n") < finished.err.index("\nfinished in")
    page = (finished.workdir / "report.html").read_text()
    assert ">finished</span>" in page
    assert (finished.workdir / "curves.svg").read_text().startswith("<svg")


def test_a_stop_and_a_resume_are_noted(corpus, tmp_path):
    config = stopped_run(corpus, tmp_path, step=3)
    assert events(tmp_path) == [("start", 0), ("saved", 3), ("stopped", 3)]
    assert ">stopped at step 3</span>" in (tmp_path / "report.html").read_text()
    resume(config, tmp_path)
    assert events(tmp_path, "start", "resume", "finished") == [
        ("start", 0),
        ("resume", 3),
        ("finished", 10),
    ]
    page = (tmp_path / "report.html").read_text()
    assert "resumed from step 3" in page and ">finished</span>" in page


def test_pages_are_written_when_they_are_due_and_events_continue(tmp_path, monkeypatch):
    clock, steps = [0.0], [{"step": 1, "loss": 2.5}]
    monkeypatch.setattr(report.time, "monotonic", lambda: clock[0])
    written = RunReport(epath.Path(tmp_path), steps)
    written.add("start", 0, "started", num_steps=4)
    written.refresh()
    written._writing.result()
    page = tmp_path / "report.html"
    assert "step 1 of 4" in page.read_text()
    steps.append({"step": 2, "loss": 2.0})
    written.refresh()
    assert written._writing is None, "it is not due"
    clock[0] = report.LOCAL_INTERVAL
    written.refresh()
    written._writing.result()
    assert "step 2 of 4" in page.read_text()
    written.close()
    again = RunReport(epath.Path(tmp_path), steps)
    again.add("resume", 2, num_steps=4)
    again.close()
    assert events(tmp_path) == [("start", 0), ("resume", 2)]


def test_a_slow_page_is_written_less_often(tmp_path, monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(report.time, "monotonic", lambda: clock[0])
    written = RunReport(epath.Path(tmp_path), [])
    monkeypatch.setattr(written, "_write", lambda *_: 3.0)
    written.refresh()
    written._writing.result()
    written.refresh()  # sees that it took three seconds, of which no hour may have more than 36
    clock[0] = 299.0
    written.refresh()
    assert written._writing is None
    clock[0] = 300.0
    written.refresh()
    assert written._writing is not None
    written.close()


@pytest.mark.parametrize("error", [OSError("disk full"), ZeroDivisionError()])
def test_a_page_that_cannot_be_written_is_reported_once(tmp_path, monkeypatch, capsys, error):
    def fail(*_):
        raise error

    monkeypatch.setattr(run_page, "page", fail)
    monkeypatch.setattr(report, "LOCAL_INTERVAL", 0.0)
    written = RunReport(epath.Path(tmp_path), [])
    for _ in range(3):
        written.refresh()
        with pytest.raises(type(error)):
            written._writing.result()
    written.close()
    reason = str(error) or "ZeroDivisionError"
    line = f"report.html could not be written ({reason}); training does not need it\n"
    assert capsys.readouterr().err == line
