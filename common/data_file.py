"""The records of a data file in any of its forms: JSON lines, one JSON array, CSV or Parquet.

A form is recognised by the content, because names are often wrong: only a table whose columns are
unknown needs the ending .csv or .tsv. Anything else is an error that says what the file is.
"""

import csv
import gzip
import io
import itertools
import json
import math
import zlib
from collections.abc import Iterable, Iterator
from os.path import isdir, isfile
from pathlib import PurePath
from typing import IO, Any

from etils import epath

from common import paths
from common.jsonl import Record

TABLE_ENDINGS = (".csv", ".tsv")
RECORD_FIELDS = frozenset({"instruction", "output", "chosen"})
"""An object with one of these is a record; a first line with one is the header of a table."""

DELIMITERS = ",\t;|"
MAX_CELL = 2**31 - 1  # characters; Python's default is 131,072

GZIP, PARQUET = b"\x1f\x8b", b"PAR1"

OTHER_FILES = {
    paths.GIT_LFS: "a git-lfs pointer, not the data; run: git lfs install && git lfs pull",
    b"PK\x03\x04": "a zip archive or an Excel workbook; unpack it, or save the sheet as CSV",
    b"BZh": "compressed with bzip2; unpack it: bunzip2 FILE",
    b"\xfd7zXZ\0": "compressed with xz; unpack it: unxz FILE",
    b"\x28\xb5\x2f\xfd": "compressed with zstd; unpack it: unzstd FILE",
    b"ARROW1": "an Arrow file; convert it: datasets.Dataset.from_file(FILE).to_json(NEW)",
    b"\xff\xff\xff\xff": "an Arrow file; convert it: datasets.Dataset.from_file(FILE).to_json(NEW)",
    b"SQLite format 3\0": "an SQLite database; export the table as CSV",
    b"%PDF-": "a PDF document",
}
"""The first bytes of files that hold no records -> what to say about them."""

TAR, TAR_OFFSET = b"ustar", 257


def read(path: str | PurePath) -> Iterator[tuple[str, Record]]:
    """(location, record) of each record of a file.

    One object around one list of objects, such as {"data": [...]}, stands for the list; what else
    it says (a version, a name) is skipped. All cells of a CSV file are texts.

    Raises:
      FileNotFoundError: the file does not exist.
      IsADirectoryError: it is a folder.
      ValueError: it is no file on a disk, has none of the forms, or a part of it is no record; file
        and line are named.
    """
    path = epath.Path(path)
    local = PurePath(path)  # etils takes a pipe for a file
    if path.exists() and not paths.in_bucket(path) and not (isfile(local) or isdir(local)):
        raise ValueError(f"{path} is a pipe or a device; write its content to a file first")
    try:
        with path.open("rb") as raw:
            file = gzip.GzipFile(fileobj=raw) if _head(raw).startswith(GZIP) else raw
            for location, record in _values(path, file):
                if not isinstance(record, dict):
                    raise ValueError(f"{location}: a record must be a JSON object")
                yield location, record
    except FileNotFoundError:
        raise FileNotFoundError(paths.absence(path, "file")) from None
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{path}: not UTF-8 ({error.reason}); if it comes from Excel or Windows, convert it: "
            "iconv -f WINDOWS-1252 -t UTF-8 FILE > NEW"
        ) from None
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise ValueError(f"{path}: not a whole gzip file ({error})") from None


Bytes = IO[bytes] | gzip.GzipFile


def _head(file: Bytes) -> bytes:
    head = file.read(512)
    file.seek(0)
    return head


def _values(path: epath.Path, file: Bytes) -> Iterator[tuple[str, Any]]:
    head = _head(file)
    for first_bytes, description in OTHER_FILES.items():
        if head.startswith(first_bytes):
            raise ValueError(f"{path} is {description}")
    if head[TAR_OFFSET:].startswith(TAR):
        raise ValueError(f"{path} is a tar archive; unpack it: tar -xf FILE")
    if head.startswith(PARQUET):
        return _parquet(path, file)
    # UTF-8, or UTF-16 or 32 by their byte order mark or zeros. Cells may contain line ends.
    encoding = json.detect_encoding(head)
    if encoding.startswith("utf-8") and b"\0" in head:
        raise ValueError(f"{path} holds no text; give JSON lines, JSON, CSV or Parquet")
    return _texts(path, io.TextIOWrapper(file, encoding=encoding, newline=""))


def _parquet(path: epath.Path, file: Bytes) -> Iterator[tuple[str, Any]]:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError:
        raise ValueError(f"{path} is a Parquet file; run: pip install '.[parquet]'") from None
    try:
        batches = parquet.ParquetFile(file).iter_batches()
        rows = itertools.chain.from_iterable(batch.to_pylist() for batch in batches)
        yield from ((f"{path}, record {number}", row) for number, row in enumerate(rows))
    except (pyarrow.ArrowException, OSError) as error:
        raise ValueError(f"{path}: not a whole Parquet file ({error})") from None


def _texts(path: epath.Path, file: io.TextIOWrapper) -> Iterator[tuple[str, Any]]:
    lines = ((number, line) for number, line in enumerate(file, start=1) if line.strip())
    start, first = next(lines, (0, ""))
    if not start:
        return
    first_character = first.lstrip("\ufeff \t")[:1]
    if first_character == "<":
        raise ValueError(f"{path} is a web page, perhaps of an error; download the file again")
    if first_character not in ("{", "["):
        yield from _table(path, start, first, file)
        return
    try:
        value = _parse(path, start, first.strip())
    except ValueError:  # it spans several lines, or the first line of several is damaged
        rest = file.read()
        if first_character == "{" and _is_json(rest.lstrip().partition("\n")[0]):
            raise
        value = _parse(path, start, first + rest)
    else:
        if second := next(lines, None):
            yield f"{path}:{start}", value
            for number, line in itertools.chain([second], lines):
                yield f"{path}:{number}", _parse(path, number, line.strip())
            return
    value = _unwrapped(value)
    if isinstance(value, list):
        yield from ((f"{path}, record {number}", item) for number, item in enumerate(value))
    else:
        yield f"{path}:{start}", value


def _unwrapped(value: Any) -> Any:
    """The list of objects in an object that has, besides it, at most single values."""
    if not isinstance(value, dict) or RECORD_FIELDS & value.keys():
        return value
    nested = [item for item in value.values() if isinstance(item, list | dict)]
    if len(nested) != 1 or not isinstance(nested[0], list) or is_conversation(nested[0]):
        return value
    if "question_id" in value:  # one answer of FastChat, in a list of choices
        return value
    return nested[0] if all(isinstance(item, dict) for item in nested[0]) else value


def is_conversation(value: object) -> bool:
    """Whether a field's value is a list of turns: ShareGPT's `from, value`, or `role, content`."""
    return (
        isinstance(value, list)
        and bool(value)
        and isinstance(value[0], dict)
        and any(value[0].keys() >= names for names in ({"from", "value"}, {"role", "content"}))
    )


def _table(
    path: epath.Path, start: int, header: str, file: Iterable[str]
) -> Iterator[tuple[str, Record]]:
    """The rows of a table whose header is line `start`."""
    delimiter = max(DELIMITERS, key=header.count)
    csv.field_size_limit(MAX_CELL)
    rows = csv.reader(itertools.chain([header], file), delimiter=delimiter, strict=True)
    try:
        names = [name.strip() for name in next(rows)]
        if not (RECORD_FIELDS & set(names) or _ending(path) in TABLE_ENDINGS):
            raise ValueError(f"{path}:{start}: not JSON; the line begins {header.strip()[:60]!r}")
        if len(set(names)) < len(names):
            raise ValueError(f"{path}:{start}: two columns have the same name: {', '.join(names)}")
        for row in rows:
            location = f"{path}:{start + rows.line_num - 1}"
            if row and len(row) != len(names):
                raise ValueError(f"{location}: {len(row)} cells under {len(names)} column names")
            if row:
                yield location, dict(zip(names, row, strict=True))
    except csv.Error as error:
        raise ValueError(f"{path}:{start + rows.line_num - 1}: not CSV: {error}") from None


def _ending(path: PurePath) -> str:
    """In lower case, that of the unpacked file."""
    return PurePath(path.name.lower().removesuffix(".gz")).suffix


def _object(pairs: list[tuple[str, Any]]) -> Record:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"key {twice!r} occurs twice; keep one of them")
    return found


def _integer(digits: str) -> int:
    try:
        return int(digits)
    except ValueError:  # Python stops at 4,300
        raise ValueError(f"a number of {len(digits):,} digits; write it as text") from None


def _float(digits: str) -> float:
    if math.isinf(value := float(digits)):
        raise ValueError(f"the number {digits:.20} is too large; write it as text")
    return value


def _constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON; write null (pandas writes it with DataFrame.to_json)")


DECODER = json.JSONDecoder(
    object_pairs_hook=_object,
    parse_int=_integer,
    parse_float=_float,
    parse_constant=_constant,
)


def _parse(path: epath.Path, start: int, text: str) -> Any:
    """The JSON value of a text that begins in line `start`."""
    location = str(path) if "\n" in text else f"{path}:{start}"
    try:
        return DECODER.decode(text.lstrip("\ufeff"))  # a file that was appended has its own mark
    except json.JSONDecodeError as error:
        reason = error.msg
        if reason == "Extra data":
            reason = "more than one value; write one record a line, without commas between lines"
        place = f"{path}:{start + error.lineno - 1}"
        raise ValueError(f"{place}: not JSON: {reason} (character {error.colno})") from None
    except RecursionError:
        raise ValueError(f"{location}: a value is nested too deeply") from None
    except ValueError as error:
        raise ValueError(f"{location}: {error}") from None


def _is_json(text: str) -> bool:
    try:
        return bool(json.loads(text))
    except (ValueError, RecursionError):
        return False
