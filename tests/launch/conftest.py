"""Stand-ins for gcloud and SLURM, and hosts that they reach.

The stand-ins record every call, answer from small state files, and fail where a test says so. What
is sent to a host really runs here, in a home folder of that host with a Python that installs
nothing: so installing, starting, logging and stopping are the scripts' own.
"""

import contextlib
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest

from tests.conftest import LIMIT, REPOSITORY
from tests.launch import stand_in

PYTHON = """\
#!/bin/bash
# A Python that installs nothing.
case "$*" in
"-c "*) ;;
"-m venv "*) mkdir -p "${!#}/bin" && cp "$0" "${!#}/bin/python" ;;
"-m pip install "*)
    echo "$HOSTNAME $PWD $*" >>"$CLOUD/pip"
    if [ -f "$CLOUD/pip-fails-$WORKER" ]; then
        echo "ERROR: No matching distribution found for jax" >&2
        exit 1
    fi
    ;;
*) echo "python in $VIRTUAL_ENV: $*" ;;
esac
"""


def write_program(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)


@pytest.fixture(scope="session")
def project(tmp_path_factory) -> Path:
    """A small git clone with the launch scripts."""
    root = tmp_path_factory.mktemp("project")
    shutil.copytree(REPOSITORY / "launch", root / "launch")
    for name in ("setup.py", "constraints.txt", ".gitignore"):
        shutil.copy(REPOSITORY / name, root)
    (root / "gone.py").touch()
    git = ["git", "-c", "user.name=a", "-c", "user.email=a@b.c", "-c", "commit.gpgsign=false"]
    for arguments in (["init", "-q"], ["add", "."], ["commit", "-qm", "x"]):
        subprocess.run([*git, *arguments], cwd=root, check=True)
    (root / "gone.py").unlink()
    (root / "new file.py").write_text("new")
    (root / "data").mkdir()
    (root / "data" / "secret.json").touch()
    return root


class Cloud:
    """Hosts to run on, and a user's machine with the stand-ins on its PATH."""

    def __init__(self, root: Path, project: Path):
        self.root, self.project = root, project
        for name in ("gcloud", "sbatch", "srun", "scancel", "scontrol"):
            write_program(root / "bin" / name, stand_in.PROGRAM)
        write_program(root / "host_bin" / "python3.11", PYTHON)
        write_program(root / "host_bin" / "hostname", '#!/bin/sh\necho "$ADDRESS 172.17.0.1 "\n')
        write_program(root / "host_bin" / "sudo", '#!/bin/sh\necho "$@" >>"$CLOUD/sudo"\n')
        for name in "fail hang homes silent unsent half twice lost missing".split():
            (root / name).mkdir()
        self.server = stand_in.Programs(root)
        self.env = {
            "PATH": f"{root}/bin:/usr/bin:/bin",
            "HOME": str(root / "user"),
            "LOGNAME": "me",
            "CLOUD": str(root),
            "CLOUD_PORT": str(self.server.server_address[1]),
            "ALPACARE_POLL_SECONDS": "0.05",
            "ALPACARE_RUN_TOKEN": "of-the-run",
            "ALPACARE_SETTLE_SECONDS": "0.1",
            "ALPACARE_RETRY_SECONDS": "0.01",
        }

    def ready(self, slices: int = 1) -> "Cloud":
        for name in ["tpu"] if slices == 1 else [f"tpu-{i}" for i in range(slices)]:
            (self.root / name).write_text("READY")
        (self.root / "request").write_text("ACTIVE")
        return self

    def fail(self, step: str, message: str = "ERROR: it broke", times: int = 99) -> None:
        (self.root / "fail" / step).write_text(f"{times} {message}")

    def start(self, *arguments: str, **env: str) -> subprocess.Popen:
        script, *rest = arguments
        return subprocess.Popen(
            ["bash", str(self.project / "launch" / script), *rest],
            env=self.env | env,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            stdin=subprocess.DEVNULL,
            text=True,
        )

    def __call__(self, *arguments: str, **env: str) -> subprocess.CompletedProcess:
        process = self.start(*arguments, **env)
        out, err = process.communicate(timeout=LIMIT)
        return subprocess.CompletedProcess(arguments, process.returncode, out, err)

    def tpu(self, action: str, *rest: str, **env: str) -> subprocess.CompletedProcess:
        return self(*self.tpu_arguments(action, *rest), **env)

    @staticmethod
    def tpu_arguments(action: str, *rest: str) -> list[str]:
        made = ("--accelerator_type=v5litepod-16", "--version=v2") if action in MAKES else ()
        return ["tpu_run.sh", action, "--name=alpaca", "--zone=us-west4-a", *made, *rest]

    def recorded(self) -> list[list[str]]:
        """Every call: program, step, arguments."""
        file = self.root / "calls"
        text = file.read_text() if file.exists() else ""
        return [call.split("\x1f")[:-1] for call in text.split("\x1e\x1f")[:-1]]

    def calls(self, *steps: str) -> list[list[str]]:
        """The arguments of every call; of these steps only."""
        return [call[2:] for call in self.recorded() if not steps or call[1] in steps]

    def steps(self) -> list[str]:
        """The steps in order, without those of watching."""
        every = [step for _, step, *_ in self.recorded()]
        return [step for step in every if step not in ("describe", "state", "log")]

    def wait_for(self, path: str) -> None:
        deadline = time.monotonic() + LIMIT
        while not (self.root / path).exists():
            assert time.monotonic() < deadline, f"{path} did not appear"
            time.sleep(0.02)

    def lines(self, path: str) -> list[str]:
        file = self.root / path
        return file.read_text().splitlines() if file.exists() else []

    def processes(self) -> list[int]:
        """Supervisors that live."""
        found = []
        for file in self.root.glob("*/*/alpacare-jax/run/pid"):
            pid = int(file.read_text())
            with contextlib.suppress(OSError):
                if b"supervise" in Path(f"/proc/{pid}/cmdline").read_bytes():
                    found.append(pid)
        return found

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()
        for pid in self.processes():
            with contextlib.suppress(ProcessLookupError):
                os.killpg(pid, signal.SIGKILL)


MAKES = ("create", "run")
TOOLS = ("awk", "bash", "cat", "cksum", "dirname", "git", "grep", "mktemp", "mv", "rm")


@pytest.fixture(scope="session")
def tools(tmp_path_factory) -> str:
    """A PATH without gcloud and SLURM."""
    root = tmp_path_factory.mktemp("tools")
    for name in (*TOOLS, "id", "od", "sed", "seq", "sort", "tr", "wc"):
        (root / name).symlink_to(shutil.which(name))
    return str(root)


@pytest.fixture
def signals():
    """Those that the runner of the stages handles, as they were."""
    numbers = signal.SIGINT, signal.SIGTERM, signal.SIGHUP
    before = {number: signal.getsignal(number) for number in numbers}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture
def cloud(tmp_path, project):
    cloud = Cloud(tmp_path, project)
    yield cloud
    cloud.close()
