"""Both batch APIs over real HTTP: submissions, their traces, and every kind of result."""

import threading
import types

import pytest

from datagen.chat.batch import batches
from datagen.chat.batch import log as batch_log
from datagen.chat.batch import protocols as batch_protocols
from datagen.chat.config import API_KEY_VARIABLES
from datagen.chat.errors import Failure, RunStoppedError
from tests.support.batch_server import others_batch
from tests.support.chat_runs import (
    HALF,
    answer_texts,
    ask,
    batched,
    nothing_open,
    requests,
    texts,
)

pytestmark = pytest.mark.filterwarnings("error::pytest.PytestUnraisableExceptionWarning")


def test_answers_may_hold_every_kind_of_line_end(server, tmp_path, provider):
    odd = "one\u2028two\x85three\x0cfour\r\nfive"
    server.answer = lambda body: odd
    got, *_ = ask(batched(server, provider), tmp_path / "s", requests(2))
    assert answer_texts(got) == {0: odd, 1: odd}


# Results.


def test_each_request_has_its_own_fate(server, tmp_path, provider):
    fates = dict(enumerate(["500", "expired", "missing", "blocked", "400"]))
    seen = set()

    def outcome(question):
        number = int(question.split()[-1])
        again = server.submitted[question] > 1
        seen.add(number)
        return "ok" if again and fates.get(number) != "400" else fates.get(number, "ok")

    server.outcome = outcome
    got, client, error = ask(batched(server, provider), tmp_path / "s", requests(20))
    assert error is None and seen == set(range(20))
    assert answer_texts(got) == {i: text for i, text in texts(20).items() if i != 4}
    assert isinstance(got[4], Failure) and "not so" in got[4].reason
    assert len(server.batches) == 2
    assert {q for q, n in server.submitted.items() if n == 2} == {f"question {i}" for i in range(4)}
    assert client.counts["retried"] == 4 and client.counts["answered"] == 19
    assert client.total.usd == pytest.approx(20 * HALF), "the blocked reply is paid"
    assert server.charged == 20 and nothing_open(tmp_path / "s")


def test_what_always_fails_is_given_up(server, tmp_path, provider):
    server.outcome = lambda question: "expired" if question.endswith(" 1") else "ok"
    got, _, error = ask(batched(server, provider), tmp_path / "s", requests(3))
    assert error is None and "in 4 attempts" in got[1].reason and "expired" in got[1].reason
    assert server.submitted == {"question 0": 1, "question 1": 4, "question 2": 1}


def test_when_all_are_refused_the_run_ends(server, tmp_path, provider):
    server.outcome = lambda question: "400"
    _, _, error = ask(batched(server, provider), tmp_path / "s", requests(10))
    assert isinstance(error, RunStoppedError) and "every request so far is rejected" in str(error)
    assert nothing_open(tmp_path / "s")


def test_a_cancelled_batch_ends_the_run_and_the_next_asks_the_rest(server, tmp_path, provider):
    server.outcome = lambda q: "ok" if int(q.split()[-1]) < 3 else "cancelled"
    _, _, error = ask(batched(server, provider), tmp_path / "s", requests(6))
    assert isinstance(error, RunStoppedError) and "cancelled at the provider" in str(error)
    server.outcome = lambda q: "ok"
    got, *_ = ask(batched(server, provider), tmp_path / "s", requests(6))
    assert answer_texts(got) == texts(6)
    assert server.submitted == {f"question {i}": 1 + (i >= 3) for i in range(6)}


@pytest.mark.parametrize("cut", ["cut", "short"])
def test_results_that_are_cut_are_read_again(server, tmp_path, provider, cut, monkeypatch):
    monkeypatch.setattr(batch_log, "CHUNK_SIZE", 10)  # so that some are stored before the cut
    server.polls, blocked = [cut], {f"question {i}" for i in range(0, 60, 2)}
    server.outcome = lambda q: "blocked" if q in blocked and server.submitted[q] == 1 else "ok"
    got, client, error = ask(batched(server, provider), tmp_path / "s", requests(60))
    assert error is None and answer_texts(got) == texts(60) and not server.polls
    assert client.total.usd == pytest.approx(90 * HALF), "blocked replies cost, too"
    assert server.submitted == {f"question {i}": 1 + (i % 2 == 0) for i in range(60)}


def test_a_key_in_a_result_is_not_told(provider, monkeypatch):
    monkeypatch.setenv(API_KEY_VARIABLES[provider], "plain-secret-key")
    connection = types.SimpleNamespace(config=batched(None, provider))
    protocol = batch_protocols.BATCH_PROTOCOLS[provider](connection)
    message = "Incorrect key plain-secret-key"
    if provider == "openai":
        failed = protocol._failed([{"message": message}]).failure
        reports = [failed, protocol._failed([{"message": message, "line": 1}]).rejected[0]]
        errors = [{"code": "oh", "message": message}, None]
        replies = [None, {"status_code": 401, "body": {"error": {"message": message}}}]
        results = [{"response": r, "error": e} for r, e in zip(replies, errors, strict=True)]
    else:
        reports = []
        error = {"type": "authentication_error", "message": message}
        results = [{"result": {"type": "errored", "error": error}}]
    reports += [protocol.read({"custom_id": "x"} | result)[1] for result in results]
    for text in map(str, reports):
        assert "secret" not in text and "Incorrect key [key]" in text


# Submissions.


@pytest.mark.parametrize("happens", ["500", "500 made", "429", "silent"])
def test_a_submission_that_fails_is_looked_for_and_sent_again(server, tmp_path, provider, happens):
    server.submissions, server.stall = [happens], 0.3
    for _ in range(3):  # others' batches in the same workspace, some as large
        server.batches[f"batch-{len(server.batches) + 1}"] = others_batch(len(server.batches) + 3)
    config = batched(server, provider, timeout_seconds=0.2)
    got, client, error = ask(config, tmp_path / "s", requests(5))
    assert error is None and answer_texts(got) == texts(5)
    assert set(server.submitted.values()) == {1}, "made once"
    assert client.total.usd == pytest.approx(5 * HALF) and nothing_open(tmp_path / "s")


def test_no_batch_is_sent_for_ever(server, tmp_path, provider):
    server.submissions = ["429"] * 9
    _, _, error = ask(batched(server, provider), tmp_path / "s", requests(5))
    assert isinstance(error, RunStoppedError) and "no batch was accepted in 4 attempts" in str(
        error
    )
    assert len(server.submissions) == 5 and nothing_open(tmp_path / "s")


def test_a_full_queue_is_waited_for(server, tmp_path):
    full = [{"code": "token_limit_exceeded", "message": "Enqueued token limit reached"}]
    server.fail = [None, full, full]
    config = batched(server, batch_requests=10, attempts=2)
    got, _, error = ask(config, tmp_path / "s", requests(20))
    assert error is None and answer_texts(got) == texts(20)
    assert set(server.submitted.values()) == {1} and len(server.batches) == 4
    server.fail = [None, None, full]
    got, _, error = ask(config, tmp_path / "s", requests(50))
    assert error is None and answer_texts(got) == texts(50) and len(server.batches) == 8


def released(server, expected):
    """Holds all batches until so many submissions have come, or for long if they do not come."""
    server.held, seen = True, []
    late = threading.Timer(3.0, lambda: (seen.append("too late"), server.release()))

    def at(event):
        if event != "submission":
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
    assert answer_texts(got) == texts(15) and seen == ["sent"] * 4, "while the second is worked on"


def test_batches_of_our_own_are_not_taken_for_the_lost_one(server, tmp_path):
    server.submissions = ["", "500"]
    seen = released(server, 3)
    config = batched(server, "anthropic", batch_requests=5)
    got, *_ = ask(config, tmp_path / "s", requests(10))
    assert answer_texts(got) == texts(10) and seen == ["sent"] * 3


def test_lines_that_are_not_taken_are_told_and_the_rest_sent_again(server, tmp_path):
    server.fail = [[{"code": "invalid", "message": "too many cooks", "line": 3}]]
    got, _, error = ask(batched(server), tmp_path / "s", requests(5))
    assert error is None and got[2].reason == "too many cooks"
    assert answer_texts(got) == {i: text for i, text in texts(5).items() if i != 2}


def test_a_batch_that_fails_as_a_whole_ends_the_run(server, tmp_path):
    server.fail = [[{"code": "billing_hard_limit_reached", "message": "Billing limit reached"}]]
    _, _, error = ask(batched(server), tmp_path / "s", requests(5))
    assert isinstance(error, RunStoppedError) and "Billing limit reached" in str(error)
    assert nothing_open(tmp_path / "s")


@pytest.mark.parametrize("status", ["400", "404"])
def test_a_server_without_batches_is_told(server, tmp_path, provider, status):
    server.submissions = [status]
    _, _, error = ask(batched(server, provider), tmp_path / "s", requests(5))
    assert isinstance(error, RunStoppedError) and "try batch=False" in str(error)
    assert nothing_open(tmp_path / "s") and not server.submissions


def test_a_batch_may_be_long_in_turning_up(server, tmp_path, provider, monkeypatch):
    monkeypatch.setattr(batches, "SETTLE_SECONDS", 0.4)
    server.submissions, server.hidden = ["500 made"], 0.2
    got, *_ = ask(batched(server, provider), tmp_path / "s", requests(5))
    assert answer_texts(got) == texts(5) and len(server.batches) == 1
