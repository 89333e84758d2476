"""JSONL: UTF-8, one record a line; a JSON array of the same records is read too, either gzipped."""

import gzip
import io
import json
import time
import zlib
from collections.abc import Iterable, Iterator
from pathlib import PurePath
from typing import Any

from etils.epath import Path

from common import paths, provenance

Record = dict[str, Any]

NO_INPUT = frozenset({"<noinput>", "na", "n/a", "none"})
"""Whole inputs, stripped and lower-cased, that mean "no input". "DNA repair" is an input."""

PUT_SECONDS = 60
"""How old a growing file in a bucket may be; each put costs a round trip and the whole file."""


def read(path: str | PurePath) -> Iterator[tuple[str, Record]]:
    """(where, record) of each record of a .jsonl or .json file, gzipped or not.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: something in it is no JSON object in UTF-8; file and line are named.
    """
    for where, record in _parsed(Path(path)):
        if not isinstance(record, dict):
            raise ValueError(f"{where}: a record must be a JSON object")
        yield where, record


def _parsed(path: Path) -> Iterator[tuple[str, Any]]:
    try:
        with path.open("rb") as raw:
            plain = gzip.GzipFile(fileobj=raw) if path.suffix == ".gz" else raw
            file = io.TextIOWrapper(plain, encoding="utf-8")
            if path.name.removesuffix(".gz").endswith(".json"):
                try:
                    records = json.load(file)
                except json.JSONDecodeError as error:
                    raise ValueError(f"{path}:{error.lineno}: not JSON: {error.msg}") from None
                if not isinstance(records, list):
                    raise ValueError(f"{path}: a .json file must hold one array of records")
                yield from ((f"{path}, record {i}", record) for i, record in enumerate(records))
                return
            for number, line in enumerate(file, start=1):
                if not line.strip():
                    continue
                try:
                    yield f"{path}:{number}", json.loads(line)
                except json.JSONDecodeError as error:
                    raise ValueError(f"{path}:{number}: not JSON: {error.msg}") from None
    except FileNotFoundError:
        raise FileNotFoundError(f"no such file: {path}") from None
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not UTF-8 ({error.reason} at byte {error.start})") from None
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise ValueError(f"{path}: not a whole gzip file ({error})") from None


def text(where: str, record: Record, field: str) -> str:
    """A text field; missing and null are "". `input` is "" too where it only says "no input".

    Raises:
      ValueError: it is no string, or holds half a surrogate pair.
    """
    value = record.get(field)
    if value is None:
        return ""
    if not isinstance(value, str):
        raise ValueError(f"{where}: field {field!r} must be a string, not {value!r:.40}")
    if not value.isprintable() and any("\ud800" <= c <= "\udfff" for c in value):
        raise ValueError(f"{where}: field {field!r} is not valid Unicode: half a surrogate")
    if field == "input" and value.strip().lower() in NO_INPUT:
        return ""
    return value


def identity(where: str, record: Record) -> str:
    """The field `id`, a number as its digits; "" where there is none.

    >>> identity("f", {"id": 7}), identity("f", {"id": "a7"}), identity("f", {"id": None})
    ('7', 'a7', '')

    Raises:
      ValueError: as `text`.
    """
    value = record.get("id")
    return text(where, {"id": None if value is None else str(value)}, "id")


def line(record: Record) -> str:
    return json.dumps(record, ensure_ascii=False) + "\n"


def write(path: str | PurePath, records: Iterable[Record]) -> None:
    """Writes a whole .jsonl file: a reader sees the old one or the new one, never half of it."""
    provenance.write_text(path, "".join(map(line, records)))


class LineFile:
    """A text file that grows line by line.

    In a folder each line is in the file at once. In a bucket the whole is put again at the first
    line after `PUT_SECONDS`, at `sync` and at `close`: a kill loses the lines since then, never
    earlier ones.
    """

    def __init__(self, path: Path, lines: Iterable[str]):
        """Starts a new file, of `lines`, in the place of an old one."""
        self._path = path
        self._text = "".join(line + "\n" for line in lines)
        provenance.write_text(path, self._text)
        self._put = time.monotonic()
        self._file = None if paths.in_bucket(path) else open(path, "a", encoding="utf-8")  # noqa: SIM115

    def add(self, line: str) -> None:
        if self._file:
            self._file.write(line + "\n")
            self._file.flush()
            return
        self._text += line + "\n"
        if time.monotonic() - self._put > PUT_SECONDS:
            self.sync()

    def sync(self) -> None:
        """Every line added so far survives a kill of this process."""
        if not self._file:
            provenance.write_text(self._path, self._text)
            self._put = time.monotonic()

    def close(self) -> None:
        self.sync()
        if self._file:
            self._file.close()
