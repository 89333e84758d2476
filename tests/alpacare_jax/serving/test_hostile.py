"""Requests that nobody should send: each gets the right error, and the server stays healthy."""

import asyncio
import dataclasses
import json

import pytest

from alpacare_jax.data import prompts
from alpacare_jax.data.chat_template import ChatTemplate
from alpacare_jax.serving import json_answers
from alpacare_jax.serving.errors import ApiError
from alpacare_jax.serving.fields import read_json
from alpacare_jax.serving.protocol import chat_call, completion_call
from alpacare_jax.serving.served_model import ServedModel
from common.text.conversations import Turn
from tests.support.served import ServerThread, answer_on

pytestmark = pytest.mark.usefixtures("quickly_compiled")

CHAT = {"model": "tiny-medic", "messages": [{"role": "user", "content": "why"}], "max_tokens": 2}
PLAIN = {"model": "tiny-medic", "prompt": "why", "max_tokens": 2}
USER, BOT = {"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}


def deep(levels: int) -> list:
    found: list = []
    for _ in range(levels):
        found = [found]
    return found


def schema(**keywords) -> dict:
    return {"type": "json_schema", "json_schema": {"name": "a", "schema": keywords}}


WRONG_FIELDS = {  # id: (changes, the field that the error names, words of its message)
    "no messages": ({"messages": None}, "messages", "send a list of messages"),
    "empty messages": ({"messages": []}, "messages", "must be a list of messages"),
    "messages as text": ({"messages": "why"}, "messages", "must be a list"),
    "a message as text": ({"messages": ["why"]}, "messages[0]", "must be an object"),
    "no role": ({"messages": [{"content": "a"}]}, "messages[0].role", "choose from system"),
    "unknown role": ({"messages": [USER | {"role": "tool"}]}, "messages[0].role", '"tool"'),
    "role as list": ({"messages": [USER | {"role": []}]}, "messages[0].role", "choose from"),
    "no content": ({"messages": [{"role": "user"}]}, "messages[0].content", "send a text"),
    "content as number": (
        {"messages": [USER | {"content": 7}]},
        "messages[0].content",
        "must be a text",
    ),
    "an image": (
        {"messages": [USER | {"content": [{"type": "image_url", "image_url": {"url": "x"}}]}]},
        "messages[0].content[0].type",
        "reads text only",
    ),
    "a named message": ({"messages": [USER | {"name": "x"}]}, "messages[0].name", "not supported"),
    "an odd message": ({"messages": [USER | {"zzz": 1}]}, "messages[0].zzz", "not a field"),
    "an answer last": (
        {"messages": [USER, BOT]},
        "messages",
        "must end with a message of the user",
    ),
    "two questions": ({"messages": [USER, USER]}, "messages[1].role", "alternate"),
    "system in between": (
        {"messages": [USER, {"role": "system", "content": "s"}]},
        "messages[1].role",
        "alternate",
    ),
    "a system prompt": (
        {"messages": [{"role": "system", "content": "s"}, USER]},
        "messages",
        "no place for a system prompt; choose template chat",
    ),
    "a long message": (
        {"messages": [USER | {"content": "heart " * 20_000}]},
        "messages",
        "at least",
    ),
    "a message just too long": (
        {"messages": [USER | {"content": "the" * 300}]},
        "messages",
        "leaves no room for an answer within the model's 512",
    ),
    "no model": ({"model": None}, "model", "GET /v1/models"),
    "model as number": ({"model": 4}, "model", "must be a text"),
    "an unknown field": ({"temprature": 0}, "temprature", "did you mean 'temperature'?"),
    "an unknown null": ({"zzz": None}, "zzz", "not a field of this request"),
    "temperature as text": ({"temperature": "0"}, "temperature", "must be a number"),
    "temperature true": ({"temperature": True}, "temperature", "must be a number"),
    "hot": ({"temperature": 2.5}, "temperature", "from 0.0 to 2.0"),
    "nearly cold": ({"temperature": 1e-9}, "temperature", "must be 0, for greedy, or from"),
    "no top_p": ({"top_p": 0}, "top_p", "must be from 1e-06 to 1"),
    "negative top_k": ({"top_k": -1}, "top_k", "from 0"),
    "no answers": ({"n": 0}, "n", "from 1 to 128"),
    "many answers": ({"n": 10**9}, "n", "from 1 to 128"),
    "half an answer": ({"n": 1.5}, "n", "must be an integer"),
    "seed as text": ({"seed": "a"}, "seed", "must be an integer"),
    "a seed of 64 bits and more": ({"seed": 2**63}, "seed", "it must be an integer from -9,223"),
    "no tokens": ({"max_tokens": 0}, "max_tokens", "from 1"),
    "too many tokens": ({"max_tokens": 1000}, "max_tokens", "send at most"),
    "two limits": (
        {"max_tokens": 2, "max_completion_tokens": 3},
        "max_tokens",
        "differs from max_completion_tokens",
    ),
    "many stops": ({"stop": list("abcdefghijklmnopq")}, "stop", "a list of at most 16"),
    "an empty stop": ({"stop": ""}, "stop", "each of 1 to 256 characters"),
    "a long stop": ({"stop": "x" * 1000}, "stop", "each of 1 to 256 characters"),
    "stop as number": ({"stop": 3}, "stop", "must be a text, or a list"),
    "many logprobs": ({"logprobs": True, "top_logprobs": 21}, "top_logprobs", "from 0 to 20"),
    "top without logprobs": ({"top_logprobs": 2}, "top_logprobs", "set logprobs to true"),
    "logprobs as number": ({"logprobs": 3}, "logprobs", "must be true or false"),
    "bias of no token": ({"logit_bias": {"x": 1}}, "logit_bias.x", "not the id of a token"),
    "a token twice": ({"logit_bias": {"5": 1, "05": 2}}, "logit_bias.05", "not the id of a token"),
    "bias past the end": ({"logit_bias": {"99999": 1}}, "logit_bias.99999", "vocabulary has 0 to"),
    "a large bias": ({"logit_bias": {"5": 101}}, "logit_bias.5", "from -100.0 to 100.0"),
    "bias as list": ({"logit_bias": [1]}, "logit_bias", "must be an object"),
    "a large penalty": ({"presence_penalty": 3}, "presence_penalty", "from -2.0 to 2.0"),
    "no penalty": ({"repetition_penalty": 0}, "repetition_penalty", "from 0.01"),
    "stream as text": ({"stream": "yes"}, "stream", "must be true or false"),
    "options without stream": ({"stream_options": {}}, "stream_options", "set stream to true"),
    "odd options": (
        {"stream": True, "stream_options": {"usage": 1}},
        "stream_options.usage",
        "not a field of this request",
    ),
    "tools": ({"tools": [{"type": "function"}]}, "tools", "was not trained to call tools"),
    "audio": ({"modalities": ["audio"]}, "modalities", "not supported"),
    "storing": ({"store": True}, "store", "not supported"),
    "moderation": ({"moderation": {"model": "x"}}, "moderation", "not supported"),
    "an odd format": (
        {"response_format": {"type": "xml"}},
        "response_format.type",
        "choose text, json_object or json_schema",
    ),
    "format as text": ({"response_format": "json"}, "response_format", "must be an object"),
    "no schema": (
        {"response_format": {"type": "json_schema"}},
        "response_format.json_schema",
        "send an object",
    ),
    "a wrong schema": (
        {"response_format": schema(type="thing")},
        "response_format.json_schema.schema",
        "is no JSON schema",
    ),
    "a slow schema": (
        {"response_format": schema(pattern="(a+)+$")},
        "response_format.json_schema.schema",
        "has pattern, which is not supported",
    ),
    "a schema of another draft inside": (
        {"response_format": schema(items={"$schema": "http://json-schema.org/draft-04/schema#"})},
        "response_format.json_schema.schema",
        "has $schema, which is not supported",
    ),
    "a huge schema": (
        {"response_format": schema(enum=["x" * 70_000])},
        "response_format.json_schema.schema",
        "at most 65,536",
    ),
}

WRONG_PROMPTS = {
    "no prompt": ({"prompt": None}, "prompt", "send a text"),
    "an empty list": ({"prompt": []}, "prompt", "send a text"),
    "prompt as object": ({"prompt": {}}, "prompt", "send a text"),
    "mixed prompts": ({"prompt": ["a", [1]]}, "prompt", "mixes texts"),
    "prompts of objects": ({"prompt": [{}]}, "prompt", "mixes texts"),
    "a half id": ({"prompt": [5.0]}, "prompt", "mixes texts"),
    "mixed ids": ({"prompt": [1, "a"]}, "prompt", "mixes texts"),
    "ids as truth": ({"prompt": [[True]]}, "prompt", "mixes texts"),
    "an empty prompt of ids": ({"prompt": [[]]}, "prompt", "empty list of ids"),
    "a negative id": ({"prompt": [-1]}, "prompt", "token id -1"),
    "an id past the end": ({"prompt": [10**12]}, "prompt", "the vocabulary has 0 to"),
    "many ids": ({"prompt": [5] * 600}, "prompt", "600 tokens, which leaves no room"),
    "no room for 16": ({"prompt": [5] * 500, "max_tokens": None}, "max_tokens", "send at most 12"),
    "many prompts": ({"prompt": ["a"] * 300}, None, "more than the server takes at once"),
    "no tokens": ({"max_tokens": 0}, "max_tokens", "at least 1 without echo"),
    "best of": ({"best_of": 2}, "best_of", "differs from n"),
    "a suffix": ({"suffix": "x"}, "suffix", "not supported"),
    "messages": ({"messages": [USER]}, "messages", "not a field of this request"),
    "logprobs true": ({"logprobs": True}, "logprobs", "must be an integer"),
}


def healthy(served) -> None:
    """It answers, and nothing is left behind."""
    assert served.get("/health").json() == {"status": "ok", "running": 0, "waiting": 0}
    found = served.ask("why", max_tokens=3)
    assert found.usage.completion_tokens == 3


def check(answer, status: int, words: str, param: str | None = None) -> None:
    assert answer.status_code == status, answer.text
    error = answer.json()["error"]
    assert words in error["message"] and error["param"] == param, error
    assert set(error) == {"message", "type", "param", "code"}
    assert error["type"] == ("server_error" if status >= 500 else "invalid_request_error")
    assert answer.headers["x-should-retry"] == "false" and "/tmp" not in answer.text


@pytest.mark.parametrize("case", WRONG_FIELDS)
def test_a_wrong_field_is_named(served, case):
    changes, param, words = WRONG_FIELDS[case]
    check(served.post("/v1/chat/completions", CHAT | changes), 400, words, param)
    healthy(served)


@pytest.mark.parametrize("case", WRONG_PROMPTS)
def test_a_wrong_prompt_is_named(served, case):
    changes, param, words = WRONG_PROMPTS[case]
    check(served.post("/v1/completions", PLAIN | changes), 400, words, param)
    healthy(served)


WRONG_BODIES = {  # id: (body, status, words)
    "nothing": (b"", 400, "not JSON"),
    "text": (b"hello", 400, "not JSON"),
    "half an object": (b'{"model": "tiny-medic"', 400, "not JSON"),
    "two objects": (b"{} {}", 400, "not JSON"),
    "a list": (b"[]", 400, "must be a JSON object"),
    "a number": (b"1", 400, "must be a JSON object"),
    "null": (b"null", 400, "must be a JSON object"),
    "not UTF-8": (b'{"model": "\xff\xfe"}', 400, "not UTF-8"),
    "UTF-16": ('{"model": "a"}'.encode("utf-16"), 400, "not UTF-8"),
    "a zero byte": (b'{"model": "a\x00"}', 400, "not JSON"),
    "NaN": (b'{"temperature": NaN}', 400, "NaN is not a number"),
    "Infinity": (b'{"temperature": -Infinity}', 400, "is not a number"),
    "1e999": (b'{"temperature": 1e999}', 400, "beyond what a float holds"),
    "many digits": (b'{"seed": ' + b"9" * 9999 + b"}", 400, "thousands of digits"),
    "twice": (b'{"n": 1, "n": 2}', 400, '"n" is there more than once'),
    "half a pair": (b'{"model": "\\ud800"}', 400, "half a surrogate pair"),
    "half a pair as name": (b'{"\\udfff": 1}', 400, "half a surrogate pair"),
    "deep": (json.dumps({"messages": deep(200)}).encode(), 400, "nests more than 64"),
    "very deep": (b"[" * 200_000, 400, "nests more than 64"),
    "deep objects": (b'{"a":' * 100_000, 400, "nests more than 64"),
    "huge": (b'{"prompt": "' + b"x" * 2**21 + b'"}', 413, "larger --max_body_mib"),
}


@pytest.mark.parametrize("case", WRONG_BODIES)
def test_a_wrong_body_is_explained(served, case):
    body, status, words = WRONG_BODIES[case]
    for path in ("/v1/chat/completions", "/v1/completions"):
        check(served.post(path, body), status, words)
    healthy(served)


def test_types_methods_and_paths_are_checked(served):
    form = {"content-type": "text/plain"}
    check(served.post("/v1/completions", PLAIN, **form), 415, "Content-Type: application/json")
    check(served.get("/v1/completions"), 405, "POST the others")
    check(served.post("/v1/models", {}), 405, "GET")
    check(served.get("/v1/nothing"), 404, "there is no such path")
    check(served.get("/v1/models/../../etc/passwd"), 404, "there is no such path")
    check(served.get("/v1/models/%2e%2e%2fetc"), 404, "is not served here", "model")
    check(served.post("/v1/completions", PLAIN | {"model": "x/../y"}), 404, "not served", "model")
    healthy(served)


def test_control_tokens_in_a_message_are_text(served):
    for text in ("</s>", "<s><unk>", "\x00\x01", "\u202e\ufdd0", "🩺" * 20):
        found = served.ask(text, max_tokens=2)
        assert found.usage.completion_tokens <= 2
    healthy(served)


def raw(served, content: bytes) -> bytes:
    """What the server answers to bytes on its socket: a head, and JSON."""
    with served.connect() as link:
        link.sendall(content)
        return answer_on(link)


def sent(*headers: str, body: bytes = b"", kind: str = "application/json") -> bytes:
    lines = ["POST /v1/completions HTTP/1.1", "Host: localhost", f"Content-Type: {kind}", *headers]
    return "\r\n".join([*lines, "", ""]).encode() + body


CHUNKED = "Transfer-Encoding: chunked"

WRONG_HTTP = {  # id: (bytes, status, words)
    "TLS": (b"\x16\x03\x01 tls?\r\n\r\n", 400, "not valid HTTP"),
    "no path": (b"GET\r\n\r\n", 400, "not valid HTTP"),
    "another version": (b"GET / HTTP/9\r\n\r\n", 400, "not valid HTTP"),
    "a long header": (b"GET / HTTP/1.1\r\nX: " + b"x" * 100_000, 400, "not valid HTTP"),
    "no host": (b"GET / HTTP/1.1\r\n\r\n", 400, "not valid HTTP"),
    "two lengths": (sent("Content-Length: 2", "Content-Length: 3"), 400, "not valid HTTP"),
    "a negative length": (sent("Content-Length: -1"), 400, "not valid HTTP"),
    "a broken chunk": (sent(CHUNKED, body=b"zz\r\n"), 400, "not valid HTTP"),
    "an unknown coding": (sent("Transfer-Encoding: gzip"), 400, "not valid HTTP"),
    "compressed": (sent("Content-Encoding: gzip", "Content-Length: 0"), 415, "send it as it is"),
    "a length that is too large": (sent("Content-Length: 2000000"), 413, "larger --max_body_mib"),
    "expecting to continue": (
        sent("Content-Length: 2000000", "Expect: 100-continue"),
        413,
        "larger --max_body_mib",
    ),
    "chunks without an end": (
        sent(CHUNKED, body=(b"10000\r\n" + b"x" * 0x10000 + b"\r\n") * 17),
        413,
        "larger --max_body_mib",
    ),
}


@pytest.mark.parametrize("case", WRONG_HTTP)
def test_wrong_http_is_explained(served, case):
    content, status, words = WRONG_HTTP[case]
    head, _, body = raw(served, content).partition(b"\r\n\r\n")
    assert head.startswith(f"HTTP/1.1 {status} ".encode()) and b"application/json" in head
    assert words in json.loads(body)["error"]["message"]
    healthy(served)


def test_what_follows_a_response_to_half_a_request_ends_the_connection(served, caplog):
    """The type is refused before the body, which then is no HTTP."""
    with served.connect() as link:
        link.sendall(sent(CHUNKED, kind="text/plain"))
        assert answer_on(link).startswith(b"HTTP/1.1 415")
        link.sendall(b"zz\r\n")
        assert link.recv(2**16) == b""
    healthy(served)
    assert not caplog.records


def test_a_repeated_field_among_many_is_found_in_one_pass():
    many = ",".join(f'"a{number}": 1' for number in range(200_000))
    with pytest.raises(ApiError, match='"a199999" is there more than once'):
        read_json(f'{{{many},"a199999": 2}}'.encode())


def test_a_byte_order_mark_is_no_part_of_the_body():
    assert read_json('\ufeff{"n": 1}'.encode()) == {"n": 1}


def test_a_client_that_hangs_up_before_its_body_ends_leaves_nothing_behind(served):
    head, body = served.written("/v1/chat/completions", CHAT)
    for part in (head, head + body[:20]):
        with served.connect() as link:
            link.sendall(part)
    healthy(served)


def test_a_foreign_host_is_refused_without_a_key(served):
    check(served.get("/v1/models", host="evil.example"), 403, "address it as localhost")
    check(served.get("/health", host="localhost.evil.example:80"), 403, "for its own machine")
    check(served.get("/health", host="localhost:80@evil.example"), 403, "for its own machine")
    assert served.get("/health", host="localhost:1").status_code == 200


KEY = "a-key-of-no-one-0123456789"


def test_a_key_is_required_where_one_is_set(source, engine, capfd):
    served = ServerThread(source, engine, key=KEY)
    try:
        for header in ({}, {"authorization": "Bearer wrong"}, {"authorization": f"Basic {KEY}"}):
            answer = served.get("/v1/models", **header)
            check(answer, 401, "Authorization: Bearer KEY")
            assert answer.headers["www-authenticate"] == "Bearer"
        check(served.get(f"/v1/models?key={KEY}"), 401, "missing or wrong")
        check(served.post("/v1/completions", PLAIN), 401, "missing or wrong")
        check(served.get("/v1/models", host="any.example/health?"), 401, "missing or wrong")
        assert served.get("/metrics").status_code == 401
        assert served.get("/health").status_code == served.get("/").status_code == 200
        assert served.ask("why", max_tokens=2).usage.completion_tokens == 2
        assert served.get("/health", host="any.example").status_code == 200
    finally:
        served.stop()
    log = capfd.readouterr().err
    assert '"status": 401' in log and KEY not in log and "wrong" not in log.replace("or wrong", "")


# Functions


def test_what_a_template_rejects_is_explained_without_a_path(source, tmp_path):
    model = ServedModel.of(source, "")
    (tmp_path / "chat_template.jinja").write_text("{{ raise_exception('roles alternate') }}")
    theirs = ChatTemplate(tmp_path, source.tokenizer)
    for template, words in (
        (theirs, "the chat template rejects a conversation: roles alternate"),
        (prompts.TEMPLATES["medalpaca"], "the template is of one question and its answer"),
    ):
        changed = dataclasses.replace(model, template=template)
        with pytest.raises(ApiError, match=words) as caught:
            changed.chat_prompt((Turn("user", "a"), Turn("assistant", "b")), "c")
        assert str(tmp_path) not in str(caught.value) and caught.value.param == "messages"


def test_reading_a_request_needs_no_server():
    call = chat_call({"model": "m", "messages": [USER, BOT, USER], "stop": "x"}, 400)
    assert [turn.role for turn in call.history] == ["user", "assistant"] and call.question == "a"
    assert call.options.stop == ("x",) and call.options.sampling.temperature == 1.0
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    given = {"model": "m", "messages": [{"role": "developer", "content": parts}, USER]}
    assert chat_call(given, 400).history[0] == ("system", "ab")
    assert completion_call({"model": "m", "prompt": [1, 2]}, 400).prompts == [[1, 2]]
    assert completion_call({"model": "m", "prompt": "a"}, 400).options.max_tokens == 16
    with pytest.raises(ApiError, match="n is true"):
        completion_call({"model": "m", "prompt": "a", "n": True}, 400)


@pytest.mark.parametrize(
    "text, keywords, problem",
    [
        ('{"a": 1}', {"required": ["a"]}, ""),
        ("{}", {"required": ["a"]}, "does not follow the schema ('a' is a required property)"),
        ("[1]", {"items": {"type": "string"}}, "1 is not of type 'string'"),
        ("{", {}, "is not JSON"),
        ('{"a": NaN}', {}, "is not JSON (NaN is not a number of JSON)"),
        ("9" * 5000, {}, "is not JSON (a number has thousands of digits)"),
        ("[1, true, 0, false, [1], [true], {}]", {"uniqueItems": True}, ""),
        ('[{"a": [1]}, {"a": [1.0]}]', {"uniqueItems": True}, "equal items"),
        (json.dumps([{"a": i} for i in range(3000)]), {"uniqueItems": True, "minItems": 1}, ""),
        ("9" * 400, {"multipleOf": 0.5}, "cannot be checked by this schema (OverflowError)"),
        ("1", {"title": "a", "$ref": "#/title"}, "cannot be checked by this schema"),
        ("1", {"$ref": "http://192.0.2.1/schema"}, "refers to what it lacks"),
        ("1", {"$ref": "#"}, "takes too long to check"),
        ("[" * 9 + "]" * 9, {"$defs": {"a": {"items": {"anyOf": [{"$ref": "#/$defs/a"}] * 9}}},
          "$ref": "#/$defs/a", "not": {}}, "takes too long|does not follow"),
    ],
)  # fmt: skip
def test_an_answer_is_checked_at_a_bounded_cost(text, keywords, problem, monkeypatch):
    monkeypatch.setattr(json_answers, "CHECK_SECONDS", 1.0)
    found = json_answers.answer_problem(text, keywords)
    assert any(words in found for words in problem.split("|")) and bool(found) == bool(problem)


def test_without_a_schema_an_object_is_asked_for():
    assert json_answers.answer_problem("{}", None) == ""
    assert "not a JSON object" in json_answers.answer_problem("[]", None)


def test_time_ends_an_answer(source, engine):
    served = ServerThread(source, engine, request_seconds=0.2)
    try:
        engine.step, step = lambda: asyncio.run(asyncio.sleep(0.4)) or step(), engine.step
        answer = served.post("/v1/chat/completions", CHAT)
        check(answer, 504, "more --request_seconds")
        streamed = served.post("/v1/chat/completions", CHAT | {"stream": True})
        error = json.loads(streamed.text.split("data: ")[-1])["error"]
        assert error["code"] == "timeout" and "[DONE]" not in streamed.text
    finally:
        del engine.step
        served.stop()
