"""worker.sh on a host: an image with Python 3.10 only, apt's lock, and processes that are left."""

import fcntl
import os
import shutil
import subprocess
import time
from pathlib import Path

import pytest

from tests.conftest import LIMIT, REPOSITORY
from tests.launch.conftest import PYTHON, write_program

TOOLS = (
    "awk bash cat cksum comm cp cut date dirname env flock grep gzip head id kill ls mkdir mv nohup"
    " ps rm sed seq setsid sort stat tail tar touch tr uname wc xargs"
)

OLD_PYTHON = """\
#!/bin/bash
# Python 3.10, as the images have it: too old, but it has pip.
case "$*" in
"-m pip install "*" uv")
    [ ! -f "$CLOUD/no-index" ] || { echo "ERROR: no such package: uv" >&2; exit 1; }
    mkdir -p ~/.local/bin
    cp "$CLOUD/uv" ~/.local/bin/uv
    ;;
*) exit 1 ;;
esac
"""

UV = """\
#!/bin/bash
echo "$*" >>"$CLOUD/uv-calls"
case "$*" in
"python install"*) cp "$CLOUD/python" ~/.local/python3.11 ;;
"python find --managed-python 3.11") ls ~/.local/python3.11 ;;
esac
"""

APT = """\
#!/bin/bash
echo "$*" >>"$CLOUD/apt-calls"
case "$*" in
*update) exec /usr/bin/apt-get "$@" ;;
*"install -y python3.11 python3.11-venv") cp "$CLOUD/python" "$CLOUD/bin/python3.11" ;;
esac
"""

SUDO = """\
#!/bin/bash
[ "$1" = -n ] || exit 1
shift
if [ "$1" = sh ]; then echo "$*" >>"$CLOUD/sudo"; else exec "$@"; fi
"""


class Host:
    def __init__(self, root: Path):
        self.root, self.base = root, root / "home/alpacare-jax"
        for name in TOOLS.split():
            (root / "bin").mkdir(exist_ok=True)
            (root / "bin" / name).symlink_to(shutil.which(name) or name)
        shutil.copytree(REPOSITORY / "launch/lib", self.base / "tree/launch/lib")
        for name in ("setup.py", "constraints.txt"):
            shutil.copy(REPOSITORY / name, self.base / "tree")
        write_program(root / "bin/hostname", "#!/bin/sh\necho 10.0.0.7\n")
        write_program(root / "bin/sudo", SUDO)
        write_program(root / "python", PYTHON)
        self.env = {
            "PATH": str(root / "bin"),
            "HOME": str(root / "home"),
            "CLOUD": str(root),
            "HOSTNAME": "host",
            "WORKER": "0",
        }

    def old_image(self) -> None:
        write_program(self.root / "bin/python3", OLD_PYTHON)
        write_program(self.root / "uv", UV)

    def start(self, *arguments: str, **env: str) -> subprocess.Popen:
        return subprocess.Popen(
            ["bash", "alpacare-jax/tree/launch/lib/worker.sh", *arguments],
            cwd=self.root / "home",
            env=self.env | env,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def __call__(self, *arguments: str) -> tuple[int, str, str]:
        process = self.start(*arguments)
        out, err = process.communicate(timeout=LIMIT)
        return process.returncode, out, err

    def archive(self) -> None:
        command = ["tar", "-czf", self.root / "home/a.tgz", "-C", self.base / "tree", "."]
        subprocess.run(command, check=True)

    def lines(self, name: str) -> list[str]:
        file = self.root / name
        return file.read_text().splitlines() if file.exists() else []


@pytest.fixture
def host(tmp_path):
    return Host(tmp_path)


def test_an_image_with_python_310_gets_uvs(host):
    host.old_image()
    host.archive()
    code, out, err = host("install", "a.tgz", "tpu")
    assert code == 0, err
    assert out == "alpacare-state host none 1 9999999999 - -,10.0.0.7 .\n"
    assert host.lines("uv-calls") == [
        "python install --quiet 3.11",
        "python find --managed-python 3.11",
    ]
    (pip,) = host.lines("pip")
    assert pip.endswith("--constraint constraints.txt --editable .[tpu]")
    assert host.lines("sudo") == [
        "sh -c echo always >/sys/kernel/mm/transparent_hugepage/enabled"
    ], "no apt"
    # Other pins: the environment is there, and is used.
    (host.base / "tree/setup.py").write_text("# changed")
    host.archive()
    code, _, err = host("install", "a.tgz", "tpu")
    assert code == 0, err
    assert len(host.lines("uv-calls")) == 2 and len(host.lines("pip")) == 2


@pytest.mark.skipif(not Path("/usr/bin/apt-get").exists(), reason="needs Debian's apt-get")
def test_a_process_that_holds_the_lock_of_apts_lists(host):
    """`apt-get update` does not wait for it, as with unattended upgrades after each first boot."""
    host.old_image()
    host.archive()
    (host.root / "no-index").touch()
    write_program(host.root / "bin/apt-get", APT)
    write_program(
        host.root / "bin/sleep", "#!/bin/bash\ntouch $CLOUD/slept; exec /bin/sleep 0.05\n"
    )
    for folder in ("lists/partial", "cache/archives/partial"):
        (host.root / folder).mkdir(parents=True)
    (host.root / "apt.conf").write_text(
        f'Dir::State "{host.root}"; Dir::State::Lists "{host.root}/lists/";\n'
        f'Dir::Cache "{host.root}/cache"; Dir::State::Status "/dev/null";\n'
        'Dir::Etc::SourceList "/dev/null"; Dir::Etc::SourceParts "/dev/null";\n'
        'Debug::NoLocking "false"; APT::Sandbox::User "root";\n'
    )
    with open(host.root / "lists/lock", "w") as lock:
        fcntl.lockf(lock, fcntl.LOCK_EX)
        process = host.start("install", "a.tgz", "tpu", APT_CONFIG=str(host.root / "apt.conf"))
        while not (host.root / "slept").exists() and process.poll() is None:
            time.sleep(0.02)
        assert not (host.root / "bin/python3.11").exists()
    out, err = process.communicate(timeout=LIMIT)
    assert (process.returncode, out[:19]) == (0, "alpacare-state host"), err
    assert host.lines("apt-calls").count("-q update") >= 2
    assert "installing Python 3.11" in err and "trying apt-get" in err
    assert len(host.lines("pip")) == 1


def test_no_python_at_all_is_one_error(host):
    host.archive()
    code, out, err = host("install", "a.tgz", "tpu")
    assert (code, out) == (1, "")
    assert err.splitlines()[-1].startswith("error: no Python 3.11 or newer with venv")


DEAF = "trap '' TERM; echo $$ >child; while :; do sleep 0.1; done"


def test_stop_waits_until_all_is_dead(host):
    """A command that ignores SIGTERM, and one whose supervisor was killed."""
    os.symlink(shutil.which("sleep"), host.root / "bin/sleep")
    for supervisor_dies in (False, True):
        child = host.base / "tree/child"
        child.unlink(missing_ok=True)
        code, out, err = host("start", "key", f"token{supervisor_dies}", "bash", "-c", DEAF)
        assert code == 0 and out.startswith("alpacare-state host running 0 "), err
        while not child.exists() or not child.read_text():
            time.sleep(0.02)
        if supervisor_dies:
            os.kill(int((host.base / "run/pid").read_text()), 9)
            while not host("state")[1].startswith("alpacare-state host lost 137"):
                time.sleep(0.02)
        process = int(child.read_text())
        assert host("stop", "0")[:2] == (0, host("state")[1])
        assert host("state")[1].startswith("alpacare-state host killed 137")
        stat = Path(f"/proc/{process}/stat")
        assert not stat.exists() or " Z " in stat.read_text()
