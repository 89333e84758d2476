"""What a run reports, on stderr and in metrics.jsonl."""

import math

import pytest

from alpacare_jax.training import optimizers
from tests.support.training import lines

pytestmark = pytest.mark.usefixtures("quickly_compiled")


def test_metrics_are_all_there_and_finite(finished):
    steps = lines(finished.workdir)
    assert [line["step"] for line in steps] == list(range(11))
    always = {"loss", "grad_norm", "learning_rate", "tokens_per_second", "real_token_share"}
    always |= {"seconds"}  # and no MFU: these tests run on CPU
    rate = optimizers.schedule(finished.config.optimizer, 10)
    assert finished.steps_of_schedule == [10], "what is logged is what is applied"
    for line in steps:
        extra = {"eval_loss"} if line["step"] % 2 == 0 else set()
        extra |= {"save_stall_seconds"} if line["step"] in (5, 9) else set()  # saved before: 4, 8
        assert line.keys() == {"step"} | extra | (always if line["step"] else set())
        assert all(math.isfinite(value) for value in line.values())
        if line["step"]:
            assert line["learning_rate"] == pytest.approx(float(rate(line["step"] - 1)))
            assert 0 < line["real_token_share"] <= 1
            assert min(line[key] for key in always - {"learning_rate"}) > 0


def test_progress_goes_to_stderr(finished):
    assert finished.out == ""
    assert "34 examples, 10 steps of 6 (2 epochs), 1 of them warm-up\n" in finished.err
    assert "4 examples are skipped each epoch (incomplete batch)\n" in finished.err
    assert "step 0/10 | held-out loss 6." in finished.err
    for step in (1, 2, 4, 6, 8, 10):
        assert finished.err.count(f"\nstep {step}/10 | loss ") == 1
    assert "step 3/10" not in finished.err
    assert "finished in" in finished.err


def test_tensorboard_files(finished):
    pytest.importorskip("tensorboardX")
    (file,) = (finished.workdir / "tensorboard").iterdir()
    content = file.read_bytes()
    for name in (b"loss", b"eval_loss", b"seconds", b"learning_rate"):
        assert name in content


def test_the_log_says_where_the_time_went(finished):
    (line,) = (text for text in finished.err.splitlines() if text.startswith("first step after"))
    phases = ("imports and devices", "data", "weights", "held-out loss", "first step")
    assert all(f"{name} " in line for name in phases) and "compiling took" in line
    assert "attention kernel: xla" in finished.err
    assert "compiling the held-out loss (no estimate yet)\n" in finished.err
    assert "compiling the training step (no estimate yet)\n" in finished.err
    assert "MFU" not in finished.err
    saves = finished.err.count(": saving in the background; training paused for ")
    assert saves == 3, "steps 4, 8, 10"
