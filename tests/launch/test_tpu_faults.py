"""What a cloud does to a run in days: full zones, hosts that are not reached, maintenance."""

import re
import shutil
import subprocess
import time

import pytest

from tests.conftest import LIMIT
from tests.launch.conftest import write_program
from tests.launch.test_launch import AGAIN, FROM_NOTHING, ONCE, ONCE_MORE, bash, only_error

FULL = """ERROR: (gcloud.compute.tpus.tpu-vm.create) {
  "code": 8,
  "message": "There is no more capacity in the zone \\"us-west4-a\\"; you can try in another zone
}"""
TRAINED = bash("echo trained")


class TestNoRoom:
    def test_twenty_refused_creates_then_room(self, cloud):
        """At the first create, and with no retries to spare."""
        cloud.fail("create", FULL, times=20)
        result = cloud.tpu("run", "--spot", "--max_retries=1", *TRAINED)
        assert (result.returncode, result.stdout) == (0, "trained\n"), result.stderr
        assert cloud.steps() == ["create"] * 20 + FROM_NOTHING
        line = 'no more capacity in the zone \\"us-west4-a\\"; you can try in another zone }; '
        assert f"{line}asking again for up to 72 h" in result.stderr
        assert result.stderr.count("no more capacity") == 1, "the same news is told once"

    def test_after_a_preemption(self, cloud):
        event = "cp $CLOUD/full $CLOUD/fail/create; echo PREEMPTED >$CLOUD/tpu"
        (cloud.root / "full").write_text(f"20 {FULL}")
        result = cloud.tpu("run", *bash(ONCE.format(f"[ $WORKER = 1 ] && {{ {event}; }}")))
        assert (result.returncode, result.stdout) == (0, "trained\n"), result.stderr
        assert cloud.steps() == [*FROM_NOTHING, "delete", *["create"] * 21, *AGAIN]

    def test_after_a_preemption_no_error_of_gcloud_is_final(self, cloud):
        event = "for step in create delete describe; do echo '3 ERROR: login has expired'"
        event += " >$CLOUD/fail/$step; done; echo PREEMPTED >$CLOUD/tpu"
        result = cloud.tpu("run", *bash(ONCE.format(f"[ $WORKER = 1 ] && {{ {event}; }}")))
        assert (result.returncode, result.stdout) == (0, "trained\n"), result.stderr
        assert "alpaca is in an unknown state; waiting" in result.stderr
        for what in ("delete", "create"):
            assert re.search(f"cannot {what} alpaca.*: ERROR: login has expired", result.stderr)

    def test_the_wait_is_bounded(self, cloud):
        cloud.fail("create", FULL)
        result = cloud.tpu("create", "--wait_hours=0")
        assert result.returncode == 1
        assert re.search("no more capacity.*waited for --wait_hours=0", only_error(result))

    @pytest.mark.parametrize(
        "message",
        [
            "ERROR: (gcloud.x) Quota limit 'TPUV5s' has been exceeded. Limit: 8 in zone us-west4-a",
            "ERROR: (gcloud.x) PERMISSION_DENIED: Cloud TPU API has not been used in project p",
            "ERROR: (gcloud.x) INVALID_ARGUMENT: runtime version nothing is not valid",
        ],
    )
    def test_what_waiting_does_not_mend_ends_the_first_create(self, cloud, message):
        cloud.fail("create", message)
        result = cloud.tpu("run", *TRAINED)
        assert result.returncode == 1
        assert only_error(result) == f"error: cannot create alpaca: {message}"
        assert cloud.steps() == ["create"]

    @pytest.mark.parametrize("cause", ["There is no more capacity in the zone", "internal error"])
    def test_a_request_that_found_no_room_is_made_anew(self, cloud, cause):
        (cloud.root / "request").write_text(f"FAILED|{cause}")
        result = cloud.tpu("run", "--queued", *TRAINED)
        assert result.returncode == 0, result.stderr
        assert f"deleting alpaca, which is FAILED: {cause}" in result.stderr
        assert cloud.steps() == ["delete", *FROM_NOTHING]

    def test_a_request_that_fails_in_a_retry_is_made_anew(self, cloud):
        event = "printf 'CREATING\\nFAILED|a service error\\n' >$CLOUD/granted_as"
        event += "; echo SUSPENDED >$CLOUD/request; echo PREEMPTED >$CLOUD/tpu"
        command = bash(ONCE.format(f"[ $WORKER = 1 ] && {{ {event}; }}"))
        process = cloud.start(*cloud.tpu_arguments("run", "--queued", "--spot", *command))
        seen = []
        for line in process.stderr:
            seen.append(line)
            if "which is FAILED: a service error" in line:
                (cloud.root / "granted_as").unlink()
        out, _ = process.communicate(timeout=LIMIT)
        assert (process.returncode, out) == (0, "trained\n"), seen
        assert cloud.steps().count("start") == 2

    def test_any_states_in_any_order(self, cloud):
        """Of the request, then of the node."""
        request = "CREATING ACCEPTED WAITING_FOR_RESOURCES PROVISIONING SUSPENDING DELETING ACTIVE"
        (cloud.root / "request").write_text("\n".join([*request.split(), "SUSPENDED"]))
        node = "CREATING STARTING RESTARTING REIMAGING REPAIRING STOPPING UNHIDING DELETING"
        (cloud.root / "tpu").write_text("\n".join(node.split()))
        (cloud.root / "granted_as").write_text("ACTIVE")
        (cloud.root / "made_as").write_text("CREATING\nREPAIRING\nREADY")
        result = cloud.tpu("run", "--queued", *TRAINED)
        assert result.returncode == 0, result.stderr
        assert cloud.steps() == ["delete", *FROM_NOTHING]
        (cloud.root / "calls").unlink()
        (cloud.root / "tpu").write_text("\n".join([*node.split(), "PREEMPTED", "DELETING"]))
        result = cloud.tpu("run", *TRAINED)
        assert result.returncode == 0, result.stderr
        assert cloud.steps() == ["delete", *FROM_NOTHING]

    @pytest.mark.parametrize("state", ["STOPPED", "HIDDEN", "UNKNOWN"])
    def test_states_that_somebody_has_to_look_at(self, cloud, state):
        (cloud.root / "tpu").write_text(state)
        result = cloud.tpu("run", *TRAINED)
        assert result.returncode == 1
        assert f"alpaca is {state}; delete it with" in only_error(result)
        assert cloud.steps() == []


class TestHostsAreCounted:
    """gcloud ends with 0 though a slice was not reached."""

    @pytest.mark.parametrize("step", ["scp", "unpack", "install", "start"])
    def test_a_slice_is_lost(self, cloud, step):
        """For each step: from then on its node is gone for a moment; the step is done again."""
        (cloud.ready(slices=2).root / "missing" / step).write_text("1")
        result = cloud.tpu("run", "--slices=2", *TRAINED)
        missing = "slice 1 worker 0, slice 1 worker 1"
        if step in ("scp", "unpack"):
            assert result.returncode == 0, result.stderr
            assert cloud.steps().count("scp") == 2
        else:
            word = {"install": "install on", "start": "start on"}[step]
            assert result.returncode == 1
            assert f"cannot {word} {missing}: HttpError accessing" in only_error(result)
            assert cloud.processes() == []

    @pytest.mark.parametrize(("action", "step"), [("status", "state"), ("stop", "stop")])
    def test_a_slice_is_lost_in_other_actions(self, cloud, action, step):
        (cloud.ready(slices=2).root / "missing" / step).write_text("1")
        result = cloud.tpu(action, "--slices=2")
        assert result.returncode == 1
        missing = "slice 1 worker 0, slice 1 worker 1: HttpError accessing"
        assert missing in only_error(result)

    def test_no_slice_is_reached(self, cloud):
        cloud.ready(slices=2)
        for slice_ in "01":
            (cloud.root / f"tpu-{slice_}").write_text("READY\nSTOPPING")
        result = cloud.tpu("stop", "--slices=2")
        assert result.returncode == 1
        assert "cannot stop slice 0 worker 0, slice 0 worker 1, slice 1 worker 0, slice 1" in (
            only_error(result)
        )

    def test_status_and_stop_name_who_does_not_answer(self, cloud):
        (cloud.ready().root / "silent/t1v-n-1-w-1").touch()
        status = cloud.tpu("status")
        assert status.returncode == 1
        assert status.stdout == "alpaca READY\nworker 0 none code 1\n"
        assert "no answer from worker 1" in only_error(status)
        assert "cannot stop worker 1" in only_error(cloud.tpu("stop"))

    def test_an_archive_of_another_run_is_not_taken(self, cloud):
        """scp says 0 and has copied nothing; an old archive lies on the host."""
        home = cloud.ready().root / "homes/t1v-n-1-w-1"
        home.mkdir(parents=True)
        (home / "alpacare-jax.tgz").write_text("old")
        (cloud.root / "unsent/t1v-n-1-w-1").touch()
        result = cloud.tpu("run", *TRAINED)
        assert result.returncode == 1
        assert "cannot copy the working tree to worker 1" in only_error(result)
        assert cloud.steps().count("scp") == 3

    def test_hosts_that_are_not_named_are_still_counted(self, cloud):
        """An image without `hostname`: addresses are unknown."""
        write_program(cloud.root / "host_bin/hostname", "#!/bin/sh\nexit 1\n")
        assert cloud.ready().tpu("run", *TRAINED).returncode == 0
        (cloud.root / "silent/t1v-n-1-w-1").touch()
        assert "no answer from worker 0, worker 1" in only_error(cloud.tpu("status"))


SILENT_ONCE = """
if mkdir $CLOUD/once.$WORKER 2>&-; then touch $CLOUD/up.$WORKER; sleep 60; fi
echo trained
"""


class TestMaintenance:
    def wait_for_polls(self, cloud, count):
        before, deadline = len(cloud.calls("state")), time.monotonic() + LIMIT
        while len(cloud.calls("state")) < before + count:
            assert time.monotonic() < deadline, "the hosts are not asked any more"
            time.sleep(0.02)

    @pytest.mark.parametrize(("health", "polls"), [("UNHEALTHY_MAINTENANCE", 20), ("HEALTHY", 3)])
    def test_silent_polls_then_a_reboot(self, cloud, health, polls):
        (cloud.root / "tpu").write_text("READY")
        process = cloud.start(*cloud.tpu_arguments("run", *bash(SILENT_ONCE)))
        for worker in "01":
            cloud.wait_for(f"up.{worker}")
        self.wait_for_polls(cloud, 1)  # the answers to `start` have arrived, too
        host = "t1v-n-1-w-1"
        (cloud.root / "silent" / host).touch()
        (cloud.root / "tpu").write_text(f"READY|{health}")
        self.wait_for_polls(cloud, polls)
        assert process.poll() is None
        # The host comes back, without its processes and with another boot.
        run = cloud.root / "homes" / host / "alpacare-jax/run"
        subprocess.run(["pkill", "-KILL", "-s", (run / "pid").read_text().strip()], check=False)
        key = (run / "key").read_text().split()[0]
        (run / "key").write_text(f"{key} another-boot\n")
        (cloud.root / "tpu").write_text("READY")
        (cloud.root / "silent" / host).unlink()
        out, err = process.communicate(timeout=LIMIT)
        assert (process.returncode, out) == (0, "trained\n"), err
        said = f"no answer from worker 1: .*; alpaca is READY(, {health})?; waiting"
        assert len(re.findall(said, err)) == 1, err
        assert "the command was interrupted on worker 1; restarting, 1 of at most 10" in err
        assert cloud.steps() == [*ONCE_MORE, *AGAIN]

    def test_a_silent_host_is_missed_though_gcloud_cannot_describe_the_tpu(self, cloud):
        """Worker 0 ends well meanwhile, which is not all."""
        command = bash("touch $CLOUD/up.$WORKER; until [ -f $CLOUD/go ]; do sleep 0.1; done")
        process = cloud.ready().start(*cloud.tpu_arguments("run", *command))
        for worker in "01":
            cloud.wait_for(f"up.{worker}")
        self.wait_for_polls(cloud, 1)
        (cloud.root / "silent/t1v-n-1-w-1").touch()
        cloud.fail("describe", "ERROR: the service is unavailable", times=2)
        (cloud.root / "go").touch()
        self.wait_for_polls(cloud, 5)
        assert process.poll() is None
        (cloud.root / "silent/t1v-n-1-w-1").unlink()
        _, err = process.communicate(timeout=LIMIT)
        assert process.returncode == 0, err
        assert "no answer from worker 1: " in err and "any host" not in err

    def test_silence_of_a_healthy_tpu_is_bounded(self, cloud):
        """It counts as a failure of the command, and the hosts are asked again."""
        cloud.ready()
        command = bash("touch $CLOUD/silent/$HOSTNAME; sleep 60")
        result = cloud.tpu("run", "--max_retries=1", *command, ALPACARE_SILENT_SECONDS="0")
        assert result.returncode == 1
        assert "restarting, 1 of at most 1 times" in result.stderr
        error = only_error(result)
        assert "cannot copy the working tree to worker 0, worker 1" in error
        assert "interrupted 2 times, over --max_retries=1" in error

    def test_before_the_start_it_waits_until_hosts_answer(self, cloud):
        (cloud.root / "tpu").write_text("READY|UNHEALTHY_MAINTENANCE")
        cloud.fail("state", "ERROR: no route to host", times=3)
        result = cloud.tpu("run", *TRAINED)
        assert result.returncode == 0, result.stderr
        assert "alpaca is under maintenance, no answer from worker 0, worker 1" in result.stderr

    def test_repairs_are_waited_for(self, cloud):
        process = cloud.ready().start(*cloud.tpu_arguments("run", *bash(SILENT_ONCE)))
        self.wait_for_polls(cloud, 2)  # the answers to `start` have arrived, too
        (cloud.root / "tpu").write_text("REPAIRING\nREPAIRING\nREADY\n")
        shutil.rmtree(cloud.root / "homes/t1v-n-1-w-1/alpacare-jax/run")
        out, err = process.communicate(timeout=LIMIT)
        assert (process.returncode, out) == (0, "trained\n"), err
        assert "alpaca is REPAIRING; the command is restarted when it is there again" in err
        assert "create" not in cloud.steps()


class TestConnections:
    def test_the_log_repeats_and_loses_nothing(self, cloud):
        """gcloud repeats a command whose connection breaks, after a part of it or at its end."""
        cloud.ready()
        cloud.fail("log", times=1)
        cloud.fail("state", times=3)
        for file in ("half/log", "twice/log"):
            (cloud.root / file).touch()
        script = "for i in $(seq 8); do echo line $i; touch $CLOUD/twice/log; sleep 0.2; done"
        result = cloud.tpu("run", *bash(f"{script}; printf end"))
        assert result.stdout == "".join(f"line {i}\n" for i in range(1, 9)) + "end", result.stderr

    def test_a_long_log_comes_in_pieces(self, cloud):
        script = "yes 'one of many lines' | head -c 2500001; echo; echo € end"
        result = cloud.ready().tpu("run", *bash(script))
        assert len(result.stdout) == 2500001 + len("\n€ end\n")
        assert result.stdout.endswith("\n€ end\n")
        asked = {int(call[-1].rsplit(" ", 1)[1]) for call in cloud.calls("log")}
        assert {1, 1_000_001, 2_000_001} <= asked
        assert cloud.tpu("logs", "--worker=1").stdout == result.stdout

    @pytest.mark.parametrize("how", ["half", "twice", "lost"])
    def test_each_step_may_be_repeated(self, cloud, how):
        """Half a line of a host counts for nothing, and a second start does nothing."""
        for step in ("state", "unpack", "install", "start", "stop"):
            (cloud.ready().root / how / step).touch()
        script = "echo start >>$CLOUD/ran; mkdir $CLOUD/once.$WORKER && kill -KILL $$"
        result = cloud.tpu("run", *bash(f"{script}; echo trained >>$CLOUD/ran"))
        assert result.returncode == 0, result.stderr
        assert sorted(cloud.lines("ran")) == ["start"] * 4 + ["trained"] * 2
        assert list((cloud.root / how).iterdir()) == [], "all of them happened"

    def test_what_hangs_is_ended_with_its_ssh(self, cloud):
        write_program(
            cloud.root / "bin/gcloud",
            "#!/bin/bash\necho '1 READY'\nsleep 6543 & echo $! >>$CLOUD/ssh; wait\n",
        )
        result = cloud.tpu("status", ALPACARE_ASK_SECONDS="0.2")
        assert result.returncode == 1
        assert "cannot query the state of alpaca: ERROR: no answer within 0.2 s" in only_error(
            result
        )
        (ssh,) = cloud.lines("ssh")
        assert subprocess.run(["ps", "-o", "stat=", ssh], capture_output=True).stdout[:1] in b"Z"

    def test_an_error_over_several_lines_and_updates(self, cloud):
        (cloud.ready().root / "updates").touch()
        cloud.fail(
            "describe", 'ERROR: (gcloud.x) {\n  "message": "no"\n}\n\n\nUpdates are available'
        )
        result = cloud.tpu("status")
        assert only_error(result).endswith('alpaca: ERROR: (gcloud.x) { "message": "no" }')

    def test_a_stop_request_is_handled_while_gcloud_hangs(self, cloud):
        command = bash("touch $CLOUD/hang/state; sleep 60")
        process = cloud.ready().start(*cloud.tpu_arguments("run", *command))
        cloud.wait_for("hangs")
        process.terminate()
        _, err = process.communicate(timeout=LIMIT)
        assert process.returncode == 143
        assert "the command keeps running" in err


class TestKeys:
    @pytest.mark.parametrize("slices", [1, 2])
    def test_an_agent_with_other_keys_gets_gclouds(self, cloud, slices):
        (cloud.ready(slices).root / "agent").write_text("github\n")
        add = '#!/bin/sh\n[ "$1" = -q ] && echo "${2##*/}" >>$CLOUD/agent\n'
        write_program(cloud.root / "bin/ssh-add", add)
        run = ["run", f"--slices={slices}", *TRAINED]
        refused = cloud.tpu(*run, SSH_AUTH_SOCK="/agent")
        assert refused.returncode == 1
        assert "is not present in the SSH agent" in only_error(refused)
        write_program(cloud.root / "user/.ssh/google_compute_engine", "key")
        result = cloud.tpu(*run, SSH_AUTH_SOCK="/agent")
        assert result.returncode == 0, result.stderr
        assert "google_compute_engine" in cloud.lines("agent")

    def test_an_agent_that_refuses_the_key(self, cloud):
        (cloud.ready().root / "agent").write_text("github\n")
        write_program(cloud.root / "bin/ssh-add", "#!/bin/sh\necho agent refused >&2; exit 1\n")
        write_program(cloud.root / "user/.ssh/google_compute_engine", "key")
        result = cloud.tpu("run", *TRAINED, SSH_AUTH_SOCK="/agent")
        assert result.returncode == 1
        assert ".ssh/google_compute_engine to the ssh agent: agent refused" in result.stderr
        assert "SSH Key is not present in the SSH agent" in only_error(result)

    def test_root_cannot_log_in(self, cloud):
        result = cloud.ready().tpu("status", LOGNAME="root")
        assert result.returncode == 1
        assert "log in as root, which TPU VMs refuse; run this as another user" in only_error(
            result
        )
        assert cloud.calls() == []
