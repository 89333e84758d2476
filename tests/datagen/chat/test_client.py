"""Asking models over real HTTP, through the real SDKs, from a server that fails."""

import asyncio
import itertools
import json
import random
import signal
import sqlite3
import time

import pytest

from datagen.chat.client import Client
from datagen.chat.config import ChatRequest
from datagen.chat.errors import Failure, RunStoppedError
from datagen.chat.replies import ChatAnswer
from datagen.chat.store import AnswerStore
from tests.support.chat_runs import PRICE, ask, make_config, requests, rows
from tests.support.chat_server import FAULTS, ChatServer, question


@pytest.mark.parametrize("provider", ["openai", "anthropic"])
def test_answers_are_stored_and_never_asked_for_again(server, tmp_path, provider):
    config = make_config(server, provider=provider)
    got, client, error = ask(config, tmp_path / "s", requests(40))
    assert error is None
    assert {i: a.text for i, a in got.items()} == {i: f"answer to question {i}" for i in range(40)}
    assert all(a == ChatAnswer(a.text, "stop", "stand-in-1", a.id, 20, 7) for a in got.values())
    assert client.total.usd == pytest.approx(40 * PRICE, rel=1e-12)
    assert len(server.bodies) == 40
    again, client, _ = ask(config, tmp_path / "s", requests(40))
    assert again == got
    assert len(server.bodies) == 40, "nothing is sent again"
    assert client.counts == {"stored": 40}
    offline, *_ = ask(
        make_config(server, provider=provider, offline=True), tmp_path / "s", requests(41)
    )
    assert {i: offline[i] for i in range(40)} == got
    assert isinstance(offline[40], Failure) and "offline" in offline[40].reason
    assert len(server.bodies) == 40


def test_requests_may_wait_for_outcomes(server, tmp_path):
    got = []

    def asked():
        for i in range(6):
            while len(got) < i - 1:
                yield None
            yield i, ChatRequest("", f"question {i}", "v1")

    async def main(client):
        async with client:
            got.extend([tag async for tag, _ in client.stream(asked())])

    async def step_by_step(client):
        async with client:
            async for tag, _ in client.stream(asked()):
                got.append(tag)

    with AnswerStore(tmp_path / "s") as store:
        asyncio.run(step_by_step(Client(make_config(server), store, report=lambda _: None)))
        assert sorted(got) == list(range(6))
        assert server.most_at_once <= 2
        got.clear()
        asyncio.run(main(Client(make_config(server), store, report=lambda _: None)))
        assert got == [0, 1], "a request that waits for ever ends the stream"


# Faults.


@pytest.mark.parametrize("provider", ["openai", pytest.param("anthropic", marks=pytest.mark.slow)])
def test_thirty_percent_of_faults_change_nothing(tmp_path, provider):
    server = ChatServer(faults=0.3, seed=1)
    server.stall = 1.5
    config = make_config(server, provider=provider, concurrency=64, timeout_seconds=1.0)
    got, client, error = ask(config, tmp_path / "s", requests(1000))
    server.close()
    assert error is None
    assert {i: a.text for i, a in got.items()} == {
        i: f"answer to question {i}" for i in range(1000)
    }
    assert set(server.answered.values()) == {1}, "none is answered twice"
    assert len(server.answered) == 1000
    assert client.counts["answered"] == 1000
    # On a busy machine an attempt may be out of time before the server has read it.
    assert client.counts["retried"] >= len(server.bodies) - 1000 > 300
    reported = "SELECT sum(usd), count(*) FROM charges WHERE output_tokens = 7"
    ((usd, count),) = rows(tmp_path / "s", reported)
    assert count == server.charged and usd == pytest.approx(server.charged * PRICE, rel=1e-9)


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_that_stays_is_told_and_not_stored(tmp_path, fault):
    server = ChatServer(faults=1.0, kinds=(fault,))
    server.stall = 1.0
    config = make_config(server, attempts=2, timeout_seconds=0.5 if fault == "stall" else 10.0)
    got, client, error = ask(config, tmp_path / "s", requests(2))
    assert error is None
    assert all(isinstance(f, Failure) and "in 2 attempts" in f.reason for f in got.values())
    assert client.counts["failed"] == 2
    assert len(server.bodies) == 4
    server.faults = 0.0
    got, *_ = ask(config, tmp_path / "s", requests(2))
    assert [got[i].text for i in range(2)] == ["answer to question 0", "answer to question 1"]
    server.close()


def test_a_refused_request_among_others_is_told(server, tmp_path):
    serve = server._reply

    def one_refused(handler, body, fault):
        server.always = (400, {"error": {"message": "too long"}}) if "7" in question(body) else None
        serve(handler, body, fault)

    server._reply = one_refused
    got, client, error = ask(make_config(server, concurrency=1), tmp_path / "s", requests(10))
    assert error is None
    assert [i for i, outcome in got.items() if isinstance(outcome, Failure)] == [7]
    assert "too long" in got[7].reason
    assert client.counts["retried"] == 0


# Kills and signals.


@pytest.mark.slow
def test_killed_at_ten_moments(new_life, tmp_path):
    server = ChatServer(faults=0.3, seed=2)
    server.stall, server.delay = 1.5, 0.02
    moments, used = random.Random(3), set()
    for _ in range(10):
        life = new_life(server)
        used |= set(itertools.islice(life.lines, moments.randrange(70)))
        if moments.random() < 0.5:  # else right after a line
            time.sleep(moments.uniform(0.0, 0.06))
        life.signal(signal.SIGKILL)
        used |= {line for line in life.lines if line.endswith("\n")}
        assert life.wait() == -signal.SIGKILL
    with sqlite3.connect(tmp_path / "s") as connection:
        stored = {row[0] for row in connection.execute("SELECT request FROM answers")}
    stored = {question(json.loads(request)) for request in stored}
    assert 10 < len(stored) < 1000, "all lives but the last were cut short"
    assert {line.split("\t")[0] for line in used} <= {text.split()[-1] for text in stored}, (
        "what was used is on disk"
    )
    before = len(server.bodies)
    life = new_life(server)
    lines = life.lines.read().splitlines()
    assert life.wait() == 0
    server.close()
    assert sorted(lines, key=lambda x: int(x.split("\t")[0])) == [
        f"{i}\tanswer to question {i}" for i in range(1000)
    ]
    asked_again = {question(body) for body in server.bodies[before:]}
    assert not asked_again & stored
    with sqlite3.connect(tmp_path / "s") as connection:
        count, distinct = connection.execute(
            "SELECT count(*), count(DISTINCT key) FROM answers"
        ).fetchone()
        (charged,) = connection.execute(
            "SELECT count(*) FROM charges WHERE what = 'answer'"
        ).fetchone()
    assert (count, distinct, charged) == (1000, 1000, 1000)


def test_sigterm_keeps_what_is_on_its_way(new_life, tmp_path):
    server = ChatServer()
    server.delay = 0.3
    life = new_life(server)
    life.lines.readline()
    life.signal(signal.SIGTERM)
    rest = life.lines.read().splitlines()
    assert life.wait() == 1
    server.close()
    with sqlite3.connect(tmp_path / "s") as connection:
        (stored,) = connection.execute("SELECT count(*) FROM answers").fetchone()
    assert stored == len(server.bodies) == 1 + len(rest) < 1000


def test_a_second_signal_waits_for_nothing(new_life, tmp_path):
    server = ChatServer()
    life = new_life(server)
    life.lines.readline()
    server.delay = 0.9  # less than the client's timeout: else it would end by itself
    life.signal(signal.SIGINT)
    life.signal(signal.SIGTERM)  # another one: two of a kind may become one
    life.lines.read()
    assert life.wait() == -signal.SIGINT, "as KeyboardInterrupt ends a process"
    server.close()


# What ends a run.


@pytest.mark.parametrize(
    ("status", "message", "says"),
    [
        (401, "Incorrect API key provided: sk-secret-of-the-test", "OPENAI_API_KEY"),
        (404, "no such model", "the model 'stand-in'"),
        (429, "insufficient_quota", "add credit"),
        (400, "Unsupported parameter: temperature", "the model rejects a setting"),
        (400, "no reason", "every request so far is rejected"),
    ],
)
def test_a_hopeless_run_ends_at_once(server, tmp_path, status, message, says):
    server.always = (status, {"error": {"message": message, "code": message}})
    _, client, error = ask(make_config(server), tmp_path / "s", requests(500))
    assert isinstance(error, RunStoppedError) and says in str(error)
    assert message.split(":")[0] in str(error)
    assert len(server.bodies) <= 40, "some 16 at once, and what left before the replies came"
    assert client.counts["answered"] == 0


@pytest.mark.parametrize("fault", ["drop", "500"])
def test_a_server_that_never_answers_ends_the_run(tmp_path, fault):
    server = ChatServer(faults=1.0, kinds=(fault,))
    _, client, error = ask(make_config(server, attempts=2), tmp_path / "s", requests(500))
    assert isinstance(error, RunStoppedError) and "every request so far is given up" in str(error)
    assert 3 <= client.counts["given up"] <= 35 and len(server.bodies) <= 100
    server.close()


@pytest.mark.parametrize("status", [400, 500])
def test_the_few_that_fail_again_do_not_stop_a_later_run(server, tmp_path, status):
    config = make_config(server, attempts=1)
    ask(config, tmp_path / "s", requests(8))
    server.always = (status, {"error": {"message": "too long"}})
    got, _, error = ask(config, tmp_path / "s", requests(12))
    assert (
        error is None
        and [isinstance(got[i], Failure) for i in range(12)] == [False] * 8 + [True] * 4
    )
