"""Each extra in an environment without the other extras' packages: its commands run.

[datagen] contains [evaluation], and [serve] contains [train]: the larger is added to the smaller.

Slow, and skipped where no package index can be reached.
"""

import json
import os
import re
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path

import httpx
import jax
import pytest

from alpacare_jax.model.config import VARIANTS
from alpacare_jax.model.params import init
from tests.conftest import LIMIT, REPOSITORY, make_model, write_examples
from tests.support import teacher
from tests.support.chat_server import ChatServer

pytestmark = pytest.mark.slow

TRAINER = {"jax", "jaxlib", "flax", "optax", "orbax_checkpoint", "tensorstore", "scipy", "torch"}
CLIENTS = {"openai", "anthropic", "matplotlib", "rapidfuzz", "py3langid"}


@pytest.fixture(scope="module", autouse=True)
def index(tmp_path_factory) -> None:
    """Skips where no package can be had; with an index, an extra that does not install is a bug."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "absl-py==2.5.1"]
    done = subprocess.run([*command, "--dest", str(tmp_path_factory.mktemp("index"))], check=False)
    if done.returncode:
        pytest.skip("no package index can be reached")


class Environment:
    """A virtual environment that holds the project."""

    def __init__(self, folder: Path):
        self.folder = folder
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)

    def add(self, extra: str) -> None:
        """Installs the project with an extra, and reports the size.

        As a warning, which pytest prints at the end whether or not tests share processes.
        """
        pip = [sys.executable, "-m", "pip", "--python", str(self.folder), "install", "--quiet"]
        pins = ["--constraint", str(REPOSITORY / "constraints.txt")]
        done = subprocess.run(
            [*pip, "--no-compile", *pins, f"{REPOSITORY}[{extra}]"], capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr[-2000:]
        files = (path.stat().st_size for path in self.folder.rglob("*") if path.is_file())
        warnings.warn(f"[{extra}] alone: {sum(files) / 1e6:.0f} MB", stacklevel=2)

    def installed(self) -> set[str]:
        """Names of the distributions, with underscores."""
        found = self.folder.glob("lib/python*/site-packages/*.dist-info")
        return {re.sub(r"-[^-]*$", "", path.stem).lower().replace("-", "_") for path in found}

    def run(self, *command: str, **environment: str) -> subprocess.CompletedProcess:
        """`alpacare COMMAND`, from a folder that is not the repository."""
        return subprocess.run(
            [str(self.folder / "bin/alpacare"), *command],
            cwd=self.folder,
            env={"PATH": os.environ["PATH"], "HOME": str(self.folder)} | environment,
            capture_output=True,
            text=True,
        )

    def succeed(self, *command: str, **environment: str) -> None:
        done = self.run(*command, **environment)
        assert done.returncode == 0, done.stderr[-2000:]


@pytest.fixture
def server():
    server = ChatServer()
    yield server
    server.close()


def openai(server: ChatServer) -> dict[str, str]:
    return {"OPENAI_API_KEY": "test", "OPENAI_BASE_URL": f"{server.url}/v1"}


def test_evaluation_alone_and_datagen_alone(tmp_path, server):
    environment = Environment(tmp_path / "env")
    environment.add("evaluation")
    assert not environment.installed() & (TRAINER | {"py3langid"})
    judge_and_report(environment, tmp_path, server)
    environment.add("datagen")
    assert not environment.installed() & TRAINER
    go_from_tasks_to_stats(environment, tmp_path, server)


def judge_and_report(environment: Environment, tmp_path: Path, server: ChatServer) -> None:
    items = write_examples(tmp_path / "set.jsonl", 3)
    for name in ("ours", "theirs"):
        records = [json.loads(line) for line in items.read_text().splitlines()]
        text = "".join(json.dumps(r | {"output": f"{name} {r['id']}"}) + "\n" for r in records)
        (tmp_path / f"{name}.jsonl").write_text(text)
    server.answer = lambda _: "Output (a)"
    environment.succeed(
        "judge",
        f"--config={REPOSITORY}/configs/evaluation.py",
        f"--config.chat.base_url={server.url}/v1",
        f"--benchmark={items}",
        f"--outputs=ours={tmp_path}/ours.jsonl",
        f"--references=theirs={tmp_path}/theirs.jsonl",
        f"--workdir={tmp_path}/judged",
        **openai(server),
    )
    environment.succeed("report", f"--judgements={tmp_path}/judged", f"--output={tmp_path}/report")
    assert (tmp_path / "report/report.html").is_file()
    missing = environment.run("train", "--help")
    assert missing.returncode == 1
    assert re.fullmatch(
        r"error: the package \w+ is not installed; run: pip install '\.\[train\]'\n", missing.stderr
    )


def go_from_tasks_to_stats(environment: Environment, tmp_path: Path, server: ChatServer) -> None:
    server.answer = lambda body: (
        teacher.write_tasks(body) if teacher.is_for_tasks(body) else "Rest, fluids and time."
    )
    config = f"--config={REPOSITORY}/configs/datagen.py"
    address = f"{server.url}/v1"
    environment.succeed(
        "tasks",
        config,
        f"--config.teacher.base_url={address}",
        f"--config.tasks.seeds={REPOSITORY}/datagen/starter/seeds.jsonl",
        "--config.tasks.num_tasks=20",
        f"--workdir={tmp_path}/run",
        **openai(server),
    )
    tasks = f"{tmp_path}/run/tasks.jsonl"
    environment.succeed("dedup", f"--input={tasks}", f"--output={tmp_path}/unique.jsonl")
    environment.succeed(
        "responses",
        config,
        f"--config.responder.base_url={address}",
        f"--input={tmp_path}/unique.jsonl",
        f"--workdir={tmp_path}/run",
        **openai(server),
    )
    environment.succeed(
        "stats", f"--input={tmp_path}/run/examples.jsonl", f"--output={tmp_path}/stats"
    )
    assert json.loads((tmp_path / "stats/stats.json").read_text())


def test_train_alone_and_serve_alone(tmp_path):
    environment = Environment(tmp_path / "env")
    environment.add("train")
    assert not environment.installed() & CLIENTS
    train_and_convert(environment, tmp_path)
    environment.add("serve")
    assert not environment.installed() & (CLIENTS | {"transformers"})
    serve(environment, tmp_path)


def train_and_convert(environment: Environment, tmp_path: Path) -> None:
    config = VARIANTS["tiny"]
    base = make_model(tmp_path / "base", config, init(config, jax.random.key(0)))
    environment.succeed(
        "train",
        f"--config={REPOSITORY}/configs/quickstart.py",
        "--config.model.variant=tiny",
        "--config.data.eval_path=",
        f"--config.model.checkpoint={base}",
        f"--config.data.path={write_examples(tmp_path / 'examples.jsonl', 40)}",
        f"--workdir={tmp_path}/run",
        JAX_PLATFORMS="cpu",
    )
    environment.succeed(
        "convert", "to_hf", f"--source={tmp_path}/run", f"--target={tmp_path}/released"
    )
    assert (tmp_path / "released/model.safetensors").is_file()


def serve(environment: Environment, tmp_path: Path) -> None:
    """Without the clients' packages: an answer over plain HTTP, and an end in good order."""
    model = make_model(tmp_path / "medic", VARIANTS["tiny"])
    command = [environment.folder / "bin/alpacare", "serve", f"--checkpoint={model}", "--port=0"]
    log, env = tmp_path / "log", {"PATH": os.environ["PATH"], "HOME": str(tmp_path)}
    with log.open("wb") as file:
        process = subprocess.Popen([*command, "--slots=1"], cwd=tmp_path, env=env, stderr=file)
    try:
        while not (found := re.search(r"serving medic on (http://\S+);", log.read_text())):
            assert process.poll() is None, log.read_text()
            time.sleep(0.1)
        asked = {"model": "medic", "messages": [{"role": "user", "content": "why"}]}
        answer = httpx.post(
            f"{found[1]}/v1/chat/completions", json=asked | {"max_tokens": 3}, timeout=LIMIT
        )
        assert answer.json()["usage"]["completion_tokens"] in (1, 2, 3), answer.text
        process.send_signal(signal.SIGTERM)
        assert process.wait(LIMIT) == 0
    finally:
        process.kill()
        process.wait()
