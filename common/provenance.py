"""`run.json`, the record of what made an output, and files that are replaced whole."""

import contextlib
import datetime
import hashlib
import importlib.metadata
import json
import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePath
from typing import Any

from etils import epath

from common import paths, sections

PACKAGES = (
    "jax jaxlib flax optax orbax-checkpoint numpy tokenizers openai anthropic rapidfuzz matplotlib"
).split()
"""Packages whose versions a `run.json` records."""

DIGEST = re.compile(r"\b([0-9a-f]{12})[0-9a-f]{52}\b")
"""A SHA-256 in hexadecimal; its first 12 digits are enough to recognise it in a message."""


def write_text(path: str | PurePath, text: str) -> None:
    """Writes a file atomically: readers see the old file or the new one, never a part."""
    if paths.in_bucket(path):
        epath.Path(path).write_text(text)
        return
    with replacing(Path(path)) as partial:
        partial.write_text(text, encoding="utf-8")


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary path to write to; it replaces `path` at the end, or is deleted on failure.

    The file that it becomes has the mode of the one it replaces, else that of the umask.
    """
    partial = path.with_name(path.name + ".tmp")
    try:
        if path.exists():
            partial.touch()
            shutil.copymode(path, partial)
        yield partial
        os.replace(partial, path)
    except OSError as error:
        if error.errno:
            error.filename = str(path)  # a full disk names no file
        raise
    finally:
        partial.unlink(missing_ok=True)


def json_text(content: Any) -> str:
    """`content` as the indented JSON of a file."""
    return json.dumps(content, indent=2, ensure_ascii=False) + "\n"


def write_json(path: str | PurePath, content: Any) -> None:
    """Writes JSON atomically, indented."""
    write_text(path, json_text(content))


def read_json(path: str | PurePath) -> dict[str, Any]:
    """The object that a JSON file holds.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: it is damaged, holds no object, or is a git-lfs pointer; the file is named.
    """
    paths.require_content(path)
    try:
        content = json.loads(epath.Path(path).read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: not JSON ({error}); restore it or download it again") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path} must hold a JSON object, not a {type(content).__name__}")
    return content


def sha256(path: str | PurePath) -> str:
    """Hex digest of a file; it identifies the data that a run read."""
    digest = hashlib.sha256()
    with epath.Path(path).open("rb") as file:
        while block := file.read(2**20):
            digest.update(block)
    return digest.hexdigest()


def _git_commit() -> str | None:
    """The commit of this code, with "-dirty" if files differ from it; None if it is unknown.

    A copy of the tree on another host has no repository: launch/lib/hosts.sh, which makes the copy,
    passes the commit in ALPACARE_GIT_COMMIT.
    """
    if commit := os.environ.get("ALPACARE_GIT_COMMIT"):
        return commit
    folder = Path(__file__).resolve().parent

    def git(*args: str) -> str:
        done = subprocess.run(
            ["git", *args], cwd=folder, capture_output=True, text=True, timeout=10, check=True
        )
        return done.stdout.strip()

    try:
        if Path(git("rev-parse", "--show-toplevel")).resolve() != folder.parent:
            return None  # installed in an environment inside another repository
        return git("rev-parse", "HEAD") + ("-dirty" if git("status", "--porcelain") else "")
    except (OSError, subprocess.SubprocessError):
        return None  # installed without its repository


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def now() -> str:
    """The current time in UTC, as ISO 8601 with seconds."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def describe(**content: Any) -> dict[str, Any]:
    """The content of a `run.json`: `content`, then flags, code, packages, host and start time."""
    return content | {
        "flags": sys.argv[1:],
        "git_commit": _git_commit(),
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in PACKAGES},
        "host": platform.node(),
        "start": now(),
        "end": None,
    }


def run_json(output: Path | epath.Path) -> Path | epath.Path:
    """The path of the `run.json` of a single output file: FILE.run.json in the same folder."""
    return output.with_name(output.name + ".run.json")


def read_record(path: str | PurePath) -> dict[str, Any]:
    """The content of a `run.json`; {} if it does not exist.

    Raises:
      ValueError: it is damaged, by a full disk or an incomplete copy.
    """
    try:
        content = read_json(path)
    except FileNotFoundError:
        return {}
    except ValueError:
        content = {"config": None}
    if not all(isinstance(content.get(key, {}), dict) for key in ("config", "inputs", "packages")):
        raise ValueError(
            f"{path} is damaged, perhaps cut short; restore it from a copy, or delete it together "
            "with the output it describes"
        )
    return content


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, str]:
    """Settings that differ between two records, by dotted name, as JSON holds them.

    >>> differences({"a": {"b": 1}, "d": "x"}, {"a": {"b": 2}, "c": ()})
    {'a.b': '1 before, 2 now', 'd': "'x' before, None now", 'c': 'None before, [] now'}
    """
    old, new = sections.flatten(before), sections.flatten(json.loads(json.dumps(now)))
    return {
        name: DIGEST.sub(r"\1...", f"{old.get(name)!r} before, {new.get(name)!r} now")
        for name in {**old, **new}
        if old.get(name) != new.get(name)
    }


def as_text(found: Mapping[str, str]) -> str:
    """`differences` in one line."""
    return "; ".join(f"{name}: {change}" for name, change in found.items())


def replaced(output: Path, config: Mapping[str, Any]) -> str:
    """A warning that `output`, made with other settings, is being replaced; "" if it is not."""
    record = run_json(output)
    if not (output.exists() and record.exists()):
        return ""
    found = as_text(differences(read_record(record).get("config", {}), config))
    return f"replacing {output}, which was made with other settings ({found})" if found else ""


def is_finished(output: Path | epath.Path, settings: dict[str, Any]) -> bool:
    """Whether `output` exists and was made with exactly these settings.

    Raises:
      ValueError: it was made with others, and must not be overwritten.
    """
    if not output.exists():
        return False
    record = read_record(run_json(output))
    if "config" not in record:
        found = f"there is no {run_json(output).name}"
    elif not (found := as_text(differences(record["config"], settings))):
        if record.get("sha256") in (None, sha256(output)):
            return True
        raise ValueError(f"{output} is damaged or was edited; delete it or choose another --output")
    raise ValueError(
        f"{output} exists and was made with other settings or input ({found}); choose another "
        "--output or delete it"
    )
