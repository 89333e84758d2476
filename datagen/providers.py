"""The two protocols: what is sent, how a reply reads, and what each failure means.

Bodies are plain JSON and go through the official SDKs' `post`, which leaves to them what they know
best (authentication, connections, errors) and to the config which parameters a model takes.
"""

import contextlib
import dataclasses
import hashlib
import importlib
import json
import os
import re
from collections.abc import AsyncIterator, Iterator, Mapping
from typing import Any

import httpx2

from contract import sections
from datagen.answer_store import Answer
from datagen.rate_limit import seconds_until

KEYS = {"openai": "OPENAI_API_KEY", "anthropic": "ANTHROPIC_API_KEY"}

BLOCKED = "blocked by the provider's content filter"
"""Paid, no answer, and another try may pass."""

MOST_TOKENS = 10**9
"""Of a reply, below which its usage is believed: a budget must not be lowered by nonsense."""


@dataclasses.dataclass(frozen=True)
class Request:
    """One question to a model."""

    system: str  # "" for none
    user: str
    prompt_version: str  # of the prompt file that the texts were made from
    sample: int = 0  # asks the same again, for another answer
    schema: Mapping[str, Any] | None = None  # JSON schema that the answer must follow


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """Whom to ask, and how: a section of a config file."""

    provider: str  # openai (and any server that speaks its protocol) or anthropic
    base_url: str  # "" for the provider's own; http://localhost:8000/v1 for vLLM, Ollama, ours
    model: str
    max_tokens: int  # most tokens of an answer, reasoning included
    temperature: float | None  # None, here and below: not sent; many models refuse it
    top_p: float | None
    presence_penalty: float | None
    reasoning_effort: str | None
    extra_body: str  # JSON object of whatever else is to be sent
    concurrency: int  # most requests out at once; rate limits are kept below it
    attempts: int  # most times one request is sent
    timeout_seconds: float  # for one attempt
    price_input: float | None  # USD per million tokens; None: from datagen/prices.json
    price_output: float | None
    batch: bool  # at half price through the provider's batch API; takes up to 24 hours
    batch_requests: int  # most in one batch; lower it where the provider limits queued tokens
    poll_seconds: float  # between two looks at a batch

    def __post_init__(self):
        sections.choice("provider", self.provider, KEYS)
        above_zero = ("max_tokens", "concurrency", "attempts", "timeout_seconds")
        for name in (*above_zero, "batch_requests", "poll_seconds"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be above 0, not {getattr(self, name)}")
        if set("@?") & set(self.base_url):
            raise ValueError(
                "base_url must hold no password or key; these come from the environment"
            )
        if self.base_url and not self.base_url.startswith(("http://", "https://")):
            raise ValueError(f"base_url is {self.base_url!r}, not http://... or https://...")
        if min(self.price_input or 0.0, self.price_output or 0.0) < 0:
            raise ValueError("price_input and price_output must be at least 0")
        if (self.price_input is None) != (self.price_output is None):
            raise ValueError("give price_input and price_output, or neither")
        try:
            if not isinstance(json.loads(self.extra_body or "{}"), dict):
                raise ValueError
        except ValueError:
            raise ValueError(f"extra_body is {self.extra_body!r}, not a JSON object") from None


@dataclasses.dataclass(frozen=True)
class ChatConfig(ModelConfig):
    """Whom to ask, within the limits of a run."""

    budget_usd: float = 0.0  # as in Limits, as the next two
    budget_tokens: int = 0
    offline: bool = False


@dataclasses.dataclass(frozen=True)
class Limits:
    """What a run may do, whomever it asks: the first keys of a config file."""

    budget_usd: float  # hard cap on all that the workdir has spent; 0: none
    budget_tokens: int  # the same in tokens
    offline: bool  # answer from the store only

    def __post_init__(self):
        for name in ("budget_usd", "budget_tokens"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} must be at least 0, not {getattr(self, name)}")

    def within(self, model: ModelConfig) -> ChatConfig:
        limits = {field.name: getattr(self, field.name) for field in dataclasses.fields(Limits)}
        return ChatConfig(**vars(model), **limits)


class Again(Exception):
    """This attempt failed; another may not."""

    def __init__(self, reason: str, *, status: int = 0, after: float | None = None):
        super().__init__(reason)
        self.status = status  # of HTTP; 0: no reply
        self.after = after  # seconds that the provider asks to wait

    @property
    def throttled(self) -> bool:
        """The provider asks for fewer requests."""
        return self.status in (429, 529)


class Refused(Exception):
    """This request will never be answered."""


class Hopeless(ValueError):
    """No request will be answered: no such model, no credit, a wrong key."""


class NotThere(Hopeless):
    """The server knows no such model, path, batch or file."""


def reason(error: Exception) -> str:
    """One line of an error without anything that could be a key."""
    text = " ".join(str(error).split())
    for name in KEYS.values():
        if key := os.environ.get(name):
            text = text.replace(key, "[key]")
    text = re.sub(r"\bsk-[\w*.-]{4,}", "[key]", text)
    return text[:300] or type(error).__name__


def body(config: ChatConfig, request: Request) -> dict[str, Any]:
    """The JSON that is sent for a request."""
    settings = ("temperature", "top_p", "presence_penalty")
    content: dict[str, Any] = {"model": config.model} | {
        name: getattr(config, name) for name in settings if getattr(config, name) is not None
    }
    user = {"role": "user", "content": request.user}
    if config.provider == "anthropic":
        content |= {"max_tokens": config.max_tokens, "messages": [user]}
        if request.system:
            content["system"] = request.system
        output = {"effort": config.reasoning_effort} if config.reasoning_effort else {}
        if request.schema:
            output["format"] = {"type": "json_schema", "schema": request.schema}
        if output:
            content["output_config"] = output
    else:
        system = [{"role": "system", "content": request.system}] if request.system else []
        content["messages"] = [*system, user]
        # OpenAI's reasoning models refuse the old name, many servers know no other.
        limit = "max_tokens" if config.base_url else "max_completion_tokens"
        content[limit] = config.max_tokens
        if config.reasoning_effort:
            content["reasoning_effort"] = config.reasoning_effort
        if request.schema:
            schema = {"name": "answer", "schema": request.schema, "strict": True}
            content["response_format"] = {"type": "json_schema", "json_schema": schema}
    return content | json.loads(config.extra_body or "{}")


def size(content: Mapping[str, Any]) -> int:
    """Bytes of a body: no tokenizer makes more tokens of it."""
    return len(json.dumps(content, ensure_ascii=False).encode("utf-8", "surrogatepass"))


def key(config: ChatConfig, request: Request) -> str:
    """Hash of everything that can change the answer."""
    asked = {
        "provider": config.provider,
        "base_url": config.base_url,
        "body": body(config, request),
        "prompt_version": request.prompt_version,
        "sample": request.sample,
    }
    text = json.dumps(asked, sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def read_reply(provider: str, sent: Mapping[str, Any], reply: Any) -> Answer:
    """The answer in a reply of status 200.

    Raises:
      Again: it is none: no choices, no text and no reason why.
    """
    try:
        text, finish, tokens = (_read_anthropic if provider == "anthropic" else _read_openai)(reply)
        text, finish, model, name = map(
            _unicode, (text, str(finish), str(reply.get("model", "")), str(reply.get("id", "")))
        )
        estimated = not all(type(n) is int and 0 <= n < MOST_TOKENS for n in tokens)
        if estimated:
            tokens = (len(json.dumps(sent)) // 4, len(text.encode()) // 4)
    except (KeyError, IndexError, TypeError, AttributeError):
        raise Again(f"malformed reply: {json.dumps(reply)[:100]}") from None
    return Answer(text, finish, model, name, *tokens, usage_reported=not estimated)


def _unicode(text: str) -> str:
    # Half a surrogate pair, from a cut "\\ud83d\\ude00", is no Unicode and fits no file.
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _read_openai(reply: Mapping[str, Any]) -> tuple[str, str, tuple]:
    choice = reply["choices"][0]
    message, finish = choice["message"], choice["finish_reason"] or "stop"
    if message.get("refusal"):
        text, finish = message["refusal"], "refusal"
    elif isinstance(message.get("content"), str):
        text = message["content"]
    elif finish == "stop":
        raise KeyError("content")
    else:
        text = ""
    usage = reply.get("usage") or {}
    return text, finish, (usage.get("prompt_tokens"), usage.get("completion_tokens"))


def _read_anthropic(reply: Mapping[str, Any]) -> tuple[str, str, tuple]:
    words = {"end_turn": "stop", "stop_sequence": "stop", "max_tokens": "length"}
    finish = words.get(reply["stop_reason"], reply["stop_reason"]) or "stop"
    text = "".join(part["text"] for part in reply["content"] if part["type"] == "text")
    usage = reply.get("usage") or {}
    # What a cache read or wrote was input too.
    kinds = ("input_tokens", "cache_creation_input_tokens", "cache_read_input_tokens")
    given = None if "input_tokens" not in usage else sum(usage.get(kind) or 0 for kind in kinds)
    return text, finish, (given, usage.get("output_tokens"))


class Connection:
    """An SDK's client; one for a run."""

    def __init__(self, config: ChatConfig):
        self.config = config
        self._sdk = importlib.import_module(config.provider)  # each takes a second to import
        key = os.environ.get(KEYS[config.provider])
        if not key and not config.base_url:
            raise Hopeless(f"set {KEYS[config.provider]} in the environment, or base_url")
        limits = httpx2.Limits(max_connections=config.concurrency + 1)
        self._http = self._sdk.DefaultAioHttpClient(limits=limits)
        name = {"openai": "AsyncOpenAI", "anthropic": "AsyncAnthropic"}[config.provider]
        self._client = getattr(self._sdk, name)(
            api_key=key or "none",
            base_url=config.base_url or None,
            max_retries=0,  # RateLimit has to see each refusal
            timeout=config.timeout_seconds,
            http_client=self._http,
        )
        path = "v1/messages" if config.provider == "anthropic" else "chat/completions"
        self._url = self._client.base_url.join(path)
        given = self._client.default_headers | self._client.auth_headers
        # The SDK marks what is not to be sent by objects of its own.
        self._headers = httpx2.Headers({k: v for k, v in given.items() if isinstance(v, str)})
        self._timeout = httpx2.Timeout(config.timeout_seconds).as_dict()

    async def close(self) -> None:
        await self._client.close()

    def prepare(self, content: dict[str, Any]) -> httpx2.Request:
        """A request that can be sent as often as it takes.

        It has the SDK's address and headers. The SDK's own `post` makes both anew for each attempt,
        which costs as much as all the rest, and costs it while a place at the server is empty.
        """
        data = json.dumps(content, ensure_ascii=False).encode()
        timeout = {"timeout": self._timeout}
        return httpx2.Request(
            "POST", self._url, headers=self._headers, content=data, extensions=timeout
        )

    async def send(self, request: httpx2.Request) -> tuple[Any, Mapping[str, str]]:
        """(the reply's JSON, its headers with names in lower case) of one attempt.

        Raises:
          Again, Refused, Hopeless: what the failure means; so do `get`, `post` and `lines`.
        """
        with self._meanings():
            response = await self._http.send(request)
            if not response.is_success:
                raise self._meaning(response)
            # A look-up in the SDK's own mapping decodes all headers anew.
            return _json(response.content), dict(response.headers.items())

    async def get(self, path: str, **query: Any) -> Any:
        """The JSON at a path."""
        with self._meanings():
            options = {"params": query}
            reply = await self._client.get(path, cast_to=httpx2.Response, options=options)
            return _json(reply.content)

    async def post(self, path: str, **content: Any) -> Any:
        """The reply's JSON; `content` as the SDKs' `post` takes it: body, content, files."""
        with self._meanings():
            reply = await self._client.post(path, cast_to=httpx2.Response, **content)
            return _json(reply.content)

    async def lines(self, path: str) -> AsyncIterator[Any]:
        """The JSON of each line, as they come."""
        with self._meanings():
            response = await self._client.get(path, cast_to=httpx2.Response, stream=True)
            try:
                rest = b""
                async for part in response.aiter_bytes():
                    # By hand: to `aiter_lines` a line also ends at U+2028, which answers may hold.
                    *whole, rest = (rest + part).split(b"\n")
                    for line in filter(bytes.strip, whole):
                        yield _json(line)
                if rest.strip():
                    yield _json(rest)
            finally:
                await response.aclose()

    @contextlib.contextmanager
    def _meanings(self) -> Iterator[None]:
        try:
            yield
        except self._sdk.APIStatusError as error:
            raise self._meaning(error.response) from None
        except (self._sdk.APIConnectionError, httpx2.HTTPError) as error:
            cause = error.__cause__ if isinstance(error, self._sdk.APIConnectionError) else error
            # The transport calls a refused connection a timeout, too.
            late = isinstance(cause, httpx2.TimeoutException)
            if late and not isinstance(cause, httpx2.ConnectTimeout):
                raise Again(f"no answer within {self.config.timeout_seconds:g} s") from None
            raise Again(f"connection: {reason(cause or error)}") from None

    def _meaning(self, response: httpx2.Response) -> Exception:
        headers, status = response.headers, response.status_code
        after = seconds_until(headers.get("retry-after-ms", "none") + "ms")
        if after is None:
            after = seconds_until(headers.get("retry-after", ""))
        said = reason(ValueError(f"Error code: {status} - {response.text}"))
        return meaning(self.config, status, said, after)


def _json(content: bytes) -> Any:
    try:
        return json.loads(content)
    except (ValueError, RecursionError) as error:  # too many digits, or brackets, too
        raise Again(f"not JSON: {reason(error)}") from None


def meaning(config: ChatConfig, status: int, said: str, after: float | None = None) -> Exception:
    """Again, Refused or Hopeless: what an HTTP status says about one request."""
    if status == 429 and "insufficient_quota" in said:
        return Hopeless(f"{config.provider}: {said}; add credit and run again")
    if status in (408, 409, 429) or status >= 500:
        return Again(said, status=status, after=after)
    if status in (401, 402, 403, 404):
        return (NotThere if status == 404 else Hopeless)(
            f"{config.base_url or config.provider} answers {said}; check the key in "
            f"{KEYS[config.provider]}, the model {config.model!r} and base_url"
        )
    return Refused(said)
