"""What is asked of which model, and within which limits; the body and the key of a request."""

import dataclasses
import hashlib
import json
import os
import re
import urllib.parse
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from common import sections

API_KEY_VARIABLES = {"openai": "OPENAI_API_KEY", "anthropic": "ANTHROPIC_API_KEY"}
"""Provider -> environment variable of its API key."""

SECRET_VARIABLES = (*API_KEY_VARIABLES.values(), "ANTHROPIC_AUTH_TOKEN")
"""Environment variables whose values are never printed or stored."""

BASE_URL_VARIABLES = {"openai": "OPENAI_BASE_URL", "anthropic": "ANTHROPIC_BASE_URL"}
"""Provider -> environment variable of the address that is asked if `base_url` is empty."""

HEADER_VARIABLES = {"openai": "OPENAI_CUSTOM_HEADERS", "anthropic": "ANTHROPIC_CUSTOM_HEADERS"}
"""Provider -> environment variable of headers that its SDK adds; they can change an answer."""

OWN_ADDRESSES = ("https://api.openai.com/v1", "https://api.anthropic.com")

LOOPBACK = ("localhost", "127.0.0.1", "::1", "0.0.0.0")

TOKEN_LIMITS = ("max_tokens", "max_completion_tokens", "max_output_tokens")
"""Names of the limit on an answer's tokens, in different servers and versions."""


class RequestKey(NamedTuple):
    """By what an answer is stored: whole ones by `key`, cut ones by `key` and limit."""

    key: str  # hash of everything that can change an answer, but for the limit
    limit: int  # tokens of an answer
    former: str  # its key in stores of earlier versions, which depends on the limit


@dataclasses.dataclass(frozen=True)
class ChatRequest:
    """One question to a model."""

    system: str  # "" for none
    user: str
    prompt_version: str  # of the prompt file that produced the texts
    sample: int = 0  # repeats a request to get another answer
    schema: Mapping[str, Any] | None = None  # JSON schema that the answer must follow
    history: Sequence[tuple[str, str]] = ()  # (role, text) of the turns before `user`

    def body(self, config: "ChatConfig") -> dict[str, Any]:
        """The JSON that is sent; parameters that are null in `extra_body` are left out.

        Plain JSON, so the config decides which parameters a model gets, not an SDK.

        Raises:
          ValueError: `extra_body` leaves out every limit on the tokens of an answer.
        """
        settings = ("temperature", "top_p", "presence_penalty")
        content: dict[str, Any] = {"model": config.model} | {
            name: getattr(config, name) for name in settings if getattr(config, name) is not None
        }
        turns = [*self.history, ("user", self.user)]
        messages = [{"role": role, "content": text} for role, text in turns]
        if config.provider == "anthropic":
            content |= {"max_tokens": config.max_tokens, "messages": messages}
            if self.system:
                content["system"] = self.system
            output: dict[str, Any] = {}
            if config.reasoning_effort:
                output["effort"] = config.reasoning_effort
            if self.schema:
                output["format"] = {"type": "json_schema", "schema": self.schema}
            if output:
                content["output_config"] = output
        else:
            system = [{"role": "system", "content": self.system}] if self.system else []
            content["messages"] = system + messages
            # OpenAI's reasoning models reject the old name; many servers know no other.
            limit = "max_tokens" if config.base_url else "max_completion_tokens"
            content[limit] = config.max_tokens
            if config.reasoning_effort:
                content["reasoning_effort"] = config.reasoning_effort
            if self.schema:
                schema = {"name": "answer", "schema": self.schema, "strict": True}
                content["response_format"] = {"type": "json_schema", "json_schema": schema}
        content |= json.loads(config.extra_body or "{}")
        content = {name: value for name, value in content.items() if value is not None}
        if not any(type(content.get(name)) is int for name in TOKEN_LIMITS):
            raise ValueError(
                "extra_body leaves out the limit on an answer's tokens, so no budget could hold; "
                f"give one of {', '.join(TOKEN_LIMITS)}"
            )
        return content

    def key(self, config: "ChatConfig", content: Mapping[str, Any]) -> RequestKey:
        """The key of the request whose `body` is `content`."""

        def hash_of(base_url: str, body: Mapping[str, Any], more: dict[str, Any]) -> str:
            hashed = {
                "provider": config.provider,
                "base_url": base_url,
                "body": body,
                "prompt_version": self.prompt_version,
                "sample": self.sample,
            }
            text = json.dumps(hashed | more, sort_keys=True, ensure_ascii=False)
            return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()

        headers = os.environ.get(HEADER_VARIABLES[config.provider], "")
        more = {"headers": headers} if headers else {}
        body = {name: value for name, value in content.items() if name not in TOKEN_LIMITS}
        key = hash_of(same_server(config.base_url), body, more)
        return RequestKey(key, most_tokens(content)[1], hash_of(config.base_url, content, more))


@dataclasses.dataclass(frozen=True)
class LikelihoodRequest(ChatRequest):
    """How likely a model finds each of some texts to follow `user`; for `/completions`.

    The server repeats the prompts with the log-probability of each token, `user` alone first: its
    tokens show where the continuations begin. Nothing is generated.
    """

    continuations: tuple[str, ...] = ()

    def body(self, config: "ChatConfig") -> dict[str, Any]:
        """The JSON that is sent; `extra_body` may replace a part of it."""
        prompts = [self.user, *(self.user + text for text in self.continuations)]
        content = {"model": config.model, "prompt": prompts, "temperature": 0, "max_tokens": 0}
        content |= {"echo": True, "logprobs": 1} | json.loads(config.extra_body or "{}")
        return {"max_tokens": 0} | {k: value for k, value in content.items() if value is not None}


def size(content: Mapping[str, Any]) -> int:
    """Bytes of a body: an upper bound on its tokens with any tokenizer."""
    return len(json.dumps(content, ensure_ascii=False).encode("utf-8", "surrogatepass"))


def most_tokens(content: Mapping[str, Any]) -> tuple[int, int]:
    """Upper bound on the (input, output) tokens of a request with this body."""
    limit = max(content[name] for name in TOKEN_LIMITS if type(content.get(name)) is int)
    if "echo" in content:  # some servers count one token where none is asked for
        return size(content), max(1, limit) * len(content["prompt"])
    return size(content), limit * max(1, content.get("n") or 1)


def same_server(base_url: str) -> str:
    """One spelling of an address: neither a slash at its end nor a name of this machine matters.

    >>> same_server("http://127.0.0.1:8000/v1/"), same_server("https://api.openai.com/v1")
    ('http://localhost:8000/v1', '')
    """
    address = base_url.rstrip("/")
    if address in OWN_ADDRESSES:
        return ""
    parts = urllib.parse.urlsplit(address)
    if (parts.hostname or "") not in LOOPBACK:
        return address
    port = f":{parts.port}" if parts.port else ""
    return parts._replace(netloc=f"localhost{port}").geturl()


def environment() -> dict[str, list[str]]:
    """Variables of headers that are set -> the names of the headers; the values may be keys."""
    return {
        variable: [line.partition(":")[0].strip() for line in value.splitlines() if ":" in line]
        for variable in HEADER_VARIABLES.values()
        if (value := os.environ.get(variable))
    }


@dataclasses.dataclass(frozen=True)
class ProviderConfig:
    """Which model to ask, and how: a section of a config file."""

    provider: str  # openai (or any server with its protocol) or anthropic
    # http://localhost:8000/v1 for a local vLLM or Ollama; "": OPENAI_BASE_URL or ANTHROPIC_BASE_URL
    # of the environment, else the provider's own
    base_url: str
    model: str  # the provider's name of the model
    max_tokens: int  # limit on the tokens of an answer, reasoning included
    temperature: float | None  # None: not sent; many models reject it
    top_p: float | None  # None: not sent
    presence_penalty: float | None  # None: not sent
    reasoning_effort: str | None  # None: not sent
    extra_body: str  # JSON object of further request parameters
    concurrency: int  # max concurrent requests; rate limits can lower it
    attempts: int  # max attempts per request
    timeout_seconds: float  # per attempt
    price_input: float | None  # USD per million tokens; None: from datagen/prices.json
    price_output: float | None  # USD per million tokens; None: from datagen/prices.json
    batch: bool  # use the provider's batch API: half the price, takes up to 24 hours
    batch_requests: int  # max requests per batch; lower it where queued tokens are limited
    poll_seconds: float  # interval between two status checks of a batch

    def __post_init__(self):
        sections.choice("provider", self.provider, API_KEY_VARIABLES)
        if not self.base_url and (url := os.environ.get(BASE_URL_VARIABLES[self.provider])):
            object.__setattr__(self, "base_url", url.strip())  # recorded, and part of each key
        positive = "max_tokens concurrency attempts timeout_seconds batch_requests poll_seconds"
        for name in positive.split():
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be above 0, not {getattr(self, name)}")
        if set("@?") & set(self.base_url):
            raise ValueError(
                "base_url must contain no password or key; set these in the environment"
            )
        if self.base_url and not re.fullmatch(r"https?://[\w.:\[\]-]+(?:/[!-~]*)?", self.base_url):
            raise ValueError(
                f"base_url is {self.base_url!r}, not http://HOST... or https://HOST..."
            )
        try:
            urllib.parse.urlsplit(self.base_url).port  # noqa: B018 - checks it
        except ValueError as error:
            raise ValueError(f"base_url is {self.base_url!r}: {error}") from None
        if min(self.price_input or 0.0, self.price_output or 0.0) < 0:
            raise ValueError("price_input and price_output must be at least 0")
        if (self.price_input is None) != (self.price_output is None):
            raise ValueError("set both price_input and price_output, or neither")
        try:
            if not isinstance(json.loads(self.extra_body or "{}"), dict):
                raise ValueError
        except ValueError:
            raise ValueError(f"extra_body is {self.extra_body!r}, not a JSON object") from None


@dataclasses.dataclass(frozen=True)
class ChatConfig(ProviderConfig):
    """Which model to ask, within the limits of a run."""

    budget_usd: float = 0.0  # as in Limits, like the next two
    budget_tokens: int = 0
    offline: bool = False


@dataclasses.dataclass(frozen=True)
class Limits:
    """What a run may do with any model: the first keys of a config file."""

    budget_usd: float  # hard cap on the total spending of the workdir; 0: none
    budget_tokens: int  # the same in tokens
    offline: bool  # use stored answers only

    def __post_init__(self):
        for name in ("budget_usd", "budget_tokens"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} must be at least 0, not {getattr(self, name)}")

    def within(self, model: ProviderConfig) -> ChatConfig:
        """The settings of a model together with these limits."""
        limits = {field.name: getattr(self, field.name) for field in dataclasses.fields(Limits)}
        return ChatConfig(**vars(model), **limits)


def environment_notes(config: ChatConfig) -> list[str]:
    """Lines that name what comes from the environment and changes where or how a model is asked."""
    notes, variable = [], BASE_URL_VARIABLES[config.provider]
    if config.base_url and config.base_url == os.environ.get(variable, "").strip():
        notes.append(f"{config.model} is asked at {config.base_url} ({variable})")
    if names := environment().get(HEADER_VARIABLES[config.provider]):
        notes.append(f"headers of the environment are sent, too: {', '.join(names)}")
    return notes
