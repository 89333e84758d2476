"""A tiny model that says different things, and servers of it."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath

from alpacare_jax import generate
from alpacare_jax.inference import loading
from alpacare_jax.inference.engine import Engine
from alpacare_jax.inference.loading import ModelSource
from alpacare_jax.inference.sampling import Sampling
from alpacare_jax.model import params
from tests.conftest import make_model
from tests.support.served import ServerThread

EOS_IDS = [2, *range(250, 256)]
"""So many that some answers end before their limit."""


@pytest.fixture(scope="session")
def model_directory(tmp_path_factory, tiny) -> Path:
    draw = np.random.default_rng(0)
    directory = tmp_path_factory.mktemp("served") / "tiny-medic"
    weights = params.build_tree(
        tiny,
        lambda w: jnp.asarray(0.3 * draw.normal(size=params.weight_shape(w, tiny)), jnp.float32),
    )
    make_model(directory, tiny, weights)
    content = json.dumps({"eos_token_id": EOS_IDS})
    (directory / "generation_config.json").write_text(content)
    return directory


def source_of(directory: Path, **changes) -> ModelSource:
    given = {"step": "best", "template": None, "max_length": None, "dtype": "float32"}
    return ModelSource(epath.Path(directory), None, **given | changes)


@pytest.fixture(scope="session")
def source(model_directory) -> ModelSource:
    return source_of(model_directory)


@pytest.fixture(scope="session")
def engine(source) -> Engine:
    """Every step has one shape: three programs to compile."""
    return source.engine(jax.devices()[:1], 1, 4, Sampling(), invariant=True)


@pytest.fixture(scope="module")
def served(source, engine, quickly_compiled):
    server = ServerThread(source, engine)
    yield server
    server.stop()
    assert server.code == 0


@pytest.fixture(scope="module")
def generated(model_directory, engine, tmp_path_factory):
    """The answers of `generate` to questions, by its own code and the same engine."""

    def answer(questions: list[str], **changes) -> list[dict]:
        folder = tmp_path_factory.mktemp("generated")
        lines = [json.dumps({"instruction": text}) + "\n" for text in questions]
        (folder / "in.jsonl").write_text("".join(lines))
        given = {
            "checkpoint": epath.Path(model_directory),
            "adapter": None,
            "step": "best",
            "input": epath.Path(folder / "in.jsonl"),
            "output": epath.Path(folder / "out.json"),
            "template": "alpaca",
            "max_length": None,
            "max_new_tokens": 40,
            "batch_size": 4,
            "devices": [],
            "tensor": 1,
            "sampling": Sampling(),
            "stop": [],
            "dtype": "float32",
            "generator": "",
        }
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(loading.ModelSource, "engine", lambda *_: engine)
            generate.run(generate.GenerationConfig(**given | changes))
        return json.loads((folder / "out.json").read_text())

    return answer
