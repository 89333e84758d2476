"""Answers on disk: what was asked, what came back and what it cost. Nothing is paid for twice.

One SQLite file in WAL mode. A dedicated thread writes; whatever was queued during one transaction
goes into the next, so that thousands of answers per second share a few disk syncs.
"""

import asyncio
import contextlib
import dataclasses
import datetime
import json
import queue
import sqlite3
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self, TypeVar

from common import messages
from datagen.chat import store_file
from datagen.chat.config import RequestKey, most_tokens
from datagen.chat.replies import ChatAnswer

Written = TypeVar("Written")

MAX_WAL_BYTES = 16_000_000
"""Size of the WAL at which it is moved into the main file."""

PATIENCE, CLOSING_PATIENCE = 600.0, 10.0
"""Seconds to wait for a locked file or a full disk: in a run, and at its end."""

RETRY_SECONDS = 0.2
"""Between two attempts to write meanwhile."""


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
    def tokens(self) -> int:
        """Input and output tokens."""
        return self.input_tokens + self.output_tokens

    @property
    def is_answer(self) -> bool:
        """Whether the reply is an answer to be stored."""
        return self.kind == "answer"


@dataclasses.dataclass(frozen=True)
class TotalSpent:
    """What all replies in the store have cost, and the requests without a reply at most."""

    usd: float
    tokens: int
    unpriced: int  # replies whose price is unknown
    first_key: str = ""  # of the first reply: no other store has it


class AnswerStore:
    """Answers by key. One process writes at a time, as commands lock their workdir; others read.

    Args:
      read_only: the file must exist, and is not changed.
      dry_run: like read_only, but a missing file counts as an empty store; none is created.

    Raises:
      OSError: the file is not an answer store, not the one of the run beside it, locked by another
        program, or cannot be written.
    """

    def __init__(self, path: Path, *, read_only: bool = False, dry_run: bool = False):
        self.path = path
        self._queue: queue.SimpleQueue = queue.SimpleQueue()
        self._writer: threading.Thread | None = None
        self._closing = threading.Event()
        writable = not (read_only or dry_run)
        if read_only and not path.exists():
            raise FileNotFoundError(f"no stored answers: {path}")
        if not path.exists():
            store_file.require_run(path, 0, "")
        self._reader = store_file.connect(path, writable=writable)
        spent = self.total_spent()
        store_file.require_run(path, spent.tokens, spent.first_key)
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
            self._closing.set()
            self._queue.put(None)
            self._writer.join()
            self._writer = None
        self._reader.close()

    def get(self, key: RequestKey) -> ChatAnswer | None:
        """The stored answer that the request would get: a cut one only for the limit that cut it.

        Raises:
          OSError: the store cannot be read.
        """
        query = "SELECT request, answer FROM answers WHERE key = ?"
        for name in (f"{key.key}:{key.limit}", key.key, key.former):
            if row := self.rows(query, name).fetchone():
                answer = ChatAnswer.from_json(row[1])
                fits = answer.output_tokens <= key.limit or not answer.usage_reported
                if name != key.key or fits or most_tokens(json.loads(row[0]))[1] <= key.limit:
                    return answer
        return None

    def total_spent(self) -> TotalSpent:
        """The cost of all replies so far."""
        query = "SELECT sum(usd), sum(input_tokens + output_tokens), sum(usd IS NULL) FROM "
        both = "(SELECT * FROM charges UNION ALL SELECT * FROM sent)"
        usd, tokens, unpriced = self.rows(query + both).fetchone()
        first = self.rows("SELECT key FROM charges ORDER BY rowid LIMIT 1").fetchone()
        return TotalSpent(usd or 0.0, tokens or 0, unpriced or 0, first[0] if first else "")

    def without_reply(self) -> int:
        """Requests of earlier runs without a reply, which count at the most they can cost."""
        return self.rows("SELECT count(*) FROM sent").fetchone()[0]

    def typical(self, model: str) -> tuple[float | None, float | None]:
        """Mean (seconds, output tokens) of a model's answers; None if there are none."""
        tokens = "SELECT avg(output_tokens) FROM charges WHERE model = ? AND what = 'answer'"
        seconds = (
            "SELECT avg(a.seconds) FROM answers a JOIN charges c ON a.key = c.key WHERE c.model = ?"
        )
        return self.rows(seconds, model).fetchone()[0], self.rows(tokens, model).fetchone()[0]

    def rows(self, query: str, *values: Any) -> sqlite3.Cursor:
        """The rows of a SELECT over everything on disk; read them to the end at once."""
        try:
            return self._reader.execute(query, values)
        except sqlite3.Error as error:
            raise OSError(f"{self.path}: {store_file.describe(error, self.path)}") from None

    async def reserve(self, most: Charge) -> int:
        """The number of a request, once the most that it can cost is on disk.

        Raises: as `write`.
        """

        def change(connection: sqlite3.Connection) -> int:
            query = "INSERT INTO sent VALUES (?, ?, ?, ?, ?, ?, ?)"
            return connection.execute(query, (*dataclasses.astuple(most), _now())).lastrowid or 0

        return await self.write(change)

    async def release(self, number: int) -> None:
        """A reserved request has cost nothing. Raises: as `write`."""
        await self.write(lambda connection: _release(connection, number))

    async def put(
        self,
        number: int,
        charge: Charge,
        request: dict,
        answer: ChatAnswer | None,
        seconds: float | None,
    ) -> None:
        """Returns once the charge of a reserved request, and any answer, are on disk.

        Raises: as `write`.
        """
        text = json.dumps(request, ensure_ascii=False)

        def change(connection: sqlite3.Connection) -> None:
            _release(connection, number)
            insert(connection, charge, text, answer, seconds)

        await self.write(change)

    async def write(self, change: Callable[[sqlite3.Connection], Written]) -> Written:
        """The result of `change`, once its changes are on disk; it runs in the writer thread.

        While the file is locked or the disk is full, it waits up to PATIENCE seconds.

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
        connection.execute("PRAGMA wal_autocheckpoint = 0")
        wal = self.path.with_name(self.path.name + "-wal")
        last = False
        while not last:
            items = [self._queue.get()]
            while not self._queue.empty():
                items.append(self._queue.get())
            last = items[-1] is None
            self._commit(connection, [item for item in items if item])
            del items  # may be large, and the thread now waits for more
            if wal.exists() and wal.stat().st_size > MAX_WAL_BYTES:
                with contextlib.suppress(sqlite3.Error):  # the next commit meets it, too
                    store_file.checkpoint(connection)
        connection.close()

    def _commit(self, connection: sqlite3.Connection, items: list[tuple]) -> None:
        started, announced = time.monotonic(), False
        while True:
            try:
                with connection:
                    results = [change(connection) for _, _, change in items]
                break
            except sqlite3.Error as error:
                waited_for = store_file.passes(error)
                patience = CLOSING_PATIENCE if self._closing.is_set() else PATIENCE
                if not waited_for or time.monotonic() - started > patience:
                    failure = OSError(f"{self.path}: {store_file.describe(error, self.path)}")
                    results = [failure] * len(items)
                    break
                if not announced:
                    announced = True
                    messages.log(
                        f"{self.path} {waited_for}: nothing is sent until then, and replies are "
                        "kept in memory"
                    )
                time.sleep(RETRY_SECONDS)
        if announced and not isinstance(results[0], OSError):
            messages.log(f"{self.path} is written again")
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
    now = _now()
    connection.execute(
        "INSERT INTO charges VALUES (?, ?, ?, ?, ?, ?, ?)", (*dataclasses.astuple(charge), now)
    )
    if answer and charge.is_answer:
        key = charge.key
        query = "SELECT 1 FROM answers WHERE key = ?"
        if answer.finish_reason == "length" or connection.execute(query, (key,)).fetchone():
            key = f"{key}:{most_tokens(json.loads(request))[1]}"
        as_json = json.dumps(dataclasses.asdict(answer), ensure_ascii=False)
        connection.execute(
            "INSERT OR REPLACE INTO answers VALUES (?, ?, ?, ?, ?)",
            (key, request, as_json, seconds, now),
        )


def _release(connection: sqlite3.Connection, number: int) -> None:
    connection.execute("DELETE FROM sent WHERE rowid = ?", (number,))


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def _settle(done: asyncio.Future, result: Any) -> None:
    if done.done():
        return
    if isinstance(result, OSError):
        done.set_exception(result)
    else:
        done.set_result(result)
