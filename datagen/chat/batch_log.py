"""Batches on disk: what is at a provider, written down before it is sent, until it is settled.

A request lies in `batch_requests` from before its batch is sent until its result is stored; what
is in there is sent by nobody else, in this run or a later one. Its row goes in the transaction that
stores answer and charge, so results can be read again after a kill and are charged once.
"""

import dataclasses
import sqlite3
from collections.abc import Iterator

from datagen.chat import store as answer_store
from datagen.chat.prices import Price
from datagen.chat.store import AnswerStore, Charge, ChatAnswer


@dataclasses.dataclass
class Batch:
    """One batch, as this side knows it."""

    name: str  # ours: 32 hexadecimal digits, never used twice
    provider: str
    base_url: str
    model: str
    price: Price | None  # as charged, at half
    requests: int
    usd: float  # the most that it can cost
    tokens: int
    sent: float  # Unix time before it was sent
    id: str | None = None  # the provider's; None: not known whether it arrived


class BatchLog:
    """The batches of one store."""

    def __init__(self, store: AnswerStore):
        self._store = store

    def open(self) -> list[Batch]:
        """Batches that may be at a provider and are not settled, oldest first."""
        query = (
            "SELECT name, provider, base_url, model, price_input, price_output, requests, usd, "
            "tokens, sent, id FROM batches WHERE state = 'open' ORDER BY sent"
        )
        return [
            Batch(*row[:4], None if row[4] is None else Price(*row[4:6]), *row[6:])
            for row in self._store.rows(query).fetchall()
        ]

    def ids(self) -> set[str]:
        """The provider's ids of all batches, settled ones too."""
        return {id for (id,) in self._store.rows("SELECT id FROM batches WHERE id IS NOT NULL")}

    def keys(self, batch: Batch) -> list[str]:
        """Of requests that have no result yet, in the order in which they were sent."""
        query = "SELECT key FROM batch_requests WHERE batch = ? ORDER BY rowid"
        return [key for (key,) in self._store.rows(query, batch.name)]

    def all_keys(self) -> set[str]:
        """Of requests in any open batch."""
        return {key for (key,) in self._store.rows("SELECT key FROM batch_requests")}

    def request(self, key: str) -> str:
        """What was sent for a key, as JSON."""
        return self._store.rows("SELECT request FROM batch_requests WHERE key = ?", key).fetchone()[
            0
        ]

    def requests(self, batch: Batch) -> Iterator[tuple[str, str]]:
        """(key, JSON) of each request, in order. To be read to its end before anything else."""
        query = "SELECT key, request FROM batch_requests WHERE batch = ? ORDER BY rowid"
        yield from self._store.rows(query, batch.name)

    async def intend(self, batch: Batch, requests: list[tuple[str, str]]) -> None:
        """Returns when batch and requests, (key, JSON), are on disk: now it may be sent."""
        price = batch.price or Price(None, None)
        row = (batch.name, batch.provider, batch.base_url, batch.model, price.input, price.output)
        row += (batch.requests, batch.usd, batch.tokens, batch.sent, None, "open")

        def change(connection: sqlite3.Connection) -> None:
            connection.execute(f"INSERT INTO batches VALUES ({', '.join('?' * len(row))})", row)
            connection.executemany(
                "INSERT INTO batch_requests VALUES (?, ?, ?)",
                ((key, batch.name, request) for key, request in requests),
            )

        await self._store.write(change)

    async def arrived(self, batch: Batch, id: str) -> None:
        """The provider has it, under this id."""
        batch.id = id
        query = "UPDATE batches SET id = ? WHERE name = ?"
        await self._store.write(lambda connection: connection.execute(query, (id, batch.name)))

    async def settle(self, batch: Batch, results: list[tuple[Charge, ChatAnswer]]) -> set[str]:
        """Stores results with their charges; the keys of those that were not stored before."""

        def change(connection: sqlite3.Connection) -> set[str]:
            new = set()
            for charge, answer in results:
                rows = connection.execute(
                    "DELETE FROM batch_requests WHERE key = ? AND batch = ? RETURNING request",
                    (charge.key, batch.name),
                ).fetchall()
                for (request,) in rows:
                    given = answer if charge.is_answer else None
                    answer_store.insert(connection, charge, request, given, None)
                    new.add(charge.key)
            return new

        return await self._store.write(change)

    async def close(self, batch: Batch, state: str, lost: Charge | None = None) -> None:
        """Requests without a result are free to be sent again; `lost`: paid, but never seen."""

        def change(connection: sqlite3.Connection) -> None:
            connection.execute("DELETE FROM batch_requests WHERE batch = ?", (batch.name,))
            connection.execute("UPDATE batches SET state = ? WHERE name = ?", (state, batch.name))
            if lost:
                answer_store.insert(connection, lost, "", None, None)

        await self._store.write(change)
