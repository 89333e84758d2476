"""What a run prints on stderr while it works; every process calls, only the first one prints."""

import contextlib
import hashlib
import json
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
from etils import epath

from alpacare_jax.distributed import processes
from common import messages, paths, provenance

MISS_EVENT = "/jax/compilation_cache/cache_misses"
"""JAX records it when a program was compiled in full and is stored in the cache."""


def log(text: str) -> None:
    """Prints a line."""
    if processes.is_first():
        messages.log(text)


def waiting(text: str) -> contextlib.AbstractContextManager[None]:
    """Shows `text` and the time so far while the block runs without output."""
    return messages.heartbeat(text) if processes.is_first() else contextlib.nullcontext()


class StartupTimer:
    """Measures the phases from the start of the process to the end of the first step."""

    def __init__(self):
        self._phases: dict[str, float] = {}
        self._compiling = 0.0
        jax.monitoring.register_event_duration_secs_listener(self._add_compilation)

    def _add_compilation(self, event: str, duration_secs: float, **_) -> None:
        if event == "/jax/core/compile/backend_compile_duration":
            self._compiling += duration_secs

    def end_phase(self, name: str) -> None:
        """Names the phase that ends here."""
        self._phases[name] = processes.seconds_since_start() - sum(self._phases.values())

    def summary(self) -> str:
        """All phases in one line."""
        total = sum(self._phases.values())
        phases = ", ".join(f"{name} {seconds:.1f} s" for name, seconds in self._phases.items())
        return f"first step after {total:.0f} s: {phases}; compiling took {self._compiling:.1f} s"


class Compilations:
    """Announces compilations, with the time they took before on this machine.

    Times are kept beside the compilation cache; without a cache folder nothing is remembered. A
    file that cannot be read or written is ignored: it only serves estimates.
    """

    def __init__(self, *settings: Any):
        """Takes what compilation times depend on, beside the devices of this machine."""
        folder = jax.config.jax_compilation_cache_dir  # pyright: ignore[reportAttributeAccessIssue]
        self._path = epath.Path(folder) / "compile_seconds.json" if folder else None
        devices = jax.devices()
        self._settings = (devices[0].device_kind, len(devices), jax.__version__, *settings)
        self._misses = 0
        self._seen: set[tuple[str, tuple[int, ...]]] = set()
        jax.monitoring.register_event_listener(self._count_miss)

    def _count_miss(self, event: str, **_) -> None:
        self._misses += event == MISS_EVENT

    def _read(self) -> dict[str, float]:
        with contextlib.suppress(OSError, ValueError, *paths.outages()):
            if self._path and self._path.exists():
                found = json.loads(self._path.read_text(encoding="utf-8"))
                return found if isinstance(found, dict) else {}
        return {}

    def announced(self, program: Callable[..., Any], name: str) -> Callable[..., Any]:
        """`program(state, arrays, ...)`; its first call with each shape of the arrays is announced.

        jax.jit compiles one program for each shape.
        """

        def call(state: Any, arrays: dict[str, jax.Array], *rest: Any) -> Any:
            shape = arrays["tokens"].shape
            if (name, shape) in self._seen:
                return program(state, arrays, *rest)
            with self.announce(name, shape):
                return program(state, arrays, *rest)

        return call

    @contextlib.contextmanager
    def announce(self, name: str, shape: tuple[int, ...]) -> Iterator[None]:
        """Announces that the block compiles this program for this shape."""
        self._seen.add((name, shape))
        if not processes.is_first():
            yield
            return
        parts = repr((name, shape, *self._settings))
        key, misses = hashlib.sha256(parts.encode()).hexdigest()[:16], self._misses
        last = self._read().get(key)
        known = f"about {messages.duration(last)} the last time" if last else "no estimate yet"
        log(f"compiling {name} ({known})")
        began = time.perf_counter()
        with waiting(f"compiling {name}"):
            yield
        if self._misses > misses and self._path:
            seconds = round(time.perf_counter() - began, 1)
            with contextlib.suppress(OSError, *paths.outages()):
                provenance.write_json(self._path, self._read() | {key: seconds})
