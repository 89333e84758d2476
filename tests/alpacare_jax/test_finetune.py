"""Your model, your file: configs/finetune.py on a LLaMA of no published size."""

import dataclasses
import json

import jax
import numpy as np
import pytest

from alpacare_jax import convert, train
from alpacare_jax.checkpoints import checkpoint
from alpacare_jax.planning import programs
from alpacare_jax.training.config import RunConfig
from common import sections
from configs import finetune
from tests.conftest import write_examples
from tests.support.hf_folders import TIED, hf_tensors, read_tensors, to_hf, write_hf
from tests.support.training import lines, small_machine

pytestmark = pytest.mark.usefixtures("quickly_compiled")

SHAPE = dataclasses.replace(TIED, num_hidden_layers=2, max_position_embeddings=1024)
SMALL = {
    "optimizer.learning_rate": 1e-2,
    "train.batch_size": 16,
    "train.microbatch_tokens": 512,
    "data.max_row_length": 512,
    "data.max_length": 512,
}


def test_any_llama_trains_on_any_file(tmp_path):
    source = write_hf(tmp_path / "hf", SHAPE)
    convert.from_hf(source, tmp_path / "models" / "mine")
    write_examples(tmp_path / "mine.jsonl", 64)
    config = finetune.get_config(f"{tmp_path / 'models' / 'mine'},data={tmp_path / 'mine.jsonl'}")
    config.update_from_flattened_dict(SMALL)
    run_config = sections.build(RunConfig, config.to_dict())
    with small_machine():
        assert train.run(run_config, tmp_path / "run") == 0

    written = lines(tmp_path / "run")
    assert written[-1]["eval_loss"] < written[0]["eval_loss"], "2 % are held out"
    assert (
        json.loads((tmp_path / "run" / "run.json").read_text())["config"]["model"]["variant"] == ""
    )
    back = read_tensors(to_hf(tmp_path / "run", tmp_path / "release"))
    before = hf_tensors(SHAPE)
    assert {key: array.shape for key, array in back.items()} == {
        key: array.shape for key, array in before.items()
    }
    assert not any(np.array_equal(back[key], before[key]) for key in back)


def test_a_plan_is_for_the_shape_of_the_checkpoint(tmp_path):
    write_hf(tmp_path / "hf", SHAPE)
    config = finetune.get_config(str(tmp_path / "hf")).to_dict()
    run_config = sections.build(RunConfig, config)
    program = programs.make_program(run_config, jax.devices()[:1])
    assert program.model_config == SHAPE


def test_a_folder_that_is_not_converted_says_so(tmp_path):
    write_hf(tmp_path / "hf", SHAPE)
    with pytest.raises(
        FileNotFoundError, match="no complete checkpoint: a Hugging Face folder; con"
    ):
        checkpoint.find_step(tmp_path / "hf")
