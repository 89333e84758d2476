"""Packages that only some commands need, and the extra of setup.py that installs each."""

import functools
import sys
from types import TracebackType

OPTIONAL = {
    "gcsfs": "gcs",
    "gguf": "convert",
    "libtpu": "tpu",
    "pyarrow": "parquet",
    "tensorboardX": "tensorboard",
    "wandb": "wandb",
}
"""Top-level modules that one feature of a command needs -> its extra. All other packages are needed
by every command of our own package, whose extra is given to `explain_missing`."""


def advice(error: ModuleNotFoundError, extra: str) -> str:
    """What to install after `error`; "" where a module of our own is missing.

    >>> advice(ModuleNotFoundError("No module named 'jax'", name="jax.numpy"), "train")
    "the package jax is not installed; run: pip install '.[train]'"
    """
    module = (error.name or "").partition(".")[0]
    if not module or module in ("alpacare_jax", "common", "configs", "datagen", "evaluation"):
        return ""
    return (
        f"the package {module} is not installed; "
        f"run: pip install '.[{OPTIONAL.get(module, extra)}]'"
    )


def explain_missing(extra: str) -> None:
    """Makes `python -m PACKAGE.COMMAND` end in one line where an import fails, not in a traceback.

    Called by the `__init__` of each package: a command's own imports come before any code of it.
    """
    if sys.argv[:1] == ["-m"]:  # set while the interpreter looks for the module that it will run
        sys.excepthook = functools.partial(_report, extra)


def _report(
    extra: str, kind: type[BaseException], error: BaseException, traceback: TracebackType | None
) -> None:
    text = advice(error, extra) if isinstance(error, ModuleNotFoundError) else ""
    if text:
        print(f"error: {text}", file=sys.stderr)
    else:
        sys.__excepthook__(kind, error, traceback)
