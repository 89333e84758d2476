"""Locks: one process at a time makes an output.

A lock is a file beside the output, `.NAME.lock`. It names the process that holds it, and is deleted
when that ends. A process that was killed leaves the file, but not the lock:

- In a folder the lock proper is flock, which the kernel releases. NFS passes it on to the server,
  so it holds for all hosts, unless mounted with `nolock` or `local_lock`; some cluster file
  systems keep it to one host. Where flock is not supported, the process is looked for on this host;
  that of another host is taken to run.
- In a bucket the object is created on the condition that there is none, and refreshed every
  REFRESH_SECONDS. It is taken over, on the condition that nobody else did, once its process is
  known to have ended on this host, or it was not refreshed for LOST_SECONDS.
"""

import contextlib
import datetime
import email.utils
import errno
import fcntl
import json
import os
import platform
import shlex
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path, PurePath
from typing import Any

from common import exits, messages, paths, provenance

REFRESH_SECONDS, LOST_SECONDS = 30.0, 120.0
"""Of a lock in a bucket. A run with many hosts makes two requests a minute, 0.02 USD a day."""

NOT_SUPPORTED = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)

MAX_TRIES = 1000
"""Of making a lock's file: in folders such as /proc there can be none."""

MAX_COMMAND = 300
"""Characters of a command in a message."""

Owner = dict[str, Any]


@contextlib.contextmanager
def hold(output: str | PurePath) -> Iterator[None]:
    """Inside, no other process makes `output`, a file or folder here or in a bucket.

    Raises:
      OSError: another process does, which is named.
    """
    paths.check(os.fspath(output))
    path = paths.absolute(output)
    if not path.name:
        raise OSError(f"{path} is no output; give a file or folder in it")
    lock = BucketLock(path) if paths.in_bucket(path) else FileLock(Path(path))
    try:
        yield
    finally:
        lock.release()


def this_process() -> Owner:
    """What a lock says about its holder."""
    command = shlex.join([Path(sys.orig_argv[0]).name, *sys.orig_argv[1:]])
    return {
        "host": platform.node(),
        "process": os.getpid(),
        "command": command[:MAX_COMMAND] + " ..." * (len(command) > MAX_COMMAND),
        "start": provenance.now(),
        "system": _system(),
        "ticks": _start_ticks(os.getpid()),
        "id": uuid.uuid4().hex,
    }


def has_ended(owner: Owner) -> bool:
    """Whether a process is known to have ended; False if it runs, or on another system."""
    if not owner.get("system") or owner["system"] != _system():
        return False
    return _start_ticks(owner["process"]) != owner["ticks"]


def _system() -> str:
    """What process ids belong to: this boot of this kernel, and the container; "" if unknown."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return ""


def _start_ticks(process: int) -> int | None:
    """When a process was started: ids are reused. None if there is no such process."""
    try:
        stat = Path(f"/proc/{process}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    return int(stat.rsplit(")", 1)[1].split()[19])


def _in_use(output: PurePath, owner: Owner, remedy: str = "") -> OSError:
    holder = "another process"
    if owner:
        holder = "process {process} on {host}, started {start}: {command}".format_map(owner)
    return OSError(f"{output} is in use by {holder}; {remedy or 'wait until it ends, or stop it'}")


def _report_takeover(output: PurePath, owner: Owner) -> None:
    if owner.get("system") != _system():
        messages.log(
            f"{output}: taking over the lock of process {owner['process']} on {owner['host']}, "
            f"started {owner['start']}, which did not release it"
        )


class FileLock:
    """The lock of an output in a folder."""

    def __init__(self, output: Path):
        self._output, self._path = output, output.with_name(f".{output.name}.lock")
        if output.is_dir() and not os.access(output.parent, os.W_OK):  # such as a mounted disk
            self._path = output / ".lock"
        self._made = [folder for folder in output.parents if not folder.exists()]
        self._descriptor = self._acquire()

    def _acquire(self) -> int:
        while True:
            descriptor = self._open()
            try:
                if self._lock(descriptor):
                    if self._is_current(descriptor):
                        self._take(descriptor)
                        return descriptor
                elif self._is_current(descriptor):
                    raise _in_use(self._output, self._read_patiently(descriptor))
            except BaseException:
                os.close(descriptor)
                raise
            os.close(descriptor)  # its last holder has deleted the file in between

    def _open(self) -> int:
        left = MAX_TRIES
        while True:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            try:
                return os.open(self._path, os.O_RDWR | os.O_CREAT, 0o666)
            except OSError as error:
                left -= 1
                if left and isinstance(error, FileNotFoundError):
                    continue  # the folder's maker has ended, and removed it
                if not self._path.exists():
                    error.filename = str(self._output)
                raise

    def _lock(self, descriptor: int) -> bool:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        except OSError as error:
            if error.errno not in NOT_SUPPORTED:
                raise
            owner = self._read(descriptor)
            if owner and not has_ended(owner):
                remedy = f"if it has ended, delete {self._path}"
                raise _in_use(self._output, owner, remedy) from None
        return True

    def _is_current(self, descriptor: int) -> bool:
        """Whether the open file still is the one of that name; `st_nlink` is for NFS's caches."""
        try:
            held = os.fstat(descriptor)
            return bool(held.st_nlink) and os.path.samestat(held, os.stat(self._path))
        except OSError:
            return False

    def _take(self, descriptor: int) -> None:
        if former := self._read(descriptor):
            _report_takeover(self._output, former)
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, json.dumps(this_process()).encode(), 0)

    @staticmethod
    def _read(descriptor: int) -> Owner:
        try:
            return json.loads(os.pread(descriptor, 2**16, 0))
        except ValueError:
            return {}

    def _read_patiently(self, descriptor: int) -> Owner:
        """The holder, which may have taken the lock just now, before it writes its name."""
        for _ in range(20):
            if owner := self._read(descriptor):
                return owner
            time.sleep(0.05)
        return {}

    def release(self) -> None:
        """Deletes the file, and folders that were made for it and are empty, and unlocks."""
        if self._is_current(self._descriptor):
            self._path.unlink(missing_ok=True)
        os.close(self._descriptor)
        with contextlib.suppress(OSError):
            for folder in self._made:
                folder.rmdir()


class BucketLock:
    """The lock of an output in a bucket, which a thread refreshes."""

    def __init__(self, output: PurePath):
        import fsspec

        self._output, self._owner = output, this_process()
        self._path = f"{os.fspath(output).rpartition('/')[0]}/.{output.name}.lock"
        self._object = self._path.removeprefix(paths.BUCKET).split("/", 1)
        self._files = fsspec.filesystem("gcs")
        self._condition = {"ifGenerationMatch": self._acquire()}
        self._released = threading.Event()
        self._thread = threading.Thread(target=self._keep, name="lock", daemon=True)
        self._thread.start()

    def _request(self, method: str, **query: Any) -> tuple[dict[str, str], bytes]:
        return self._files.call(method, "b/{}/o/{}", *self._object, **query)

    def _acquire(self) -> str:
        """The object's generation."""
        content = json.dumps(self._owner).encode()
        while True:
            with contextlib.suppress(FileExistsError):
                self._files.pipe_file(self._path, content, mode="create")
            with contextlib.suppress(FileNotFoundError, FileExistsError):  # released or taken over
                owner, generation, age = self._read()
                if owner["id"] == self._owner["id"]:
                    return generation
                if has_ended(owner) or age > LOST_SECONDS:
                    self._request("DELETE", ifGenerationMatch=generation)
                    _report_takeover(self._output, owner)
                elif age < 1.5 * REFRESH_SECONDS:
                    raise _in_use(self._output, owner)
                else:  # a refresh is overdue
                    time.sleep(REFRESH_SECONDS / 6)

    def _read(self) -> tuple[Owner, str, float]:
        """(owner, generation, seconds since the last refresh by the bucket's clock)."""
        headers, content = self._request("GET")
        found = json.loads(content)
        _, content = self._request("GET", alt="media", generation=found["generation"])
        now = email.utils.parsedate_to_datetime(headers["Date"])
        age = now - datetime.datetime.fromisoformat(found["updated"])
        return json.loads(content), found["generation"], age.total_seconds()

    def _keep(self) -> None:
        while not self._released.wait(REFRESH_SECONDS):
            refreshed = {"metadata": {"refreshed": provenance.now()}}
            try:
                self._request("PATCH", json=refreshed, **self._condition)
            except (FileNotFoundError, FileExistsError):
                messages.log(
                    f"error: another process has taken over {self._output}, or {self._path} was "
                    f"deleted; this one ends, as it had not refreshed it for {LOST_SECONDS:.0f} s"
                )
                exits.leave(1)
            except (OSError, *paths.outages()):
                continue  # not available now

    def release(self) -> None:
        """Deletes the object; if the bucket is not available, it is taken over later."""
        self._released.set()
        self._thread.join()
        with contextlib.suppress(OSError, *paths.outages()):
            self._request("DELETE", **self._condition)
