"""What counts as an answer: replies of the common servers, good and bad, over real HTTP."""

import doctest
import json

import pytest

from common.text import thoughts
from datagen.chat import replies
from datagen.chat.errors import Failure
from datagen.chat.replies import ChatAnswer
from tests.support.chat_runs import ask, make_config, requests, rows
from tests.support.chat_server import anthropic_reply, openai_reply

BODY = {"messages": [], "max_tokens": 50}
GOUT = "Gout is caused by urate crystals."


@pytest.mark.parametrize("module", [replies, thoughts])
def test_doctests(module):
    assert doctest.testmod(module).failed == 0


def with_message(finish="stop", usage=None, **message):
    reply = openai_reply("", finish)
    reply["choices"][0]["message"] = {"role": "assistant"} | message
    return reply | ({} if usage is None else {"usage": usage})


def without(reply, *path):
    inner = reply
    for step in path[:-1]:
        inner = inner[step]
    del inner[path[-1]]
    return reply


def part(text, kind="text"):
    return {"type": kind, kind: text}


ANSWERS = {
    "think": openai_reply(f"<think>\nDraft: say viral.\n</think>\n\n{GOUT}"),
    "lone closing tag": openai_reply(f"Draft.\n</think>\n\n{GOUT}"),
    "other tags": openai_reply(f"<thinking>Draft.</thinking><reasoning>x</reasoning>{GOUT}"),
    "escaped tags": openai_reply(f"&lt;think&gt;Draft.&lt;/think&gt;{GOUT}"),
    "Magistral": openai_reply(f"[THINK]Draft.[/THINK]{GOUT}"),
    "MedGemma": openai_reply(f"<unused94>thought\nDraft.<unused95>{GOUT}"),
    "Kimi": openai_reply(f"◁think▷Draft.◁/think▷{GOUT}"),
    "Cohere": openai_reply(
        f"<|START_THINKING|>Draft.<|END_THINKING|><|START_RESPONSE|>{GOUT}<|END_RESPONSE|>"
    ),
    "Open WebUI": openai_reply(f'<details type="reasoning" done="true">Draft.</details>{GOUT}'),
    "harmony": openai_reply(
        "<|channel|>analysis<|message|>Draft.<|end|><|start|>assistant<|channel|>final<|message|>"
        + GOUT
    ),
    "harmony without its tokens": openai_reply(f"analysisDraft.assistantfinal{GOUT}"),
    "harmony after a commentary": openai_reply(
        "<|channel|>commentary<|message|>Draft.<|end|><|start|>assistant<|channel|>final"
        f"<|message|>{GOUT}<|return|>"
    ),
    "R1 with an answer tag": openai_reply(f"<think>Draft.</think><answer>{GOUT}</answer>"),
    "reasoning_content": with_message(content=GOUT, reasoning_content="Draft."),
    "reasoning": with_message(content=GOUT, reasoning="Draft."),
    "parts with thinking": with_message(
        content=[
            part([part("Draft.")], "thinking"),
            part("Gout is caused"),
            part(" by urate crystals."),
        ]
    ),
    "Anthropic's thinking": anthropic_reply(GOUT)
    | {"content": [part("Draft.", "thinking"), part(GOUT)]},
}
PLAIN = {
    "ChatML": openai_reply(f"{GOUT}<|im_end|>"),
    "Llama 3": openai_reply(f"{GOUT}<|eot_id|>\n<|end_of_text|>"),
    "DeepSeek": openai_reply(f"{GOUT}<｜end▁of▁sentence｜>"),
    "Gemma": openai_reply(f"{GOUT}<end_of_turn>\n"),
    "Llama 2": openai_reply(f"<s> {GOUT}</s>"),
    "the next turn": openai_reply(f"{GOUT}<|im_end|>\n<|im_start|>user\nAnd scurvy?"),
    "a role": openai_reply(f"<|im_start|>assistant\n{GOUT}"),
    "parts": with_message(content=[part(GOUT)]),
    "one part": with_message(content=part(GOUT)),
    "strings as parts": with_message(content=[GOUT]),
    "completions": openai_reply("") | {"choices": [{"text": GOUT, "finish_reason": "stop"}]},
    "Anthropic with a string": anthropic_reply("") | {"content": GOUT},
}


@pytest.mark.parametrize("name", [*ANSWERS, *PLAIN])
def test_the_text_of_an_answer(server, tmp_path, name):
    reply = (ANSWERS | PLAIN)[name]
    provider = "anthropic" if name.startswith("Anthropic") else "openai"
    server.always = (200, reply)
    got, client, error = ask(make_config(server, provider=provider), tmp_path / "s", requests(1))
    assert error is None and got[0].text == GOUT and got[0].finish_reason == "stop"
    assert ("Draft" in got[0].thoughts) == (name in ANSWERS)
    assert client.counts["with thoughts, which are left out"] == (name in ANSWERS)
    ((stored,),) = rows(tmp_path / "s", "SELECT answer FROM answers")
    assert ChatAnswer.from_json(stored) == got[0]
    assert ("Draft" in stored) == (name in ANSWERS), "thoughts are kept in the store"


def test_html_and_plain_text_stay_as_they_are():
    for text in (" a <s>b</s> c \n", "if x < think > y", "<details>a</details>", "see [EOS]: b"):
        assert thoughts.split(text) == (text, "")


def test_an_answer_stored_by_an_earlier_version_loses_its_thoughts():
    old = {"text": f"<think>Draft.</think>{GOUT}", "finish_reason": "eos", "model": "m", "id": "i"}
    answer = ChatAnswer.from_json(json.dumps(old | {"input_tokens": 1, "output_tokens": 2}))
    assert (answer.text, answer.thoughts, answer.finish_reason) == (GOUT, "Draft.", "stop")


@pytest.mark.parametrize(
    ("end", "words"),
    [
        ("stop", ["eos", "eos_token", "end_turn", "STOP", "stop_sequence", "COMPLETE", None]),
        ("length", ["length", "max_tokens", "MAX_TOKENS", "model_length", "max_output_tokens"]),
        ("content_filter", ["content_filter", "SAFETY", "guardrail_intervened", "RECITATION"]),
        ("refusal", ["refusal"]),
        ("error", ["error", "network_error", "abort"]),
        ("tool_calls", ["tool_calls"]),
    ],
)
def test_finish_words_of_the_common_servers(end, words):
    for word in words:
        assert replies.read_reply("openai", BODY, openai_reply(GOUT, word)).finish_reason == end
    bare = without(openai_reply(GOUT), "choices", 0, "finish_reason")
    assert replies.read_reply("openai", BODY, bare).finish_reason == "stop"


UNUSABLE = {
    "null content": (with_message(content=None, reasoning_content="thinking"), "without text"),
    "only thoughts": (openai_reply("<think>I never end"), "without text"),
    "only harmony's thoughts": (
        openai_reply("<|channel|>analysis<|message|>Draft.<|end|> And more of it."),
        "without text",
    ),
    "no parts": (with_message(content=[]), "without text"),
    "no choices": (openai_reply("") | {"choices": []}, "malformed reply: its fields are id, "),
    "a number": (7, "malformed reply: 7"),
    "numbers as content": (with_message(content=[7]), "malformed"),
    "a filter": (openai_reply("", "SAFETY"), "content filter"),
    "finished by an error": (openai_reply("", "error"), "failed within the reply"),
}


@pytest.mark.parametrize("name", UNUSABLE)
def test_a_reply_without_an_answer_is_charged_each_time_and_not_stored(server, tmp_path, name):
    reply, reason = UNUSABLE[name]
    server.always = (200, reply)
    got, *_ = ask(make_config(server, attempts=2), tmp_path / "s", requests(1))
    assert isinstance(got[0], Failure) and reason in got[0].reason
    charges = rows(tmp_path / "s", "SELECT input_tokens, output_tokens FROM charges")
    most = len(json.dumps(server.bodies[0])), 50
    assert charges == 2 * [(20, 7) if name != "a number" else most]
    assert rows(tmp_path / "s", "SELECT * FROM answers") == []


def test_refusals_and_cuts_are_answers_of_their_own_kind():
    def read(reply, provider="openai"):
        return replies.read_reply(provider, BODY, reply)

    assert read(openai_reply("half an", "length")).finish_reason == "length"
    refused = read(with_message(content=None, refusal="I will not"))
    assert (refused.text, refused.finish_reason) == ("I will not", "refusal")
    reply = {"content": [], "stop_reason": "refusal", "usage": {"input_tokens": 1}}
    assert read(reply, "anthropic").finish_reason == "refusal"
    assert read(openai_reply("")).finish_reason == "stop", "an empty answer is an answer"


@pytest.mark.parametrize(
    "usage",
    [
        None,
        {},
        {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0},
        {"prompt_tokens": 20, "completion_tokens": 0},
        *({"prompt_tokens": n, "completion_tokens": 7} for n in (-(10**6), 10**30, "7", True, 1.5)),
    ],
)
def test_usage_that_is_missing_or_nonsense_counts_as_the_most(usage):
    reply = openai_reply("four") | {"usage": usage, "model": "\ud83d"}
    answer = replies.read_reply("openai", BODY, reply)
    assert (answer.input_tokens, answer.output_tokens) == (len(json.dumps(BODY)), 50)
    assert answer.usage_reported is False and answer.model == "\ufffd"


@pytest.mark.parametrize(
    ("usage", "tokens"),
    [
        ({"prompt_tokens": 20, "completion_tokens": 7, "total_tokens": 127}, (20, 107)),
        ({"input_tokens": 5, "cache_read_input_tokens": 15, "output_tokens": 7}, (20, 7)),
    ],
)
def test_tokens_that_are_charged_are_counted(usage, tokens):
    answer = replies.read_reply("openai", BODY, openai_reply("four") | {"usage": usage})
    assert (answer.input_tokens, answer.output_tokens) == tokens and answer.usage_reported


def test_half_a_surrogate_pair_in_an_answer_is_replaced(server, tmp_path):
    server.answer = lambda body: "a smile: \ud83d"
    got, _, error = ask(make_config(server), tmp_path / "s", requests(2))
    assert error is None and {a.text for a in got.values()} == {"a smile: \ufffd"}
