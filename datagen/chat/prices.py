"""What tokens cost, and a budget that is checked before each request."""

import asyncio
import dataclasses
import json
from pathlib import Path
from typing import Self

from datagen.chat.errors import BudgetReachedError
from datagen.chat.store import Charge, ChatAnswer, Spent

PRICE_TABLE = Path(__file__).parents[1] / "prices.json"


@dataclasses.dataclass(frozen=True)
class Price:
    """USD per million tokens."""

    input: float
    output: float

    def usd(self, input_tokens: int, output_tokens: int) -> float:
        """
        >>> Price(input=2, output=10).usd(1000, 500)
        0.007
        """
        return (self.input * input_tokens + self.output * output_tokens) / 1e6

    def in_batch(self) -> Self:
        """What both providers charge for a request in a batch: half."""
        return dataclasses.replace(self, input=self.input / 2, output=self.output / 2)


def look_up(model: str, path: Path = PRICE_TABLE) -> Price | None:
    """The price of a model by its exact name; None where the table has no such row.

    Raises:
      ValueError: the table is no JSON of the form of `prices.json`.
    """
    try:
        row = json.loads(path.read_text(encoding="utf-8"))["models"].get(model)
        return Price(float(row["input"]), float(row["output"])) if row else None
    except (json.JSONDecodeError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path}: not a price table like {PRICE_TABLE.name} ({error!r})") from None


def charge(key: str, model: str, price: Price | None, answer: ChatAnswer) -> Charge:
    """What a reply cost. One that the provider's filter blocked was paid, but is no answer."""
    tokens = answer.input_tokens, answer.output_tokens
    what = "content_filter" if answer.finish_reason == "content_filter" else "answer"
    return Charge(key, model, what, *tokens, price.usd(*tokens) if price else None)


class Budget:
    """Hard caps on money and tokens over the life of a store. 0 means no cap.

    A request is counted at its worst case while it is out (one token a byte of input, all of
    `max_tokens` of output), then at what the reply says. Where only requests that are out stand in
    the way, the next one waits for them.
    """

    def __init__(self, usd: float, tokens: int, spent: Spent):
        self.caps = (usd or float("inf"), tokens or float("inf"))
        self.usd, self.tokens = spent.usd, spent.tokens
        self._reserved = [0.0, 0]
        self._changed = asyncio.Condition()

    @property
    def capped(self) -> bool:
        return min(self.caps) < float("inf")

    def _fits(self, usd: float, tokens: int) -> bool:
        return self.usd + usd <= self.caps[0] and self.tokens + tokens <= self.caps[1]

    async def reserve(self, usd: float, tokens: int) -> None:
        """Returns when the request may be sent.

        Raises:
          BudgetReachedError: it does not fit, even when nothing else is out.
        """
        async with self._changed:
            while not self.reserve_now(usd, tokens):
                if not self._fits(usd, tokens):
                    raise BudgetReachedError
                await self._changed.wait()

    def reserve_now(self, usd: float, tokens: int) -> bool:
        """Reserves if it fits beside all that is out; says whether it did."""
        fits = self._fits(usd + self._reserved[0], tokens + self._reserved[1])
        if fits:
            self.hold(usd, tokens)
        return fits

    def hold(self, usd: float, tokens: int) -> None:
        """Reserves for what is out already, even where it does not fit."""
        self._reserved[0] += usd
        self._reserved[1] += tokens

    def set_aside(self, usd: float, tokens: int) -> None:
        """Lowers the caps for what this run will not see come in."""
        self.caps = (self.caps[0] - usd, self.caps[1] - tokens)

    async def release(self, usd: float, tokens: int) -> None:
        """Ends a reservation; what the reply cost has been told by `charge` before."""
        async with self._changed:
            self._reserved[0] -= usd
            self._reserved[1] -= tokens
            self._changed.notify_all()

    def charge(self, usd: float | None, tokens: int) -> None:
        self.usd += usd or 0.0
        self.tokens += tokens
