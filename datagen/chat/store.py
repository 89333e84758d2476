"""Answers on disk: what was asked, what came back and what it cost. Nothing is paid for twice.

One SQLite file in WAL mode. A thread of its own writes; what has gathered while it wrote goes into
the next transaction, so that thousands of answers a second share a few syncs to disk.
"""

import asyncio
import dataclasses
import datetime
import fcntl
import json
import queue
import sqlite3
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self, TypeVar

Result = TypeVar("Result")

TABLES = """
CREATE TABLE IF NOT EXISTS answers (
  key TEXT PRIMARY KEY,  -- of everything that can change the answer
  request TEXT NOT NULL, -- what was sent, as JSON
  answer TEXT NOT NULL,  -- a ChatAnswer, as JSON
  seconds REAL,          -- from sending to answer
  stored TEXT NOT NULL
);
CREATE TABLE IF NOT EXISTS charges (  -- every reply that costs money, answers or not
  key TEXT NOT NULL,
  model TEXT NOT NULL,
  what TEXT NOT NULL,    -- "answer", or why it is none
  input_tokens INTEGER NOT NULL,
  output_tokens INTEGER NOT NULL,
  usd REAL,              -- NULL where the price is not known
  stored TEXT NOT NULL
);
CREATE TABLE IF NOT EXISTS batches (  -- see batch_log.py
  name TEXT PRIMARY KEY, -- ours, written down before anything is sent
  provider TEXT NOT NULL,
  base_url TEXT NOT NULL,
  model TEXT NOT NULL,
  price_input REAL,      -- USD per million tokens, as charged; NULL: not known
  price_output REAL,
  requests INTEGER NOT NULL,
  usd REAL NOT NULL,     -- the most that it can cost
  tokens INTEGER NOT NULL,
  sent REAL NOT NULL,    -- Unix time, before it was sent
  id TEXT,               -- the provider's; NULL: not known whether it arrived
  state TEXT NOT NULL    -- open, or what became of it
);
CREATE TABLE IF NOT EXISTS batch_requests (  -- without a result so far
  key TEXT PRIMARY KEY,  -- so no request is in two batches
  batch TEXT NOT NULL,
  request TEXT NOT NULL  -- what is sent, as JSON
);
CREATE INDEX IF NOT EXISTS requests_of_batch ON batch_requests (batch);
"""


@dataclasses.dataclass(frozen=True)
class ChatAnswer:
    """What a model said."""

    text: str
    finish_reason: str  # stop, length (cut), refusal or content_filter; else the provider's word
    model: str  # as the server names it
    id: str  # the server's id of the reply
    input_tokens: int
    output_tokens: int  # reasoning included
    usage_reported: bool = True  # False: the server named no usage, tokens are 4 bytes each


@dataclasses.dataclass(frozen=True)
class Charge:
    """What one reply cost."""

    key: str
    model: str
    what: str
    input_tokens: int
    output_tokens: int
    usd: float | None

    @property
    def is_answer(self) -> bool:
        return self.what == "answer"


@dataclasses.dataclass(frozen=True)
class Spent:
    """What all replies in the store have cost."""

    usd: float
    tokens: int
    unpriced: int  # replies whose price is not known


class AnswerStore:
    """Answers by key. One process at a time writes; reading while it does is safe.

    Args:
      read_only: the file must be there, and is not changed.
      dry_run: as read_only, but where no file is, the store is empty; none is made.

    Raises:
      OSError: the file is locked by another run, is no store, or cannot be written.
    """

    def __init__(self, path: Path, *, read_only: bool = False, dry_run: bool = False):
        self.path = path
        self._queue: queue.SimpleQueue = queue.SimpleQueue()
        self._writer: threading.Thread | None = None
        writes, exists = not (read_only or dry_run), path.exists()
        if read_only and not exists:
            raise FileNotFoundError(f"no stored answers: {path}")
        if writes:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._lock = self._locked()
        try:
            place = path if exists or writes else ":memory:"
            self._read = sqlite3.connect(place, check_same_thread=False)
            if writes or not exists:
                self._read.execute("PRAGMA journal_mode = WAL")
                self._read.executescript(TABLES)
            self._read.execute("SELECT 1 FROM answers, batch_requests LIMIT 1")
        except sqlite3.Error as error:
            failed = isinstance(error, sqlite3.OperationalError) and "no such" not in str(error)
            remedy = "make room, or have it writable" if failed else "it is no store of answers"
            raise OSError(f"{path}: {error}; {remedy}") from None
        if writes:
            self._writer = threading.Thread(target=self._write, name="answer store", daemon=True)
            self._writer.start()

    def _locked(self) -> Any:
        file = open(self.path.with_name(self.path.name + ".lock"), "w")  # noqa: SIM115 - held
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.close()
            raise OSError(
                f"{self.path} is in use by another run; wait until it has ended"
            ) from None
        return file

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Returns when everything that was put is on disk."""
        if self._writer:
            self._queue.put(None)
            self._writer.join()
            self._writer = None
            self._lock.close()
        self._read.close()

    def get(self, key: str) -> ChatAnswer | None:
        row = self._read.execute("SELECT answer FROM answers WHERE key = ?", (key,)).fetchone()
        return ChatAnswer(**json.loads(row[0])) if row else None

    def total_spent(self) -> Spent:
        query = "SELECT sum(usd), sum(input_tokens + output_tokens), sum(usd IS NULL) FROM charges"
        usd, tokens, unpriced = self._read.execute(query).fetchone()
        return Spent(usd or 0.0, tokens or 0, unpriced or 0)

    def typical(self, model: str) -> tuple[float | None, float | None]:
        """(seconds, output tokens) of a model's answers on average; None where not known."""
        query = (
            "SELECT avg(a.seconds), avg(c.output_tokens) FROM answers a JOIN charges c "
            "ON a.key = c.key WHERE c.model = ? AND c.what = 'answer'"
        )
        return self._read.execute(query, (model,)).fetchone()

    def rows(self, query: str, *values: Any) -> sqlite3.Cursor:
        """What a SELECT finds among all that is on disk; to be read to its end at once."""
        return self._read.execute(query, values)

    async def put(
        self, charge: Charge, request: dict, answer: ChatAnswer | None, seconds: float | None
    ) -> None:
        """Returns when the charge, and the answer where there is one, are on disk.

        Raises:
          OSError: the disk is full or fails.
        """
        text = json.dumps(request, ensure_ascii=False)
        await self.write(lambda connection: insert(connection, charge, text, answer, seconds))

    async def write(self, change: Callable[[sqlite3.Connection], Result]) -> Result:
        """What `change` returns, once all that it did is on disk; it runs in another thread.

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
            del items  # which may be large, while the thread waits for more
        connection.close()

    def _commit(self, connection: sqlite3.Connection, items: list[tuple]) -> None:
        try:
            with connection:
                results = [change(connection) for _, _, change in items]
        except sqlite3.Error as error:
            failure = OSError(
                f"{self.path}: {error}; make room and run again: what came before is kept"
            )
            results = [failure] * len(items)
        for (loop, done, _), result in zip(items, results, strict=True):
            # After a kill by Ctrl-C nobody may be waiting any more.
            if not loop.is_closed():
                loop.call_soon_threadsafe(_settle, done, result)


def insert(
    connection: sqlite3.Connection,
    charge: Charge,
    request: str,
    answer: ChatAnswer | None,
    seconds: float | None,
) -> None:
    """Writes down what a reply cost and, where it is an answer, the answer to `request`."""
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    connection.execute(
        "INSERT INTO charges VALUES (?, ?, ?, ?, ?, ?, ?)", (*dataclasses.astuple(charge), now)
    )
    if answer:
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
