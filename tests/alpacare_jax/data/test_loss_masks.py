"""The tokens on which each system of the paper was trained, as its authors' code chose them."""

import dataclasses

import numpy as np
import pytest
import sentencepiece

from alpacare_jax.data import chat_template, tokenizers
from alpacare_jax.data.encoding import encode_example, encode_prompt
from common.records import Example
from common.text.conversations import Turn
from tests.alpacare_jax.conftest import STYLES, llama_json

RECORD = Example("e", "Name the drug.", "type 2 diabetes", "Metformin.\nDaily.")
PROMPT = (
    "Below is an instruction that describes a task, paired with an input that provides further "
    "context. Write a response that appropriately completes the request.\n\n"
    "### Instruction:\nName the drug.\n\n### Input:\ntype 2 diabetes\n\n### Response:"
)
DIALOGUE = (
    "The conversation between human and AI assistant.\n"
    "[|Human|] Name the drug.\n\ntype 2 diabetes\n[|AI|] Metformin.\nDaily.\n[|Human|] "
)
BOS, EOS = 1, 2


@pytest.fixture(params=["model", *STYLES])
def folder(request, sentencepiece_dir, tmp_path):
    """LLaMA's tokenizer in small, in each of its forms."""
    if request.param == "model":
        return sentencepiece_dir
    llama_json(sentencepiece_dir / "tokenizer.model", tmp_path, request.param)
    return tmp_path


@pytest.fixture
def whole(sentencepiece_dir):
    """Ids of a text in one piece, as the authors' code had them."""
    return sentencepiece.SentencePieceProcessor(
        model_file=str(sentencepiece_dir / "tokenizer.model")
    ).encode


SYSTEMS = {
    # AlpaCare, Alpaca, ChatDoctor, PMC-LLaMA 13B: BOS, and loss on the answer and EOS.
    "alpaca": lambda ids: ([BOS, *ids(PROMPT + RECORD.output), EOS], 1 + len(ids(PROMPT))),
    # MedAlpaca: no BOS, and loss on all; nothing predicts the first token.
    "medalpaca": lambda ids: ([*ids(f"{PROMPT}\n{RECORD.output}"), EOS], 1),
    # Baize: BOS, and loss on the whole dialogue, up to where the human speaks again.
    "baize-dialogue": lambda ids: ([BOS, *ids(DIALOGUE), EOS], 1),
}


@pytest.mark.parametrize("name", SYSTEMS)
def test_the_tokens_that_carry_loss(name, folder, whole):
    ours = tokenizers.load(folder)
    encoded = encode_example(RECORD, ours, chat_template.load(name, folder, ours))
    ids, first = SYSTEMS[name](whole)
    assert encoded.ids.tolist() == ids
    assert np.flatnonzero(encoded.loss).tolist() == list(range(first, len(ids)))
    answer = ours.decode(encoded.ids[encoded.prompt_length :], continuation=True)
    assert answer.strip().startswith(RECORD.output)


def test_a_dialogue_of_baizes_is_one_text(folder, whole):
    """EOS comes behind the whole, as its tokenizer was asked to put it."""
    turns = ["Why?", "Fever.", "And now?", "Rest,\nand tea.", "Thanks", "Bye"]
    history = tuple(
        Turn(role, text) for role, text in zip(["user", "assistant"] * 2, turns[:4], strict=True)
    )
    example = Example("e", turns[4], "", turns[5], history)
    ours = tokenizers.load(folder)
    template = chat_template.load("baize-dialogue", folder, ours)
    text = "The conversation between human and AI assistant.\n"
    for question, answer in zip(turns[::2], turns[1::2], strict=True):
        text += f"[|Human|] {question}\n[|AI|] {answer}\n"
    encoded = encode_example(example, ours, template)
    assert encoded.ids.tolist() == [BOS, *whole(f"{text}[|Human|] "), EOS]
    assert encoded.loss.tolist() == [False, *[True] * (len(encoded.ids) - 1)]
    asked = encode_prompt(dataclasses.replace(example, output=""), ours, template)
    assert asked == encoded.ids[: encoded.prompt_length].tolist()
    assert asked == [BOS, *whole(text.removesuffix(" Bye\n"))]


@pytest.mark.parametrize(
    "name, loss, on_prompt",
    [
        ("alpaca", "all", True),
        ("alpaca", "last", False),
        ("medalpaca", "responses", False),
        ("medalpaca", "all", True),
    ],
)
def test_the_loss_can_be_chosen(name, loss, on_prompt, folder):
    ours = tokenizers.load(folder)
    encoded = encode_example(RECORD, ours, chat_template.load(name, folder, ours), loss)
    first = 1 if on_prompt else encoded.prompt_length
    assert encoded.loss.tolist() == [i >= first for i in range(len(encoded.ids))]
    assert encoded.num_targets == len(encoded.ids) - first
