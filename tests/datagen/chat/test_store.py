"""Answers are on disk before they are used."""

import asyncio
import contextlib
import sqlite3

import pytest

from datagen.chat.client import Client
from datagen.chat.store import AnswerStore
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


def test_what_is_no_store_is_told(tmp_path):
    (tmp_path / "s").write_text("not a database, but a text that is long enough to be read as one")
    with pytest.raises(OSError, match="not a database"):
        AnswerStore(tmp_path / "s")
    (tmp_path / "folder").mkdir()
    with pytest.raises(OSError, match="make room, or make it writable"):
        AnswerStore(tmp_path / "folder")
