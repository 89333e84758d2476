"""What tokens cost, and a budget that is checked before each request."""

import asyncio
import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

from datagen.chat.config import ChatConfig, most_tokens
from datagen.chat.errors import BudgetReachedError
from datagen.chat.replies import UNUSABLE, ChatAnswer
from datagen.chat.store import Charge, TotalSpent

PRICE_TABLE = Path(__file__).parents[1] / "prices.json"


@dataclasses.dataclass(frozen=True)
class Price:
    """USD per million tokens."""

    input: float
    output: float

    def usd(self, input_tokens: int, output_tokens: int) -> float:
        """The cost of so many tokens.

        >>> Price(input=2, output=10).usd(1000, 500)
        0.007
        """
        return (self.input * input_tokens + self.output * output_tokens) / 1e6

    def in_batch(self) -> Self:
        """The price of requests in a batch: half, at both providers."""
        return dataclasses.replace(self, input=self.input / 2, output=self.output / 2)


def look_up(model: str, path: Path = PRICE_TABLE) -> Price | None:
    """The price of a model by its exact name; None if the table does not list it.

    Raises:
      ValueError: the file is not a price table in the format of `prices.json`.
    """
    try:
        row = json.loads(path.read_text(encoding="utf-8"))["models"].get(model)
        return Price(float(row["input"]), float(row["output"])) if row else None
    except (json.JSONDecodeError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path}: not a price table like {PRICE_TABLE.name} ({error!r})") from None


def of(config: ChatConfig) -> Price | None:
    """What the config's model costs; None: unknown.

    Raises:
      ValueError: it is unknown, and there is a budget in USD.
    """
    if config.price_input is None or config.price_output is None:
        price = look_up(config.model)
    else:
        price = Price(config.price_input, config.price_output)
    if config.budget_usd and not price:
        raise ValueError(
            f"budget_usd is set, but {config.model!r} has no price in datagen/prices.json; set "
            "price_input and price_output"
        )
    return price.in_batch() if config.batch and price else price


def charge(key: str, model: str, price: Price | None, answer: ChatAnswer) -> Charge:
    """The cost of a reply. One that is UNUSABLE is paid for, but is no answer."""
    tokens = answer.input_tokens, answer.output_tokens
    kind = answer.finish_reason if answer.finish_reason in UNUSABLE else "answer"
    return Charge(key, model, kind, *tokens, price.usd(*tokens) if price else None)


def most(key: str, model: str, price: Price | None, content: Mapping[str, Any]) -> Charge:
    """The most that a request with this body can cost: one token per byte of input."""
    tokens = most_tokens(content)
    return Charge(key, model, "no reply", *tokens, price.usd(*tokens) if price else None)


class Budget:
    """Hard caps on money and tokens over the lifetime of a store; 0 means no cap.

    A request in flight counts at its worst case, then at its actual usage. A request that fits
    except for those in flight waits for them.
    """

    def __init__(self, usd: float, tokens: int, spent: TotalSpent):
        self.caps = (usd or float("inf"), tokens or float("inf"))
        self.usd, self.tokens = spent.usd, spent.tokens
        self._reserved_usd, self._reserved_tokens = 0.0, 0
        self._changed = asyncio.Condition()

    async def reserve(self, most: Charge) -> None:
        """Returns once the request may be sent.

        Raises:
          BudgetReachedError: it does not fit, even with no other request in flight.
        """
        async with self._changed:
            while not self.try_reserve(most.usd or 0.0, most.tokens):
                if not self._fits(most.usd or 0.0, most.tokens):
                    raise BudgetReachedError
                await self._changed.wait()

    def try_reserve(self, usd: float, tokens: int) -> bool:
        """Reserves if it fits together with all requests in flight; returns whether it did."""
        fits = self._fits(usd + self._reserved_usd, tokens + self._reserved_tokens)
        if fits:
            self.hold(usd, tokens)
        return fits

    def hold(self, usd: float, tokens: int) -> None:
        """Reserves for requests already in flight, even if it exceeds the budget."""
        self._reserved_usd += usd
        self._reserved_tokens += tokens

    @property
    def is_limited(self) -> bool:
        """Whether there is a cap."""
        return min(self.caps) < float("inf")

    def set_aside(self, usd: float, tokens: int) -> None:
        """Lowers the caps by the cost of requests whose replies this run will not receive."""
        self.caps = (self.caps[0] - usd, self.caps[1] - tokens)

    async def release(self, usd: float, tokens: int) -> None:
        """Ends a reservation; call `charge` with the reply's cost before."""
        async with self._changed:
            self._reserved_usd -= usd
            self._reserved_tokens -= tokens
            self._changed.notify_all()

    def charge(self, charge: Charge) -> None:
        """Adds the cost of a reply."""
        self.usd += charge.usd or 0.0
        self.tokens += charge.tokens

    def _fits(self, usd: float, tokens: int) -> bool:
        return self.usd + usd <= self.caps[0] and self.tokens + tokens <= self.caps[1]
