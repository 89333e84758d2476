"""The line that tells how requests go: in a log, on a terminal, and never in the way of others."""

import asyncio
import doctest
import io
from contextlib import closing

import pytest

from datagen.chat import progress
from datagen.chat.progress import Progress


def test_doctests():
    assert doctest.testmod(progress).failed == 0


class Terminal(io.StringIO):
    def isatty(self):
        return True

    def screen(self) -> list[str]:
        """What is left to see: no line holds what was erased."""
        assert "\x1b" not in self.getvalue().replace(progress.CLEAR, "")
        return [line.split(progress.CLEAR)[-1] for line in self.getvalue().split("\n")]


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(progress, "EVERY", 0.01)
    monkeypatch.setattr(progress, "EVERY_IN_A_LOG", 0.03)


def follow(report, at_the_end=lambda: None):
    """40 outcomes of 50, 2 of them failures and 10 from the store, shown until all are told of."""

    async def work():
        stored = 0
        with closing(Progress(50, lambda: stored, lambda: "$1.00", report)) as shown:
            for i in range(40):
                stored += i < 10
                if i % 20:
                    shown.done += 1
                else:
                    shown.failed += 1
                await asyncio.sleep(0.002)
            await asyncio.sleep(0.1)
            at_the_end()

    asyncio.run(work())


def test_a_log_gets_lines_now_and_then(quick):
    lines = []
    follow(lines.append)
    assert len(lines) > 1
    assert lines[-1].startswith("38/50 done, 2 failed | $1.00 | ")
    assert lines[-1].endswith(" left")


def test_a_log_is_not_flooded(quick, monkeypatch):
    monkeypatch.setattr(progress, "EVERY_IN_A_LOG", 30.0)
    lines = []
    follow(lines.append)
    assert lines == []


def test_a_terminal_shows_one_line_and_none_at_the_end(quick, monkeypatch):
    terminal, seen = Terminal(), []
    monkeypatch.setattr("sys.stderr", terminal)
    monkeypatch.setenv("COLUMNS", "30")

    def say_something():
        seen.append(terminal.screen()[-1])
        progress.to_stderr("a warning")

    follow(progress.to_stderr, say_something)
    assert seen == ["38/50 done, 2 failed | $1.00 "], "cut to a terminal's width, less one"
    assert terminal.screen() == ["a warning", ""]


def test_what_is_no_terminal_gets_no_control_characters(monkeypatch):
    log = io.StringIO()
    monkeypatch.setattr("sys.stderr", log)
    progress.to_stderr("a warning")
    assert log.getvalue() == "a warning\n"


def test_the_store_does_not_count_as_speed(quick, monkeypatch):
    rates = []
    monkeypatch.setattr(progress, "line", lambda *args: rates.append(args[-1]) or "")

    async def all_stored():
        stored = 0
        with closing(Progress(None, lambda: stored, lambda: "", lambda _: None)) as shown:
            for _ in range(1000):
                stored += 1
                shown.done += 1
            await asyncio.sleep(0.1)

    asyncio.run(all_stored())
    assert rates and set(rates) == {0.0}
