"""Puts training runs on one page: what differs, how they ended, their curves.

    python -m alpacare_jax.compare runs/a runs/b --output=compare.html

A RUN is a workdir of train, or a folder that holds such workdirs, as a sweep does. Runs may be
unfinished. FILE.svg with the curves is written beside FILE.html, and FILE.png where matplotlib is
installed.
"""

import sys
from collections.abc import Sequence

from absl import flags
from etils import epath

from alpacare_jax.reporting import comparison, run_files
from alpacare_jax.reporting.run_files import RunFiles
from common import cli, paths, provenance
from common.reports import drawing
from common.sections import UsageError


def find(folders: Sequence[str]) -> list[RunFiles]:
    """The runs of the folders, in order; a folder that is no run stands for those in it.

    Raises:
      FileNotFoundError: a folder does not exist.
      ValueError: a folder holds no run, or a file of one is damaged.
    """
    found: dict[epath.Path, RunFiles] = {}
    for name in folders:
        folder = epath.Path(name)
        if not folder.is_dir():
            raise FileNotFoundError(f"{name}: no such folder; give workdirs of train")
        inside = [folder] if run_files.is_run(folder) else sorted(folder.iterdir())
        runs = [path for path in inside if run_files.is_run(path)]
        if not runs:
            raise ValueError(f"{name} holds no training run; give workdirs of train or of a sweep")
        found |= {paths.absolute(path): run_files.read(path) for path in runs}
    return run_files.with_unique_names(found)


def main(argv: Sequence[str]) -> None:
    """Runs the command."""
    output = epath.Path(flags.FLAGS.output)
    if not argv[1:]:
        raise UsageError("give one or several workdirs of train, or the folder of a sweep")
    if output.suffix != ".html":
        raise UsageError(f"--output {output} must end in .html")
    paths.check(flags.FLAGS.output, *argv[1:])
    runs = find(argv[1:])
    provenance.write_text(output, comparison.page(runs, provenance.now()))
    print(f"{len(runs)} runs: {output}", file=sys.stderr)
    if shown := comparison.drawings(runs, legend=True):
        stem = output.with_name(output.stem)
        if note := drawing.write_figures(stem, f"{len(runs)} runs", shown):
            print(note, file=sys.stderr)


if __name__ == "__main__":
    flags.DEFINE_string("output", "compare.html", "The page to write.")
    cli.run(main, positional=True, output="output")
