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
import subprocess
import sys
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from absl import flags
from ml_collections import config_flags

from common import cli, paths, sections
from common.messages import suggestion
from launch.lib.pipeline import Pipeline
from launch.lib.stage import Stage
from launch.paper import stages
from launch.paper.config import PaperConfig
from launch.paper.estimates import Estimate, table
from launch.paper.sources import Sources


def choose(every: Sequence[Stage], only: str, first: str) -> list[Stage]:
    """The stages of one name, or kind, or all from the first of that name on.

    Raises:
      UsageError: there is none, or both are given.
    """
    if only and first:
        raise sections.UsageError("--only and --from choose different stages; give one of them")
    named = only or first
    chosen = [s for s in every if not named or f"{s.name}/".startswith(f"{named}/")]
    if not chosen:
        known = {s.name for s in every} | {s.kind for s in every}
        raise sections.UsageError(f"no stage {named!r}; {suggestion(named, sorted(known))}")
    return chosen if only or not first else list(every[every.index(chosen[0]) :])


def make_plans(paper: Pipeline, sources: Sources, kinds: Collection[str]) -> None:
    """Plans training or generation on the described machine, unless its plans are there."""
    failed = []
    for plan in stages.plans(sources):
        if plan.name.split("/")[1] in kinds and plan.unfinished():
            paper.say(f"{plan.name}: compiling for {sources.config.devices.topology} (minutes)")
            failed += [plan.name] if paper.run_one(plan, stdout=subprocess.DEVNULL) else []
        if paper.runner.stop_requested:
            raise KeyboardInterrupt
    if failed:
        paper.say(f"the chip-hours of {', '.join(failed)} are unknown; see above")


def show(paper: Pipeline, chosen: Sequence[Stage]) -> None:
    """Prints every stage, its state and what it takes, and what is missing."""
    states = ["to do" if stage.unfinished() else "done" for stage in chosen]
    taken = [stage.estimate or Estimate() for stage in chosen]
    names = [stage.name for stage in chosen]
    print(table([*zip(names, states, taken, strict=True)]))
    for text in dict.fromkeys(map(paper.absent, chosen)):
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
        every = stages.every(sources)
        chosen = choose(every, FLAGS.only, str(FLAGS["from"].value))
        given = [test_set.file for test_set in sources.sets]  # written below
        logs = workdir / "logs"
        paper = Pipeline("paper", every, logs, given=given, elsewhere=FLAGS.elsewhere)
        if FLAGS.dry_run:
            make_plans(paper, sources, {stage.kind for stage in chosen})
            planned = {stage.name: stage for stage in stages.every(sources)}
            show(paper, [planned[stage.name] for stage in chosen])
            return 0
        sources.write_items()
        return paper.run(chosen)


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
