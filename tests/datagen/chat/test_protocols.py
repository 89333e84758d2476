"""What is sent, by which key it is stored, and how a reply is read."""

import pytest

from datagen.chat import protocols
from datagen.chat.config import ChatRequest
from tests.support.chat_runs import ask, make_config, requests
from tests.support.chat_server import openai_reply


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


@pytest.mark.parametrize("tokens", [-(10**6), 10**30, "7", True, 1.5])
def test_usage_that_is_nonsense_is_not_believed(tokens):
    reply = openai_reply("four")
    reply |= {"usage": {"prompt_tokens": tokens, "completion_tokens": 7}, "model": "\ud83d"}
    answer = protocols.read_reply("openai", {"messages": []}, reply)
    assert (answer.input_tokens, answer.output_tokens) == (len('{"messages": []}') // 4, 1)
    assert answer.usage_reported is False and answer.model == "\ufffd"


def test_half_a_surrogate_pair_in_an_answer_is_replaced(server, tmp_path):
    server.answer = lambda body: "a smile: \ud83d"
    got, _, error = ask(make_config(server), tmp_path / "s", requests(2))
    assert error is None and {a.text for a in got.values()} == {"a smile: \ufffd"}
