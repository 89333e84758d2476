#!/usr/bin/env bash
# Creates a TPU, runs a command on all its hosts, and restarts it after preemption.
#
#     bash launch/tpu_run.sh run FLAGS -- python -m alpacare_jax.train \
#         --config=configs/alpacare.py:llama-7b --workdir=gs://BUCKET/runs/alpacare-7b
#     bash launch/tpu_run.sh create|status|stop|delete FLAGS
#     bash launch/tpu_run.sh logs FLAGS --worker=3 [--follow]
#
# FLAGS are the same for all actions, e.g. --name=alpaca --zone=us-west4-a --spot --queued
# --accelerator_type=v5litepod-16
#
# create  creates the TPU and waits until it is ready.
# run     creates the TPU if it does not exist; copies the files that git tracks, as they are now
#         and at most 100 MB, to every host; installs; starts COMMAND on all hosts,
#         prints the log of worker 0, and exits with COMMAND's exit code. The TPU is kept: delete it
#         when you are done. COMMAND continues without this terminal; the same `run` watches it
#         again. After a preemption `run` recreates the TPU, as soon as there is room, and restarts
#         COMMAND, which resumes from its checkpoint; so write to a bucket (gs://). On a healthy TPU
#         COMMAND is restarted if a signal ended it (a crash, out of memory, the watchdog), or if it
#         lost another host, a device or a bucket (exit code 75). For this `run` must stay alive: start
#         it in tmux on a machine that stays on. If it ends too, the same `run` takes over.
# status  the TPU's state and that of COMMAND on every host.
# logs    what COMMAND printed on one host.
# stop    sends SIGTERM to COMMAND on all hosts, and waits: training saves a checkpoint and ends.
# delete  deletes the TPU, and with --queued its queued resource.
#
# --name=NAME --zone=ZONE     which TPU
# --project=PROJECT           default: that of gcloud
# --accelerator_type=TYPE     v2-N, v3-N, v4-N, v5litepod-N (v5e), v5p-N or v6e-N. TPU7x
#                             (Ironwood) is served by GKE and Compute Engine only
# --version=VERSION           runtime version (default: the type's for JAX)
# --spot                      cheaper, and may be preempted
# --create_flags='--A=1 --B'  more flags for gcloud's create, e.g. --network, --subnetwork,
#                             --internal-ips, --service-account, --reserved, --reservation,
#                             --boot-disk, --labels
# --ssh_flags='--A=1 --B'     more flags for gcloud's ssh and scp, e.g. --internal-ip,
#                             --tunnel-through-iap, --ssh-key-file; repeated, both add up
# --queued                    requests a queued resource of the same name: where the zone is full, it
#                             keeps its place; without it, `create` is tried again every minute
# --wait_hours=N              how long to wait for room, maintenance or a network (default 72)
# --slices=N                  one run on N such TPUs in one queued resource; sharding.data
#                             must be a multiple of N (default 1)
# --untracked                 copies new files that git does not ignore, too     (run)
# --max_retries=N             how often a COMMAND that failed is restarted; preemptions do not count
#                             (default 10; 0: no TPU is created either)
# --slice=N --worker=N        the host whose log is shown                        (run, logs; default 0)
# --follow                    until COMMAND ends                                 (logs)
# --dry_run                   prints each command and runs none; needs no gcloud
set -euo pipefail
cd "$(dirname "$0")/.."
. launch/lib/command_line.sh
. launch/lib/hosts.sh

action=${1:-}
case $action in
create | run | status | logs | stop | delete) shift ;;
--help | -h) usage ;;
*)
    usage_error "unknown action '$action'; choose create, run, status, logs, stop or delete;" \
        "see tpu_run.sh --help"
    ;;
esac

name='' zone='' project='' accelerator_type='' version='' spot=0 queued=0 max_retries=10 wait_hours=72
slices=1 slice=0 worker=0 follow=0 untracked=0 create_flags='' ssh_flags=''
parse_flags "name zone project accelerator_type version max_retries wait_hours slices slice \
worker create_flags ssh_flags" "spot queued follow untracked dry_run" "$@"
[[ $name =~ ^[a-z]([-a-z0-9]*[a-z0-9])?$ ]] ||
    usage_error "--name='$name' is not a TPU name; use lower-case letters, digits and hyphens"
[[ $zone =~ ^[a-z]+-[a-z]+[0-9]+-[a-z0-9]+$ ]] ||
    usage_error "--zone='$zone' is not a zone; give one, e.g. --zone=us-west4-a"
check_whole max_retries wait_hours worker slice
check_positive slices
if [ "$slice" -ge "$slices" ]; then
    usage_error "--slice=$slice, but --slices=$slices; slices are numbered from 0"
fi
[[ $action = run || $action = logs || $slice$worker = 00 ]] ||
    usage_error "$action is for all hosts; --slice and --worker choose a log"
if [ "$slices" != 1 ]; then queued=1; fi # the only way to get several
if [ -n "$accelerator_type" ]; then
    [[ $accelerator_type =~ ^(v[234]|v5litepod|v5p|v6e)-[1-9][0-9]*$ ]] ||
        usage_error "--accelerator_type='$accelerator_type' is none of v2-N, v3-N, v4-N," \
            "v5litepod-N (v5e), v5p-N and v6e-N; TPU7x (Ironwood) needs GKE or Compute Engine"
    declare -A runtimes=([v5litepod]=v2-alpha-tpuv5-lite [v5p]=v2-alpha-tpuv5 [v6e]=v2-alpha-tpuv6e)
    version=${version:-${runtimes[${BASH_REMATCH[1]}]:-tpu-ubuntu2204-base}} # cloud.google.com/tpu/docs/runtimes
elif [ "$action" = create ] || { [ "$action" = run ] && [ "$max_retries" != 0 ]; }; then
    usage_error "$action may create a TPU; it requires --accelerator_type, e.g. v5litepod-16"
fi
split_flags create_flags NONE "zone|project|spot|preemptible|quiet|format|accelerator-type|topology|\
type|version|runtime-version|node-.*|async"
# A wrong flag for ssh would fail only when the TPU exists, and scp must have it, too.
split_flags ssh_flags ONLY "internal-ip|tunnel-through-iap|ssh-key-file|strict-host-key-checking|\
ssh-key-expiration|ssh-key-expire-after|force-key-file-overwrite|plain|batch-size"
if [ "$action" = run ]; then
    check_command "${COMMAND[@]}"
    if [[ " ${COMMAND[*]}" =~ \ --workdir=([^ ]*) && ${BASH_REMATCH[1]} != gs://* ]]; then
        say "--workdir=${BASH_REMATCH[1]} is lost with the hosts that have it; write to a bucket (gs://)"
    fi
elif [ ${#COMMAND[@]} != 0 ]; then
    usage_error "$action takes no command"
fi
[ "$dry_run" = 1 ] || command -v gcloud >/dev/null ||
    fail "gcloud is not installed; install the Google Cloud CLI, or add --dry_run"
# gcloud logs in with the local user's name, which it finds so.
if [ "$dry_run" = 0 ] && [ "${LOGNAME:-${USER:-$(id -un)}}" = root ]; then
    fail "gcloud would log in as root, which TPU VMs refuse; run this as another user, or prepend" \
        "LOGNAME=NAME, any other name"
fi

. launch/lib/tpu_vm.sh

attempt() { # AGAIN COMMAND...: sets OUTCOME as `watch` does
    local again=$1 command key token=${ALPACARE_RUN_TOKEN:-$(random_token)}
    shift
    OUTCOME=interrupted CODE=1 HOST=$name
    key=$(printf '%s\0' "$@" | cksum | tr ' ' -) # equal for equal commands
    ensure_ready
    if [ "$again" = 1 ]; then # left over from before
        on_all "$ASK_SECONDS" "$(worker_command stop 120)" || true
    else
        query_states || true
        if grep -q ^running "$WORK/states"; then
            if grep ^running "$WORK/states" | grep -qv "\s$key\s"; then
                fail "another command is running on $name; stop it first with: tpu_run.sh stop"
            fi
            say "this command is already running; watching it"
            watch
            return
        fi
    fi
    say "copying the working tree to all hosts"
    if ! copy; then step_failed "cannot copy the working tree to" && return; fi
    say "installing on all hosts (takes minutes the first time)"
    if ! on_all "$INSTALL_SECONDS" "bash $SCRIPT install alpacare-jax.tgz tpu"; then
        step_failed "cannot install on" && return
    fi
    # 8476: JAX's former default port, which is open in Google's networks (jax#35905).
    command=$(quote env ALPACARE_DISTRIBUTED=1 JAX_COORDINATOR_PORT=8476 JAX_PLATFORMS=tpu,cpu \
        ALPACARE_GIT_COMMIT="$COMMIT" ALPACARE_RUN_TOKEN="$token" "$@")
    say "starting on all hosts"
    if ! on_all "$ASK_SECONDS" "bash $SCRIPT start $key $(random_token) $command"; then
        step_failed "stopping the others: cannot start on" && return
    fi
    watch
}

step_failed() { # MESSAGE: ends the script where somebody is likely to be watching it
    REASON="$1 $MISSING: $(last_error)"
    if host_gone; then OUTCOME=gone && return; fi
    on_all "$ASK_SECONDS" "$(worker_command stop 20)" || true # each process waits for all others
    if [ "$UNATTENDED" = 0 ]; then fail "$REASON"; fi
}

leave() { # CODE
    say "the command keeps running; see tpu_run.sh status, logs and stop"
    exit "$1"
}

finish_failed() { # ends the script with CODE, unless a restart may help
    on_all "$ASK_SECONDS" "$(worker_command stop 20)" || true # they wait for the dead one
    REASON="the command failed on $HOST with code $CODE"
    if [ "$max_retries" = 0 ] || ! may_retry "$CODE"; then
        HOST=${HOST/slice /--slice=}
        printf 'error: %s; see tpu_run.sh logs %s\n' "$REASON" "${HOST/worker /--worker=}" >&2
        exit "$CODE"
    fi
}

run() { # COMMAND...
    local retries=0 again=0
    ARCHIVE=${XDG_CACHE_HOME:-$HOME/.cache}/alpacare-jax/$name.tgz # packed once: a retry runs the same code
    pack "$ARCHIVE"
    trap 'leave 130' INT
    trap 'leave 143' TERM
    while :; do
        attempt "$again" "$@"
        case $OUTCOME in
        done)
            say "done. $name still costs money; delete it with: tpu_run.sh delete"
            return
            ;;
        stopped)
            say "stopped as requested, with code $CODE; rerun to resume. $name still costs money"
            exit "$CODE"
            ;;
        failed) finish_failed ;;
        esac
        if [ "$OUTCOME" = gone ]; then
            say "$name is $STATE; the command is restarted when it is there again"
        else
            retries=$((retries + 1))
            announce_retry "$REASON" "$retries" "--max_retries=$max_retries" || exit "$CODE"
        fi
        again=1 UNATTENDED=1
        pause "$RETRY_SECONDS"
    done
}

show_status() {
    find_state || fail "cannot query the state of $name: $(last_error)"
    if [ "$dry_run" = 0 ]; then echo "$name $STATE${HEALTH:+, $HEALTH}${CAUSE:+: $CAUSE}"; fi
    if [ "$STATE" != READY ]; then return; fi
    query_states || true
    if [ "$dry_run" = 1 ]; then return; fi
    awk -F '\t' '{ print $5, $1, "code", $2 }' "$WORK/states" | sort -V
    [ -z "$MISSING" ] || fail "no answer from $MISSING: $(last_error)"
}

stop() { # sends SIGTERM, and waits until COMMAND has saved and ended everywhere
    find_state || fail "cannot query the state of $name: $(last_error)"
    [ "$STATE" = READY ] || fail "$name is $STATE; nothing runs there"
    on_all "$ASK_SECONDS" "$(worker_command stop)" || fail "cannot stop $MISSING: $(last_error)"
    say "sent SIGTERM to all hosts; waiting until training has saved a checkpoint and ended"
    until ! grep -q ^running "$WORK/states"; do
        pause "$POLL_SECONDS"
        query_states || fail "cannot see whether $MISSING has ended: $(last_error)"
    done
    say "stopped"
}

prepare_work
case $action in
create) max_retries=1 ensure_ready && say "$name is READY" ;;
run) run "${COMMAND[@]}" ;;
status) show_status ;;
logs)
    NEXT=1
    while :; do
        show_log || fail "cannot read the log: $(last_error)"
        if [ "$follow" = 0 ] || [ "$LOG" = ended ]; then break; fi
        pause "$POLL_SECONDS"
    done
    ;;
stop) stop ;;
delete) delete || fail "cannot delete $name: $(last_error)" ;;
esac
