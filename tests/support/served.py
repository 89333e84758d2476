"""A server of this project: in a thread of the test's process, or in a process of its own."""

import asyncio
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path

import httpx
import openai

from alpacare_jax.inference.engine import Engine
from alpacare_jax.inference.loading import ModelSource
from alpacare_jax.serving import server
from alpacare_jax.serving.served_model import ServedModel
from alpacare_jax.serving.server import ServerConfig
from tests.conftest import COMPILES_QUICKLY, LIMIT, REPOSITORY


def settings(**changes) -> ServerConfig:
    """The flags' defaults, on a free port."""
    given = {
        "host": "127.0.0.1",
        "port": 0,
        "key": "",
        "max_queue": 256,
        "max_body_mib": 1.0,
        "request_seconds": float(LIMIT),
        "log_texts": False,
    }
    return ServerConfig(**given | changes)


def answer_on(link: socket.socket) -> bytes:
    """A whole response, whose body is JSON; its connection stays open."""
    found = b""
    while not found.endswith(b"}"):
        part = link.recv(4096)
        assert part, found
        found += part
    return found


class Connected:
    """What tests do with a server at an address."""

    url: str
    name: str
    key = ""

    def client(self, **changes) -> openai.OpenAI:
        given = {"base_url": f"{self.url}/v1", "api_key": self.key or "none", "max_retries": 0}
        return openai.OpenAI(**given | {"timeout": LIMIT} | changes)

    def post(self, path: str, body: object, **headers: str) -> httpx.Response:
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        headers = {"content-type": "application/json"} | headers
        return httpx.post(f"{self.url}{path}", content=content, headers=headers, timeout=LIMIT)

    def written(self, path: str, body: dict) -> tuple[bytes, bytes]:
        """Head and body of a POST, for a socket."""
        content = json.dumps({"model": self.name} | body).encode()
        head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(content)}\r\n"
        return f"{head}Content-Type: application/json\r\n\r\n".encode(), content

    def get(self, path: str, **headers: str) -> httpx.Response:
        return httpx.get(f"{self.url}{path}", headers=headers, timeout=LIMIT)

    def connect(self) -> socket.socket:
        address = httpx.URL(self.url)
        return socket.create_connection((address.host, address.port), LIMIT)

    def ask(self, question: str, **changes):
        """The greedy answer to a question, by the openai client."""
        messages = [{"role": "user", "content": question}]
        given = {"model": self.name, "temperature": 0, "messages": messages}
        return self.client().chat.completions.create(**given | changes)


class ServerThread(Connected):
    """Serves an engine from a thread of this process, over a real socket."""

    def __init__(self, source: ModelSource, engine: Engine, **changes):
        config = settings(**changes)
        self.model = ServedModel.of(source, "")
        self.name, self.key = self.model.name, config.key
        self.listener = server.listen(config)
        self.url = f"http://127.0.0.1:{self.listener.getsockname()[1]}"
        self.code: int | None = None
        self.server: server.Server
        ready = threading.Event()

        def started(running: server.Server) -> None:
            self.server = running
            ready.set()

        def run() -> None:
            self.code = asyncio.run(
                server.serve(config, self.model, engine, self.listener, started)
            )

        self._thread = threading.Thread(target=run)
        self._thread.start()
        assert ready.wait(LIMIT)

    def stop(self) -> None:
        """As a first SIGTERM does; waits for the end."""
        self.server.should_exit = True
        self.wait()

    def wait(self) -> None:
        """Waits for the end, whatever brings it about."""
        self._thread.join(LIMIT)
        assert not self._thread.is_alive()


class ServerProcess(Connected):
    """`alpacare serve` in a process of its own; its standard error goes to a file."""

    def __init__(self, checkpoint: Path, log: Path, *flags: str, **environment: str):
        self.name, self.log = checkpoint.name, log
        self.key = environment.get("ALPACARE_API_KEY", "")
        command = [sys.executable, "-m", "alpacare_jax.serve", f"--checkpoint={checkpoint}"]
        env = os.environ | COMPILES_QUICKLY | {"JAX_NUM_CPU_DEVICES": "1"} | environment
        with log.open("wb") as file:
            self.process = subprocess.Popen(
                [*command, "--port=0", *flags], cwd=REPOSITORY, env=env, stderr=file
            )
        pattern = re.compile(r"serving .* on (http://\S+);")
        while not (found := pattern.search(log.read_text())):
            assert self.process.poll() is None, log.read_text()
            threading.Event().wait(0.05)
        self.url = found[1]

    def signal(self, number: signal.Signals = signal.SIGTERM) -> None:
        self.process.send_signal(number)

    def wait(self) -> int:
        return self.process.wait(LIMIT)

    def __enter__(self) -> "ServerProcess":
        return self

    def __exit__(self, *error: object) -> None:
        self.process.kill()
        self.process.wait()
