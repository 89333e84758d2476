"""What commands print while they work: counts, times, suggestions, status line and heartbeat."""

import contextlib
import difflib
import errno
import shutil
import sys
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence

TERMINAL_INTERVAL, LOG_INTERVAL = 1.0, 30.0
"""Seconds between two status lines on a terminal, which replace each other, and in a log."""

CLEAR_LINE = "\r\x1b[K"
"""ANSI: back to the start of the line, and erase it."""


def format_counts(counts: Mapping[str, int]) -> str:
    """Counts in one line, zeros left out.

    >>> format_counts({"near-duplicate": 1200, "blacklisted": 3, "too long": 0}), format_counts({})
    ('1,200 near-duplicate, 3 blacklisted', 'none')
    """
    return ", ".join(f"{count:,} {name}" for name, count in counts.items() if count) or "none"


def duration(seconds: float) -> str:
    """A time span in its two largest units.

    >>> duration(12.3), duration(245), duration(7384)
    ('12s', '4m05s', '2h03m')
    """
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours}h{minutes:02}m"
    return f"{minutes}m{seconds:02}s" if minutes else f"{seconds}s"


def suggestion(name: str, known: Iterable[str], otherwise: str = "") -> str:
    """The known name that `name` may be a misspelling of; without one, `otherwise` or the choices.

    >>> suggestion("learning_rat", ["seed", "learning_rate"])
    "did you mean 'learning_rate'?"
    >>> suggestion("x", ["seed", "epochs"]), suggestion("x", ["seed"], "keys are dotted")
    ('choose from seed, epochs', 'keys are dotted')
    """
    known = list(known)
    if near := difflib.get_close_matches(name, known, n=1):
        return f"did you mean {near[0]!r}?"
    return otherwise or f"choose from {', '.join(known)}"


def aligned(rows: Sequence[Sequence[str]], numbers: slice) -> str:
    """A table as text; the columns of `numbers` are aligned to the right.

    >>> aligned([["name", "n"], ["x", "12"]], slice(1, None)).splitlines()
    ['name   n', 'x     12']
    """
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    right = range(len(widths))[numbers]

    def padded(row: Sequence[str]) -> Iterator[str]:
        for i, (cell, width) in enumerate(zip(row, widths, strict=True)):
            yield cell.rjust(width) if i in right else cell.ljust(width)

    return "\n".join("  ".join(padded(row)).rstrip() for row in rows)


def log(text: str) -> None:
    """Prints a permanent line on stderr; on a terminal in place of the status line.

    A line that a full disk does not take is lost; the work goes on.
    """
    try:
        print((CLEAR_LINE if sys.stderr.isatty() else "") + text, file=sys.stderr, flush=True)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise


class StatusLine:
    """One line on stderr that says how far the work is.

    On a terminal the line is rewritten in place, once a second at most. Elsewhere, as in a log
    file, a new line is printed every 30 seconds.
    """

    def __init__(self):
        self._rewrites = sys.stderr.isatty()
        self.interval = TERMINAL_INTERVAL if self._rewrites else LOG_INTERVAL
        self._shown = time.monotonic()

    def due(self) -> bool:
        """Whether the interval since the last line has passed."""
        return time.monotonic() - self._shown >= self.interval

    def show(self, text: str) -> None:
        """Shows `text` now."""
        self._shown = time.monotonic()
        if not self._rewrites:
            log(text)
            return
        fits = shutil.get_terminal_size().columns - 1  # a line that wraps cannot be erased
        print(CLEAR_LINE + text[:fits], end="", file=sys.stderr, flush=True)

    def close(self) -> None:
        """Erases the line, so that what follows starts on an empty one."""
        if self._rewrites:
            print(CLEAR_LINE, end="", file=sys.stderr, flush=True)


@contextlib.contextmanager
def heartbeat(text: str) -> Iterator[None]:
    """While the block runs without output, a status line shows `text` and the time so far."""
    began, ended, status = time.monotonic(), threading.Event(), StatusLine()

    def beat() -> None:
        while not ended.wait(status.interval):
            status.show(f"{text}: {duration(time.monotonic() - began)} so far")

    thread = threading.Thread(target=beat, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
        status.close()
