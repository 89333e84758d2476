"""Settings of a run: all are read, and bad ones are named."""

import dataclasses

import pytest

from alpacare_jax.training.config import RunConfig
from common import sections
from tests.support.training import one_line_error, run_config, ten_steps

pytestmark = pytest.mark.usefixtures("quickly_compiled")


def test_every_config_key_is_read(finished):
    known = {
        f"{section.name}.{key.name}"
        for section in dataclasses.fields(RunConfig)
        if dataclasses.is_dataclass(section.type)
        for key in dataclasses.fields(section.type)
    }
    # A run with neither LoRA nor pairs reads none of these: test_lora.py and test_preference.py.
    elsewhere = {f"lora.{key}" for key in ("alpha", "rslora", "dropout", "targets", "base")}
    elsewhere |= {"preference.sft_weight"}
    assert sorted(known - elsewhere - finished.read) == []
    rules = finished.config.sharding.rules
    assert sorted(rules.keys() - rules.read) == []


@pytest.mark.parametrize("profile", ["10", "5,3", "0,2", "a,b", "1,2,3", "-1,2"])
def test_steps_that_cannot_be_traced(corpus, profile):
    with pytest.raises(ValueError, match="give first and last step, as in 10,15"):
        dataclasses.replace(ten_steps(corpus), profile=profile)


def test_an_unknown_template(corpus):
    with pytest.raises(ValueError, match="'alpacca'; choose from alpaca"):
        run_config(corpus, data__template="alpacca")


@pytest.mark.parametrize(
    "key, value",
    [
        ("train.seed", -1),
        ("train.seed", 2**32),
        ("train.seed", 2**63),
        ("train.epochs", 10**30),
        ("optimizer.learning_rate", -1.0),
        ("optimizer.max_grad_norm", -1.0),
        ("optimizer.beta2", 1.0),
        ("optimizer.epsilon", 0.0),
        ("optimizer.learning_rate", float("nan")),
        ("optimizer.max_grad_norm", 1e-300),  # 0 in float32: nothing would be learned
        ("optimizer.epsilon", 1e-300),
        ("data.max_row_length", -1),
    ],
)
def test_numbers_out_of_range_are_named(corpus, key, value):
    with pytest.raises(sections.UsageError, match=rf"^{key} is {value}; "):
        run_config(corpus, **{key: value})


@pytest.mark.parametrize("key", ["train.epochs", "data.row_multiple", "data.max_row_length"])
def test_sizes_that_no_machine_holds_are_named(corpus, key):
    with pytest.raises(sections.UsageError, match=f"^{key} is 4,611,686,018,427,387,904; "):
        run_config(corpus, **{key: 2**62})


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"data.path": ""}, "data.path is empty; give the file"),
        ({"model.checkpoint": "", "model.variant": ""}, "model.checkpoint is empty; give a model"),
        (
            {"data.row_multiple": 8, "data.max_row_length": 2**20},
            "data.row_multiple is 8: too small for rows of 1,048,576 tokens.*; raise it",
        ),
    ],
)
def test_settings_without_a_use_are_named(corpus, changes, message):
    with pytest.raises(sections.UsageError, match=message):
        run_config(corpus, **changes)


BAD_SETTINGS = {
    "checkpoint of another variant": (
        {"model.variant": "smollm2-135m"},
        ["base is not a smollm2-135m: its sizes differ in", "D (64 instead of 576)"],
    ),
    "no checkpoint": (
        {"model.checkpoint": "nowhere"},
        ["no such file or folder: nowhere"],
    ),
    "rows over the model's positions": (
        {"data.max_length": 513},
        ["data.max_length 513 is over the model's max_position_embeddings 512; lower it"],
    ),
    "a mesh that does not fit": (
        {"sharding.tensor": 3},
        ["does not cover 1 devices", "set one of sharding.data, .fsdp, .tensor to -1"],
    ),
}


@pytest.mark.parametrize("case", BAD_SETTINGS)
def test_bad_settings_of_a_run(corpus, tmp_path, capsys, case):
    changes, parts = BAD_SETTINGS[case]
    line = one_line_error(run_config(corpus, **changes), tmp_path / "run", capsys)
    assert all(part in line for part in parts), line
    assert not (tmp_path / "run").exists()
