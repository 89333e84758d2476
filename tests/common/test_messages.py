"""Counts, times, suggestions, and the status line on a terminal and in a log."""

import contextlib
import doctest
import io
import threading

from common import messages


def test_the_examples_in_the_docstrings_are_true():
    result = doctest.testmod(messages)
    assert result.attempted and not result.failed


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_terminal_shows_one_line_and_keeps_what_is_logged(monkeypatch):
    stream, clock = Terminal(), [0.0]
    monkeypatch.setattr(messages.sys, "stderr", stream)
    monkeypatch.setattr(messages.time, "monotonic", lambda: clock[0])
    monkeypatch.setenv("COLUMNS", "10")
    line = messages.StatusLine()
    assert not line.due()
    clock[0] = 1.0
    assert line.due()
    line.show("123456789 is cut")
    assert not line.due()
    messages.log("permanent")
    line.close()
    clear = messages.CLEAR_LINE
    assert stream.getvalue() == f"{clear}123456789{clear}permanent\n{clear}"


def test_a_log_on_a_full_disk_ends_nothing(monkeypatch):
    full = open("/dev/full", "w")  # noqa: SIM115 - closing it fails, too
    monkeypatch.setattr("sys.stderr", full)
    messages.log("a line")
    with contextlib.suppress(OSError):
        full.close()


def test_a_log_gets_a_line_every_thirty_seconds(monkeypatch):
    stream, clock = io.StringIO(), [0.0]
    monkeypatch.setattr(messages.sys, "stderr", stream)
    monkeypatch.setattr(messages.time, "monotonic", lambda: clock[0])
    line = messages.StatusLine()
    clock[0] = 29.0
    assert not line.due()
    clock[0] = 30.0
    assert line.due()
    line.show("half done")
    line.close()
    assert stream.getvalue() == "half done\n"


def test_a_heartbeat_counts_the_time_of_a_silent_block(monkeypatch):
    stream, shown = io.StringIO(), threading.Event()
    monkeypatch.setattr(messages.sys, "stderr", stream)
    monkeypatch.setattr(messages, "LOG_INTERVAL", 0.001)
    show = messages.StatusLine.show
    monkeypatch.setattr(
        messages.StatusLine, "show", lambda line, text: (show(line, text), shown.set())
    )
    before = threading.active_count()
    with messages.heartbeat("reading the stars"):
        assert shown.wait(60)
    assert stream.getvalue().startswith("reading the stars: 0s so far\n")
    assert threading.active_count() == before, "it ends with the block"
