"""Slices by name."""

import pytest

from alpacare_jax import topology


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("v9-8", "unknown topology 'v9-8'; write e.g. v5e-16"),
        ("v5e-7", "no slice v5e-7; choose from v5e-1, v5e-4"),
        ("v4-4", "no slice v4-4; choose from v4-8"),
        ("v5e", "unknown topology"),
    ],
)
def test_slices_that_do_not_exist(name, message):
    with pytest.raises(ValueError, match=message):
        topology.describe(name)


def test_without_libtpu_the_remedy_is_named(monkeypatch):
    monkeypatch.setattr(topology.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"needs libtpu: pip install 'alpacare-jax\[tpu\]'"):
        topology.describe("v5e-16")
