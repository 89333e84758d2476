"""Runs the stages of a pipeline that are not done, and the servers that they ask."""

import contextlib
import re
import shlex
import signal
import sys
from collections.abc import Collection, Sequence
from pathlib import Path

from etils import epath

from common import exits, provenance
from launch.lib import server
from launch.lib.runner import Runner
from launch.lib.stage import Stage

WAITING = 3
"""The exit code where stages wait for what is run elsewhere."""


class Pipeline:
    """Stages in their order, each a command that can be run by hand.

    Args:
      name: what lines of its own begin with.
      logs: the folder of the commands' logs.
      given: inputs that are there when it runs, though no stage makes them.
      elsewhere: prints the commands of stages on devices; their results are taken up later.
      excused: pattern of errors after which the output is there all the same.
    """

    def __init__(
        self,
        name: str,
        stages: Sequence[Stage],
        logs: Path,
        *,
        given: Collection[epath.Path] = (),
        elsewhere: bool = False,
        excused: str = "",
    ):
        self.name, self.logs, self.given, self.elsewhere = name, logs, given, elsewhere
        self.excused = excused
        self.runner = Runner()
        self.servers = contextlib.ExitStack()  # holds one at most
        self.serving: list[str] = []
        self.base_url = ""
        self.makers = {stage.output: stage for stage in stages}
        self.makers |= {s.output.parent: s for s in stages if s.output.name == "run.json"}

    def say(self, text: str) -> None:
        """Prints a line about the pipeline itself."""
        print(f"{self.name}: {text}", file=sys.stderr, flush=True)

    def missing(self, stage: Stage) -> str:
        """An input that another stage has yet to make, or that nobody here does."""
        for path in stage.inputs:
            if path in self.makers and not path.exists():
                return f"{path} is missing; stage {self.makers[path].name} makes it"
        return self.absent(stage)

    def absent(self, stage: Stage) -> str:
        """An input that no stage makes, and that is not there."""
        if stage.on_devices and (stage.launcher or self.elsewhere):
            return ""  # it may be there, where they are
        known = (*self.makers, *self.given)
        lacking = (path for path in stage.inputs if path not in known and not path.exists())
        return next((f"{path} is missing" for path in lacking), "")

    def is_elsewhere(self, stage: Stage) -> bool:
        """Whether a stage is left to the user: no launcher can serve a model to this machine."""
        return stage.on_devices and (self.elsewhere or bool(stage.server and stage.launcher))

    def run(self, stages: Sequence[Stage]) -> int:
        """Runs those that are not done; returns the exit code."""
        waiting: list[str] = []
        with self.servers:
            for stage in stages:
                if not (reason := stage.unfinished()):
                    self.say(f"{stage.name} is done")
                    continue
                lacking = self.missing(stage)
                if self.is_elsewhere(stage) and not lacking:
                    self.say(f"{stage.name}: {reason}; run this where the devices are, then rerun:")
                    print(stage.by_hand, flush=True)
                    waiting.append(stage.name)
                elif lacking and waiting:
                    self.say(f"{stage.name} waits: {lacking}")
                    waiting.append(stage.name)
                elif lacking:
                    raise FileNotFoundError(f"stage {stage.name}: {lacking}")
                else:
                    self.say(f"{stage.name}: {reason}")
                    print(stage.by_hand, file=sys.stderr, flush=True)
                    if code := self.run_one(stage):
                        return code
        if waiting:
            number = len(waiting)
            self.say(f"{number} stages wait for what is run elsewhere, the first {waiting[0]}")
        return WAITING if waiting else 0

    def run_one(self, stage: Stage, stdout: int | None = None) -> int:
        """Runs one stage; returns the exit code."""
        log = self.logs / f"{stage.name.replace('/', '-')}.log"
        log.parent.mkdir(parents=True, exist_ok=True)
        front = shlex.split(stage.launcher)
        command = [*front, "python" if front else sys.executable, "-m", *stage.arguments]
        stage.put_aside()
        try:
            command += self._served(stage)
        except ChildProcessError as error:  # its server ended
            return self._failed(stage, f"failed: {error}")
        with log.open("a", encoding="utf-8") as file:
            code, error = self.runner.run(server.tied(command), file, stdout)
        if self.runner.stop_requested:
            self.say(f"stopped in stage {stage.name}; rerun the same command to resume")
            return 128 + (exits.Ending.received or signal.SIGTERM)
        if code and self.excused and re.search(self.excused, error):
            code = 0
        if code:
            if stage.ended and not stage.changed():  # some is lacking: a rerun asks again
                written = provenance.read_record(stage.record) | {"end": None}
                provenance.write_json(stage.record, written)
            return self._failed(stage, f"failed with code {code}; its log is {log}", code)
        if not stage.ended:  # training that got SIGTERM has saved and ends with 0
            return self._failed(stage, f"stopped before its end; its log is {log}; rerun to resume")
        return 0

    def _failed(self, stage: Stage, reason: str, code: int = 1) -> int:
        self.say(f"stage {stage.name} {reason}; by hand:")
        print(stage.by_hand, file=sys.stderr, flush=True)
        return code

    def _served(self, stage: Stage) -> list[str]:
        """The flag for the server that a stage asks; devices are for one model at a time."""
        asked = stage.server
        wanted = asked.command if asked else []
        if self.serving != wanted and (asked or stage.on_devices):
            self.servers.close()
            self.serving = []
            if asked:
                folder = self.logs / f"serve-{asked.model_name}"
                self.say(f"{stage.name}: the server starts; its log is {folder}/serve.log")
                self.base_url = self.servers.enter_context(server.serving(folder, *wanted))
                self.serving = wanted
        return [asked.address(self.base_url)] if asked else []
