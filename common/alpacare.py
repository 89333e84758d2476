"""The `alpacare` command: one door to all others.

alpacare                    lists the commands
alpacare train --help       as python -m alpacare_jax.train --help
"""

import ast
import os
import runpy
import sys
from collections.abc import Sequence
from pathlib import Path

from common import exits
from common.messages import suggestion

COMMANDS = {
    name: f"{package}.{name}"
    for package, names in {
        "datagen": "tasks dedup responses stats",
        "alpacare_jax": "convert tokenizer plan train compare generate serve chat release",
        "evaluation": "references judge rubric choices annotate report",
    }.items()
    for name in names.split()
}
"""Command -> its module, in the order of the work."""

EXTRAS = {"datagen": "datagen", "alpacare_jax": "train", "evaluation": "evaluation"}
"""Package -> the extra of setup.py that its commands need."""


def summary(module: str) -> str:
    """The first sentence of a module's docstring, read from its source: nothing is imported."""
    package, _, name = module.partition(".")
    folder = Path(__file__).parents[1] / package
    source = (folder / f"{name}.py").read_text(encoding="utf-8")
    return (ast.get_docstring(ast.parse(source)) or "").partition("\n\n")[0].replace("\n", " ")


def usage() -> str:
    """The list of commands."""
    width = max(map(len, COMMANDS))
    lines = [f"  {name:{width}}  {summary(module)}" for name, module in COMMANDS.items()]
    return "\n".join(
        ["usage: alpacare COMMAND [--flags]", "", *lines, "", "alpacare COMMAND --help shows more."]
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command as `python -m` does; returns the exit code where it does not exit itself."""
    name, *arguments = (sys.argv[1:] if argv is None else argv) or ["--help"]
    if name in ("--help", "-h", "help"):
        print(usage())
        return 0
    if name not in COMMANDS:
        print(f"error: no command {name!r}; {suggestion(name, COMMANDS)}", file=sys.stderr)
        return 2
    module = COMMANDS[name]
    sys.path.insert(0, os.getcwd())  # as python -m does: config files import their neighbours
    sys.argv = [f"alpacare {name}", *arguments]
    exits.watch(EXTRAS[module.partition(".")[0]])
    runpy.run_module(module, run_name="__main__", alter_sys=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
