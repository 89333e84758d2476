"""The cap holds: the server never bills more, through faults, kills and unusable replies."""

import contextlib
import itertools
import os
import random
import signal
import time

import pytest

from datagen.chat.errors import RunStoppedError
from tests.support.chat_runs import PRICE, ask, make_config, requests, rows
from tests.support.chat_server import FAULTS, ChatServer, openai_reply

RUNS = int(os.environ.get("ALPACARE_CAP_RUNS", "2"))
"""Runs with kills: 40 of them take some two minutes."""


def unusable(kind: str) -> dict:
    """Replies that are paid for and hold no answer, each in another way."""
    reply = openai_reply("")
    choice = reply["choices"][0]
    if kind == "null content":
        choice["message"] = {"role": "assistant", "content": None, "reasoning_content": "Hm."}
    elif kind == "upstream failure":
        choice |= {"finish_reason": "error", "error": {"code": 502, "message": "upstream failed"}}
    else:
        choice["message"] = {"role": "assistant", "content": [7]}
    return reply


UNUSABLE = [unusable(kind) for kind in ("null content", "upstream failure", "malformed")]


def server_with_unusable_replies(seed: int, faults: float) -> ChatServer:
    server, draw = ChatServer(faults=faults, kinds=FAULTS, seed=seed), random.Random(seed)
    server.stall = 1.5
    server.error = lambda body: (200, draw.choice(UNUSABLE), {}) if draw.random() < 0.15 else None
    return server


def spent(path) -> tuple[float, int, int]:
    """(USD in the store, replies with usage, requests that count at the most)."""
    ((usd,),) = rows(
        path, "SELECT sum(usd) FROM (SELECT usd FROM charges UNION ALL SELECT usd FROM sent)"
    )
    ((reported,),) = rows(path, "SELECT count(*) FROM charges WHERE output_tokens = 7")
    ((most,),) = rows(path, "SELECT (SELECT count(*) FROM charges) + (SELECT count(*) FROM sent)")
    return usd or 0.0, reported, most - reported


@pytest.mark.parametrize("cap", [10, 40, 200])
def test_the_store_says_what_the_server_bills_where_usage_is_reported(tmp_path, cap):
    server = server_with_unusable_replies(cap, faults=0.2)
    server.kinds = ("429", "500", "529", "content filter", "empty choices")  # all others lose usage
    config = make_config(server, budget_usd=cap * PRICE, concurrency=8)
    _, client, stopped = ask(config, tmp_path / "s", requests(1000))
    server.close()
    assert isinstance(stopped, RunStoppedError) and "the budget is reached" in str(stopped)
    usd, reported, unknown = spent(tmp_path / "s")
    assert (reported, unknown) == (server.billed, 0)
    assert client.total.usd == usd == pytest.approx(server.billed * PRICE, abs=1e-9)
    assert 0 < usd <= cap * PRICE


@pytest.mark.parametrize("tokens", [500, 3_000])
def test_a_cap_in_tokens_holds_where_no_usage_is_reported(tmp_path, tokens):
    server = ChatServer()
    reply = openai_reply("four") | {"usage": {"prompt_tokens": 0, "completion_tokens": 0}}
    server.always = (200, reply)
    config = make_config(server, budget_tokens=tokens, concurrency=4)
    got, client, stopped = ask(config, tmp_path / "s", requests(100))
    server.close()
    assert "the budget is reached" in str(stopped)
    assert len(got) == len(server.bodies) < 100 and client.total.tokens <= tokens
    assert client.counts["no usage reported"] == len(got)


def test_usage_above_what_a_request_allows_ends_the_run(tmp_path):
    server = ChatServer()
    usage = {"prompt_tokens": 20, "completion_tokens": 51, "total_tokens": 71}
    server.always = (200, openai_reply("four") | {"usage": usage})
    config = make_config(server, budget_usd=1.0, concurrency=1)
    _, _, stopped = ask(config, tmp_path / "s", requests(100))
    assert "51 output tokens" in str(stopped) and len(server.bodies) == 1
    got, _, stopped = ask(make_config(server), tmp_path / "s", requests(9))
    assert stopped is None and len(got) == 9, "without a budget, only counted"
    server.close()


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(RUNS))
def test_the_bill_stays_below_the_cap_through_kills(new_life, tmp_path, seed):
    draw = random.Random(seed)
    server = server_with_unusable_replies(seed, faults=0.3)
    server.delay = 0.01
    cap = draw.choice((60, 200, 600)) * PRICE
    for _ in range(draw.randint(1, 4)):
        life = new_life(server, budget_usd=cap, attempts=20)
        list(itertools.islice(life.lines, draw.randrange(40)))
        time.sleep(draw.uniform(0.0, 0.1))
        with contextlib.suppress(ProcessLookupError):  # the cap has ended it
            life.signal(signal.SIGKILL)
        life.lines.read()
        assert life.wait() in (-signal.SIGKILL, 1)
    life = new_life(server, budget_usd=cap, attempts=20)
    life.lines.read()
    assert life.wait() == 1, "the cap ends it"
    time.sleep(server.delay)
    server.close()
    usd, reported, unknown = spent(tmp_path / "s")
    billed = server.billed * PRICE
    print(f"cap {cap:.4f}, billed {billed:.4f}, store {usd:.4f}: {reported} known, {unknown} not")
    assert billed <= usd <= cap
    assert reported <= server.billed <= reported + unknown
