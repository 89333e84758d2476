"""Sample answers are those that `generate` would give, wherever the weights are."""

import dataclasses

import jax
import pytest

from alpacare_jax.checkpoints import model_folder
from alpacare_jax.distributed import sharding
from alpacare_jax.inference.engine import Engine
from alpacare_jax.inference.requests import Request
from alpacare_jax.training import batching, evaluation
from alpacare_jax.training.evaluation import Evaluation
from alpacare_jax.training.train_step import TrainingProgram
from tests.support.training import TINY, hand_made_params, run_config

pytestmark = pytest.mark.usefixtures("quickly_compiled")
COUNT, TOKENS = 3, 24


@pytest.fixture(scope="module")
def expected(corpus):
    """The answers of an engine with its own copy of the weights, one device, no training."""
    tokenizer = model_folder.load_tokenizer(corpus / "base")
    config = run_config(corpus)
    mesh = sharding.make_mesh(config.sharding, jax.devices()[:1])
    _, held_out = batching.load_batchers(config, TINY, mesh, lambda text: None)
    engine = Engine(
        hand_made_params(),
        TINY,
        dtype=jax.numpy.float32,
        eos_ids=[tokenizer.eos_id],
        max_length=TINY.max_position_embeddings,
        slots=1,
    )
    prompts = [e.ids[: e.prompt_length].tolist() for e in held_out.examples[:COUNT]]
    requests = [Request(i, ids, TOKENS) for i, ids in enumerate(prompts)]
    found = {answer.index: answer for answer in engine.run(requests)}
    return [tokenizer.decode(found[i].ids, continuation=True).strip() for i in range(COUNT)]


@pytest.mark.parametrize("mesh_axes", [{}, {"fsdp": 2, "tensor": 2}])
def test_the_weights_in_training_answer_where_they_are(corpus, expected, mesh_axes, monkeypatch):
    monkeypatch.setattr(evaluation, "SAMPLE_TOKENS", TOKENS)
    config = run_config(corpus, train__samples=COUNT)
    axes = {"data": 1, "fsdp": 1, "tensor": 1} | mesh_axes
    config = dataclasses.replace(config, sharding=dataclasses.replace(config.sharding, **axes))
    count = axes["data"] * axes["fsdp"] * axes["tensor"]
    mesh = sharding.make_mesh(config.sharding, jax.devices()[:count])
    program = TrainingProgram(TINY, config, 10, mesh)
    _, held_out = batching.load_batchers(config, TINY, mesh, lambda text: None)
    params = jax.device_put(hand_made_params(), program.state_shardings["params"])
    measured = Evaluation(program, held_out, lambda *_: 0.0, {})
    for _ in range(2):  # the second evaluation of a run
        answers = measured.answers({"params": params})
        assert [answer["output"] for answer in answers] == expected
    assert answers[0]["prompt"].endswith("fever and pain"), "without the template's frame"
    assert "Below is" not in answers[0]["prompt"]
    assert all(answer["reference"] for answer in answers)
    assert {answer["finish_reason"] for answer in answers} <= {"stop", "length"}


def test_no_samples_and_nothing_held_out(corpus):
    config = run_config(corpus)
    mesh = sharding.make_mesh(config.sharding, jax.devices()[:1])
    measured = Evaluation(TrainingProgram(TINY, config, 10, mesh), None, lambda *_: 0.0, {})
    assert (measured.loss({}), measured.answers({})) == ({}, [])
    with pytest.raises(ValueError, match=r"train\.samples answers held-out prompts: set data\."):
        run_config(corpus, train__samples=1, data__eval_path="")
