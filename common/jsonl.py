"""JSON lines in UTF-8: the texts of a record, writing, and files that grow line by line."""

import hashlib
import json
import math
import time
from collections.abc import Iterable
from pathlib import Path, PurePath
from typing import Any

from etils import epath

from common import paths, provenance

Record = dict[str, Any]

NO_INPUT = frozenset({"<noinput>", "na", "n/a", "none"})
"""Whole inputs, stripped and lower-cased, that mean "no input". "DNA repair" is an input."""

UPLOAD_INTERVAL = 60
"""Seconds between uploads of a growing file; each costs a round trip and the whole file."""


def text(location: str, record: Record, field: str) -> str:
    """A text field; "" if it is missing or null, and for an `input` that only says "no input".

    Raises:
      ValueError: it is not a string, or contains half a surrogate pair.
    """
    value = record.get(field)
    if value is None:
        return ""
    if not isinstance(value, str):
        raise ValueError(f"{location}: field {field!r} must be a string, not {value!r:.40}")
    if not value.isprintable() and any("\ud800" <= c <= "\udfff" for c in value):
        raise ValueError(f"{location}: field {field!r} is not valid Unicode: half a surrogate")
    if field == "input" and value.strip().lower() in NO_INPUT:
        return ""
    return value


def identity(location: str, record: Record) -> str:
    """The field `id` as text; "" if it is missing or null.

    >>> identity("f", {"id": 7}), identity("f", {"id": "a7"}), identity("f", {"id": None})
    ('7', 'a7', '')

    Raises:
      ValueError: as `text`.
    """
    value = record.get("id")
    return text(location, {"id": None if value is None else str(value)}, "id")


def number(value: object) -> float | None:
    """A finite number, also one that is a text, as all cells of a CSV file; None for another value.

    >>> number(2), number(" 1.5 "), number(True), number("two"), number("nan")
    (2.0, 1.5, None, None, None)
    """
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        found = float(value)
    except (ValueError, OverflowError):
        return None
    return found if math.isfinite(found) else None


def line(record: Record) -> str:
    """One record as a line of a JSONL file."""
    return json.dumps(record, ensure_ascii=False) + "\n"


def write(path: str | PurePath, records: Iterable[Record]) -> None:
    """Writes a .jsonl file atomically: readers see the old file or the new one, never a part."""
    provenance.write_text(path, "".join(map(line, records)))


def write_output(
    path: Path, records: Iterable[Record], run: Record, run_json: Path | None = None
) -> None:
    """Writes the `run.json` of a .jsonl file, with its digest and the time, then the file itself.

    So a record without its file, or with another one, is that of a run that did not finish.

    Args:
      run: the rest of the record.
      run_json: where it is written; None: beside the file, see `provenance.run_json`.
    """
    text = "".join(map(line, records))
    ended = {"sha256": hashlib.sha256(text.encode()).hexdigest(), "end": provenance.now()}
    provenance.write_json(run_json or provenance.run_json(path), run | ended)
    provenance.write_text(path, text)


class LineFile:
    """A text file that grows line by line.

    In a folder each line reaches the file at once. In a bucket the whole file is uploaded again at
    the first line after `UPLOAD_INTERVAL` seconds, at `sync` and at `close`: a kill loses the lines
    since the last upload, never earlier ones.
    """

    def __init__(self, path: epath.Path, lines: Iterable[str]):
        """Starts a new file with `lines`, replacing an old one."""
        self._path = path
        self._text = "".join(line + "\n" for line in lines)
        provenance.write_text(path, self._text)
        self._uploaded = time.monotonic()
        self._file = None if paths.in_bucket(path) else open(path, "a", encoding="utf-8")  # noqa: SIM115

    def add(self, line: str) -> None:
        """Appends one line, given without its newline."""
        if self._file:
            self._file.write(line + "\n")
            self._file.flush()
            return
        self._text += line + "\n"
        if time.monotonic() - self._uploaded > UPLOAD_INTERVAL:
            self.sync()

    def sync(self) -> None:
        """Makes every line added so far survive a kill of this process."""
        if not self._file:
            provenance.write_text(self._path, self._text)
            self._uploaded = time.monotonic()

    def close(self) -> None:
        """Uploads what is pending and closes the file."""
        self.sync()
        if self._file:
            self._file.close()
