"""JSONL: UTF-8, one record a line; a JSON array of the same records is read too, either gzipped."""

import gzip
import json
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from contract import provenance

Record = dict[str, Any]

NO_INPUT = frozenset({"<noinput>", "na", "n/a", "none"})
"""Whole inputs, stripped and lower-cased, that mean "no input". "DNA repair" is an input."""


def read(path: str | Path) -> Iterator[tuple[str, Record]]:
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
    opener = gzip.open if path.suffix == ".gz" else open
    try:
        with opener(path, "rt", encoding="utf-8") as file:
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


def line(record: Record) -> str:
    return json.dumps(record, ensure_ascii=False) + "\n"


def write(path: str | Path, records: Iterable[Record]) -> None:
    """Writes a whole .jsonl file: a reader sees the old one or the new one, never half of it."""
    provenance.write_text(path, "".join(map(line, records)))
