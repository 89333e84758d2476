"""Batches on disk; a request is in `batch_requests` until its batch is closed or it has a result.

The transaction that stores answer and charge deletes its row, so results can be read again after a
kill and are charged once.
"""

import dataclasses
import json
import sqlite3
import time
import uuid
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from typing import Any, NamedTuple, Self

from datagen.chat import prices, replies
from datagen.chat import store as answer_store
from datagen.chat.config import ChatConfig
from datagen.chat.errors import RejectedRequestError, RetryableError
from datagen.chat.prices import Price
from datagen.chat.replies import ChatAnswer
from datagen.chat.store import AnswerStore, Charge

KEY_DIGITS = 31
"""Of a request's key in its custom_id: both providers allow 64 characters, 33 are the batch's."""

CHUNK_SIZE = 500
"""Answers stored in one transaction."""


Deliver = Callable[[Charge, ChatAnswer], None]


class PendingRequest(NamedTuple):
    """A request waiting for its batch."""

    key: str
    body: str  # JSON
    size: int  # bytes in a batch
    usd: float  # maximum cost
    tokens: int


@dataclasses.dataclass
class Batch:
    """One batch, as recorded here."""

    name: str  # chosen by us: 32 hexadecimal digits, never reused
    provider: str
    base_url: str
    model: str
    price: Price | None  # as charged, at half
    requests: int
    usd: float  # maximum cost
    tokens: int
    sent: float  # Unix time just before the submission
    id: str | None = None  # the provider's; None: not known whether it was received

    @classmethod
    def new(cls, config: ChatConfig, price: Price | None, requests: list[PendingRequest]) -> Self:
        """A batch that is about to be submitted."""
        return cls(
            name=uuid.uuid4().hex,
            provider=config.provider,
            base_url=config.base_url,
            model=config.model,
            price=price,
            requests=len(requests),
            usd=sum(request.usd for request in requests),
            tokens=sum(request.tokens for request in requests),
            sent=time.time(),
        )

    def __str__(self) -> str:
        id = f" ({self.id})" if self.id else ""
        return f"batch {self.name[:8]}{id} of {self.requests:,} requests at {self.provider}"

    def custom_id(self, key: str) -> str:
        """The name of one of its requests at the provider."""
        return f"{self.name}-{key[:KEY_DIGITS]}"


@dataclasses.dataclass(frozen=True)
class BatchState:
    """The status of a batch at the provider."""

    ended: bool
    answered: int = 0  # requests answered, according to the provider
    results: tuple[str, ...] = ()  # paths of result lines
    results_deleted: bool = False
    failure: Exception | None = None  # of the batch as a whole
    rejected: Mapping[int, str] = dataclasses.field(default_factory=dict)  # position -> reason


class BatchLog:
    """The batches of one store."""

    def __init__(self, store: AnswerStore):
        self._store = store

    def open(self) -> list[Batch]:
        """Batches that may be at a provider and are not finished, oldest first."""
        rows = self._store.rows(
            "SELECT name, provider, base_url, model, price_input, price_output, requests, usd, "
            "tokens, sent, id FROM batches WHERE state = 'open' ORDER BY sent"
        ).fetchall()
        batches = []
        for name, provider, base_url, model, input_usd, output_usd, *rest in rows:
            price = None if input_usd is None else Price(input_usd, output_usd)
            batches.append(Batch(name, provider, base_url, model, price, *rest))
        return batches

    def ids(self) -> set[str]:
        """The provider's ids of all batches, finished ones included."""
        return {id for (id,) in self._store.rows("SELECT id FROM batches WHERE id IS NOT NULL")}

    def keys(self, batch: Batch) -> list[str]:
        """Keys of the requests that have no result yet, in the order of submission."""
        query = "SELECT key FROM batch_requests WHERE batch = ? ORDER BY rowid"
        return [key for (key,) in self._store.rows(query, batch.name)]

    def __contains__(self, key: str) -> bool:
        """Whether a request is in an open batch."""
        return bool(self._store.rows("SELECT 1 FROM batch_requests WHERE key = ?", key).fetchall())

    def requests(self, batch: Batch) -> Iterator[tuple[str, str]]:
        """(key, JSON) of each request, in order; read them to the end before any other query."""
        query = "SELECT key, request FROM batch_requests WHERE batch = ? ORDER BY rowid"
        yield from self._store.rows(query, batch.name)

    def discard_command(self, batch: Batch) -> str:
        """The shell command that deletes a batch, so that its requests can be sent again."""
        return (
            f'sqlite3 {self._store.path} "DELETE FROM batch_requests WHERE batch = '
            f"'{batch.name}'; DELETE FROM batches WHERE name = '{batch.name}'\""
        )

    async def record(self, batch: Batch, requests: list[PendingRequest]) -> None:
        """Returns once batch and requests are on disk: now it may be submitted."""
        price = (batch.price.input, batch.price.output) if batch.price else (None, None)
        row = (batch.name, batch.provider, batch.base_url, batch.model, *price)
        row += (batch.requests, batch.usd, batch.tokens, batch.sent, None, "open")

        def change(connection: sqlite3.Connection) -> None:
            connection.execute(f"INSERT INTO batches VALUES ({', '.join('?' * len(row))})", row)
            connection.executemany(
                "INSERT INTO batch_requests VALUES (?, ?, ?)",
                ((request.key, batch.name, request.body) for request in requests),
            )

        await self._store.write(change)

    async def record_id(self, batch: Batch, id: str) -> None:
        """The provider has received the batch, under this id."""
        batch.id = id
        query = "UPDATE batches SET id = ? WHERE name = ?"
        await self._store.write(lambda connection: connection.execute(query, (id, batch.name)))

    async def store_results(
        self,
        batch: Batch,
        state: BatchState,
        results: AsyncIterator[tuple[str, Any]],
        deliver: Deliver,
    ) -> dict[str, Exception]:
        """Stores all replies and their charges, each once, however often the results are read.

        Args:
          results: as from `BatchProtocol.results`.
          deliver: called with each new reply once it is on disk, also if the content filter blocked
            it (see `Charge.is_answer`); a second reading does not yield it again.

        Returns:
          Key -> why there is no reply, for the requests that failed.

        Raises:
          RetryableError: the results could not be read to the end; what was read is stored.
          NotFoundError: the provider has deleted them.
        """
        keys = self.keys(batch)
        pending = {batch.custom_id(key): key for key in keys}
        failures: dict[str, Exception] = {
            keys[position]: RejectedRequestError(reason)
            for position, reason in state.rejected.items()
        }
        chunk: list[tuple[str, Any]] = []
        answered = 0
        async for custom_id, reply in results:
            answered += not isinstance(reply, Exception)
            key = pending.pop(custom_id, None)
            if key is None:  # stored before a kill
                continue
            if isinstance(reply, Exception):
                failures[key] = reply
            else:
                chunk.append((key, reply))
            if len(chunk) == CHUNK_SIZE:
                await self._store_replies(batch, chunk, deliver)
                chunk = []
        await self._store_replies(batch, chunk, deliver)
        if answered < state.answered:  # the missing ones are paid for: do not send them again
            raise RetryableError(f"results are truncated: {answered} of {state.answered} answers")
        return failures

    async def _store_replies(
        self, batch: Batch, chunk: list[tuple[str, Any]], deliver: Deliver
    ) -> None:
        answers: list[tuple[Charge, ChatAnswer, str]] = []
        query = "SELECT request FROM batch_requests WHERE key = ?"
        for key, reply in chunk:
            (request,) = self._store.rows(query, key).fetchone()
            answer = replies.read_reply(batch.provider, json.loads(request), reply)
            charge = prices.charge(key, batch.model, batch.price, answer)
            answers.append((charge, answer, request))

        def change(connection: sqlite3.Connection) -> None:
            for charge, answer, request in answers:
                connection.execute("DELETE FROM batch_requests WHERE key = ?", (charge.key,))
                answer_store.insert(connection, charge, request, answer, None)

        await self._store.write(change)
        for charge, answer, _ in answers:
            deliver(charge, answer)

    async def close(self, batch: Batch, state: str, lost: Charge | None = None) -> None:
        """Frees the requests without a result to be sent again; `state` is how the batch ended.

        `lost` is the maximum cost of replies that were paid for but never seen.
        """

        def change(connection: sqlite3.Connection) -> None:
            connection.execute("DELETE FROM batch_requests WHERE batch = ?", (batch.name,))
            connection.execute("UPDATE batches SET state = ? WHERE name = ?", (state, batch.name))
            if lost:
                answer_store.insert(connection, lost, "", None, None)

        await self._store.write(change)
