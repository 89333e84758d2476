"""Prices and budgets."""

import doctest

import pytest

from datagen.chat import prices
from datagen.chat.client import Client, run_until_done
from datagen.chat.errors import RunStoppedError
from datagen.chat.store import AnswerStore
from tests.support.chat_runs import PRICE, ask, make_config, requests


def test_doctests():
    assert doctest.testmod(prices).failed == 0


@pytest.mark.parametrize("cap", [{"budget_usd": 30 * PRICE}, {"budget_tokens": 30 * 27}])
def test_the_budget_is_never_passed_and_a_larger_one_goes_on(server, tmp_path, cap):
    got, client, error = ask(make_config(server, **cap), tmp_path / "s", requests(100))
    assert isinstance(error, RunStoppedError) and "budget is reached" in str(error)
    assert client.total.usd <= 30 * PRICE and client.total.tokens <= 30 * 27
    assert 20 <= len(got) == len(server.bodies) <= 30
    got, client, error = ask(make_config(server, budget_usd=1.0), tmp_path / "s", requests(100))
    assert error is None and len(got) == len(server.bodies) == 100
    assert client.total.usd == pytest.approx(100 * PRICE)


def test_a_budget_without_a_price_is_an_error(server, tmp_path):
    config = make_config(server, price_input=None, price_output=None, budget_usd=1.0)
    with AnswerStore(tmp_path / "s") as store, pytest.raises(ValueError, match="price_input"):
        Client(config, store)


def test_replies_without_a_price_are_told_where_a_budget_is_set(server, tmp_path):
    free = make_config(server, price_input=None, price_output=None)
    ask(free, tmp_path / "s", requests(2))
    reports = []
    with AnswerStore(tmp_path / "s") as store:
        client = Client(make_config(server, budget_usd=1.0), store, reports.append)
        run_until_done(client, lambda: client.ask_all(requests(0)))
    assert "2 replies so far have no known price; budget_usd does not count them" in reports
