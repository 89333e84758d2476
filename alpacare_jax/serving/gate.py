"""What every request passes: identity, key, host, errors as JSON, a line in the log."""

import asyncio
import hashlib
import hmac
import re
import secrets
import time
from collections.abc import Sequence
from typing import Any

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from alpacare_jax.serving.errors import ApiError, shown
from alpacare_jax.serving.monitoring import Monitor
from alpacare_jax.serving.replies import encode
from common import exits

OPEN_PATHS = ("/", "/health")
"""Paths that need no key: the page, which asks for it, and what a load balancer looks at."""

LOCAL = re.compile(r"(localhost|127\.0\.0\.1|\[::1\])(:\d+)?")
"""The header Host of a request that is addressed to this machine by a local name."""

BODY_SECONDS = 60.0
"""Until the body of a request must have arrived."""

CLIENT_GONE = 499
"""The status in log and metrics of a request whose client went away (nginx's)."""

HEADERS = {
    "x-content-type-options": "nosniff",
    "cache-control": "no-store",
    "referrer-policy": "no-referrer",
}


class Gate:
    """Middleware: whatever happens, a client gets a right answer and the server lives.

    Args:
      paths: the known ones, for log and metrics.
      key: that requests must have; "": none, and the host must be this machine.
      seconds: until a response must be complete.
    """

    def __init__(
        self, app: ASGIApp, *, monitor: Monitor, paths: tuple[str, ...], key: str, seconds: float
    ):
        self._app, self._monitor, self._paths = app, monitor, paths
        self._digest = _digest(key.encode()) if key else b""
        self._seconds = seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serves one request."""
        if scope["type"] != "http":
            return
        began, identity = time.monotonic(), secrets.token_hex(8)
        path = next((p for p in self._paths if _matches(scope["path"], p)), "other")
        details: dict[str, Any] = {"request": identity, "method": scope["method"][:16]}
        scope["state"] = {"details": details}
        scope["app"] = self  # with it, the router raises errors instead of answering them
        status = 0

        async def passing(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                extra = HEADERS | {"x-request-id": identity}
                headers = [(k.encode(), v.encode()) for k, v in extra.items()]
                message["headers"] = [*message["headers"], *headers]
            await send(message)

        async def fail(error: ApiError) -> None:
            if status:
                return  # the response has begun: uvicorn ends the connection
            details["error"] = error.kind
            content = encode(error.body())
            response = Response(content, error.status, error.headers, "application/json")
            await response(scope, receive, passing)

        try:
            async with asyncio.timeout(self._seconds):
                self._admit(path, Headers(scope=scope))
                await self._app(scope, receive, passing)
        except ApiError as error:
            await fail(error)
        except HTTPException as error:
            await fail(_http_error(error))
        except ClientDisconnect:
            status = CLIENT_GONE
        except TimeoutError:
            await fail(ApiError(504, f"no answer within {self._seconds:,.0f} s; ask for less"))
        except Exception as error:  # noqa: BLE001 - the server lives, and the log has the cause
            details["cause"] = exits.unexpected(error)
            await fail(ApiError(500, f"internal error in request {identity}; the log has more"))
        finally:
            seconds = time.monotonic() - began
            self._monitor.request(path, status or CLIENT_GONE, seconds, **details)

    def _admit(self, path: str, headers: Headers) -> None:
        """Raises ApiError if a request lacks the key, or comes by way of another site."""
        if not self._digest:
            if not LOCAL.fullmatch(headers.get("host", "").lower()):
                raise ApiError(
                    403, "this server is for its own machine; address it as localhost or 127.0.0.1"
                )
        elif path not in OPEN_PATHS:
            kind, _, given = headers.get("authorization", "").partition(" ")
            matches = hmac.compare_digest(_digest(given.strip().encode()), self._digest)
            if kind.lower() != "bearer" or not matches:
                raise ApiError(
                    401,
                    "the API key is missing or wrong; send the header Authorization: Bearer KEY",
                    code="invalid_api_key",
                    headers={"www-authenticate": "Bearer"},
                )


def _digest(key: bytes) -> bytes:
    """Of one length, so that a comparison does not show the key's."""
    return hashlib.sha256(key).digest()


def _matches(path: str, known: str) -> bool:
    return path == known or (known.endswith("}") and path.startswith(known.partition("{")[0]))


def _http_error(error: HTTPException) -> ApiError:
    """Starlette's errors, of paths and methods, in our form."""
    remedies = {
        404: "there is no such path; see POST /v1/chat/completions, POST /v1/completions, "
        "POST /apply-template, GET /v1/models, GET /health, GET /metrics",
        405: "this path does not have this method; GET /v1/models, /health, /metrics and "
        "/, POST the others",
    }
    message = remedies.get(error.status_code, "the request is not valid HTTP for this server")
    status = error.status_code if error.status_code in remedies else 400
    return ApiError(status, message, headers=dict(error.headers or {}))


async def read_body(request: Request, max_bytes: int) -> bytes:
    """The body of a request, which must be JSON by its type.

    Raises:
      ApiError: it has another type, is compressed or too large, or does not arrive in time.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise ApiError(415, "the body must be JSON; send the header Content-Type: application/json")
    if (coding := request.headers.get("content-encoding", "identity").lower()) != "identity":
        raise ApiError(415, f"the body must not be compressed ({shown(coding)}); send it as it is")
    close = {"connection": "close"}
    too_large = ApiError(
        413,
        f"the body has more than {max_bytes / 2**20:,.3g} MiB; send smaller batches, or start the "
        "server with a larger --max_body_mib",
        headers=close,
    )
    content = bytearray()
    if int(request.headers.get("content-length", 0)) > max_bytes:
        raise too_large  # at once: a client that expects "100 Continue" sends nothing of it
    try:
        async with asyncio.timeout(BODY_SECONDS):
            async for chunk in request.stream():
                content += chunk
                if len(content) > max_bytes:
                    raise too_large
    except TimeoutError:
        message = f"the body did not arrive within {BODY_SECONDS:.0f} s; send it again"
        raise ApiError(408, message, headers=close) from None
    return bytes(content)


async def unless_disconnected(request: Request, work: Any) -> Any:
    """The result of `work`, which is cancelled when the client goes away.

    Raises:
      ClientDisconnect: it did.
    """

    async def gone() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    tasks: Sequence[asyncio.Task[Any]] = [asyncio.ensure_future(work), asyncio.create_task(gone())]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        if tasks[0].done():
            return tasks[0].result()
        raise ClientDisconnect
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
