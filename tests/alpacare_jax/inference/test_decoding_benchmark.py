"""The benchmark of decoding, on a tiny model: its contenders do the same work."""

import numpy as np
import pytest

from alpacare_jax.checkpoints import export
from benchmarks import decoding

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("quickly_compiled", "transformers")]


@pytest.fixture(scope="module")
def folder(tiny_model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("both")
    (folder / "ours").symlink_to(tiny_model)
    export.to_hf(tiny_model, folder / "theirs", "best", "float32")
    return folder


def test_contenders_give_the_same_answers(folder):
    found = {
        name: decoding.set_up(name, folder, "batch", 2)()["answers"]
        for name in ("ours", "generate", "one slot")
    }
    prompts, limits = decoding.work_list(folder, "batch", 2)
    assert all(prompts) and limits == np.random.default_rng(0).integers(10, 161, 2).tolist()
    assert [len(ids) for ids in found["ours"]] == limits
    assert found["ours"] == found["generate"] == found["one slot"]


def test_first_token_latency_has_one_value_per_round(folder):
    result = decoding.first_token(folder, rounds=2)()
    assert [len(result[name]) for name in ("chunks", "bursts", "waits")] == [2, 2, 2]
    assert len(result["pauses"]) == 4, "chunks of a prompt of 1,023 tokens"
    assert all(
        wait > burst > 0 for wait, burst in zip(result["waits"], result["bursts"], strict=True)
    )
