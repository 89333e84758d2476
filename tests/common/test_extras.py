"""A missing package ends in one line that names the extra."""

import doctest
import os
import subprocess
import sys

from common import extras
from tests.conftest import REPOSITORY


def test_the_example_in_the_docstring_is_true():
    result = doctest.testmod(extras)
    assert result.attempted and not result.failed


def test_a_package_that_is_missing_is_named_with_its_extra(tmp_path):
    """Also through `alpacare`; a module that fails to import stands for a missing package."""
    (tmp_path / "matplotlib.py").write_text("raise ModuleNotFoundError(name='matplotlib')")
    (tmp_path / "rapidfuzz.py").write_text("raise ModuleNotFoundError(name='rapidfuzz')")
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}
    expected = "error: the package rapidfuzz is not installed; run: pip install '.[datagen]'\n"
    for module, *arguments in (["common.alpacare", "dedup"], ["datagen.dedup"]):
        done = subprocess.run(
            [sys.executable, "-m", module, *arguments, "--help"],
            cwd=REPOSITORY,
            env=environment,
            capture_output=True,
            text=True,
        )
        assert (done.returncode, done.stderr) == (1, expected)
