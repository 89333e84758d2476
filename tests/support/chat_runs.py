"""A client's run against the stand-in servers: its config, its requests and its outcomes."""

import asyncio
import sqlite3

import pytest

from datagen.chat import attempts
from datagen.chat.batch import batches
from datagen.chat.client import Client
from datagen.chat.config import ChatConfig, ChatRequest
from datagen.chat.errors import RunStoppedError
from datagen.chat.replies import ChatAnswer
from datagen.chat.store import AnswerStore
from tests.support.chat_server import ChatServer

CONFIG = {
    "provider": "openai",
    "base_url": "",
    "model": "stand-in",
    "max_tokens": 50,
    "temperature": None,
    "top_p": None,
    "presence_penalty": None,
    "reasoning_effort": None,
    "extra_body": "",
    "concurrency": 16,
    "attempts": 20,
    "timeout_seconds": 10.0,
    "budget_usd": 0.0,
    "budget_tokens": 0,
    "price_input": 1.0,
    "price_output": 10.0,
    "offline": False,
    "batch": False,
    "batch_requests": 50_000,
    "poll_seconds": 60.0,
}

PRICE = (20 * 1.0 + 7 * 10.0) / 1e6  # of each of the server's replies
HALF = PRICE / 2


def quicken(monkeypatch):
    """Shortens all waits, and sets API keys."""
    monkeypatch.setattr(attempts, "INITIAL_BACKOFF", 0.01)
    monkeypatch.setattr(attempts, "MAX_BACKOFF", 0.1)
    monkeypatch.setattr(batches, "QUIET_SECONDS", 0.02)
    monkeypatch.setattr(batches, "SETTLE_SECONDS", 0.0)
    monkeypatch.setattr(batches, "INITIAL_RESUBMIT_BACKOFF", 0.01)
    monkeypatch.setattr(batches, "MAX_RESUBMIT_BACKOFF", 10.0)  # a test that waits for it fails
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret-of-the-test")
    monkeypatch.setenv("ANTHROPIC_API_KEY", "sk-ant-secret-of-the-test")


def make_config(server: ChatServer | None, **changes) -> ChatConfig:
    settings = CONFIG | changes
    if server:
        path = "" if settings["provider"] == "anthropic" else "/v1"
        settings["base_url"] = server.url + path
    return ChatConfig(**settings)


def batched(server, provider="openai", **changes) -> ChatConfig:
    """A config that asks through the batch API, without long waits."""
    settings = {"batch": True, "poll_seconds": 0.01, "attempts": 4, "provider": provider}
    return make_config(server, **settings | changes)


def requests(count: int, **changes) -> list[tuple[int, ChatRequest]]:
    return [(i, ChatRequest("be brief", f"question {i}", "v1", **changes)) for i in range(count)]


def ask(config, path, asked, *, stop_after=None, report=lambda _: None):
    """(outcomes by tag, client, why it stopped) of asking all."""
    got, stopped = {}, None

    async def work(client):
        nonlocal stopped
        try:
            async for tag, outcome in client.stream(asked, total=len(asked)):
                assert tag not in got
                got[tag] = outcome
                if stop_after and len(got) == stop_after:
                    client.stop("enough")
        except ValueError as error:
            stopped = error

    async def main(client):
        async with client:
            await work(client)

    with AnswerStore(path, read_only=config.offline) as store:
        client = Client(config, store, report)
        asyncio.run(main(client))
        client.total = None if config.offline else store.total_spent()
    return got, client, stopped


def texts(count, first=0):
    return {i: f"answer to question {i}" for i in range(first, count)}


def answer_texts(got):
    return {i: outcome.text for i, outcome in got.items() if isinstance(outcome, ChatAnswer)}


def rows(path, query):
    with sqlite3.connect(path) as connection:
        return connection.execute(query).fetchall()


def nothing_open(path):
    left = rows(path, "SELECT key FROM batch_requests")
    return not left and not rows(path, "SELECT name FROM batches WHERE state = 'open'")


def left_at_the_provider(config, server, path, count):
    """Asks, and ends the run when all is at the provider; why it ended."""
    server.held, reasons = True, []

    async def main(client):
        async with client:
            asking = asyncio.ensure_future(anext(client.stream(requests(count))))
            while not (server.made.is_set() and client._batches._log.ids()):
                await asyncio.sleep(0.005)
            client.stop("enough")
            with pytest.raises(RunStoppedError) as ended:
                await asking
            reasons.append(str(ended.value))

    with AnswerStore(path) as store:
        asyncio.run(main(Client(config, store, report=lambda _: None)))
    server.made.clear()
    return reasons[0]
