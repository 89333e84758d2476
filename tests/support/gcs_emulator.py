"""Google Cloud Storage in a thread: what gcsfs, google-cloud-storage and tensorstore ask of it.

Objects live in memory, with generations and their preconditions as in the JSON API, so that of two
writers only one wins; an object appears whole, when its upload has ended. The journal holds every
change in order: a prefix of it is what a client leaves that is killed there. `outage` is the
status of every answer once there are so many changes, such as (503, 20).
https://cloud.google.com/storage/docs/json_api/v1/objects
"""

import base64
import contextlib
import datetime
import email
import email.policy
import itertools
import json
import re
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qsl, unquote, urlsplit

import google_crc32c

OBJECT = re.compile(r"(?:/download)?/storage/v1/b/([^/]+)/o/([^/]+)")
LIST = re.compile(r"/storage/v1/b/([^/]+)/o")
BUCKET = re.compile(r"/storage/v1/b/([^/]+)")
UPLOAD = re.compile(r"/upload/storage/v1/b/([^/]+)/o")
Key = tuple[str, str]  # bucket, name
Answer = tuple[int, bytes | dict, dict]  # status, body, headers


class Emulator(ThreadingHTTPServer):
    """The buckets `bucket` and `private`, which nobody may read."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.objects: dict[Key, tuple[bytes, int]] = {}  # content, generation
        self.updated: dict[Key, float] = {}  # Unix time of the last change, metadata included
        self.journal: list[tuple[Key, bytes | None]] = []  # None: deleted
        self.uploads: dict[str, tuple[str, bytes]] = {}  # unfinished: name, bytes so far
        self.outage: tuple[int, int] | None = None  # status, changes after which it begins
        self.lock = threading.RLock()
        self._generations = itertools.count(1)

    def handle_error(self, *_) -> None:
        """A client that was killed, or that read enough, hung up."""

    def change(self, key: Key, content: bytes | None) -> None:
        with self.lock:
            self.journal.append((key, content))
            if content is None:
                del self.objects[key]
            else:
                self.objects[key] = (content, next(self._generations))
                self.updated[key] = time.time()

    def names(self, prefix: str) -> list[str]:
        """Names that begin so, in the bucket named `bucket`, sorted."""
        with self.lock:
            return sorted(name for _, name in self.objects if name.startswith(prefix))


class Handler(BaseHTTPRequestHandler):
    server: Emulator
    protocol_version = "HTTP/1.1"
    wbufsize = 2**16  # head and body go together

    def log_message(self, *_) -> None:
        pass

    def handle_any(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        with self.server.lock:
            status, content, headers = self._answer(self.command, self.path, body)
        content = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in {"Content-Type": "application/json", **headers}.items():
            self.send_header(name, str(value))
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = handle_any

    def _answer(self, method: str, target: str, body: bytes) -> Answer:
        path, query = urlsplit(target).path, dict(parse_qsl(urlsplit(target).query))
        if self.server.outage and len(self.server.journal) >= self.server.outage[1]:
            return _error(self.server.outage[0])
        if path.startswith("/batch/"):
            return self._batch(body)
        if found := UPLOAD.fullmatch(path):
            return self._upload(found[1], query, body)
        if found := OBJECT.fullmatch(path):
            return self._object(method, (found[1], unquote(found[2])), query)
        bucket = (LIST.fullmatch(path) or BUCKET.fullmatch(path))[1]
        if bucket != "bucket":
            return _error(403 if bucket == "private" else 404)
        return self._list(bucket, query) if path.endswith("/o") else (200, {"name": bucket}, {})

    def _object(self, method: str, key: Key, query: dict[str, str]) -> Answer:
        content, generation = self.server.objects.get(key, (b"", 0))
        if refused := _refused(query, generation, method):
            return refused
        if not generation:
            return _error(404)
        if method == "DELETE":
            self.server.change(key, None)
            return 204, b"", {}
        if method == "PATCH":
            self.server.updated[key] = time.time()
        if query.get("alt") != "media":
            return 200, self._resource(key), {}
        headers = {"x-goog-generation": generation, "x-goog-stored-content-length": len(content)}
        if not (span := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))):
            return 200, content, headers
        start, end = int(span[1]), min(int(span[2] or len(content)) + 1, len(content))
        if start >= len(content):
            return _error(416)
        headers["Content-Range"] = f"bytes {start}-{end - 1}/{len(content)}"
        return 206, content[start:end], headers

    def _list(self, bucket: str, query: dict[str, str]) -> Answer:
        prefix, delimiter = query.get("prefix", ""), query.get("delimiter")
        items, prefixes = [], set()
        for owner, name in sorted(self.server.objects):
            if owner != bucket or not name.startswith(prefix):
                continue
            if not query.get("startOffset", "") <= name < query.get("endOffset", "\U0010ffff"):
                continue
            first, found, _ = name[len(prefix) :].partition(delimiter or "\0")
            if found:
                prefixes.add(prefix + first + found)
            else:
                items.append(self._resource((bucket, name)))
        return 200, {"items": items, "prefixes": sorted(prefixes)}, {}

    def _upload(self, bucket: str, query: dict[str, str], body: bytes) -> Answer:
        if upload := query.get("upload_id"):  # resumable: told of first, the bytes come in pieces
            name, before = self.server.uploads[upload]
            self.server.uploads[upload] = name, body = name, before + body
            if self.headers["Content-Range"].endswith("/*"):
                return 308, b"", {"Range": f"bytes=0-{len(body) - 1}"}
        elif query["uploadType"] == "resumable":
            upload = str(len(self.server.uploads))
            self.server.uploads[upload] = (query.get("name") or json.loads(body)["name"], b"")
            where = f"{self.server.url}/upload/storage/v1/b/{bucket}/o?upload_id={upload}"
            return 200, {}, {"Location": where}
        elif query["uploadType"] == "media":
            name = query["name"]
        else:
            described, body = _parts(self.headers["Content-Type"], body)
            name = json.loads(described)["name"]
        key = (bucket, name)
        if refused := _refused(query, self.server.objects.get(key, (b"", 0))[1], "POST"):
            return refused
        self.server.change(key, body)
        return 200, self._resource(key), {}

    def _batch(self, body: bytes) -> Answer:
        answers = []
        for part in _parts(self.headers["Content-Type"], body):
            method, target, _ = part.decode().splitlines()[0].split(" ")
            status, _, _ = self._answer(method, target, b"")
            answers.append(
                b"--batch\r\nContent-Type: application/http\r\n\r\nHTTP/1.1 %d X\r\n\r\n\r\n"
                % status
            )
        body = b"".join([*answers, b"--batch--\r\n"])
        return 200, body, {"Content-Type": "multipart/mixed; boundary=batch"}

    def _resource(self, key: Key) -> dict:
        content, generation = self.server.objects[key]
        changed = datetime.datetime.fromtimestamp(self.server.updated[key], datetime.UTC)
        crc = google_crc32c.value(content).to_bytes(4, "big")
        return {
            "bucket": key[0],
            "name": key[1],
            "size": str(len(content)),
            "generation": str(generation),
            "crc32c": base64.b64encode(crc).decode(),
            "timeCreated": "2026-01-01T00:00:00.000Z",
            "updated": changed.isoformat().replace("+00:00", "Z"),
        }


def _error(status: int) -> Answer:
    return status, {"error": {"code": status, "message": f"status {status}"}}, {}


def _refused(query: dict[str, str], generation: int, method: str) -> Answer | None:
    if int(query.get("ifGenerationMatch", generation)) != generation:
        return _error(412)
    if int(query.get("ifGenerationNotMatch", -1)) == generation:
        return _error(304 if method == "GET" else 412)
    return None


def _parts(content_type: str, body: bytes) -> list[bytes]:
    head = b"Content-Type: " + content_type.encode() + b"\r\n\r\n"
    message = email.message_from_bytes(head + body, policy=email.policy.HTTP)
    return [part.get_payload(decode=True) for part in message.iter_parts()]


@contextlib.contextmanager
def running() -> Iterator[Emulator]:
    """An empty store, until the block ends."""
    with Emulator() as emulator:
        threading.Thread(target=emulator.serve_forever, daemon=True).start()
        yield emulator
        emulator.shutdown()
