"""Copies a file to a bucket or from one, with a record of its digest beside the copy.

    python -m launch.paper.transfer --source=runs/paper/data/examples.jsonl --target=gs://BUCKET/x.jsonl

The record is TARGET.run.json, by which launch/paper.sh knows that the copy is whole and current.
"""

from collections.abc import Sequence
from pathlib import Path

from absl import flags
from etils import epath

from common import cli, paths, provenance


def main(argv: Sequence[str]) -> None:
    """The command."""
    del argv
    source, target = epath.Path(flags.FLAGS.source), epath.Path(flags.FLAGS.target)
    paths.check(str(source), str(target))
    paths.require(source)
    record = provenance.describe(config={}, source=str(source), sha256=provenance.sha256(source))
    target.parent.mkdir(parents=True, exist_ok=True)
    if paths.in_bucket(target):
        target.write_bytes(source.read_bytes())
    else:
        with provenance.replacing(Path(target)) as partial:
            partial.write_bytes(source.read_bytes())
    if provenance.sha256(target) != record["sha256"]:
        raise OSError(f"{target} is not what {source} was; rerun, when nothing writes to it")
    provenance.write_json(provenance.run_json(target), record | {"end": provenance.now()})


if __name__ == "__main__":
    flags.DEFINE_string("source", None, "The file.")
    flags.DEFINE_string("target", None, "The copy.")
    flags.mark_flags_as_required(["source", "target"])
    cli.run(main, output="target")
