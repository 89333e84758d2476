"""Answers on disk: what was asked, what came back and what it cost. Nothing is paid for twice.

One SQLite file in WAL mode. A dedicated thread writes; whatever was queued during one transaction
goes into the next, so that thousands of answers per second share a few disk syncs.
"""

import asyncio
import dataclasses
import datetime
import json
import queue
import sqlite3
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self, TypeVar

from datagen.chat.replies import ChatAnswer

Written = TypeVar("Written")

STORE_SCHEMA = """
CREATE TABLE IF NOT EXISTS answers (
  key TEXT PRIMARY KEY,  -- hash of everything that can change the answer
  request TEXT NOT NULL, -- the body sent, as JSON
  answer TEXT NOT NULL,  -- a ChatAnswer, as JSON
  seconds REAL,          -- from sending to answer
  stored TEXT NOT NULL
);
CREATE TABLE IF NOT EXISTS charges (  -- every reply that costs money, answers or not
  key TEXT NOT NULL,
  model TEXT NOT NULL,
  what TEXT NOT NULL,    -- Charge.kind
  input_tokens INTEGER NOT NULL,
  output_tokens INTEGER NOT NULL,
  usd REAL,              -- NULL: price unknown
  stored TEXT NOT NULL
);
CREATE TABLE IF NOT EXISTS batches (  -- see batch/log.py
  name TEXT PRIMARY KEY, -- chosen by us, written before anything is sent
  provider TEXT NOT NULL,
  base_url TEXT NOT NULL,
  model TEXT NOT NULL,
  price_input REAL,      -- USD per million tokens, as charged; NULL: unknown
  price_output REAL,
  requests INTEGER NOT NULL,
  usd REAL NOT NULL,     -- maximum cost
  tokens INTEGER NOT NULL,
  sent REAL NOT NULL,    -- Unix time just before the submission
  id TEXT,               -- the provider's; NULL: not known whether it was received
  state TEXT NOT NULL    -- open, or how it ended
);
CREATE TABLE IF NOT EXISTS batch_requests (  -- those without a result so far
  key TEXT PRIMARY KEY,  -- so no request is in two batches
  batch TEXT NOT NULL,
  request TEXT NOT NULL  -- the body sent, as JSON
);
CREATE INDEX IF NOT EXISTS requests_of_batch ON batch_requests (batch);
"""


@dataclasses.dataclass(frozen=True)
class Charge:
    """What one reply cost."""

    key: str
    model: str
    kind: str  # "answer", or why it is none
    input_tokens: int
    output_tokens: int
    usd: float | None  # None: price unknown

    @property
    def is_answer(self) -> bool:
        """Whether the reply is an answer to be stored."""
        return self.kind == "answer"


@dataclasses.dataclass(frozen=True)
class TotalSpent:
    """What all replies in the store have cost."""

    usd: float
    tokens: int
    unpriced: int  # replies whose price is unknown


class AnswerStore:
    """Answers by key. One process writes at a time, as commands lock their workdir; others read.

    Args:
      read_only: the file must exist, and is not changed.
      dry_run: like read_only, but a missing file counts as an empty store; none is created.

    Raises:
      OSError: the file is not an answer store, or cannot be written.
    """

    def __init__(self, path: Path, *, read_only: bool = False, dry_run: bool = False):
        self.path = path
        self._queue: queue.SimpleQueue = queue.SimpleQueue()
        self._writer: threading.Thread | None = None
        writable, exists = not (read_only or dry_run), path.exists()
        if read_only and not exists:
            raise FileNotFoundError(f"no stored answers: {path}")
        if writable:
            path.parent.mkdir(parents=True, exist_ok=True)
            if not exists:
                path.touch()  # by the umask; SQLite would not let a group write
        try:
            location = path if exists or writable else ":memory:"
            self._reader = sqlite3.connect(location, check_same_thread=False)
            if writable or not exists:
                self._reader.execute("PRAGMA journal_mode = WAL")
                self._reader.executescript(STORE_SCHEMA)
            self._reader.execute("SELECT 1 FROM answers, batch_requests LIMIT 1")
        except sqlite3.Error as error:
            failed = isinstance(error, sqlite3.OperationalError) and "no such" not in str(error)
            remedy = "make room, or make it writable" if failed else "it is not an answer store"
            raise OSError(f"{path}: {error}; {remedy}") from None
        if writable:
            self._writer = threading.Thread(target=self._write, name="answer store", daemon=True)
            self._writer.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Returns once everything put so far is on disk."""
        if self._writer:
            self._queue.put(None)
            self._writer.join()
            self._writer = None
        self._reader.close()

    def get(self, key: str) -> ChatAnswer | None:
        """The stored answer to a request."""
        row = self._reader.execute("SELECT answer FROM answers WHERE key = ?", (key,)).fetchone()
        return ChatAnswer.from_json(row[0]) if row else None

    def total_spent(self) -> TotalSpent:
        """The cost of all replies so far."""
        query = "SELECT sum(usd), sum(input_tokens + output_tokens), sum(usd IS NULL) FROM charges"
        usd, tokens, unpriced = self._reader.execute(query).fetchone()
        return TotalSpent(usd or 0.0, tokens or 0, unpriced or 0)

    def typical(self, model: str) -> tuple[float | None, float | None]:
        """Mean (seconds, output tokens) of a model's answers; None if there are none."""
        query = (
            "SELECT avg(a.seconds), avg(c.output_tokens) FROM answers a JOIN charges c "
            "ON a.key = c.key WHERE c.model = ? AND c.what = 'answer'"
        )
        return self._reader.execute(query, (model,)).fetchone()

    def rows(self, query: str, *values: Any) -> sqlite3.Cursor:
        """The rows of a SELECT over everything on disk; read them to the end at once."""
        return self._reader.execute(query, values)

    async def put(
        self, charge: Charge, request: dict, answer: ChatAnswer | None, seconds: float | None
    ) -> None:
        """Returns once the charge, and any answer, are on disk. Raises: as `write`."""
        text = json.dumps(request, ensure_ascii=False)
        await self.write(lambda connection: insert(connection, charge, text, answer, seconds))

    async def write(self, change: Callable[[sqlite3.Connection], Written]) -> Written:
        """The result of `change`, once its changes are on disk; it runs in the writer thread.

        Raises:
          OSError: the disk is full or fails.
        """
        loop = asyncio.get_running_loop()
        done = loop.create_future()
        self._queue.put((loop, done, change))
        return await asyncio.shield(done)

    def _write(self) -> None:
        connection = sqlite3.connect(self.path)
        connection.execute("PRAGMA synchronous = FULL")
        last = False
        while not last:
            items = [self._queue.get()]
            while not self._queue.empty():
                items.append(self._queue.get())
            last = items[-1] is None
            self._commit(connection, [item for item in items if item])
            del items  # may be large, and the thread now waits for more
        connection.close()

    def _commit(self, connection: sqlite3.Connection, items: list[tuple]) -> None:
        try:
            with connection:
                results = [change(connection) for _, _, change in items]
        except sqlite3.Error as error:
            failure = OSError(
                f"{self.path}: {error}; make room and rerun: all earlier answers are kept"
            )
            results = [failure] * len(items)
        for (loop, done, _), result in zip(items, results, strict=True):
            if not loop.is_closed():  # as it is after a second Ctrl-C
                loop.call_soon_threadsafe(_settle, done, result)


def insert(
    connection: sqlite3.Connection,
    charge: Charge,
    request: str,
    answer: ChatAnswer | None,
    seconds: float | None,
) -> None:
    """Inserts the cost of a reply and, unless the charge is for none, the answer to `request`."""
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    connection.execute(
        "INSERT INTO charges VALUES (?, ?, ?, ?, ?, ?, ?)", (*dataclasses.astuple(charge), now)
    )
    if answer and charge.is_answer:
        as_json = json.dumps(dataclasses.asdict(answer), ensure_ascii=False)
        connection.execute(
            "INSERT INTO answers VALUES (?, ?, ?, ?, ?)",
            (charge.key, request, as_json, seconds, now),
        )


def _settle(done: asyncio.Future, result: Any) -> None:
    if done.done():
        return
    if isinstance(result, OSError):
        done.set_exception(result)
    else:
        done.set_result(result)
