"""The rate of requests follows the server's refusals and headers."""

import doctest
import threading
import time

from datagen.chat import rate_limit
from datagen.chat.errors import Failure
from tests.support.chat_runs import ask, make_config, requests
from tests.support.chat_server import ChatServer


def test_doctests():
    assert doctest.testmod(rate_limit).failed == 0


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
