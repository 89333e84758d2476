"""What a run will take, told before anything is sent."""

import dataclasses
from collections.abc import Iterable

from datagen.chat import protocols
from datagen.chat.batch_log import BatchLog
from datagen.chat.config import ChatConfig, Request
from datagen.chat.prices import Price
from datagen.chat.progress import duration
from datagen.chat.store import AnswerStore

BYTES_PER_TOKEN = 4
"""Of English text, in estimates (OpenAI's rule of thumb). Budgets count one token a byte."""

TOKENS_PER_SECOND = 50
"""Of one answer, in estimates before any has come: usual for hosted models."""

FIRST_TOKEN_SECONDS = 1.0
"""Until an answer begins, likewise: most of the time of a verdict in one word."""

BATCH_SECONDS = 24 * 3600.0
"""The longest that a batch takes, at both providers."""


@dataclasses.dataclass(frozen=True)
class Estimate:
    """What a run will take, before anything is sent."""

    requests: int  # not stored yet
    stored: int
    input_tokens: int
    output_tokens: int
    usd: float | None  # None: the price is not known
    seconds: float  # the longest that batches take
    waiting: int = 0  # in batches at the provider, paid for
    batch: bool = False

    def __str__(self) -> str:
        price = "price not known" if self.usd is None else f"${self.usd:,.2f}"
        waiting = f", {self.waiting:,} in batches at the provider" if self.waiting else ""
        usually = "in batches, at most " if self.batch else ""
        return (
            f"{self.requests:,} requests to send{waiting}, {self.stored:,} answers stored; about "
            f"{self.input_tokens:,} input and {self.output_tokens:,} output tokens, {price}, "
            f"{usually}{duration(self.seconds)}"
        )


def estimate(
    config: ChatConfig,
    store: AnswerStore,
    price: Price | None,
    requests: Iterable[Request],
    output_tokens: int = 0,
) -> Estimate:
    """What is left to send, in tokens, money and time, judged by stored answers if any.

    Args:
      output_tokens: of a usual answer, before there are any; 0: as many as are allowed.
    """
    stored, waiting, sizes = 0, 0, []
    in_batches = set() if config.offline else BatchLog(store).all_keys()
    for request in requests:
        key = protocols.key(config, request)
        if store.get(key):
            stored += 1
        elif key in in_batches:
            waiting += 1
        else:
            sizes.append(protocols.size(protocols.body(config, request)))
    seconds, output = store.usual(config.model)
    output = output or output_tokens or config.max_tokens
    seconds = seconds or FIRST_TOKEN_SECONDS + output / TOKENS_PER_SECOND
    rounds = -(-len(sizes) // config.concurrency)
    tokens = sum(sizes) // BYTES_PER_TOKEN, round(len(sizes) * output)
    return Estimate(
        requests=len(sizes),
        stored=stored,
        input_tokens=tokens[0],
        output_tokens=tokens[1],
        usd=price and price.usd(*tokens),
        seconds=BATCH_SECONDS if config.batch and sizes else rounds * seconds,
        waiting=waiting,
        batch=config.batch,
    )
