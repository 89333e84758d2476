"""What tpu_run.sh and docs/tpu.md have gcloud do: golden files, and flags that it documents.

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
import yaml

from tests.conftest import LIMIT, REPOSITORY
from tests.docs import documents
from tests.docs.test_links import check_module

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
# read in November 2026; the flags of every command are its "gcloud wide flags". gcloud 528.0.0 was
# asked, too: its help has all of them but --boot-disk and --image, which are newer, and its parser
# took the golden files and the commands of docs/tpu.md.
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
    # What docs/tpu.md needs besides.
    "auth login": "",
    "billing projects link": "billing-account",
    "compute instances create": "zone machine-type image-family image-project",
    "compute instances delete": "zone delete-disks keep-disks",
    "compute ssh": "zone command internal-ip tunnel-through-iap",
    "compute tpus queued-resources list": "zone filter limit page-size sort-by uri",
    "compute tpus tpu-vm list": "zone filter limit page-size sort-by uri",
    "config set": "installation",
    "iam service-accounts create": "description display-name",
    "projects create": "name organization folder labels set-as-default enable-cloud-apis tags",
    "projects delete": "",
    "services enable": "async",
    "storage buckets add-iam-policy-binding": "member role condition condition-from-file",
    "storage buckets create": "location uniform-bucket-level-access soft-delete-duration",
    "storage cp": "recursive",
    "storage rm": "recursive",
}


STAND_IN = """#!/bin/bash
# A git that knows one clean commit, and other programs that only note how they were called.
case "${0##*/} $*" in
*--show-toplevel) echo /project ;;
*HEAD) echo 0123abc ;;
git*) ;;
*) printf '%q ' "${0##*/}" "$@" >>"$CALLS" && echo >>"$CALLS" ;;
esac
"""
PROGRAMS = ("alpacare", "gcloud", "git", "pip", "sky", "sudo", "tmux")


def run_bash(*arguments: str) -> tuple[str, list[str]]:
    """Where the stand-ins are: what it printed, and their calls. It must not fail."""
    with tempfile.TemporaryDirectory() as folder:
        for name in PROGRAMS:
            (Path(folder) / name).write_text(STAND_IN)
            (Path(folder) / name).chmod(0o755)
        calls = Path(folder) / "calls"
        env = {"CALLS": str(calls), "HOME": "/home/me", "ALPACARE_RUN_TOKEN": "of-the-run"}
        done = subprocess.run(
            ["bash", *arguments],
            cwd=REPOSITORY,
            env=env | {"PATH": f"{folder}:{os.environ['PATH']}"},
            capture_output=True,
            text=True,
            timeout=LIMIT,
        )
        assert (done.returncode, done.stderr) == (0, "")
        return done.stdout, calls.read_text().splitlines() if calls.exists() else []


def dry_run(flags: str) -> str:
    """The command line, and what `run` would do."""
    arguments = ["run", *shlex.split(f"{WHERE} {flags}"), "--dry_run", "--", "alpacare", "train"]
    shown, calls = run_bash("launch/tpu_run.sh", *arguments)
    assert calls == []
    return f"$ tpu_run.sh {shlex.join(arguments)}\n{shown}"


def gcloud_lines(shown: str) -> list[str]:
    """Those of a dry run that are a call of gcloud."""
    return [line for line in shown.splitlines() if re.match(r"(timeout \S+ \d+ )?gcloud ", line)]


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
    lines = gcloud_lines(shown)
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


FOLLOWED = """
cd() { :; } # the clone is here
bash() { command bash "$1" "$2" --dry_run "${@:3}"; }
"""


def test_the_guide_can_be_followed_to_its_end():
    """All its commands, as they stand: ours in a dry run, the others noted."""
    text = (REPOSITORY / "docs" / "tpu.md").read_text(encoding="utf-8")
    page = [body for _, language, body in documents.FENCE.findall(text) if language == "bash"]
    shown, calls = run_bash("-euc", FOLLOWED + "".join(page))
    called = [line for line in calls if line.startswith("gcloud ")]
    ours = gcloud_lines(shown)
    assert len(called) > 15 and len(ours) > 30
    assert [(line, found) for line in called + ours if (found := undocumented(line))] == []
    trained = re.findall(r"of-the-run python -m (\S+) ([^']*)", shown)
    assert len(trained) == 3
    for module, arguments in trained:
        check_module("docs/tpu.md", module, arguments, documents.flag_names(arguments))
    created = [line for line in ours if " create " in line]
    assert all("--service-account=trainer@my-alpaca-1.iam." in line for line in created)


def test_each_flag_for_gcloud_in_the_guide_is_accepted_and_documented():
    text = (REPOSITORY / "docs" / "tpu.md").read_text(encoding="utf-8")
    spans = [span for span in documents.spans(text) if span.startswith("--create_flags=--")]
    spans += [
        span
        for span in documents.spans(text)
        if span.startswith(("--ssh_flags=", '--create_flags="'))
    ]
    assert len(spans) >= 7
    for span in spans:
        lines = gcloud_lines(dry_run(f"--accelerator_type=v5p-8 --queued {span}"))
        assert [(line, found) for line in lines if (found := undocumented(line))] == [], span


def test_skypilot_starts_the_same_run():
    """launch/sky.yaml agrees with the launcher: the image, what is started again, the flags."""
    sky = yaml.safe_load((REPOSITORY / "launch" / "sky.yaml").read_text(encoding="utf-8"))
    resources = sky["resources"]
    golden = (GOLDEN / "v5litepod-16.txt").read_text(encoding="utf-8")
    assert f"--runtime-version={resources['accelerator_args']['runtime_version']} " in golden
    assert resources["accelerators"] == "tpu-v5litepod-16"
    codes = resources["job_recovery"]["recover_on_exit_codes"]
    retried = " && ".join(f"may_retry {code}" for code in codes)
    run_bash("-c", f". launch/lib/restart.sh && {retried}")
    port = sky["envs"]["JAX_COORDINATOR_PORT"]
    assert f"JAX_COORDINATOR_PORT={port} " in golden
    (arguments,) = re.findall(r"-m alpacare_jax.train (.*)", sky["run"].replace("\\\n", ""))
    check_module("sky.yaml", "alpacare_jax.train", arguments, documents.flag_names(arguments))


if __name__ == "__main__" and sys.argv[1:] == ["--write"]:
    GOLDEN.mkdir(exist_ok=True)
    for run, given in RUNS.items():
        (GOLDEN / f"{run}.txt").write_text(dry_run(given), encoding="utf-8")
