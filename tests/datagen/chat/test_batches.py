"""Requests in batches: how they are gathered, sent, waited for and paid."""

import threading

import pytest

from datagen.chat.batch import batches
from datagen.chat.batch import protocols as batch_protocols
from datagen.chat.client import Client
from datagen.chat.errors import RunStoppedError
from datagen.chat.store import AnswerStore
from tests.support.chat_runs import (
    HALF,
    answer_texts,
    ask,
    batched,
    left_at_the_provider,
    make_config,
    nothing_open,
    requests,
    rows,
    texts,
)

pytestmark = pytest.mark.filterwarnings("error::pytest.PytestUnraisableExceptionWarning")


def test_answers_come_at_half_price_from_as_many_batches_as_it_takes(server, tmp_path, provider):
    config = batched(server, provider, batch_requests=15)
    got, client, error = ask(config, tmp_path / "s", requests(40))
    assert error is None and answer_texts(got) == texts(40)
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
    assert answer_texts(got) == texts(30)
    assert len(server.batches) > 2
    assert 1000 < max(server.sizes) <= 2000


def test_a_stream_fills_a_batch_whatever_the_concurrency(server, tmp_path, provider):
    got, *_ = ask(batched(server, provider, concurrency=2), tmp_path / "s", requests(300))
    assert answer_texts(got) == texts(300) and len(server.batches) == 1


def test_a_look_that_fails_is_taken_again(server, tmp_path, provider, monkeypatch):
    server.polls = ["500", "500"]
    got, *_ = ask(batched(server, provider), tmp_path / "s", requests(3))
    assert answer_texts(got) == texts(3) and not server.polls
    monkeypatch.setattr(batches, "OUTAGE_SECONDS", 0.1)
    server.polls = ["500"] * 1000
    _, _, error = ask(batched(server, provider), tmp_path / "s", requests(6))
    assert (
        isinstance(error, RunStoppedError)
        and "cannot be read" in str(error)
        and "next run collects" in str(error)
    )
    server.polls = []
    got, *_ = ask(batched(server, provider), tmp_path / "s", requests(6))
    assert answer_texts(got) == texts(6) and set(server.submitted.values()) == {1}


# Money.


def test_the_budget_is_as_hard_as_for_single_requests(server, tmp_path, provider):
    cap = 30 * HALF
    got, client, error = ask(
        batched(server, provider, budget_usd=cap), tmp_path / "s", requests(100)
    )
    assert isinstance(error, RunStoppedError) and "budget is reached" in str(error)
    assert 20 <= len(got) == len(server.submitted) <= 30 and client.total.usd <= cap
    worst = rows(tmp_path / "s", "SELECT usd, requests FROM batches ORDER BY sent")
    spent = 0.0
    for usd, count in worst:
        assert spent + usd <= cap
        spent += count * HALF
    assert len(worst) > 1
    got, client, error = ask(
        batched(server, provider, budget_usd=1.0), tmp_path / "s", requests(100)
    )
    assert error is None and answer_texts(got) == texts(100)
    assert client.total.usd == pytest.approx(100 * HALF)


def test_a_batch_of_an_earlier_run_counts_at_its_worst(server, tmp_path, provider):
    left_at_the_provider(batched(server, provider), server, tmp_path / "s", 5)
    most = rows(tmp_path / "s", "SELECT usd FROM batches")[0][0]
    seen = []
    threading.Timer(0.3, lambda: (seen.append(len(server.batches)), server.release())).start()
    config = batched(server, provider, budget_usd=most + HALF)
    got, *_ = ask(config, tmp_path / "s", requests(6))
    assert seen == [1], "the sixth waits until the five have come in"
    assert answer_texts(got) == texts(6)


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
