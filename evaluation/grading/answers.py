"""The answers to grade: from files, or from a model that is asked for them."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import urlsplit

from datagen.chat import prices
from datagen.chat.config import LOOPBACK, ChatConfig, ChatRequest
from datagen.chat.connection import only_model
from datagen.chat.errors import Failure
from datagen.chat.replies import ChatAnswer
from evaluation.grading.rubrics import RubricExample
from evaluation.inputs import outputs
from evaluation.inputs.benchmarks import Item
from evaluation.inputs.outputs import ModelOutput

SYSTEM_TOKENS = 500
"""Of an answer, in estimates."""


def output(item: Item, generator: str, outcome: ChatAnswer | Failure) -> ModelOutput:
    """The output for an outcome; empty where there is no answer."""
    if isinstance(outcome, Failure):
        return ModelOutput(item.benchmark, item.id, generator, "", "error")
    return ModelOutput(
        item.benchmark,
        item.id,
        generator,
        outcome.text,
        outcome.finish_reason,
        outcome.output_tokens if outcome.usage_reported else None,
    )


def load(sources: Sequence[str], items: Sequence[Item]) -> list[list[ModelOutput]]:
    """For each source, FILE or NAME=FILE, one answer to each item, matched by id.

    Raises:
      FileNotFoundError, ValueError: as `outputs.load`.
    """
    return [outputs.load(source, items, Path()) for source in sources]


def request(example: RubricExample) -> ChatRequest:
    """The conversation as it is sent to the model that shall answer."""
    turns = example.turns
    system = turns[0].text if turns[0].role == "system" else ""
    history = turns[1 if system else 0 : -1]
    return ChatRequest(system, turns[-1].text, "", history=tuple(history))


def system_config(grader: ChatConfig, base_url: str, model: str, max_tokens: int) -> ChatConfig:
    """The model that answers: the limits of the grader's config, and no settings of its model.

    A server on this machine costs nothing; another has the price of datagen/prices.json.

    Raises:
      ValueError: there is a budget in USD, and the price is unknown; or the server has several
        models, and none is named.
    """
    own_server = urlsplit(base_url).hostname in LOOPBACK
    config = dataclasses.replace(
        grader,
        provider="openai",
        base_url=base_url,
        model=model,
        max_tokens=max_tokens,
        temperature=None,
        top_p=None,
        presence_penalty=None,
        reasoning_effort=None,
        extra_body="",
        batch=False,
        price_input=0.0 if own_server else None,
        price_output=0.0 if own_server else None,
    )
    if not model:
        config = dataclasses.replace(config, model=only_model(config))
    if config.budget_usd and not own_server and not prices.look_up(config.model):
        raise ValueError(
            f"budget_usd is set, but {config.model!r} at {base_url} has no price in "
            "datagen/prices.json; set budget_tokens instead"
        )
    return config
