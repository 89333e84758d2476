"""A race: contenders take turns, each in a process of its own, and are compared round by round.

A machine's speed moves by a third from hour to hour, so only ratios within one round count. Each
contender is launched and warmed up once, alone; then A, B, C, A, B, C ... work one at a time while
the others sleep on their input. A round is timed inside the worker, around the work only. Memory is
the process's own highest resident size, compilation included.

The parent sends a line, the worker answers with a line of JSON:

    parent: work      worker: {"seconds": 1.23, "result": {...}}      the first one includes set-up
    parent: memory    worker: {"peak_bytes": 3000000000}
"""

import dataclasses
import importlib.metadata
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

Result = dict[str, Any]
Work = Callable[[], Result]
"""One round's work, done when it returns. `peak_bytes` in the result replaces the process's."""

PAUSE_SECONDS = 0.3
"""Before each turn: thread pools of the one before spin for a while when they run dry."""


@dataclasses.dataclass
class Lane:
    """What one contender did."""

    name: str
    first_seconds: float = 0.0  # launch to the end of the first work: imports, weights, compiling
    first: Result = dataclasses.field(default_factory=dict)  # what the first work returned
    seconds: list[float] = dataclasses.field(default_factory=list)  # of each round
    results: list[Result] = dataclasses.field(default_factory=list)
    peak_bytes: int = 0
    failure: str = ""  # why it is out of the race


def serve(set_up: Callable[[], Work]) -> None:
    """The worker's side: answers on stdout until stdin closes."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print must not mix with the answers
    work, peak_bytes = None, 0
    for question in sys.stdin:
        if question.strip() == "memory":
            answer = {
                "peak_bytes": peak_bytes or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
            }
        else:
            work = work or set_up()
            start = time.perf_counter()
            result = work()
            answer = {"seconds": time.perf_counter() - start, "result": result}
            peak_bytes = result.get("peak_bytes", 0)
        print(json.dumps(answer), file=answers, flush=True)


class Worker:
    """The parent's side of one contender."""

    def __init__(self, name: str, command: Sequence[str], env: Mapping[str, str]):
        self.lane = Lane(name)
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 - held for the race
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            env=env,
            text=True,
        )

    def ask(self, question: str, limit_s: float) -> dict[str, Any]:
        """The worker's answer.

        Raises:
          ChildProcessError: it died, or was killed after `limit_s` seconds.
        """
        timer = threading.Timer(limit_s, self._process.kill)
        timer.start()
        try:
            self._process.stdin.write(question + "\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        except BrokenPipeError:
            line = ""
        finally:
            timer.cancel()
        if not line.endswith("\n"):
            code = self._process.wait()
            self._errors.seek(0)
            tail = self._errors.read().decode(errors="replace").strip().splitlines()[-25:]
            print(f"--- stderr of {self.lane.name!r} ends:", *tail, sep="\n", file=sys.stderr)
            why = f"over {limit_s:.0f} s" if timer.finished.is_set() and code == -9 else tail[-1:]
            raise ChildProcessError(f"{self.lane.name!r} died, exit code {code}: {why}")
        return json.loads(line)

    def close(self) -> None:
        self._process.stdin.close()
        try:
            self._process.wait(timeout=30)
        except subprocess.TimeoutExpired:
            self._process.kill()
        self._process.stdout.close()
        self._errors.close()


def run(
    module: str,
    names: Sequence[str],
    *,
    rounds: int,
    warm_ups: int,
    threads: int = 0,
    arguments: Iterable[str] = (),
    optional: Iterable[str] = (),
    limit_s: float = 1800.0,
) -> list[Lane]:
    """Races `python -m MODULE (this command's flags) ARGUMENTS --worker=NAME` for each name.

    Args:
      warm_ups: works before the first round, at least 1.
      threads: cores and threads of each worker; 0 is all that this process may use.
      optional: names that may fail; their lane tells why.
      limit_s: longest that one answer may take, set-up and compilation included.
    """
    cores = sorted(os.sched_getaffinity(0))[: threads or None]
    workers: list[Worker] = []
    with tempfile.TemporaryDirectory() as compiled:
        try:
            for name in names:
                env = os.environ | {
                    "OMP_NUM_THREADS": str(len(cores)),
                    # Every contender compiles afresh.
                    "TORCHINDUCTOR_CACHE_DIR": os.path.join(compiled, name.replace(" ", "_")),
                    "JAX_ENABLE_COMPILATION_CACHE": "false",
                    "TF_CPP_MIN_LOG_LEVEL": "2",
                }
                command = [sys.executable, "-m", module, *sys.argv[1:], *arguments, "--debug"]
                tell(f"warming up {name}")
                start = time.perf_counter()
                with _on_cores(cores):
                    worker = Worker(name, [*command, f"--worker={name}"], env)
                workers.append(worker)
                try:
                    worker.lane.first = worker.ask("work", limit_s)["result"]
                    worker.lane.first_seconds = time.perf_counter() - start
                    for _ in range(warm_ups - 1):
                        worker.ask("work", limit_s)
                except ChildProcessError as error:
                    if name not in optional:
                        raise
                    worker.lane.failure = str(error)
            racing = [worker for worker in workers if not worker.lane.failure]
            for number in range(1, rounds + 1):
                for worker in racing:
                    time.sleep(PAUSE_SECONDS)
                    answer = worker.ask("work", limit_s)
                    worker.lane.seconds.append(answer["seconds"])
                    worker.lane.results.append(answer["result"])
                took = ", ".join(f"{w.lane.name} {w.lane.seconds[-1]:.2f} s" for w in racing)
                tell(f"round {number}/{rounds}: {took}")
            for worker in racing:
                worker.lane.peak_bytes = worker.ask("memory", limit_s)["peak_bytes"]
        finally:
            for worker in workers:
                worker.close()
    return [worker.lane for worker in workers]
