"""HTTP to one provider through its official SDK, and what each failure means.

The SDKs do what they do best: addresses, authentication, connections, uploads.
"""

import contextlib
import importlib
import json
import os
import re
from collections.abc import AsyncGenerator, Iterator, Mapping
from typing import Any

import httpx2

from datagen.chat.config import API_KEY_VARIABLES, ChatConfig
from datagen.chat.errors import (
    FatalProviderError,
    NotFoundError,
    RejectedRequestError,
    RetryableError,
)
from datagen.chat.rate_limit import seconds_until


def short_text(error: BaseException | str) -> str:
    """One line of an error, at most 300 characters, without anything that could be a key."""
    text = " ".join(str(error).split())
    for variable in API_KEY_VARIABLES.values():
        if key := os.environ.get(variable):
            text = text.replace(key, "[key]")
    text = re.sub(r"\bsk-[\w*.-]{4,}", "[key]", text)
    return text[:300] or type(error).__name__


class Connection:
    """An SDK's client; one per run.

    Raises:
      FatalProviderError: there is no API key, and no `base_url` of a server without one.
    """

    def __init__(self, config: ChatConfig):
        self.config = config
        self._sdk = importlib.import_module(config.provider)  # each takes a second to import
        variable = API_KEY_VARIABLES[config.provider]
        key = os.environ.get(variable)
        if not key and not config.base_url:
            raise FatalProviderError(f"set {variable} in the environment, or base_url")
        limits = httpx2.Limits(max_connections=config.concurrency + 1)
        self._http = self._sdk.DefaultAioHttpClient(limits=limits)
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
        headers = self._client.default_headers | self._client.auth_headers
        # The SDK marks headers that are not to be sent by objects of its own.
        self._headers = httpx2.Headers({k: v for k, v in headers.items() if isinstance(v, str)})
        self._timeout = httpx2.Timeout(config.timeout_seconds).as_dict()

    async def close(self) -> None:
        """Closes all connections."""
        await self._client.close()

    def prepare(self, content: dict[str, Any]) -> httpx2.Request:
        """A chat request that can be sent any number of times.

        It has the SDK's address and headers. The SDK's own `post` builds both again for each
        attempt, which costs as much as everything else, while a slot at the server is empty.
        """
        data = json.dumps(content, ensure_ascii=False).encode()
        timeout = {"timeout": self._timeout}
        return httpx2.Request(
            "POST", self._url, headers=self._headers, content=data, extensions=timeout
        )

    async def send(self, request: httpx2.Request) -> tuple[Any, Mapping[str, str]]:
        """(JSON of the reply, its headers with names in lower case) of one attempt.

        Raises:
          RetryableError, RejectedRequestError, FatalProviderError: see `status_error`; likewise
            `get`, `post` and `lines`.
        """
        with self._translated_errors():
            response = await self._http.send(request)
            if not response.is_success:
                raise self._response_error(response)
            # A look-up in the SDK's own mapping decodes all headers again.
            return _json(response.content), dict(response.headers.items())

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
        except (self._sdk.APIConnectionError, httpx2.HTTPError) as error:
            cause = error.__cause__ if isinstance(error, self._sdk.APIConnectionError) else error
            # The transport reports a refused connection as a timeout, too.
            timed_out = isinstance(cause, httpx2.TimeoutException)
            if timed_out and not isinstance(cause, httpx2.ConnectTimeout):
                seconds = self.config.timeout_seconds
                raise RetryableError(f"no answer within {seconds:g} s") from None
            raise RetryableError(f"connection: {short_text(cause or error)}") from None

    def _response_error(self, response: httpx2.Response) -> Exception:
        headers, status = response.headers, response.status_code
        retry_after = seconds_until(headers.get("retry-after-ms", "none") + "ms")
        if retry_after is None:
            retry_after = seconds_until(headers.get("retry-after", ""))
        message = f"Error code: {status} - {response.text}"
        return status_error(self.config, status, message, retry_after)


def _json(content: bytes) -> Any:
    try:
        return json.loads(content)
    except (ValueError, RecursionError) as error:  # also for too many digits or brackets
        raise RetryableError(f"not JSON: {short_text(error)}") from None


def status_error(
    config: ChatConfig, status: int, message: str, retry_after: float | None = None
) -> Exception:
    """The exception of errors.py for an HTTP status.

    `message` is the server's own text, which may contain keys.
    """
    message = short_text(message)
    if status == 429 and "insufficient_quota" in message:
        return FatalProviderError(f"{config.provider}: {message}; add credit and rerun")
    if status in (408, 409, 429) or status >= 500:
        return RetryableError(message, status=status, retry_after=retry_after)
    if status in (401, 402, 403, 404):
        return (NotFoundError if status == 404 else FatalProviderError)(
            f"{config.base_url or config.provider} replied: {message}; check the key in "
            f"{API_KEY_VARIABLES[config.provider]}, the model {config.model!r} and base_url"
        )
    return RejectedRequestError(message)
