"""Stop requests and losses that are not finite."""

import jax
import numpy as np
import pytest

from alpacare_jax import train
from alpacare_jax.checkpoints import checkpoint
from alpacare_jax.data.batches import Batcher
from alpacare_jax.training.train_step import TrainingProgram
from tests.support.training import (
    TINY,
    after_write,
    assert_same_end,
    compile_once,
    lines,
    resume,
    small_machine,
    stopped_run,
    ten_steps,
)

pytestmark = pytest.mark.usefixtures("quickly_compiled")


@pytest.mark.parametrize(("asked", "stopped"), [(1, 2), (2, 2), (3, 4), (4, 4), (9, 10)])
def test_the_step_that_a_stop_promises_is_saved(corpus, tmp_path, capsys, asked, stopped):
    """The step given to the devices when it is noticed is finished too; here every second is."""
    stopped_run(corpus, tmp_path, step=asked, checkpoint__every_steps=0)
    assert checkpoint.find_step(tmp_path, "latest") == lines(tmp_path)[-1]["step"] == stopped
    lines_of_stop = [line for line in capsys.readouterr().err.splitlines() if "stopped by" in line]
    expected = (
        f"stopped by SIGTERM; checkpoint saved at step {stopped}; rerun the same command to resume"
    )
    assert lines_of_stop == ([expected] if stopped < 10 else [])


def test_a_loss_that_is_not_a_number_stops_the_run(corpus, finished, tmp_path, capsys):
    config = ten_steps(corpus, checkpoint__every_steps=4)
    batch = Batcher.batch

    def poisoned(self, step):
        one = batch(self, step)
        if step == 6:  # step 7, counted from 1: no evaluation, no checkpoint
            one.arrays["weights"][one.arrays["weights"] > 0] = np.nan
        return one

    with small_machine() as patch:
        compile_once(patch)
        patch.setattr(Batcher, "batch", poisoned)
        with pytest.raises(FloatingPointError) as raised:
            train.run(config, tmp_path)
    for part in ("at step 7", "last good step is 6", "last checkpoint 4", "lower optimizer.learn"):
        assert part in str(raised.value)
    assert [line["step"] for line in lines(tmp_path)] == list(range(7))
    page = (tmp_path / "report.html").read_text()
    assert ">failed at step 6</span>" in page and "the last good step is 6" in page
    assert checkpoint.find_step(tmp_path, "latest") == 4
    weights = checkpoint.load_params(tmp_path, TINY)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(weights))
    capsys.readouterr()
    resume(config, tmp_path)  # the checkpoint is good: without the poison there is nothing amiss
    assert "resuming from step 4" in capsys.readouterr().err
    assert_same_end(tmp_path, finished.workdir, 10)


def test_a_held_out_loss_that_is_not_a_number_is_not_saved(corpus, tmp_path):
    config = ten_steps(corpus, checkpoint__every_steps=5)
    poison = []
    with small_machine() as patch:
        compile_once(patch)
        make_steps = TrainingProgram.make_steps

        def poisoned(*args):
            step, evaluate = make_steps(*args)

            def poisoned_evaluate(*inputs):
                report = evaluate(*inputs)
                return {name: value * (np.nan if poison else 1) for name, value in report.items()}

            return step, poisoned_evaluate

        patch.setattr(TrainingProgram, "make_steps", poisoned)
        after_write(patch, 7, lambda: poison.append(True))
        with pytest.raises(FloatingPointError, match=r"eval_loss nan.* at step 8;.*checkpoint 5"):
            train.run(config, tmp_path)
    assert checkpoint.find_step(tmp_path, "latest") == 5
