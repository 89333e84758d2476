"""How a process ends: signals, errors that no code expects, and the interpreter's shutdown.

Loads the standard library only: it also works while the packages of a command are imported.
"""

import atexit
import contextlib
import os
import re
import select
import signal
import sys
import threading
import traceback
from collections.abc import Iterator
from pathlib import Path
from types import FrameType, TracebackType
from typing import NoReturn

from common import extras

ROOT = Path(__file__).resolve().parents[1]
OURS = ("alpacare_jax", "benchmarks", "common", "configs", "datagen", "evaluation", "launch")

TEMPORARY = 75
"""The exit code of what a restart mends (EX_TEMPFAIL); the scripts in launch/ restart the run."""

LOST = re.compile(
    r"UNAVAILABLE|DEADLINE_EXCEEDED|[A-Z_]+: .*(connection (closed|reset|refused|timed out)"
    r"|socket (closed|timeout)|timed out (connecting|waiting)|remote process exited|network error"
    r"|heartbeat|another task died|peer (task|process|rank))",
    re.DOTALL | re.IGNORECASE,
)
"""What XLA says, after a status, of a process or device that went away: its coordination service
and, between CPUs and GPUs, Gloo ("UNKNOWN: Gloo all-reduce failed: ... Connection closed by peer")
and NCCL. Other errors, INTERNAL among them, would only occur again."""

STATUS = re.compile(r"[A-Z]+(_[A-Z]+)*: ")

MAX_ERROR_TEXT = 600
"""Characters of an unexpected error's message; XLA's can have thousands."""

RESEND_SECONDS = 0.05


class Ending:
    """What is known about the end of this process."""

    extra = ""  # of setup.py, which installs the packages of this command; "": not watched so far
    code: int | None = None  # of the command; None while it runs
    received: signal.Signals | None = None  # the signal that asked for the end
    unwinds = False  # whether a signal raises KeyboardInterrupt, so that clean-up runs


def watch(extra: str = "all") -> None:
    """From now on this process ends in one line and with its documented code, whatever happens.

    Ctrl-C and SIGTERM end it at once, or inside `interruptible` with clean-up. An error that is
    not caught is one line, unless `--debug` is among the arguments.
    """
    if Ending.extra:
        return
    Ending.extra = extra
    atexit.register(_skip_shutdown)  # the first to be registered, hence the last to be called
    sys.excepthook, threading.excepthook = _end_with, _report_thread
    sys.unraisablehook = _report_ignored
    for number in (signal.SIGINT, signal.SIGTERM):
        if signal.getsignal(number) != signal.SIG_IGN:  # as it is for SIGINT under nohup
            signal.signal(number, _on_signal)


def watch_command(extra: str) -> None:
    """`watch`, if a command was started with `python -m`; called by each package's `__init__`.

    A command's own imports, which take seconds, come before any code of it.
    """
    if sys.argv[:1] == ["-m"]:  # set while the interpreter looks for the module that it will run
        watch(extra)


@contextlib.contextmanager
def interruptible() -> Iterator[None]:
    """Inside, the first signal raises KeyboardInterrupt; the next one ends the process."""
    Ending.unwinds = True
    try:
        yield
    finally:
        Ending.unwinds = False


def leave_interrupted() -> NoReturn:
    """Ends the process here with 128 + the signal that asked for it, and says so on stderr."""
    number = Ending.received or signal.SIGINT
    _announce(number)
    leave(128 + number)


def leave(code: int) -> NoReturn:
    """Ends the process here, without the interpreter's shutdown.

    Threads of XLA and of other libraries that still run then use what it takes down: of three
    interrupted runs of `generate`, two ended in a segmentation fault.
    """
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError, AttributeError):  # closed, full, or absent
            stream.flush()
    os._exit(code)


def reader_is_gone() -> bool:
    """Whether stdout or stderr is a pipe that nobody reads any more, as after `| head`."""
    poll = select.poll()
    for descriptor in (1, 2):
        poll.register(descriptor, 0)
    return any(event & select.POLLERR for _, event in poll.poll(0))


def is_temporary(error: BaseException) -> bool:
    """Whether another process, a device or the coordinator was lost, so that a restart may succeed.

    Only the text says so: JAX raises some of these errors as ValueError.

    >>> is_temporary(ValueError("UNKNOWN: Gloo all-reduce failed: Connection closed by peer"))
    True
    """
    text = str(error)
    return bool(STATUS.match(text) and LOST.match(text))


def unexpected(error: BaseException) -> str:
    """One line about an error that is not the user's, with the place in our code.

    >>> unexpected(KeyError("x"))
    "internal error, KeyError: 'x'; --debug shows the traceback; please report it"
    """
    text = " ".join(str(error).split())
    text = text[:MAX_ERROR_TEXT] + " ..." * (len(text) > MAX_ERROR_TEXT)
    if is_temporary(error):
        return f"another process, a device or the coordinator was lost ({text}); rerun to resume"
    if isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in text:
        return f"out of memory ({text or 'of this machine'}); use smaller batches or more devices"
    known = f"{type(error).__name__}: {text}".removesuffix(": ")
    return f"internal error, {known}{_place(error)}; --debug shows the traceback; please report it"


def _place(error: BaseException) -> str:
    """` at FILE:LINE`, the last line of our code that an error passed through."""
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        path = Path(frame.filename)
        if path.is_relative_to(ROOT) and path.relative_to(ROOT).parts[0] in OURS:
            return f" at {path.relative_to(ROOT)}:{frame.lineno}"
    return ""


def _debug() -> bool:
    return "--debug" in sys.argv


def _on_signal(number: int, frame: FrameType | None) -> None:
    again, Ending.received = Ending.received, signal.Signals(number)
    if Ending.unwinds and not again:
        raise KeyboardInterrupt
    _announce(number)
    os._exit(128 + number)  # no flush: this may be in the middle of a write


def _announce(number: int) -> None:
    word = "terminated" if number == signal.SIGTERM else "interrupted"
    with contextlib.suppress(OSError):
        os.write(2, f"{word}\n".encode())


def _end_with(
    kind: type[BaseException], error: BaseException, traceback: TracebackType | None
) -> None:
    """The excepthook: of errors during imports, and outside of `cli.run`."""
    Ending.code = TEMPORARY if is_temporary(error) else 1
    if _debug():
        sys.__excepthook__(kind, error, traceback)
    elif isinstance(error, KeyboardInterrupt):
        leave_interrupted()
    elif not (isinstance(error, BrokenPipeError) and reader_is_gone()):
        missing = isinstance(error, ModuleNotFoundError) and extras.advice(error, Ending.extra)
        print(f"error: {missing or unexpected(error)}", file=sys.stderr)


def _report_thread(args: threading.ExceptHookArgs) -> None:
    if _debug():
        threading.__excepthook__(args)
    elif args.exc_value is not None and not isinstance(args.exc_value, SystemExit):
        name = args.thread.name if args.thread else "unknown"
        print(f"error: thread {name}: {unexpected(args.exc_value)}", file=sys.stderr)


def _report_ignored(args: "sys.UnraisableHookArgs") -> None:
    """The hook of errors that the interpreter drops: those of destructors and callbacks."""
    if isinstance(args.exc_value, KeyboardInterrupt) and Ending.received:
        # It was raised inside a callback, such as JAX's of the garbage collector.
        number, Ending.received = Ending.received, None
        timer = threading.Timer(RESEND_SECONDS, os.kill, (os.getpid(), number))
        timer.daemon = True
        timer.start()
    elif _debug():
        sys.__unraisablehook__(args)
    elif args.exc_value is not None and not isinstance(args.exc_value, BrokenPipeError):
        print(f"warning: ignored: {unexpected(args.exc_value)}", file=sys.stderr)


def _skip_shutdown() -> None:
    if Ending.code is not None:
        leave(Ending.code)
