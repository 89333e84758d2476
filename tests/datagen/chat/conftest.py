"""A server, keys and no long waits, for all tests of datagen.chat."""

import importlib
import itertools
import os
import subprocess
import sys

import pytest

from datagen.chat.config import API_KEY_VARIABLES
from tests.conftest import REPOSITORY
from tests.support.batch_server import BatchServer
from tests.support.chat_lives import Life
from tests.support.chat_runs import make_config, quicken


@pytest.fixture
def server():
    server = BatchServer()
    yield server
    server.close()


@pytest.fixture(params=["openai", "anthropic"])
def provider(request):
    return request.param


@pytest.fixture(autouse=True, scope="session")
def imported():
    """The SDKs, so that no test waits for one while a timer runs."""
    for name in API_KEY_VARIABLES:
        importlib.import_module(name)


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    quicken(monkeypatch)


@pytest.fixture(scope="session")
def parent():
    command = [sys.executable, "-m", "tests.support.chat_lives"]
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    pipe = subprocess.PIPE
    with subprocess.Popen(
        command, cwd=REPOSITORY, env=environment, stdin=pipe, stdout=pipe, text=True
    ) as process:
        yield process
        process.stdin.close()


@pytest.fixture
def new_life(parent, tmp_path):
    numbers = itertools.count()

    def start(server, **changes):
        config = make_config(server, concurrency=32, timeout_seconds=1.0, **changes)
        return Life(parent, config, tmp_path / "s", tmp_path / f"fifo {next(numbers)}")

    return start
