"""events.jsonl and report.html of a run in progress; process 0 alone writes them."""

import concurrent.futures
import json
import time
from collections.abc import Mapping, Sequence
from typing import Any

from etils import epath

from alpacare_jax.reporting import run_files, run_page
from alpacare_jax.reporting.run_files import RunFiles
from alpacare_jax.training.console import log
from common import jsonl, paths, provenance
from common.reports import drawing

LOCAL_INTERVAL, BUCKET_INTERVAL = 30.0, 600.0
"""Seconds between two versions of the page."""

MAX_SHARE = 0.01
"""Of the time that may be spent on the page."""


class RunReport:
    """Notes the events of a run, and keeps its page up to date in a thread of its own.

    A page that cannot be written is reported once, and stops nothing.
    """

    def __init__(self, workdir: epath.Path, steps: Sequence[Mapping[str, Any]]):
        """Continues events.jsonl.

        Args:
          steps: the content of metrics.jsonl, to which the caller adds.
        """
        self._workdir, self._steps = workdir, steps
        self._events = run_files.read_events(workdir / run_files.EVENTS)
        self._lines = jsonl.LineFile(workdir / run_files.EVENTS, map(_line, self._events))
        self._thread = concurrent.futures.ThreadPoolExecutor(1, "report")
        self._writing: concurrent.futures.Future[float] | None = None
        self._interval = BUCKET_INTERVAL if paths.in_bucket(workdir) else LOCAL_INTERVAL
        self._due, self._failed = 0.0, False

    def add(self, kind: str, step: int, text: str = "", **content: Any) -> None:
        """Notes an event of one of `run_files.KINDS`."""
        event = {"time": provenance.now(), "kind": kind, "step": step, "text": text} | content
        self._events.append(event)
        self._lines.add(_line(event))

    def refresh(self) -> None:
        """Has the page written if it is due; never waits for it."""
        if self._writing and self._writing.done():
            self._look_at(self._writing)
            self._writing = None
        if not self._writing and time.monotonic() >= self._due:
            self._due = time.monotonic() + self._interval
            self._writing = self._submit(figures=False)

    def _submit(self, *, figures: bool) -> concurrent.futures.Future[float]:
        steps, events = list(self._steps), list(self._events)  # to which nobody adds
        return self._thread.submit(self._write, steps, events, figures)

    def _write(self, steps: Sequence[Any], events: Sequence[Any], figures: bool) -> float:
        """Returns the seconds it took."""
        began = time.perf_counter()
        workdir = paths.absolute(self._workdir)
        run = RunFiles(workdir.name, provenance.read_record(workdir / "run.json"), steps, events)
        provenance.write_text(workdir / "report.html", run_page.page(run, provenance.now()))
        if figures and (shown := run_page.drawings(run)):
            note = drawing.write_figures(workdir / "curves", run.name, shown)
            if note:
                log(note)
        return time.perf_counter() - began

    def _look_at(self, written: concurrent.futures.Future[float]) -> None:
        """Plans the next version by the time of the last; reports the first error."""
        if error := written.exception():
            if not self._failed:
                self._failed = True
                reason = " ".join(str(error).split()) or type(error).__name__
                log(f"report.html could not be written ({reason}); training does not need it")
            return
        self._due = max(self._due, time.monotonic() + written.result() / MAX_SHARE)

    def close(self) -> None:
        """Completes events.jsonl, writes the last page and the figures, and waits for them."""
        last = self._submit(figures=True)
        self._thread.shutdown()
        self._look_at(last)
        self._lines.close()


def _line(event: Mapping[str, Any]) -> str:
    return json.dumps(event, ensure_ascii=False)
