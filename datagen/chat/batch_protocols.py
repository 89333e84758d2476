"""The two batch APIs: how a batch is sent, found again, watched and read.

OpenAI: a file of one request a line goes up, a batch is made of it, answers and errors come as two
files. Anthropic: the requests go in one body, results come as one stream. Both bring results in any
order, so each request carries a `custom_id`: our batch's name and the start of the request's key.
"""

import contextlib
import dataclasses
import datetime
import io
import json
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping
from typing import Any

from datagen.chat.batch_log import Batch
from datagen.chat.connection import Connection, meaning, reason
from datagen.chat.errors import (
    FatalProviderError,
    NotSubmittedError,
    RetryableError,
    SubmissionUnknownError,
)

LABEL = "alpacare_jax_batch"
"""Key of the batch's name in OpenAI's `metadata`."""

KEY_DIGITS = 31
"""Of a request's key in its custom_id: both providers take 64 characters, 33 are the batch's."""

CLOCK_SKEW = 3600.0
"""Seconds that this machine's clock may be ahead of the provider's."""


@dataclasses.dataclass(frozen=True)
class BatchState:
    """Where a batch is."""

    ended: bool
    answered: int = 0  # requests that the provider says it answered
    results: tuple[str, ...] = ()  # paths of result lines
    gone: bool = False  # the provider has deleted the results
    failed: Exception | None = None  # the batch as a whole
    refused: Mapping[int, str] = dataclasses.field(default_factory=dict)  # reason by place, from 0


def custom_id(batch: Batch, key: str) -> str:
    return f"{batch.name}-{key[:KEY_DIGITS]}"


class OpenAIBatches:
    """Through `files` and `batches`."""

    most_requests, most_bytes = 50_000, 200_000_000
    line_bytes = 160  # most that one line has around a request

    def __init__(self, connection: Connection):
        self._connection = connection

    async def send(self, batch: Batch, requests: Iterable[tuple[str, str]]) -> str:
        """The provider's id of the batch, made now.

        Raises:
          NotSubmittedError: it certainly was not made.
          RetryableError: it may have been made all the same.
          RejectedRequestError, FatalProviderError: it was not, and will not be.
        """
        lines = bytearray()  # up to 200 MB: no second copy
        for key, body in requests:
            head = f'{{"custom_id": "{custom_id(batch, key)}", "method": "POST", '
            head += '"url": "/v1/chat/completions", "body": '
            lines += f"{head}{body}}}\n".encode()
        try:
            file = await self._connection.post(
                "/files",
                body={"purpose": "batch"},
                files={"file": (f"{batch.name}.jsonl", io.BytesIO(lines), "application/jsonl")},
                options={"headers": {"Content-Type": "multipart/form-data"}},
            )
            file = _id(file)
        except RetryableError as error:
            raise NotSubmittedError(str(error), retry_after=error.retry_after) from None
        content = {
            "input_file_id": file,
            "endpoint": "/v1/chat/completions",
            "completion_window": "24h",
            "metadata": {LABEL: batch.name},
        }
        with _refused_is_unsent():
            return _id(await self._connection.post("/batches", body=content))

    async def find(self, batch: Batch, known: set[str]) -> str | None:
        """The provider's id of a batch that was sent, by its name in the metadata; None: not there.

        The order of the list is not documented, so it is read to its end. What is guaranteed: a
        batch that the provider lists is found. A list that lags behind would hide it; the caller
        looks again until long after the submission.
        """
        after = {}
        while True:
            page = await self._connection.get("/batches", limit=100, **after)
            for found in _data(page):
                if (found.get("metadata") or {}).get(LABEL) == batch.name:
                    return _id(found)
            if not page.get("has_more") or not page["data"]:
                return None
            after = {"after": _id(page["data"][-1])}

    async def state(self, batch: Batch) -> BatchState:
        found = await self._connection.get(f"/batches/{batch.id}")
        status = found.get("status")
        if status == "failed":
            return self._failed((found.get("errors") or {}).get("data") or [])
        files = [found.get(name) for name in ("output_file_id", "error_file_id")]
        return BatchState(
            ended=status in ("completed", "expired", "cancelled"),
            answered=(found.get("request_counts") or {}).get("completed") or 0,
            results=tuple(f"/files/{file}/content" for file in files if file),
        )

    def _failed(self, errors: list[Mapping[str, Any]]) -> BatchState:
        """What it means that the input was not taken. Nothing of it was done."""
        refused = {e["line"] - 1: reason(f"{e.get('message')}") for e in errors if e.get("line")}
        said = reason("; ".join(f"{e.get('message') or e.get('code')}" for e in errors[:3]))
        failed = None
        if any(e.get("code") == "token_limit_exceeded" for e in errors):
            failed = NotSubmittedError(said, queue_full=True)
        elif not refused:
            failed = FatalProviderError(f"openai takes no such batch: {said or 'no reason given'}")
        return BatchState(ended=True, failed=failed, refused=refused)

    def read(self, line: Mapping[str, Any]) -> tuple[str, Any]:
        """(custom_id, the reply's JSON or the exception that stands for it) of a result line."""
        try:
            name, response, error = line["custom_id"], line.get("response"), line.get("error")
            if response and response["status_code"] == 200:
                return name, response["body"]
            if response:
                said = json.dumps(response.get("body"), ensure_ascii=False)
                status = response["status_code"]
                return name, meaning(self._connection.config, status, f"{status} {said}")
            if error["code"] == "batch_cancelled":
                return name, FatalProviderError(CANCELLED)
            return name, RetryableError(reason(f"{error['code']}: {error.get('message')}"))
        except (KeyError, TypeError, AttributeError):
            return "", RetryableError("malformed result line")


class AnthropicBatches:
    """Through `messages/batches`."""

    most_requests, most_bytes = 100_000, 256_000_000
    line_bytes = 110

    def __init__(self, connection: Connection):
        self._connection = connection
        self._others: set[str] = set()  # batches whose results are not ours

    async def send(self, batch: Batch, requests: Iterable[tuple[str, str]]) -> str:
        """As OpenAIBatches.send."""
        content = bytearray(b'{"requests": [')
        for key, body in requests:
            comma = ", " if content.endswith(b"}") else ""
            one = f'{{"custom_id": "{custom_id(batch, key)}", "params": {body}}}'
            content += f"{comma}{one}".encode()
        content += b"]}"
        with _refused_is_unsent():
            return _id(await self._connection.post("/v1/messages/batches", content=bytes(content)))

    async def find(self, batch: Batch, known: set[str]) -> str | None:
        """The provider's id of a batch that was sent; None: not there.

        A Message Batch carries no metadata, and its custom_ids come back with its results only.
        So every batch of the workspace that could be this one (made since it was sent, by a clock
        up to CLOCK_SKEW ahead; of as many requests; not `known`) is waited for until it has ended,
        and the first custom_id of its results decides. What is guaranteed: as long as the list
        shows what was made, and the clock is no further off, None means that it was not made.
        What it costs: a batch of the same size that another program made in the same workspace
        delays the answer until that has ended, at most 24 hours.

        Raises:
          SubmissionUnknownError: batches that could be it have not ended.
        """
        undecided = []
        async with contextlib.aclosing(self._made_since(batch.sent - CLOCK_SKEW)) as made:
            async for found in made:
                if found["id"] in known | self._others or found.get("archived_at"):
                    continue
                if sum(found["request_counts"].values()) != batch.requests:
                    continue
                if found["processing_status"] != "ended":
                    undecided.append(found["id"])
                elif await self._is(batch, found["id"]):
                    return found["id"]
        if undecided:
            raise SubmissionUnknownError(
                f"it may be {' or '.join(undecided)}, which will tell when it ends"
            )
        return None

    async def _made_since(self, when: float) -> AsyncIterator[Mapping[str, Any]]:
        after = {}
        while True:
            page = await self._connection.get("/v1/messages/batches", limit=1000, **after)
            for found in _data(page):  # newest first, as documented
                if datetime.datetime.fromisoformat(found["created_at"]).timestamp() < when:
                    return
                yield found
            if not page.get("has_more") or not page["data"]:
                return
            after = {"after_id": _id(page["data"][-1])}

    async def _is(self, batch: Batch, id: str) -> bool:
        async with contextlib.aclosing(self._connection.lines(self._results(id))) as lines:
            async for line in lines:
                if self.read(line)[0].startswith(f"{batch.name}-"):
                    return True
                break
        self._others.add(id)
        return False

    def _results(self, id: str | None) -> str:
        return f"/v1/messages/batches/{id}/results"

    async def state(self, batch: Batch) -> BatchState:
        found = await self._connection.get(f"/v1/messages/batches/{batch.id}")
        return BatchState(
            ended=found.get("processing_status") == "ended",
            answered=(found.get("request_counts") or {}).get("succeeded") or 0,
            results=(self._results(batch.id),),
            gone=bool(found.get("archived_at")),
        )

    def read(self, line: Mapping[str, Any]) -> tuple[str, Any]:
        """As OpenAIBatches.read."""
        try:
            name, result = line["custom_id"], line["result"]
            if result["type"] == "succeeded":
                return name, result["message"]
            if result["type"] == "errored":
                # As documented, and as the guide shows it.
                error = result["error"].get("error") or result["error"]
                status = STATUS.get(error["type"], 500)
                said = f"{error['type']}: {error.get('message')}"
                return name, meaning(self._connection.config, status, said)
            if result["type"] == "canceled":
                return name, FatalProviderError(CANCELLED)
            return name, RetryableError(f"{result['type']} in the batch")
        except (KeyError, TypeError, AttributeError):
            return "", RetryableError("malformed result line")


CANCELLED = "the batch was cancelled at the provider; run again to ask what it left out"

STATUS = {
    "invalid_request_error": 400,
    "invalid_request": 400,
    "authentication_error": 401,
    "billing_error": 402,
    "permission_error": 403,
    "not_found_error": 404,
    "request_too_large": 413,
    "rate_limit_error": 429,
    "overloaded_error": 529,
}
"""HTTP statuses of Anthropic's kinds of errors (docs: Errors); the rest is 500 and may pass."""

BatchProtocol = OpenAIBatches | AnthropicBatches

BATCHES: dict[str, type[BatchProtocol]] = {"openai": OpenAIBatches, "anthropic": AnthropicBatches}


@contextlib.contextmanager
def _refused_is_unsent() -> Iterator[None]:
    """429 says that the queue is full, so nothing was made; any other failure leaves it open."""
    try:
        yield
    except RetryableError as error:
        if error.status == 429:
            raise NotSubmittedError(
                str(error), queue_full=True, retry_after=error.retry_after
            ) from None
        raise


def _id(reply: Any) -> str:
    if not isinstance(reply, dict) or not isinstance(reply.get("id"), str):
        raise RetryableError(f"malformed reply: {json.dumps(reply)[:100]}")
    return reply["id"]


def _data(page: Any) -> list[Any]:
    if not isinstance(page, dict) or not isinstance(page.get("data"), list):
        raise RetryableError(f"malformed reply: {json.dumps(page)[:100]}")
    return page["data"]
