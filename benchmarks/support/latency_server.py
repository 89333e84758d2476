"""A chat server that answers every request after the same delay, and costs next to nothing itself.

    python -m benchmarks.support.latency_server --delay=0.1

Prints its address, serves both protocols on it over plain HTTP/1.1 until its stdin closes, then
prints what it did as a line of JSON: `requests`, `cpu_ms` a request, `late_ms` (by how much a reply
left after it was due, 99 %). Where it costs and lags little, it is not what a client waits for.
"""

import asyncio
import json
import sys
import time
from collections.abc import Sequence

from absl import flags

from common import cli

ANSWER = "Rest, fluids and paracetamol are enough for most adults with influenza. " * 6
"""About 400 bytes."""

REPLIES = {
    "/v1/chat/completions": {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 1_700_000_000,
        "model": "stand-in-1",
        "choices": [
            {
                "index": 0,
                "finish_reason": "stop",
                "logprobs": None,
                "message": {"role": "assistant", "content": ANSWER, "refusal": None},
            }
        ],
        "usage": {"prompt_tokens": 250, "completion_tokens": 100, "total_tokens": 350},
    },
    "/v1/messages": {
        "id": "msg_1",
        "type": "message",
        "role": "assistant",
        "model": "stand-in-1",
        "content": [{"type": "text", "text": ANSWER}],
        "stop_reason": "end_turn",
        "stop_sequence": None,
        "usage": {"input_tokens": 250, "output_tokens": 100},
    },
}


def as_http(reply: dict) -> bytes:
    body = json.dumps(reply).encode()
    head = f"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n"
    return f"{head}\r\n".encode() + body


class Connection(asyncio.Protocol):
    """Reads no JSON and formats none; one request at a time, as HTTP/1.1 clients send them."""

    def __init__(self, delay: float, replies: dict[bytes, bytes], late: list[float]):
        self._delay, self._replies, self._late, self._received = delay, replies, late, b""

    def connection_made(self, transport: asyncio.Transport) -> None:
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._received += data
        head, found, body = self._received.partition(b"\r\n\r\n")
        if not found:
            return
        length = head.lower().partition(b"content-length:")[2].partition(b"\r\n")[0]
        if len(body) < int(length):
            return
        path, self._received = head.split(b" ", 2)[1], b""
        loop = asyncio.get_running_loop()
        due = loop.time() + self._delay
        loop.call_at(due, self._reply, self._replies[path], due)

    def _reply(self, reply: bytes, due: float) -> None:
        self._late.append(asyncio.get_running_loop().time() - due)
        self._transport.write(reply)


async def serve(delay: float) -> None:
    loop = asyncio.get_running_loop()
    replies = {path.encode(): as_http(reply) for path, reply in REPLIES.items()}
    late: list[float] = []  # seconds, of all connections

    def connect():
        return Connection(delay, replies, late)

    server = await loop.create_server(connect, "127.0.0.1", 0, backlog=512)
    host, port = server.sockets[0].getsockname()
    print(f"http://{host}:{port}", flush=True)
    before = time.process_time()
    await loop.run_in_executor(None, sys.stdin.read)
    count = max(1, len(late))
    statistics = {
        "requests": len(late),
        "cpu_ms": 1e3 * (time.process_time() - before) / count,
        "late_ms": 1e3 * sorted(late or [0.0])[int(0.99 * count)],
    }
    print(json.dumps(statistics), flush=True)


def main(argv: Sequence[str]) -> None:
    del argv
    asyncio.run(serve(flags.FLAGS.delay))


if __name__ == "__main__":
    flags.DEFINE_float("delay", 0.1, "Seconds from a request to its reply.", lower_bound=0.0)
    cli.run(main)
