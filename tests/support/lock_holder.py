"""A command that makes an output: it holds the lock until its stdin ends."""

import sys
from collections.abc import Sequence

from absl import flags

from common import cli, locks


def main(argv: Sequence[str]) -> None:
    print("held", flush=True)
    sys.stdin.read()


if __name__ == "__main__":
    flags.DEFINE_string("output", "", "")
    flags.DEFINE_bool("dry_run", False, "")
    flags.DEFINE_float("refresh_seconds", locks.REFRESH_SECONDS, "")
    flags.FLAGS(sys.argv, known_only=True)
    locks.REFRESH_SECONDS = flags.FLAGS.refresh_seconds
    cli.run(main, output="output")
