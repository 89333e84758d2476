"""Estimates of a run, and the status line of a stream."""

import asyncio
import doctest
from contextlib import closing

import pytest

from common import messages
from datagen.chat import progress
from datagen.chat.client import Client
from datagen.chat.progress import StreamProgress
from datagen.chat.store import AnswerStore
from tests.support.chat_runs import ask, make_config, requests


def test_doctests():
    assert doctest.testmod(progress).failed == 0


@pytest.fixture
def frequent(monkeypatch):
    monkeypatch.setattr(messages, "TERMINAL_INTERVAL", 0.01)
    monkeypatch.setattr(messages, "LOG_INTERVAL", 0.03)


def test_a_log_gets_lines_now_and_then(frequent, capsys):
    async def work():
        stored = 0
        with closing(StreamProgress(50, lambda: stored, lambda: "$1.00")) as shown:
            for i in range(40):
                stored += i < 10
                if i % 20:
                    shown.done += 1
                else:
                    shown.failed += 1
                await asyncio.sleep(0.002)
            await asyncio.sleep(0.1)

    asyncio.run(work())
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) > 1
    assert lines[-1].startswith("38/50 done, 2 failed | $1.00 | ")
    assert lines[-1].endswith(" left")


def test_the_store_does_not_count_as_speed(frequent, monkeypatch):
    rates = []
    monkeypatch.setattr(progress, "status_text", lambda *args: rates.append(args[-1]) or "")

    async def all_stored():
        stored = 0
        with closing(StreamProgress(None, lambda: stored, lambda: "")) as shown:
            for _ in range(1000):
                stored += 1
                shown.done += 1
            await asyncio.sleep(0.1)

    asyncio.run(all_stored())
    assert rates and set(rates) == {0.0}


def test_a_stream_without_recent_answers_has_no_rate(frequent, monkeypatch):
    rates = []
    monkeypatch.setattr(progress, "RATE_UPDATES", 3)
    monkeypatch.setattr(progress, "status_text", lambda *args: rates.append(args[-1]) or "")

    async def stalls():
        with closing(StreamProgress(50, lambda: 0, lambda: "")) as shown:
            shown.done = 10
            await asyncio.sleep(0.3)

    asyncio.run(stalls())
    assert rates[-1] == 0.0


def test_a_run_shows_its_progress(frequent, server, tmp_path, capsys):
    server.delay = 0.05
    ask(make_config(server), tmp_path / "s", requests(20))
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].startswith("0/20 done, 0 failed | $0.0000, 0 tokens")
    assert 0 < int(lines[-1].split("/20 done")[0]) <= 20
    assert "secret" not in "".join(lines)


def test_an_estimate_before_the_first_call(server, tmp_path):
    with AnswerStore(tmp_path / "s") as store:
        client = Client(make_config(server), store)
        before = client.estimate(request for _, request in requests(100))
        assert (before.requests, before.stored) == (100, 0)
        assert before.output_tokens == 100 * 50
        rounds = -(-100 // client.config.concurrency)
        assert before.seconds == rounds * 2, "1 s until an answer begins, 1 s for 50 tokens"
        assert before.usd == pytest.approx((before.input_tokens + 10 * 5000) / 1e6)
    ask(make_config(server), tmp_path / "s", requests(60))
    with AnswerStore(tmp_path / "s") as store:
        after = Client(make_config(server), store).estimate(r for _, r in requests(100))
    assert (after.requests, after.stored, after.output_tokens) == (40, 60, 40 * 7)
    assert "40 requests to send, 60 answers stored" in str(after)
