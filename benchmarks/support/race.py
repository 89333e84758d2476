"""A race: contenders take turns, each in a process of its own, and are compared round by round.

A machine's speed moves by a third from hour to hour, so only ratios within one round count. Each
contender is launched and warmed up once, alone; then A, B, C, A, B, C ... work one at a time while
the others wait for their turn. A round is timed inside the worker, around the work only. Memory is
the process's own highest resident size, set-up and compilation included.

The parent writes a line to the worker's stdin, the worker answers with a line of JSON:

    set up    {"result": {}}
    work      {"seconds": 1.23, "result": {...}}      the first one sets up, before its clock starts
    memory    {"peak_bytes": 3000000000}
"""

import dataclasses
import importlib.metadata
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Any

Result = dict[str, Any]
Work = Callable[[], Result]
"""Works for one round and returns when it is done, device work included. `peak_bytes` in what it
returns, for example a GPU's, stands for the process's."""

PAUSE_SECONDS = 0.3
"""Before each turn: the thread pools of the one before spin for a while when they run dry."""


@dataclasses.dataclass
class Contender:
    """What one contender did."""

    name: str
    first_seconds: float = 0.0  # launch to the end of the first work: imports, weights, compiling
    first: Result = dataclasses.field(default_factory=dict)  # what the first work returned
    seconds: list[float] = dataclasses.field(default_factory=list)  # of each round
    results: list[Result] = dataclasses.field(default_factory=list)
    peak_bytes: int = 0
    failure: str = ""  # why it is out of the race


def serve(set_up: Callable[[], Work]) -> None:
    """The worker's side: answers until stdin closes."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print on stdout must not mix with the answers
    work, result = None, {}
    for question in sys.stdin:
        if question == "memory\n":
            resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
            answer = {"peak_bytes": result.get("peak_bytes", resident)}
        elif question == "set up\n":
            work, answer = set_up(), {"result": {}}
        else:
            work = work or set_up()
            start = time.perf_counter()
            result = work()
            answer = {"seconds": time.perf_counter() - start, "result": result}
        print(json.dumps(answer), file=answers, flush=True)


class Worker:
    """The parent's side of one contender."""

    def __init__(self, name: str, command: Sequence[str], env: dict[str, str], limit_s: float):
        self.contender, self.limit_s = Contender(name), limit_s
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 - held for the race
        pipe = subprocess.PIPE
        self._process = subprocess.Popen(
            command, stdin=pipe, stdout=pipe, stderr=self._errors, env=env, text=True
        )

    def ask(self, question: str) -> dict[str, Any]:
        """The answer; a ChildProcessError where the worker died or took over `limit_s`."""
        overdue = threading.Event()
        timer = threading.Timer(self.limit_s, lambda: (overdue.set(), self._process.kill()))
        timer.start()
        try:
            self._process.stdin.write(question + "\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        except BrokenPipeError:
            line = ""
        timer.cancel()
        if line:
            return json.loads(line)
        code = self._process.wait()
        self._errors.seek(0)
        tail = self._errors.read().decode(errors="replace").strip().splitlines()[-20:]
        log(f"the end of what {self.contender.name!r} wrote on stderr:", *tail, sep="\n    ")
        why = f"no answer in {self.limit_s:.0f} s" if overdue.is_set() else (tail or ["?"])[-1]
        raise ChildProcessError(f"{self.contender.name!r} died with exit code {code}: {why}")

    def close(self) -> None:
        """Ends the process; what it had still to flush to a dead one is lost, and may be."""
        try:
            self._process.communicate(timeout=30)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._errors.close()


def run(
    module: str,
    names: Sequence[str],
    *,
    rounds: int,
    warm_ups: int,
    arguments: Sequence[str] = (),
    optional: Collection[str] = (),
    limit_s: float = 1800.0,
) -> list[Contender]:
    """Races `python -m MODULE THIS_COMMAND'S_FLAGS ARGUMENTS --worker=NAME` for each name.

    Args:
      warm_ups: works before the first round; 0: setting up warms up.
      optional: names that may fail while they warm up; the error of their contender says why.
      limit_s: seconds that one answer may take, set-up and compilation included.
    """
    workers: list[Worker] = []
    with tempfile.TemporaryDirectory() as caches:

        def launch(name: str) -> Worker:
            env = os.environ | {
                "OMP_NUM_THREADS": str(cores()),
                "TORCHINDUCTOR_CACHE_DIR": f"{caches}/{len(workers)}",  # all compile afresh
                "JAX_ENABLE_COMPILATION_CACHE": "false",
                "TF_CPP_MIN_LOG_LEVEL": "2",
            }
            flags = [*sys.argv[1:], *arguments, "--debug", f"--worker={name}"]
            return Worker(name, [sys.executable, "-m", module, *flags], env, limit_s)

        try:
            for name in names:
                log(f"warming up {name}")
                start = time.perf_counter()
                workers.append(worker := launch(name))
                try:
                    worker.contender.first = worker.ask("work" if warm_ups else "set up")["result"]
                    worker.contender.first_seconds = time.perf_counter() - start
                    for _ in range(warm_ups - 1):
                        worker.ask("work")
                except ChildProcessError as error:
                    if name not in optional:
                        raise
                    worker.contender.failure = str(error)
            racing = [worker for worker in workers if not worker.contender.failure]
            for number in range(1, rounds + 1):
                for worker in racing:
                    time.sleep(PAUSE_SECONDS)
                    answer = worker.ask("work")
                    worker.contender.seconds.append(answer["seconds"])
                    worker.contender.results.append(answer["result"])
                took = ", ".join(
                    f"{w.contender.name} {w.contender.seconds[-1]:.2f} s" for w in racing
                )
                log(f"round {number}/{rounds}: {took}")
            for worker in racing:
                worker.contender.peak_bytes = worker.ask("memory")["peak_bytes"]
        finally:
            for worker in workers:
                worker.close()
    return [worker.contender for worker in workers]


def left(names: Iterable[str], skip: Sequence[str]) -> list[str]:
    """`names` without those that hold a word of `skip`; each word must be in one."""
    names = list(names)
    for word in skip:
        if not any(word in name for name in names[1:]):
            raise ValueError(f"--skip={word} is in none of: {'; '.join(names[1:])}")
    return names[:1] + [name for name in names[1:] if not any(word in name for word in skip)]


def cores() -> int:
    """Cores that this process, and so each worker, may use; `taskset` sets fewer."""
    return len(os.sched_getaffinity(0))


def spread(values: Sequence[float], digits: int) -> str:
    """ "median [min, max]"."""
    median, low, high = statistics.median(values), min(values), max(values)
    return f"{median:,.{digits}f} [{low:,.{digits}f}, {high:,.{digits}f}]"


def ratios(
    ours: Contender, theirs: Contender, value: Callable[[float, Result], float]
) -> list[float]:
    """value(ours) / value(theirs) of each round; value takes its seconds and its result."""

    def values(contender):
        return map(value, contender.seconds, contender.results)

    return [a / b for a, b in zip(values(ours), values(theirs), strict=True)]


def headline(title: str, packages: Sequence[str]) -> None:
    """Prints what was measured on which machine, the packages' versions, and whether it is busy."""
    versions = [f"{name} {importlib.metadata.version(name)}" for name in packages]
    print(f"\n{title}; {cores()} cores ({platform.machine()}), {', '.join(versions)}")
    if (load := os.getloadavg()[0]) > 1.5 * cores():
        print(
            f"BUSY MACHINE (load {load:.1f}): other work disturbs this; repeat it when it is quiet"
        )


def report(
    title: str,
    contenders: Sequence[Contender],
    unit: str,
    value: Callable[[float, Result], float],
    packages: Sequence[str] = ("jax", "torch"),
) -> None:
    """Prints the table; the first contender is ours, `value` is what is compared, in `unit`."""
    headline(title, packages)
    row = "{:<21} {:>27} {:>23} {:>13} {:>7} {:>13}".format
    print(row("median [min, max]", unit, "ours / it", "peak memory", "ours/it", "to first step"))
    ours = contenders[0]
    for contender in contenders:
        if contender.failure:
            print(f"{contender.name:<22}  out of the race: {contender.failure}")
            continue
        values = [
            value(*round_) for round_ in zip(contender.seconds, contender.results, strict=True)
        ]
        other = contender is not ours
        print(
            row(
                contender.name,
                spread(values, 1),
                spread(ratios(ours, contender, value), 2) if other else "",
                f"{contender.peak_bytes / 1e9:.2f} GB",
                f"{ours.peak_bytes / contender.peak_bytes:.2f}" if other else "",
                f"{contender.first_seconds:.0f} s",
            )
        )


def verdict(what: str, ratio: float, target: float, *, at_most: bool) -> None:
    """Prints whether a ratio reaches its target."""
    met = ratio <= target if at_most else ratio >= target
    bound = "at most" if at_most else "at least"
    print(f"{what}: {ratio:.2f}, target {bound} {target:.2f}: {'met' if met else 'MISSED'}")


def log(*lines: str, sep: str = "\n") -> None:
    print(*lines, sep=sep, file=sys.stderr, flush=True)
