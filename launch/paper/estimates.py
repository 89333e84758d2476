"""What stages take, before they run: requests and tokens, money, hours on accelerators."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any, Self

from common.messages import aligned
from datagen.chat import prices, progress
from datagen.chat.config import ChatConfig


@dataclasses.dataclass(frozen=True)
class Estimate:
    """What a stage takes from its beginning to its end."""

    requests: int = 0
    least: int = 0  # requests at least
    most: int = 0  # and at most, but for those repeated after errors of the server
    input_tokens: int = 0
    output_tokens: int = 0
    live: float | None = 0.0  # USD; None: the price is unknown
    batch: float | None = 0.0  # USD in the providers' batches
    hours: float | None = 0.0  # of all chips together, at best; None: unknown
    device_cost: float | None = 0.0  # None: unknown

    def __add__(self, other: Self) -> Self:
        """The sum; what is unknown in either is unknown."""

        def add(a: float | None, b: float | None) -> float | None:
            return None if a is None or b is None else a + b

        pairs = zip(dataclasses.astuple(self), dataclasses.astuple(other), strict=True)
        return type(self)(*(add(*pair) for pair in pairs))  # pyright: ignore[reportArgumentType]

    def cells(self) -> list[str]:
        """A row of `table`, without its name and state."""
        requests = f"{self.requests:,}"
        if (self.least, self.most) != (self.requests, self.requests):
            requests += f" ({self.least:,} to {self.most:,})"

        def amount(number: float | None, unit: str = "") -> str:
            if not number:
                return "unknown" if number is None else "-"
            return f"{unit}{number:,.2f}" if number >= 0.01 else f"< {unit}0.01"

        tokens = (f"{n:,}" if n else "-" for n in (self.input_tokens, self.output_tokens))
        money = amount(self.live, "$"), amount(self.batch, "$")
        devices = amount(self.hours), amount(self.device_cost)
        return [requests if self.most else "-", *tokens, *money, *devices]


def asking(
    chat: ChatConfig,
    sizes: Sequence[float],
    output_tokens: int,
    least: int | None = None,
    most: int | None = None,
) -> Estimate:
    """Requests of so many bytes each to one model, which writes so many tokens to each."""
    live = prices.of(dataclasses.replace(chat, batch=False))
    found = progress.estimate(chat, [*map(math.ceil, sizes)], 0, 0, live, output_tokens, None)
    return Estimate(
        requests=len(sizes),
        least=len(sizes) if least is None else least,
        most=len(sizes) if most is None else most,
        input_tokens=found.input_tokens,
        output_tokens=found.output_tokens,
        live=found.usd,
        batch=found.usd and found.usd / 2,
    )


def on_chips(plan: Mapping[str, Any], share: float = 1.0) -> Estimate:
    """A share of what `alpacare_jax.plan` found; {}: there is no plan."""
    if "hours" not in plan:
        return Estimate(hours=None, device_cost=None)
    cost = plan["cost"] * share if "cost" in plan else None
    return Estimate(hours=plan["hours"] * plan["chips"] * share, device_cost=cost)


HEADER = (
    *("stage", "state", "requests", "input tokens", "output tokens"),
    *("live", "batch", "chip-hours", "chip money"),
)


def table(rows: Sequence[tuple[str, str, Estimate]]) -> str:
    """(name, state, estimate) of each stage as aligned text, with the total of those to be done."""
    total = sum((estimate for _, state, estimate in rows if state != "done"), Estimate())
    lines = [list(HEADER)]
    lines += [[name, state, *estimate.cells()] for name, state, estimate in rows]
    lines += [["total", "to do", *total.cells()]]
    return aligned(lines, numbers=slice(2, None))
