"""The systems of the paper: every row builds, plans, and is the published one."""

import jax
import pytest

from alpacare_jax.data import prompts
from alpacare_jax.planning import programs, remat, training
from alpacare_jax.training.config import RunConfig
from common import sections
from configs import alpacare, baselines

BATCH, RATIO, STEPS = 128, 0.03, 0
PUBLISHED = {
    # rate, epochs, batch, warm-up ratio and steps, length, template, held out
    "alpacare-7b": (2e-5, 3, BATCH, RATIO, STEPS, 1024, "alpaca", 0),
    "alpacare-13b": (1e-5, 5, BATCH, RATIO, STEPS, 1024, "alpaca", 0),
    "alpacare-7b-llama-2": (2e-5, 3, BATCH, RATIO, STEPS, 1024, "alpaca", 0),
    "alpacare-13b-llama-2": (1e-5, 5, BATCH, RATIO, STEPS, 1024, "alpaca", 0),
    "alpaca-7b": (2e-5, 3, BATCH, RATIO, STEPS, 512, "alpaca", 0),
    "alpaca-13b": (1e-5, 5, BATCH, RATIO, STEPS, 512, "alpaca", 0),
    "alpaca-7b-llama-2": (2e-5, 3, BATCH, RATIO, STEPS, 512, "alpaca", 0),
    "alpaca-13b-llama-2": (1e-5, 5, BATCH, RATIO, STEPS, 512, "alpaca", 0),
    "chatdoctor": (2e-6, 1, 4 * 4 * 8, RATIO, STEPS, 512, "alpaca", 0),
    "medalpaca-7b": (2e-5, 3, 128, RATIO, 100, 256, "medalpaca", 0.1),
    "medalpaca-13b": (2e-5, 3, 128, RATIO, 100, 256, "medalpaca", 0.1),
    "pmc-llama-13b": (2e-5, 3, 4 * 4 * 8, RATIO, STEPS, 512, "alpaca", 0),
    "baize-healthcare": (2e-4, 1, 64, RATIO, 100, 512, "baize-dialogue", 0),
    "llama3-8b": (2e-5, 3, BATCH, RATIO, STEPS, 1024, "llama3", 0),
    "llama3.2-1b": (5e-5, 3, BATCH, RATIO, STEPS, 1024, "llama3", 0),
}


def build(system: str) -> RunConfig:
    return sections.build(RunConfig, baselines.get_config(system).to_dict())


@pytest.mark.parametrize("system", PUBLISHED)
def test_the_row_is_the_published_recipe(system):
    config = build(system)
    optimizer, data = config.optimizer, config.data
    assert PUBLISHED[system] == (
        optimizer.learning_rate,
        config.train.epochs,
        config.train.batch_size,
        optimizer.warmup_ratio,
        optimizer.warmup_steps,
        data.max_length,
        data.template,
        data.eval_share,
    )
    schedule = "linear" if system.startswith("baize") else "cosine"
    assert (optimizer.name, optimizer.schedule, optimizer.weight_decay) == ("adamw", schedule, 0)
    masked = prompts.TEMPLATES[data.template].loss == "responses"
    assert masked == (not system.startswith(("medalpaca", "baize"))) and data.loss == "template"


@pytest.mark.parametrize("system", baselines.ROWS)
def test_every_row_plans(system):
    """Its step is traced, for the real sizes, with nothing allocated."""
    config = build(system)
    program = remat.with_policy(programs.make_program(config, jax.devices()), "full")
    work = training.TrainingWorkload(20_000, config.data.max_length // 2, 0.5)
    batch = training.typical_batch(program, work)
    report = programs.trace_step(program, batch.arrays).out_info[1]
    assert "loss" in report


def test_every_row_says_where_it_is_from():
    published = {name for name, row in baselines.ROWS.items() if row.base in alpacare.VARIANTS}
    assert published <= PUBLISHED.keys()
    assert all(row.source for row in baselines.ROWS.values())
    for name in ("chatdoctor", "medalpaca-7b", "medalpaca-13b", "pmc-llama-13b"):
        assert baselines.ROWS[name].unknown, f"{name} cannot be reproduced exactly"


def test_chatdoctor_continues_from_its_first_stage():
    assert build("chatdoctor").model.checkpoint == "runs/alpaca-7b"
    config = baselines.get_config("chatdoctor,checkpoint=models/mine,data=mine.jsonl")
    assert (config.model.checkpoint, config.data.path) == ("models/mine", "mine.jsonl")


def test_an_unknown_system_lists_the_known_ones():
    with pytest.raises(ValueError, match="unknown system 'medalpaca'; choose from alpacare-7b, "):
        baselines.get_config("medalpaca")
