"""Asking models over real HTTP, through the real SDKs, from a server that fails."""

import asyncio
import contextlib
import dataclasses
import itertools
import json
import os
import random
import signal
import sqlite3
import subprocess
import sys
import threading
import time

import pytest

from datagen.chat import client as chat_client
from datagen.chat import connection, errors, protocols
from datagen.chat.client import Client, Failure, run_until_done
from datagen.chat.config import ChatConfig, ChatRequest
from datagen.chat.errors import RunStoppedError
from datagen.chat.store import AnswerStore, ChatAnswer
from tests.conftest import REPOSITORY
from tests.support.chat_lives import requests
from tests.support.chat_server import FAULTS, ChatServer, openai_reply, question

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


def make_config(server: ChatServer | None, **changes) -> ChatConfig:
    settings = CONFIG | changes
    if server:
        path = "" if settings["provider"] == "anthropic" else "/v1"
        settings["base_url"] = server.url + path
    return ChatConfig(**settings)


@pytest.fixture
def server():
    server = ChatServer()
    yield server
    server.close()


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(chat_client, "INITIAL_BACKOFF", 0.01)
    monkeypatch.setattr(chat_client, "MAX_BACKOFF", 0.1)
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret-of-the-test")
    monkeypatch.setenv("ANTHROPIC_API_KEY", "sk-ant-secret-of-the-test")


def ask(config, path, asked, *, stop_after=None, report=lambda _: None):
    """(outcomes by tag, client, why it stopped) of asking all."""
    got, why = {}, None

    async def work(client):
        nonlocal why
        try:
            async for tag, outcome in client.stream(asked, total=len(asked)):
                assert tag not in got
                got[tag] = outcome
                if stop_after and len(got) == stop_after:
                    client.stop("enough")
        except ValueError as error:
            why = error

    async def main(client):
        async with client:
            await work(client)

    with AnswerStore(path, read_only=config.offline) as store:
        client = Client(config, store, report)
        asyncio.run(main(client))
        client.total = None if config.offline else store.total_spent()
    return got, client, why


@pytest.mark.parametrize("provider", ["openai", "anthropic"])
def test_answers_are_stored_and_never_asked_for_again(server, tmp_path, provider):
    config = make_config(server, provider=provider)
    got, client, why = ask(config, tmp_path / "s", requests(40))
    assert why is None
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


def test_half_a_surrogate_pair_in_an_answer_is_replaced(server, tmp_path):
    server.answer = lambda body: "a smile: \ud83d"
    got, _, why = ask(make_config(server), tmp_path / "s", requests(2))
    assert why is None and {a.text for a in got.values()} == {"a smile: \ufffd"}


@pytest.mark.parametrize("tokens", [-(10**6), 10**30, "7", True, 1.5])
def test_usage_that_is_nonsense_is_not_believed(tokens):
    reply = openai_reply("four")
    reply |= {"usage": {"prompt_tokens": tokens, "completion_tokens": 7}, "model": "\ud83d"}
    answer = protocols.read_reply("openai", {"messages": []}, reply)
    assert (answer.input_tokens, answer.output_tokens) == (len('{"messages": []}') // 4, 1)
    assert answer.usage_reported is False and answer.model == "\ufffd"


@pytest.mark.parametrize("content", [b"{", b"\xff", b"9" * 5_000, b"[" * 100_000])
def test_a_reply_that_is_no_json_is_asked_for_again(content):
    with pytest.raises(errors.RetryableError, match="not JSON"):
        connection._json(content)


def key_of(config, request):
    return protocols.key(config, request, protocols.body(config, request))


@pytest.mark.parametrize(
    "change",
    [
        {"model": "other"},
        {"max_tokens": 51},
        {"temperature": 0.0},
        {"extra_body": '{"seed": 1}'},
        {"reasoning_effort": "low"},
    ],
    ids=str,
)
def test_whatever_can_change_the_answer_is_asked_anew(server, change):
    one, other = make_config(server), make_config(server, **change)
    request = ChatRequest("s", "u", "v1")
    assert key_of(one, request) == key_of(make_config(server), request)
    keys = {
        key_of(one, request),
        key_of(other, request),
        key_of(one, ChatRequest("s", "u", "v2")),
        key_of(one, ChatRequest("s", "u", "v1", sample=1)),
        key_of(one, ChatRequest("s2", "u", "v1")),
        key_of(one, ChatRequest("", "su", "v1")),
        key_of(one, ChatRequest("s", "u", "v1", schema={"type": "object"})),
    }
    assert len(keys) == 7


def test_how_many_are_out_and_how_often_it_is_asked_do_not_change_the_key(server):
    keys = {
        key_of(make_config(server, **change), ChatRequest("s", "u", "v1"))
        for change in ({}, {"concurrency": 3}, {"attempts": 2}, {"budget_usd": 1.0})
    }
    assert len(keys) == 1


# Faults.


@pytest.mark.parametrize("provider", ["openai", "anthropic"])
def test_thirty_percent_of_faults_change_nothing(tmp_path, provider):
    server = ChatServer(faults=0.3, seed=1)
    server.stall = 1.5
    config = make_config(server, provider=provider, concurrency=64, timeout_seconds=1.0)
    got, client, why = ask(config, tmp_path / "s", requests(2000))
    server.close()
    assert why is None
    assert {i: a.text for i, a in got.items()} == {
        i: f"answer to question {i}" for i in range(2000)
    }
    assert set(server.answered.values()) == {1}, "none is answered twice"
    assert len(server.answered) == 2000
    assert client.counts["answered"] == 2000
    # On a busy machine an attempt may be out of time before the server has read it.
    assert client.counts["retried"] >= len(server.bodies) - 2000 > 600
    assert client.total.usd == pytest.approx(server.charged * PRICE, rel=1e-9)
    assert client.total.tokens == server.charged * 27


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_that_stays_is_told_and_not_stored(tmp_path, fault):
    server = ChatServer(faults=1.0, kinds=(fault,))
    server.stall = 1.0
    config = make_config(server, attempts=2, timeout_seconds=0.5 if fault == "stall" else 10.0)
    got, client, why = ask(config, tmp_path / "s", requests(2))
    assert why is None
    assert all(isinstance(f, Failure) and "in 2 attempts" in f.reason for f in got.values())
    assert client.counts["failed"] == 2
    assert len(server.bodies) == 4
    server.faults = 0.0
    got, *_ = ask(config, tmp_path / "s", requests(2))
    assert [got[i].text for i in range(2)] == ["answer to question 0", "answer to question 1"]
    server.close()


class Life:
    """A client's process that asks 2,000 questions; `lines` reads what it uses."""

    def __init__(self, parent, config, store, fifo):
        self._parent = parent
        wanted = {"config": dataclasses.asdict(config), "store": str(store), "fifo": str(fifo)}
        os.mkfifo(fifo)
        print(json.dumps(wanted), file=parent.stdin, flush=True)
        self.lines = open(fifo)  # noqa: SIM115 - read by the test
        self.number = int(parent.stdout.readline())

    def signal(self, number):
        os.kill(self.number, number)

    def wait(self) -> int:
        self.lines.close()
        return int(self._parent.stdout.readline())


@pytest.fixture(scope="module")
def parent():
    command = [sys.executable, "-m", "tests.support.chat_lives"]
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    pipe = subprocess.PIPE
    with subprocess.Popen(
        command, cwd=REPOSITORY, env=environment, stdin=pipe, stdout=pipe, text=True
    ) as process:
        yield process
        process.stdin.close()


@pytest.fixture
def new_life(parent, tmp_path):
    numbers = itertools.count()

    def start(server):
        config = make_config(server, concurrency=32, timeout_seconds=1.0)
        return Life(parent, config, tmp_path / "s", tmp_path / f"fifo {next(numbers)}")

    return start


@pytest.mark.slow
def test_killed_at_twenty_moments(new_life, tmp_path):
    server = ChatServer(faults=0.3, seed=2)
    server.stall, server.delay = 1.5, 0.02
    moments, used = random.Random(3), set()
    for _ in range(20):
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
    assert 20 < len(stored) < 2000, "all lives but the last were cut short"
    assert {line.split("\t")[0] for line in used} <= {text.split()[-1] for text in stored}, (
        "what was used is on disk"
    )
    before = len(server.bodies)
    life = new_life(server)
    lines = life.lines.read().splitlines()
    assert life.wait() == 0
    server.close()
    assert sorted(lines, key=lambda x: int(x.split("\t")[0])) == [
        f"{i}\tanswer to question {i}" for i in range(2000)
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
    assert (count, distinct, charged) == (2000, 2000, 2000)


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
    assert stored == len(server.bodies) == 1 + len(rest) < 2000


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


# Rates.


def test_requests_are_kept_below_the_servers_limit(tmp_path):
    server = ChatServer()
    server.delay = 0.02
    refused, lock = [], threading.Lock()
    serve = server._reply

    def at_most_four(handler, body, fault):
        with lock:
            over = server._at_once > 4
        refused.append(over)
        serve(handler, body, "429" if over else "")

    server._reply = at_most_four
    got, *_ = ask(make_config(server, concurrency=64), tmp_path / "s", requests(300))
    server.close()
    assert len(got) == 300 and not any(isinstance(a, Failure) for a in got.values())
    assert sum(refused[-150:]) < 60, "it has learnt the limit"


def test_retry_after_pauses_everybody(server, tmp_path):
    serve, times = server._reply, []

    def first_refused(handler, body, fault):
        times.append(time.monotonic())
        serve(handler, body, "429 after" if len(times) == 1 else "")

    server._reply = first_refused
    config = make_config(server, concurrency=1)
    ask(config, tmp_path / "s", requests(5))
    assert times[1] - times[0] >= 0.05


def test_headers_that_say_nothing_is_left_are_believed(server, tmp_path):
    server.headers = {
        "x-ratelimit-remaining-requests": "0",
        "x-ratelimit-reset-requests": "200ms",
    }
    start = time.monotonic()
    ask(make_config(server, concurrency=1), tmp_path / "s", requests(3))
    assert time.monotonic() - start >= 0.4


# What ends a run.


@pytest.mark.parametrize(
    ("status", "message", "says"),
    [
        (401, "Incorrect API key provided: sk-secret-of-the-test", "OPENAI_API_KEY"),
        (404, "no such model", "the model 'stand-in'"),
        (429, "insufficient_quota", "add credit"),
        (400, "Unsupported parameter: temperature", "every request so far is rejected"),
    ],
)
def test_a_hopeless_run_ends_at_once(server, tmp_path, status, message, says):
    server.always = (status, {"error": {"message": message, "code": message}})
    _, client, why = ask(make_config(server), tmp_path / "s", requests(500))
    assert isinstance(why, RunStoppedError) and says in str(why)
    assert message.split(":")[0] in str(why)
    assert len(server.bodies) <= 40, "some 16 at once, and what left before the replies came"
    assert client.counts["answered"] == 0


@pytest.mark.parametrize("fault", ["drop", "500"])
def test_a_server_that_never_answers_ends_the_run(tmp_path, fault):
    server = ChatServer(faults=1.0, kinds=(fault,))
    _, client, why = ask(make_config(server, attempts=2), tmp_path / "s", requests(500))
    assert isinstance(why, RunStoppedError) and "every request so far is given up" in str(why)
    assert 3 <= client.counts["given up"] <= 32 and len(server.bodies) <= 100
    server.close()


def test_no_server_at_all_is_told_as_such(tmp_path):
    server = ChatServer()
    server.close()
    _, _, why = ask(make_config(server, attempts=1), tmp_path / "s", requests(20))
    assert "connection: Cannot connect" in str(why)


@pytest.mark.parametrize("status", [400, 500])
def test_the_few_that_fail_again_do_not_stop_a_later_run(server, tmp_path, status):
    config = make_config(server, attempts=1)
    ask(config, tmp_path / "s", requests(8))
    server.always = (status, {"error": {"message": "too long"}})
    got, _, why = ask(config, tmp_path / "s", requests(12))
    assert (
        why is None and [isinstance(got[i], Failure) for i in range(12)] == [False] * 8 + [True] * 4
    )


def test_the_key_is_nowhere_but_in_its_header(server, tmp_path):
    server.always = (401, {"error": {"message": "Incorrect API key: sk-secret-of-the-test"}})
    _, _, why = ask(make_config(server), tmp_path / "s", requests(1))
    assert "secret" not in str(why) and "[key]" in str(why)
    server.always = None
    ask(make_config(server), tmp_path / "s", requests(1))
    assert server.authorization == {"Bearer sk-secret-of-the-test"}
    for path in tmp_path.iterdir():
        assert b"secret" not in path.read_bytes(), path


def test_an_error_is_cut_after_the_key_is_gone(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "plain-key-without-a-prefix")
    said = connection.short_text(ValueError("x" * 290 + " plain-key-without-a-prefix"))
    assert said == "x" * 290 + " [key]"
    assert connection.short_text(ValueError()) == "ValueError"


def test_a_refused_request_among_others_is_told(server, tmp_path):
    serve = server._reply

    def one_refused(handler, body, fault):
        server.always = (400, {"error": {"message": "too long"}}) if "7" in question(body) else None
        serve(handler, body, fault)

    server._reply = one_refused
    got, client, why = ask(make_config(server, concurrency=1), tmp_path / "s", requests(10))
    assert why is None
    assert [i for i, outcome in got.items() if isinstance(outcome, Failure)] == [7]
    assert "too long" in got[7].reason
    assert client.counts["retried"] == 0


@pytest.mark.parametrize("cap", [{"budget_usd": 30 * PRICE}, {"budget_tokens": 30 * 27}])
def test_the_budget_is_never_passed_and_a_larger_one_goes_on(server, tmp_path, cap):
    got, client, why = ask(make_config(server, **cap), tmp_path / "s", requests(100))
    assert isinstance(why, RunStoppedError) and "budget is reached" in str(why)
    assert client.total.usd <= 30 * PRICE and client.total.tokens <= 30 * 27
    assert 20 <= len(got) == len(server.bodies) <= 30
    got, client, why = ask(make_config(server, budget_usd=1.0), tmp_path / "s", requests(100))
    assert why is None and len(got) == len(server.bodies) == 100
    assert client.total.usd == pytest.approx(100 * PRICE)


def test_a_budget_without_a_price_is_an_error(server, tmp_path):
    config = make_config(server, price_input=None, price_output=None, budget_usd=1.0)
    with AnswerStore(tmp_path / "s") as store, pytest.raises(ValueError, match="price_input"):
        Client(config, store)


def test_replies_without_a_price_are_told_where_a_budget_is_set(server, tmp_path):
    free = make_config(server, price_input=None, price_output=None)
    ask(free, tmp_path / "s", requests(2))
    told = []
    with AnswerStore(tmp_path / "s") as store:
        client = Client(make_config(server, budget_usd=1.0), store, told.append)
        run_until_done(client, lambda: client.ask_all(requests(0)))
    assert "2 replies so far have no known price; budget_usd does not count them" in told


# The store.


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


def test_two_runs_do_not_share_a_store(tmp_path):
    with AnswerStore(tmp_path / "s"), pytest.raises(OSError, match="another run"):
        AnswerStore(tmp_path / "s")
    AnswerStore(tmp_path / "s").close()


def test_what_is_no_store_is_told(tmp_path):
    (tmp_path / "s").write_text("not a database, but a text that is long enough to be read as one")
    with pytest.raises(OSError, match="not a database"):
        AnswerStore(tmp_path / "s")
    (tmp_path / "folder").mkdir()
    with pytest.raises(OSError, match="make room, or make it writable"):
        AnswerStore(tmp_path / "folder")


# What is sent.


def body(**changes):
    request = ChatRequest("sys", "usr", "v1", schema=changes.pop("schema", None))
    return protocols.body(make_config(None, **changes), request)


def test_bodies_hold_what_the_config_says_and_no_more():
    messages = [{"role": "system", "content": "sys"}, {"role": "user", "content": "usr"}]
    openai = {"model": "stand-in", "messages": messages, "max_completion_tokens": 50}
    assert body() == openai
    assert "max_tokens" in body(base_url="http://localhost:1/v1")
    settings = {"temperature": 1.0, "top_p": 0.9, "presence_penalty": 1.5}
    assert body(**settings, reasoning_effort="low") == openai | settings | {
        "reasoning_effort": "low"
    }
    assert body(extra_body='{"top_k": 5}') == openai | {"top_k": 5}
    anthropic = {
        "model": "stand-in",
        "max_tokens": 50,
        "system": "sys",
        "messages": [{"role": "user", "content": "usr"}],
    }
    assert body(provider="anthropic") == anthropic
    schema = {"type": "object"}
    assert body(provider="anthropic", schema=schema)["output_config"] == {
        "format": {"type": "json_schema", "schema": schema}
    }
    assert body(schema=schema)["response_format"]["json_schema"]["schema"] == schema


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"provider": "opnai"}, "choose from openai, anthropic"),
        ({"concurrency": 0}, "concurrency must be above 0"),
        ({"base_url": "http://me:pass@host"}, "no password"),
        ({"base_url": "http://host/v1?key=secret"}, "no password"),
        ({"base_url": "localhost:8000"}, "not http://"),
        ({"timeout_seconds": float("nan")}, "timeout_seconds must be above 0"),
        ({"price_input": -1.0}, "at least 0"),
        ({"extra_body": "[1]"}, "not a JSON object"),
        ({"price_output": None}, "or neither"),
    ],
)
def test_a_bad_config_is_told(change, says):
    with pytest.raises(ValueError, match=says):
        make_config(None, **change)


def test_refusals_and_cuts_are_answers_of_their_own_kind(server, tmp_path):
    read = protocols.read_reply
    usage = {"prompt_tokens": 3, "completion_tokens": 4}
    choice = {"finish_reason": "length", "message": {"content": "half an"}}
    assert read("openai", {}, {"choices": [choice], "usage": usage}).finish_reason == "length"
    choice = {"finish_reason": "stop", "message": {"content": None, "refusal": "I will not"}}
    refused = read("openai", {}, {"choices": [choice], "usage": usage})
    assert (refused.text, refused.finish_reason) == ("I will not", "refusal")
    reply = {"content": [], "stop_reason": "refusal", "usage": {"input_tokens": 1}}
    assert read("anthropic", {}, reply).finish_reason == "refusal"
    choice = {"finish_reason": "stop", "message": {"content": "four"}}
    unknown = read("openai", {}, {"choices": [choice]})
    assert not unknown.usage_reported and unknown.output_tokens == 1
