"""A server, keys and no long waits, for all tests of datagen.chat."""

import importlib

import pytest

from datagen.chat.config import API_KEY_VARIABLES
from tests.support.batch_server import BatchServer
from tests.support.chat_runs import quicken


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
