"""The JSONL contract between stages, as training and generation read it."""

import dataclasses
import gzip
import json
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

NO_INPUT = frozenset({"<noinput>", "na", "n/a", "none"})
"""Whole inputs, stripped and lower-cased, that mean "no input". "DNA repair" is an input."""


@dataclasses.dataclass(frozen=True)
class Example:
    """One instruction with its answer; `output` is "" where only a prompt is needed."""

    id: str
    instruction: str
    input: str
    output: str


def _objects(path: Path) -> Iterator[tuple[str, Any]]:
    """(where, object) of each record of a .jsonl or .json file, gzipped or not."""
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


def read_examples(path: str | Path, *, answered: bool = True) -> list[Example]:
    """Reads Examples, or with `answered=False` Tasks, from JSONL or a JSON array, maybe gzipped.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: a record is malformed (file, line and field are named) or there is none at all.
    """
    examples = []
    for where, record in _objects(Path(path)):
        if not isinstance(record, dict):
            raise ValueError(f"{where}: a record must be a JSON object")
        fields = ["instruction", "output"] if answered else ["instruction"]
        for field in fields:
            if field not in record:
                raise ValueError(f"{where}: field {field!r} is missing")
        texts = {k: record.get(k, "") for k in ("instruction", "input", "output")}
        texts = {k: "" if text is None else text for k, text in texts.items()}
        for field, text in texts.items():
            if not isinstance(text, str):
                raise ValueError(f"{where}: field {field!r} must be a string, not {text!r:.40}")
            if not text.isprintable() and any("\ud800" <= c <= "\udfff" for c in text):
                raise ValueError(f"{where}: field {field!r} is not valid Unicode: half a surrogate")
        if texts["input"].strip().lower() in NO_INPUT:
            texts["input"] = ""
        if not (texts["instruction"].strip() or texts["input"].strip()):
            raise ValueError(f"{where}: field 'instruction' is empty")
        given = record.get("id")
        name = str(len(examples) if given is None else given)
        examples.append(Example(id=name, **texts))
    if not examples:
        raise ValueError(f"{path}: holds no record")
    return examples
