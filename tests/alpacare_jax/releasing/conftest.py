"""Small models of each kind of tokenizer, released without their proof."""

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from etils import epath

from alpacare_jax import convert, release
from alpacare_jax.releasing import card, gguf_writer, programs
from alpacare_jax.releasing.programs import ProgramReply, Trained
from tests.conftest import write_examples
from tests.support.hf_folders import CONFIG, write_hf

pytest.importorskip("xllamacpp", reason="llama.cpp is what releases are compared with")
pytest.importorskip("gguf", reason="it writes GGUF files")

NAMES = card.Names("me/Tiny-med", "apache-2.0", "", "", "them/Tiny", "them/medical-tasks", "en")

QUESTIONS = ["What is anaemia?", "List 3 signs of a stroke.", "Why do 2 doses help (β‑blockers)?"]

TOKENS = 8


@dataclasses.dataclass
class Built:
    """A release that was built, and what it is to be compared with."""

    trained: Trained
    folder: Path
    ggufs: dict[str, Path]
    settings: gguf_writer.Settings
    expected: Sequence[ProgramReply]


def release_config(model: Path, target: Path, template: str, **changes) -> release.ReleaseConfig:
    config = release.ReleaseConfig(
        checkpoint=epath.Path(model),
        adapter=None,
        step="best",
        template=template,
        target=target,
        names=NAMES,
        dtype="bfloat16",
        forms=["F16", "Q8_0"],
        questions=release.STARTER,
        max_new_tokens=TOKENS,
        reports=[],
        eval_results=[],
        limits=card.LIMITS,
        diff_base=None,
    )
    return dataclasses.replace(config, **changes)


def build(model: Path, target: Path, template: str) -> Built:
    config = release_config(model, target, template)
    trained = release.as_trained(config, config.checkpoint, "best")
    ggufs, settings = release.build(config, trained, target)
    expected = programs.ours(trained, trained.params(), QUESTIONS, TOKENS)
    return Built(trained, target, ggufs, settings, expected)


@pytest.fixture(scope="session")
def base(tmp_path_factory) -> Path:
    """A model directory with biases, and byte-level BPE of GPT-2's kind."""
    folder = tmp_path_factory.mktemp("base")
    convert.from_hf(write_hf(folder / "hf", CONFIG), folder / "model")
    return folder / "model"


@pytest.fixture(scope="session")
def built(base, torch, transformers, tmp_path_factory) -> Built:
    """Its release, with Alpaca's template."""
    return build(base, tmp_path_factory.mktemp("built") / "release", "alpaca")


@pytest.fixture(scope="session")
def questions(tmp_path_factory) -> Path:
    """A file of enough short questions."""
    return write_examples(tmp_path_factory.mktemp("questions") / "questions.jsonl", 32)


Plant = Callable[[Built], None]
