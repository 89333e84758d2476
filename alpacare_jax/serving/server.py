"""The HTTP server: its socket, its routes, its start and its end."""

import asyncio
import contextlib
import dataclasses
import logging
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from html import escape
from http import HTTPStatus
from pathlib import Path
from types import FrameType
from typing import Self

import h11
import uvicorn
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route, Router
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol

from alpacare_jax.inference.engine import Engine
from alpacare_jax.serving.api import Api
from alpacare_jax.serving.errors import ApiError
from alpacare_jax.serving.gate import BODY_SECONDS, HEADERS, Gate
from alpacare_jax.serving.monitoring import Monitor
from alpacare_jax.serving.replies import encode
from alpacare_jax.serving.served_model import ServedModel
from alpacare_jax.serving.worker import EngineThread
from common.messages import log
from common.reports.page import document, script_json
from common.sections import UsageError

PAGE_FILES = Path(__file__).with_name("web")

LOOPBACK_HOSTS = ("127.0.0.1", "localhost", "::1")
"""Hosts on which no other machine can reach the server."""


MAX_CONNECTIONS = 900
"""At the same time; most systems allow a process 1,024 open files."""

HEAD_SECONDS = 30.0
"""Until the head of a request must have arrived: of the first since the connection was made, of a
later one since its first byte."""

IDLE_SECONDS = 75
"""Between two requests of a connection: longer than clients keep idle ones."""


@dataclasses.dataclass(frozen=True)
class ServerConfig:
    """How the server listens, and its limits; they are documented as flags."""

    host: str
    port: int
    key: str = dataclasses.field(repr=False)  # "": none
    max_queue: int
    max_body_mib: float
    request_seconds: float
    log_texts: bool

    def __post_init__(self):
        if self.host not in LOOPBACK_HOSTS and not self.key:
            raise UsageError(
                f"--host={self.host} lets other machines in, which requires an API key: set "
                "ALPACARE_API_KEY, or --api_key_file; or keep --host=127.0.0.1"
            )
        if self.key and (
            len(self.key) < 16 or not self.key.isascii() or not self.key.isprintable()
        ):
            raise UsageError(
                "the API key must be at least 16 printable ASCII characters; make one with: "
                "openssl rand -hex 32"
            )


def listen(config: ServerConfig) -> socket.socket:
    """A socket with the address, which nobody can connect to until the server runs.

    It is taken before the weights are loaded, so that a port in use is known at once.

    Raises:
      OSError: the address cannot be used.
    """
    with _explained(config):
        family, kind, protocol, _, address = socket.getaddrinfo(
            config.host, config.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.socket(family, kind, protocol)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        # A client that stops reading holds its connection no longer than this.
        limit = int(1000 * config.request_seconds)
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, limit)
        listener.bind(address)
    return listener


@contextlib.contextmanager
def _explained(config: ServerConfig) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise OSError(
            f"cannot listen on {config.host}, port {config.port} ({error.strerror}); choose "
            "another --port or --host"
        ) from None


def page(model: ServedModel, *, needs_key: bool) -> str:
    """The chat page, which talks to this server only; the API key stays in its memory."""

    def web_file(name: str) -> str:
        return (PAGE_FILES / name).read_text("utf-8")

    body = web_file("chat.html").replace("$KEY", web_file("key.html") if needs_key else "")
    for name, text in (
        ("$MODEL", model.name),
        ("$TEMPLATE", model.template_name),
        ("$LENGTH", f"{model.max_length:,}"),
    ):
        body = body.replace(name, escape(text))
    script = web_file("chat.js").replace('"$MODEL"', script_json(model.name))
    title, style = f"{model.name}: chat", web_file("chat.css")
    return document(title, body, style=style, script=script, connects=True)


def application(
    config: ServerConfig, model: ServedModel, thread: EngineThread, monitor: Monitor
) -> ASGIApp:
    """The application, with everything that requests pass before it."""
    api = Api(
        model,
        thread,
        monitor,
        max_body=int(config.max_body_mib * 2**20),
        seconds=config.request_seconds,
        log_texts=config.log_texts,
    )
    html = page(model, needs_key=bool(config.key))

    async def chat_page(request: Request) -> Response:
        del request
        headers = {"x-frame-options": "DENY"}  # what a page cannot state in its own policy
        return Response(html, media_type="text/html", headers=headers)

    routes = [
        Route("/", chat_page),
        Route("/health", api.health),
        Route("/metrics", api.metrics),
        Route("/v1/models", api.models),
        Route("/v1/models/{model:path}", api.models),
        Route("/v1/chat/completions", api.chat, methods=["POST"]),
        Route("/v1/completions", api.completion, methods=["POST"]),
        Route("/apply-template", api.template, methods=["POST"]),
    ]
    return Gate(
        Router(routes, redirect_slashes=False),
        monitor=monitor,
        paths=tuple(route.path for route in routes),
        key=config.key,
        seconds=config.request_seconds + BODY_SECONDS,
    )


class BoundedConnection(H11Protocol):
    """uvicorn's, within these limits; one that exceeds them is closed."""

    _overdue: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:
        """Begins to wait for a request."""
        super().connection_made(transport)
        if len(self.connections) > MAX_CONNECTIONS:
            message = "the server has too many connections; close idle ones, or try again"
            self._refuse(ApiError(503, message, headers={"retry-after": "1"}))
        else:
            self._await_head()

    def data_received(self, data: bytes) -> None:
        """Serves a request that is complete up to its body; else goes on to wait for it."""
        super().data_received(data)
        if self.cycle and not self.cycle.response_complete:
            self._stop_waiting()
        elif not (self._overdue or self.transport.is_closing()):
            self._await_head()

    def connection_lost(self, exc: Exception | None) -> None:
        """Leaves no timer behind."""
        self._stop_waiting()
        super().connection_lost(exc)

    def send_400_response(self, msg: str) -> None:
        """Answers what is no HTTP, unless a response was sent that it can only follow."""
        del msg
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            self._refuse(ApiError(400, "this is not valid HTTP/1.1; docs/serving.md has examples"))
        else:
            self.transport.close()

    def _refuse(self, error: ApiError) -> None:
        """Answers without a request, and closes the connection."""
        body = encode(error.body())
        headers = HEADERS | error.headers | {"content-type": "application/json"}
        headers |= {"content-length": str(len(body)), "connection": "close"}
        lines = [f"{name}: {value}" for name, value in headers.items()]
        status = f"HTTP/1.1 {error.status} {HTTPStatus(error.status).phrase}"
        self.transport.write("\r\n".join([status, *lines, "", ""]).encode() + body)
        self.transport.close()

    def _await_head(self) -> None:
        self._overdue = self.loop.call_later(HEAD_SECONDS, self.timeout_keep_alive_handler)

    def _stop_waiting(self) -> None:
        if self._overdue:
            self._overdue.cancel()
            self._overdue = None


class Server(uvicorn.Server):
    """uvicorn's, with signals as this project's commands treat them.

    Args:
      started: called when clients can connect.
    """

    def __init__(self, config: uvicorn.Config, started: Callable[[Self], object]):
        super().__init__(config)
        self._started = started

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Begins to listen."""
        await super().startup(sockets)
        self._started(self)

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """The first SIGTERM or Ctrl-C stops in good order, the next one at once.

        The handlers stay: a signal behind the last answer interrupts nothing.
        """
        loop, at_once = asyncio.get_running_loop(), {}

        def stop(number: int, frame: FrameType | None) -> None:
            if not self.should_exit:
                self.should_exit = True  # before a log that may be full
                text = "stopping: answers under way are finished; a second signal stops at once"
                loop.call_soon_threadsafe(log, text)
            elif self.server_state.connections or self.server_state.tasks:
                at_once[number](number, frame)
            else:
                os._exit(0)  # no flush: this may be in the middle of a write

        if threading.current_thread() is threading.main_thread():  # no other receives them
            for number in (signal.SIGTERM, signal.SIGINT):
                if signal.getsignal(number) != signal.SIG_IGN:  # as it is for SIGINT under nohup
                    at_once[number] = signal.signal(number, stop)
        yield


async def serve(
    config: ServerConfig,
    model: ServedModel,
    engine: Engine,
    listener: socket.socket,
    started: Callable[[Server], object] = lambda server: None,
) -> int:
    """Serves until a signal; returns the exit code, 1 if the engine has failed."""

    def announce(server: Server) -> None:
        host, port = listener.getsockname()[:2]
        host = f"[{host}]" if ":" in host else host
        log(f"serving {model.name} on http://{host}:{port}; Ctrl-C stops it")
        started(server)

    with _explained(config):
        listener.listen()  # two that load at the same time can both have bound the address
    monitor = Monitor()
    thread = EngineThread(engine, engine.slots + config.max_queue, monitor.progress)
    monitor.watch(thread)
    logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL)  # the gate has its own log
    server = Server(
        uvicorn.Config(
            application(config, model, thread, monitor),
            loop="asyncio",
            http=BoundedConnection,
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            timeout_keep_alive=IDLE_SECONDS,
            timeout_graceful_shutdown=int(config.request_seconds) + 1,
        ),
        announce,
    )

    async def end_with_the_engine() -> None:
        await thread.failed.wait()
        server.should_exit = True

    watch = asyncio.create_task(end_with_the_engine())
    await server.serve(sockets=[listener])
    watch.cancel()
    thread.close()
    if thread.failure:
        print(f"error: {thread.failure}", file=sys.stderr)
        return 1
    return 0
