"""The roll call: the processes of a run meet before JAX connects them, and name who is missing.

JAX ends a process that waited in vain with a stack dump that names nobody. So all meet here first,
on the coordinator's port: no other one has to be open. Process 0 listens:

    process 0    NONCE
    process i    ID COUNT NONCE DIGEST
    process 0    {"missing": [...]} DIGEST        once all have arrived, or the time is over

A digest is the HMAC of the line, and of the other side's nonce, under the run's token, which the
launchers put into ALPACARE_RUN_TOKEN. Who does not know it is a stranger, to either side.
"""

import contextlib
import hashlib
import hmac
import ipaddress
import json
import os
import re
import secrets
import socket
import threading
import time

GREETING_SECONDS = 5.0
"""A connection that has not reported by then is closed."""

MAX_LINE = 2**16

GRACE_SECONDS = 10.0
"""Longer than process 0 the others wait, whose clocks may have started earlier."""


def run_token() -> str:
    """The secret of a run; in SLURM without a launcher of ours, its job and step."""
    slurm = ".".join(os.environ.get(f"SLURM_{name}_ID", "") for name in ("JOB", "STEP"))
    return os.environ.get("ALPACARE_RUN_TOKEN") or slurm


def split(coordinator: str) -> tuple[str, int]:
    """Host and port of HOST:PORT; an IPv6 address is in brackets.

    >>> split("[::1]:8476"), split("node-1:80")
    (('::1', 8476), ('node-1', 80))

    Raises:
      ValueError: it has another form.
    """
    form = r"(?:\[([0-9a-fA-F:.%]+)\]|([^\[\]:]+)):(\d{1,9})"
    found = re.fullmatch(form, coordinator, re.ASCII)
    if not found or not 0 < int(found[3]) < 2**16:
        raise ValueError(
            f"--coordinator is {coordinator!r}; it must be HOST:PORT, the port below 65,536 "
            "and an IPv6 address in brackets: [::1]:8476"
        )
    return found[1] or found[2], int(found[3])


def is_local(host: str) -> bool:
    """Whether a host name or address means this machine only, as 127.0.0.1 does."""
    with contextlib.suppress(OSError):
        found = {str(info[4][0]).partition("%")[0] for info in socket.getaddrinfo(host, None)}
        return all(ipaddress.ip_address(address).is_loopback for address in found)
    return False


def wait_for_processes(
    coordinator: str, num_processes: int, process_id: int, seconds: float
) -> None:
    """Returns, at about the same time in every process, once all have arrived.

    Raises:
      ConnectionError: not all arrived in time, every process that did reports the missing ones; or
        one was started with another number of processes.
    """
    host, port = split(coordinator)
    deadline = time.monotonic() + seconds
    if process_id:
        outcome = _check_in(host, port, process_id, num_processes, deadline + GRACE_SECONDS)
    else:
        outcome = RollCall(num_processes).collect(host, port, deadline)
    if outcome is None:
        raise ConnectionError(
            f"process 0 did not answer at {coordinator} within {seconds:.0f} s; check that it is "
            "running, that this host can reach its port, and that both have the same "
            "ALPACARE_RUN_TOKEN"
        )
    if "error" in outcome:
        raise ConnectionError(outcome["error"])
    if missing := outcome["missing"]:
        hosts = os.environ.get("TPU_WORKER_HOSTNAMES", "").split(",")
        complete = len(hosts) == num_processes  # with several slices, each lists its own hosts only
        names = [f"{i} ({hosts[i]})" if complete and hosts[i] else str(i) for i in missing]
        raise ConnectionError(
            f"{len(missing)} of {num_processes} processes had not arrived after {seconds:.0f} s: "
            f"{', '.join(names)}; check their logs, start all hosts together, or raise "
            "--join_seconds"
        )


def _digest(*words: str) -> str:
    return hmac.new(run_token().encode(), " ".join(words).encode(), hashlib.sha256).hexdigest()


def _read_line(connection: socket.socket, deadline: float) -> str:
    """A line, by the deadline however slowly it comes.

    Raises:
      OSError, ValueError: it is late, too long, cut, or not ASCII.
    """
    line = b""
    while not line.endswith(b"\n"):
        left = deadline - time.monotonic()
        if left <= 0 or len(line) > MAX_LINE:
            raise TimeoutError
        connection.settimeout(left)
        if not (more := connection.recv(1024)):
            raise ConnectionResetError
        line += more
    return line.decode("ascii").strip()


class RollCall:
    """What process 0 knows of the others."""

    def __init__(self, num_processes: int):
        self._num_processes = num_processes
        self._arrived: dict[int, tuple[socket.socket, str]] = {}  # with its nonce
        self._error = ""
        self._changed = threading.Condition()

    def collect(self, host: str, port: int, deadline: float) -> dict:
        """Waits for the others, then sends each the outcome, and returns it.

        It listens on loopback only where the coordinator's address is local.
        """
        others = range(1, self._num_processes)
        with self._listen(host, port) as server, contextlib.ExitStack() as stack:
            threading.Thread(target=self._accept, args=(server,), daemon=True).start()
            with self._changed:
                self._changed.wait_for(
                    lambda: self._error or self._arrived.keys() >= set(others),
                    max(0.0, deadline - time.monotonic()),
                )
                arrived = dict(self._arrived)
            outcome: dict = {"missing": [i for i in others if i not in arrived]}
            if self._error:
                outcome = {"error": self._error}
            text = json.dumps(outcome, separators=(",", ":"))
            for connection, nonce in arrived.values():
                stack.enter_context(connection)
                with contextlib.suppress(OSError):
                    connection.settimeout(GREETING_SECONDS)
                    connection.sendall(f"{text}\t{_digest(nonce, text)}\n".encode())
            with contextlib.suppress(OSError):
                server.shutdown(socket.SHUT_RDWR)  # ends the thread's accept; JAX needs the port
        return outcome

    def _listen(self, host: str, port: int) -> socket.socket:
        if is_local(host):
            family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
            return socket.create_server(address[:2], family=family)
        dual = socket.has_dualstack_ipv6()
        family = socket.AF_INET6 if dual else socket.AF_INET
        return socket.create_server(("", port), family=family, dualstack_ipv6=dual)

    def _accept(self, server: socket.socket) -> None:
        with contextlib.suppress(OSError):  # the server is closed at the end
            while True:
                connection, _ = server.accept()
                # One thread each: a slow stranger holds up nobody.
                threading.Thread(target=self._greet, args=(connection,), daemon=True).start()

    def _greet(self, connection: socket.socket) -> None:
        try:
            nonce = secrets.token_hex(16)
            connection.sendall(f"{nonce}\n".encode())
            line = _read_line(connection, time.monotonic() + GREETING_SECONDS)
            process, count, their_nonce, digest = line.split(" ")
            known = hmac.compare_digest(digest, _digest(nonce, process, count, their_nonce))
            process_id, num_processes = int(process), int(count)
        except (OSError, ValueError):
            known, process_id, num_processes, their_nonce = False, 0, 0, ""
        with self._changed:
            if known and num_processes != self._num_processes:
                self._error = (
                    f"process {process_id} was started as one of {num_processes} processes, "
                    f"process 0 as one of {self._num_processes}; start all with the same number"
                )
            if not known or process_id < 1:
                connection.close()
                return
            if before := self._arrived.get(process_id):
                before[0].close()  # a restarted process connects again
            self._arrived[process_id] = connection, their_nonce
            self._changed.notify_all()


def _check_in(
    host: str, port: int, process_id: int, num_processes: int, deadline: float
) -> dict | None:
    """Any other process: reports to process 0 and receives the outcome; None: it never came."""
    process = [str(process_id), str(num_processes)]
    while (left := deadline - time.monotonic()) > 0:
        with (
            contextlib.suppress(OSError, ValueError),  # not started yet, restarted, or a stranger
            socket.create_connection((host, port), timeout=left) as connection,
        ):
            theirs = _read_line(connection, min(deadline, time.monotonic() + GREETING_SECONDS))
            nonce = secrets.token_hex(16)
            line = " ".join([*process, nonce, _digest(theirs, *process, nonce)])
            connection.sendall(f"{line}\n".encode())
            text, digest = _read_line(connection, deadline).split("\t")
            if hmac.compare_digest(digest, _digest(nonce, text)):
                return json.loads(text)
        time.sleep(0.2)
    return None
