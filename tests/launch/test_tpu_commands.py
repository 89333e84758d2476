"""What launch/tpu_run.sh has gcloud do: golden files, and flags that gcloud documents.

python -m tests.launch.test_tpu_commands --write    makes the golden files anew; read the difference
"""

import os
import re
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from tests.conftest import LIMIT, REPOSITORY

GOLDEN = Path(__file__).parent / "golden"
WHERE = "--name=alpaca --zone=us-west4-a"
RUNS = {
    "v4-8": "--accelerator_type=v4-8",
    "v5litepod-16": "--accelerator_type=v5litepod-16 --spot --queued",
    "v5p-8": "--accelerator_type=v5p-8 --project=medicine",
    "v6e-8": "--accelerator_type=v6e-8 --spot --version=v2-alpha-tpuv6e-beta",
    "two_slices": "--accelerator_type=v5litepod-16 --spot --slices=2",
    "reservation": "--accelerator_type=v5p-8 --queued --create_flags=--reserved",
    "named_reservation": "--accelerator_type=v5p-8 --create_flags=--reservation=ours",
    "internal_network": "--accelerator_type=v6e-8 --queued --ssh_flags=--internal-ip "
    "--create_flags='--network=research --subnetwork=tpus --internal-ips "
    "--service-account=tpu@medicine.iam.gserviceaccount.com --boot-disk=kms-key=tpu-key'",
    "tunnel": "--accelerator_type=v6e-8 --create_flags=--internal-ips "
    "--ssh_flags='--tunnel-through-iap --ssh-key-file=tpu.key'",
}
"""The names of the golden files, and the flags of `run`."""

# From https://cloud.google.com/sdk/gcloud/reference/COMMAND, with / between the words of COMMAND,
# read in November 2026; the flags of every command are its "gcloud wide flags".
WIDE = "access-token-file account billing-project configuration flags-file flatten format help "
WIDE += (
    "impersonate-service-account log-http project quiet trace-token user-output-enabled verbosity"
)
CREATE = "zone accelerator-type async boot-disk data-disk description internal-ips labels metadata "
CREATE += (
    "metadata-from-file network range reserved scopes service-account shielded-secure-boot spot "
)
CREATE += "subnetwork tags topology type"
QUEUED = "runtime-version node-id node-count node-prefix guaranteed valid-after-duration "
QUEUED += "valid-after-time valid-until-duration valid-until-time reservation-host-folder "
QUEUED += "reservation-host-organization reservation-host-project"
REACH = "dry-run force-key-file-overwrite internal-ip plain ssh-key-file strict-host-key-checking "
REACH += "worker zone ssh-key-expiration ssh-key-expire-after"
SSH, SCP = f"{REACH} ssh-flag command output-directory", f"{REACH} compress recurse scp-flag"
FLAGS = {
    "compute tpus tpu-vm create": f"{CREATE} version preemptible queue-count",
    "compute tpus tpu-vm describe": "zone",
    "compute tpus tpu-vm delete": "zone async",
    "compute tpus tpu-vm ssh": SSH,
    "compute tpus tpu-vm scp": SCP,
    "compute tpus queued-resources create": f"{CREATE} {QUEUED}",
    "compute tpus queued-resources describe": "zone",
    "compute tpus queued-resources delete": "zone async force",
    "compute tpus queued-resources ssh": f"{SSH} batch-size node tunnel-through-iap",
    "compute tpus queued-resources scp": f"{SCP} batch-size node tunnel-through-iap",
    "alpha compute tpus tpu-vm create": f"{CREATE} version preemptible queue-count reservation "
    "provisioning-model autocheckpoint-enabled image",
    "alpha compute tpus tpu-vm ssh": f"{SSH} batch-size tunnel-through-iap",
    "alpha compute tpus tpu-vm scp": f"{SCP} batch-size tunnel-through-iap",
    "alpha compute tpus queued-resources create": f"{CREATE} {QUEUED} reservation best-effort "
    "provisioning-model autocheckpoint-enabled max-run-duration network-config workload-type",
}


def dry_run(flags: str) -> str:
    """What `run` would do, on a machine where git knows one clean commit."""
    with tempfile.TemporaryDirectory() as folder:
        git = Path(folder) / "git"
        git.write_text(
            '#!/bin/sh\ncase "$*" in *toplevel) echo /project ;; *HEAD) echo 0123abc ;; esac\n'
        )
        git.chmod(0o755)
        arguments = [
            "run",
            *shlex.split(f"{WHERE} {flags}"),
            "--dry_run",
            "--",
            "alpacare",
            "train",
        ]
        done = subprocess.run(
            ["bash", "launch/tpu_run.sh", *arguments],
            cwd=REPOSITORY,
            env={
                "PATH": f"{folder}:{os.environ['PATH']}",
                "HOME": "/home/me",
                "ALPACARE_RUN_TOKEN": "of-the-run",
            },
            capture_output=True,
            text=True,
            timeout=LIMIT,
        )
    assert (done.returncode, done.stderr) == (0, "")
    return f"$ tpu_run.sh {shlex.join(arguments)}\n{done.stdout}"


def undocumented(line: str) -> list[str]:
    """The flags of one line with gcloud that the command's reference does not have."""
    words = shlex.split(line)
    words = words[words.index("gcloud") + 1 :]
    command = next((name for name in FLAGS if words[: len(name.split())] == name.split()), None)
    if command is None:
        return [f"no such command: gcloud {' '.join(words[:5])}"]
    known = f"{FLAGS[command]} {WIDE}".split()
    flags = [match[1] for word in words if (match := re.match(r"--([a-z-]+)(=|$)", word))]
    return [flag for flag in flags if flag not in known]


@pytest.mark.parametrize("name", RUNS)
def test_a_dry_run_is_the_golden_file_and_its_flags_are_documented(name):
    shown = dry_run(RUNS[name])
    assert shown == (GOLDEN / f"{name}.txt").read_text(encoding="utf-8"), (
        "if it is meant: python -m tests.launch.test_tpu_commands --write"
    )
    lines = [line for line in shown.splitlines() if re.match(r"(timeout \S+ \d+ )?gcloud ", line)]
    assert {"create", "describe", "delete", "ssh", "scp"} <= set(" ".join(lines).split())
    assert [(line, found) for line in lines if (found := undocumented(line))] == []


def test_every_golden_file_belongs_to_a_run():
    assert {path.stem for path in GOLDEN.iterdir()} == set(RUNS)


def test_the_table_refuses_what_gcloud_refuses():
    """The released commands have no IAP for a TPU VM and no name of a reservation."""
    ssh = "gcloud compute tpus tpu-vm ssh a --zone=b --tunnel-through-iap --command='x --y'"
    assert undocumented(ssh) == ["tunnel-through-iap"]
    assert undocumented(ssh.replace("gcloud", "gcloud alpha")) == []
    assert undocumented("gcloud compute tpus tpu-vm create a --reservation=b") == ["reservation"]
    assert undocumented("gcloud compute tpus tpu-vm start a")


if __name__ == "__main__" and sys.argv[1:] == ["--write"]:
    GOLDEN.mkdir(exist_ok=True)
    for run, given in RUNS.items():
        (GOLDEN / f"{run}.txt").write_text(dry_run(given), encoding="utf-8")
