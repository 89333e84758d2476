"""What is sent, and by which key it is stored."""

import pytest

from datagen.chat.config import ChatRequest
from tests.support.chat_runs import make_config


def body(**changes):
    request = ChatRequest("sys", "usr", "v1", schema=changes.pop("schema", None))
    return request.body(make_config(None, **changes))


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


def key_of(config, request):
    return request.key(config, request.body(config))


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
