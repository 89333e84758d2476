"""Batches over several runs and kills: nothing is sent twice, nothing is lost."""

import os
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading

import pytest

from datagen.chat.batch import log as batch_log
from datagen.chat.client import Client, run_until_done
from datagen.chat.errors import RunStoppedError
from datagen.chat.store import AnswerStore
from tests.conftest import REPOSITORY
from tests.support.batch_server import BatchServer, others_batch
from tests.support.chat_runs import (
    HALF,
    answer_texts,
    ask,
    batched,
    left_at_the_provider,
    make_config,
    nothing_open,
    quicken,
    requests,
    rows,
    texts,
)

pytestmark = pytest.mark.filterwarnings("error::pytest.PytestUnraisableExceptionWarning")


def image(path, folder):
    """What a kill at this moment would leave on the disk."""
    folder.mkdir()
    for file in path.parent.glob("s*"):
        if not file.name.endswith(".lock"):
            shutil.copy(file, folder / file.name)
    return folder / "s"


MOMENTS = ["before it is sent", "no reply", "made", "ended", "partly collected", "collected"]


@pytest.mark.parametrize("moment", MOMENTS)
def test_after_a_kill_at_any_moment_nothing_is_sent_again(
    server, tmp_path, provider, moment, monkeypatch
):
    path = tmp_path / "s"
    left = tmp_path / "left"
    monkeypatch.setattr(batch_log, "CHUNK_SIZE", 10)

    def kill():
        if not left.exists():
            image(path, left)

    def on_server(event):
        stages = {"submission": "no reply", "look": "made", "download": "ended"}
        if stages[event] == moment:
            kill()

    server.moment = on_server
    for name, stage in (
        ("record", MOMENTS[0]),
        ("_store_replies", MOMENTS[4]),
        ("close", MOMENTS[5]),
    ):
        if stage == moment:
            real = getattr(batch_log.BatchLog, name)

            async def around(self, *given, real=real):
                if real.__name__ != "_store_replies":
                    kill()
                result = await real(self, *given)
                kill()
                return result

            monkeypatch.setattr(batch_log.BatchLog, name, around)
    ask(batched(server, provider), path, requests(40))
    assert len(server.batches) == 1 and left.exists()
    monkeypatch.undo()
    quicken(monkeypatch)
    if moment == MOMENTS[0]:
        server.batches.clear()
        server.submitted.clear()
    reports = []
    got, client, error = ask(
        batched(server, provider), left / "s", requests(44), report=reports.append
    )
    assert error is None and answer_texts(got) == texts(44)
    assert len(server.batches) == 2 - (moment == MOMENTS[0])
    assert set(server.submitted.values()) == {1}
    assert client.total.usd == pytest.approx(44 * HALF), "each is charged once"
    assert nothing_open(left / "s")
    assert any("earlier run" in line for line in reports) == (moment != MOMENTS[0])


KILLED = """
import sys
from datagen.chat.batch import batches
from datagen.chat.config import ChatConfig
from datagen.chat.client import Client, run_until_done
from datagen.chat.store import AnswerStore
sys.path.insert(0, ".")
from tests.support.chat_runs import CONFIG, requests
from pathlib import Path
batches.QUIET_SECONDS = 0.02
changes = {"provider": sys.argv[1], "base_url": sys.argv[2], "batch": True, "poll_seconds": 0.01}

async def work():
    async for tag, outcome in client.stream(requests(300)):
        pass

with AnswerStore(Path(sys.argv[3])) as store:
    client = Client(ChatConfig(**CONFIG | changes), store)
    run_until_done(client, work)
"""


@pytest.mark.slow
def test_killed_before_the_reply_to_a_submission(tmp_path):
    server = BatchServer()
    server.submissions, server.stall = ["silent"], 60.0
    command = [sys.executable, "-c", KILLED, "anthropic", server.url, str(tmp_path / "s")]
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    process = subprocess.Popen(command, cwd=REPOSITORY, env=environment)
    assert server.made.wait(60)
    process.kill()
    process.wait()
    left = rows(tmp_path / "s", "SELECT id, requests FROM batches WHERE state = 'open'")
    assert left == [(None, 300)]
    got, client, _ = ask(batched(server, "anthropic"), tmp_path / "s", requests(300))
    server.close()
    assert answer_texts(got) == texts(300)
    assert len(server.batches) == 1 and set(server.submitted.values()) == {1}
    assert client.total.usd == pytest.approx(300 * HALF)


def test_ctrl_c_says_that_the_batch_goes_on(server, tmp_path, provider):
    server.held, reports = True, []

    async def work():
        with pytest.raises(RunStoppedError, match=r"\(1 with 5 requests\); the next run"):
            async for _ in client.stream(requests(5)):
                pass

    def stop():
        server.made.wait(10)
        os.kill(os.getpid(), signal.SIGTERM)

    with AnswerStore(tmp_path / "s") as store:
        client = Client(batched(server, provider), store, report=reports.append)
        threading.Thread(target=stop).start()
        run_until_done(client, work)
    assert rows(tmp_path / "s", "SELECT id FROM batches") == [("batch-1",)], "its id is stored"
    assert not any("waiting for the replies" in line for line in reports)
    server.release()
    got, *_ = ask(batched(server, provider), tmp_path / "s", requests(5))
    assert answer_texts(got) == texts(5) and set(server.submitted.values()) == {1}


@pytest.mark.parametrize("batch", [True, False])
def test_what_is_in_an_open_batch_is_sent_in_no_other_way(server, tmp_path, provider, batch):
    left_at_the_provider(batched(server, provider), server, tmp_path / "s", 5)
    threading.Timer(0.3, server.release).start()
    config = batched(server, provider, batch=batch)
    got, client, error = ask(config, tmp_path / "s", requests(8))
    assert error is None and answer_texts(got) == texts(8)
    assert set(server.submitted.values()) == {1} and len(server.submitted) == (8 if batch else 5)
    assert len(server.bodies) == (0 if batch else 3)
    assert client.total.usd == pytest.approx((8 if batch else 11) * HALF)


def test_a_run_that_asks_something_else_collects_it_too(server, tmp_path, provider):
    left_at_the_provider(batched(server, provider), server, tmp_path / "s", 5)
    server.release()
    config = batched(
        server, provider, batch=False, model="another", price_input=9.0, price_output=9.0
    )
    ask(config, tmp_path / "s", [])
    assert rows(tmp_path / "s", "SELECT model, usd FROM charges") == 5 * [
        ("stand-in", pytest.approx(HALF))
    ]
    offline = make_config(server, provider=provider, offline=True)
    got, *_ = ask(offline, tmp_path / "s", requests(5))
    assert answer_texts(got) == texts(5)


def test_another_spelling_of_the_address_collects_it_too(server, tmp_path):
    left_at_the_provider(batched(server), server, tmp_path / "s", 5)
    server.release()
    slashed = batched(None, base_url=f"{server.url}/v1/".replace("127.0.0.1", "localhost"))
    got, client, _ = ask(slashed, tmp_path / "s", requests(5))
    assert answer_texts(got) == texts(5) and nothing_open(tmp_path / "s")
    assert len(rows(tmp_path / "s", "SELECT name FROM batches")) == 1
    assert client.total.usd == pytest.approx(5 * HALF)


def test_a_batch_at_another_provider_is_left_alone(server, tmp_path):
    left_at_the_provider(batched(server, "openai"), server, tmp_path / "s", 5)
    reports = []
    most = rows(tmp_path / "s", "SELECT usd FROM batches")[0][0]
    config = make_config(server, provider="anthropic", budget_usd=most + 0.01)
    got, client, _ = ask(config, tmp_path / "s", requests(2), report=reports.append)
    assert answer_texts(got) == texts(2) and any("is left open" in line for line in reports)
    assert client.budget.caps[0] == pytest.approx(0.01)
    server.release()
    got, *_ = ask(batched(server, "openai"), tmp_path / "s", requests(5))
    assert answer_texts(got) == texts(5) and len(server.batches) == 1


def test_nothing_is_sent_again_before_it_is_certain_that_it_did_not_arrive(server, tmp_path):
    path = tmp_path / "s"
    server.moment = lambda event: event == "submission" and image(path, tmp_path / "left")
    server.submissions = ["400"]
    ask(batched(server, "anthropic"), path, requests(5))
    server.moment = lambda event: None
    server.batches["batch-1"] = others_batch(3) | {"lines": others_batch(5)["lines"]}
    server.held, made_at = True, []
    release = threading.Timer(0.4, lambda: (made_at.append(len(server.batches)), server.release()))
    release.start()
    reports = []
    got, *_ = ask(
        batched(server, "anthropic"), tmp_path / "left" / "s", requests(5), report=reports.append
    )
    assert made_at == [1], "batch-1 of somebody else may be ours until it has ended"
    assert answer_texts(got) == texts(5) and len(server.batches) == 2
    assert sum("may be batch-1" in line for line in reports) == 1


def test_results_that_the_provider_has_deleted_are_told_and_counted(server, tmp_path, provider):
    left_at_the_provider(batched(server, provider), server, tmp_path / "s", 5)
    server.release()
    if provider == "anthropic":
        server.batches["batch-1"]["archived"] = "2026-01-01T00:00:00Z"
    else:
        server._write_files(server.batches["batch-1"])
        server.files.clear()
    reports = []
    most = rows(tmp_path / "s", "SELECT usd FROM batches")[0][0]
    got, client, _ = ask(
        batched(server, provider), tmp_path / "s", requests(5), report=reports.append
    )
    assert answer_texts(got) == texts(5) and any("were deleted" in line for line in reports)
    assert client.total.usd == pytest.approx(5 * HALF + most)


def test_a_batch_that_is_not_there_is_told_with_the_remedy(server, tmp_path, provider):
    left_at_the_provider(batched(server, provider), server, tmp_path / "s", 5)
    server.batches.clear()
    with pytest.raises(ValueError, match="DELETE FROM batches") as error:
        ask(batched(server, provider), tmp_path / "s", requests(5))
    (command,) = re.findall(r'"(DELETE.*)"', str(error.value))
    with sqlite3.connect(tmp_path / "s") as connection:
        connection.executescript(command)
    server.held = False
    got, *_ = ask(batched(server, provider), tmp_path / "s", requests(5))
    assert answer_texts(got) == texts(5)
