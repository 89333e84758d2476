"""Slices by name."""

import pytest

from alpacare_jax.planning import gpus, topologies
from alpacare_jax.training import metrics


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("v9-8", "unknown topology 'v9-8'; write e.g. v5e-16"),
        ("v5e-7", "no slice v5e-7; choose from v5e-1, v5e-4"),
        ("v4-4", "no slice v4-4; choose from v4-8"),
        ("v5e", "unknown topology"),
        ("h200-3", "no host h200-3; choose from h200-1, h200-2"),
    ],
)
def test_slices_that_do_not_exist(name, message):
    with pytest.raises(ValueError, match=message):
        topologies.describe(name)


def test_without_libtpu_the_remedy_is_named(monkeypatch):
    monkeypatch.setattr(topologies.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"needs libtpu: pip install 'alpacare-jax\[tpu\]'"):
        topologies.describe("v5e-16")


def test_without_the_cuda_packages_the_remedy_is_named(monkeypatch):
    monkeypatch.setattr(topologies.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"CUDA packages: pip install 'alpacare-jax\[gpu\]'"):
        topologies.describe("h200-1")


def test_what_jax_takes_of_a_gpu(monkeypatch):
    card = gpus.GPUS["h200"]
    for name in ("XLA_CLIENT_MEM_FRACTION", "XLA_PYTHON_CLIENT_MEM_FRACTION"):
        monkeypatch.delenv(name, raising=False)
    assert gpus.usable_bytes(card) == 0.75 * 139 * 2**30
    monkeypatch.setenv("XLA_PYTHON_CLIENT_MEM_FRACTION", ".95")
    assert gpus.usable_bytes(card) == 0.95 * 139 * 2**30


def test_every_gpu_has_its_rates():
    for card in gpus.GPUS.values():
        assert card.kind in topologies.GPU_RATES and card.kind in metrics.PEAK_BF16_FLOPS
