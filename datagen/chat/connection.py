"""HTTP to one provider through its official SDK, and what each failure means.

To the SDKs is left what they know best: addresses, authentication, connections, uploads.
"""

import contextlib
import importlib
import json
import os
import re
from collections.abc import AsyncIterator, Iterator, Mapping
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


def reason(error: Exception | str) -> str:
    """One line of an error, at most 300 characters, without anything that could be a key."""
    text = " ".join(str(error).split())
    for name in API_KEY_VARIABLES.values():
        if key := os.environ.get(name):
            text = text.replace(key, "[key]")
    text = re.sub(r"\bsk-[\w*.-]{4,}", "[key]", text)
    return text[:300] or type(error).__name__


class Connection:
    """An SDK's client; one for a run."""

    def __init__(self, config: ChatConfig):
        self.config = config
        self._sdk = importlib.import_module(config.provider)  # each takes a second to import
        key = os.environ.get(API_KEY_VARIABLES[config.provider])
        if not key and not config.base_url:
            raise FatalProviderError(
                f"set {API_KEY_VARIABLES[config.provider]} in the environment, or base_url"
            )
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
          RetryableError, RejectedRequestError, FatalProviderError: see `meaning`; so do `get`,
            `post` and `lines`.
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
                raise RetryableError(
                    f"no answer within {self.config.timeout_seconds:g} s"
                ) from None
            raise RetryableError(f"connection: {reason(cause or error)}") from None

    def _meaning(self, response: httpx2.Response) -> Exception:
        headers, status = response.headers, response.status_code
        after = seconds_until(headers.get("retry-after-ms", "none") + "ms")
        if after is None:
            after = seconds_until(headers.get("retry-after", ""))
        said = f"Error code: {status} - {response.text}"
        return meaning(self.config, status, said, after)


def _json(content: bytes) -> Any:
    try:
        return json.loads(content)
    except (ValueError, RecursionError) as error:  # too many digits, or brackets, too
        raise RetryableError(f"not JSON: {reason(error)}") from None


def meaning(config: ChatConfig, status: int, said: str, after: float | None = None) -> Exception:
    """The exception of errors.py that an HTTP status stands for.

    `said` is the server's own text, which may contain keys.
    """
    said = reason(said)
    if status == 429 and "insufficient_quota" in said:
        return FatalProviderError(f"{config.provider}: {said}; add credit and run again")
    if status in (408, 409, 429) or status >= 500:
        return RetryableError(said, status=status, retry_after=after)
    if status in (401, 402, 403, 404):
        return (NotFoundError if status == 404 else FatalProviderError)(
            f"{config.base_url or config.provider} answers {said}; check the key in "
            f"{API_KEY_VARIABLES[config.provider]}, the model {config.model!r} and base_url"
        )
    return RejectedRequestError(said)
