"""The server that scripts start: its port, its end, and its errors."""

import signal
import socket
import subprocess
import sys

import httpx
import pytest

from launch.lib import server
from tests.conftest import COMPILES_QUICKLY, LIMIT, REPOSITORY

FLAGS = ("--slots=1", "--max_length=32", "--name=tiny")


@pytest.fixture
def on_one_device(monkeypatch):
    for name, value in (COMPILES_QUICKLY | {"JAX_NUM_CPU_DEVICES": "1"}).items():
        monkeypatch.setenv(name, value)


def answers(base_url: str) -> bool:
    try:
        return httpx.get(f"{base_url}/models", timeout=LIMIT).json()["data"][0]["id"] == "tiny"
    except httpx.TransportError:
        return False


def test_the_port_is_the_same_again_unless_it_is_taken(tiny_model, tmp_path, on_one_device):
    flags = (f"--checkpoint={tiny_model}", *FLAGS)
    with server.serving(tmp_path, *flags) as first:
        assert answers(first)
        number = (tmp_path / "port").read_text()
        with server.serving(tmp_path, *flags) as second:
            assert answers(second)
            assert second != first
    assert not answers(first)
    (tmp_path / "port").write_text(number)
    with pytest.raises(KeyboardInterrupt), server.serving(tmp_path, *flags) as again:
        assert again == first
        raise KeyboardInterrupt
    assert not answers(again)


def test_a_server_that_cannot_start(tmp_path):
    with (
        pytest.raises(ChildProcessError, match=r"the server ended: .*no-such-model.*\(its log is "),
        server.serving(tmp_path, f"--checkpoint={tmp_path / 'no-such-model'}"),
    ):
        pass


def test_processes_end_with_the_one_that_started_them(tmp_path):
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        port = listener.getsockname()[1]
        child = f"import socket; socket.create_connection(('127.0.0.1', {port})).recv(1)"
        parent = (
            "import subprocess, sys, time; from launch.lib import server; "
            f"subprocess.Popen(server.tied([sys.executable, '-c', {child!r}])); time.sleep({LIMIT})"
        )
        process = subprocess.Popen([sys.executable, "-c", parent], cwd=REPOSITORY)
        try:
            listener.settimeout(LIMIT)
            connection, _ = listener.accept()
            process.send_signal(signal.SIGKILL)
            connection.settimeout(LIMIT)
            assert connection.recv(1) == b""  # its system closes it
            connection.close()
        finally:
            process.kill()
            process.wait()
