"""Stages of a script: commands that are skipped where their outputs are there, by content.

A stage's record, FOLDER/NAME.json, holds its command and the digests of the files that it read and
wrote. The stage is done if all of them are the same now.
"""

import contextlib
import dataclasses
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from common import provenance
from common.messages import duration, log
from launch.lib import server

OWN_ADDRESS = re.compile(r"http://127\.0\.0\.1:\d+")
"""Of a server that the script starts: its port says nothing about its answers."""


@dataclasses.dataclass(frozen=True)
class Stage:
    """A command, the files that decide what it writes, and those that it writes.

    Digests are taken of `writes` at the end: for a folder name the file that completes it.
    """

    name: str  # of the record
    title: str
    command: Sequence[str] = ()  # what follows `python`
    reads: Sequence[Path] = ()
    writes: Sequence[Path] = ()
    may_find_nothing: str = ""  # pattern of an error after which all files are there all the same
    action: Callable[[], None] | None = None  # instead of a command

    def state(self) -> dict[str, Any]:
        """What a record must hold for the stage to be done, but for the outputs."""
        shown = OWN_ADDRESS.sub("OWN", shlex.join(self.command))
        return {"command": shown, "reads": digests(self.reads)}

    def is_done(self, folder: Path) -> bool:
        """Whether the record in `folder` says so."""
        try:
            record = provenance.read_json(folder / f"{self.name}.json")
            now = self.state() | {"writes": digests(self.writes)}
        except (OSError, ValueError):  # missing or damaged: it is done again
            return False
        return all(record.get(key) == value for key, value in now.items())

    def run(self, folder: Path) -> None:
        """Runs it, unless it is done.

        Raises:
          ChildProcessError: the command failed, with its error.
        """
        if self.is_done(folder):
            log(f"{self.title}: done before")
            return
        began, state = time.monotonic(), self.state()
        log(self.title)
        if self.action:
            self.action()
        else:
            self._run_command()
        seconds = round(time.monotonic() - began, 1)
        folder.mkdir(parents=True, exist_ok=True)
        record = state | {"writes": digests(self.writes), "seconds": seconds}
        provenance.write_json(folder / f"{self.name}.json", record)
        log(f"  done in {duration(seconds)}")

    def _run_command(self) -> None:
        log(f"  $ {shlex.join(['python', *self.command])}")
        code, error = run([sys.executable, *self.command])
        if not code:
            return
        if self.may_find_nothing and re.search(self.may_find_nothing, error):
            log(f"  {error}")
        else:
            raise ChildProcessError(
                f"{self.name}: {error or f'the command ended with code {code}'}"
            )


def digests(paths: Sequence[Path]) -> dict[str, str]:
    """SHA-256 of each file, by its path."""
    return {str(path): provenance.sha256(path) for path in paths}


def run(command: Sequence[str]) -> tuple[int, str]:
    """Runs a command, which ends with this process; returns its code and its error, unprinted.

    A terminal sends Ctrl-C to all its processes, and a second one would end training before it has
    saved: the command is in a session of its own, and gets one SIGTERM.
    """
    last = ""
    settings = {"stderr": subprocess.PIPE, "text": True, "errors": "replace"}
    process = server.start(command, **settings, start_new_session=True)
    assert process.stderr
    try:
        for line in process.stderr:
            if line.startswith("error: "):
                last = line.removeprefix("error: ").strip()
            else:
                print(f"  {line}", end="", file=sys.stderr, flush=True)
        return process.wait(), last
    except BaseException:
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(server.STOP_SECONDS)
        process.kill()
        raise
