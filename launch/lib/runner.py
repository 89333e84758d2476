"""Runs the commands of a sweep or a pipeline, which are stopped together with it."""

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from typing import IO

from common import exits


class Runner:
    """Runs commands, and forwards signals that request a stop.

    A terminal sends Ctrl-C to all its processes, and a second one would end training before it has
    saved. So a command runs in its own session, and receives SIGTERM for any of these signals.
    """

    def __init__(self):
        self.stop_requested = False
        self.process: subprocess.Popen | None = None
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:  # nohup
                signal.signal(number, self._request_stop)

    def _request_stop(self, number: int = 0, _=None) -> None:
        self.stop_requested = True
        if number == signal.SIGINT:
            exits.Ending.received = signal.SIGINT
        if self.process:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGTERM)

    def run(
        self, args: Sequence[str], log: IO[str] | None = None, stdout: int | None = None
    ) -> tuple[int, str]:
        """Runs a command to its end, including every process that holds its stderr.

        Args:
          log: a file that its stderr is added to.
          stdout: where its stdout goes, as for subprocess.

        Returns:
          The exit code and the last line of stderr, which is also printed. A line "error: ..." of
          our commands takes precedence over what a launcher prints later.
        """
        last = error = ""
        with subprocess.Popen(
            args,
            stdin=subprocess.DEVNULL,
            stdout=stdout,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            start_new_session=True,
        ) as process:
            self.process = process
            if self.stop_requested:  # while it was started
                self._request_stop()
            assert process.stderr
            for line in process.stderr:
                print(line, end="", file=sys.stderr, flush=True)
                if log:
                    print(line, end="", file=log, flush=True)
                last = line.strip() or last
                error = last if last.startswith("error: ") else error
            code = process.wait()
            self.process = None
        if self.stop_requested and code in (-signal.SIGTERM, 128 + signal.SIGTERM):
            code = 0  # before it could save, or a launcher that does not wait
        return code, error or last
