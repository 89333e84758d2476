"""What a command runs on: the processes that make up one run, and the compilation cache."""

import faulthandler
import os
import re
from collections.abc import Mapping
from pathlib import Path

import jax
import numpy as np
from absl import flags
from jax.experimental import multihost_utils

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
    if coordinator:
        if num_processes < 1 or not 0 <= process_id < num_processes:
            raise ValueError(
                f"--coordinator needs --num_processes (now {num_processes}) and a --process_id "
                f"from 0 to one less (now {process_id})"
            )
        who = {
            "coordinator_address": coordinator,
            "num_processes": num_processes,
            "process_id": process_id,
        }
    elif distributed or int(os.environ.get("SLURM_STEP_NUM_TASKS", 1)) > 1:
        who = {}  # JAX asks the TPU's metadata server or SLURM's variables
    else:
        return
    try:
        jax.distributed.initialize(**who, initialization_timeout=join_seconds)
    except (RuntimeError, ValueError) as error:  # what JAX raises for any failure to connect
        raise ConnectionError(_why_not_joined(str(error), join_seconds, os.environ)) from error


def _why_not_joined(said: str, join_seconds: int, env: Mapping[str, str]) -> str:
    """One line from the coordination service's long one; hosts are named where they are known."""
    missing = sorted(
        {int(task) for task in re.findall(r"task:(\d+)", said.split("timed out task")[-1])}
    )
    if "DEADLINE_EXCEEDED" not in said:
        return f"cannot join the other processes: {said}"
    if "timed out task" not in said or not missing:
        return (
            f"the coordinator did not answer in {join_seconds} s; is process 0 running, and may "
            "this host reach its port?"
        )
    hosts = env.get("TPU_WORKER_HOSTNAMES", "").split(",")
    names = [f"{i} ({hosts[i]})" if i < len(hosts) and hosts[i] else str(i) for i in missing]
    return (
        f"after {join_seconds} s these processes had not arrived: {', '.join(names)}; look at "
        "their logs, start all hosts together, or raise --join_seconds"
    )


def is_first() -> bool:
    """Whether this process writes what a run writes once: lines, metrics, run.json."""
    return jax.process_index() == 0


def first_says(value: float) -> float:
    """Process 0's `value`, on every process: what all must decide alike."""
    if jax.process_count() == 1:
        return value
    return float(multihost_utils.broadcast_one_to_all(np.float64(value)))


def wait_for_all(what: str) -> None:
    """Returns when every process has come here; a `Watchdog` bounds the wait."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(what)


class Watchdog:
    """Ends the process, with the stack of every thread, when nothing happens for `seconds`.

    Collectives have no time-out of their own: where one host hangs, all others wait for it. A host
    that dies is noticed by JAX's heartbeats; one that lives and does nothing only by this.
    """

    def __init__(self, seconds: int):
        self.seconds = seconds if jax.process_count() > 1 else 0

    def __enter__(self) -> "Watchdog":
        self.alive()
        return self

    def __exit__(self, *_) -> None:
        faulthandler.cancel_dump_traceback_later()

    def alive(self) -> None:
        """Starts the time anew."""
        if self.seconds:
            faulthandler.dump_traceback_later(self.seconds, exit=True)


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
