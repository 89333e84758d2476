"""The processes of one run: joining, agreeing and failing together; and the compilation cache."""

import contextlib
import faulthandler
import os
import re
import shutil
import signal
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import jax
import numpy as np
from absl import flags
from etils import epath
from jax.experimental import multihost_utils

from alpacare_jax.distributed import roll_call
from common import locks, paths
from common.messages import log
from common.sections import UsageError

JOIN_SECONDS = 1800
"""Hosts of a cold pod start minutes apart; JAX's default of 300 s is too short (marin#7232)."""

MAX_PROCESSES, MAX_SECONDS = 2**16, 2**30
"""Limits of flags; the system's timers take no more seconds."""

STEP_SECONDS = 1800
"""Longer than any step, save or evaluation takes; beyond it, another process is assumed hung."""


def define_flags() -> None:
    """Defines the flags of a command that may run as several processes."""
    env = os.environ
    flags.DEFINE_bool(
        "distributed",
        env.get("ALPACARE_DISTRIBUTED", "") == "1",
        "Join the other hosts of this TPU pod. Multi-task SLURM steps join automatically.",
    )
    flags.DEFINE_string(
        "coordinator",
        env.get("JAX_COORDINATOR_ADDRESS", ""),
        "HOST:PORT or [IPV6]:PORT of process 0; a TPU pod and SLURM provide it.",
    )
    for name, default, text, least, most in (
        ("num_processes", None, "With --coordinator: number of processes.", 1, MAX_PROCESSES),
        ("process_id", None, "With --coordinator: index of this one, from 0.", 0, MAX_PROCESSES),
        ("join_seconds", JOIN_SECONDS, "Time limit to join.", 1, MAX_SECONDS),
        ("step_seconds", STEP_SECONDS, "Time limit of a step.", 1, MAX_SECONDS),
    ):
        flags.DEFINE_integer(name, default, text, lower_bound=least, upper_bound=most)


def _from_launcher(flag: int | None, variable: str) -> int:
    """A flag, or the number that a launcher has set in the environment; -1 without either."""
    text = os.environ.get(variable) or "-1"
    try:
        return int(text) if flag is None else flag
    except ValueError:
        raise UsageError(f"{variable} is {text!r}; it must be a whole number") from None


def join(
    *,
    distributed: bool,
    coordinator: str,
    num_processes: int | None,
    process_id: int | None,
    join_seconds: int,
) -> None:
    """Joins this process to its run, before any device is used; does nothing for a single process.

    Raises:
      ValueError: the flags are inconsistent.
      ConnectionError: as `roll_call.wait_for_processes`.
    """
    devices = None
    if coordinator:
        num_processes = _from_launcher(num_processes, "JAX_NUM_PROCESSES")
        process_id = _from_launcher(process_id, "JAX_PROCESS_ID")
        if not 0 <= process_id < num_processes <= MAX_PROCESSES:
            raise ValueError(
                f"--coordinator requires --num_processes (now {num_processes}) and a --process_id "
                f"from 0 to one less (now {process_id})"
            )
    elif distributed or int(os.environ.get("SLURM_STEP_NUM_TASKS", 1)) > 1:
        coordinator, num_processes, process_id, devices = _detect_cluster(join_seconds)
    else:
        return
    host, _ = roll_call.split(coordinator)
    roll_call.wait_for_processes(coordinator, num_processes, process_id, join_seconds)
    local = coordinator if roll_call.is_local(host) else None  # else JAX listens on all addresses
    jax.distributed.initialize(
        coordinator, num_processes, process_id, devices, coordinator_bind_address=local
    )


def _detect_cluster(join_seconds: int) -> tuple[str, int, int, Sequence[int] | None]:
    """(coordinator, number of processes, this process's id, its devices) on a TPU pod or SLURM.

    `jax.distributed.initialize()` detects them with this private function of JAX; there is no
    public one. Its signature is the same in jax 0.9.0 to 0.10.2; it was run with 0.10.2.
    """
    from jax._src import clusters

    # A SLURM task has one GPU unless JAX_LOCAL_DEVICE_IDS lists several.
    listed = os.environ.get("JAX_LOCAL_DEVICE_IDS", "")
    if not re.fullmatch(r"(\d+(,\d+)*)?", listed, re.ASCII):
        raise UsageError(f"JAX_LOCAL_DEVICE_IDS is {listed!r}; it must be numbers, as in 0,1")
    coordinator, num_processes, process_id, devices = (
        clusters.ClusterEnv.auto_detect_unset_distributed_params(
            coordinator_address=None,
            num_processes=None,
            process_id=None,
            local_device_ids=[int(i) for i in listed.split(",")] if listed else None,
            cluster_detection_method=None,
            initialization_timeout=join_seconds,
        )
    )
    if coordinator is None or num_processes is None or process_id is None:
        raise ValueError("--distributed is set, but this is neither a TPU pod nor a SLURM step")
    return coordinator, num_processes, process_id, devices


def is_first() -> bool:
    """Whether this is process 0, which writes what is written once: messages, metrics, run.json."""
    return jax.process_index() == 0


def broadcast_from_process_0(value: float) -> float:
    """Process 0's `value`, on every process: for decisions that must agree."""
    if jax.process_count() == 1:
        return value
    return float(multihost_utils.broadcast_one_to_all(np.float64(value)))


def smallest_of_all(value: float) -> float:
    """The least of all processes' values, on every process."""
    if jax.process_count() == 1:
        return value
    return float(np.min(multihost_utils.process_allgather(np.float64(value))))


def barrier(name: str) -> None:
    """Returns when every process has reached it; a `Watchdog` bounds the wait."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)


@contextlib.contextmanager
def hold_lock(output: str) -> Iterator[None]:
    """Process 0 holds the lock of `output`, for all.

    Raises:
      OSError: another run holds it; in every process.
    """
    with contextlib.ExitStack() as stack:
        failure = None
        if is_first():
            try:
                stack.enter_context(locks.hold(output))
            except (OSError, *paths.outages()) as error:
                failure = error
        if broadcast_from_process_0(bool(failure)):
            raise failure or OSError(f"process 0 could not lock {output}; see its message")
        yield


class Watchdog:
    """Ends the process, with a stack dump of every thread, when not reset for `seconds`.

    Collectives have no time-out: when one host hangs, all others wait for it. JAX's heartbeats
    detect hosts that died, but not hosts that hang.

    The process dies of SIGALRM, which the kernel delivers however stuck it is. The scripts in
    launch/ treat that as an interruption and retry, unlike exit codes of the command itself.
    """

    def __init__(self, seconds: int):
        self.seconds = seconds if jax.process_count() > 1 else 0
        if self.seconds:
            faulthandler.register(signal.SIGALRM, chain=True)  # dump, then the default action

    def __enter__(self) -> "Watchdog":
        self.reset()
        return self

    def __exit__(self, *_) -> None:
        signal.alarm(0)

    def reset(self) -> None:
        """Restarts the countdown."""
        if self.seconds:
            signal.alarm(self.seconds)


class Trace:
    """Records device activity into `folder`, for TensorBoard's profiler.

    The profiler writes to local disks only; files for a bucket are uploaded at the end.
    """

    def __init__(self, folder: epath.Path):
        self._folder = folder
        self._local = str(folder)
        self.running = False

    def start(self) -> None:
        """Starts recording."""
        if paths.in_bucket(self._folder):
            self._local = tempfile.mkdtemp(prefix="profile-")
        jax.profiler.start_trace(self._local)
        self.running = True

    def stop(self) -> None:
        """Stops recording and writes the files."""
        jax.profiler.stop_trace()
        self.running = False
        if paths.in_bucket(self._folder):
            for file in filter(Path.is_file, Path(self._local).rglob("*")):
                target = self._folder / file.relative_to(self._local)
                target.write_bytes(file.read_bytes())
            shutil.rmtree(self._local)


def use_compilation_cache(workdir: str) -> None:
    """Caches compiled programs in ~/.cache/alpacare-jax, or JAX_COMPILATION_CACHE_DIR if set.

    Beside a workdir in a bucket, in `jax-cache`: of several processes only the first writes, so
    the others would never find a program on their own disks, and a preempted VM loses its disk.
    """
    if jax.config.jax_compilation_cache_dir is None:  # pyright: ignore[reportAttributeAccessIssue]
        home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
        folder = str(Path(home) / "alpacare-jax")
        if paths.in_bucket(workdir):
            folder = f"{workdir.rstrip('/').rpartition('/')[0]}/jax-cache"
            # XLA's own caches, for GPUs, are on local disks only.
            jax.config.update("jax_persistent_cache_enable_xla_caches", "none")
        else:
            with contextlib.suppress(OSError):
                Path(folder).mkdir(parents=True, exist_ok=True)
            if not os.access(folder, os.W_OK):
                log(
                    f"{folder} cannot be written, so every start compiles anew; set "
                    "JAX_COMPILATION_CACHE_DIR to a folder that can"
                )
                return
        jax.config.update("jax_compilation_cache_dir", folder)


def seconds_since_start() -> float:
    """The age of this process, imports included (Linux)."""
    started = int(Path("/proc/self/stat").read_text().rsplit(")", 1)[1].split()[19])
    uptime = float(Path("/proc/uptime").read_text().split()[0])
    return uptime - started / os.sysconf("SC_CLK_TCK")
