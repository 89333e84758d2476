"""Both batch APIs over real HTTP, through the real SDKs: nothing is sent twice, nothing is lost."""

import asyncio
import importlib
import os
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
import time
import types

import pytest

from datagen.chat import batch_log, batch_protocols, batches
from datagen.chat import client as chat_client
from datagen.chat import config as chat_config
from datagen.chat.client import Client, Failure, run_until_done
from datagen.chat.errors import RunStoppedError
from datagen.chat.store import AnswerStore, ChatAnswer
from tests.conftest import REPOSITORY
from tests.datagen.chat.test_client import PRICE, ask, make_config
from tests.support.batch_server import BatchServer
from tests.support.chat_lives import requests

HALF = PRICE / 2

pytestmark = pytest.mark.filterwarnings("error::pytest.PytestUnraisableExceptionWarning")


@pytest.fixture(params=["openai", "anthropic"])
def provider(request):
    return request.param


@pytest.fixture
def server():
    server = BatchServer()
    yield server
    server.close()


@pytest.fixture(autouse=True, scope="module")
def imported():
    """The SDKs, so that no test waits for one while a timer runs."""
    for name in chat_config.API_KEY_VARIABLES:
        importlib.import_module(name)


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    quicken(monkeypatch)


def quicken(monkeypatch):
    monkeypatch.setattr(batches, "QUIET_SECONDS", 0.02)
    monkeypatch.setattr(batches, "SETTLE_SECONDS", 0.0)
    monkeypatch.setattr(batches, "INITIAL_RESUBMIT_BACKOFF", 0.01)
    monkeypatch.setattr(batches, "MAX_RESUBMIT_BACKOFF", 10.0)  # a test that waits for it fails
    monkeypatch.setattr(chat_client, "INITIAL_BACKOFF", 0.01)
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret-of-the-test")
    monkeypatch.setenv("ANTHROPIC_API_KEY", "sk-ant-secret-of-the-test")


def batched(server, provider="openai", **changes):
    settings = {"batch": True, "poll_seconds": 0.01, "attempts": 4, "provider": provider}
    return make_config(server, **settings | changes)


def texts(count, first=0):
    return {i: f"answer to question {i}" for i in range(first, count)}


def said(got):
    return {i: outcome.text for i, outcome in got.items() if isinstance(outcome, ChatAnswer)}


def rows(path, query):
    with sqlite3.connect(path) as connection:
        return connection.execute(query).fetchall()


def nothing_open(path):
    left = rows(path, "SELECT key FROM batch_requests")
    return not left and not rows(path, "SELECT name FROM batches WHERE state = 'open'")


# The common case.


def test_answers_come_at_half_price_from_as_many_batches_as_it_takes(server, tmp_path, provider):
    config = batched(server, provider, batch_requests=15)
    got, client, why = ask(config, tmp_path / "s", requests(40))
    assert why is None and said(got) == texts(40)
    assert sorted(len(b["lines"]) for b in server.batches.values()) == [10, 15, 15]
    assert set(server.submitted.values()) == {1} and not server.bodies
    assert client.total.usd == pytest.approx(40 * HALF, rel=1e-12) and client.total.tokens == 1080
    assert client.budget.usd == pytest.approx(client.total.usd)
    assert (client.budget._reserved_usd, client.budget._reserved_tokens) == pytest.approx((0, 0))
    assert nothing_open(tmp_path / "s")
    again, *_ = ask(
        make_config(server, provider=provider, offline=True), tmp_path / "s", requests(40)
    )
    assert again == got


def test_what_is_sent_in_a_batch_is_what_is_sent_alone(server, tmp_path, provider):
    ask(batched(server, provider), tmp_path / "a", requests(1))
    ask(make_config(server, provider=provider), tmp_path / "b", requests(1))
    (batch,) = server.batches.values()
    assert [line[batch["body"]] for line in batch["lines"]] == server.bodies
    same = "SELECT key, request FROM answers"
    assert rows(tmp_path / "a", same) == rows(tmp_path / "b", same)


def test_a_batch_is_cut_by_its_bytes_too(server, tmp_path, provider, monkeypatch):
    protocol = batch_protocols.BATCH_PROTOCOLS[provider]
    monkeypatch.setattr(protocol, "max_bytes", 2000)
    got, *_ = ask(batched(server, provider), tmp_path / "s", requests(30))
    assert said(got) == texts(30)
    assert len(server.batches) > 2
    assert 1000 < max(server.sizes) <= 2000


def test_answers_may_hold_every_kind_of_line_end(server, tmp_path, provider):
    odd = "one\u2028two\x85three\x0cfour\r\nfive"
    server.answer = lambda body: odd
    got, *_ = ask(batched(server, provider), tmp_path / "s", requests(2))
    assert said(got) == {0: odd, 1: odd}


# What goes wrong inside a batch.


def test_each_request_has_its_own_fate(server, tmp_path, provider):
    fates = dict(enumerate(["500", "expired", "missing", "blocked", "400"]))
    seen = set()

    def outcome(question):
        number = int(question.split()[-1])
        again = server.submitted[question] > 1
        seen.add(number)
        return "ok" if again and fates.get(number) != "400" else fates.get(number, "ok")

    server.outcome = outcome
    got, client, why = ask(batched(server, provider), tmp_path / "s", requests(20))
    assert why is None and seen == set(range(20))
    assert said(got) == {i: text for i, text in texts(20).items() if i != 4}
    assert isinstance(got[4], Failure) and "not so" in got[4].reason
    assert len(server.batches) == 2
    assert {q for q, n in server.submitted.items() if n == 2} == {f"question {i}" for i in range(4)}
    assert client.counts["retried"] == 4 and client.counts["answered"] == 19
    assert client.total.usd == pytest.approx(20 * HALF), "the blocked reply is paid"
    assert server.charged == 20 and nothing_open(tmp_path / "s")


def test_what_always_fails_is_given_up(server, tmp_path, provider):
    server.outcome = lambda question: "expired" if question.endswith(" 1") else "ok"
    got, _, why = ask(batched(server, provider), tmp_path / "s", requests(3))
    assert why is None and "in 4 attempts" in got[1].reason and "expired" in got[1].reason
    assert server.submitted == {"question 0": 1, "question 1": 4, "question 2": 1}


def test_when_all_are_refused_the_run_ends(server, tmp_path, provider):
    server.outcome = lambda question: "400"
    _, _, why = ask(batched(server, provider), tmp_path / "s", requests(10))
    assert isinstance(why, RunStoppedError) and "every request so far is rejected" in str(why)
    assert nothing_open(tmp_path / "s")


def test_a_cancelled_batch_ends_the_run_and_the_next_asks_the_rest(server, tmp_path, provider):
    server.outcome = lambda q: "ok" if int(q.split()[-1]) < 3 else "cancelled"
    _, _, why = ask(batched(server, provider), tmp_path / "s", requests(6))
    assert isinstance(why, RunStoppedError) and "cancelled at the provider" in str(why)
    server.outcome = lambda q: "ok"
    got, *_ = ask(batched(server, provider), tmp_path / "s", requests(6))
    assert said(got) == texts(6)
    assert server.submitted == {f"question {i}": 1 + (i >= 3) for i in range(6)}


@pytest.mark.parametrize("cut", ["cut", "short"])
def test_results_that_are_cut_are_read_again(server, tmp_path, provider, cut, monkeypatch):
    monkeypatch.setattr(batch_log, "CHUNK_SIZE", 10)  # so that some are stored before the cut
    server.polls, blocked = [cut], {f"question {i}" for i in range(0, 60, 2)}
    server.outcome = lambda q: "blocked" if q in blocked and server.submitted[q] == 1 else "ok"
    got, client, why = ask(batched(server, provider), tmp_path / "s", requests(60))
    assert why is None and said(got) == texts(60) and not server.polls
    assert client.total.usd == pytest.approx(90 * HALF), "blocked replies cost, too"
    assert server.submitted == {f"question {i}": 1 + (i % 2 == 0) for i in range(60)}


def test_a_key_in_a_result_is_not_told(provider, monkeypatch):
    monkeypatch.setenv(chat_config.API_KEY_VARIABLES[provider], "plain-secret-key")
    connection = types.SimpleNamespace(config=batched(None, provider))
    protocol = batch_protocols.BATCH_PROTOCOLS[provider](connection)
    said = "Incorrect key plain-secret-key"
    if provider == "openai":
        failed = protocol._failed([{"message": said}]).failure
        told = [failed, protocol._failed([{"message": said, "line": 1}]).rejected[0]]
        errors = [{"code": "oh", "message": said}, None]
        replies = [None, {"status_code": 401, "body": {"error": {"message": said}}}]
        results = [{"response": r, "error": e} for r, e in zip(replies, errors, strict=True)]
    else:
        told = []
        error = {"type": "authentication_error", "message": said}
        results = [{"result": {"type": "errored", "error": error}}]
    told += [protocol.read({"custom_id": "x"} | result)[1] for result in results]
    for text in map(str, told):
        assert "secret" not in text and "Incorrect key [key]" in text


# Submissions.


@pytest.mark.parametrize("happens", ["500", "500 made", "429", "silent"])
def test_a_submission_that_fails_is_looked_for_and_sent_again(server, tmp_path, provider, happens):
    server.submissions, server.stall = [happens], 0.3
    for _ in range(3):  # others' batches in the same workspace, some as large
        server.batches[f"batch-{len(server.batches) + 1}"] = others_batch(len(server.batches) + 3)
    config = batched(server, provider, timeout_seconds=0.2)
    got, client, why = ask(config, tmp_path / "s", requests(5))
    assert why is None and said(got) == texts(5)
    assert set(server.submitted.values()) == {1}, "made once"
    assert client.total.usd == pytest.approx(5 * HALF) and nothing_open(tmp_path / "s")


def others_batch(size):
    lines = [
        {"custom_id": f"x-{i}", "params": {"messages": [{"content": "x"}]}} for i in range(size)
    ]
    batch = {"id": f"batch-{size - 2}", "lines": lines, "body": "params", "looks": 0}
    return batch | {"time": time.time(), "failed": None, "metadata": None}


def test_no_batch_is_sent_for_ever(server, tmp_path, provider):
    server.submissions = ["429"] * 9
    _, _, why = ask(batched(server, provider), tmp_path / "s", requests(5))
    assert isinstance(why, RunStoppedError) and "no batch was accepted in 4 attempts" in str(why)
    assert len(server.submissions) == 5 and nothing_open(tmp_path / "s")


def test_a_full_queue_is_waited_for(server, tmp_path):
    full = [{"code": "token_limit_exceeded", "message": "Enqueued token limit reached"}]
    server.fail = [None, full, full]
    config = batched(server, batch_requests=10, attempts=2)
    got, _, why = ask(config, tmp_path / "s", requests(20))
    assert why is None and said(got) == texts(20)
    assert set(server.submitted.values()) == {1} and len(server.batches) == 4
    server.fail = [None, None, full]
    got, _, why = ask(config, tmp_path / "s", requests(50))
    assert why is None and said(got) == texts(50) and len(server.batches) == 8


def released(server, expected):
    """Holds all batches until so many submissions have come, or for long if they do not come."""
    server.held, seen = True, []
    late = threading.Timer(3.0, lambda: (seen.append("too late"), server.release()))

    def at(what):
        if what != "submission":
            return
        seen.append("sent")
        if len(seen) == 1:
            late.start()
        if len(seen) == expected:
            late.cancel()
            server.release()

    server.moment = at
    return seen


def test_the_first_batch_that_ends_makes_room(server, tmp_path):
    server.fail = [None, None, [{"code": "token_limit_exceeded", "message": "full"}]]
    seen = released(server, 4)

    def report(line):
        if "was not accepted" in line:
            server.batches["batch-1"]["looks"] = 9

    config = batched(server, batch_requests=5)
    got, *_ = ask(config, tmp_path / "s", requests(15), report=report)
    assert said(got) == texts(15) and seen == ["sent"] * 4, "while the second is worked on"


def test_batches_of_our_own_are_not_taken_for_the_lost_one(server, tmp_path):
    server.submissions = ["", "500"]
    seen = released(server, 3)
    config = batched(server, "anthropic", batch_requests=5)
    got, *_ = ask(config, tmp_path / "s", requests(10))
    assert said(got) == texts(10) and seen == ["sent"] * 3


def test_lines_that_are_not_taken_are_told_and_the_rest_sent_again(server, tmp_path):
    server.fail = [[{"code": "invalid", "message": "too many cooks", "line": 3}]]
    got, _, why = ask(batched(server), tmp_path / "s", requests(5))
    assert why is None and got[2].reason == "too many cooks"
    assert said(got) == {i: text for i, text in texts(5).items() if i != 2}


def test_a_batch_that_fails_as_a_whole_ends_the_run(server, tmp_path):
    server.fail = [[{"code": "billing_hard_limit_reached", "message": "Billing limit reached"}]]
    _, _, why = ask(batched(server), tmp_path / "s", requests(5))
    assert isinstance(why, RunStoppedError) and "Billing limit reached" in str(why)
    assert nothing_open(tmp_path / "s")


@pytest.mark.parametrize("status", ["400", "404"])
def test_a_server_without_batches_is_told(server, tmp_path, provider, status):
    server.submissions = [status]
    _, _, why = ask(batched(server, provider), tmp_path / "s", requests(5))
    assert isinstance(why, RunStoppedError) and "try batch=False" in str(why)
    assert nothing_open(tmp_path / "s") and not server.submissions


def test_a_look_that_fails_is_taken_again(server, tmp_path, provider, monkeypatch):
    server.polls = ["500", "500"]
    got, *_ = ask(batched(server, provider), tmp_path / "s", requests(3))
    assert said(got) == texts(3) and not server.polls
    monkeypatch.setattr(batches, "OUTAGE_SECONDS", 0.1)
    server.polls = ["500"] * 1000
    _, _, why = ask(batched(server, provider), tmp_path / "s", requests(6))
    assert (
        isinstance(why, RunStoppedError)
        and "cannot be read" in str(why)
        and "next run collects" in str(why)
    )
    server.polls = []
    got, *_ = ask(batched(server, provider), tmp_path / "s", requests(6))
    assert said(got) == texts(6) and set(server.submitted.values()) == {1}


def test_a_batch_may_be_long_in_turning_up(server, tmp_path, provider, monkeypatch):
    monkeypatch.setattr(batches, "SETTLE_SECONDS", 0.4)
    server.submissions, server.hidden = ["500 made"], 0.2
    got, *_ = ask(batched(server, provider), tmp_path / "s", requests(5))
    assert said(got) == texts(5) and len(server.batches) == 1


# Over several runs.


def image(path, folder):
    """What a kill at this moment would leave on the disk."""
    folder.mkdir()
    for file in path.parent.glob("s*"):
        if not file.name.endswith(".lock"):
            shutil.copy(file, folder / file.name)
    return folder / "s"


MOMENTS = ["before it is sent", "no reply", "made", "ended", "partly collected", "collected"]


@pytest.mark.parametrize("moment", MOMENTS)
def test_after_a_kill_at_any_moment_nothing_is_sent_again(
    server, tmp_path, provider, moment, monkeypatch
):
    path = tmp_path / "s"
    left = tmp_path / "left"
    monkeypatch.setattr(batch_log, "CHUNK_SIZE", 10)

    def kill():
        if not left.exists():
            image(path, left)

    def on_server(what):
        stages = {"submission": "no reply", "look": "made", "download": "ended"}
        if stages[what] == moment:
            kill()

    server.moment = on_server
    for name, stage in (
        ("record", MOMENTS[0]),
        ("_store_replies", MOMENTS[4]),
        ("close", MOMENTS[5]),
    ):
        if stage == moment:
            real = getattr(batch_log.BatchLog, name)

            async def around(self, *given, real=real):
                if real.__name__ != "_store_replies":
                    kill()
                result = await real(self, *given)
                kill()
                return result

            monkeypatch.setattr(batch_log.BatchLog, name, around)
    ask(batched(server, provider), path, requests(40))
    assert len(server.batches) == 1 and left.exists()
    monkeypatch.undo()
    quicken(monkeypatch)
    if moment == MOMENTS[0]:
        server.batches.clear()
        server.submitted.clear()
    told = []
    got, client, why = ask(batched(server, provider), left / "s", requests(44), report=told.append)
    assert why is None and said(got) == texts(44)
    assert len(server.batches) == 2 - (moment == MOMENTS[0])
    assert set(server.submitted.values()) == {1}
    assert client.total.usd == pytest.approx(44 * HALF), "each is charged once"
    assert nothing_open(left / "s")
    assert any("earlier run" in line for line in told) == (moment != MOMENTS[0])


KILLED = """
import sys
from datagen.chat import batches
from datagen.chat.config import ChatConfig
from datagen.chat.client import Client, run_until_done
from datagen.chat.store import AnswerStore
sys.path.insert(0, ".")
from tests.datagen.chat.test_client import CONFIG
from tests.support.chat_lives import requests
from pathlib import Path
batches.QUIET_SECONDS = 0.02
changes = {"provider": sys.argv[1], "base_url": sys.argv[2], "batch": True, "poll_seconds": 0.01}

async def work():
    async for tag, outcome in client.stream(requests(300)):
        pass

with AnswerStore(Path(sys.argv[3])) as store:
    client = Client(ChatConfig(**CONFIG | changes), store)
    run_until_done(client, work)
"""


def test_killed_before_the_reply_to_a_submission(tmp_path):
    server = BatchServer()
    server.submissions, server.stall = ["silent"], 60.0
    command = [sys.executable, "-c", KILLED, "anthropic", server.url, str(tmp_path / "s")]
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    process = subprocess.Popen(command, cwd=REPOSITORY, env=environment)
    assert server.made.wait(60)
    process.kill()
    process.wait()
    left = rows(tmp_path / "s", "SELECT id, requests FROM batches WHERE state = 'open'")
    assert left == [(None, 300)]
    got, client, _ = ask(batched(server, "anthropic"), tmp_path / "s", requests(300))
    server.close()
    assert said(got) == texts(300)
    assert len(server.batches) == 1 and set(server.submitted.values()) == {1}
    assert client.total.usd == pytest.approx(300 * HALF)


def left_at_the_provider(config, server, path, count):
    """Asks, and ends the run when all is at the provider; why it ended."""
    server.held, why = True, []

    async def main(client):
        async with client:
            asking = asyncio.ensure_future(anext(client.stream(requests(count))))
            while not (server.made.is_set() and client._batches._log.ids()):
                await asyncio.sleep(0.005)
            client.stop("enough")
            with pytest.raises(RunStoppedError) as ended:
                await asking
            why.append(str(ended.value))

    with AnswerStore(path) as store:
        asyncio.run(main(Client(config, store, report=lambda _: None)))
    server.made.clear()
    return why[0]


def test_ctrl_c_says_that_the_batch_goes_on(server, tmp_path, provider):
    server.held, told = True, []

    async def work():
        with pytest.raises(RunStoppedError, match=r"\(1 with 5 requests\); the next run"):
            async for _ in client.stream(requests(5)):
                pass

    def stop():
        server.made.wait(10)
        os.kill(os.getpid(), signal.SIGTERM)

    with AnswerStore(tmp_path / "s") as store:
        client = Client(batched(server, provider), store, report=told.append)
        threading.Thread(target=stop).start()
        run_until_done(client, work)
    assert rows(tmp_path / "s", "SELECT id FROM batches") == [("batch-1",)], "its id is stored"
    assert not any("waiting for the replies" in line for line in told)
    server.release()
    got, *_ = ask(batched(server, provider), tmp_path / "s", requests(5))
    assert said(got) == texts(5) and set(server.submitted.values()) == {1}


@pytest.mark.parametrize("batch", [True, False])
def test_what_is_in_an_open_batch_is_sent_in_no_other_way(server, tmp_path, provider, batch):
    left_at_the_provider(batched(server, provider), server, tmp_path / "s", 5)
    threading.Timer(0.3, server.release).start()
    config = batched(server, provider, batch=batch)
    got, client, why = ask(config, tmp_path / "s", requests(8))
    assert why is None and said(got) == texts(8)
    assert set(server.submitted.values()) == {1} and len(server.submitted) == (8 if batch else 5)
    assert len(server.bodies) == (0 if batch else 3)
    assert client.total.usd == pytest.approx((8 if batch else 11) * HALF)


def test_a_run_that_asks_something_else_collects_it_too(server, tmp_path, provider):
    left_at_the_provider(batched(server, provider), server, tmp_path / "s", 5)
    server.release()
    config = batched(
        server, provider, batch=False, model="another", price_input=9.0, price_output=9.0
    )
    ask(config, tmp_path / "s", [])
    assert rows(tmp_path / "s", "SELECT model, usd FROM charges") == 5 * [
        ("stand-in", pytest.approx(HALF))
    ]
    offline = make_config(server, provider=provider, offline=True)
    got, *_ = ask(offline, tmp_path / "s", requests(5))
    assert said(got) == texts(5)


def test_a_batch_at_another_provider_is_left_alone(server, tmp_path):
    left_at_the_provider(batched(server, "openai"), server, tmp_path / "s", 5)
    told = []
    most = rows(tmp_path / "s", "SELECT usd FROM batches")[0][0]
    config = make_config(server, provider="anthropic", budget_usd=most + 0.01)
    got, client, _ = ask(config, tmp_path / "s", requests(2), report=told.append)
    assert said(got) == texts(2) and any("is left open" in line for line in told)
    assert client.budget.caps[0] == pytest.approx(0.01)
    server.release()
    got, *_ = ask(batched(server, "openai"), tmp_path / "s", requests(5))
    assert said(got) == texts(5) and len(server.batches) == 1


def test_nothing_is_sent_again_before_it_is_certain_that_it_did_not_arrive(server, tmp_path):
    path = tmp_path / "s"
    server.moment = lambda what: what == "submission" and image(path, tmp_path / "left")
    server.submissions = ["400"]
    ask(batched(server, "anthropic"), path, requests(5))
    server.moment = lambda what: None
    server.batches["batch-1"] = others_batch(3) | {"lines": others_batch(5)["lines"]}
    server.held, made_at = True, []
    release = threading.Timer(0.4, lambda: (made_at.append(len(server.batches)), server.release()))
    release.start()
    told = []
    got, *_ = ask(
        batched(server, "anthropic"), tmp_path / "left" / "s", requests(5), report=told.append
    )
    assert made_at == [1], "batch-1 of somebody else may be ours until it has ended"
    assert said(got) == texts(5) and len(server.batches) == 2
    assert sum("may be batch-1" in line for line in told) == 1


def test_results_that_the_provider_has_deleted_are_told_and_counted(server, tmp_path, provider):
    left_at_the_provider(batched(server, provider), server, tmp_path / "s", 5)
    server.release()
    if provider == "anthropic":
        server.batches["batch-1"]["archived"] = "2026-01-01T00:00:00Z"
    else:
        server._write_files(server.batches["batch-1"])
        server.files.clear()
    told = []
    most = rows(tmp_path / "s", "SELECT usd FROM batches")[0][0]
    got, client, _ = ask(batched(server, provider), tmp_path / "s", requests(5), report=told.append)
    assert said(got) == texts(5) and any("were deleted" in line for line in told)
    assert client.total.usd == pytest.approx(5 * HALF + most)


def test_a_batch_that_is_not_there_is_told_with_the_remedy(server, tmp_path, provider):
    left_at_the_provider(batched(server, provider), server, tmp_path / "s", 5)
    server.batches.clear()
    with pytest.raises(ValueError, match="DELETE FROM batches") as error:
        ask(batched(server, provider), tmp_path / "s", requests(5))
    (command,) = re.findall(r'"(DELETE.*)"', str(error.value))
    with sqlite3.connect(tmp_path / "s") as connection:
        connection.executescript(command)
    server.held = False
    got, *_ = ask(batched(server, provider), tmp_path / "s", requests(5))
    assert said(got) == texts(5)


# Money.


def test_the_budget_is_as_hard_as_for_single_requests(server, tmp_path, provider):
    cap = 30 * HALF
    got, client, why = ask(batched(server, provider, budget_usd=cap), tmp_path / "s", requests(100))
    assert isinstance(why, RunStoppedError) and "budget is reached" in str(why)
    assert 20 <= len(got) == len(server.submitted) <= 30 and client.total.usd <= cap
    worst = rows(tmp_path / "s", "SELECT usd, requests FROM batches ORDER BY sent")
    spent = 0.0
    for usd, count in worst:
        assert spent + usd <= cap
        spent += count * HALF
    assert len(worst) > 1
    got, client, why = ask(batched(server, provider, budget_usd=1.0), tmp_path / "s", requests(100))
    assert why is None and said(got) == texts(100)
    assert client.total.usd == pytest.approx(100 * HALF)


def test_a_batch_of_an_earlier_run_counts_at_its_worst(server, tmp_path, provider):
    left_at_the_provider(batched(server, provider), server, tmp_path / "s", 5)
    most = rows(tmp_path / "s", "SELECT usd FROM batches")[0][0]
    seen = []
    threading.Timer(0.3, lambda: (seen.append(len(server.batches)), server.release())).start()
    config = batched(server, provider, budget_usd=most + HALF)
    got, *_ = ask(config, tmp_path / "s", requests(6))
    assert seen == [1], "the sixth waits until the five have come in"
    assert said(got) == texts(6)


def test_the_estimate_is_half_and_knows_what_is_out(server, tmp_path, provider):
    whole, half = make_config(server, provider=provider), batched(server, provider)
    asked = [request for _, request in requests(12)]
    with AnswerStore(tmp_path / "s") as store:
        live = Client(whole, store).estimate(asked)
        batch = Client(half, store).estimate(asked)
    assert batch.usd == pytest.approx(live.usd / 2) and "in batches, at most 24h00m" in str(batch)
    left_at_the_provider(half, server, tmp_path / "s", 5)
    with AnswerStore(tmp_path / "s") as store:
        after = Client(half, store).estimate(asked)
    assert (after.requests, after.waiting, after.stored) == (7, 5, 0)
    assert "5 in batches at the provider" in str(after)


# What the config says.


def test_a_stream_fills_a_batch_whatever_the_concurrency(server, tmp_path, provider):
    got, *_ = ask(batched(server, provider, concurrency=2), tmp_path / "s", requests(300))
    assert said(got) == texts(300) and len(server.batches) == 1


@pytest.mark.parametrize("key", ["batch_requests", "poll_seconds"])
def test_a_bad_config_is_told(key):
    with pytest.raises(ValueError, match=f"{key} must be above 0"):
        make_config(None, **{key: 0})
