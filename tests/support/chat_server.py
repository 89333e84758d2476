"""A server that speaks both chat protocols over real HTTP, and fails the way servers do."""

import hashlib
import json
import random
import threading
import time
from collections import Counter
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

FAULTS = (
    "429",
    "429 after",
    "500",
    "529",
    "drop",
    "stall",
    "half json",
    "short body",
    "empty choices",
    "content filter",
)

CHARGED = ("", "content filter", "empty choices")
"""Replies with usage, among those of status 200."""


def openai_reply(text: str, finish: str = "stop") -> dict[str, Any]:
    message = {"role": "assistant", "content": text}
    return {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "model": "stand-in-1",
        "choices": [{"index": 0, "finish_reason": finish, "message": message}],
        "usage": {"prompt_tokens": 20, "completion_tokens": 7, "total_tokens": 27},
    }


def anthropic_reply(text: str, finish: str = "end_turn") -> dict[str, Any]:
    return {
        "id": "msg_1",
        "type": "message",
        "role": "assistant",
        "model": "stand-in-1",
        "content": [{"type": "text", "text": text}],
        "stop_reason": finish,
        "usage": {"input_tokens": 20, "output_tokens": 7},
    }


def question(body: dict[str, Any]) -> str:
    return body["messages"][-1]["content"]


class ChatServer:
    """Answers each question with `answer(body)`; a share of calls fails, by the given seed.

    Args:
      port: 0: a free one.
    """

    def __init__(
        self, faults: float = 0.0, kinds: tuple[str, ...] = FAULTS, seed: int = 0, port: int = 0
    ):
        self.answer = lambda body: "answer to " + question(body)
        self.faults, self.kinds, self.delay, self.stall = faults, kinds, 0.0, 1.5
        self.headers: dict[str, str] = {}
        self.always: tuple[int, dict] | None = None  # (status, body) of every reply
        # (status, JSON or text, headers) of the reply to a body, where it is no answer
        self.error: Callable[[dict], tuple[int, Any, dict[str, str]] | None] = lambda body: None
        self.bodies: list[dict] = []
        self.authorization: set[str] = set()
        self.answered: Counter[str] = Counter()  # hash of a body -> 200s delivered whole
        self.charged = 0  # replies with usage
        self.billed = 0  # requests that were processed, whether their replies arrived or not
        self.most_at_once = self._at_once = 0
        self._random, self._lock = random.Random(seed), threading.Lock()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True

            def log_message(self, *_):
                pass

            def do_POST(self):
                outer._serve(self)

            do_GET = do_POST  # of batches, which only BatchServer has

        class Server(ThreadingHTTPServer):
            daemon_threads = True
            request_queue_size = 256

        self._http = Server(("127.0.0.1", port), Handler)
        self.url = f"http://127.0.0.1:{self._http.server_address[1]}"
        threading.Thread(target=self._http.serve_forever, args=(0.02,), daemon=True).start()

    def close(self):
        self._http.shutdown()
        self._http.server_close()

    def _serve(self, handler: BaseHTTPRequestHandler) -> None:
        raw = handler.rfile.read(int(handler.headers["Content-Length"]))
        body = json.loads(raw)
        with self._lock:
            self.bodies.append(body)
            self.authorization.add(handler.headers.get("Authorization", ""))
            self._at_once += 1
            self.most_at_once = max(self.most_at_once, self._at_once)
            failing = self._random.random() < self.faults
            fault = self._random.choice(self.kinds) if failing else ""
        try:
            if self.delay:
                time.sleep(self.delay)
            self._reply(handler, body, fault)
        finally:
            with self._lock:
                self._at_once -= 1

    def _reply(self, handler: BaseHTTPRequestHandler, body: dict, fault: str) -> None:
        is_openai = handler.path.endswith("/chat/completions")
        make = openai_reply if is_openai else anthropic_reply
        status, content, cut = 200, make(self.answer(body)), 0
        headers = {"Content-Type": "application/json"} | self.headers
        if fault.startswith("429"):
            status, content = 429, {"error": {"message": "too many requests"}}
            headers |= {"Retry-After": "0.05"} if fault == "429 after" else {}
        elif fault in ("500", "529"):
            status, content = int(fault), {"error": {"message": "overloaded"}}
        elif fault == "drop":
            self.billed += 1
            handler.close_connection = True
            return handler.connection.close()
        elif fault == "stall":
            self.billed += 1
            time.sleep(self.stall)
            handler.close_connection = True
            return None
        elif fault == "empty choices":
            content = content | ({"choices": []} if is_openai else {"content": None})
        elif fault == "content filter":
            content = make("", "content_filter")
        error = self.error(body) or (self.always and (*self.always, {}))
        if error:
            status, content, more = error
            headers |= more
        data = (content if isinstance(content, str) else json.dumps(content)).encode()
        if fault == "half json":
            data = data[: len(data) // 2]
        if fault == "short body":
            cut = len(data) // 2
        with self._lock:
            self.billed += status == 200
            self.charged += (
                status == 200 and not error and fault in ("", "content filter", "empty choices")
            )
        handler.send_response(status)
        for name, value in headers.items():
            handler.send_header(name, value)
        handler.send_header("Content-Length", str(len(data)))
        handler.end_headers()
        try:
            handler.wfile.write(data[: len(data) - cut] if cut else data)
            handler.wfile.flush()
        except OSError:
            return None
        if cut:
            handler.close_connection = True
            handler.connection.close()
        elif status == 200 and not fault and not error:
            key = hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()
            with self._lock:
                self.answered[key] += 1
        return None
