"""Slices by name."""

import pytest

from alpacare_jax.planning import topologies
from alpacare_jax.training import metrics


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("v9-8", "unknown topology 'v9-8'; write e.g. v5e-16"),
        ("v5e-7", "no slice v5e-7; choose from v5e-1, v5e-4"),
        ("v4-4", "no slice v4-4; choose from v4-8"),
        ("v5e", "unknown topology"),
        ("0xv5e-16", "unknown topology"),
        ("99999xv5e-16", "unknown topology"),
        ("h200-3", "no host h200-3; choose from h200-1, h200-2"),
    ],
)
def test_slices_that_do_not_exist(name, message):
    with pytest.raises(ValueError, match=message):
        topologies.describe(name)


@pytest.mark.parametrize(
    ("name", "remedy"),
    [
        ("v5e-16", r"needs libtpu: pip install 'alpacare-jax\[tpu\]'"),
        ("h200-1", r"CUDA packages: pip install 'alpacare-jax\[gpu\]'"),
    ],
)
def test_without_the_compiler_the_remedy_is_named(monkeypatch, name, remedy):
    monkeypatch.setattr(topologies.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=remedy):
        topologies.describe(name)


def test_what_jax_takes_of_a_gpu(monkeypatch):
    for name in ("XLA_CLIENT_MEM_FRACTION", "XLA_PYTHON_CLIENT_MEM_FRACTION"):
        monkeypatch.delenv(name, raising=False)
    assert topologies.memory_fraction() == 0.75
    monkeypatch.setenv("XLA_PYTHON_CLIENT_MEM_FRACTION", ".95")
    assert topologies.memory_fraction() == 0.95


def test_every_gpu_has_its_rates():
    for gpu in topologies.GPUS.values():
        assert gpu.kind in topologies.GPU_RATES
        assert any(gpu.kind.startswith(name) for name in metrics.PEAK_BF16_FLOPS)
