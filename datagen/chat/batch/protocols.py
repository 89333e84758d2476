"""The two batch APIs: how a batch is submitted, found again, polled and read.

OpenAI: a file with one request per line is uploaded, a batch is created from it, answers and errors
arrive as two files. Anthropic: the requests are sent in one body, results arrive as one stream.
Both return results in any order, so each request carries a `custom_id`: the name of our batch and
the start of the request's key.
"""

import abc
import contextlib
import datetime
import io
import json
from collections.abc import AsyncGenerator, Iterable, Mapping
from typing import Any

from datagen.chat.batch.log import Batch, BatchState
from datagen.chat.connection import Connection
from datagen.chat.errors import (
    FatalProviderError,
    NotSubmittedError,
    RetryableError,
    SubmissionUnknownError,
    short_text,
    status_error,
)

METADATA_KEY = "alpacare_jax_batch"
"""Key of the batch's name in OpenAI's `metadata`."""

CLOCK_SKEW = 3600.0
"""Seconds that this machine's clock may be ahead of the provider's."""

CANCELLED = "the batch was cancelled at the provider; rerun to send its remaining requests again"

ANTHROPIC_STATUSES = {
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
"""HTTP statuses of Anthropic's error types (docs: Errors); all others are 500 and retryable."""


class BatchProtocol(abc.ABC):
    """One provider's batch API."""

    max_requests: int  # the provider's limit per batch
    max_bytes: int  # the provider's limit per submission
    line_bytes: int  # upper bound on what a submission adds to each request

    def __init__(self, connection: Connection):
        self._connection = connection

    @abc.abstractmethod
    async def submit(self, batch: Batch, requests: Iterable[tuple[str, str]]) -> str:
        """Creates the batch from (key, JSON) pairs and returns the provider's id of it.

        Raises:
          NotSubmittedError: it was certainly not created.
          RetryableError: it may have been created.
          RejectedRequestError, FatalProviderError: it was not created and will never be.
        """

    @abc.abstractmethod
    async def find(self, batch: Batch, known: set[str]) -> str | None:
        """The provider's id of a batch whose submission got no reply; None: not found.

        Args:
          known: ids of our other batches.

        Raises:
          SubmissionUnknownError: it may be one of some batches that have not ended.
        """

    @abc.abstractmethod
    async def state(self, batch: Batch) -> BatchState:
        """The current status of a batch with an id."""

    def read(self, line: Mapping[str, Any]) -> tuple[str, Any]:
        """(custom_id, JSON of the reply or the exception that it stands for) of a result line."""
        try:
            return line["custom_id"], self._reply(line)
        except (KeyError, TypeError, AttributeError):
            return "", RetryableError("malformed result line")

    @abc.abstractmethod
    def _reply(self, line: Mapping[str, Any]) -> Any: ...

    async def results(self, state: BatchState) -> AsyncGenerator[tuple[str, Any], None]:
        """The results of an ended batch, each as from `read`."""
        for path in state.results:
            async with contextlib.aclosing(self._connection.lines(path)) as lines:
                async for line in lines:
                    yield self.read(line)

    async def _create(self, path: str, **content: Any) -> str:
        try:
            return _id(await self._connection.post(path, **content))
        except RetryableError as error:
            if error.status != 429:
                raise  # it may have been created
            reason, seconds = str(error), error.retry_after
            raise NotSubmittedError(reason, queue_full=True, retry_after=seconds) from None

    async def _listed(
        self, path: str, cursor: str, limit: int
    ) -> AsyncGenerator[Mapping[str, Any], None]:
        """All batches listed at a path; `cursor` names the parameter that continues a list."""
        after: dict[str, str] = {}
        while True:
            page = await self._connection.get(path, limit=limit, **after)
            if not isinstance(page, dict) or not isinstance(page.get("data"), list):
                raise _malformed(page)
            for listed in page["data"]:
                yield listed
            if not page.get("has_more") or not page["data"]:
                return
            after = {cursor: _id(page["data"][-1])}


class OpenAIBatches(BatchProtocol):
    """Through `files` and `batches`."""

    max_requests, max_bytes, line_bytes = 50_000, 200_000_000, 160

    async def submit(self, batch: Batch, requests: Iterable[tuple[str, str]]) -> str:
        """See BatchProtocol."""
        lines = bytearray()  # up to 200 MB: no second copy
        for key, body in requests:
            head = f'{{"custom_id": "{batch.custom_id(key)}", "method": "POST", '
            head += '"url": "/v1/chat/completions", "body": '
            lines += f"{head}{body}}}\n".encode()
        try:
            reply = await self._connection.post(
                "/files",
                body={"purpose": "batch"},
                files={"file": (f"{batch.name}.jsonl", io.BytesIO(lines), "application/jsonl")},
                options={"headers": {"Content-Type": "multipart/form-data"}},
            )
            file = _id(reply)
        except RetryableError as error:
            raise NotSubmittedError(str(error), retry_after=error.retry_after) from None
        content = {
            "input_file_id": file,
            "endpoint": "/v1/chat/completions",
            "completion_window": "24h",
            "metadata": {METADATA_KEY: batch.name},
        }
        return await self._create("/batches", body=content)

    async def find(self, batch: Batch, known: set[str]) -> str | None:
        """Finds a batch by its name in the metadata.

        The order of the list is undocumented, so it is read to the end. Guarantee: a batch that the
        provider lists is found. A list that lags behind would hide it, so the caller searches again
        until long after the submission.
        """
        async with contextlib.aclosing(self._listed("/batches", "after", 100)) as batches:
            async for listed in batches:
                if (listed.get("metadata") or {}).get(METADATA_KEY) == batch.name:
                    return _id(listed)
        return None

    async def state(self, batch: Batch) -> BatchState:
        """See BatchProtocol."""
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
        """The state of a batch whose input was rejected: no request of it was processed."""
        lines = [e for e in errors if e.get("line")]
        rejected = {e["line"] - 1: short_text(str(e.get("message"))) for e in lines}
        reason = "; ".join(str(e.get("message") or e.get("code")) for e in errors[:3])
        failure = None
        if any(e.get("code") == "token_limit_exceeded" for e in errors):
            failure = NotSubmittedError(short_text(reason), queue_full=True)
        elif not rejected:
            reason = short_text(reason or "no reason given")
            failure = FatalProviderError(f"openai rejected the batch: {reason}")
        return BatchState(ended=True, failure=failure, rejected=rejected)

    def _reply(self, line: Mapping[str, Any]) -> Any:
        if response := line.get("response"):
            status, content = response["status_code"], response.get("body")
            if status == 200:
                return response["body"]
            message = json.dumps(content, ensure_ascii=False)
            return status_error(self._connection.config, status, message)
        error = line["error"]
        if error["code"] == "batch_cancelled":
            return FatalProviderError(CANCELLED)
        return RetryableError(short_text(f"{error['code']}: {error.get('message')}"))


class AnthropicBatches(BatchProtocol):
    """Through `messages/batches`."""

    max_requests, max_bytes, line_bytes = 100_000, 256_000_000, 110

    def __init__(self, connection: Connection):
        super().__init__(connection)
        self._foreign: set[str] = set()  # batches whose results are not ours

    async def submit(self, batch: Batch, requests: Iterable[tuple[str, str]]) -> str:
        """See BatchProtocol."""
        content = bytearray(b'{"requests": [')
        for key, body in requests:
            comma = ", " if content.endswith(b"}") else ""
            item = f'{{"custom_id": "{batch.custom_id(key)}", "params": {body}}}'
            content += f"{comma}{item}".encode()
        content += b"]}"
        return await self._create("/v1/messages/batches", content=bytes(content))

    async def find(self, batch: Batch, known: set[str]) -> str | None:
        """Finds a batch by the first custom_id of its results.

        A Message Batch has no metadata, and its custom_ids are returned with its results only. So
        every batch of the workspace that could be this one (created after the submission, by a
        clock up to CLOCK_SKEW ahead; the same number of requests; not in `known`) is waited for
        until it ends. Guarantee: as long as the list is complete and the clock no further off, None
        means that the batch was not created. Cost: a batch of the same size, created by another
        program in the same workspace, delays the answer until it ends, at most 24 hours.
        """
        undecided = []
        listed = self._listed("/v1/messages/batches", "after_id", 1000)
        async with contextlib.aclosing(listed) as batches:
            async for found in batches:  # newest first, as documented
                created = datetime.datetime.fromisoformat(found["created_at"]).timestamp()
                if created < batch.sent - CLOCK_SKEW:
                    break
                if found["id"] in known | self._foreign or found.get("archived_at"):
                    continue
                if sum(found["request_counts"].values()) != batch.requests:
                    continue
                if found["processing_status"] != "ended":
                    undecided.append(found["id"])
                elif await self._has_results_of(batch, found["id"]):
                    return found["id"]
        if undecided:
            raise SubmissionUnknownError(
                f"it may be {' or '.join(undecided)}, which can be checked once ended"
            )
        return None

    async def _has_results_of(self, batch: Batch, id: str) -> bool:
        async with contextlib.aclosing(self._connection.lines(_results_path(id))) as lines:
            async for line in lines:
                if self.read(line)[0].startswith(f"{batch.name}-"):
                    return True
                break
        self._foreign.add(id)
        return False

    async def state(self, batch: Batch) -> BatchState:
        """See BatchProtocol."""
        found = await self._connection.get(f"/v1/messages/batches/{batch.id}")
        return BatchState(
            ended=found.get("processing_status") == "ended",
            answered=(found.get("request_counts") or {}).get("succeeded") or 0,
            results=(_results_path(batch.id),),
            results_deleted=bool(found.get("archived_at")),
        )

    def _reply(self, line: Mapping[str, Any]) -> Any:
        result = line["result"]
        if result["type"] == "succeeded":
            return result["message"]
        if result["type"] == "errored":
            # As documented, and as shown in the guide.
            error = result["error"].get("error") or result["error"]
            status = ANTHROPIC_STATUSES.get(error["type"], 500)
            message = f"{error['type']}: {error.get('message')}"
            return status_error(self._connection.config, status, message)
        if result["type"] == "canceled":
            return FatalProviderError(CANCELLED)
        return RetryableError(f"{result['type']} in the batch")


BATCH_PROTOCOLS: dict[str, type[BatchProtocol]] = {
    "openai": OpenAIBatches,
    "anthropic": AnthropicBatches,
}


def _results_path(id: str | None) -> str:
    return f"/v1/messages/batches/{id}/results"


def _id(reply: Any) -> str:
    if not isinstance(reply, dict) or not isinstance(reply.get("id"), str):
        raise _malformed(reply)
    return reply["id"]


def _malformed(reply: Any) -> RetryableError:
    return RetryableError(f"malformed reply: {json.dumps(reply)[:100]}")
