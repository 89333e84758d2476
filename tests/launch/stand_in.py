"""Stands in for gcloud, sbatch, srun, scancel and scontrol; conftest.py has what they are for.

What a test writes to the root of its cloud says how they behave:

    fail/STEP      "TIMES MESSAGE": the step fails; the error of an operation is JSON
                   (googlecloudsdk/command_lib/util/apis/yaml_command_translator.py:216)
    hang/STEP      it does not end, and writes `hangs`
    tpu, tpu-0...  "STATE|HEALTH|SPOT" of a node: one line for each question to come
    request        "STATE|CAUSE" of the queued resource, likewise
    made_as        the state of a TPU that is created (READY); granted_as: those of its request
    missing/STEP   a node that is not there for this step, once
    silent/HOST    ssh does not get through to this host; unsent/HOST: scp to it copies nothing
    half/STEP      the connection breaks once, after half a line; twice/STEP: when all is done,
                   lost/STEP: before the answer, not before the deed
    agent          the keys in the ssh agent
    updates        gcloud says that there are updates

Comments name the lines of gcloud 528.0.0 that are imitated, in lib/ of its installation:
ssh.py is googlecloudsdk/command_lib/compute/tpus/tpu_vm/ssh.py.
"""

import os
import socketserver
import subprocess
import threading
from pathlib import Path

PROGRAM = """\
#!/bin/bash
# What this program would do, the test's own process does, to the same stdout and stderr.
exec 3<>"/dev/tcp/127.0.0.1/$CLOUD_PORT" 4>&1 5>&2
printf '%s\\0' $$ "${0##*/}" $# "$@" >&3
read -r code <&3
exit "$code"
"""
ATTEMPTS = 3  # ssh.py:525 has 10, 5 seconds apart
UNUSABLE = ("STOPPED", "STOPPING", "DELETING", "HIDDEN")
TERMINAL = ("PREEMPTED", "TERMINATED")


class Programs(socketserver.ThreadingTCPServer):
    """Answers the programs of one test, from and with the files in `root`."""

    daemon_threads = True

    def __init__(self, root: Path):
        super().__init__(("127.0.0.1", 0), Connection)
        self.root = root
        threading.Thread(target=self.serve_forever, args=(0.01,), daemon=True).start()


class Connection(socketserver.BaseRequestHandler):
    def handle(self) -> None:
        data = b""
        while (words := data.split(b"\0")) and (len(words) < 4 or len(words) < 4 + int(words[2])):
            if not (more := self.request.recv(1 << 20)):
                return
            data += more
        process, program, _, *arguments = [word.decode() for word in words[:-1]]
        out, err = (os.open(f"/proc/{process}/fd/{i}", os.O_WRONLY | os.O_APPEND) for i in (4, 5))
        try:
            Call(self.server.root, program, arguments, out, err).run()
            code = 0
        except SystemExit as ended:
            code = ended.code
        except TimeoutError:
            self.request.recv(1)  # until the program is killed
            return
        finally:
            os.close(out)
            os.close(err)
        self.request.sendall(f"{code}\n".encode())


class Call:
    """One call of a program."""

    def __init__(self, root: Path, program: str, arguments: list[str], out: int, err: int):
        self.root, self.program, self.arguments = root, program, arguments
        self.out, self.err = out, err
        words = [word[2:] for word in arguments if word.startswith("--") and "=" in word]
        self.flags = dict(word.split("=", 1) for word in words)

    def read(self, name: str, default: str = "") -> str:
        return (self.root / name).read_text() if (self.root / name).exists() else default

    def take(self, name: str) -> bool:
        """Whether the file is there; it is not from now on."""
        there = (self.root / name).exists()
        (self.root / name).unlink(missing_ok=True)
        return there

    def append(self, name: str, text: str) -> None:
        with open(self.root / name, "a") as file:
            file.write(text)

    def print(self, text: str, file: int | None = None) -> None:
        os.write(self.out if file is None else file, text.encode())

    def fail(self, message: str) -> None:
        self.print(f"{message}\n", self.err)
        raise SystemExit(1)

    def known_error(self, message: str) -> None:
        """googlecloudsdk/calliope/exceptions.py:672."""
        self.fail(f"ERROR: (gcloud.{'.'.join(self.arguments[:4])}) {message}")

    def run(self) -> None:
        if self.program != "gcloud":
            self.record(self.program)
            if self.program == "sbatch":
                self.print("77\n")
            return
        _, _, kind, verb, name, *_ = self.arguments
        step = self.step()
        self.record(step)
        if verb == "describe":
            self.describe(kind, name)
        elif verb == "create":
            self.create(kind)
        elif verb == "delete":
            for file in [*self.nodes(), "request"]:
                self.take(file)
        else:
            self.reach(kind, verb, step)

    def step(self) -> str:
        """The verb, or what `ssh` is for."""
        command = self.flags.get("command", "")
        if self.arguments[3] != "ssh":
            return self.arguments[3]
        if "sha256sum" in command:
            return "unpack"
        actions = ("install", "start", "stop", "log")
        return next((action for action in actions if f"worker.sh {action}" in command), "state")

    def record(self, step: str) -> None:
        """Notes the call; then it fails or hangs, if the test wants this."""
        words = (self.program, step, *self.arguments, "\x1e")
        self.append("calls", "".join(f"{word}\x1f" for word in words))
        if (self.root / "hang" / step).exists():
            (self.root / "hangs").touch()
            raise TimeoutError
        times, _, message = self.read(f"fail/{step}", "0 ").partition(" ")
        if int(times):
            (self.root / "fail" / step).write_text(f"{int(times) - 1} {message}")
            self.fail(message)

    def next_state(self, file: str) -> str:
        """One line for each question to come; the last one stays."""
        if not (self.root / file).exists():
            self.known_error(f"NOT_FOUND: Resource '{self.arguments[4]}' was not found")
        first, *others = self.read(file).splitlines() or [""]
        if others:
            (self.root / file).write_text("\n".join(others))
        return first

    def describe(self, kind: str, name: str) -> None:
        if kind == "queued-resources":
            self.print(f"{self.next_state('request')}\n")
            return
        suffix = name.removeprefix("alpaca")
        state, health, spot, *_ = [*self.next_state(f"tpu{suffix}").split("|"), "", ""]
        network = f"10.0.{suffix[1:] or 0}"
        self.print(f"{state}|{health or 'HEALTHY'}|{spot}|{network}.0;{network}.1\n")

    def nodes(self) -> list[str]:
        return [path.name for path in self.root.iterdir() if path.name.split("-")[0] == "tpu"]

    def create(self, kind: str) -> None:
        """Nodes are NAME-0, NAME-1...: generated_clients/apis/tpu/v2/tpu_v2_messages.py:421."""
        if not self.nodes() and (self.root / "homes").exists():
            gone = len(self.read("made"))
            (self.root / "homes").rename(self.root / f"lost-{gone}")  # taken away
        spot = "True" if "--spot" in self.arguments else ""
        for node in range(int(self.flags.get("node-count", 1))):
            name = f"tpu-{node}" if "node-prefix" in self.flags else "tpu"
            made_as = self.read("made_as", "READY").rstrip()
            (self.root / name).write_text(f"{made_as}||{spot}\n")
        if kind == "queued-resources":
            granted = "ACCEPTED\nWAITING_FOR_RESOURCES\nPROVISIONING\nACTIVE\n"
            (self.root / "request").write_text(self.read("granted_as", granted))
        self.append("made", "x")

    def unprepared(self, verb: str, node: str, workers: list[str]) -> str:
        """Why a node cannot be prepared: ssh.py:637 PrepareNodeForSSH, 957 PrepareNodeForSCP.

        A node under maintenance is only warned of: ssh.py:702, 1024.
        """
        state = self.read(f"tpu{node}", "MISSING").split("\n")[0].split("|")[0]
        if state == "MISSING":  # of tpu.Get, ssh.py:677
            return "apitools.base.py.exceptions.HttpNotFoundError: HttpError accessing <...>: 404"
        if state in UNUSABLE:  # ssh.py:167 ValidateTPUState; exceptions.py:38 beside it
            return f'This TPU has state "{state}", so it cannot be currently connected to.'
        if state in TERMINAL:  # ssh.py:174, exceptions.py:29
            return f'This TPU has terminal state "{state}", so it cannot be used anymore.'
        # ssh.py:1098, 475 VerifyKeyInAgent; exceptions.py:47
        agent = self.read("agent", "google_compute_engine")
        if verb == "scp" and len(workers) > 1 and "google_compute_engine" not in agent:
            return 'SSH Key is not present in the SSH agent. Please run "ssh-add ..." to add it'
        return ""

    def start(self, host: str, worker: str, address: str, quiet: bool) -> subprocess.Popen:
        """Starts the command in the host's home, or the copy to it."""
        home = self.root / "homes" / host
        home.mkdir(parents=True, exist_ok=True)
        if "command" in self.flags:
            command = ["bash", "-c", self.flags["command"]]
        else:
            unsent = (self.root / "unsent" / host).exists()
            target = os.devnull if unsent else self.arguments[5].split(":")[1]
            command = ["cp", self.arguments[4], target]
        env = {"HOME": home, "HOSTNAME": host, "CLOUD": self.root, "WORKER": worker}
        env |= {"ADDRESS": address, "PATH": f"{self.root}/host_bin:/usr/bin:/bin"}
        out = subprocess.DEVNULL if quiet else self.out
        return subprocess.Popen(
            command, cwd=home, env=env, stdin=subprocess.DEVNULL, stdout=out, stderr=self.err
        )

    def attempt(self, step: str, node: str, worker: str) -> tuple[subprocess.Popen | None, bool]:
        """One try to reach a host: the process, if it is reached; whether the answer is lost."""
        number = int(node.lstrip("-") or 0)
        host = f"t1v-n-{number + 1}-w-{worker}"
        if self.take(f"half/{step}"):
            self.print(f"half a line of alpacare-state {host} run")
            return None, False
        if (self.root / "silent" / host).exists():
            return None, False
        lost = self.take(f"lost/{step}")
        return self.start(host, worker, f"10.0.{number}.{worker}", lost), lost

    def run_with_retries(self, step: str, hosts: list[tuple[str, str]]) -> int:
        """ssh.py:514 AttemptRunWithRetries, in a thread for each host: 853, 1168.

        Where ssh itself fails, by 255 (googlecloudsdk/command_lib/util/ssh/ssh.py:1898), or scp
        does (2112 there), the same command runs again, whatever it has printed: ssh.py:553. Other
        codes are final: ssh.py:540. The first that is not 0 is gcloud's: ssh.py:509.
        """
        codes = [255] * len(hosts)
        for _ in range(ATTEMPTS):
            again = [i for i, code in enumerate(codes) if code == 255]
            for i, (process, lost) in [(i, self.attempt(step, *hosts[i])) for i in again]:
                if process:
                    codes[i] = process.wait()
                if lost or (codes[i] == 0 and self.take(f"twice/{step}")):
                    codes[i] = 255
                if codes[i] == 255:
                    error = "[/usr/bin/ssh] exited with return code [255]."
                    self.print(f"Retrying: SSH command error: {error}\n", self.err)
        return next(filter(None, codes), 0)

    def reach(self, kind: str, verb: str, step: str) -> None:
        """The command on all hosts that are meant, or the copy to them."""
        workers, chosen = (
            ["0", "1"] if self.flags.get(flag) == "all" else [self.flags.get(flag, "0")]
            for flag in ("worker", "node")
        )
        absent, queued = self.read(f"missing/{step}"), kind == "queued-resources"
        self.take(f"missing/{step}")
        hosts = []
        for node in [f"-{node}" for node in chosen] if queued else [""]:
            error = self.unprepared(verb, "-none" if node == f"-{absent}" else node, workers)
            if not error:
                hosts += [(node, worker) for worker in workers]
            elif not queued:
                self.known_error(error)
            else:  # the exception ends a thread: surface/compute/tpus/queued_resources/ssh.py:201
                if not error.startswith("apitools."):
                    error = f"googlecloudsdk.command_lib.compute.tpus.tpu_vm.exceptions.E: {error}"
                trace = "Exception in thread Thread-1:\nTraceback (most recent call last):"
                self.print(f"{trace}\n{error}\n", self.err)
        if queued and len(hosts) < len(workers) * len(chosen):  # line 233 there
            warning = f"WARNING: Could not prepare all {len(chosen)} nodes, attempting to ssh into"
            self.print(f"{warning} the rest.\n", self.err)
        code = self.run_with_retries(step, hosts)
        if (self.root / "updates").exists():  # googlecloudsdk/core/updater/schemas.py:583
            updates = "Updates are available for some Google Cloud CLI components.  To install them"
            updates += ",\nplease run:\n  $ gcloud components update"
            self.print(f"\n\n{updates}\n\n", self.err)
        raise SystemExit(code)
