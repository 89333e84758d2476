"""Lives of a client: processes that ask a stand-in server, and may be killed at any moment.

An interpreter with an SDK takes a second to start, so one process imports everything once and forks
each life. It reads a life from stdin, as a line of JSON, and prints the life's process number, then
how it ended. A life writes what it uses to a FIFO.
"""

import dataclasses
import gc
import json
import os
import sys
from pathlib import Path

import openai

from datagen.chat import attempts
from datagen.chat.client import Client, run_until_done
from datagen.chat.config import ChatConfig
from datagen.chat.store import AnswerStore
from tests.support.chat_runs import requests


class Life:
    """A client's process that asks 1,000 questions; `lines` reads what it uses."""

    def __init__(self, parent, config, store, fifo):
        self._parent = parent
        wanted = {"config": dataclasses.asdict(config), "store": str(store), "fifo": str(fifo)}
        os.mkfifo(fifo)
        print(json.dumps(wanted), file=parent.stdin, flush=True)
        self.lines = open(fifo)  # noqa: SIM115 - read by the test
        self.number = int(parent.stdout.readline())

    def signal(self, number):
        os.kill(self.number, number)

    def wait(self) -> int:
        self.lines.close()
        return int(self._parent.stdout.readline())


def live(config: ChatConfig, store_path: Path, fifo: int) -> None:
    """Asks 1,000 questions and writes each number and answer as a line."""

    async def work():
        async for tag, outcome in client.stream(requests(1000)):
            os.write(fifo, f"{tag}\t{outcome.text}\n".encode())

    with AnswerStore(store_path) as store:
        client = Client(config, store)
        run_until_done(client, work)


def main() -> None:
    attempts.INITIAL_BACKOFF, attempts.MAX_BACKOFF = 0.01, 0.05
    openai.DefaultAioHttpClient()  # imports here what each life would import else
    gc.freeze()  # else a life's first collection copies all that it shares with this process
    for line in sys.stdin:
        wanted = json.loads(line)
        fifo = os.open(wanted["fifo"], os.O_WRONLY)
        number = os.fork()
        if not number:
            live(ChatConfig(**wanted["config"]), Path(wanted["store"]), fifo)
            return
        os.close(fifo)
        print(number, flush=True)
        _, status = os.waitpid(number, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)


if __name__ == "__main__":
    main()
