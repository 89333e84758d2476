"""The results of a batch, stored as they are read; a kill or a cut between two loses none."""

import contextlib
import json
from collections.abc import AsyncIterator, Callable
from typing import Any

from datagen.chat import prices, protocols
from datagen.chat.batch_log import Batch, BatchLog
from datagen.chat.batch_protocols import KEY_DIGITS, BatchProtocol, BatchState
from datagen.chat.connection import Connection
from datagen.chat.errors import RejectedRequestError, RetryableError
from datagen.chat.store import Charge, ChatAnswer

CHUNK = 500
"""Answers stored in one transaction."""

Deliver = Callable[[Charge, ChatAnswer], None]


class BatchResults:
    """Reads and stores the results of one provider's batches."""

    def __init__(
        self, provider: str, protocol: BatchProtocol, connection: Connection, log: BatchLog
    ):
        self._provider, self._protocol = provider, protocol
        self._connection, self._log = connection, log

    async def store_all(
        self, batch: Batch, state: BatchState, deliver: Deliver
    ) -> dict[str, Exception]:
        """Stores all replies with their charges, each once, however often the results are read.

        Args:
          deliver: called with each new reply once it is on disk, blocked ones too: a further
            reading does not tell of them; see `Charge.is_answer`.

        Returns:
          Why there is no reply, by key, of the requests that the results say this of.

        Raises:
          RetryableError: the results could not be read to their end; what was read is stored.
          NotFoundError: the provider has deleted them.
        """
        keys = self._log.keys(batch)
        by_digits = {key[:KEY_DIGITS]: key for key in keys}
        failures: dict[str, Exception] = {
            keys[place]: RejectedRequestError(why) for place, why in state.refused.items()
        }
        chunk: list[tuple[str, Any]] = []
        answered = 0
        async for name, reply in self._read(state):
            answered += not isinstance(reply, Exception)
            owner, _, digits = name.partition("-")
            key = by_digits.get(digits) if owner == batch.name else None
            if key is None:  # stored before a kill
                continue
            if isinstance(reply, Exception):
                failures[key] = reply
                continue
            chunk.append((key, reply))
            if len(chunk) == CHUNK:
                failures |= await self._store(batch, chunk, deliver)
                chunk = []
        failures |= await self._store(batch, chunk, deliver)
        if answered < state.answered:  # what is missing is paid, and must not be asked again
            raise RetryableError(
                f"the results are cut short: {answered} of {state.answered} answers"
            )
        return failures

    async def _read(self, state: BatchState) -> AsyncIterator[tuple[str, Any]]:
        for path in state.results:
            async with contextlib.aclosing(self._connection.lines(path)) as lines:
                async for line in lines:
                    yield self._protocol.read(line)

    async def _store(
        self, batch: Batch, replies: list[tuple[str, Any]], deliver: Deliver
    ) -> dict[str, Exception]:
        results, failures = [], {}
        for key, reply in replies:
            try:
                sent = json.loads(self._log.request(key))
                answer = protocols.read_reply(self._provider, sent, reply)
            except RetryableError as error:
                failures[key] = error
                continue
            charge = prices.charge(key, batch.model, batch.price, answer)
            results.append((charge, answer))
        new = await self._log.settle(batch, results)
        for charge, answer in results:
            if charge.key in new:
                new.remove(charge.key)
                deliver(charge, answer)
        return failures
