"""Runs commands as `python -m MODULE ARGS` does, in forks of a process that has loaded what is
large: a start then takes milliseconds. For what a command prints and how it ends; a test of how a
process starts or ends needs one of its own.
"""

import atexit
import contextlib
import functools
import json
import os
import runpy
import subprocess
import sys
import tempfile
import traceback
import warnings
from pathlib import Path

from tests.conftest import COMPILES_QUICKLY, LIMIT, REPOSITORY

DATA = "absl.app etils.epath matplotlib ml_collections numpy py3langid rapidfuzz.process"
JAX = "absl.app flax.nnx jax matplotlib ml_collections optax orbax.checkpoint tokenizers"
"""What is large; none of ours."""


def run(module: str, *arguments: object, **environment: str | None) -> subprocess.CompletedProcess:
    """A command, or a script whose name ends in .py, from the root of the repository.

    Args:
      environment: variables of the command alone, None for none; those of JAX are read before.
    """
    own = {name: text for name, text in (os.environ | environment).items() if text is not None}
    with tempfile.TemporaryDirectory() as folder:
        asked = [folder, own, module, *map(str, arguments)]
        server = _server(JAX if module.startswith("alpacare_jax.") else DATA)
        print(json.dumps(asked), file=server.stdin, flush=True)
        code = int(server.stdout.readline())
        out, err = ((Path(folder) / name).read_text() for name in ("out", "err"))
    return subprocess.CompletedProcess(asked[2:], code, out, err)


@functools.cache
def _server(packages: str) -> subprocess.Popen:
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.support.commands", *packages.split()],
        cwd=REPOSITORY,
        env=os.environ | COMPILES_QUICKLY,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    atexit.register(process.communicate, "", timeout=LIMIT)  # it ends when nothing more comes
    return process


def _become(folder: str, environment: dict[str, str], module: str, *arguments: str) -> None:
    """Turns this fork into the command; never returns."""
    for descriptor, name in enumerate(("out", "err"), start=1):
        os.dup2(os.open(f"{folder}/{name}", os.O_CREAT | os.O_WRONLY), descriptor)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.environ.clear()
    os.environ.update(environment)
    sys.argv = [module, *arguments]
    code = 0
    try:
        if module.endswith(".py"):
            runpy.run_path(module, run_name="__main__")
        else:
            runpy.run_module(module, run_name="__main__", alter_sys=True)
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:  # noqa: BLE001 - as the interpreter shows it
        traceback.print_exc()
        code = 1
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _serve() -> None:
    warnings.simplefilter("ignore")  # of JAX about forks: no backend has started
    for name in sys.argv[1:]:
        with contextlib.suppress(ImportError):
            __import__(name)
    for line in sys.stdin:
        if not (child := os.fork()):
            _become(*json.loads(line))
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)


if __name__ == "__main__":
    _serve()
