"""Trains every run of a sweep, one after another, and compares them in one table.

    python launch/sweep.py --config=configs/quickstart.py --sweep=sweep --workdir=runs/sweep

--sweep names a function of the config file, e.g. `def sweep(add)`; in it `add(**overrides)` queues
one run, with keys like "optimizer.learning_rate". Each run has a folder in --workdir, named after
its overrides. Finished runs are skipped and unfinished ones resume, so after any interruption rerun
the same command. Flags --config.KEY=VALUE apply to all runs.

In a SLURM job array each job trains the run of its own index. --launcher='COMMAND --' is prepended
to each run's command, to train with several processes or on other machines. It must end when the
run ends, and the run must write to --workdir, from which the results are read.
"""

import contextlib
import functools
import os
import platform
import shlex
import sys
import urllib.parse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from absl import flags
from etils import epath
from ml_collections import config_flags

# Config files import configs.common, which `python -m` would find.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from common import cli, exits, locks, paths, provenance, sections
from launch import sweep_results, sweep_runs
from launch.lib.runner import Runner
from launch.sweep_runs import Run

BY_CONTENT = ("model.checkpoint", "data.path", "data.eval_path")
"""Keys of paths: a run is the same where their content is."""


@functools.cache
def inputs(base: str, data: str, eval_data: str) -> dict[str, Any]:
    """Digests of what a run reads; empty where some of it is on the launcher's machines only."""
    from alpacare_jax.checkpoints import identity  # imports jax, which takes seconds

    try:
        return identity.of_inputs(base, data, eval_data)
    except FileNotFoundError:
        return {}


def differences(run: Run) -> dict[str, str]:
    """What differs from the settings and inputs in the run's run.json; empty without the file."""
    record = sweep_results.read(run.workdir).record
    before = sections.flatten(record.get("config", {}))
    compared = [
        key
        for key in run.config
        if key in before
        and key not in BY_CONTENT
        and not key.startswith(("checkpoint.", "sharding."))
    ]
    found = provenance.differences(
        {key: before[key] for key in compared}, {key: run.config[key] for key in compared}
    )
    if "inputs" in record and (now := inputs(*(run.config[key] for key in BY_CONTENT))):
        found |= provenance.differences(record["inputs"], now)
    return found


def is_finished(run: Run) -> bool:
    """Whether the run can be skipped; where settings differ, train reports the difference."""
    return sweep_results.read(run.workdir).finished and not differences(run)


def row(run: Run, failure: tuple[int, str] | None = None) -> dict[str, Any]:
    """A row of the table; `failure` is an exit code and a line of stderr."""
    row = sweep_results.row(run.name, run.workdir, failure)
    if not failure and (found := provenance.as_text(differences(run))):
        row["state"] += f", with other settings or inputs ({found})"
    return row


def command(run: Run, config: str, launcher: str) -> list[str]:
    """The command that trains a run; a launcher's machines have their own Python."""
    front = shlex.split(launcher)
    python = "python" if front else sys.executable
    return [*front, python, "-m", "alpacare_jax.train", f"--config={config}", *run.flags]


def run_all(runs: Mapping[int, Run], config: str, launcher: str) -> dict[str, tuple[int, str]]:
    """Runs those of `runs` (by index) that are not finished.

    Returns:
      Exit code and last line of stderr of each run that failed, by name.
    """
    say = functools.partial(print, file=sys.stderr, flush=True)
    runner, failures = Runner(), {}
    for index, run in runs.items():
        if is_finished(run):
            say(f"run {index}: {run.name} is finished")
            continue
        if runner.stop_requested:
            break
        say(f"run {index}: {run.name}")
        code, last = runner.run(command(run, config, launcher))
        if code:
            failures[run.name] = (code, last)
    if runner.stop_requested and not all(map(is_finished, runs.values())):
        say("stopped; rerun the same command to resume")
    return failures


def write_results(workdir: epath.Path, rows: Sequence[Mapping[str, Any]], **content: Any) -> None:
    """Writes sweep.json atomically: jobs of an array may write at the same time."""
    result, content = workdir / "sweep.json", {**content, "runs": rows}
    if paths.in_bucket(workdir):
        provenance.write_json(result, content)
        return
    workdir.mkdir(parents=True, exist_ok=True)
    partial = workdir / f"sweep.json.{platform.node()}.{os.getpid()}"
    provenance.write_json(partial, content)
    os.replace(partial, result)


def choose(runs: Sequence[Run], index: int | None) -> dict[int, Run]:
    """All runs by index, or only the one of `index`."""
    if index is None:
        return dict(enumerate(runs))
    if not 0 <= index < len(runs):
        raise ValueError(f"no run {index}: the sweep has {len(runs)}, from 0 to {len(runs) - 1}")
    return {index: runs[index]}


def array_index(text: str | None) -> int | None:
    """SLURM_ARRAY_TASK_ID as a number; None outside a job array."""
    if text and not text.isdecimal():
        raise ValueError(f"SLURM_ARRAY_TASK_ID is {text!r}, not a number")
    return int(text) if text else None


def main(argv: Sequence[str]) -> int:
    del argv
    FLAGS = flags.FLAGS
    config = sections.flatten(FLAGS.config.to_dict())
    given = config_flags.get_config_filename(FLAGS["config"])
    path, _, argument = given.partition(":")
    parts = (Path(path).stem, urllib.parse.quote(argument, safe="=,"), FLAGS.sweep)
    workdir = FLAGS.workdir or "runs/" + "-".join(filter(None, parts))
    paths.check(workdir)
    sweep = sweep_runs.load_function(path, FLAGS.sweep)
    common = config_flags.get_override_values(FLAGS["config"])
    runs = sweep_runs.make(f"{FLAGS.sweep} of {path}", sweep, config, common, epath.Path(workdir))
    index = FLAGS.index
    if index is None and not FLAGS.table:
        index = array_index(os.environ.get("SLURM_ARRAY_TASK_ID"))
    chosen = choose(runs, index)
    if FLAGS.dry_run:
        for number, run in chosen.items():
            print(f"# run {number}: {run.name}: {row(run)['state']}")
            print(shlex.join(command(run, given, FLAGS.launcher)))
        return 0
    failures = {}
    if not FLAGS.table:
        # The jobs of an array share the folder: each run has a lock of its own.
        with locks.hold(workdir) if index is None else contextlib.nullcontext():
            failures = run_all(chosen, given, FLAGS.launcher)
    best_first = sorted(runs, key=lambda run: sweep_results.read(run.workdir).order)
    rows = [row(run, failures.get(run.name)) for run in best_first]
    if not FLAGS.table:
        write_results(epath.Path(workdir), rows, config=given, sweep=FLAGS.sweep)
    print(sweep_results.table(rows))
    return 130 if exits.Ending.received else 1 if failures else 0


if __name__ == "__main__":
    config_flags.DEFINE_config_file("config", help_string="Config file, with its argument.")
    flags.DEFINE_string("sweep", "sweep", "Function of the config file that queues the runs.")
    flags.DEFINE_string(
        "workdir", None, "Parent of the runs' folders (default: runs/CONFIG-SWEEP)."
    )
    flags.DEFINE_integer(
        "index", None, "Only this run, counted from 0 (default: SLURM_ARRAY_TASK_ID, else all)."
    )
    flags.DEFINE_string("launcher", "", "Command to prepend to each run's.")
    flags.DEFINE_bool(
        "dry_run", False, "Print the commands and the state of each run; run nothing."
    )
    flags.DEFINE_bool("table", False, "Print the table; run nothing.")
    flags.mark_flags_as_required(["config"])
    cli.run(main)
