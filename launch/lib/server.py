"""A server that a script starts, and processes that end with it whatever ends it."""

import contextlib
import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from common.messages import StatusLine, duration

FOLLOW = """
import ctypes, os, sys
PR_SET_PDEATHSIG, SIGKILL = 1, 9  # of Linux's prctl: the signal when the parent ends
ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, SIGKILL)
if os.getppid() != int(sys.argv[1]):  # it ended before
    sys.exit(1)
os.execvp(sys.argv[2], sys.argv[2:])
"""
"""Becomes the command of its arguments; not a `preexec_fn`, which may hang beside JAX's threads."""

STOP_SECONDS = 30.0
"""Until a server that was asked to stop is killed."""

READY = re.compile(r"^serving .+ on (http://\S+);", re.MULTILINE)


def tied(command: Sequence[str]) -> list[str]:
    """The command that is killed when this process ends, SIGKILL included."""
    return [sys.executable, "-c", FOLLOW, str(os.getpid()), *command]


@contextlib.contextmanager
def serving(folder: Path, *flags: str) -> Iterator[str]:
    """Inside, `alpacare serve FLAGS` answers at the address: http://127.0.0.1:PORT/v1.

    `folder` holds serve.log, and port: the next server there listens on the same one where it is
    free, since stored answers are looked up by address.

    Raises:
      ChildProcessError: the server ended before it was ready; its last error is named.
    """
    folder.mkdir(parents=True, exist_ok=True)
    port, log = folder / "port", folder / "serve.log"
    command = [sys.executable, "-m", "alpacare_jax.serve", f"--port={_port(port)}", *flags]
    with log.open("wb") as file:
        process = subprocess.Popen(tied(command), stdout=file, stderr=file, start_new_session=True)
    try:
        address = _address(process, log)
        port.write_text(address.rpartition(":")[2])
        yield f"{address}/v1"
    finally:
        process.terminate()
        try:
            process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _port(path: Path) -> int:
    """That of the last server there, if it is free; else 0: any."""
    with contextlib.suppress(OSError, ValueError, OverflowError), socket.socket() as tried:
        tried.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        tried.bind(("127.0.0.1", int(path.read_text())))
        return tried.getsockname()[1]
    return 0


def _address(process: subprocess.Popen, log: Path) -> str:
    """Where a server listens, once it does."""
    began, status = time.monotonic(), StatusLine()
    with contextlib.closing(status):
        while process.poll() is None:
            text = log.read_text("utf-8", "replace")
            if ready := READY.search(text):
                return ready[1]
            if status.due():
                last = text.splitlines()[-1:] or ["loading its packages"]
                waited = duration(time.monotonic() - began)
                status.show(f"the server starts, {waited} so far: {last[0]}")
            time.sleep(0.1)
    lines = log.read_text("utf-8", "replace").splitlines() or ["no message"]
    errors = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
    raise ChildProcessError(f"the server ended: {(errors or lines)[-1]} (its log is {log})")
