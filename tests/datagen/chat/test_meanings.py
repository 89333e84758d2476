"""What errors of providers and servers mean, over real HTTP: for a request, or for the run."""

import doctest
import json
import time

import pytest

from datagen.chat import attempts, errors, meanings
from datagen.chat import config as chat_config
from datagen.chat.client import Client
from datagen.chat.errors import (
    Failure,
    FatalProviderError,
    RejectedRequestError,
    RetryableError,
    RunStoppedError,
    status_error,
)
from datagen.chat.store import AnswerStore
from tests.support.chat_runs import answer_texts, ask, make_config, requests, rows, texts
from tests.support.chat_server import ChatServer, openai_reply, question

RUN, PASSING = (FatalProviderError, None), (RetryableError, None)
ITEM, UNCLEAR = (RejectedRequestError, True), (RejectedRequestError, False)
"""(class, `own`) of exceptions."""


def error(message="", **fields):
    return json.dumps({"error": {"message": message} | fields})


MEANINGS = [
    # The key.
    (401, error("Incorrect API key provided: x"), RUN),
    (400, error("API key not valid. Please pass a valid API key.", code=400), RUN),
    (500, error("litellm.AuthenticationError: invalid_api_key"), RUN),
    (200, error("No auth credentials found", code=401), RUN),
    (407, "", RUN),
    # Credit.
    (429, error("You exceeded your current quota", code="insufficient_quota"), RUN),
    (429, error("", code="credit_balance_exhausted"), RUN),
    (429, error("", code="organization_spend_limit_exceeded"), RUN),
    (400, error("Your credit balance is too low to access the API"), RUN),
    (402, error("Insufficient Balance"), RUN),
    (402, "", RUN),
    (400, error("Access denied, account in good standing needed", code="Arrearage"), RUN),
    (403, error("This request requires more credits, or fewer max_tokens"), RUN),
    # The account.
    (429, error("Monthly allowance gone", code="insufficient_quota"), RUN),
    (403, error("Key limit exceeded (total limit)", code=403), RUN),  # OpenRouter
    (400, error("You have reached the API usage limits you specified"), RUN),  # Anthropic
    (400, error("Budget has been exceeded! Current cost: 2.0", type="budget_exceeded"), RUN),
    (403, error("The free tier is used up", code="AllocationQuota.FreeTierOnly"), RUN),  # Alibaba
    (403, '{"code": "denied", "error": "Your team has used all available credits"}', RUN),  # xAI
    # The quota of a day or month.
    (429, json.dumps([{"error": {"code": 429, "message": "You exceeded your current quota",
        "details": [{"quotaId": "GenerateRequestsPerDayPerProjectPerModel"},
                    {"retryDelay": "36s"}]}}]), RUN),  # Gemini
    (429, error("Limit reached: free-models-per-day", code=429), RUN),  # OpenRouter
    (429, '{"message": "Too many tokens per day, please wait and try again"}', RUN),  # Bedrock
    (429, '{"message": "This key allows 1000 API calls / month"}', RUN),  # Cohere
    (429, error("Rate limit on requests per day (RPD). Please try again in 7h12m."), RUN),
    (429, error("Rate limit of 50 per 86400s. Please wait 39427 seconds before retrying."), RUN),
    # The account.
    (429, error("Your account is not active", code="billing_not_active"), RUN),
    (400, error("Organization has been restricted", code="organization_restricted"), RUN),  # Groq
    (412, error("Account x is suspended, maybe for unpaid invoices"), RUN),  # Fireworks
    (400, error("User location is not supported for the API use.", code=400), RUN),  # Gemini
    (403, error("Request not allowed", type="forbidden"), RUN),  # Anthropic
    (403, '{"message": "The security token included in the request is expired"}', RUN),  # Bedrock
    (403, error("Your API key does not have permission", type="permission_error"), RUN),
    (403, error("", status="PERMISSION_DENIED", code=403), RUN),  # Gemini
    (401, '{"statusCode": 401, "message": "Unauthorized. Access token is missing"}', RUN),  # Azure
    (500, error("litellm.AuthenticationError: no key"), RUN),
    (403, error("Country, region, or territory not supported"), RUN),
    (401, error("This organization has been disabled."), RUN),
    # The model and the address.
    (404, error("The model `x` does not exist or you do not have access"), RUN),
    (400, error("Model Not Exist"), RUN),
    (400, error("x is not a valid model ID", code=400), RUN),
    (400, error("The model has been decommissioned", code="model_decommissioned"), RUN),  # Groq
    (400, error("Unable to access non-serverless model x", code="model_not_available"), RUN),
    (400, '{"message": "The provided model identifier is invalid."}', RUN),  # Bedrock
    (403, error("Project p does not have access to model x", code="model_not_found"), RUN),
    (400, '{"object": "error", "message": "Invalid model: x", "code": "1500"}', RUN),  # Mistral
    (404, error("model 'x' not found, try pulling it first"), RUN),  # Ollama
    (400, error("No models loaded. Please load a model"), RUN),  # LM Studio
    (500, error("model requires more system memory than is available"), RUN),  # Ollama
    (404, error("The API deployment does not exist", code="DeploymentNotFound"), RUN),  # Azure
    (200, '{"error": "Unexpected endpoint or method. (POST /x)"}', RUN),  # LM Studio
    (404, '{"detail": "Not Found"}', RUN),
    (405, "", RUN),
    (307, "", RUN),
    # Settings.
    (400, error("Unsupported value: 'temperature' does not support 0.2"), RUN),
    (400, error("", code="unsupported_parameter"), RUN),
    (400, error("max_tokens: 99 > 64, which is the maximum allowed number of output tokens"), RUN),
    (422, '{"detail": [{"type": "extra_forbidden", "loc": ["body", "top_k"]}]}', RUN),
    (400, error("max_tokens is too large: this model supports at most 4 completion tokens"), RUN),
    (400, error("Invalid 'temperature': decimal above max value", code="decimal_above_max_value"),
     RUN),
    (400, '{"object": "error", "message": "litellm.UnsupportedParamsError: x"}', RUN),
    (400, error('"x" does not support thinking'), RUN),  # Ollama
    # One request.
    (403, error("Input flagged", code=403, metadata={"reasons": ["violence"]}), ITEM),
    (400, error("Content Exists Risk", type="invalid_request_error"), ITEM),
    (400, error("The response was filtered", code="content_filter"), ITEM),
    (400, error("Invalid prompt: your prompt was flagged", code="invalid_prompt"), ITEM),
    (400, error("Input data may be bad", code="data_inspection_failed"), ITEM),
    (400, error("", code="ResponsibleAIPolicyViolation"), ITEM),
    (400, error("This model's maximum context length is 8192 tokens", code="x"), ITEM),
    (400, error("'max_tokens' or 'max_completion_tokens' is too large: 9. This model's maximum "
                "context length is 8 tokens and your request has 3"), ITEM),
    (400, error("prompt is too long: 210000 tokens > 200000 maximum"), ITEM),
    (403, error("Input token count + max_tokens parameter must be less than the context"), ITEM),
    (500, error("the request exceeds the available context size. try increasing it"), ITEM),
    (400, error("Output blocked by content filtering policy"), ITEM),  # Anthropic
    (403, '{"code": "denied", "error": "Content violates usage guidelines"}', ITEM),  # xAI
    (400, error("", code="content_filter", innererror={"code": "ResponsibleAIPolicyViolation"}),
     ITEM),  # Azure
    (400, error("litellm.ContentPolicyViolationError: x"), ITEM),
    (400, error("litellm.ContextWindowExceededError: x"), ITEM),
    (400, '{"code": "DataInspectionFailed", "message": "bad"}', ITEM),  # Alibaba
    (400, error("Unsafe or sensitive content may be in the input", code="1301"), ITEM),  # Zhipu
    (400, error("rejected because it was considered high risk", type="content_filter"), ITEM),
    (400, error("The prompt (length 9) is longer than the maximum model length of 8"), ITEM),
    (400, '{"object": "error", "message": "The input (9 tokens) is longer than the model\'s '
          'context length (8 tokens)."}', ITEM),  # SGLang
    (400, error("Input length (9 tokens) exceeds the maximum allowed length (8 tokens)"), ITEM),
    (422, '{"error": "Input validation error: `inputs` tokens + `max_new_tokens` must be <= 8", '
          '"error_type": "validation"}', ITEM),  # TGI
    (400, error("the request exceeds the context", type="exceed_context_size_error"), ITEM),
    (400, '{"message": "Input is too long for requested model."}', ITEM),  # Bedrock
    (400, error("input length and `max_tokens` exceed context limit: 9 + 8 > 10"), ITEM),
    (400, error("messages: text content blocks must be non-empty"), ITEM),  # Anthropic
    (400, error("Failed to generate JSON.", code="json_validate_failed",
                failed_generation="my api key is invalid"), ITEM),  # Groq
    (403, error("Your input was flagged", code=403, metadata={
        "flagged_input": "insufficient quota of kindness"}), ITEM),  # OpenRouter
    (400, error("[{'loc': ('body',), 'msg': 'too long', 'input': 'unknown model'}]"), UNCLEAR),
    (413, error("", type="request_too_large"), ITEM),
    (413, "<html>too large</html>", ITEM),
    (429, error("Request too large for gpt-4o on tokens per min (TPM): Limit 30000"), ITEM),
    (400, '{"detail": [{"msg": "bad", "input": "my credit balance is too low"}]}', UNCLEAR),
    # What passes.
    (429, error("Rate limit reached for requests per min (RPM)"), PASSING),
    (429, json.dumps([{"error": {"code": 429, "message": "You exceeded your current quota",
                                 "details": [{"retryDelay": "30s"}]}}]), PASSING),
    (429, error("This request would exceed the rate limit of 20,000 input tokens per minute. "
                "Please reduce the prompt length or the maximum tokens requested"), PASSING),
    (429, '{"message": "Too many tokens, please wait before trying again."}', PASSING),  # Bedrock
    (429, error("Rate limit on tokens per day. Please try again in 4m19.2s"), PASSING),  # Groq
    (429, error("exceeded the call rate limit. Please retry after 20 seconds."), PASSING),  # Azure
    (429, error("Resource has been exhausted (e.g. check quota).", code=429,
                status="RESOURCE_EXHAUSTED"), PASSING),  # Gemini
    (429, '{"object": "error", "message": "Requests rate limit exceeded"}', PASSING),  # Mistral
    (429, error("No deployments available. Try again in 60 seconds"), PASSING),  # LiteLLM
    (400, '{"__type": "ThrottlingException"}', PASSING),  # Bedrock
    (424, '{"message": "The model timed out"}', PASSING),  # Bedrock
    (498, error("Flex capacity exceeded", code="capacity_exceeded"), PASSING),  # Groq
    (529, error("Overloaded", type="overloaded_error"), PASSING),
    (503, error("Loading model", type="unavailable_error"), PASSING),
    (502, "<html>Bad Gateway</html>", PASSING),
    (408, "", PASSING),
    (200, error("Provider returned error", code=502), PASSING),
    (200, error("something else"), PASSING),
]  # fmt: skip


def test_doctests():
    assert doctest.testmod(errors).failed == 0


@pytest.mark.parametrize(("status", "body", "kind"), MEANINGS)
def test_what_an_error_means(status, body, kind):
    found = status_error(make_config(None), status, body)
    assert isinstance(found, kind[0]) and getattr(found, "own", None) == kind[1], found
    assert getattr(found, "billed", False) == (status == 502), "a gateway's provider may charge"


def test_each_row_has_a_cause_a_remedy_and_a_source():
    for row in meanings.ERROR_MEANINGS:
        assert row.cause and row.remedy and row.sources
        assert row.phrases == row.phrases.lower() and not set("_-") & set(row.phrases)


def flagged(status, content, **headers):
    """An error to questions that end in 5."""
    return lambda body: (status, content, headers) if question(body).endswith("5") else None


@pytest.mark.parametrize(
    ("status", "content"),
    [
        (403, {"error": {"code": 403, "message": "input flagged by moderation"}}),
        (400, {"error": {"code": "content_filter", "message": "prompt filtered"}}),
        (429, {"error": {"type": "tokens", "message": "request larger than the limit per minute"}}),
        (400, {"error": {"message": "maximum context length is 4096 tokens"}}),
        (200, {"error": {"message": "flagged", "code": 403}}),
        (413, "<html><title>413 Request Entity Too Large</title></html>"),
    ],
)
def test_an_error_of_an_item_rejects_it_alone(server, tmp_path, status, content):
    server.error = flagged(status, content)
    got, client, stopped = ask(make_config(server), tmp_path / "s", requests(40))
    assert stopped is None and client.counts["retried"] == 0
    failed = {i: outcome for i, outcome in got.items() if isinstance(outcome, Failure)}
    assert sorted(failed) == [5, 15, 25, 35] and all(f.own for f in failed.values())
    assert len(server.bodies) == 40 and client.counts["rejected by the server"] == 4


@pytest.mark.parametrize("concurrency", [1, 16])
@pytest.mark.parametrize("code", ["content_filter", "context_length_exceeded"])
def test_the_first_three_may_be_rejected_for_their_content(server, tmp_path, concurrency, code):
    first = {f"question {i}" for i in range(3)}
    server.error = lambda body: (
        (400, {"error": {"code": code}}, {}) if question(body) in first else None
    )
    config = make_config(server, concurrency=concurrency)
    got, _, stopped = ask(config, tmp_path / "s", requests(20))
    assert stopped is None and answer_texts(got) == texts(20, 3)


@pytest.mark.parametrize("concurrency", [1, 16])
def test_nor_do_a_few_rejections_without_a_known_reason_end_it(server, tmp_path, concurrency):
    first = {f"question {i}" for i in range(9)}
    server.error = lambda body: (400, error("no"), {}) if question(body) in first else None
    config = make_config(server, concurrency=concurrency)
    got, _, stopped = ask(config, tmp_path / "s", requests(40))
    assert stopped is None and answer_texts(got) == texts(40, 9)


def test_what_is_on_its_way_may_prove_a_doubt_wrong(server, tmp_path):
    def slow_error(body):
        if int(question(body).split()[-1]) < 12:
            return 400, {"error": {"message": "no reason"}}, {}
        time.sleep(0.3)
        return None

    server.error = slow_error
    got, _, stopped = ask(make_config(server), tmp_path / "s", requests(60))
    assert stopped is None and answer_texts(got) == texts(60, 12)


@pytest.mark.parametrize(
    ("status", "content", "headers", "says"),
    [
        (400, {"error": {"message": "credit balance too low"}}, {}, "there is no credit"),
        (429, {"error": {"code": "billing_not_active"}}, {}, "may not use the API"),
        (200, {"error": {"message": "no credentials", "code": 401}}, {}, "OPENAI_API_KEY"),
        (429, {"error": {"message": "daily limit"}}, {"Retry-After": "77000"}, "wait 21h23m"),
        (429, {"error": {"message": "Please try again in 7h12m."}}, {}, "wait 7h12m"),
        (
            200,
            "<!DOCTYPE html><title>Log in</title>",
            {"Content-Type": "text/html"},
            "an HTML page",
        ),
        (403, "<html>Blocked</html>", {"Content-Type": "text/html"}, "an HTML page (403)"),
        (
            200,
            "data: {}\n\ndata: [DONE]\n\n",
            {"Content-Type": "text/event-stream"},
            "a stream (text/event-stream)",
        ),
        (200, "It works!", {"Content-Type": "text/plain"}, "text/plain, which begins 'It works!'"),
        (404, {"error": {"message": "no such path"}}, {}, "base_url"),
        (200, {"error": "Unexpected endpoint or method. (POST /x)"}, {}, "ends with /v1"),
        (200, {"object": "error", "message": "Invalid API key", "code": 401}, {}, "OPENAI_API_KEY"),
        (200, {"detail": "Unauthorized"}, {}, "OPENAI_API_KEY"),
        (307, "", {"Location": "/elsewhere"}, "base_url"),
        (
            400,
            {"error": {"code": "unsupported_parameter", "message": "use max_completion_tokens"}},
            {},
            'extra_body=\'{"max_tokens": null, "max_completion_tokens": 50}\'',
        ),
    ],
)
@pytest.mark.parametrize("first", [0, 20])
def test_an_error_of_the_run_ends_it(server, tmp_path, status, content, headers, says, first):
    server.error = lambda body: (status, content, headers) if len(server.bodies) > first else None
    got, client, stopped = ask(make_config(server, concurrency=4), tmp_path / "s", requests(500))
    assert isinstance(stopped, RunStoppedError) and says in str(stopped)
    assert len(server.bodies) <= first + 8 and client.counts["retried"] == 0
    assert len(answer_texts(got)) <= first


def test_who_waits_for_a_limit_does_not_hold_up_the_end(server, tmp_path):
    def reply(body):
        if len(server.bodies) <= 2:
            return 429, {"error": {"message": "too many"}}, {"Retry-After": "550"}
        time.sleep(0.3)
        return 401, error("no such key"), {}

    server.error, started = reply, time.monotonic()
    config = make_config(server, concurrency=4)
    _, _, stopped = ask(config, tmp_path / "s", requests(100))
    assert "the key is rejected" in str(stopped) and len(server.bodies) <= 4
    assert time.monotonic() - started < 500, "two would wait for 550 s, and others for a slot"


def test_the_remedy_for_max_completion_tokens_works(server, tmp_path):
    server.error = lambda body: (400, {"error": {}}, {}) if "max_tokens" in body else None
    extra = '{"max_tokens": null, "max_completion_tokens": 50}'
    got, *_ = ask(make_config(server, extra_body=extra), tmp_path / "s", requests(1))
    assert answer_texts(got) == texts(1)
    with pytest.raises(ValueError, match="so no budget could hold"):
        requests(1)[0][1].body(make_config(server, extra_body='{"max_tokens": null}'))


def test_a_wait_is_announced(server, tmp_path, monkeypatch):
    monkeypatch.setattr(attempts, "ANNOUNCED_WAIT", 0.1)
    reports = []
    too_many = 429, {"error": {"message": "too many"}}, {"Retry-After": "0.2"}
    server.error = lambda body: too_many if len(server.bodies) < 3 else None
    got, _, stopped = ask(make_config(server), tmp_path / "s", requests(2), report=reports.append)
    assert stopped is None and answer_texts(got) == texts(2)
    assert sum("waiting" in line and "too many" in line for line in reports) == 1


def test_a_limit_that_is_reached_is_announced(server, tmp_path, monkeypatch):
    monkeypatch.setattr(attempts, "ANNOUNCED_WAIT", 0.1)
    server.headers = {"x-ratelimit-remaining-requests": "0", "x-ratelimit-reset-requests": "200ms"}
    reports = []
    config = make_config(server, concurrency=1)
    got, *_ = ask(config, tmp_path / "s", requests(3), report=reports.append)
    assert answer_texts(got) == texts(3)
    assert sum("waiting" in line and "rate limit is reached" in line for line in reports) == 1


@pytest.mark.parametrize("concurrency", [1, 16])
def test_a_429_that_never_passes_ends_a_run_at_any_time(server, tmp_path, concurrency):
    too_many = 429, {"error": {"message": "try later"}}, {}
    server.error = lambda body: too_many if len(server.bodies) > 20 else None
    config = make_config(server, attempts=2, concurrency=concurrency)
    got, client, stopped = ask(config, tmp_path / "s", requests(500))
    assert "answers no more: no answer in 2 attempts; the last: Error code: 429" in str(stopped)
    assert len(answer_texts(got)) == 20 and client.counts["given up"] <= 2 + concurrency


def test_a_server_that_is_gone_ends_a_run(tmp_path):
    server = ChatServer(kinds=("drop",))

    def answer(body):
        if len(server.bodies) == 9:
            server.close()
            server.faults = 1.0  # on the connection that is still open
        return "an answer"

    server.answer = answer
    config = make_config(server, attempts=2, concurrency=1)
    got, _, stopped = ask(config, tmp_path / "s", requests(500))
    assert "answers no more" in str(stopped) and len(answer_texts(got)) == 9


def test_an_upstream_failure_in_a_choice_is_asked_again_and_charged(server, tmp_path):
    failed = openai_reply("", "error")
    failed["choices"][0]["error"] = {"code": 502, "message": "upstream failed"}
    server.error = lambda body: (200, failed, {}) if len(server.bodies) == 1 else None
    got, client, _ = ask(make_config(server), tmp_path / "s", requests(1))
    assert answer_texts(got) == texts(1) and client.counts["retried"] == 1
    assert client.total.tokens == 2 * 27
    assert rows(tmp_path / "s", "SELECT what FROM charges") == [("error",), ("answer",)]


def test_a_run_whose_first_answers_end_with_an_unknown_word_says_so(server, tmp_path):
    reply = openai_reply("An answer.", "fertig")
    server.error = lambda body: (200, reply, {})
    _, _, stopped = ask(make_config(server, concurrency=2), tmp_path / "s", requests(500))
    assert "every answer so far ends with 'fertig', a word of the server" in str(stopped)
    assert len(server.bodies) <= 8
    server.error = lambda body: (200, reply, {}) if len(server.bodies) % 3 else None
    got, client, stopped = ask(make_config(server, model="m2"), tmp_path / "s", requests(30))
    assert stopped is None and {a.finish_reason for a in got.values()} == {"stop", "fertig"}
    assert "20 ending with 'fertig'" in client.summary()


def test_a_run_whose_first_answers_are_all_cut_in_their_thoughts_says_so(server, tmp_path):
    server.always = (200, openai_reply("<think>Let me see", "length"))
    _, _, stopped = ask(make_config(server, concurrency=2), tmp_path / "s", requests(500))
    assert "every answer so far is cut before its text begins; raise max_tokens" in str(stopped)


# The address and the key.


def test_the_base_url_of_the_environment_is_recorded_reported_and_part_of_the_key(
    server, tmp_path, monkeypatch
):
    plain = make_config(None)
    monkeypatch.setenv("OPENAI_BASE_URL", f"{server.url}/v1")
    config, reports = make_config(None), []
    assert config.base_url == f"{server.url}/v1" and plain.base_url == ""
    got, *_ = ask(config, tmp_path / "s", requests(2), report=reports.append)
    assert answer_texts(got) == texts(2) and len(server.bodies) == 2
    assert f"stand-in is asked at {server.url}/v1 (OPENAI_BASE_URL)" in reports
    _, request = requests(1)[0]
    with AnswerStore(tmp_path / "s") as store:
        assert Client(config, store).stored(request)
        assert not Client(plain, store).stored(request)
    monkeypatch.setenv("OPENAI_CUSTOM_HEADERS", "X-Tier: secret-of-a-header\nX-Way: b")
    got, client, _ = ask(config, tmp_path / "s", requests(2), report=reports.append)
    assert client.counts["answered"] == 2, "headers may change an answer"
    assert "headers of the environment are sent, too: X-Tier, X-Way" in reports
    assert chat_config.environment() == {"OPENAI_CUSTOM_HEADERS": ["X-Tier", "X-Way"]}
    monkeypatch.setenv("OPENAI_BASE_URL", "http://user:secret@proxy/v1")
    with pytest.raises(ValueError, match="no password or key"):
        make_config(None)


@pytest.mark.parametrize("key", ["sk-test\n", "“sk-test”", '"sk-test"', "sk test", "sk-tést", " "])
def test_a_key_that_cannot_be_one_is_named_by_its_variable(server, tmp_path, monkeypatch, key):
    monkeypatch.setenv("OPENAI_API_KEY", key)
    with pytest.raises(ValueError, match="OPENAI_API_KEY contains a space, a line end") as told:
        ask(make_config(server), tmp_path / "s", requests(1))
    assert "test" not in str(told.value) and not server.bodies


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("OPENAI_ORG_ID", "org\nx", "OPENAI_ORG_ID contains a space, a line end"),
        ("OPENAI_CUSTOM_HEADERS", "X-A: café", "OPENAI_CUSTOM_HEADERS contains"),
        ("SSL_CERT_FILE", "/nowhere", "SSL_CERT_FILE or SSL_CERT_DIR cannot be read"),
    ],
)
def test_a_variable_that_cannot_be_used_is_named(server, tmp_path, monkeypatch, name, value, says):
    monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match=says):
        ask(make_config(server), tmp_path / "s", requests(3))
    assert not server.bodies


def test_a_proxy_of_the_environment_is_named(server, tmp_path, monkeypatch):
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    _, _, stopped = ask(make_config(server), tmp_path / "s", requests(3))
    assert "cannot be reached" in str(stopped) and "HTTP_PROXY and its kin" in str(stopped)


@pytest.mark.parametrize(
    "url", ["http:///v1", "http://a b/v1", "http://h:99999/v1", "h/v1", "http://h/\n"]
)
def test_an_address_that_is_none_is_refused(url):
    with pytest.raises(ValueError, match="base_url is "):
        make_config(None, base_url=url)


def test_another_spelling_of_the_address_pays_nothing_again(server, tmp_path):
    ask(make_config(server), tmp_path / "s", requests(5))
    local = server.url.replace("127.0.0.1", "localhost")
    for url in (f"{server.url}/v1/", f"{local}/v1", f"{local}/v1//"):
        config = make_config(None, base_url=url)
        got, client, _ = ask(config, tmp_path / "s", requests(5))
        assert answer_texts(got) == texts(5) and client.counts["stored"] == 5
    assert len(server.bodies) == 5


def test_a_higher_limit_asks_again_for_what_was_cut_only(server, tmp_path):
    def cut(body):
        is_cut = question(body).endswith("3") and body["max_tokens"] < 100
        return (200, openai_reply("half an", "length"), {}) if is_cut else None

    server.error = cut
    ask(make_config(server), tmp_path / "s", requests(10))
    got, client, _ = ask(make_config(server, max_tokens=200), tmp_path / "s", requests(10))
    assert answer_texts(got) == texts(10) and client.counts["stored"] == 9
    assert len(server.bodies) == 11
    got, client, _ = ask(make_config(server), tmp_path / "s", requests(10))
    assert got[3].text == "half an" and client.counts == {"stored": 10}, "as it was"
    got, client, _ = ask(make_config(server, max_tokens=5), tmp_path / "s", requests(10))
    assert client.counts["answered"] == 10, "each of these took 7 tokens"


def test_answers_of_an_earlier_version_are_found(server, tmp_path):
    config, (_, request) = make_config(server), requests(1)[0]
    ask(config, tmp_path / "s", requests(1))
    former = request.key(config, request.body(config)).former
    with AnswerStore(tmp_path / "s") as store:
        store.rows("UPDATE answers SET key = ?", former)
        store._reader.commit()
    got, *_ = ask(config, tmp_path / "s", requests(1))
    assert answer_texts(got) == texts(1) and len(server.bodies) == 1
