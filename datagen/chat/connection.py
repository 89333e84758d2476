"""HTTP to one provider through its official SDK, and what each failure means.

The SDKs do what they do best: addresses, authentication, connections, uploads.
"""

import asyncio
import contextlib
import importlib
import json
import os
import re
from collections.abc import AsyncGenerator, Iterator, Mapping
from typing import Any

import httpx2

from common.sections import UsageError
from datagen.chat.config import (
    API_KEY_VARIABLES,
    BASE_URL_VARIABLES,
    HEADER_VARIABLES,
    ChatConfig,
)
from datagen.chat.errors import (
    AttemptError,
    FatalProviderError,
    NotFoundError,
    RejectedRequestError,
    RetryableError,
    short_text,
    status_error,
)
from datagen.chat.rate_limit import seconds_until


class Connection:
    """An SDK's client; one per run.

    Raises:
      FatalProviderError: there is no API key, and no `base_url` of a server without one; or a
        variable of the environment cannot be used.
    """

    def __init__(self, config: ChatConfig):
        self.config = config
        self._sdk = importlib.import_module(config.provider)  # each takes a second to import
        key = _api_key(config)
        aiohttp = importlib.import_module("aiohttp")  # the SDKs' transport
        self._transport_error = aiohttp.ClientError
        self._unsent = (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError)
        limits = httpx2.Limits(max_connections=config.concurrency + 1)
        try:
            self._http = self._sdk.DefaultAioHttpClient(limits=limits)
        except OSError as error:
            raise FatalProviderError(
                f"the certificates in SSL_CERT_FILE or SSL_CERT_DIR cannot be read: {error}"
            ) from None
        name = {"openai": "AsyncOpenAI", "anthropic": "AsyncAnthropic"}[config.provider]
        self._client = getattr(self._sdk, name)(
            api_key=key or "none",
            base_url=config.base_url or None,
            max_retries=0,  # RateLimit must see each 429
            timeout=config.timeout_seconds,
            http_client=self._http,
        )
        path = "v1/messages" if config.provider == "anthropic" else "chat/completions"
        self._url = self._client.base_url.join(path)
        self._completions_url = self._client.base_url.join("completions")
        headers = self._client.default_headers | self._client.auth_headers
        # The SDK marks headers that are not to be sent by objects of its own.
        self._headers = httpx2.Headers({k: v for k, v in headers.items() if isinstance(v, str)})
        self._timeout = httpx2.Timeout(config.timeout_seconds).as_dict()

    async def close(self) -> None:
        """Closes all connections."""
        await self._client.close()

    def prepare(self, content: dict[str, Any]) -> httpx2.Request:
        """A request that can be sent any number of times.

        It has the SDK's address and headers. The SDK's own `post` builds both again for each
        attempt, which costs as much as everything else, while a slot at the server is empty.
        """
        data = json.dumps(content, ensure_ascii=False).encode()
        timeout = {"timeout": self._timeout}
        url = self._completions_url if "prompt" in content else self._url
        return httpx2.Request("POST", url, headers=self._headers, content=data, extensions=timeout)

    async def send(self, request: httpx2.Request) -> tuple[Any, Mapping[str, str]]:
        """(JSON of the reply, its headers with names in lower case) of one attempt.

        Raises:
          RetryableError, RejectedRequestError, FatalProviderError: see `status_error`; likewise
            `get`, `post` and `lines`.
        """
        with self._translated_errors():
            response = await self._http.send(request, follow_redirects=False)
            if not response.is_success:
                raise self._response_error(response)
            try:
                # A look-up in the SDK's own mapping decodes all headers again.
                return _json(response.content), dict(response.headers.items())
            except RetryableError as error:
                # The provider charges for a reply with status 200.
                error.billed = True
                kind = _no_json(response)
                if not kind:
                    raise
                fatal = FatalProviderError(f"{self._url} sends {kind}; check base_url, extra_body")
                fatal.billed = True
                raise fatal from None

    async def get(self, path: str, **query: Any) -> Any:
        """The JSON at a path."""
        with self._translated_errors():
            options = {"params": query}
            reply = await self._client.get(path, cast_to=httpx2.Response, options=options)
            return _json(reply.content)

    async def post(self, path: str, **content: Any) -> Any:
        """JSON of the reply; `content` as in the SDKs' `post`: body, content, files."""
        with self._translated_errors():
            reply = await self._client.post(path, cast_to=httpx2.Response, **content)
            return _json(reply.content)

    async def lines(self, path: str) -> AsyncGenerator[Any, None]:
        """The JSON of each line, as it arrives."""
        with self._translated_errors():
            response = await self._client.get(path, cast_to=httpx2.Response, stream=True)
            try:
                rest = b""
                async for part in response.aiter_bytes():
                    # `aiter_lines` would also split at U+2028, which answers may contain.
                    *whole, rest = (rest + part).split(b"\n")
                    for line in filter(bytes.strip, whole):
                        yield _json(line)
                if rest.strip():
                    yield _json(rest)
            finally:
                await response.aclose()

    @contextlib.contextmanager
    def _translated_errors(self) -> Iterator[None]:
        try:
            yield
        except self._sdk.APIStatusError as error:
            raise self._response_error(error.response) from None
        except (self._sdk.APIConnectionError, httpx2.HTTPError, self._transport_error) as error:
            cause = error.__cause__ if isinstance(error, self._sdk.APIConnectionError) else error
            unsent = isinstance(cause and cause.__cause__, self._unsent)
            # The transport reports any loss of a connection as this timeout.
            lost = isinstance(cause, httpx2.ConnectTimeout)
            if isinstance(cause, httpx2.TimeoutException) and not lost:
                seconds = self.config.timeout_seconds
                raise RetryableError(f"no answer within {seconds:g} s", billed=True) from None
            reason = f"connection: {short_text(cause or error)}"
            raise RetryableError(reason, billed=not unsent, unsent=unsent) from None

    def _response_error(self, response: httpx2.Response) -> Exception:
        headers, status = response.headers, response.status_code
        retry_after = seconds_until(headers.get("retry-after-ms", "none") + "ms")
        if retry_after is None:
            retry_after = seconds_until(headers.get("retry-after", ""))
        text = response.text or headers.get("location", "")  # of a redirection
        error = status_error(self.config, status, text, retry_after)
        own = isinstance(error, RejectedRequestError) and error.own  # as nginx's 413
        if (kind := _no_json(response)) and not isinstance(error, RetryableError) and not own:
            return FatalProviderError(f"{self._url} sends {kind} ({status}); check base_url")
        return error


async def served_models(config: ChatConfig) -> list[str]:
    """The names of a server's models. Raises: as `Connection.get`."""
    connection = Connection(config)
    try:
        found = await connection.get("models")
        return [model["id"] for model in found["data"]]
    except (KeyError, TypeError):
        raise FatalProviderError(f"{config.base_url} does not list its models") from None
    finally:
        await connection.close()


def only_model(config: ChatConfig) -> str:
    """The model of a server that has only one.

    Raises:
      UsageError: it has several, or does not say.
    """
    try:
        names = asyncio.run(served_models(config))
    except NotFoundError:
        raise UsageError(
            f"{config.base_url}/models: nothing answers there; --base_url usually ends with /v1, "
            "or give --model"
        ) from None
    except AttemptError as error:
        raise UsageError(
            f"{config.base_url} does not list its models ({error}); start it, or give --model"
        ) from None
    if len(names) != 1:
        raise UsageError(f"{config.base_url} has {len(names)} models; --model chooses: {names}")
    return names[0]


def _api_key(config: ChatConfig) -> str:
    """The key from the environment; "" where a server needs none."""
    variable = API_KEY_VARIABLES[config.provider]
    allowed = {variable: r"[!#-&(-~]*", HEADER_VARIABLES[config.provider]: r"[\n -~]*"}
    for name, value in os.environ.items():
        of_sdk = name.startswith(f"{config.provider.upper()}_")
        if name in BASE_URL_VARIABLES.values() or not of_sdk:
            continue
        if not re.fullmatch(allowed.get(name, r"[ -~]*"), value):
            raise FatalProviderError(
                f"{name} contains a space, a line end, a quotation mark or another character that "
                "it cannot have; set it again"
            )
    key = os.environ.get(variable, "")
    if not key and not config.base_url:
        raise FatalProviderError(f"set {variable} in the environment, or base_url")
    return key


def _no_json(response: httpx2.Response) -> str:
    """What a reply is that a chat API never sends; "" for JSON, and for what may have been one."""
    kind = response.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind == "text/html" or response.text[:15].lower().lstrip().startswith(
        ("<!doctype", "<html")
    ):
        return "an HTML page"
    if kind in ("text/event-stream", "application/x-ndjson") or response.text[:6] == "data: ":
        return f"a stream ({kind})"
    may_be_cut = "json" in kind or response.text.lstrip()[:1] in ("{", "[")
    if response.is_success and kind and not may_be_cut:
        return f"{kind}, which begins {response.text[:40]!r}"
    return ""


def _json(content: bytes) -> Any:
    try:
        return json.loads(content)
    except (ValueError, RecursionError) as error:  # also for too many digits or brackets
        raise RetryableError(f"not JSON: {short_text(error)}") from None
