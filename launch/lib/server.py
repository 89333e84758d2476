"""A server that a script starts, and processes that end with it whatever ends it."""

import contextlib
import dataclasses
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

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

READY = re.compile(r"^serving (.+) on (http://\S+);", re.MULTILINE)
TAKEN = re.compile(r"^error: cannot listen on ", re.MULTILINE)


@dataclasses.dataclass(frozen=True)
class Served:
    """A server that answers."""

    model: str  # name of the model
    address: str  # http://HOST:PORT

    @property
    def base_url(self) -> str:
        """The address that clients of OpenAI's protocol take."""
        return f"{self.address}/v1"


def start(command: Sequence[str], **settings: Any) -> subprocess.Popen:
    """Starts a process that is killed when this one ends, SIGKILL included."""
    return subprocess.Popen([sys.executable, "-c", FOLLOW, str(os.getpid()), *command], **settings)


@contextlib.contextmanager
def serving(checkpoint: Path, folder: Path, *flags: str) -> Iterator[Served]:
    """Inside, `alpacare serve --checkpoint=CHECKPOINT FLAGS` answers on a free port.

    `folder` holds serve.log, and port: the next server there listens on the same one where it is
    free, since stored answers are looked up by address.

    Raises:
      ChildProcessError: the server ended before it was ready; its last error is named.
    """
    folder.mkdir(parents=True, exist_ok=True)
    port, log = folder / "port", folder / "serve.log"
    process, ready = _start(checkpoint, log, _read_port(port), flags)
    if not ready and TAKEN.search(log.read_text("utf-8", "replace")):
        process, ready = _start(checkpoint, log, 0, flags)
    if not ready:
        lines = log.read_text("utf-8", "replace").splitlines() or ["no message"]
        errors = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
        raise ChildProcessError(f"the server ended: {(errors or lines)[-1]} (its log is {log})")
    served = Served(ready[1], ready[2])
    port.write_text(served.address.rpartition(":")[2])
    try:
        yield served
    finally:
        process.terminate()
        try:
            process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _read_port(path: Path) -> int:
    """The port that the last server there had; 0 if it is unknown: any."""
    text = path.read_text("utf-8", "replace") if path.exists() else ""
    return int(text) if text.isdecimal() and int(text) < 65_536 else 0


def _start(
    checkpoint: Path, log: Path, port: int, flags: Sequence[str]
) -> tuple[subprocess.Popen, re.Match[str] | None]:
    """A server, once it is ready; no match if it ended."""
    command = [sys.executable, "-m", "alpacare_jax.serve", f"--checkpoint={checkpoint}"]
    with log.open("wb") as file:
        process = start(
            [*command, f"--port={port}", *flags], stdout=file, stderr=file, start_new_session=True
        )
    began, status = time.monotonic(), StatusLine()
    try:
        while process.poll() is None:
            text = log.read_text("utf-8", "replace")
            if ready := READY.search(text):
                return process, ready
            if status.due():
                last = text.splitlines()[-1:] or ["loading its packages"]
                waited = duration(time.monotonic() - began)
                status.show(f"the server starts, {waited} so far: {last[0]}")
            time.sleep(0.1)
    except BaseException:
        process.kill()
        process.wait()
        raise
    finally:
        status.close()
    return process, None
