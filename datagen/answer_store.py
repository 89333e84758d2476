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
from pathlib import Path
from typing import Any, Self

SCHEMA = """
CREATE TABLE IF NOT EXISTS answers (
  key TEXT PRIMARY KEY,  -- of everything that can change the answer
  request TEXT NOT NULL, -- what was sent, as JSON
  answer TEXT NOT NULL,  -- an Answer, as JSON
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
"""


@dataclasses.dataclass(frozen=True)
class Answer:
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


@dataclasses.dataclass(frozen=True)
class Spent:
    """What all replies in the store have cost."""

    usd: float
    tokens: int
    unpriced: int  # replies whose price is not known


class AnswerStore:
    """Answers by key. One process at a time writes; reading while it does is safe.

    Raises:
      OSError: the file is locked by another run, is no store, or cannot be written.
    """

    def __init__(self, path: Path, *, read_only: bool = False):
        self.path = path
        self._queue: queue.SimpleQueue = queue.SimpleQueue()
        self._writer: threading.Thread | None = None
        if read_only:
            if not path.exists():
                raise FileNotFoundError(f"no stored answers: {path}")
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._lock = self._locked()
        try:
            self._read = sqlite3.connect(path, check_same_thread=False)
            if not read_only:
                self._read.execute("PRAGMA journal_mode = WAL")
                self._read.executescript(SCHEMA)
            self._read.execute("SELECT 1 FROM answers LIMIT 1")
        except sqlite3.Error as error:
            raise OSError(f"{path}: {error}; move it away if it is no store of answers") from None
        if not read_only:
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

    def get(self, key: str) -> Answer | None:
        row = self._read.execute("SELECT answer FROM answers WHERE key = ?", (key,)).fetchone()
        return Answer(**json.loads(row[0])) if row else None

    def spent(self) -> Spent:
        query = "SELECT sum(usd), sum(input_tokens + output_tokens), sum(usd IS NULL) FROM charges"
        usd, tokens, unpriced = self._read.execute(query).fetchone()
        return Spent(usd or 0.0, tokens or 0, unpriced or 0)

    def usual(self, model: str) -> tuple[float, float] | None:
        """(seconds, output tokens) of a model's answers on average; None where there is none."""
        query = (
            "SELECT avg(a.seconds), avg(c.output_tokens) FROM answers a JOIN charges c "
            "ON a.key = c.key WHERE c.model = ? AND c.what = 'answer' AND a.seconds IS NOT NULL"
        )
        seconds, tokens = self._read.execute(query, (model,)).fetchone()
        return None if seconds is None else (seconds, tokens)

    async def put(
        self, charge: Charge, request: dict | None, answer: Answer | None, seconds: float | None
    ) -> None:
        """Returns when the charge, and the answer where there is one, are on disk.

        Raises:
          OSError: the disk is full or fails.
        """
        loop = asyncio.get_running_loop()
        done = loop.create_future()
        self._queue.put((loop, done, charge, request, answer, seconds))
        await asyncio.shield(done)

    def _write(self) -> None:
        connection = sqlite3.connect(self.path)
        connection.execute("PRAGMA synchronous = FULL")
        last = False
        while not last:
            items = [self._queue.get()]
            while not self._queue.empty():
                items.append(self._queue.get())
            last = items[-1] is None
            items = [item for item in items if item]
            failure = None
            try:
                with connection:
                    for _, _, *row in items:
                        _insert(connection, *row)
            except sqlite3.Error as error:
                failure = OSError(f"{self.path}: {error}; nothing that came after is stored")
            for loop, done, *_ in items:
                # After a kill by Ctrl-C nobody may be waiting any more.
                if not loop.is_closed():
                    loop.call_soon_threadsafe(_settle, done, failure)
        connection.close()


def _insert(
    connection: sqlite3.Connection,
    charge: Charge,
    request: dict | None,
    answer: Answer | None,
    seconds: float | None,
) -> None:
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    connection.execute(
        "INSERT INTO charges VALUES (?, ?, ?, ?, ?, ?, ?)", (*dataclasses.astuple(charge), now)
    )
    if answer:
        as_json = (json.dumps(x, ensure_ascii=False) for x in (request, dataclasses.asdict(answer)))
        connection.execute(
            "INSERT INTO answers VALUES (?, ?, ?, ?, ?)", (charge.key, *as_json, seconds, now)
        )


def _settle(done: asyncio.Future, failure: OSError | None) -> None:
    if done.done():
        return
    if failure:
        done.set_exception(failure)
    else:
        done.set_result(None)
