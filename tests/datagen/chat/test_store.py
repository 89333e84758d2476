"""Answers are on disk before they are used."""

import asyncio
import contextlib
import sqlite3

import pytest

from datagen.chat.client import Client
from datagen.chat.store import AnswerStore
from tests.conftest import umask_of
from tests.support.chat_runs import make_config, requests


def test_no_answer_is_used_before_it_is_on_disk(server, tmp_path):
    async def work(client, other):
        async with client:
            first = asyncio.ensure_future(anext(client.stream(requests(1))))
            while not server.answered:
                await asyncio.sleep(0.01)
            done, _ = await asyncio.wait([first], timeout=0.2)
            assert not done, "used, and the store is still locked"
            other.rollback()
            assert (await first)[1].text == "answer to question 0"

    path = tmp_path / "s"
    with AnswerStore(path) as store, contextlib.closing(sqlite3.connect(path)) as other:
        other.execute("BEGIN IMMEDIATE")  # the store's writer has to wait
        asyncio.run(work(Client(make_config(server), store), other))


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
    (tmp_path / "folder").mkdir()
    with pytest.raises(OSError, match="make room, or make it writable"):
        AnswerStore(tmp_path / "folder")
