"""A stand-in for gcloud, sbatch, srun, scancel and scontrol, by the name it is called by.

conftest.py has what it is for. What a test writes to $CLOUD says how it behaves:

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
import sys

CLOUD = os.environ["CLOUD"]
PROGRAM, ARGUMENTS = os.path.basename(sys.argv[0]), sys.argv[1:]
FLAGS = dict(word[2:].split("=", 1) for word in ARGUMENTS if word[:2] == "--" and "=" in word)
ATTEMPTS = 3  # ssh.py:525 has 10, 5 seconds apart
UNUSABLE = ("STOPPED", "STOPPING", "DELETING", "HIDDEN")
TERMINAL = ("PREEMPTED", "TERMINATED")


def path(name: str) -> str:
    return os.path.join(CLOUD, name)


def read(name: str, default: str = "") -> str:
    if not os.path.exists(path(name)):
        return default
    with open(path(name)) as file:
        return file.read()


def write(name: str, text: str, flags: int = os.O_TRUNC) -> None:
    file = os.open(path(name), os.O_WRONLY | os.O_CREAT | flags)
    os.write(file, text.encode())
    os.close(file)


def take(name: str) -> bool:
    """Whether the file is there; it is not from now on."""
    if not os.path.exists(path(name)):
        return False
    os.remove(path(name))
    return True


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def fail(message: str, code: int = 1) -> None:
    say(message)
    sys.exit(code)


def known_error(message: str, code: int = 1) -> None:
    """googlecloudsdk/calliope/exceptions.py:672."""
    fail(f"ERROR: (gcloud.{'.'.join(ARGUMENTS[:4])}) {message}", code)


def record(step: str) -> None:
    """Notes the call; then it fails or hangs, if the test wants this."""
    words = (PROGRAM, step, *ARGUMENTS, "\x1e")
    write("calls", "".join(f"{word}\x1f" for word in words), os.O_APPEND)
    if os.path.exists(path(f"hang/{step}")):
        write("hangs", "")
        os.execv("/bin/sleep", ["sleep", "600"])
    times, _, message = read(f"fail/{step}", "0 ").partition(" ")
    if int(times):
        write(f"fail/{step}", f"{int(times) - 1} {message}")
        fail(message)


def next_state(file: str) -> str:
    """One line for each question to come; the last one stays."""
    if not os.path.exists(path(file)):
        known_error(f"NOT_FOUND: Resource '{ARGUMENTS[4]}' was not found")
    first, *others = read(file).splitlines() or [""]
    if others:
        write(file, "\n".join(others))
    return first


def describe(kind: str, name: str) -> None:
    if kind == "queued-resources":
        print(next_state("request"))
        return
    suffix = name.removeprefix("alpaca")
    state, health, spot, *_ = [*next_state(f"tpu{suffix}").split("|"), "", ""]
    network = f"10.0.{suffix[1:] or 0}"
    print(f"{state}|{health or 'HEALTHY'}|{spot}|{network}.0;{network}.1")


def nodes() -> list[str]:
    return [name for name in os.listdir(CLOUD) if name.split("-")[0] == "tpu"]


def create(kind: str) -> None:
    """Several nodes are NAME-0, NAME-1...: generated_clients/apis/tpu/v2/tpu_v2_messages.py:421."""
    if not nodes() and os.path.exists(path("homes")):
        os.rename(path("homes"), path(f"lost-{os.getpid()}"))  # taken away
    spot = "True" if "--spot" in ARGUMENTS else ""
    for node in range(int(FLAGS.get("node-count", 1))):
        suffix = f"-{node}" if "node-prefix" in FLAGS else ""
        write(f"tpu{suffix}", f"{read('made_as', 'READY').rstrip()}||{spot}\n")
    if kind == "queued-resources":
        granted = "ACCEPTED\nWAITING_FOR_RESOURCES\nPROVISIONING\nACTIVE\n"
        write("request", read("granted_as", granted))
    write("made", "x", os.O_APPEND)


def unprepared(verb: str, node: str, workers: list[str]) -> str:
    """Why a node cannot be prepared: ssh.py:637 PrepareNodeForSSH, 957 PrepareNodeForSCP.

    A node under maintenance is only warned of: ssh.py:702, 1024.
    """
    state = read(f"tpu{node}", "MISSING").split("\n")[0].split("|")[0]
    if state == "MISSING":  # of tpu.Get, ssh.py:677
        return "apitools.base.py.exceptions.HttpNotFoundError: HttpError accessing <.../nodes>: 404"
    if state in UNUSABLE:  # ssh.py:167 ValidateTPUState; exceptions.py:38 beside it
        return f'This TPU has state "{state}", so it cannot be currently connected to.'
    if state in TERMINAL:  # ssh.py:174, exceptions.py:29
        return f'This TPU has terminal state "{state}", so it cannot be used anymore.'
    # ssh.py:1098, 475 VerifyKeyInAgent; exceptions.py:47
    agent = read("agent", "google_compute_engine")
    if verb == "scp" and len(workers) > 1 and "google_compute_engine" not in agent:
        return 'SSH Key is not present in the SSH agent. Please run "ssh-add ~/.ssh/..." to add it'
    return ""


def start(host: str, worker: str, address: str, quiet: bool) -> int:
    """Starts the command in the host's home, or copies the file there; the process id."""
    home = path(f"homes/{host}")
    os.makedirs(home, exist_ok=True)
    os.chdir(home)
    command = ["bash", "-c", FLAGS["command"]] if "command" in FLAGS else ["cp", *ARGUMENTS[4:6]]
    if command[0] == "cp":
        unsent = os.path.exists(path(f"unsent/{host}"))
        command[2] = os.devnull if unsent else command[2].split(":")[1]
    env = {"HOME": home, "HOSTNAME": host, "CLOUD": CLOUD, "WORKER": worker, "ADDRESS": address}
    env["PATH"] = f"{CLOUD}/host_bin:/usr/bin:/bin"
    actions = [(os.POSIX_SPAWN_OPEN, 1, os.devnull, os.O_WRONLY, 0)] if quiet else []
    # Python ignores SIGPIPE, which a host's commands expect.
    program = f"/bin/{command[0]}"
    return os.posix_spawn(program, command, env, file_actions=actions, setsigdef=[13])


def attempt(step: str, node: str, worker: str) -> tuple[int | None, bool]:
    """One try to reach a host: the process, if it was reached, and whether the answer is lost."""
    number = int(node.lstrip("-") or 0)
    host = f"t1v-n-{number + 1}-w-{worker}"
    if take(f"half/{step}"):
        print(f"half a line of alpacare-state {host} run", end="", flush=True)
        return None, False
    if os.path.exists(path(f"silent/{host}")):
        return None, False
    lost = take(f"lost/{step}")
    return start(host, worker, f"10.0.{number}.{worker}", lost), lost


def run_with_retries(step: str, hosts: list[tuple[str, str]]) -> int:
    """ssh.py:514 AttemptRunWithRetries, in a thread for each host: 853, 1168.

    Where ssh itself fails, by 255 (googlecloudsdk/command_lib/util/ssh/ssh.py:1898), or scp does
    (2112 there), the same command runs again, whatever it has printed: ssh.py:553. Other codes are
    final: ssh.py:540. The first that is not 0 is gcloud's: ssh.py:509 WaitForBatchCompletion.
    """
    codes = [255] * len(hosts)
    for _ in range(ATTEMPTS):
        tries = {i: attempt(step, *hosts[i]) for i, code in enumerate(codes) if code == 255}
        for i, (process, lost) in tries.items():
            if process:
                codes[i] = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
            if lost or (codes[i] == 0 and take(f"twice/{step}")):
                codes[i] = 255
            if codes[i] == 255:
                say("Retrying: SSH command error: [/usr/bin/ssh] exited with return code [255].")
    return next(filter(None, codes), 0)


def reach(kind: str, verb: str, step: str) -> None:
    """The command on all hosts that are meant, or the copy to them."""
    workers, chosen = (
        ["0", "1"] if FLAGS.get(flag) == "all" else [FLAGS.get(flag, "0")]
        for flag in ("worker", "node")
    )
    absent = read(f"missing/{step}").strip()
    take(f"missing/{step}")
    hosts = []
    for node in [f"-{node}" for node in chosen] if kind == "queued-resources" else [""]:
        error = unprepared(verb, "-none" if absent and node == f"-{absent}" else node, workers)
        if not error:
            hosts += [(node, worker) for worker in workers]
        elif kind == "tpu-vm":
            known_error(error)
        else:  # the exception ends a thread: lib/surface/compute/tpus/queued_resources/ssh.py:201
            if "." not in error.split(":")[0].split(" ")[0]:
                error = f"googlecloudsdk.command_lib.compute.tpus.tpu_vm.exceptions.Error: {error}"
            say(f"Exception in thread Thread-1:\nTraceback (most recent call last):\n{error}")
    if len(hosts) < len(workers) * len(chosen) and kind == "queued-resources":  # ssh.py:233 there
        say(f"WARNING: Could not prepare all {len(chosen)} nodes, attempting to ssh into the rest.")
    code = run_with_retries(step, hosts)
    if os.path.exists(path("updates")):  # googlecloudsdk/core/updater/schemas.py:583
        say("\n\nUpdates are available for some Google Cloud CLI components.  To install them,")
        say("please run:\n  $ gcloud components update\n\n")
    sys.exit(code)


def step_of(verb: str, command: str) -> str:
    """What `ssh` is for."""
    if verb != "ssh":
        return verb
    if "sha256sum" in command:
        return "unpack"
    actions = ("install", "start", "stop", "log")
    return next((action for action in actions if f"worker.sh {action}" in command), "state")


def main() -> None:
    if PROGRAM != "gcloud":
        record(PROGRAM)
        if PROGRAM == "sbatch":
            print(77)
        return
    _, _, kind, verb, name, *_ = ARGUMENTS
    step = step_of(verb, FLAGS.get("command", ""))
    record(step)
    if verb == "describe":
        describe(kind, name)
    elif verb == "create":
        create(kind)
    elif verb == "delete":
        for file in [*nodes(), "request"]:
            take(file)
    else:
        reach(kind, verb, step)


main()
