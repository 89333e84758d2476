"""The whole paper as one resumable pipeline: from seeds, or a data file, to the report.

    bash launch/paper.sh --workdir=runs/paper --dry_run      every stage, with what it takes
    bash launch/paper.sh --workdir=runs/paper                runs those that are not done
    bash launch/paper.sh --workdir=runs/tiny --size=tiny     a rehearsal on this machine, in minutes

Stages: tasks, dedup, responses; train and generate; references; judge; choices, rubric; report.
Each is a command that can be run by hand. It is done when the run.json of its output says so:
ended, with the present settings, on inputs of the present content. A stage that fails ends the
pipeline with its command and its log; the same call resumes. docs/paper.md has the prices and what
cannot be reproduced.

Exit code 0: all done; 1: a stage failed; 2: wrong flags; 3: stages wait for what is run elsewhere;
130 and 143: stopped.
"""

import contextlib
import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from absl import flags
from ml_collections import config_flags

from common import cli, exits, paths, sections
from common.messages import suggestion
from launch.lib import server
from launch.paper import pipeline
from launch.paper.config import PaperConfig
from launch.paper.estimates import table
from launch.paper.sources import Sources
from launch.paper.stage import Stage
from launch.sweep import Runner

WAITING = 3
"""The exit code where stages wait for what is run elsewhere."""


def choose(stages: Sequence[Stage], only: str, first: str) -> list[Stage]:
    """The stages of one name, or kind, or all from the first of that name on.

    Raises:
      UsageError: there is none, or both are given.
    """
    if only and first:
        raise sections.UsageError("--only and --from choose different stages; give one of them")
    named = only or first
    chosen = [s for s in stages if not named or f"{s.name}/".startswith(f"{named}/")]
    if not chosen:
        known = {s.name for s in stages} | {s.kind for s in stages}
        raise sections.UsageError(f"no stage {named!r}; {suggestion(named, sorted(known))}")
    return chosen if only or not first else list(stages[stages.index(chosen[0]) :])


class Work:
    """Runs stages one after another.

    Args:
      elsewhere: prints the commands of stages on devices; their results are taken up later.
    """

    def __init__(self, sources: Sources, stages: Sequence[Stage], *, elsewhere: bool = False):
        self.elsewhere, self.logs = elsewhere, Path(sources.workdir) / "logs"
        self.runner = Runner()
        self.servers = contextlib.ExitStack()  # holds one at most
        self.serving: tuple[str, tuple[str, ...]] = "", ()
        self.base_url = ""
        self.makers = {stage.output: stage for stage in stages}
        self.makers |= {s.output.parent: s for s in stages if s.kind == "train"}
        self.written = {test_set.file for test_set in sources.sets}  # before the first stage

    def missing(self, stage: Stage) -> str:
        """An input that another stage has yet to make."""
        for path in stage.inputs:
            if path in self.makers and not path.exists():
                return f"{path} is missing; stage {self.makers[path].name} makes it"
        return self.absent(stage)

    def is_elsewhere(self, stage: Stage) -> bool:
        """Whether a stage is left to the user: no launcher can serve a model to this machine."""
        return stage.on_devices and (self.elsewhere or bool(stage.served and stage.launcher))

    def absent(self, stage: Stage) -> str:
        """An input that no stage makes, and that is not there."""
        if stage.on_devices and (stage.launcher or self.elsewhere):
            return ""  # it may be there, where they are
        for path in stage.inputs:
            if path not in self.makers and path not in self.written and not path.exists():
                return f"{path} is missing"
        return ""

    def run(self, stages: Sequence[Stage]) -> int:
        """Runs those that are not done; returns the exit code."""
        with self.servers:
            return self._run(stages)

    def _run(self, stages: Sequence[Stage]) -> int:
        waiting: list[str] = []
        for stage in stages:
            if not (reason := stage.unfinished()):
                say(f"{stage.name} is done")
                continue
            lacking = self.missing(stage)
            if self.is_elsewhere(stage) and not lacking:
                say(f"{stage.name}: {reason}; run this where the devices are, then rerun:")
                print(stage.by_hand, flush=True)
                waiting.append(stage.name)
            elif lacking and waiting:
                say(f"{stage.name} waits: {lacking}")
                waiting.append(stage.name)
            elif lacking:
                raise FileNotFoundError(f"stage {stage.name}: {lacking}")
            else:
                say(f"{stage.name}: {reason}")
                if code := self.run_one(stage):
                    return code
        if waiting:
            say(f"{len(waiting)} stages wait for what is run elsewhere, the first {waiting[0]}")
        return WAITING if waiting else 0

    def run_one(self, stage: Stage, stdout: int | None = None) -> int:
        """Runs one stage; returns the exit code."""
        log = self.logs / f"{stage.name.replace('/', '-')}.log"
        log.parent.mkdir(parents=True, exist_ok=True)
        front = shlex.split(stage.launcher)
        command = [*front, "python" if front else sys.executable, "-m", *stage.arguments]
        try:
            command += self._served(stage)
        except RuntimeError as error:  # its server ended
            return self._failed(stage, f"failed: {error}")
        tied = [sys.executable, "-c", server.FOLLOW, str(os.getpid()), *command]
        with log.open("a", encoding="utf-8") as file:
            code, _ = self.runner.run(tied, file, stdout)
        if self.runner.stop_requested:
            say(f"stopped in stage {stage.name}; rerun the same command to resume")
            return 128 + (exits.Ending.received or signal.SIGTERM)
        if code:
            return self._failed(stage, f"failed with code {code}; its log is {log}", code)
        if not stage.ended:  # training that got SIGTERM has saved and ends with 0
            return self._failed(stage, f"stopped before its end; its log is {log}; rerun to resume")
        return 0

    def _failed(self, stage: Stage, reason: str, code: int = 1) -> int:
        say(f"stage {stage.name} {reason}; by hand:")
        print(stage.by_hand, file=sys.stderr, flush=True)
        return code

    def _served(self, stage: Stage) -> list[str]:
        """The flag for the server that a stage asks; one that has another model is stopped."""
        if self.serving != (wanted := (stage.model_name, stage.served)):
            self.servers.close()
            self.serving = wanted
            if stage.served:
                checkpoint, *rest = stage.served
                model, name = Path(checkpoint.partition("=")[2]), f"--name={stage.model_name}"
                found = server.serving(model, self.logs / f"serve-{stage.model_name}", *rest, name)
                self.base_url = self.servers.enter_context(found).base_url
        return [f"--base_url={self.base_url}"] if stage.served else []


def say(text: str) -> None:
    """Prints a line about the pipeline itself."""
    print(f"paper: {text}", file=sys.stderr, flush=True)


def make_plans(sources: Sources, kinds: Collection[str]) -> None:
    """Plans training or generation on the described machine, unless its plans are there."""
    work, failed = Work(sources, []), []
    for plan in pipeline.plans(sources):
        if plan.name.split("/")[1] in kinds and plan.unfinished():
            say(f"{plan.name}: compiling for {sources.config.devices.topology} (minutes)")
            failed += [plan.name] if work.run_one(plan, stdout=subprocess.DEVNULL) else []
        if work.runner.stop_requested:
            raise KeyboardInterrupt
    if failed:
        say(f"the chip-hours of {', '.join(failed)} are unknown; see above")


def show(work: Work, chosen: Sequence[Stage]) -> None:
    """Prints every stage, its state and what it takes, and what is missing."""
    states = ["to do" if stage.unfinished() else "done" for stage in chosen]
    print(table([(s.name, state, s.estimate) for s, state in zip(chosen, states, strict=True)]))
    for text in dict.fromkeys(map(work.absent, chosen)):
        print(text, end="\n" if text else "")


def with_base_url(settings: Any, url: str) -> None:
    """Has every model of the settings asked at one server."""
    for value in settings.values() if isinstance(settings, dict) else ():
        if isinstance(value, dict) and "base_url" in value:
            value["base_url"] = url
        with_base_url(value, url)


def main(argv: Sequence[str]) -> int:
    """The command."""
    del argv
    FLAGS = flags.FLAGS
    settings, workdir = FLAGS.config.to_dict(), Path(FLAGS.workdir)
    with contextlib.ExitStack() as stack:
        if FLAGS.size == "tiny":
            from tests.support import rehearsal  # needs the extra [test]

            url = stack.enter_context(rehearsal.prepare(settings, workdir / "tiny", FLAGS.base_url))
        else:
            url = FLAGS.base_url
        if url:
            with_base_url(settings, url)
        config = sections.build(PaperConfig, settings)
        paths.check(config.devices.folder)
        sources = Sources(config, workdir)
        stages = pipeline.stages(sources)
        chosen = choose(stages, FLAGS.only, str(FLAGS["from"].value))
        work = Work(sources, stages, elsewhere=FLAGS.elsewhere)
        if FLAGS.dry_run:
            make_plans(sources, {stage.kind for stage in chosen})
            planned = {stage.name: stage for stage in pipeline.stages(sources)}
            show(work, [planned[stage.name] for stage in chosen])
            return 0
        sources.write_items()
        return work.run(chosen)


if __name__ == "__main__":
    if not cli.config_flag(sys.argv):  # as a default, its errors would be tracebacks
        sys.argv.insert(1, "--config=configs/paper.py")
    config_flags.DEFINE_config_file("config", None, "Config file.", lock_config=True)
    flags.DEFINE_string("workdir", None, "Folder of everything that the pipeline makes.")
    flags.DEFINE_enum(
        "size", "paper", ["paper", "tiny"], "tiny: a rehearsal here, with settings of its own."
    )
    flags.DEFINE_string("base_url", "", "Server that is asked for everything, such as vLLM's.")
    flags.DEFINE_string("only", "", "Only this stage, or kind of stages, such as judge.")
    flags.DEFINE_string("from", "", "This stage, or kind of stages, and those after it.")
    flags.DEFINE_bool("elsewhere", False, "Print the commands that need devices; run the others.")
    flags.DEFINE_bool("dry_run", False, "Print the stages and what they take; run none.")
    flags.mark_flags_as_required(["workdir"])
    cli.run(main, config=PaperConfig, output="workdir")
