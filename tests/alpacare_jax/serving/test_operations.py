"""Under load: many clients, slow readers, disconnects, a full queue, a failing engine, the end."""

import asyncio
import contextlib
import itertools
import json
import os
import signal
import socket
import subprocess
import sys
import threading
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import openai
import pytest

from alpacare_jax.checkpoints import adapters, checkpoint, export
from alpacare_jax.inference import loading
from alpacare_jax.inference.sampling import Sampling
from alpacare_jax.model import params
from alpacare_jax.model.llama import Llama
from alpacare_jax.model.lora import LoraConfig
from alpacare_jax.serving import server
from alpacare_jax.serving.choice import AnswerChoice
from alpacare_jax.serving.replies import ResponseForm
from alpacare_jax.serving.served_model import ServedModel
from tests.conftest import LIMIT, WORDS
from tests.support.served import Connected, ServerProcess, ServerThread, answer_on, settings

pytestmark = pytest.mark.usefixtures("quickly_compiled")

CLIENTS = int(os.environ.get("ALPACARE_SERVE_CLIENTS", "20"))
"""200 once in a while."""

TOKENS = 30


def question(number: int) -> str:
    """Different for each number."""
    words = [WORDS[(number * step + step) % len(WORDS)] for step in range(1, 2 + number % 7)]
    return " ".join([*words, str(number)])


async def read(server: Connected, client: openai.AsyncOpenAI, number: int) -> str | None:
    """One client's answer; every fourth reads slowly, every fourth hangs up: None."""
    kind = ("plain", "slow", "gone", "whole")[number % 4]
    given = {"model": server.name, "temperature": 0, "max_tokens": TOKENS}
    messages = [{"role": "user", "content": question(number)}]
    if kind == "whole":
        found = await client.chat.completions.create(messages=messages, **given)
        return found.choices[0].message.content
    stream = await client.chat.completions.create(messages=messages, stream=True, **given)
    text, ended = "", False
    async for chunk in stream:
        text += chunk.choices[0].delta.content or ""
        ended = chunk.choices[0].finish_reason is not None
        if kind == "gone" and text:
            await stream.close()
            return None
        await asyncio.sleep(0.05 * (kind == "slow"))
    assert ended
    return text


async def read_all(server: Connected, count: int) -> list[str | None]:
    async with openai.AsyncOpenAI(
        base_url=f"{server.url}/v1", api_key=server.key or "none", max_retries=0, timeout=LIMIT
    ) as client:
        return await asyncio.gather(*(read(server, client, number) for number in range(count)))


def test_many_clients_get_the_answers_of_generate(served, generated):
    expected = [
        row["output"]
        for row in generated([question(i) for i in range(CLIENTS)], max_new_tokens=TOKENS)
    ]
    assert len(set(expected)) > CLIENTS / 2
    found = asyncio.run(read_all(served, CLIENTS))
    assert sum(text is None for text in found) == CLIENTS // 4
    for number, text in enumerate(found):
        assert text in (None, expected[number]), question(number)
    while served.get("/health").json()["running"]:  # of the clients that hung up
        pass


def test_the_end_waits_for_the_answers_under_way(source, engine, generated):
    """More of them than there are slots: those that wait are answered, too."""
    served = ServerThread(source, engine)
    expected = [row["output"] for row in generated([question(i) for i in range(10)])]
    begun, found = threading.Barrier(11), {}

    def ask(number: int) -> None:
        given = {"model": served.name, "temperature": 0, "max_tokens": 40, "stream": True}
        messages = [{"role": "user", "content": question(number)}]
        stream = served.client().chat.completions.create(messages=messages, **given)
        begun.wait(LIMIT)
        found[number] = "".join(chunk.choices[0].delta.content or "" for chunk in stream)

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(10)]
    for thread in threads:
        thread.start()
    begun.wait(LIMIT)
    served.stop()
    for thread in threads:
        thread.join()
    assert served.code == 0 and found == dict(enumerate(expected))
    with pytest.raises(openai.APIConnectionError):
        served.ask("why")


def test_a_signal_behind_the_last_answer_interrupts_nothing(source, engine, monkeypatch):
    found: list = []
    before = {n: signal.signal(n, found.append) for n in (signal.SIGTERM, signal.SIGINT)}

    shutdown = server.Server.shutdown

    async def interrupted(self, sockets=None) -> None:
        await shutdown(self, sockets)
        signal.raise_signal(signal.SIGINT)

    def terminate(_: server.Server) -> None:
        signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(server.Server, "shutdown", interrupted)
    monkeypatch.setattr(os, "_exit", found.append)
    model, config = ServedModel.of(source, ""), settings()
    try:
        listener = server.listen(config)
        assert asyncio.run(server.serve(config, model, engine, listener, terminate)) == 0
        assert callable(signal.getsignal(signal.SIGTERM)), "the default ends this process"
        signal.raise_signal(signal.SIGTERM)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    assert found == [0, 0]


def test_of_two_that_load_at_the_same_time_one_gets_the_port(source, engine):
    first, model = server.listen(settings()), ServedModel.of(source, "")
    config = settings(port=first.getsockname()[1])
    with first, server.listen(config) as second:
        first.listen()
        with pytest.raises(OSError, match="choose another --port"):
            asyncio.run(server.serve(config, model, engine, second))


def test_streams_go_on_while_log_probabilities_are_written(served, monkeypatch):
    """In other threads than the event loop's: those of a long prompt take seconds."""
    names: set[str] = set()

    def watched(kind: type, name: str) -> None:
        whole = getattr(kind, name)

        def watching(*arguments):
            names.add(threading.current_thread().name)
            return whole(*arguments)

        monkeypatch.setattr(kind, name, watching)

    watched(AnswerChoice, "_prompt_tokens")
    watched(ResponseForm, "_completion_scores")
    body = {"model": served.name, "prompt": "why", "echo": True, "logprobs": 2, "max_tokens": 2}
    for stream in (False, True):
        assert served.post("/v1/completions", body | {"stream": stream}).status_code == 200
    assert names and all(name.startswith("asyncio_") for name in names)


class Held:
    """Lets the engine's thread wait in its next step until it is let go."""

    def __init__(self, engine, monkeypatch):
        self.let_go, step = threading.Event(), engine.step

        def held():
            assert self.let_go.wait(LIMIT)
            return step()

        monkeypatch.setattr(engine, "step", held)


def test_a_full_queue_refuses_with_the_time_to_try_again(source, engine, monkeypatch):
    served = ServerThread(source, engine, max_queue=1)
    held = Held(engine, monkeypatch)
    body = {"model": served.name, "prompt": ["a"] * 5, "max_tokens": 2}
    first: list = []
    thread = threading.Thread(target=lambda: first.append(served.post("/v1/completions", body)))
    try:
        thread.start()
        while served.get("/health").json() != {"status": "ok", "running": 4, "waiting": 1}:
            pass
        refused = served.post("/v1/completions", body | {"prompt": "a"})
        assert refused.status_code == 429 and refused.json()["error"]["code"] == "queue_full"
        assert 1 <= int(refused.headers["retry-after"]) <= 60
        assert refused.headers["x-should-retry"] == "true"
        large = served.post("/v1/completions", body | {"n": 2})
        assert large.status_code == 400 and "send smaller batches" in large.text
        held.let_go.set()
        thread.join()
        assert first[0].status_code == 200 and len(first[0].json()["choices"]) == 5
        patient = served.client(max_retries=5)
        assert patient.completions.create(model=served.name, prompt="a", max_tokens=2).choices
    finally:
        held.let_go.set()
        served.stop()


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("leaves", ["while its prompt is read", "while it is answered"])
def test_a_client_that_leaves_is_not_answered(source, engine, monkeypatch, leaves, stream):
    served, reading, read_on = ServerThread(source, engine), threading.Event(), threading.Event()
    held, chat_prompt = Held(engine, monkeypatch), ServedModel.chat_prompt

    def slowly(*arguments):
        reading.set()
        assert read_on.wait(LIMIT)
        return chat_prompt(*arguments)

    monkeypatch.setattr(ServedModel, "chat_prompt", slowly)
    question = {"messages": [{"role": "user", "content": "why"}], "stream": stream}
    try:
        with served.connect() as link:
            link.sendall(b"".join(served.written("/v1/chat/completions", question)))
            assert reading.wait(LIMIT)
            if leaves == "while it is answered":
                read_on.set()
                while not served.get("/health").json()["running"]:
                    pass
        while served.server.server_state.connections:
            pass
        read_on.set()
        while 'requests_total{path="/v1/chat/completions"' not in served.get("/metrics").text:
            pass
        assert served.get("/health").json() == {"status": "ok", "running": 0, "waiting": 0}
    finally:
        held.let_go.set()
        served.stop()


def test_a_failing_engine_is_an_error_for_all_and_the_end(source, engine, monkeypatch, capfd):
    def fail():
        raise RuntimeError("INTERNAL: the device at /secret/path is gone")

    served = ServerThread(source, engine)
    monkeypatch.setattr(engine, "step", fail)
    answer = served.post("/v1/completions", {"model": served.name, "prompt": "a"})
    assert (
        answer.status_code == 500 and "the engine has failed" in answer.json()["error"]["message"]
    )
    assert "/secret" not in answer.text
    served.wait()
    assert served.code == 1 and "INTERNAL: the device" in capfd.readouterr().err
    engine.cancel(0)  # others use this engine after it


HEALTH = b"GET /health HTTP/1.1\r\nHost: localhost\r\n"


def drip(link: socket.socket) -> bytes:
    """What comes back of a request that is sent byte by byte, without an end."""
    link.settimeout(0.02)
    with contextlib.suppress(ConnectionError):
        for byte in itertools.chain(HEALTH, itertools.repeat(ord("x"))):
            link.sendall(bytes([byte]))
            with contextlib.suppress(TimeoutError):
                return link.recv(4096)
    return b""


def test_connections_that_ask_for_nothing_are_closed(source, engine, monkeypatch):
    """One is silent, one sends its head byte by byte, one does so after a whole request."""
    served = ServerThread(source, engine)
    try:
        with contextlib.ExitStack() as opened:
            later = opened.enter_context(served.connect())
            later.sendall(HEALTH + b"\r\n")
            assert answer_on(later).startswith(b"HTTP/1.1 200")
            monkeypatch.setattr(server, "HEAD_SECONDS", 0.2)
            silent, slow = (opened.enter_context(served.connect()) for _ in range(2))
            assert silent.recv(4096) == b""
            for link in (slow, later):
                assert drip(link) == b""
        monkeypatch.undo()
        assert served.get("/health").status_code == 200, "others are served"
    finally:
        served.stop()


def test_a_slow_body_is_no_slow_head(source, engine, monkeypatch):
    served = ServerThread(source, engine)
    head, body = served.written("/v1/completions", {"prompt": "a", "max_tokens": 2})
    try:
        with served.connect() as link:
            link.sendall(HEALTH + b"\r\n")
            answer_on(link)
            monkeypatch.setattr(server, "HEAD_SECONDS", 0.05)  # what follows is one segment
            link.sendall(head + body[:5])
            threading.Event().wait(0.3)
            link.sendall(body[5:])
            assert answer_on(link).startswith(b"HTTP/1.1 200")
    finally:
        served.stop()


def test_connections_are_counted(source, engine, monkeypatch):
    monkeypatch.setattr(server, "MAX_CONNECTIONS", 2)
    served = ServerThread(source, engine)
    try:
        with served.connect(), served.connect(), served.connect() as third:
            refused = third.recv(4096)
        assert refused.startswith(b"HTTP/1.1 503") and b"too many connections" in refused
        while served.server.server_state.connections:
            pass
        assert served.get("/health").status_code == 200
    finally:
        served.stop()


def test_texts_are_in_the_log_only_when_asked(source, engine, capfd):
    for log_texts in (False, True):
        served = ServerThread(source, engine, log_texts=log_texts)
        answer = served.ask("quite unheard of", max_tokens=5).choices[0].message.content
        wrong = {"model": served.name, "prompt": "a", "stop": {"a": "most private"}}
        assert "most private" in served.post("/v1/completions", wrong).text
        served.stop()
        log = capfd.readouterr().err
        lines = [json.loads(x) for x in log.splitlines() if x.startswith("{")]
        assert '"error": "invalid_request_error"' in log and "private" not in log
        (line,) = [x for x in lines if x["path"] == "/v1/chat/completions"]
        assert line["status"] == 200 and line["completion_tokens"] == 5
        assert ("quite unheard of" in json.dumps(line)) == log_texts
        assert (line.get("texts") == [answer]) == log_texts


def test_a_log_that_takes_nothing_is_counted(served, monkeypatch):
    none = "alpacare_log_lines_lost_total 0.0"
    assert none in served.get("/metrics").text
    with contextlib.suppress(OSError), open("/dev/full", "w") as full:  # closing it fails, too
        monkeypatch.setattr(sys, "stderr", full)
        assert served.ask("why", max_tokens=2).usage.completion_tokens == 2
        while none in served.get("/metrics").text:  # a line is written after its response
            pass
        monkeypatch.undo()
    healthy = served.get("/health").json()
    assert healthy["status"] == "ok"


def test_projections_may_have_8_bits(served, source):
    made = source.engine(jax.devices()[:1], 1, 4, Sampling(), "int8", invariant=True)
    small = ServerThread(source, made)
    asked = {"model": served.name, "prompt": "the heart", "max_tokens": 0}
    try:
        exact, rounded = (
            each.post("/v1/completions", asked | {"echo": True, "logprobs": 0}).json()
            for each in (served, small)
        )
    finally:
        small.stop()
    found = [each["choices"][0]["logprobs"]["token_logprobs"] for each in (exact, rounded)]
    assert 0 < np.abs(np.subtract(*found)).max() < 0.3


def test_non_finite_logits_are_an_error(served, engine):
    """The answer would be one that the model never gave; other requests are answered."""
    asked = {"model": served.name, "prompt": "a", "max_tokens": 1}
    sound = engine.params
    engine.use(jax.tree.map(lambda leaf: leaf * jnp.nan, sound))
    try:
        answer = served.post("/v1/completions", asked)
        streamed = served.post("/v1/completions", asked | {"stream": True, "logprobs": 0})
        scored = served.post("/v1/completions", asked | {"echo": True, "logprobs": 0})
    finally:
        engine.use(sound)
    for failed in (answer, scored):
        assert failed.status_code == 500 and "logits are NaN" in failed.json()["error"]["message"]
    assert "logits are NaN" in streamed.text and streamed.text.count("server_error") == 1
    assert served.post("/v1/completions", asked).status_code == 200


def test_an_adapter_is_served_as_the_model_it_makes(model_directory, tiny, tmp_path):
    lora = LoraConfig(2, 8.0, False, 0.0, "q_proj,v_proj,down_proj", "float32")
    config, draw = lora.adapter(tiny), np.random.default_rng(0)
    factors = params.build_tree(
        config, lambda w: 0.2 * draw.normal(size=params.weight_shape(w, config))
    )
    folder, merged = tmp_path / "medic-lora", tmp_path / "merged"
    folder.mkdir()
    adapters.write_peft(folder, lora, config, factors, "somebody/base")
    export.merge(model_directory, folder, merged, "best")
    source = loading.from_flags(
        SimpleNamespace(
            checkpoint=str(model_directory),
            adapter=str(folder),
            step="best",
            template=None,
            max_length=None,
            dtype="float32",
        )
    )
    one = source.engine(jax.devices()[:1], 1, 1, Sampling(), invariant=True)
    served = ServerThread(source, one)
    asked = {"model": "medic-lora", "prompt": [5, 17, 40, 8], "max_tokens": 0, "echo": True}
    try:
        (choice,) = served.post("/v1/completions", asked | {"logprobs": 0}).json()["choices"]
    finally:
        served.stop()
    for directory, same in ((merged, True), (model_directory, False)):
        model = Llama(checkpoint.load_params(directory, tiny), tiny)
        ids, ones = jnp.array([asked["prompt"]]), jnp.ones((1, 4), int)
        scores = jax.nn.log_softmax(model.logits(model.hidden(ids, jnp.arange(4)[None], ones)[0]))
        expected = [float(scores[i, token]) for i, token in enumerate(asked["prompt"][1:])]
        found = choice["logprobs"]["token_logprobs"][1:]
        assert np.allclose(found, expected, atol=1e-4) == same, directory


@pytest.mark.slow
def test_sigterm_under_load_loses_no_running_answer(model_directory, tmp_path):
    """A process of its own, with a key, which its log does not have."""
    key = "a-secret-key-of-this-test"
    log = tmp_path / "log"
    flags = ("--slots=4", "--invariant")  # with it there are fewer programs to compile
    with ServerProcess(model_directory, log, *flags, ALPACARE_API_KEY=key) as server:
        expected = [server.ask(question(i), max_tokens=TOKENS).choices[0] for i in range(12)]
        ended: list = []
        streams = []
        for number in range(12):
            given = {"max_tokens": TOKENS, "stream": True}
            streams.append(server.ask(question(number), **given))

        def finish(number: int) -> None:
            parts = [chunk.choices[0] for chunk in streams[number]]
            text = "".join(part.delta.content or "" for part in parts)
            ended.append((number, text, parts[-1].finish_reason))

        server.signal(signal.SIGTERM)
        threads = [threading.Thread(target=finish, args=(number,)) for number in range(12)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert server.wait() == 0
        assert sorted(ended) == [
            (number, choice.message.content, choice.finish_reason)
            for number, choice in enumerate(expected)
        ]
        text = log.read_text()
        assert "answers under way are finished" in text and key not in text


@pytest.mark.slow
def test_wrong_starts_are_one_line(model_directory, tmp_path):
    def start(*flags: str, **environment: str) -> tuple[int, str]:
        command = [sys.executable, "-m", "alpacare_jax.serve", f"--checkpoint={model_directory}"]
        env = {key: value for key, value in os.environ.items() if key != "ALPACARE_API_KEY"}
        done = subprocess.run(
            [*command, *flags], env=env | environment, capture_output=True, text=True
        )
        return done.returncode, done.stderr

    code, text = start("--host=0.0.0.0")
    assert code == 2 and "requires an API key: set ALPACARE_API_KEY" in text
    code, text = start("--host=0.0.0.0", ALPACARE_API_KEY="short")
    assert code == 2 and "at least 16 printable" in text and "short" not in text
    file = tmp_path / "key"
    file.write_text("x" * 20)
    file.chmod(0o644)
    code, text = start(f"--api_key_file={file}")
    assert code == 2 and "chmod 600" in text
    code, text = start(f"--api_key_file={tmp_path}")
    assert code and "is a folder; give a file" in text and "chmod" not in text
    with socket.create_server(("127.0.0.1", 0)) as taken:
        code, text = start(f"--port={taken.getsockname()[1]}")
    assert code == 1 and "choose another --port" in text and text.count("\n") == 1
