"""The file of an answer store: its tables, and whether it is the whole store.

SQLite in WAL mode keeps the newest answers in `answers.sqlite-wal`. After a kill that file holds
what the main file does not, so a copy of the main file alone would look like an empty or older
store. To notice that, the main file holds `user_version` COMPLETE_WITH_WAL while a run writes, and
only the WAL holds COMPLETE: a main file that says COMPLETE_WITH_WAL, without its WAL, is not whole.
"""

import errno
import fcntl
import json
import sqlite3
import tempfile
from pathlib import Path
from typing import Any

COMPLETE_WITH_WAL, COMPLETE = 1, 2
"""Values of SQLite's `user_version`; 0: of an earlier version of this program."""

_LOCKED = "is locked by another program, such as a database browser or a backup; close it"
WAITED_FOR = {
    sqlite3.SQLITE_BUSY: _LOCKED,
    sqlite3.SQLITE_LOCKED: _LOCKED,
    sqlite3.SQLITE_FULL: "cannot grow: there is no space left; make room",
    sqlite3.SQLITE_IOERR: "cannot be written: the disk fails or is full; make room or repair it",
}
"""SQLite's errors that pass -> what they mean and the remedy."""

STORE_SCHEMA = """
CREATE TABLE IF NOT EXISTS answers (
  key TEXT PRIMARY KEY,  -- hash of all that can change the answer; of a cut one, ":" and the limit
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
-- Each request, from just before it is sent until its reply is in `charges`, or an error shows that
-- it costs nothing. What stays, as after a kill, counts as the most that it can cost.
CREATE TABLE IF NOT EXISTS sent (
  key TEXT NOT NULL,
  model TEXT NOT NULL,
  what TEXT NOT NULL,
  input_tokens INTEGER NOT NULL,
  output_tokens INTEGER NOT NULL,
  usd REAL,
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


def connect(path: Path, *, writable: bool) -> sqlite3.Connection:
    """A connection for reading; without `writable`, a missing file counts as an empty store.

    Raises:
      OSError: it is no answer store, not the whole store, locked, or cannot be written.
    """
    _require_whole(path)
    if writable and not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()  # by the umask; SQLite would not let a group write
    try:
        connection = sqlite3.connect(path if path.exists() else ":memory:", check_same_thread=False)
        connection.execute("PRAGMA wal_autocheckpoint = 0")  # see `checkpoint`
        tables = {name for (name,) in connection.execute("SELECT name FROM sqlite_master")}
        if tables and not {"answers", "charges"} <= tables:
            raise OSError(f"{path}: it is not an answer store; choose another --workdir")
        if writable or not tables:
            connection.execute("PRAGMA journal_mode = WAL")
            connection.executescript(STORE_SCHEMA)
        elif "sent" not in tables:  # of an earlier version
            connection.execute("CREATE TEMP TABLE sent AS SELECT * FROM charges LIMIT 0")
        if writable:
            checkpoint(connection)
    except sqlite3.Error as error:
        raise OSError(f"{path}: {describe(error, path)}") from None
    return connection


def checkpoint(connection: sqlite3.Connection) -> None:
    """Moves the WAL into the main file; see the docstring of the module for the marks."""
    connection.execute(f"PRAGMA user_version = {COMPLETE_WITH_WAL}")
    connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
    connection.execute(f"PRAGMA user_version = {COMPLETE}")


def describe(error: sqlite3.Error, path: Path) -> str:
    """What an error of SQLite at `path` means, with the remedy."""
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF  # the primary code
    if code in (*WAITED_FOR, sqlite3.SQLITE_PROTOCOL) and not _has_locks(path.parent):
        return "its drive has no file locks, which SQLite needs; put the workdir on a local disk"
    if code in WAITED_FOR:
        return f"{WAITED_FOR[code]} and rerun: all earlier answers are kept"
    is_operational = isinstance(error, sqlite3.OperationalError) and "no such" not in str(error)
    remedy = "make room, or make it writable" if is_operational else "it is not an answer store"
    return f"{error}; {remedy}"


def passes(error: sqlite3.Error) -> str:
    """What to wait for, after an error that passes; "" after one that does not."""
    return WAITED_FOR.get(getattr(error, "sqlite_errorcode", 0) & 0xFF, "")


def _has_locks(folder: Path) -> bool:
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return error.errno not in (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)
    return True


def require_run(path: Path, tokens: int, first_key: str) -> None:
    """Requires that a store is the one that the runs beside it were paid from.

    Args:
      tokens: spent in the store.
      first_key: of its first reply, which never changes.

    Raises:
      OSError: a run.json beside it names more tokens, or another first reply.
    """
    for record in sorted(path.parent.glob("*run.json")):
        spent = _spent(record)
        other = spent.get("first_key", first_key)
        if spent.get("tokens", 0) > tokens or (other and other != first_key):
            state = "is missing" if not path.exists() else "is not the store of this run"
            raise OSError(
                f"{path} {state}: {record} says that {spent['tokens']:,} tokens were spent here; "
                f"put the store back (with its -wal file, if there is one), choose another "
                f"--workdir, or delete {record.name} to pay for all answers again"
            )


def _spent(record: Path) -> dict[str, Any]:
    try:
        spent = json.loads(record.read_text(encoding="utf-8")).get("spent")
    except (OSError, ValueError, AttributeError):
        return {}  # a damaged run.json says nothing
    return spent if isinstance(spent, dict) and isinstance(spent.get("tokens"), int) else {}


def _require_whole(path: Path) -> None:
    header, wal = b"", path.with_name(path.name + "-wal")
    if path.exists():
        with path.open("rb") as file:
            header = file.read(100)
    if not header and wal.exists() and wal.stat().st_size:
        raise OSError(  # SQLite would delete the WAL
            f"{path} is missing or empty, but {wal.name} beside it holds answers of a run; put "
            f"{path.name} back, or delete {wal.name} to pay for all answers again"
        )
    version = int.from_bytes(header[60:64], "big")  # user_version, in SQLite's file format
    if version == COMPLETE_WITH_WAL and not wal.exists():
        raise OSError(
            f"{path} was copied without {wal.name}, which holds the newest answers of a run that "
            "was killed; copy both files, or delete it to pay for all answers again"
        )
