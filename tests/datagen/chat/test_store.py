"""Answers are on disk before they are used."""

import asyncio
import contextlib
import errno
import fcntl
import functools
import shutil
import sqlite3

import pytest

from datagen.chat import store as answer_store
from datagen.chat import store_file
from datagen.chat.client import Client
from datagen.chat.store import AnswerStore
from tests.conftest import umask_of
from tests.support.chat_runs import ask, make_config, requests, rows


@contextlib.contextmanager
def locked(path):
    """Another program that holds a write transaction."""
    with contextlib.closing(sqlite3.connect(path, check_same_thread=False)) as other:
        other.execute("BEGIN IMMEDIATE")
        yield other
        other.rollback()


def test_no_answer_is_used_before_it_is_on_disk(server, tmp_path):
    path, held = tmp_path / "s", contextlib.ExitStack()

    def answer(body):  # its reservation is on disk by now
        held.enter_context(locked(path))
        return "an answer"

    async def work(client):
        async with client:
            first = asyncio.ensure_future(anext(client.stream(requests(1))))
            while not server.answered:
                await asyncio.sleep(0.01)
            done, _ = await asyncio.wait([first], timeout=0.2)
            assert not done, "used, and the store is still locked"
            held.close()
            assert (await first)[1].text == "an answer"

    server.answer = answer
    with AnswerStore(path) as store:
        asyncio.run(work(Client(make_config(server), store)))


@pytest.mark.parametrize("umask", [0o077, 0o002])
def test_the_umask_decides_who_may_read_and_write(server, tmp_path, umask):
    async def ask(client):
        async with client:
            await client.ask_all([request for _, request in requests(1)])

    with umask_of(umask), AnswerStore(tmp_path / "run" / "s") as store:
        asyncio.run(ask(Client(make_config(server), store)))
        files = {path.name: path.stat().st_mode & 0o777 for path in (tmp_path / "run").iterdir()}
    assert files == dict.fromkeys(("s", "s-wal", "s-shm"), 0o666 & ~umask)
    assert (tmp_path / "run").stat().st_mode & 0o777 == 0o777 & ~umask


def test_what_is_no_store_is_told(tmp_path):
    (tmp_path / "s").write_text("not a database, but a text that is long enough to be read as one")
    with pytest.raises(OSError, match="not a database"):
        AnswerStore(tmp_path / "s")
    with sqlite3.connect(tmp_path / "other") as connection:
        connection.execute("CREATE TABLE drugs (name TEXT)")
    before = (tmp_path / "other").read_bytes()
    with pytest.raises(OSError, match="not an answer store"):
        AnswerStore(tmp_path / "other")
    assert (tmp_path / "other").read_bytes() == before
    (tmp_path / "folder").mkdir()
    with pytest.raises(IsADirectoryError):
        AnswerStore(tmp_path / "folder")


def passing_failure(monkeypatch, code, times):
    """The first commits of charges fail as SQLite does on a full disk."""
    real, left = answer_store.insert, [times]

    def insert(*arguments):
        if left[0]:
            left[0] -= 1
            error = sqlite3.OperationalError("database or disk is full")
            error.sqlite_errorcode = code
            raise error
        return real(*arguments)

    monkeypatch.setattr(answer_store, "insert", insert)
    monkeypatch.setattr(answer_store, "RETRY_SECONDS", 0.01)


@pytest.mark.parametrize(
    ("code", "told"),
    [
        (sqlite3.SQLITE_FULL, "no space left; make room"),
        (sqlite3.SQLITE_BUSY, "is locked by another program"),
        (sqlite3.SQLITE_IOERR, "the disk fails or is full"),
    ],
)
def test_replies_wait_in_memory_for_the_disk(server, tmp_path, monkeypatch, capsys, code, told):
    passing_failure(monkeypatch, code, 20)
    got, client, error = ask(make_config(server), tmp_path / "s", requests(30))
    assert error is None and len(got) == 30 and len(server.bodies) == 30
    assert rows(tmp_path / "s", "SELECT count(*) FROM answers") == [(30,)]
    err = capsys.readouterr().err
    assert err.count(told) == 1 and "kept in memory" in err and "is written again" in err
    assert client.total.tokens == 30 * 27


def test_a_disk_that_stays_full_ends_the_run_and_nothing_is_paid_in_a_loop(
    server, tmp_path, monkeypatch
):
    passing_failure(monkeypatch, sqlite3.SQLITE_FULL, -1)
    monkeypatch.setattr(answer_store, "PATIENCE", 0.1)
    with pytest.raises(OSError, match=r"no space left; make room and rerun"):
        ask(make_config(server, concurrency=4), tmp_path / "s", requests(500))
    assert len(server.bodies) <= 8, "what was on its way, and no more"


def killed(server, path, to):
    """The files of a store as a kill leaves them, copied to a folder."""

    def answer(body):
        if len(server.bodies) == 20:
            shutil.copytree(path.parent, to)
        return "an answer"

    server.answer = answer
    ask(make_config(server, concurrency=1), path, requests(25))


def test_a_copy_without_its_wal_is_noticed(server, tmp_path):
    path, left = tmp_path / "run" / "answers.sqlite", tmp_path / "left"
    killed(server, path, left)
    (tmp_path / "other").mkdir()
    copy = tmp_path / "other" / "answers.sqlite"
    shutil.copy(left / "answers.sqlite", copy)
    for mode in ({}, {"read_only": True}, {"dry_run": True}):
        with pytest.raises(OSError, match=r"copied without answers.sqlite-wal"):
            AnswerStore(copy, **mode)
    shutil.copy(left / "answers.sqlite-wal", copy.with_name("answers.sqlite-wal"))
    with AnswerStore(copy) as store:
        assert store.total_spent().tokens >= 19 * 27
    with AnswerStore(copy, read_only=True) as store:
        assert store.total_spent().tokens >= 19 * 27, "closed: there is no -wal to copy"


@pytest.mark.parametrize("content", [None, b""])
def test_a_wal_whose_store_is_missing_or_empty_is_kept(server, tmp_path, content):
    path, left = tmp_path / "run" / "answers.sqlite", tmp_path / "left"
    killed(server, path, left)
    main, wal = left / "answers.sqlite", left / "answers.sqlite-wal"
    whole = main.read_bytes()
    main.unlink() if content is None else main.write_bytes(content)
    for mode in ({}, {"dry_run": True}):
        with pytest.raises(OSError, match=r"missing or empty, but answers.sqlite-wal beside it"):
            AnswerStore(main, **mode)
    assert wal.stat().st_size, "SQLite alone would delete it"
    main.write_bytes(whole)
    with AnswerStore(main) as store:
        assert store.total_spent().tokens >= 19 * 27


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP])
def test_a_drive_without_locks_is_named_as_such(tmp_path, monkeypatch, number):
    AnswerStore(tmp_path / "s").close()

    def lockf(*_):
        raise OSError(number, "no locks")

    monkeypatch.setattr(fcntl, "lockf", lockf)
    monkeypatch.setattr(sqlite3, "connect", functools.partial(sqlite3.connect, timeout=0.01))
    with (
        locked(tmp_path / "s"),  # what SQLite makes of ENOLCK
        pytest.raises(
            OSError, match="no file locks, which SQLite needs; put the workdir on a local"
        ),
    ):
        AnswerStore(tmp_path / "s")


def test_a_store_that_another_program_locks_is_named_as_such(tmp_path, monkeypatch):
    AnswerStore(tmp_path / "s").close()
    monkeypatch.setattr(sqlite3, "connect", functools.partial(sqlite3.connect, timeout=0.01))
    with (
        locked(tmp_path / "s"),
        pytest.raises(OSError, match=r"s: is locked by another program, .*; close it and rerun"),
    ):
        AnswerStore(tmp_path / "s")


def test_another_program_may_empty_the_wal(server, tmp_path):
    path, left = tmp_path / "run" / "answers.sqlite", tmp_path / "left"
    killed(server, path, left)
    with contextlib.closing(sqlite3.connect(left / "answers.sqlite")) as other:
        assert other.execute("SELECT count(*) FROM answers").fetchone()[0] >= 19
    assert not (left / "answers.sqlite-wal").exists()
    with AnswerStore(left / "answers.sqlite") as store:
        assert store.total_spent().tokens >= 19 * 27


def test_the_wal_does_not_grow_without_end(server, tmp_path, monkeypatch):
    monkeypatch.setattr(answer_store, "MAX_WAL_BYTES", 100_000)
    sizes = []

    def answer(body):
        sizes.append((tmp_path / "s-wal").stat().st_size)
        return "long " * 1000

    server.answer = answer
    ask(make_config(server), tmp_path / "s", requests(200))
    assert max(sizes) < 500_000


def test_a_store_that_is_not_of_this_run_is_an_error(server, tmp_path):
    path = tmp_path / "answers.sqlite"
    ask(make_config(server), path, requests(3))
    with AnswerStore(path) as store:
        spent = store.total_spent()
    record = tmp_path / "examples.jsonl.run.json"
    record.write_text(
        f'{{"spent": {{"tokens": {spent.tokens}, "first_key": "{spent.first_key}"}}}}'
    )
    ask(make_config(server), path, requests(6))  # it may grow
    path.rename(tmp_path / "kept")
    with pytest.raises(OSError, match=r"is missing: .*run.json says that 81 tokens were spent"):
        AnswerStore(path)
    for empty in (b"", None):
        if empty is None:
            with contextlib.closing(sqlite3.connect(path)) as connection:
                connection.executescript(store_file.STORE_SCHEMA)
        else:
            path.write_bytes(empty)
        with pytest.raises(OSError, match="is not the store of this run"):
            AnswerStore(path)
        path.unlink()
    ask(make_config(server), tmp_path / "elsewhere" / "s", requests(9, schema={"type": "object"}))
    shutil.copy(tmp_path / "elsewhere" / "s", path)
    with pytest.raises(OSError, match="is not the store of this run"):
        AnswerStore(path)
    record.unlink()
    AnswerStore(path).close()
