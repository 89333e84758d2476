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

from datagen.chat.config import KEYS, ChatConfig
from datagen.chat.rate_limit import seconds_until


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


def reason(error: Exception | str) -> str:
    """One line of an error, at most 300 characters, without anything that could be a key."""
    text = " ".join(str(error).split())
    for name in KEYS.values():
        if key := os.environ.get(name):
            text = text.replace(key, "[key]")
    text = re.sub(r"\bsk-[\w*.-]{4,}", "[key]", text)
    return text[:300] or type(error).__name__


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
        said = f"Error code: {status} - {response.text}"
        return meaning(self.config, status, said, after)


def _json(content: bytes) -> Any:
    try:
        return json.loads(content)
    except (ValueError, RecursionError) as error:  # too many digits, or brackets, too
        raise Again(f"not JSON: {reason(error)}") from None


def meaning(config: ChatConfig, status: int, said: str, after: float | None = None) -> Exception:
    """Again, Refused or Hopeless: what an HTTP status says about one request.

    `said` is the server's own text, in which keys may stand.
    """
    said = reason(said)
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
