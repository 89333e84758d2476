"""What an error of a provider or server means: for its request, or for the whole run.

The first row of ERROR_MEANINGS that fits decides. docs/provider_errors.md shows the table; to add a
row, add it here and run `python -m tests.docs.provider_errors --write`.
"""

import json
import os
import re
from collections.abc import Iterator, Mapping
from enum import StrEnum
from typing import Any, NamedTuple

from common import messages
from datagen.chat.config import API_KEY_VARIABLES, ChatConfig
from datagen.chat.errors import (
    AttemptError,
    FatalProviderError,
    NotFoundError,
    RejectedRequestError,
    RetryableError,
)
from datagen.chat.rate_limit import MAX_PAUSE, seconds_until

GATEWAY_STATUSES = (502, 504, 520, 522, 523, 524)
"""Of a server in between (RFC 9110; Cloudflare): the provider behind it may charge all the same."""


class Meaning(StrEnum):
    """Whom an error concerns."""

    RUN = "run"  # no request will be answered: the run ends
    ITEM = "item"  # this request is rejected; the run goes on
    UNCLEAR = "item or run"  # an item's, unless all requests so far are rejected like it
    PASSING = "passing"  # the request is sent again


class ErrorMeaning(NamedTuple):
    """A row: errors with one of these statuses and, if there are any, one of these phrases."""

    meaning: Meaning
    statuses: str  # such as "400 429 5.."; a dot is any digit; "": any
    phrases: str  # of code, type and message, separated by |; _ is a space; … is a few words
    cause: str
    remedy: str
    sources: str


OPENAI = "https://developers.openai.com/docs/guides/error-codes"
ANTHROPIC = "https://docs.anthropic.com/en/api/errors"
OPENROUTER = "https://openrouter.ai/docs/api/reference/errors-and-debugging"
TOGETHER = "https://docs.together.ai/docs/error-codes"
DEEPSEEK = "https://api-docs.deepseek.com/quick_start/error_codes"
GEMINI = "https://ai.google.dev/gemini-api/docs/troubleshooting"
AZURE = "https://learn.microsoft.com/azure/ai-services/openai/concepts/content-filter"
ALIBABA = "https://www.alibabacloud.com/help/en/model-studio/error-code"
HTTP = "https://www.rfc-editor.org/rfc/rfc9110#section-15"
SERVERS = "vLLM, llama.cpp and Ollama, as they reply"

_KEY = "check the key in {variable}"
_CREDIT = "add credit or raise the limit of the account, and rerun"
_SETTING = (
    "check temperature, top_p, presence_penalty, reasoning_effort, max_tokens and extra_body for "
    "the model {model!r}"
)
_ADDRESS = "check base_url and the model {model!r}"

ERROR_MEANINGS = (
    ErrorMeaning(
        Meaning.ITEM,
        "",
        "request too large | request is too large | request larger than | payload too large | "
        "entity too large",
        "one request is too large",
        "shorten it",
        f"{OPENAI} {ANTHROPIC}",
    ),
    ErrorMeaning(
        Meaning.PASSING,
        "429",
        "per minute | per min | retrydelay | retry in",
        "a rate limit",
        "wait",
        f"{OPENAI} {GEMINI}",
    ),
    ErrorMeaning(
        Meaning.RUN,
        "",
        "invalid api key | incorrect api key | api key not valid | api key is invalid | "
        "api key … expired | invalid authentication | authentication error | unauthorized | "
        "no credentials | no auth credentials | invalid credentials | invalid x api key",
        "the key is rejected",
        _KEY,
        f"{OPENAI} {ANTHROPIC} {OPENROUTER} {GEMINI}",
    ),
    ErrorMeaning(
        Meaning.RUN,
        "",
        "insufficient quota | current quota | credit balance | insufficient balance | "
        "insufficient credit | insufficient funds | out of credits | more credits | spend limit | "
        "spending limit | billing error | billing hard limit | payment required | arrearage",
        "there is no credit",
        _CREDIT,
        f"{OPENAI} {ANTHROPIC} {OPENROUTER} {TOGETHER} {DEEPSEEK} {ALIBABA}",
    ),
    ErrorMeaning(
        Meaning.RUN,
        "",
        "billing not active | account … not active | account … deactivated | account … disabled | "
        "account … suspended | account … flagged | organization … disabled | "
        "organization … deactivated | member of an organization | ip not authorized | "
        "country, region | unsupported country",
        "the account may not use the API",
        "see the account's page at the provider",
        OPENAI,
    ),
    ErrorMeaning(
        Meaning.ITEM,
        "",
        "moderation | flagged | content filter | content policy | content management policy | "
        "responsibleai | responsible ai | content exists risk | data inspection | invalid prompt | "
        "inappropriate content | sensitive content | blocked by … safety | prohibited content",
        "the request is refused for its content",
        "leave it out, or ask another model",
        f"{OPENAI} {OPENROUTER} {AZURE} {DEEPSEEK} {ALIBABA}",
    ),
    ErrorMeaning(
        Meaning.ITEM,
        "",
        "context length | context window | context size | context limit | prompt is too long | "
        "prompt too long | input is too long | too many tokens | input token count | "
        "string too long | string above max length | token limit exceeded",
        "prompt and answer exceed the context",
        "shorten it, or lower max_tokens",
        f"{OPENAI} {TOGETHER} {GEMINI} {SERVERS}",
    ),
    ErrorMeaning(
        Meaning.RUN,
        "400 422",
        "max completion tokens",
        "the model takes max_completion_tokens only",
        'set extra_body=\'{{"max_tokens": null, "max_completion_tokens": {max_tokens}}}\'',
        OPENAI,
    ),
    ErrorMeaning(
        Meaning.RUN,
        "4..",
        "unsupported parameter | unsupported value | unknown parameter | unrecognized argument | "
        "unrecognized request argument | extra inputs are not permitted | extra forbidden | "
        "maximum allowed number of output tokens | does not support",
        "the model rejects a setting",
        _SETTING,
        f"{OPENAI} {ANTHROPIC} {SERVERS}",
    ),
    ErrorMeaning(
        Meaning.RUN,
        "4..",
        "model not found | model … does not exist | model … not found | model not exist | "
        "unknown model | invalid model | not a valid model | model … decommissioned | "
        "model … deprecated",
        "there is no such model",
        _ADDRESS,
        f"{OPENAI} {OPENROUTER} {DEEPSEEK} {SERVERS}",
    ),
    ErrorMeaning(Meaning.RUN, "401 407", "", "the key is rejected", _KEY, HTTP),
    ErrorMeaning(Meaning.RUN, "402", "", "there is no credit", _CREDIT, f"{DEEPSEEK} {OPENROUTER}"),
    ErrorMeaning(
        Meaning.RUN,
        "3.. 404 405 410 421 501",
        "",
        "nothing answers there",
        f"{_ADDRESS}, and the key in {{variable}}",
        HTTP,
    ),
    ErrorMeaning(Meaning.ITEM, "413 451", "", "the request is refused", "shorten it", HTTP),
    ErrorMeaning(
        Meaning.PASSING,
        "408 409 425 429 5..",
        "",
        "the server is busy or fails",
        "wait",
        f"{HTTP} {ANTHROPIC}",
    ),
    ErrorMeaning(
        Meaning.UNCLEAR,
        "4..",
        "",
        "the request is rejected",
        f"{_KEY}, the model {{model!r}}, base_url and settings such as temperature",
        HTTP,
    ),
)


def status_error(
    config: ChatConfig, status: int, body: str, retry_after: float | None = None
) -> AttemptError:
    """The exception for an error reply, whose text `body` may contain keys.

    Args:
      status: of HTTP; with 200, the code in the body counts, if there is one.
    """
    words, code = _words(body)
    billed = status in GATEWAY_STATUSES
    if status == 200:
        status = code or 500
    row = _row(status, words)
    message = short_text(f"Error code: {status} - {body}")
    if row.meaning == Meaning.PASSING:
        retry_after = _seconds_named(words) if retry_after is None else retry_after
        if (retry_after or 0) <= MAX_PAUSE:
            return RetryableError(message, status=status, retry_after=retry_after, billed=billed)
        wait = messages.duration(retry_after or 0)
        return FatalProviderError(f"{message}; the provider asks to wait {wait}: rerun after that")
    if row.meaning == Meaning.ITEM:
        return RejectedRequestError(f"{row.cause}: {message}", own=True)
    remedy = row.remedy.format(
        variable=API_KEY_VARIABLES[config.provider],
        model=config.model,
        max_tokens=config.max_tokens,
    )
    if row.meaning == Meaning.UNCLEAR:
        return RejectedRequestError(f"{message}; {remedy}")
    text = f"{config.base_url or config.provider}: {row.cause}: {message}; {remedy}"
    return (NotFoundError if status == 404 else FatalProviderError)(text)


def short_text(error: BaseException | str) -> str:
    """One line of an error, at most 300 characters, without anything that could be a key."""
    text = " ".join(str(error).split())
    for variable in API_KEY_VARIABLES.values():
        if key := os.environ.get(variable, "").strip():
            text = text.replace(key, "[key]")
    text = re.sub(r"\bsk-[\w*.-]{4,}", "[key]", text)
    return text[:300] or type(error).__name__


def _row(status: int, words: str) -> ErrorMeaning:
    for row in ERROR_MEANINGS:
        phrases = [re.escape(phrase.strip()) for phrase in row.phrases.split("|")]
        pattern = "|".join(phrases).replace("…", ".{0,60}")
        allowed = row.statuses.split() or ["..."]
        if re.search(pattern, words) and any(re.fullmatch(s, str(status)) for s in allowed):
            return row
    return ERROR_MEANINGS[-1]  # a status that is none, such as 299 or 600


def _words(body: str) -> tuple[str, int]:
    """(all words of an error in lower case, without _ and -; its code if that is a status)."""
    try:
        content = json.loads(body)
    except (ValueError, RecursionError):
        content = {"message": body[:2000]}
    values = list(_scalars(content))
    codes = [str(value) for name, value in values if name in ("code", "status", "http_code")]
    code = next((int(c) for c in codes if re.fullmatch("[45][0-9][0-9]", c)), 0)
    text = " ; ".join(str(value)[:2000] for _, value in values)
    return re.sub(r"[_-]", " ", text.lower()), code


def _scalars(content: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(content, Mapping):
        for inner, value in content.items():
            if inner in ("input", "body", "prompt"):  # the request, repeated
                continue
            if inner == "retryDelay":  # of Gemini: the name says more than the value
                yield inner, f"retryDelay {value}"
            yield from _scalars(value, inner)
    elif isinstance(content, list):
        for value in content:
            yield from _scalars(value, name)
    elif content is not None:
        yield name, content


def _seconds_named(words: str) -> float | None:
    """The wait that an error asks for in words.

    >>> _seconds_named("please try again in 7m12s. visit"), _seconds_named("try again later")
    (432.0, None)
    """
    found = re.search(r"(?:again|retry) (?:in|after) ((?:[\d.]+(?:ms|h|m|s))+)", words)
    return seconds_until(found[1].rstrip(".")) if found else None
