"""What a command runs on: the processes that make up one run, and the compilation cache."""

import contextlib
import faulthandler
import json
import os
import re
import shutil
import signal
import socket
import tempfile
import time
from pathlib import Path

import jax
import numpy as np
from absl import flags
from etils import epath
from jax._src import clusters  # private: nothing public tells who the processes of a job are
from jax.experimental import multihost_utils

from common import paths

JOIN_SECONDS = 1800
"""A cold pod's hosts start minutes apart; JAX's own 300 s are too short (marin#7232)."""

STEP_SECONDS = 1800
"""No step, save or evaluation takes so long; one that does waits for somebody who never comes."""


def define_flags() -> None:
    """The flags of a command that may run as several processes."""
    env = os.environ
    flags.DEFINE_bool(
        "distributed",
        env.get("ALPACARE_DISTRIBUTED", "") == "1",
        "Join the other hosts of this TPU pod. SLURM steps of several tasks join by themselves.",
    )
    flags.DEFINE_string(
        "coordinator",
        env.get("JAX_COORDINATOR_ADDRESS", ""),
        "HOST:PORT of process 0, where neither TPU pod nor SLURM tells it.",
    )
    flags.DEFINE_integer(
        "num_processes", int(env.get("JAX_NUM_PROCESSES", 0)), "With --coordinator: how many."
    )
    flags.DEFINE_integer(
        "process_id",
        int(env.get("JAX_PROCESS_ID", -1)),
        "With --coordinator: which this is, from 0.",
    )
    flags.DEFINE_integer(
        "join_seconds", JOIN_SECONDS, "Longest wait for the other hosts.", lower_bound=1
    )
    flags.DEFINE_integer(
        "step_seconds", STEP_SECONDS, "Longest wait for a step or save.", lower_bound=1
    )


def join(
    *, distributed: bool, coordinator: str, num_processes: int, process_id: int, join_seconds: int
) -> None:
    """Makes this process one of several; does nothing where it is alone.

    Must come before anything else touches a device.

    Raises:
      ValueError: the flags do not fit together.
      ConnectionError: some processes did not arrive in `join_seconds`; they are named.
    """
    devices = None
    if coordinator:
        if num_processes < 1 or not 0 <= process_id < num_processes:
            raise ValueError(
                f"--coordinator needs --num_processes (now {num_processes}) and a --process_id "
                f"from 0 to one less (now {process_id})"
            )
        if not re.fullmatch(r".+:\d+", coordinator):
            raise ValueError(f"--coordinator is {coordinator!r}; it must be HOST:PORT")
    elif distributed or int(os.environ.get("SLURM_STEP_NUM_TASKS", 1)) > 1:
        # As jax.distributed.initialize does it: from the TPU's metadata or SLURM's variables. A
        # SLURM task has one GPU unless JAX_LOCAL_DEVICE_IDS says which.
        own = os.environ.get("JAX_LOCAL_DEVICE_IDS")
        devices = [int(i) for i in own.split(",")] if own else None
        coordinator, num_processes, process_id, devices = (
            clusters.ClusterEnv.auto_detect_unset_distributed_params(
                None, None, None, devices, None, join_seconds
            )
        )
        if coordinator is None:
            raise ValueError("--distributed is set, but this is neither a TPU pod nor a SLURM step")
    else:
        return
    wait_for_processes(coordinator, num_processes, process_id, join_seconds)
    jax.distributed.initialize(coordinator, num_processes, process_id, devices)


def wait_for_processes(
    coordinator: str, num_processes: int, process_id: int, seconds: float
) -> None:
    """Returns, at about the same time in every process, once all of them are there.

    JAX ends a process with a stack dump when others do not arrive, and does not say which. So they
    first meet here, on the same port: no further one has to be open.

    Raises:
      ConnectionError: not all came in time; every process that did come says which are missing.
    """
    host, _, port = coordinator.rpartition(":")
    deadline = time.monotonic() + seconds
    if process_id:
        missing = _report(host.strip("[]"), int(port), process_id, deadline)
    else:
        missing = _count(int(port), num_processes, deadline)
    if missing is None:
        raise ConnectionError(
            f"process 0 did not answer at {coordinator} in {seconds:.0f} s; is it running, and may "
            "this host reach its port?"
        )
    if missing:
        hosts = os.environ.get("TPU_WORKER_HOSTNAMES", "").split(",")
        whole = len(hosts) == num_processes  # of several slices each knows its own hosts only
        names = [f"{i} ({hosts[i]})" if whole and hosts[i] else str(i) for i in missing]
        raise ConnectionError(
            f"after {seconds:.0f} s {len(missing)} of {num_processes} processes had not arrived: "
            f"{', '.join(names)}; look at their logs, start all hosts together, or raise "
            "--join_seconds"
        )


def _count(port: int, num_processes: int, deadline: float) -> list[int]:
    """Process 0: waits for the others and tells each who is missing."""
    arrived: dict[int, socket.socket] = {}
    dual = socket.has_dualstack_ipv6()
    family = socket.AF_INET6 if dual else socket.AF_INET
    with (
        contextlib.ExitStack() as stack,
        socket.create_server(("", port), family=family, dualstack_ipv6=dual) as server,
    ):
        while len(arrived) < num_processes - 1 and (left := deadline - time.monotonic()) > 0:
            server.settimeout(left)
            with contextlib.suppress(OSError, ValueError):  # time is up, or a stranger called
                connection = stack.enter_context(server.accept()[0])
                connection.settimeout(5)
                who = int(connection.makefile("rb").readline(20))
                if 0 < who < num_processes:
                    arrived[who] = connection  # a process that was restarted calls again
        missing = [i for i in range(1, num_processes) if i not in arrived]
        for connection in arrived.values():
            with contextlib.suppress(OSError):
                connection.sendall(json.dumps(missing).encode() + b"\n")
    return missing


def _report(host: str, port: int, process_id: int, deadline: float) -> list[int] | None:
    """Any other process: tells process 0 that it is here, and waits to hear who is missing."""
    grace = 10  # process 0 started its own clock later
    while (left := deadline + grace - time.monotonic()) > 0:
        with contextlib.suppress(OSError, ValueError):  # not there yet, or restarted: call again
            connection = socket.create_connection((host, port), timeout=left)
            with connection, connection.makefile("rb") as answer:
                connection.sendall(b"%d\n" % process_id)
                return json.loads(answer.readline())
        time.sleep(0.2)
    return None


def is_first() -> bool:
    """Whether this process writes what a run writes once: lines, metrics, run.json."""
    return jax.process_index() == 0


def broadcast_from_process_0(value: float) -> float:
    """Process 0's `value`, on every process: what all must decide alike."""
    if jax.process_count() == 1:
        return value
    return float(multihost_utils.broadcast_one_to_all(np.float64(value)))


def barrier(what: str) -> None:
    """Returns when every process has come here; a `Watchdog` bounds the wait."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(what)


class Watchdog:
    """Ends the process, with the stack of every thread, when nothing happens for `seconds`.

    It dies of SIGALRM: the kernel sends that however stuck the process is, and launch/ takes it for
    something to be tried again, unlike an exit code of the command's own.

    Collectives have no time-out of their own: where one host hangs, all others wait for it. A host
    that dies is noticed by JAX's heartbeats; one that lives and does nothing only by this.
    """

    def __init__(self, seconds: int):
        self.seconds = seconds if jax.process_count() > 1 else 0
        if self.seconds:
            faulthandler.register(signal.SIGALRM, chain=True)  # the stacks, then the signal's end

    def __enter__(self) -> "Watchdog":
        self.reset()
        return self

    def __exit__(self, *_) -> None:
        signal.alarm(0)

    def reset(self) -> None:
        """Starts the time anew."""
        if self.seconds:
            signal.alarm(self.seconds)


class Trace:
    """Records what the devices do, for TensorBoard's profiler, into `folder`.

    The profiler writes to this machine only, so a bucket gets its files at the end.
    """

    def __init__(self, folder: epath.Path):
        self._folder = folder
        self._local = str(folder)
        self.running = False

    def start(self) -> None:
        if paths.in_bucket(self._folder):
            self._local = tempfile.mkdtemp(prefix="profile-")
        jax.profiler.start_trace(self._local)
        self.running = True

    def stop(self) -> None:
        jax.profiler.stop_trace()
        self.running = False
        if paths.in_bucket(self._folder):
            for file in filter(Path.is_file, Path(self._local).rglob("*")):
                target = self._folder / file.relative_to(self._local)
                target.write_bytes(file.read_bytes())
            shutil.rmtree(self._local)


def use_compilation_cache() -> None:
    """Keeps compiled programs in ~/.cache/alpacare-jax, unless JAX_COMPILATION_CACHE_DIR is set."""
    if jax.config.jax_compilation_cache_dir is None:
        home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
        jax.config.update("jax_compilation_cache_dir", str(Path(home) / "alpacare-jax"))


def seconds_since_start() -> float:
    """How long this process has lived, imports included (Linux)."""
    started = int(Path("/proc/self/stat").read_text().rsplit(")", 1)[1].split()[19])
    alive = float(Path("/proc/uptime").read_text().split()[0])
    return alive - started / os.sysconf("SC_CLK_TCK")
