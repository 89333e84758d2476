"""Claim: the client keeps 64 places full, and costs less than 1 ms of CPU a request.

    python -m benchmarks.chat_overhead

A server in a process of its own answers every request after 100 ms, so 64 requests at a time are at
best 640 a second. Contenders take turns, for each protocol: ours, `Client.stream` with its store on
disk; and the plain SDK, `create` under an `asyncio.Semaphore(64)`, which stores nothing. Requests
are about 1 kB, answers 400 bytes. CPU time is user and system time of the whole client process.

Bare sockets take a turn too: how near to 640 they come, and the statistics of the server, show
that it is not the server that is measured.
"""

import asyncio
import importlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from urllib.parse import urlsplit

from absl import flags
from ml_collections import config_flags

from benchmarks.support import race
from common import cli
from datagen.chat.client import Client
from datagen.chat.config import ChatConfig, ChatRequest
from datagen.chat.replies import ChatAnswer
from datagen.chat.store import AnswerStore

DELAY, CONCURRENCY = 0.1, 64
"""Seconds of each answer, and most requests out at once."""

MAX_TOKENS = 512

RATIO, MILLISECONDS = 0.90, 1.0
"""Targets."""

SYSTEM = (
    "You are a careful physician. Answer in plain words, name the evidence and its limits. " * 6
)
QUESTION = "A patient of 54 years with type 2 diabetes asks about a new drug and its dose. " * 6


def config(provider: str) -> ChatConfig:
    changes = {
        "provider": provider,
        "base_url": base_url(provider),
        "model": "stand-in",
        "max_tokens": MAX_TOKENS,
        "concurrency": CONCURRENCY,
        "budget_usd": 1e6,  # watched, never reached
        "price_input": 1.0,
        "price_output": 10.0,
    }
    return ChatConfig(**flags.FLAGS.config.responder.to_dict() | changes)


def base_url(provider: str) -> str:
    return flags.FLAGS.url + ("/v1" if provider == "openai" else "")


def question(number: int) -> str:
    return f"{QUESTION}Case {number}."


def measured(ask_all: Callable[[int], Awaitable[int]]) -> race.Work:
    """Works off all requests; the result holds requests, seconds and CPU seconds."""

    def work() -> race.Result:
        count, cpu, start = flags.FLAGS.requests, time.process_time(), time.perf_counter()
        answered = asyncio.run(ask_all(count))
        if answered != count:
            raise ValueError(f"{answered:,} of {count:,} requests were answered")
        return {
            "requests": count,
            "seconds": time.perf_counter() - start,
            "cpu": time.process_time() - cpu,
        }

    return work


def ours(provider: str) -> race.Work:
    async def ask_all(count: int) -> int:
        answered = 0
        requests = ((i, ChatRequest(SYSTEM, question(i), "v1")) for i in range(count))
        with (
            tempfile.TemporaryDirectory() as folder,
            AnswerStore(Path(folder) / "answers.sqlite") as store,
        ):
            async with Client(config(provider), store) as client:
                async for _, outcome in client.stream(requests, total=count):
                    answered += isinstance(outcome, ChatAnswer)
        return answered

    return measured(ask_all)


def plain_sdk(provider: str) -> race.Work:
    sdk = importlib.import_module(provider)
    name = {"openai": "AsyncOpenAI", "anthropic": "AsyncAnthropic"}[provider]
    shared = {"model": "stand-in", "max_tokens": MAX_TOKENS}

    async def ask_all(count: int) -> int:
        places = asyncio.Semaphore(CONCURRENCY)

        async def ask(number: int) -> bool:
            user = {"role": "user", "content": question(number)}
            async with places:
                if provider == "openai":
                    messages = [{"role": "system", "content": SYSTEM}, user]
                    reply = await client.chat.completions.create(messages=messages, **shared)
                    return bool(reply.choices[0].message.content)
                reply = await client.messages.create(system=SYSTEM, messages=[user], **shared)
                return bool(reply.content[0].text)

        async with getattr(sdk, name)(api_key="none", base_url=base_url(provider)) as client:
            return sum(await asyncio.gather(*map(ask, range(count))))

    return measured(ask_all)


def bare_sockets() -> race.Work:
    address = urlsplit(flags.FLAGS.url)
    body = json.dumps({"system": SYSTEM, "user": QUESTION}).encode()
    head = f"POST /v1/messages HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n"
    message = head.encode() + body

    async def ask_all(count: int) -> int:
        left = iter(range(count))

        async def place() -> int:
            reader, writer = await asyncio.open_connection(address.hostname, address.port)
            answered = 0
            for _ in left:
                writer.write(message)
                reply = await reader.readuntil(b"\r\n\r\n")
                await reader.readexactly(int(reply.rpartition(b":")[2]))
                answered += 1
            writer.close()
            return answered

        return sum(await asyncio.gather(*(place() for _ in range(CONCURRENCY))))

    return measured(ask_all)


CONTENDERS = {
    "ours, openai": lambda: ours("openai"),
    "openai's create": lambda: plain_sdk("openai"),
    "ours, anthropic": lambda: ours("anthropic"),
    "anthropic's create": lambda: plain_sdk("anthropic"),
    "bare sockets": bare_sockets,
}


def of_ideal(_: float, result: race.Result) -> float:
    return result["requests"] / result["seconds"] / (CONCURRENCY / DELAY)


def milliseconds(_: float, result: race.Result) -> float:
    """CPU time of a request."""
    return 1e3 * result["cpu"] / result["requests"]


def values(contender: race.Contender, value: Callable[[float, race.Result], float]) -> list[float]:
    return list(map(value, contender.seconds, contender.results))


def report(contenders: Sequence[race.Contender], server: race.Result) -> None:
    count = f"{flags.FLAGS.requests:,} requests a round"
    if (load := os.getloadavg()[0]) > 1.5 * race.cores():
        print(f"BUSY MACHINE (load {load:.1f}): repeat it when it is quiet")
    print(f"\n{count}, {DELAY * 1e3:.0f} ms each, {CONCURRENCY} at a time; median [min, max]")
    row = "{:<20} {:>22} {:>24} {:>14}".format
    print(row("", "rate / ideal", "CPU ms a request", "peak memory"))
    for contender in contenders:
        rate, cpu = (
            race.spread(values(contender, of_ideal), 3),
            race.spread(values(contender, milliseconds), 3),
        )
        print(row(contender.name, rate, cpu, f"{contender.peak_bytes / 1e9:.2f} GB"))
    print(
        f"the server: {server['requests']:,} requests, {server['cpu_ms']:.3f} ms of CPU each, 99 % "
        f"of replies at most {server['late_ms']:.2f} ms late"
    )
    for one, other in (contenders[0:2], contenders[2:4]):
        ratio = statistics.median(values(one, of_ideal))
        race.verdict(f"{one.name}, rate / ideal", ratio, RATIO, at_most=False)
        cpu = statistics.median(values(one, milliseconds))
        race.verdict(f"{one.name}, CPU ms a request", cpu, MILLISECONDS, at_most=True)
        ratios = race.ratios(one, other, milliseconds)
        print(f"{one.name}: {race.spread(ratios, 2)} of the CPU time of {other.name}")


def main(argv: Sequence[str]) -> None:
    del argv
    FLAGS = flags.FLAGS
    if FLAGS.worker:
        race.serve(CONTENDERS[FLAGS.worker])
        return
    command = [sys.executable, "-m", "benchmarks.support.latency_server", f"--delay={DELAY}"]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) as server:
        url = [f"--url={server.stdout.readline().strip()}"]
        name = "benchmarks.chat_overhead"
        contenders = race.run(
            name, list(CONTENDERS), rounds=FLAGS.rounds, warm_ups=1, arguments=url
        )
        server.stdin.close()
        report(contenders, json.loads(server.stdout.readline()))


if __name__ == "__main__":
    config_flags.DEFINE_config_file("config", "configs/datagen.py", "Our settings: `responder`.")
    flags.DEFINE_integer("requests", 6400, "Requests a round.", lower_bound=CONCURRENCY)
    flags.DEFINE_integer("rounds", 3, "Times each contender works.", lower_bound=1)
    flags.DEFINE_string("url", "", "Internal: the server's address.")
    flags.DEFINE_string("worker", "", "Internal.")
    cli.run(main)
