"""What an error of a provider or server means: for its request, or for the whole run.

The first row of ERROR_MEANINGS that fits decides. docs/provider_errors.md shows the table; to add a
row, add it here and run `python -m tests.docs.provider_errors --write`.
"""

import re
from enum import StrEnum
from typing import NamedTuple

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
    phrases: str  # of code, type and message, separated by |; _ and - are spaces; … is a few words
    cause: str
    remedy: str
    sources: str

    def fits(self, status: int, words: str) -> bool:
        """Whether an error with these words is of this kind."""
        phrases = [re.escape(phrase.strip()) for phrase in self.phrases.split("|")]
        pattern = "|".join(phrases).replace("…", ".{0,60}")
        statuses = self.statuses.split() or ["..."]
        return bool(re.search(pattern, words)) and any(
            re.fullmatch(allowed, str(status)) for allowed in statuses
        )


OPENAI = "https://developers.openai.com/docs/guides/error-codes"
ANTHROPIC = "https://docs.anthropic.com/en/api/errors"
OPENROUTER = "https://openrouter.ai/docs/api/reference/errors-and-debugging"
TOGETHER = "https://docs.together.ai/docs/error-codes"
DEEPSEEK = "https://api-docs.deepseek.com/quick_start/error_codes"
GEMINI = "https://ai.google.dev/gemini-api/docs/troubleshooting"
AZURE = "https://learn.microsoft.com/azure/ai-services/openai/concepts/content-filter"
BEDROCK = (
    "https://docs.aws.amazon.com/bedrock/latest/userguide/troubleshooting-api-error-codes.html"
)
GROQ = "https://console.groq.com/docs/errors"
LITELLM = "https://docs.litellm.ai/docs/exception_mapping"
ALIBABA = "https://www.alibabacloud.com/help/en/model-studio/error-code"
HTTP = "https://www.rfc-editor.org/rfc/rfc9110#section-15"
SERVERS = "vLLM, SGLang, TGI, llama.cpp, Ollama and LM Studio, as they reply"

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
        "entity too large | request body too large",
        "one request is too large",
        "shorten it",
        f"{OPENAI} {ANTHROPIC} {GROQ}",
    ),
    ErrorMeaning(
        Meaning.RUN,
        "403 429",
        "perday | too many tokens per day | free models per day | daily limit | daily quota | "
        "monthly quota | monthly limit | calls / month",
        "the quota of the day or month is used up",
        "rerun once it is renewed, or raise it",
        f"{GEMINI} {OPENROUTER} {BEDROCK}",
    ),
    ErrorMeaning(
        Meaning.PASSING,
        "429",
        "per minute | per min | retrydelay | retry in | please wait",
        "a rate limit",
        "wait",
        f"{OPENAI} {GEMINI} {BEDROCK}",
    ),
    ErrorMeaning(
        Meaning.RUN,
        "",
        "invalid api key | incorrect api key | api key not valid | api key is invalid | "
        "api key … expired | invalid authentication | authentication error | authenticationerror | "
        "authorization failed | unauthorized | no credentials | no auth credentials | "
        "invalid credentials | invalid x api key | invalid subscription key | security token",
        "the key is rejected",
        _KEY,
        f"{OPENAI} {ANTHROPIC} {OPENROUTER} {GEMINI} {BEDROCK} {LITELLM}",
    ),
    ErrorMeaning(
        Meaning.RUN,
        "",
        "insufficient quota | current quota | credit balance | insufficient balance | "
        "insufficient credit | insufficient funds | out of credits | more credits | "
        "available credits | key limit exceeded | spend limit | spending limit | usage limits | "
        "budget has been exceeded | exceededbudget | billing error | billing hard limit | "
        "payment required | arrearage | freetieronly | free tier … exhausted",
        "there is no credit",
        _CREDIT,
        f"{OPENAI} {ANTHROPIC} {OPENROUTER} {TOGETHER} {DEEPSEEK} {ALIBABA} {LITELLM}",
    ),
    ErrorMeaning(
        Meaning.RUN,
        "",
        "billing not active | account … not active | account … deactivated | account … disabled | "
        "account … suspended | account … flagged | organization … disabled | "
        "organization … deactivated | organization … restricted | member of an organization | "
        "ip not authorized | country, region | unsupported country | location is not supported | "
        "request not allowed | service quota",
        "the account may not use the API",
        "see the account's page at the provider",
        f"{OPENAI} {ANTHROPIC} {GEMINI} {GROQ} {BEDROCK}",
    ),
    ErrorMeaning(
        Meaning.ITEM,
        "",
        "moderation | flagged | content filter | content policy | contentpolicy | "
        "content management policy | responsibleai | responsible ai | usage guidelines | "
        "usage policies | guardrail | content exists risk | datainspection | data inspection | "
        "invalid prompt | high risk | inappropriate content | sensitive content | "
        "blocked by … safety | prohibited content | prompt was blocked",
        "the request is refused for its content",
        "leave it out, or ask another model",
        f"{OPENAI} {ANTHROPIC} {OPENROUTER} {AZURE} {BEDROCK} {DEEPSEEK} {ALIBABA} {LITELLM}",
    ),
    ErrorMeaning(
        Meaning.ITEM,
        "400 403 413 422 5..",
        "context length | context window | contextwindow | context size | context limit | "
        "prompt is too long | prompt too long | prompt contains … tokens | input is too long | "
        "input too long | input length | too many tokens | input token count | inputs` tokens | "
        "inputs` must have less | maximum model length | maximum allowed length | "
        "string too long | string above max length | token limit exceeded",
        "prompt and answer exceed the context",
        "shorten it, or lower max_tokens",
        f"{OPENAI} {ANTHROPIC} {TOGETHER} {GEMINI} {BEDROCK} {ALIBABA} {LITELLM} {SERVERS}",
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
        "unsupported parameter | unsupported value | unsupportedparams | unknown parameter | "
        "unrecognized argument | unrecognized request argument | extra inputs are not permitted | "
        "extra forbidden | maximum allowed number of output tokens | supports at most | "
        "exceed the model limit | max value | min value | does not support",
        "the model rejects a setting",
        _SETTING,
        f"{OPENAI} {ANTHROPIC} {BEDROCK} {LITELLM} {SERVERS}",
    ),
    ErrorMeaning(
        Meaning.RUN,
        "",
        "model not found | model … does not exist | model … not found | model not exist | "
        "unknown model | invalid model | not a valid model | model … decommissioned | "
        "model … deprecated | model not available | unable to access … model | "
        "model identifier is invalid | access to … model | access to model | no models loaded | "
        "model requires more system memory",
        "there is no such model for this key or server",
        _ADDRESS,
        f"{OPENAI} {OPENROUTER} {TOGETHER} {DEEPSEEK} {BEDROCK} {GROQ} {SERVERS}",
    ),
    ErrorMeaning(
        Meaning.ITEM,
        "400 422",
        "failed to generate json | json validate failed | must be non empty | must not be empty",
        "this request cannot be answered",
        "leave it out, or change its text",
        f"{ANTHROPIC} {GROQ}",
    ),
    ErrorMeaning(
        Meaning.RUN,
        "403",
        "permission | access denied | accessdenied | not have access",
        "the key may not do this",
        f"{_KEY} and the model {{model!r}}",
        f"{ANTHROPIC} {GEMINI} {ALIBABA}",
    ),
    ErrorMeaning(Meaning.RUN, "401 407", "", "the key is rejected", _KEY, HTTP),
    ErrorMeaning(Meaning.RUN, "402", "", "there is no credit", _CREDIT, f"{DEEPSEEK} {OPENROUTER}"),
    ErrorMeaning(
        Meaning.RUN,
        "",
        "unexpected endpoint",
        "nothing answers there",
        "check base_url: it usually ends with /v1",
        SERVERS,
    ),
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
        "408 409 425 429 498 499 5..",
        "",
        "the server is busy or fails",
        "wait",
        f"{HTTP} {ANTHROPIC} {GROQ}",
    ),
    ErrorMeaning(
        Meaning.PASSING,
        "400 403 424",
        "too many requests | rate limit | throttl | overloaded | timed out",
        "the server is busy or fails",
        "wait",
        f"{BEDROCK} {LITELLM}",
    ),
    ErrorMeaning(
        Meaning.UNCLEAR,
        "...",
        "",
        "the request is rejected",
        f"{_KEY}, the model {{model!r}}, base_url and settings such as temperature",
        HTTP,
    ),
)
