"""What is shown while pip works."""

import subprocess

from tests.conftest import REPOSITORY

SCRIPT = f". {REPOSITORY}/launch/lib/environment.sh; show_pip_progress"


def test_pip_shows_a_dot_for_each_package():
    said = "Obtaining file:///x\nCollecting a\n  Downloading a.whl\nCollecting b>=2\n"
    said += "Installing collected packages: a, b\nSuccessfully installed a b\n"
    done = subprocess.run(["bash", "-c", SCRIPT], input=said, capture_output=True, text=True)
    assert (done.stdout, done.stderr, done.returncode) == (".. installing .\n", "", 0)


def test_a_silent_pip_shows_a_dot_every_few_seconds():
    quick = SCRIPT.replace("; ", "; read() { builtin read -r -t 0.01 line; }; ", 1)
    with subprocess.Popen(
        ["bash", "-c", quick], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout.read(3) == b"..."
        process.stdin.close()
        assert set(process.stdout.read()) <= set(b".\n"), "and it ends with pip"
