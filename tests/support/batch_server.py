"""A server that speaks both batch protocols over real HTTP, and fails the way they do."""

import datetime
import json
import random
import re
import threading
import time
from collections import Counter
from http.server import BaseHTTPRequestHandler
from typing import Any
from urllib.parse import parse_qs, urlparse

from tests.support.chat_server import ChatServer, anthropic_reply, openai_reply, question

Lines = list[dict[str, Any]]


class BatchServer(ChatServer):
    """Each batch ends with its second look, unless `held`.

    `outcome(question)` says what becomes of a request: ok, blocked (by the content filter), a
    status of HTTP, expired, cancelled or missing. `submissions` holds what happens to the next
    ones: "500" and "429" make nothing, "500 made" and "silent" make the batch all the same, the
    latter without any reply.
    """

    def __init__(self, seed: int = 0):
        super().__init__(seed=seed)
        self.held = False
        self.outcome = lambda question: "ok"
        self.submissions: list[str] = []
        # As `submissions`: "500", or of downloads: "cut" in a line, "short" after one.
        self.polls: list[str] = []
        self.fail: list[list[dict[str, Any]]] = []  # OpenAI: errors of the next batches
        self.submitted: Counter[str] = Counter()  # questions in batches that were made
        self.batches: dict[str, dict[str, Any]] = {}
        self.files: dict[str, bytes] = {}
        self.sizes: list[int] = []  # bytes of all requests of each batch, as they were sent
        self.made = threading.Event()
        self.moment = lambda event: None  # called at "submission", "look" and "download"
        self.hidden = 0.0  # seconds that a new batch is on no list
        self.page = 2  # batches in one page of a list
        self._shuffle = random.Random(seed)

    def release(self) -> None:
        """All batches end now."""
        self.held = False
        for batch in self.batches.values():
            batch["looks"] = 9

    def _serve(self, handler: BaseHTTPRequestHandler) -> None:
        url = urlparse(handler.path)
        if "batches" not in url.path and "/files" not in url.path:
            return super()._serve(handler)
        content = handler.rfile.read(int(handler.headers.get("Content-Length") or 0))
        with self._lock:
            handle = self._openai if url.path.startswith(("/v1/files", "/v1/ba")) else self._other
            status, reply = handle(handler, url.path, parse_qs(url.query), content)
        if status == 0:
            time.sleep(self.stall)
            handler.close_connection = True
            return None
        data = reply if isinstance(reply, bytes) else json.dumps(reply).encode()
        handler.send_response(status)
        handler.send_header("Content-Length", str(len(data)))
        handler.end_headers()
        handler.wfile.write(data)
        return None

    # Both.

    def _make(self, lines: Lines, body: str, **more: Any) -> tuple[int, Any]:
        """(status, batch) of a submission; `body` names the request in a line."""
        self.moment("submission")
        happens = self.submissions.pop(0) if self.submissions else ""
        refused = {"error": {"type": "error", "message": happens}}
        if happens.isdigit():
            return int(happens), refused
        ids = [line["custom_id"] for line in lines]
        assert len(set(ids)) == len(ids) and all(re.fullmatch(r"[\w-]{1,64}", i) for i in ids)
        id = f"batch-{len(self.batches) + 1}"
        self.batches[id] = more | {"id": id, "lines": lines, "body": body, "looks": 0}
        self.batches[id] |= {"time": time.time(), "failed": self.fail.pop(0) if self.fail else None}
        if not self.batches[id]["failed"]:
            self.submitted.update(question(line[body]) for line in lines)
        self.made.set()
        if happens == "silent":
            return 0, None
        return (500, refused) if happens else (200, self.batches[id])

    def _look(self, batch: dict[str, Any]) -> bool:
        """Whether it has ended."""
        self.moment("look")
        batch["looks"] += not self.held
        return batch["looks"] >= 2

    def _outcomes(self, batch: dict[str, Any]) -> list[tuple[dict[str, Any], str]]:
        pairs = [(line, self.outcome(question(line[batch["body"]]))) for line in batch["lines"]]
        self._shuffle.shuffle(pairs)
        self.charged += sum(outcome in ("ok", "blocked") for _, outcome in pairs)
        return [(line, outcome) for line, outcome in pairs if outcome != "missing"]

    def _jsonl(self, lines: Lines) -> bytes:
        # Not escaped: a line separator inside an answer stays one.
        return "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines).encode()

    def _download(self, data: bytes) -> bytes:
        self.moment("download")
        fault, half = self._fault(), len(data) // 2
        if fault == "short":
            half = data.rfind(b"\n", 0, half) + 1
        return data[:half] if fault else data

    def _fault(self) -> str:
        return self.polls.pop(0) if self.polls else ""

    def _listed(self, after: str | None) -> tuple[list[dict[str, Any]], bool]:
        ids = [id for id, b in self.batches.items() if time.time() - b["time"] >= self.hidden]
        ids.reverse()
        rest = ids[ids.index(after) + 1 :] if after else ids
        return [self.batches[id] for id in rest[: self.page]], len(rest) > self.page

    # OpenAI.

    def _openai(self, handler: Any, path: str, query: dict, content: bytes) -> tuple[int, Any]:
        if handler.command == "POST" and path == "/v1/files":
            boundary = handler.headers["Content-Type"].split("boundary=")[1].encode()
            parts = [part.partition(b"\r\n\r\n")[::2] for part in content.split(b"--" + boundary)]
            named = {re.search(rb'name="(\w+)"', h)[1]: v[:-2] for h, v in parts if b"name=" in h}
            assert named[b"purpose"] == b"batch"
            id = f"file-{len(self.files) + 1}"
            self.files[id] = named[b"file"]
            self.sizes.append(len(named[b"file"]))
            return 200, {"id": id, "object": "file"}
        if handler.command == "POST":
            asked = json.loads(content)
            assert (
                asked["endpoint"] == "/v1/chat/completions" and asked["completion_window"] == "24h"
            )
            lines = [json.loads(line) for line in self.files[asked["input_file_id"]].splitlines()]
            status, batch = self._make(lines, "body", metadata=asked["metadata"])
            return status, self._openai_batch(batch) if status == 200 else batch
        if path.startswith("/v1/files"):
            file = self.files.get(path.split("/")[3])
            if file is None:
                return 404, {"error": {"message": "no file"}}
            return 200, self._download(file)
        if path == "/v1/batches":
            batches, more = self._listed(query.get("after", [None])[0])
            return 200, {"data": [self._openai_batch(b) for b in batches], "has_more": more}
        batch = self.batches.get(path.split("/")[3])
        if batch is None or self.polls[:1] == ["500"]:
            self._fault()
            return (404 if batch is None else 500), {"error": {"message": "no batch"}}
        if self._look(batch) and "files" not in batch and not batch["failed"]:
            self._write_files(batch)
        return 200, self._openai_batch(batch)

    def _write_files(self, batch: dict[str, Any]) -> None:
        outputs, errors = [], []
        for line, outcome in self._outcomes(batch):
            reply, error = None, None
            if outcome in ("ok", "blocked"):
                finish = "content_filter" if outcome == "blocked" else "stop"
                text = "" if outcome == "blocked" else self.answer(line["body"])
                reply = {"status_code": 200, "body": openai_reply(text, finish)}
            elif outcome.isdigit():
                reply = {"status_code": int(outcome), "body": {"error": {"message": "not so"}}}
            else:
                error = {"code": f"batch_{outcome}", "message": "not in time"}
            result = {"custom_id": line["custom_id"], "response": reply, "error": error}
            (outputs if outcome in ("ok", "blocked") else errors).append(result)
        batch["completed"] = len(outputs)
        batch["files"] = {}
        for name, lines in (("output_file_id", outputs), ("error_file_id", errors)):
            if lines:
                batch["files"][name] = id = f"file-{len(self.files) + 1}"
                self.files[id] = self._jsonl(lines)
        batch["expired"] = any(r["error"] for r in errors)

    def _openai_batch(self, batch: dict[str, Any]) -> dict[str, Any]:
        status = "in_progress"
        if batch["failed"]:
            status = "failed"
        elif "files" in batch:
            status = "expired" if batch["expired"] else "completed"
        counts = {"completed": batch.get("completed", 0), "total": len(batch["lines"])}
        return batch.get("files", {}) | {
            "id": batch["id"],
            "status": status,
            "created_at": int(batch["time"]),
            "metadata": batch["metadata"],
            "request_counts": counts,
            "errors": {"data": batch["failed"]} if batch["failed"] else None,
        }

    # Anthropic.

    def _other(self, handler: Any, path: str, query: dict, content: bytes) -> tuple[int, Any]:
        if handler.command == "POST":
            self.sizes.append(len(content))
            status, batch = self._make(json.loads(content)["requests"], "params")
            return status, self._anthropic_batch(batch) if status == 200 else batch
        if path == "/v1/messages/batches":
            batches, more = self._listed(query.get("after_id", [None])[0])
            for batch in batches:
                self._look(batch)
            return 200, {"data": [self._anthropic_batch(b) for b in batches], "has_more": more}
        batch = self.batches.get(path.split("/")[4])
        if batch is None or self.polls[:1] == ["500"]:
            self._fault()
            return (404 if batch is None else 500), {"error": {"message": "no batch"}}
        if path.endswith("/results"):
            if "results" not in batch:
                batch["results"] = [self._anthropic_result(*pair) for pair in self._outcomes(batch)]
            return 200, self._download(self._jsonl(batch["results"]))
        self._look(batch)
        return 200, self._anthropic_batch(batch)

    def _anthropic_result(self, line: dict[str, Any], outcome: str) -> dict[str, Any]:
        if outcome in ("ok", "blocked"):
            finish = "content_filter" if outcome == "blocked" else "end_turn"
            text = "" if outcome == "blocked" else self.answer(line["params"])
            result = {"type": "succeeded", "message": anthropic_reply(text, finish)}
        elif outcome.isdigit():
            kind = {"400": "invalid_request_error"}.get(outcome, "api_error")
            error = {"type": "error", "error": {"type": kind, "message": "not so"}}
            result = {"type": "errored", "error": error}
        else:
            result = {"type": outcome.replace("cancelled", "canceled")}
        return {"custom_id": line["custom_id"], "result": result}

    def _anthropic_batch(self, batch: dict[str, Any]) -> dict[str, Any]:
        ended = batch["looks"] >= 2
        outcomes = [self.outcome(question(line["params"])) for line in batch["lines"]]
        succeeded = sum(o in ("ok", "blocked") for o in outcomes) if ended else 0
        rest = len(outcomes) - succeeded
        made = datetime.datetime.fromtimestamp(batch["time"], datetime.UTC)
        return {
            "id": batch["id"],
            "type": "message_batch",
            "processing_status": "ended" if ended else "in_progress",
            "created_at": made.isoformat().replace("+00:00", "Z"),
            "archived_at": batch.get("archived"),
            "request_counts": {"succeeded": succeeded, "processing": 0 if ended else rest}
            | {"errored": rest if ended else 0, "canceled": 0, "expired": 0},
        }


def others_batch(size: int) -> dict[str, Any]:
    """A batch of another program in the same workspace."""
    lines = [
        {"custom_id": f"x-{i}", "params": {"messages": [{"content": "x"}]}} for i in range(size)
    ]
    batch = {"id": f"batch-{size - 2}", "lines": lines, "body": "params", "looks": 0}
    return batch | {"time": time.time(), "failed": None, "metadata": None}
