"""Config files as dataclasses: keys that are misspelled, and the comments that --help prints."""

import dataclasses
import doctest
import subprocess
import sys

import pytest

from common import sections
from common.sections import UsageError
from tests.conftest import REPOSITORY


@dataclasses.dataclass(frozen=True)
class Inner:
    """A section."""

    learning_rate: float  # peak learning rate
    # over all devices
    # and processes
    batch_size: int
    name: str
    """What it is called."""
    seed: int

    def __post_init__(self):
        if self.batch_size < 1:
            raise ValueError("inner.batch_size must be at least 1")


@dataclasses.dataclass(frozen=True)
class Outer:
    """All sections."""

    inner: Inner
    profile: str  # "": none


CONTENT = {
    "inner": {"learning_rate": 0.1, "batch_size": 2, "name": "x", "seed": 1},
    "profile": "",
}


def test_sections_become_dataclasses():
    built = sections.build(Outer, CONTENT)
    assert built == Outer(Inner(0.1, 2, "x", 1), "")


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"profil": ""}, "config has no key 'profil'; did you mean 'profile'"),
        ({"inner": CONTENT["inner"] | {"sed": 1}}, "config.inner has no key 'sed'; did you mean"),
        ({"inner": {"name": "x"}}, "config.inner is missing learning_rate, batch_size, seed"),
        ({"inner": CONTENT["inner"] | {"batch_size": 0}}, "inner.batch_size must be at least 1"),
        (
            {"inner": CONTENT["inner"] | {"seed": 2**63}},
            r"inner.seed is 9223372036854775808; integ",
        ),
        ({"inner": CONTENT["inner"] | {"seed": -(10**30)}}, "inner.seed is -1000.*below 2.63"),
        ({"inner": CONTENT["inner"] | {"learning_rate": float("nan")}}, "learning_rate is nan; it"),
        ({"inner": CONTENT["inner"] | {"learning_rate": 1e999}}, "learning_rate is inf; it must"),
        ({"inner": CONTENT["inner"] | {"learning_rate": 1e-40}}, "rate is 1e-40; float32 holds 0"),
        ({"inner": CONTENT["inner"] | {"learning_rate": -1e39}}, r"rate is -1e\+39; float32 holds"),
        ({"inner": CONTENT["inner"] | {"seed": 1.0}}, "inner.seed is 1.0; it must be a whole numb"),
        ({"inner": CONTENT["inner"] | {"seed": True}}, "inner.seed is True; it must be a whole"),
        ({"inner": CONTENT["inner"] | {"seed": "1"}}, "inner.seed is '1'; it must be a whole"),
        (
            {"inner": CONTENT["inner"] | {"learning_rate": None}},
            "rate is None; it must be",
        ),
        ({"inner": CONTENT["inner"] | {"name": ["x"]}}, r"name is \['x'\]; it must be a text"),
        ({"inner": [1, 2]}, r"config.inner is \[1, 2\]; it must be a section of keys"),
        ({"profile": 10}, "^profile is 10; it must be a text"),
    ],
)
def test_a_wrong_setting_is_an_error_of_usage(changes, message):
    with pytest.raises(UsageError, match=message):
        sections.build(Outer, CONTENT | changes)


def test_comments_are_found_wherever_they_are():
    assert dict(sections.keys(Outer)) == {
        "inner.learning_rate": "peak learning rate",
        "inner.batch_size": "over all devices and processes",
        "inner.name": "What it is called.",
        "inner.seed": "",
        "profile": '"": none',
    }


def test_the_examples_in_the_docstrings_are_true():
    assert doctest.testmod(sections).failed == 0


@pytest.mark.parametrize(
    "given, said",
    [
        ("absent.py", "no such file: absent.py\n"),
        ("LICENSE", "--config=LICENSE could not be loaded: "),
    ],
)
def test_help_with_a_config_that_cannot_be_loaded_is_one_line(given, said):
    command = [sys.executable, "-m", "datagen.tasks", "--help", f"--config={given}"]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: {said}")
    assert done.stderr.count("\n") == 1
