"""Fills up what a small model lacks with records of other files.

    python -m launch.quickstart.fill_up --input=tasks.jsonl,seeds.jsonl --count=8 --output=P.jsonl

All records of the files but the last are taken, which may be empty; of the last, those without
input, until there are as many as asked for.
"""

from collections.abc import Sequence
from pathlib import Path, PurePath

from absl import flags

from common import cli, jsonl, provenance, records
from common.jsonl import Record
from common.messages import log


def without_input(path: PurePath) -> list[Record]:
    """The records of a file that have none."""
    return [record for record in records.read_records(path) if not record["input"]]


def fill_up(files: Sequence[Path], count: int) -> list[Record]:
    """The records, as above."""
    *first, rest = files
    found = [r for path in first if path.stat().st_size for r in records.read_records(path)]
    return [*found, *without_input(rest)[: max(0, count - len(found))]]


def main(argv: Sequence[str]) -> None:
    """The command."""
    del argv
    files, output = [*map(Path, flags.FLAGS.input)], Path(flags.FLAGS.output)
    kept = fill_up(files, flags.FLAGS.count)
    inputs = {str(path): provenance.sha256(path) for path in files}
    jsonl.write_output(output, kept, provenance.describe(config={}, inputs=inputs))
    log(f"{output}: {len(kept)} records")


if __name__ == "__main__":
    flags.DEFINE_list("input", None, "The files.")
    flags.DEFINE_integer("count", None, "How many records there are to be.", lower_bound=1)
    flags.DEFINE_string("output", None, "The .jsonl file to write.")
    flags.mark_flags_as_required(["input", "count", "output"])
    cli.run(main, output="output")
