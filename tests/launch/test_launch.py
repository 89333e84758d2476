"""The launch scripts, against the stand-ins of conftest.py for gcloud and SLURM."""

import re
import shlex
import shutil
import subprocess
from collections import Counter
from pathlib import Path

import pytest

from tests.conftest import LIMIT, REPOSITORY
from tests.launch.conftest import MAKES, PYTHON, write_program

WHERE = ["--zone=us-west4-a", "--quiet"]


def bash(script: str) -> list[str]:
    return ["--", "bash", "-c", script]


def only_error(result: subprocess.CompletedProcess) -> str:
    """The error: one line, the last one, and nothing but progress (dots: of pip) before it."""
    lines = result.stderr.splitlines()
    errors = [line for line in lines if line.startswith("error: ")]
    assert errors == lines[-1:], result.stderr
    assert all(re.match(r"(tpu|gpu)_run: |[. ]*$", line) for line in lines[:-1]), result.stderr
    return errors[0]


class TestCreate:
    def test_direct(self, cloud):
        result = cloud.tpu("create", "--project=p")
        assert result.returncode == 0, result.stderr
        assert cloud.calls("create") == [
            ["compute", "tpus", "tpu-vm", "create", "alpaca", "--accelerator-type=v5litepod-16"]
            + ["--version=v2", "--zone=us-west4-a", "--project=p", "--quiet"]
        ]

    def test_queued_spot_waits_until_it_is_granted(self, cloud):
        result = cloud.tpu("create", "--queued", "--spot")
        assert result.returncode == 0, result.stderr
        assert cloud.calls("create") == [
            ["compute", "tpus", "queued-resources", "create", "alpaca", "--node-id=alpaca"]
            + ["--accelerator-type=v5litepod-16", "--runtime-version=v2", "--spot", *WHERE]
        ]
        assert [call[2] for call in cloud.calls("describe")] == [
            *["queued-resources"] * 5,  # MISSING, ACCEPTED, WAITING..., PROVISIONING, ACTIVE
            "tpu-vm",
        ]

    def test_a_request_that_failed(self, cloud):
        (cloud.root / "request").write_text("FAILED|the service account may not do this")
        result = cloud.tpu("create", "--queued")
        assert result.returncode == 1
        assert "is FAILED: the service account may not do this; delete it" in only_error(result)
        assert cloud.calls("delete", "create") == []


ONCE_MORE = ["scp", "unpack", "install", "start"]
FROM_NOTHING = ["create", *ONCE_MORE]
AGAIN = ["stop", *ONCE_MORE]  # what may be left over is ended first

ONCE_ON_1 = """
if mkdir $CLOUD/once.$WORKER 2>&-; then
    [ $WORKER = 1 ] && until [ -d $CLOUD/once.0 ]; do sleep 0.1; done && {}
    sleep 60
fi
echo trained
"""
"""A command to which something happens on worker 1, the first time."""


class TestRun:
    def test_from_nothing_to_the_end(self, cloud):
        script = 'echo "$WORKER $ALPACARE_DISTRIBUTED $JAX_COORDINATOR_PORT"; python -m train'
        result = cloud.tpu("run", *bash(script))
        assert result.returncode == 0, result.stderr
        assert cloud.steps() == FROM_NOTHING
        venv = cloud.root / "homes/t1v-n-1-w-0/alpacare-jax/venv"
        assert result.stdout == f"0 1 8476\npython in {venv}: -m train\n"
        assert "still costs money" in result.stderr
        for step in ("scp", "unpack", "install", "start", "state"):
            assert all("--worker=all" in call for call in cloud.calls(step))
        assert all("--worker=0" in call for call in cloud.calls("log"))

    def test_the_tree_is_what_git_knows(self, cloud):
        result = cloud.ready().tpu("run", *bash("mkdir runs; touch runs/mine"))
        assert result.returncode == 0
        assert re.search(r"copying \d+ files, 0\.\d MB\n", result.stderr)
        assert "new files, such as new file.py, are not copied: git add them, or" in result.stderr
        tree = cloud.root / "homes/t1v-n-1-w-1/alpacare-jax/tree"
        assert not (tree / "new file.py").exists()
        assert cloud.tpu("run", "--untracked", *bash("true")).returncode == 0
        assert (tree / "new file.py").read_text() == "new"
        assert (tree / "setup.py").exists()
        assert not (tree / "gone.py").exists()
        assert not (tree / "data").exists()
        # The next copy takes away what is gone here, and nothing that a run has written.
        (tree.parent / "files").write_text("new file.py\nold.py\n")
        (tree / "old.py").touch()
        assert cloud.tpu("run", "--untracked", *bash("true")).returncode == 0
        assert not (tree / "old.py").exists()
        assert (tree / "new file.py").exists()
        assert (tree / "runs/mine").exists()

    def test_a_large_tree_is_refused(self, cloud, project):
        git = ["git", "-C", str(project)]
        for name, size in {"weights.bin": 90_000_000, "a b.bin": 20_000_000}.items():
            with open(project / name, "wb") as file:
                file.truncate(size)
        subprocess.run([*git, "add", "-N", "weights.bin", "a b.bin"], check=True)
        try:
            result = cloud.ready().tpu("run", *bash("true"))
        finally:
            subprocess.run([*git, "rm", "-q", "-f", "weights.bin", "a b.bin"], check=True)
        assert result.returncode == 1
        error = only_error(result)
        assert "over 100 MB; keep data and models out of git; the largest are weights.bin" in error
        assert "weights.bin (90.0 MB), a b.bin (20.0 MB)" in error
        assert cloud.calls() == []

    def test_a_workdir_that_is_lost_with_its_host_is_said(self, cloud):
        for workdir, said in (("runs/x", 1), ("gs://b/x", 0)):
            command = [*bash("true"), "python", f"--workdir={workdir}"]
            result = cloud.ready().tpu("run", *command)
            assert result.returncode == 0, result.stderr
            assert result.stderr.count(f"--workdir={workdir} is lost with the hosts") == said

    def test_the_copy_is_private(self, cloud):
        assert cloud.ready().tpu("run", *bash("true")).returncode == 0
        (archive,) = cloud.root.glob("user/.cache/alpacare-jax/*.tgz")
        assert archive.stat().st_mode & 0o077 == 0

    def test_words_arrive_as_they_were_written(self, cloud):
        words = [
            "a b",
            "it's",
            '"q"',
            "$HOME",
            "a;b",
            "*",
            "",
            "x=1",
            "two\nlines",
            "--f=c d",
            "\\",
        ]
        result = cloud.ready().tpu(
            "run", "--", "bash", "-c", 'printf "%s\\0" "$@" >"$CLOUD/words.$WORKER"', "x", *words
        )
        assert result.returncode == 0, result.stderr
        for worker in "01":
            assert (cloud.root / f"words.{worker}").read_text() == "\0".join(words) + "\0"

    def test_a_broken_install_is_done_again(self, cloud):
        (cloud.root / "pip-fails-1").touch()
        result = cloud.ready().tpu("run", *bash("true"))
        assert result.returncode == 1
        assert "No matching distribution found for jax" in only_error(result)
        assert "start" not in cloud.steps()

        def stamps():
            return sorted(p.parts[-4] for p in cloud.root.glob("homes/*/*/venv/installed*"))

        assert stamps() == ["t1v-n-1-w-0"]
        (cloud.root / "pip-fails-1").unlink()
        assert cloud.tpu("run", *bash("true")).returncode == 0
        assert stamps() == ["t1v-n-1-w-0", "t1v-n-1-w-1"]
        installs = [line.split() for line in cloud.lines("pip")]
        assert sorted(line[0][-1] for line in installs) == ["0", "1", "1"]
        tree = cloud.root / "homes/t1v-n-1-w-1/alpacare-jax/tree"
        assert installs[-1][1] == str(tree)
        assert installs[-1][-4:] == ["--constraint", "constraints.txt", "--editable", ".[tpu]"]

    def test_the_command_knows_its_commit(self, cloud):
        """The copy has no .git; new files in the tree are a change."""
        git = ["git", "-C", str(cloud.project), "rev-parse", "HEAD"]
        head = subprocess.run(git, capture_output=True, text=True, check=True).stdout.strip()
        result = cloud.ready().tpu("run", *bash('echo "$ALPACARE_GIT_COMMIT"'))
        assert result.stdout == f"{head}-dirty\n", result.stderr

    def test_a_command_that_a_signal_ended_starts_again(self, cloud):
        """As after running out of memory: worker 1 is killed, on a TPU that stays healthy."""
        result = cloud.ready().tpu("run", *bash(ONCE_ON_1.format("kill -KILL $$")))
        assert (result.returncode, result.stdout) == (0, "trained\n"), result.stderr
        assert cloud.steps() == [*ONCE_MORE, "stop", "stop", *ONCE_MORE]
        assert (
            "tpu_run: the command failed on worker 1 with code 137; restarting, 1 of at "
            "most 10 times\n"
        ) in result.stderr

    @pytest.mark.parametrize("times", [0, 2])
    def test_starting_again_is_bounded(self, cloud, times):
        result = cloud.ready().tpu("run", f"--max_retries={times}", *bash("kill -ABRT $$"))
        assert result.returncode == 134
        assert re.search("the command failed on worker . with code 134", only_error(result))
        assert ("interrupted 3 times, over --max_retries=2" in result.stderr) == bool(times)
        assert Counter(cloud.steps())["start"] == times + 1

    def test_a_failing_command_is_not_tried_again(self, cloud):
        """Worker 1 fails: its code is returned, and worker 0, which waits for it, is ended."""
        result = cloud.ready().tpu("run", *bash('[ "$WORKER" = 0 ] || exit 3; sleep 60'))
        assert result.returncode == 3
        assert only_error(result) == (
            "error: the command failed on worker 1 with code 3; see tpu_run.sh logs --worker=1"
        )
        assert cloud.steps() == [*ONCE_MORE, "stop"]
        assert cloud.processes() == []

    def test_a_command_that_does_not_exist(self, cloud):
        result = cloud.ready().tpu("run", "--", "no-such-command")
        assert result.returncode == 127
        assert "no-such-command" in result.stdout

    def test_a_host_that_does_not_start_it_ends_all(self, cloud):
        home = cloud.root / "homes/t1v-n-1-w-1/alpacare-jax"
        home.mkdir(parents=True)
        (home / "run").touch()  # where a folder is needed
        result = cloud.ready().tpu("run", *bash("sleep 60"))
        assert result.returncode == 1
        assert "cannot start on worker 1: mkdir: cannot create directory" in only_error(result)
        assert cloud.steps()[-2:] == ["start", "stop"]
        assert cloud.processes() == []

    @pytest.mark.parametrize("step", ["describe", "create", "scp", "install", "start"])
    def test_gcloud_fails(self, cloud, step):
        if step != "create":
            cloud.ready()
        cloud.fail(step, "WARNING: old\nERROR: (gcloud.compute) quota is used up\nmore\n")
        result = cloud.tpu("run", *bash("true"))
        assert result.returncode == 1
        assert "ERROR: (gcloud.compute) quota is used up" in only_error(result)
        assert cloud.calls("delete") == []

    def test_the_first_copy_may_come_too_early(self, cloud):
        cloud.ready().fail("scp", "ERROR: Permission denied (publickey)", times=1)
        assert cloud.tpu("run", *bash("true")).returncode == 0

    def test_without_the_terminal_it_goes_on(self, cloud):
        command = bash("echo one; touch $CLOUD/started; until [ -f $CLOUD/go ]; do sleep 0.1; done")
        process = cloud.ready().start(*cloud.tpu_arguments("run", *command))
        cloud.wait_for("started")
        process.terminate()
        _, err = process.communicate(timeout=LIMIT)
        assert process.returncode == 143
        assert "the command keeps running" in err
        other = cloud.tpu("run", *bash("echo other"))
        assert other.returncode == 1
        assert "another command is running on alpaca; stop it first" in only_error(other)
        process = cloud.start(*cloud.tpu_arguments("run", *command))
        assert any("already running; watching it" in line for line in process.stderr)
        (cloud.root / "go").touch()
        out, err = process.communicate(timeout=LIMIT)
        assert (process.returncode, out) == (0, "one\n"), err
        assert len(cloud.calls("start")) == 1

    def test_a_spot_tpu_is_not_made_again_at_the_full_price(self, cloud):
        (cloud.root / "tpu").write_text("READY||True")
        result = cloud.tpu("run", *bash("true"))
        assert result.returncode == 1
        assert "add --spot" in only_error(result)
        assert cloud.tpu("run", "--spot", *bash("true")).returncode == 0


ONCE = 'if [ "$(cat $CLOUD/made)" = x ]; then {}; sleep 60; fi; echo trained'
"""A command to which something happens on the first TPU, and nothing on the next."""


class TestPreemption:
    @pytest.mark.parametrize(
        ("queued", "event"),
        [
            (False, "echo TERMINATED >$CLOUD/tpu"),
            (False, "printf 'STOPPING\\nPREEMPTED' >$CLOUD/tpu"),
            (False, "rm $CLOUD/tpu"),
            (True, "echo PREEMPTED >$CLOUD/tpu; echo SUSPENDED >$CLOUD/request"),
        ],
    )
    def test_it_is_made_and_run_again(self, cloud, queued, event):
        flags = ["--spot", *(["--queued"] if queued else [])]
        happens = f"[ $WORKER = 1 ] && {{ {event}; }}"
        result = cloud.tpu("run", *flags, *bash(ONCE.format(happens)))
        assert result.returncode == 0, result.stderr
        missing = not queued and event.startswith("rm")
        replaced = ["create"] if missing else ["delete", "create"]
        assert cloud.steps() == [*FROM_NOTHING, *replaced, *AGAIN]
        assert result.stdout == "trained\n"
        creates = cloud.calls("create")
        assert creates[0] == creates[1]
        assert "--spot" in creates[1]
        if queued:
            assert cloud.calls("delete") == [
                ["compute", "tpus", "queued-resources", "delete", "alpaca", "--force", *WHERE]
            ]
        assert len(cloud.lines("pip")) == 4

    def test_it_does_not_count_as_a_failure(self, cloud):
        event = (
            "[ $(cat $CLOUD/made) = xxx ] && exit; [ $WORKER = 1 ] && echo PREEMPTED >$CLOUD/tpu"
        )
        result = cloud.tpu("run", "--max_retries=1", *bash(f"{event}; sleep 60"))
        assert result.returncode == 0, result.stderr
        assert Counter(cloud.steps())["start"] == 3
        assert result.stderr.count("alpaca is PREEMPTED; the command is restarted") == 2

    def test_it_is_gone_as_soon_as_it_is_made(self, cloud):
        (cloud.root / "made_as").write_text("PREEMPTED")
        result = cloud.tpu("run", "--wait_hours=0", *bash("true"))
        assert result.returncode == 1
        assert "PREEMPTED as soon as it is created; waited for --wait_hours=0" in only_error(result)
        assert cloud.steps() == ["create"]

    def test_without_retries_nothing_is_made_or_deleted(self, cloud):
        (cloud.root / "tpu").write_text("PREEMPTED")
        result = cloud.tpu("run", "--max_retries=0", *bash("true"))
        assert result.returncode == 1
        assert "alpaca is PREEMPTED" in only_error(result)
        assert cloud.calls("create", "delete") == []

    def test_deleting_what_is_left_fails(self, cloud):
        (cloud.root / "tpu").write_text("PREEMPTED")
        cloud.fail("delete")
        result = cloud.tpu("run", *bash("true"))
        assert result.returncode == 1
        assert "cannot delete alpaca, which is PREEMPTED: ERROR: it broke" in only_error(result)

    def test_hosts_fail_before_the_state_says_why(self, cloud):
        event = "[ $WORKER = 1 ] && { (sleep 0.5; echo PREEMPTED >$CLOUD/tpu) & }; exit 1"
        result = cloud.tpu("run", *bash(ONCE.format(event)), ALPACARE_SETTLE_SECONDS="1")
        assert result.returncode == 0, result.stderr
        assert Counter(cloud.steps())["start"] == 2

    def test_preempted_while_installing(self, cloud):
        write_program(
            cloud.root / "host_bin" / "python3.11",
            PYTHON.replace('"-m venv', '"-m venv "*) [ "$(cat $CLOUD/made)" = xx ] ||'
                           ' { echo PREEMPTED >$CLOUD/tpu; exit 1; } ;;&\n"-m venv'),
        )  # fmt: skip
        result = cloud.tpu("run", *bash("echo trained"))
        assert result.returncode == 0, result.stderr
        assert cloud.steps() == [*FROM_NOTHING[:-1], "delete", "create", *AGAIN]

    @pytest.mark.parametrize("event", ["reboot", "SIGTERM"])
    def test_maintenance_keeps_the_tpu(self, cloud, event):
        happens = {
            # Another boot, and nothing of the run is left.
            "reboot": "sed -i 's/ .*/ other-boot/' ~/alpacare-jax/run/key; kill -KILL 0",
            # Everything on the host gets SIGTERM; training saves and says 0.
            "SIGTERM": "trap 'exit 0' TERM; kill -TERM 0; sleep 1",
        }[event]
        script = f"if [ $WORKER = 1 ] && mkdir $CLOUD/once; then {happens}; fi; echo trained"
        result = cloud.ready().tpu("run", *bash(script))
        assert result.returncode == 0, result.stderr
        assert cloud.steps() == [*ONCE_MORE, *AGAIN]
        assert len(cloud.lines("pip")) == 2  # what is installed stays so

    def test_another_host_still_runs(self, cloud):
        script = (
            "if mkdir $CLOUD/once.$WORKER; then [ $WORKER = 1 ] && { trap 'exit 0' TERM;"
            " kill -TERM 0; sleep 1; }; sleep 60; fi; echo trained"
        )
        result = cloud.ready().tpu("run", *bash(script))
        assert result.returncode == 0, result.stderr
        assert cloud.steps() == [*ONCE_MORE, *AGAIN]


class TestSlices:
    """Two TPUs of two hosts each, as one queued resource."""

    def test_one_run_on_all_slices(self, cloud):
        result = cloud.tpu("run", "--slices=2", "--spot", *bash("echo on $HOSTNAME"))
        assert result.returncode == 0, result.stderr
        assert result.stdout == "on t1v-n-1-w-0\n"
        assert cloud.steps() == FROM_NOTHING
        assert cloud.calls("create") == [
            ["compute", "tpus", "queued-resources", "create", "alpaca", "--node-count=2"]
            + ["--node-prefix=alpaca", "--accelerator-type=v5litepod-16", "--runtime-version=v2"]
            + ["--spot", *WHERE]
        ]
        for step in ("scp", "unpack", "install", "start", "state"):
            for call in cloud.calls(step):
                assert call[2] == "queued-resources"
                assert {"--node=all", "--worker=all"} <= {*call}
        assert all({"--node=0", "--worker=0"} <= {*call} for call in cloud.calls("log"))
        asked = [call[4] for call in cloud.calls("describe") if call[2] == "tpu-vm"]
        assert {*asked} == {"alpaca-0", "alpaca-1"}
        logs = sorted(path.read_text() for path in cloud.root.glob("homes/*/*/run/log"))
        assert logs == [f"on t1v-n-{i}-w-{j}\n" for i in (1, 2) for j in (0, 1)]

    @pytest.mark.parametrize(
        "event",
        [
            "echo PREEMPTED >$CLOUD/tpu-1",
            "rm $CLOUD/tpu-1",
        ],
    )
    def test_all_are_made_again_when_one_is_preempted(self, cloud, event):
        happens = f"[ $HOSTNAME = t1v-n-2-w-0 ] && {{ {event}; }}"
        result = cloud.tpu("run", "--slices=2", *bash(ONCE.format(happens)))
        assert result.returncode == 0, result.stderr
        assert cloud.steps() == [*FROM_NOTHING, "delete", "create", *AGAIN]
        assert cloud.calls("delete") == [
            ["compute", "tpus", "queued-resources", "delete", "alpaca", "--force", *WHERE]
        ]

    def test_a_failure_on_the_last_slice_ends_all(self, cloud):
        script = "[ $HOSTNAME = t1v-n-2-w-1 ] && exit 3; sleep 60"
        result = cloud.tpu("run", "--slices=2", *bash(script))
        assert result.returncode == 3
        assert only_error(result).endswith(
            "failed on slice 1 worker 1 with code 3; see tpu_run.sh logs --slice=1 --worker=1"
        )
        assert cloud.processes() == []

    @pytest.mark.parametrize("step", ["describe", "start"])
    def test_gcloud_fails(self, cloud, step):
        cloud.ready(slices=2).fail(step, "ERROR: (gcloud.compute) quota is used up")
        result = cloud.tpu("run", "--slices=2", *bash("true"))
        assert result.returncode == 1
        assert "ERROR: (gcloud.compute) quota is used up" in only_error(result)
        assert cloud.calls("delete") == []
        assert cloud.processes() == []

    def test_stop_status_logs_delete(self, cloud):
        script = "exec 2>&-; trap 'exit 0' TERM; echo $HOSTNAME; touch $CLOUD/up.$HOSTNAME;"
        command = bash(f"{script} while :; do sleep 0.1; done")
        process = cloud.start(*cloud.tpu_arguments("run", "--slices=2", *command))
        for host in ("1-w-0", "1-w-1", "2-w-0", "2-w-1"):
            cloud.wait_for(f"up.t1v-n-{host}")
        assert cloud.tpu("status", "--slices=2").stdout == (
            "alpaca READY\n"
            "slice 0 worker 0 running code 0\nslice 0 worker 1 running code 0\n"
            "slice 1 worker 0 running code 0\nslice 1 worker 1 running code 0\n"
        )
        logs = cloud.tpu("logs", "--slices=2", "--slice=1", "--worker=1")
        assert logs.stdout == "t1v-n-2-w-1\n", logs.stderr
        assert cloud.tpu("stop", "--slices=2").returncode == 0
        _, err = process.communicate(timeout=LIMIT)
        assert process.returncode == 0, err
        assert cloud.processes() == []
        assert cloud.tpu("delete", "--slices=2").returncode == 0
        assert not list(cloud.root.glob("tpu*"))

    @pytest.mark.parametrize(
        ("action", "step"),
        [("delete", "delete"), ("stop", "stop"), ("logs", "log"), ("status", "state")]
        + [("status", "describe")],
    )
    def test_gcloud_fails_in_other_actions(self, cloud, action, step):
        cloud.ready(slices=2).fail(step)
        result = cloud.tpu(action, "--slices=2")
        assert result.returncode == 1
        assert "it broke" in only_error(result)


class TestOtherActions:
    def test_stop_status_logs(self, cloud):
        script = "exec 2>&-; echo log of $WORKER; trap 'echo saved; exit 0' TERM;"
        script += " touch $CLOUD/up.$WORKER; while :; do sleep 0.1; done"
        process = cloud.ready().start(*cloud.tpu_arguments("run", *bash(script)))
        for worker in "01":
            cloud.wait_for(f"up.{worker}")
        assert cloud.tpu("status").stdout == (
            "alpaca READY\nworker 0 running code 0\nworker 1 running code 0\n"
        )
        assert cloud.tpu("logs", "--worker=1").stdout == "log of 1\n"
        assert cloud.tpu("stop").returncode == 0
        out, err = process.communicate(timeout=LIMIT)
        assert process.returncode == 0, err
        assert out == "log of 0\nsaved\n"
        assert "stopped as requested, with code 0" in err
        assert len(cloud.calls("start")) == 1
        assert "worker 1 stopped code 0" in cloud.tpu("status").stdout
        assert cloud.tpu("logs", "--worker=1", "--follow").stdout == "log of 1\nsaved\n"
        assert cloud.calls("delete") == []

    def test_status_of_what_is_not_there(self, cloud):
        result = cloud.tpu("status")
        assert (result.returncode, result.stdout) == (0, "alpaca MISSING\n")

    def test_nothing_was_started(self, cloud):
        cloud.ready()
        assert "worker 0 none" in cloud.tpu("status").stdout
        result = cloud.tpu("logs")
        assert result.returncode == 1
        only_error(result)

    @pytest.mark.parametrize("queued", [[], ["--queued"]])
    def test_delete(self, cloud, queued):
        assert cloud.ready().tpu("delete", *queued).returncode == 0
        kind = ["queued-resources", "delete", "alpaca", "--force"] if queued else None
        expected = ["compute", "tpus", *(kind or ["tpu-vm", "delete", "alpaca"]), *WHERE]
        assert cloud.calls() == [expected]

    @pytest.mark.parametrize(
        ("action", "step"),
        [("delete", "delete"), ("stop", "stop"), ("logs", "log"), ("status", "state")]
        + [("status", "describe"), ("create", "describe")],
    )
    def test_gcloud_fails(self, cloud, action, step):
        cloud.ready().fail(step)
        result = cloud.tpu(action)
        assert result.returncode == 1
        assert "it broke" in only_error(result)

    def test_no_gcloud(self, cloud, tools):
        result = cloud.tpu("status", PATH=tools)
        assert result.returncode == 1
        assert "gcloud is not installed" in only_error(result)


class TestDryRun:
    def test_flags_for_gcloud_add_up(self, cloud):
        twice = ("--create_flags=--labels=a=b --reserved", "--create_flags=--tags=c")
        dry = cloud.tpu("create", *twice, "--dry_run").stdout
        assert " --labels=a=b --reserved --tags=c " in dry

    @pytest.mark.parametrize("action", ["create", "run", "status", "logs", "stop", "delete"])
    @pytest.mark.parametrize("queued", [[], ["--queued"], ["--slices=2"]])
    def test_it_prints_what_would_run(self, cloud, tools, action, queued):
        """Every call of the real thing is among the lines, word for word; and none is made."""
        command = bash('echo "it\'s" done') if action == "run" else []
        dry = cloud.tpu(action, *queued, "--dry_run", *command, PATH=tools)
        assert dry.returncode == 0, dry.stderr
        assert dry.stderr == ""
        assert cloud.calls() == []
        assert not list(cloud.root.glob("user/.cache/*/*"))
        printed = [shlex.split(line) for line in dry.stdout.splitlines() if "gcloud " in line]

        def plain(call):  # without what differs from run to run
            text = re.sub(r"log \d+$", "log", re.sub("[0-9a-f]{64}", "SHA256", "\0".join(call)))
            return re.sub(r"(start \S+) \S+ ", r"\1 TOKEN ", text).split("\0")

        printed = [plain(line[line.index("gcloud") + 1 :]) for line in printed]
        if action not in MAKES:
            cloud.ready(slices=2 if queued == ["--slices=2"] else 1)
        cloud.tpu(action, *queued, *command)
        called = cloud.calls()
        assert called
        for call in called:
            assert plain(call) in printed

    def test_what_a_preemption_would_do(self, cloud):
        dry = cloud.tpu("run", "--dry_run", "--max_retries=4", *bash("true")).stdout
        assert "# where it was preempted; then all steps are repeated:" in dry
        assert "tpu-vm delete alpaca" in dry
        dry = cloud.tpu("run", "--dry_run", "--max_retries=0", *bash("true")).stdout
        assert "tpu-vm delete" not in dry
        assert "tpu-vm create" not in dry


A = ("--name=a", "--zone=us-west4-a")


@pytest.mark.parametrize(
    ("arguments", "remedy"),
    [
        (["tpu_run.sh"], "choose create, run, status, logs, stop or delete"),
        (["tpu_run.sh", "start"], "unknown action 'start'"),
        (["tpu_run.sh", "status", "--zone=us-a1-a"], "--name='' is not a TPU name"),
        (["tpu_run.sh", "status", "--name=A_b", "--zone=us-a1-a"], "lower-case letters"),
        (["tpu_run.sh", "status", "--name=a"], "--zone='' is not a zone"),
        (
            ["tpu_run.sh", "status", "--name=a", "--zone=us-west4"],
            "--zone='us-west4' is not a zone",
        ),
        (["tpu_run.sh", "status", "--name", "a"], "'--name': write --name=VALUE"),
        (["tpu_run.sh", "status", "--spot=1"], "'--spot=1': write --spot"),
        (["tpu_run.sh", "status", "--dry-run"], "'--dry-run': write --dry_run"),
        (["tpu_run.sh", "status", "x"], "unexpected 'x'; COMMAND is written after --"),
        (
            ["tpu_run.sh", "create", *A, "--accelerator_type=v5e-16"],
            "v5litepod-N (v5e), v5p-N and v6e-N",
        ),
        (["tpu_run.sh", "run", *A, "--accelerator_type=tpu7x-8"], "TPU7x (Ironwood) needs GKE or"),
        (["tpu_run.sh", "status", *A, "--create_flags=--spot"], "this script decides on --spot"),
        (
            ["tpu_run.sh", "status", *A, "--create_flags=--labels=a b"],
            "'b' is not a flag; write those of",
        ),
        (["tpu_run.sh", "logs", *A, "--ssh_flags=--tunnel"], "--tunnel is none of internal-ip, "),
        (
            ["tpu_run.sh", "create", *A],
            "requires --accelerator_type, e.g. v5litepod-16",
        ),
        (["tpu_run.sh", "run", *A, "--max_retries=0"], "no command; write it"),
        (["tpu_run.sh", "run", *A, "--", "x"], "requires --accelerator_type"),
        (["tpu_run.sh", "run", *A, "--max_retries=-1"], "not a whole number"),
        (["tpu_run.sh", "logs", *A, "--worker=all"], "not a whole number"),
        (["tpu_run.sh", "stop", *A, "--", "x"], "stop takes no command"),
        (["tpu_run.sh", "stop", *A, "--slices=0"], "--slices=0; give 1"),
        (["tpu_run.sh", "stop", *A, "--worker=1"], "stop is for all hosts; --slice and --worker"),
        (["tpu_run.sh", "logs", *A, "--slice=1"], "slices are numbered from 0"),
        (["gpu_run.sh"], "unknown action ''; the only one is sbatch"),
        (["gpu_run.sh", "ssh"], "unknown action 'ssh'"),
        (["gpu_run.sh", "sbatch"], "no command"),
        (["gpu_run.sh", "sbatch", "--nodes=0", "--", "x"], "--nodes=0; give 1 or more"),
        (["gpu_run.sh", "sbatch", "--time=1 day", "--", "x"], "--time='1 day'"),
    ],
)
def test_wrong_arguments(cloud, arguments, remedy):
    result = cloud(*arguments)
    assert result.returncode == 2
    assert remedy in only_error(result)
    assert cloud.calls() == []


LETTERS = "abcdefghijklmnopqrstuvwxyz"
SECRETS = [
    *(f"{name}=x" for name in ("OPENAI_API_KEY", "HF_TOKEN", "GH_PAT", "DB_PASSWORD", "passwd")),
    *("AWS_SECRET_ACCESS_KEY=x", "WANDB_APIKEY=x", "--api-key=x", "--config.auth_token=x"),
    *("--token x", "--hub-password 'x", '{"api_key": "x"}', "accessToken: x", "X-Api-Key: x"),
    *(f"{start}{LETTERS}" for start in ("sk-", "sk-ant-", "a=hf_", "ghp_", "github_pat_", "xoxb-")),
    *(f"AKIA{LETTERS[:16].upper()}", f"Authorization: Bearer {LETTERS}", f"ya29.{LETTERS}"),
    *("https://me:secret@host/x", "-----BEGIN RSA PRIVATE KEY-----", f"eyJ{LETTERS}.x"),
]
NO_SECRETS = [
    *("--config=configs/a.py:llama-7b", "gs://bucket/risk-assessment-of-long-names/keys/token"),
    *("--max_new_tokens=5", "--monkey=3", "--config.key_path=/a", "PATH=/bin", "a:b@c", "--token"),
    *("OPENAI_API_KEY=$(cat ~/key) python x", 'HF_TOKEN="$T" x', "x --token $T", "http://a:80/@x"),
]


@pytest.mark.parametrize("words", [*SECRETS, *NO_SECRETS])
def test_secrets_in_a_command_are_refused(cloud, tools, words):
    result = cloud("gpu_run.sh", "sbatch", "--dry_run", "--", "bash", "-c", words, PATH=tools)
    assert result.returncode == 2 * (words in SECRETS), result.stderr
    if words in SECRETS:
        assert "a secret in the command could be read" in only_error(result)
        assert words not in result.stderr


@pytest.mark.parametrize("script", ["tpu_run.sh", "gpu_run.sh"])
def test_help(cloud, script):
    action = "sbatch" if script == "gpu_run.sh" else "status"
    for arguments in (["--help"], [action, "--help"]):
        result = cloud(script, *arguments)
        assert result.returncode == 0
        assert f"bash launch/{script}" in result.stdout
        assert "set -e" not in result.stdout


class TestSbatch:
    FLAGS = ("--nodes=4", "--gpus_per_node=2", "--time=1:00:00", "--partition=p", "--account=a")

    @pytest.fixture
    def submitted(self, cloud, tmp_path):
        """The job script, in a copy of the project, since it is written there."""
        cloud.project = Path(shutil.copytree(cloud.project, tmp_path / "clone"))
        write_program(tmp_path / "bin" / "python3.11", PYTHON)
        result = cloud("gpu_run.sh", "sbatch", *self.FLAGS, "--", "train", "--name=it's a test")
        assert result.returncode == 0, result.stderr
        assert cloud.calls("sbatch") == [["--parsable", "runs/slurm/alpacare.sbatch"]]
        assert "job 77" in result.stderr
        return tmp_path / "clone/runs/slurm/alpacare.sbatch"

    def run(self, cloud, job, srun: str, **env: str) -> subprocess.CompletedProcess:
        """The job as SLURM would run it; `srun` is what its tasks do."""
        note = 'echo "$@" >>"$CLOUD/$(basename "$0")"\n'
        write_program(cloud.root / "bin/srun", f"#!/bin/bash\n{note}echo $$ >$CLOUD/task\n{srun}\n")
        kill = 'kill -TERM "$(cat $CLOUD/task)"'
        write_program(cloud.root / "bin/scancel", f"#!/bin/bash\n{note}{kill}\n")
        write_program(cloud.root / "bin/scontrol", f"#!/bin/bash\n{note}")
        return subprocess.run(
            ["bash", str(job)],
            env=cloud.env | {"SLURM_JOB_ID": "77"} | env,
            capture_output=True,
            text=True,
            timeout=LIMIT,
        )

    def test_the_job(self, cloud, submitted):
        asked = re.findall(r"^#SBATCH --(\S+)$", submitted.read_text(), flags=re.M)
        assert asked == [
            *("job-name=alpacare", "nodes=4", "ntasks-per-node=1", "gpus-per-node=2"),
            *("cpus-per-task=16", "time=1:00:00", "partition=p", "account=a"),
            *("signal=B:USR1@300", "requeue", "open-mode=append"),
            "output=runs/slurm/alpacare-%j.log",
        ]
        result = self.run(cloud, submitted, 'echo "$JAX_LOCAL_DEVICE_IDS $(pwd) $PATH $9"')
        assert result.returncode == 0, result.stderr
        devices, folder, path, last = result.stdout.split(" ", 3)
        assert devices == "0,1"
        assert Path(folder) == cloud.project
        assert path.startswith(f"{cloud.project}/.venv/bin:")
        assert last == "--name=it's a test\n"
        assert cloud.lines("scontrol") == []
        assert cloud.lines("srun")[0].startswith("--ntasks-per-node=1 --cpus-per-task=16")

    @pytest.mark.parametrize(("code", "requeued"), [(0, ["requeue 77"]), (1, [])])
    def test_the_time_is_over(self, cloud, submitted, code, requeued):
        """The command gets SIGTERM and saves; the job is queued again, unless that failed."""
        job = "$(cut -d ' ' -f 4 /proc/$PPID/stat)"  # the shell that SLURM started
        srun = f"trap 'exit {code}' TERM; kill -USR1 {job}; for i in $(seq 99); do sleep 0.1; done"
        result = self.run(cloud, submitted, srun)
        assert cloud.lines("scancel") == ["--signal=TERM 77"]
        assert cloud.lines("scontrol") == requeued, result.stderr
        assert result.returncode == code

    def test_a_failure_is_not_queued_again(self, cloud, submitted):
        assert self.run(cloud, submitted, "exit 9").returncode == 9
        assert cloud.lines("scontrol") == []

    def test_what_a_signal_ended_is_queued_again(self, cloud, submitted):
        result = self.run(cloud, submitted, "exit 134", SLURM_RESTART_COUNT="4")
        assert cloud.lines("scontrol") == ["requeue 77"]
        assert (
            "the command failed with code 134; restarting, 5 of at most 20 times" in result.stderr
        )

    @pytest.mark.parametrize(("code", "requeued"), [(1, []), (75, ["requeue 77"])])
    def test_the_first_failure_decides(self, cloud, submitted, code, requeued):
        """A task fails and srun kills the others: it tells the highest code."""
        tasks = f'train() {{ return {code}; }}; export -f train; "${{@:4}}";'
        tasks += ' train() { sleep 0.2; return 137; }; export -f train; "${@:4}"'
        result = self.run(cloud, submitted, f"{tasks}; exit 137")
        assert cloud.lines("scontrol") == requeued, result.stderr
        if not requeued:
            assert result.returncode == code
        assert [path.name for path in submitted.parent.iterdir()] == ["alpacare.sbatch"]

    def test_queueing_again_is_bounded(self, cloud, submitted):
        assert self.run(cloud, submitted, "", SLURM_RESTART_COUNT="20").returncode == 0
        result = self.run(cloud, submitted, "exit 134", SLURM_RESTART_COUNT="20")
        assert (result.returncode, cloud.lines("scontrol")) == (134, [])
        result = self.run(cloud, submitted, "", SLURM_RESTART_COUNT="21")
        assert result.returncode == 1
        assert "over --max_retries=20" in result.stderr
        assert len(cloud.lines("srun")) == 2

    def test_refused(self, cloud, tmp_path):
        cloud.project = Path(shutil.copytree(cloud.project, tmp_path / "clone"))
        write_program(tmp_path / "bin" / "python3.11", PYTHON)
        cloud.fail("sbatch", "sbatch: error: invalid partition")
        result = cloud("gpu_run.sh", "sbatch", "--", "x")
        assert result.returncode == 1
        assert "invalid partition" in only_error(result)

    def test_dry_run(self, cloud, tools):
        result = cloud("gpu_run.sh", "sbatch", *self.FLAGS, "--dry_run", "--", "x", PATH=tools)
        assert result.returncode == 0, result.stderr
        assert cloud.calls() == []
        assert not (cloud.project / "runs").exists()
        assert "#SBATCH --nodes=4" in result.stdout
        assert result.stdout.endswith("sbatch --parsable runs/slurm/alpacare.sbatch\n")


@pytest.mark.skipif(not shutil.which("shellcheck"), reason="shellcheck is not installed")
def test_shellcheck():
    scripts = sorted(
        str(path.relative_to(REPOSITORY)) for path in REPOSITORY.glob("launch/**/*.sh")
    )
    assert len(scripts) >= 7
    result = subprocess.run(
        ["shellcheck", "-x", *scripts], cwd=REPOSITORY, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stdout
