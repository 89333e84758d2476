"""The roll call: all meet, who is missing is named, and strangers are not believed."""

import contextlib
import doctest
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from alpacare_jax.distributed import roll_call as lib
from tests.conftest import LIMIT


@pytest.fixture(autouse=True)
def token(monkeypatch):
    monkeypatch.setenv("ALPACARE_RUN_TOKEN", "of the run")


def free_port(host: str = "127.0.0.1") -> int:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        with socket.create_server((host, 0), family=family) as server:
            return server.getsockname()[1]
    except OSError:
        pytest.skip(f"this machine has no {host}")


def call_roll(
    present: list[int], count: int, seconds: float, port: int, host: str = "127.0.0.1"
) -> dict[int, str]:
    """What each present process gets: "" or the error's text."""
    results = {}

    def call(process_id: int) -> None:
        try:
            lib.wait_for_processes(f"{host}:{port}", count, process_id, seconds)
            results[process_id] = ""
        except ConnectionError as error:
            results[process_id] = str(error)

    threads = [threading.Thread(target=call, args=(i,)) for i in present]
    for thread in threads:
        thread.start()
        time.sleep(0.05)  # they never come at once
    for thread in threads:
        thread.join()
    return results


def connect(port: int) -> socket.socket:
    """A connection to process 0, once it listens."""
    while True:
        with contextlib.suppress(ConnectionRefusedError):
            return socket.create_connection(("127.0.0.1", port))
        time.sleep(0.01)


def test_the_examples_in_the_docstrings_are_true():
    assert doctest.testmod(lib).failed == 0


@pytest.mark.parametrize("order", [[0, 1, 2], [2, 1, 0]], ids=["first first", "first last"])
@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "[::1]"])
def test_all_arrive(order, host):
    port = free_port(host.strip("[]"))
    assert call_roll(order, 3, LIMIT, port, host) == {0: "", 1: "", 2: ""}


@pytest.mark.parametrize(
    ("host", "local"),
    [("127.0.0.1", True), ("localhost", True), ("::1", True), ("192.0.2.1", False)]
    + [("2001:db8::1", False), ("0.0.0.0", False), ("no.such.host.invalid", False)],
)
def test_what_is_local(host, local):
    assert lib.is_local(host) == local


@pytest.mark.parametrize(("local", "host"), [(True, "127.0.0.1"), (False, "192.0.2.1")])
def test_a_local_coordinator_listens_on_loopback_only(local, host):
    with lib.RollCall(2)._listen(host, free_port()) as server:
        address = server.getsockname()[0]
        assert (address == "127.0.0.1") == local
        assert local or address in ("::", "0.0.0.0")


def test_those_who_came_are_told_who_did_not(monkeypatch):
    monkeypatch.setenv("TPU_WORKER_HOSTNAMES", "t-0,t-1,t-2,t-3")
    results = call_roll([0, 2], 4, 3, free_port())
    assert results.keys() == {0, 2}
    for text in results.values():
        assert text.startswith("2 of 4 processes had not arrived after 3 s: 1 (t-1), 3 (t-3);")
        assert "raise --join_seconds" in text


def test_a_first_process_that_never_comes(monkeypatch):
    monkeypatch.setattr(lib, "GRACE_SECONDS", 0.0)
    (text,) = call_roll([1], 2, 1, port := free_port()).values()
    assert text.startswith(f"process 0 did not answer at 127.0.0.1:{port} within 1 s; check")


STRANGERS = {
    "silent": b"",
    "http": b"GET / HTTP/1.1\r\n\r\n",
    "the former protocol": b"1\n",
    "another token": b"1 3 00 " + b"0" * 64 + b"\n",
    "binary": bytes(range(256)) * 400,
    "endless": b"1" * 100_000,
}


@pytest.mark.parametrize("words", STRANGERS.values(), ids=STRANGERS)
def test_a_stranger_is_not_counted(words):
    port = free_port()
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(lib.wait_for_processes, f"127.0.0.1:{port}", 3, 0, LIMIT)
        with connect(port) as stranger, contextlib.suppress(OSError):
            stranger.sendall(words)
        assert call_roll([1, 2], 3, LIMIT, port) == {1: "", 2: ""}
        assert first.result() is None


def test_slow_strangers_hold_up_nobody(monkeypatch):
    monkeypatch.setattr(lib, "GREETING_SECONDS", LIMIT)  # none of them is closed for being slow
    port = free_port()
    with ThreadPoolExecutor(1) as pool, contextlib.ExitStack() as stack:
        first = pool.submit(lib.wait_for_processes, f"127.0.0.1:{port}", 3, 0, LIMIT)
        for _ in range(50):
            stack.enter_context(connect(port)).sendall(b"1 3 ")
        assert call_roll([1, 2], 3, LIMIT, port) == {1: "", 2: ""}
        assert first.result() is None


def test_a_slow_connection_is_closed(monkeypatch):
    """Each byte is in time, the line is not."""
    monkeypatch.setattr(lib, "GREETING_SECONDS", 0.3)
    port = free_port()
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(lib.wait_for_processes, f"127.0.0.1:{port}", 2, 0, LIMIT)
        with connect(port) as slow, pytest.raises(OSError):
            while True:
                slow.sendall(b"1")
                time.sleep(0.02)
        assert call_roll([1], 2, LIMIT, port) == {1: ""}
        assert first.result() is None


def test_a_process_of_another_run_is_not_counted(monkeypatch):
    port = free_port()
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(lib.wait_for_processes, f"127.0.0.1:{port}", 2, 0, LIMIT)
        with connect(port) as other:
            nonce = other.makefile().readline().strip()
            with monkeypatch.context() as patch:
                patch.setenv("ALPACARE_RUN_TOKEN", "of another run")
                digest = lib._digest(nonce, "1", "2", "00")
            other.sendall(f"1 2 00 {digest}\n".encode())
            assert other.makefile().readline() == "", "it is hung up on"
        assert call_roll([1], 2, LIMIT, port) == {1: ""}
        assert first.result() is None


def test_a_stranger_in_the_place_of_process_0_is_not_believed(monkeypatch):
    monkeypatch.setattr(lib, "GRACE_SECONDS", 0.0)

    def answer(server: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = server.accept()
                with connection:
                    connection.sendall(b"00\n")
                    connection.makefile().readline()
                    connection.sendall(b'{"missing":[]}\t' + b"0" * 64 + b"\n")

    with socket.create_server(("127.0.0.1", 0)) as server:
        threading.Thread(target=answer, args=(server,), daemon=True).start()
        (text,) = call_roll([1], 2, 1, server.getsockname()[1]).values()
        server.shutdown(socket.SHUT_RDWR)
    assert text.startswith("process 0 did not answer") and "ALPACARE_RUN_TOKEN" in text


def test_a_process_that_starts_again_counts_once():
    port = free_port()
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(lib.wait_for_processes, f"127.0.0.1:{port}", 3, 0, LIMIT)
        with connect(port) as crashes:
            nonce = crashes.makefile().readline().strip()
            crashes.sendall(f"1 3 00 {lib._digest(nonce, '1', '3', '00')}\n".encode())
        assert call_roll([1, 2], 3, LIMIT, port) == {1: "", 2: ""}
        assert first.result() is None


def test_processes_that_count_differently_all_end():
    results, port = {}, free_port()

    def call(process_id: int, count: int) -> None:
        with pytest.raises(ConnectionError) as raised:
            lib.wait_for_processes(f"127.0.0.1:{port}", count, process_id, LIMIT)
        results[process_id] = str(raised.value)

    threads = [threading.Thread(target=call, args=who) for who in ((0, 3), (1, 4))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    said = "process 1 was started as one of 4 processes, process 0 as one of 3; start all with "
    assert results[0] == results[1] == f"{said}the same number"


def test_the_token_is_the_launchers_or_the_job_of_slurm(monkeypatch):
    monkeypatch.setenv("SLURM_JOB_ID", "4096")
    monkeypatch.setenv("SLURM_STEP_ID", "2")
    assert lib.run_token() == "of the run"
    monkeypatch.delenv("ALPACARE_RUN_TOKEN")
    assert lib.run_token() == "4096.2"
