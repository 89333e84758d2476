"""`run.json`: what made an output, so that a result explains itself."""

import contextlib
import datetime
import hashlib
import importlib.metadata
import json
import os
import platform
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePath
from typing import Any

from etils import epath

from common import paths, sections

PACKAGES = (
    *("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy", "tokenizers"),
    *("openai", "anthropic", "rapidfuzz", "rouge-score", "matplotlib"),
)


def write_text(path: str | PurePath, text: str) -> None:
    """Writes a file so that a reader sees the old one or the new one, never half of it."""
    if paths.in_bucket(path):
        epath.Path(path).write_text(text)
        return
    with replacing(Path(path)) as partial:
        partial.write_text(text, encoding="utf-8")


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A path beside `path` to write to: it takes its place at the end, or goes if that fails."""
    partial = path.with_name(path.name + ".tmp")
    try:
        yield partial
        os.replace(partial, path)
    except OSError as error:
        if error.errno:
            error.filename = str(path)  # a full disk names no file
        raise
    finally:
        partial.unlink(missing_ok=True)


def write_json(path: str | PurePath, content: Any) -> None:
    write_text(path, json.dumps(content, indent=2, ensure_ascii=False) + "\n")


def sha256(path: str | PurePath) -> str:
    """Hex digest of a file, so that a changed data file is noticed."""
    with epath.Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _git_commit() -> str | None:
    """The commit of this code, with -dirty where files differ from it; None where nobody knows.

    A copy of the tree on another host has no repository: launch/remote.sh, which made the copy,
    tells the commit in ALPACARE_GIT_COMMIT.
    """
    if told := os.environ.get("ALPACARE_GIT_COMMIT"):
        return told
    here = Path(__file__).resolve().parent
    git = lambda *args: subprocess.run(  # noqa: E731
        ["git", *args], cwd=here, capture_output=True, text=True, timeout=10, check=True
    ).stdout.strip()
    try:
        if Path(git("rev-parse", "--show-toplevel")).resolve() != here.parent:
            return None  # an environment inside somebody else's repository
        return git("rev-parse", "HEAD") + ("-dirty" if git("status", "--porcelain") else "")
    except (OSError, subprocess.SubprocessError):
        return None  # installed without its repository


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def describe(**content: Any) -> dict[str, Any]:
    """The content of a `run.json`: `content`, then code, packages, host and start time."""
    return content | {
        "git_commit": _git_commit(),
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in PACKAGES},
        "host": platform.node(),
        "start": now(),
        "end": None,
    }


def run_json(output: Path) -> Path:
    """Where the `run.json` of a single output file stands: beside it, under its name."""
    return output.with_name(output.name + ".run.json")


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, str]:
    """Settings of `now` that differ from those `before`, as both stand in JSON, by dotted name.

    >>> differences({"a": {"b": 1}}, {"a": {"b": 2}, "c": ()})
    {'a.b': '1 before, 2 now', 'c': 'None before, [] now'}
    """
    old, new = sections.flatten(before), sections.flatten(json.loads(json.dumps(now)))
    return {
        name: f"{old.get(name)!r} before, {value!r} now"
        for name, value in new.items()
        if old.get(name) != value
    }


def replaced(output: Path, config: Mapping[str, Any]) -> str:
    """What to tell before `output` is written anew; "" where no other settings made the old one."""
    record = run_json(output)
    if not (output.exists() and record.exists()):
        return ""
    found = differences(json.loads(record.read_text(encoding="utf-8")).get("config", {}), config)
    told = "; ".join(f"{name}: {what}" for name, what in found.items())
    return f"{output} is replaced; it was made with other settings ({told})" if found else ""


def is_finished(output: Path, settings: dict[str, Any]) -> bool:
    """Whether these very settings made `output` already.

    Raises:
      ValueError: something else did, so that it must not be overwritten.
    """
    if not output.exists():
        return False
    record = run_json(output)
    made_with = json.loads(record.read_text(encoding="utf-8")) if record.exists() else {}
    if made_with.get("config") == settings:
        return True
    raise ValueError(
        f"{output} exists and was made with other flags or other input; choose another "
        "--output or delete it"
    )
