"""How processes end: errors that nobody expects, pipes and terminals; Ctrl-C at any moment."""

import contextlib
import doctest
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from common import exits
from tests.conftest import LIMIT, REPOSITORY, write_examples
from tests.support import commands, judge_workdirs
from tests.support.chat_server import ChatServer
from tests.support.training import command as train_command
from tests.support.training import make_corpus

INTERRUPTIONS = int(os.environ.get("ALPACARE_INTERRUPTIONS", "0"))
"""Of each command; without it, one of two of them."""

FAILS = """
import sys, threading
from common import cli

class Custom(Exception):
    pass

def fail():
    {code}

def main(argv):
    fail()

cli.run(main)
"""


def run(*command: str, **options) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, *command],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=LIMIT,
        **options,
    )


def test_the_examples_in_the_docstrings_are_true():
    assert doctest.testmod(exits).failed == 0


# Errors.


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("raise MemoryError", "out of memory (of this machine); use smaller batches or more dev"),
        ("raise RuntimeError('RESOURCE_EXHAUSTED: 3 GiB')", "out of memory (RESOURCE_EXHAUSTED: 3"),
        ("import json; json.loads('[' * 10**6)", "internal error, RecursionError: "),
        ("float('1') ** 10**9; (2.0) ** 10**6", "internal error, OverflowError: "),
        ("{}['a key']", "internal error, KeyError: 'a key' at common/cli.py:"),
        ("assert False", "internal error, AssertionError at common/cli.py:"),
        ("raise Custom('x' * 10**6)", "internal error, Custom: xxx"),
        ("raise Custom('first\\n  second')", "internal error, Custom: first second at "),
        ("from common import none", "internal error, ImportError: cannot import name 'none'"),
        ("import no_such_module", "the package no_such_module is not installed; run: pip"),
    ],
)
def test_an_error_that_nobody_expects_is_one_line(tmp_path, code, said):
    script = tmp_path / "fails.py"
    script.write_text(FAILS.format(code=code))
    done = commands.run(str(script))
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith(f"error: {said}") and done.stderr.count("\n") == 1
    assert len(done.stderr) < 1000
    shown = commands.run(str(script), "--debug")
    assert shown.returncode == 1 and "Traceback" in shown.stderr


def test_the_place_in_our_code_is_named():
    script = "from common import cli, jsonl\ncli.run(lambda argv: jsonl.text(1, None, 'x'))"
    done = run("-c", script)
    assert done.returncode == 1 and done.stderr.count("\n") == 1
    assert " at common/jsonl.py:" in done.stderr


def test_errors_in_threads_and_destructors_are_one_line():
    thread = "t = threading.Thread(target=lambda: {}[1], name='t'); t.start(); t.join()"
    done = run("-c", FAILS.format(code=thread))
    assert (done.returncode, done.stderr.count("\n")) == (0, 1)
    assert done.stderr.startswith("error: thread t: internal error, KeyError: 1")
    dropped = "Custom.__del__ = lambda self: {}[1]; Custom()"
    done = run("-c", FAILS.format(code=dropped))
    assert (done.returncode, done.stderr.count("\n")) == (0, 1)
    assert done.stderr.startswith("warning: ignored: internal error, KeyError: 1")


@pytest.mark.parametrize(
    ("raised", "said"),
    [
        ("raise ImportError('no libcuda')", "internal error, ImportError: no libcuda"),
        ("raise OSError('disk')", "internal error, OSError: disk"),
        ("{}[1]", "internal error, KeyError: 1"),
    ],
)
def test_an_import_that_fails_is_one_line(tmp_path, raised, said):
    (tmp_path / "rapidfuzz.py").write_text(raised)
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}
    for door in (["datagen.dedup"], ["common.alpacare", "dedup"]):
        done = run("-m", *door, "--help", env=environment)
        assert (done.returncode, done.stdout) == (1, "")
        assert done.stderr.startswith(f"error: {said}") and done.stderr.count("\n") == 1


def test_a_config_that_raises_anything_is_one_line(tmp_path):
    (tmp_path / "c.py").write_text("def get_config():\n    return 1 / 0\n")
    arguments = [f"--config={tmp_path}/c.py", f"--workdir={tmp_path}", "--benchmark=x"]
    done = commands.run("evaluation.references", *arguments)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ") and "ZeroDivisionError" in done.stderr
    assert done.stderr.count("\n") == 1


# Pipes and terminals.


@pytest.mark.parametrize("code", ["print('x\\n' * 10**6)", "print('x')"])
def test_a_pipe_that_nobody_reads_ends_a_command_quietly(code):
    read, write = os.pipe()
    os.close(read)
    process = subprocess.Popen(
        [sys.executable, "-c", FAILS.format(code=code)],
        cwd=REPOSITORY,
        stdout=write,
        stderr=subprocess.PIPE,
    )
    os.close(write)
    assert process.communicate(timeout=LIMIT)[1] == b""
    assert process.returncode == 1


def test_a_broken_connection_is_no_broken_pipe():
    done = run("-c", FAILS.format(code="raise BrokenPipeError(32, 'the server hung up')"))
    assert done.returncode == 1 and "the server hung up" in done.stderr


def test_output_that_does_not_fit_the_disk_is_an_error():
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-c", FAILS.format(code="print('x')")],
            cwd=REPOSITORY,
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
        )
    assert done.returncode == 1
    assert done.stderr.startswith("error: ") and "No space left on device" in done.stderr


def test_a_terminal_without_the_characters_shows_their_numbers():
    environment = os.environ | {"PYTHONIOENCODING": "ascii"}
    done = run("-c", FAILS.format(code="print('\\u21b5 \\udcff')"), env=environment)
    assert (done.returncode, done.stdout, done.stderr) == (0, "\\u21b5 \\udcff\n", "")


# Signals.

WAITS = """
import os, signal, sys, time
from common import cli

def main(argv):
    try:
        {first}
        print("ready", flush=True)
        time.sleep(600)
    finally:
        print("cleaned up", flush=True)
        {last}

cli.run(main)
"""


def started(first: str = "pass", last: str = "pass") -> subprocess.Popen:
    process = subprocess.Popen(
        [sys.executable, "-c", WAITS.format(first=first, last=last)],
        cwd=REPOSITORY,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == "ready\n"
    return process


@pytest.mark.parametrize(
    ("number", "code", "word"),
    [(signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 143, "terminated")],
)
def test_the_first_signal_cleans_up_and_the_second_does_not_wait(number, code, word):
    process = started()
    process.send_signal(number)
    assert process.communicate(timeout=LIMIT) == ("cleaned up\n", f"{word}\n")
    assert process.returncode == code
    process = started(last="time.sleep(600)")
    process.send_signal(number)
    assert process.stdout.readline() == "cleaned up\n"
    process.send_signal(number)
    assert process.communicate(timeout=LIMIT) == ("", f"{word}\n")
    assert process.returncode == code


def test_an_interruption_that_a_callback_swallows_comes_again():
    """As of JAX's callback of the garbage collector: the interpreter drops what is raised there."""
    swallow = "X = type('X', (), {'__del__': lambda self: os.kill(os.getpid(), 2)}); X(); del X"
    process = started(first=swallow)
    assert process.communicate(timeout=LIMIT) == ("cleaned up\n", "interrupted\n")
    assert process.returncode == 130


def test_an_interruption_that_a_library_turns_into_another_error_is_one():
    process = started(last="raise RuntimeError('error in a callback')")
    process.send_signal(signal.SIGINT)
    assert process.communicate(timeout=LIMIT) == ("cleaned up\n", "interrupted\n")
    assert process.returncode == 130


# Every command, at a random moment.


@pytest.fixture(scope="module")
def server():
    server = ChatServer()
    server.delay = 0.05
    yield server
    server.close()


@pytest.fixture
def arguments(tmp_path, tiny_model, server, monkeypatch) -> dict[str, list[str]]:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-of-the-test")
    examples = write_examples(tmp_path / "examples.jsonl", 100)
    corpus = make_corpus(tmp_path / "corpus")
    judge_workdirs.write_set(tmp_path / "judged")
    data, out = f"--input={examples}", f"--output={tmp_path}/out"
    chat = [f"--config.chat.base_url={server.url}", "--config.chat.model=m"]
    judged = ",".join(str(path.parent) for path in tmp_path.glob("judged/**/judgements.jsonl"))
    here = f"--workdir={tmp_path}/out"
    _, _, _, *training = train_command(corpus, tmp_path / "out", train__epochs=40)
    plan = ["--config=configs/quickstart.py", "--topology=local"]
    return {
        "datagen.dedup": [data, f"{out}.jsonl"],
        "datagen.stats": [data, out],
        "datagen.responses": [
            "--config=configs/datagen.py", data, here,
            *(flag.replace("chat.", "responder.") for flag in chat),
        ],
        "alpacare_jax.tokenizer": [data, f"--checkpoint={tiny_model}", "--show=100"],
        "alpacare_jax.generate": [data, f"{out}.json", f"--checkpoint={tiny_model}"],
        "alpacare_jax.convert": ["to_hf", f"--source={tiny_model}", f"--target={tmp_path}/out"],
        "alpacare_jax.train": training,
        "alpacare_jax.plan": [*plan, f"{out}.json"],
        "evaluation.references": [
            "--config=configs/evaluation.py", f"--benchmark={examples}", here, *chat,
        ],
        "evaluation.report": [f"--judgements={judged}", out],
    }  # fmt: skip


def wait_for_handlers(process: subprocess.Popen) -> None:
    """Until ours handle signals: before, the interpreter is starting."""
    while process.poll() is None:
        with contextlib.suppress(OSError):
            status = Path(f"/proc/{process.pid}/status").read_text()
            caught = int(status.partition("SigCgt:")[2].split()[0], 16)
            if caught >> (signal.SIGTERM - 1) & 1:
                return
        time.sleep(0.002)


def clear(folder: Path) -> None:
    for path in folder.glob("*out*"):
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def interrupt(module: str, args: list[str], delay: float, number: int) -> tuple[int, str, str]:
    process = subprocess.Popen(
        [sys.executable, "-m", module, *args],
        cwd=REPOSITORY,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    wait_for_handlers(process)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(delay)
    process.send_signal(number)
    out, err = process.communicate(timeout=LIMIT)
    return process.returncode, out, err


NAMES = (
    *("datagen.dedup", "datagen.stats", "datagen.responses", "alpacare_jax.tokenizer"),
    *("alpacare_jax.generate", "alpacare_jax.convert", "alpacare_jax.train", "alpacare_jax.plan"),
    *("evaluation.references", "evaluation.report"),
)


@pytest.mark.parametrize("module", NAMES)
def test_ctrl_c_at_any_moment_is_130(module, arguments, tmp_path):
    """ALPACARE_INTERRUPTIONS=20: so many of each command, each fourth one by SIGTERM."""
    if not INTERRUPTIONS and module not in ("datagen.dedup", "alpacare_jax.generate"):
        pytest.skip("ALPACARE_INTERRUPTIONS is not set")
    args, duration = arguments[module], 5.0
    if INTERRUPTIONS:
        begin = time.monotonic()
        whole = run("-m", module, *args)
        assert whole.returncode == 0, whole.stderr
        duration = 0.7 * (time.monotonic() - begin)  # the interpreter's start is not in a moment
    moments, codes = random.Random(), {}
    for i in range(INTERRUPTIONS or 1):
        clear(tmp_path)
        number = signal.SIGTERM if i % 4 == 3 else signal.SIGINT
        delay = moments.uniform(0.0, duration)
        code, _, err = interrupt(module, args, delay, number)
        codes[code] = codes.get(code, 0) + 1
        moment = f"{number.name} after {delay:.2f} of {duration:.2f} s: {code}\n{err}"
        expected = {128 + number, 0}  # 0: it had finished, or training has saved after SIGTERM
        assert code in expected and "Traceback" not in err and "Fatal" not in err, moment
        assert not list(tmp_path.glob(".*lock")), f"{moment}\na lock was left behind"
    print(json.dumps({module: codes}))
