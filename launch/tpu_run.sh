#!/usr/bin/env bash
# Makes a TPU, runs a command on all its hosts, and does so again after preemption.
#
#     bash launch/tpu_run.sh create --name=alpaca --zone=us-west4-a --spot \
#         --accelerator_type=v5litepod-16 --version=v2-alpha-tpuv5-lite
#     bash launch/tpu_run.sh run    (the same flags) -- \
#         python -m alpacare_jax.train --config=configs/alpacare.py:llama-7b --workdir=/mnt/all/run
#     bash launch/tpu_run.sh status --name=alpaca --zone=us-west4-a
#     bash launch/tpu_run.sh logs   --name=alpaca --zone=us-west4-a --worker=3 [--follow]
#     bash launch/tpu_run.sh stop   --name=alpaca --zone=us-west4-a
#     bash launch/tpu_run.sh delete --name=alpaca --zone=us-west4-a
#
# create  makes the TPU, and waits until it is ready.
# run     makes it where it does not exist; copies the working tree (what git tracks, and new files
#         that it does not ignore) to every host; installs; starts COMMAND on all hosts, shows
#         worker 0's log, and ends with COMMAND's exit code. The TPU stays: delete it when you are
#         done. Without this terminal COMMAND goes on; the same `run` again watches it again.
#         A preempted TPU is deleted and made anew, and COMMAND started again, which goes on from
#         its checkpoint; so write to a bucket (gs://). On a healthy TPU only what a
#         signal ended (a crash, out of memory, the watchdog) is started again.
#         All this is done by `run`, as long as it lives. For a run of days start it in tmux on a
#         machine that stays on (the smallest VM will do): tmux new -s alpaca 'bash launch/...'.
#         Should it end too, the same `run` takes up where things are.
# status  the TPU's state and that of COMMAND on every host.
# logs    what COMMAND printed on one host.
# stop    sends SIGTERM to COMMAND on all hosts: training saves and ends.
# delete  deletes the TPU, and with --queued its request.
#
# --name=NAME --zone=ZONE     which TPU
# --project=PROJECT           default: gcloud's
# --accelerator_type=TYPE     e.g. v5litepod-16, v4-8, v6e-8             (create, run)
# --version=VERSION           runtime version, e.g. v2-alpha-tpuv5-lite  (create, run)
# --spot                      cheaper, and may be preempted              (create, run)
# --queued                    asked for as a queued resource of the same name, and waited for
# --slices=N                  N such TPUs as one run, in one queued resource; with all actions.
#                             sharding.data must be a multiple of N (default 1)
# --max_retries=N             how often `run` starts again (default 10; 0: it makes no TPU either)
# --slice=N --worker=N        (logs; 0 where not given)  --follow  (logs: to the end of COMMAND)
# --dry_run                   prints each command, runs none; needs no gcloud
set -euo pipefail
cd "$(dirname "$0")/.."
. launch/remote.sh

action=${1:-}
case $action in
create | run | status | logs | stop | delete) shift ;;
--help | -h) usage ;;
*) misuse "'$action' is none of create, run, status, logs, stop, delete; see tpu_run.sh --help" ;;
esac

name='' zone='' project='' accelerator_type='' version='' spot=0 queued=0 max_retries=10
slices=1 slice=0 worker=0 follow=0 dry_run=0
while [ $# -gt 0 ]; do
    case $1 in
    --name=*) name=${1#*=} ;;
    --zone=*) zone=${1#*=} ;;
    --project=*) project=${1#*=} ;;
    --accelerator_type=*) accelerator_type=${1#*=} ;;
    --version=*) version=${1#*=} ;;
    --max_retries=*) max_retries=${1#*=} ;;
    --slices=*) slices=${1#*=} ;;
    --slice=*) slice=${1#*=} ;;
    --worker=*) worker=${1#*=} ;;
    --spot) spot=1 ;;
    --queued) queued=1 ;;
    --follow) follow=1 ;;
    --dry_run) dry_run=1 ;;
    --help | -h) usage ;;
    --)
        shift
        break
        ;;
    *) misuse "unexpected '$1'; flags are written --flag=value, COMMAND after --; see --help" ;;
    esac
    shift
done
[[ $name =~ ^[a-z]([-a-z0-9]*[a-z0-9])?$ ]] ||
    misuse "--name='$name' is no TPU name; give lower-case letters, digits and hyphens"
[[ $zone =~ ^[a-z0-9-]+$ ]] || misuse "--zone='$zone' is no zone; give one, e.g. --zone=us-west4-a"
number --max_retries "$max_retries"
number --worker "$worker"
number --slices "$slices"
number --slice "$slice"
if [ "$slices" = 0 ]; then misuse "--slices=0; give 1 or more"; fi
if [ "$slice" -ge "$slices" ]; then
    misuse "--slice=$slice, but --slices=$slices; slices count from 0"
fi
if [ "$slices" != 1 ]; then queued=1; fi # nothing else makes several
if [ "$action" = create ] || { [ "$action" = run ] && [ "$max_retries" != 0 ]; }; then
    if [ -z "$accelerator_type" ] || [ -z "$version" ]; then
        misuse "$action may make a TPU; it needs --accelerator_type and --version"
    fi
fi
if [ "$action" = run ]; then
    check_command "$@"
elif [ $# != 0 ]; then
    misuse "$action takes no command"
fi
if [ "$dry_run" = 0 ] && ! command -v gcloud >/dev/null; then
    fail "gcloud is not installed; install the Google Cloud CLI, or add --dry_run"
fi

. launch/tpu_vm.sh

attempt() { # RETRIES COMMAND...: sets OUTCOME as `watch` does
    local retries=$1 command
    shift
    OUTCOME=interrupted CODE=1 HOST=$name
    if ! ensure_ready "$retries"; then return; fi
    if states && grep -q ' running ' "$WORK/states"; then
        if [ "$retries" != 0 ]; then # what a preemption or a reboot left on the other hosts
            on_worker "$ASK_SECONDS" all "bash $WORKER stop 120" || true
        elif grep ' running ' "$WORK/states" | grep -qv " $(run_key "$@")$"; then
            fail "another command runs on $name; end it first with: tpu_run.sh stop"
        else
            say "this command runs already; watching it"
            watch
            return
        fi
    fi
    say "copying the working tree to all hosts"
    if ! copy; then
        host_gone || fail "cannot copy the working tree: $(because)"
        return
    fi
    say "installing on all hosts (minutes, the first time)"
    if ! on_worker "$INSTALL_SECONDS" all "$(install_command alpacare-jax.tgz tpu)"; then
        host_gone || fail "cannot install on all hosts: $(because)"
        return
    fi
    # The port is JAX's old one, which is open in Google's networks (jax#35905).
    command=$(quote env ALPACARE_DISTRIBUTED=1 JAX_COORDINATOR_PORT=8476 \
        ALPACARE_GIT_COMMIT="$COMMIT" "$@")
    say "starting on all hosts"
    if ! on_worker "$ASK_SECONDS" all "bash $WORKER start $(run_key "$@") $command"; then
        if host_gone; then return; fi
        cp "$WORK/stderr" "$WORK/cause"
        on_worker "$ASK_SECONDS" all "bash $WORKER stop 20" || true # each would wait for all
        cp "$WORK/cause" "$WORK/stderr"
        fail "not all hosts started the command, so none runs it: $(because)"
    fi
    watch
}

leave() { # CODE
    say "what runs goes on without you; see tpu_run.sh status, logs and stop"
    exit "$1"
}

run() { # COMMAND...
    local retries=0 why
    ARCHIVE=$CACHE/$name.tgz # made once: a retry runs what was asked for, not what was edited since
    pack "$ARCHIVE"
    trap 'leave 130' INT
    trap 'leave 143' TERM
    while :; do
        attempt "$retries" "$@"
        why="$name was interrupted"
        case $OUTCOME in
        done)
            say "done. $name still costs money; delete it with: tpu_run.sh delete"
            return
            ;;
        stopped)
            say "stopped with code $CODE, as asked; run again to go on. $name still costs money"
            exit "$CODE"
            ;;
        failed)
            on_worker "$ASK_SECONDS" all "bash $WORKER stop 20" || true # all wait for the dead one
            why="the command failed on $HOST with code $CODE"
            if [ "$max_retries" = 0 ] || ! worth_another_try "$CODE"; then
                why+="; see tpu_run.sh logs --worker=${HOST##*-}"
                if [ "$slices" != 1 ]; then why+=" and --slice, by tpu_run.sh status"; fi
                printf 'error: %s\n' "$why" >&2
                exit "$CODE"
            fi
            ;;
        silent)
            fail "some hosts of $name do not answer: $(because); run again to watch again" ;;
        esac
        retries=$((retries + 1))
        another_try "$why" "$retries" "--max_retries=$max_retries" || exit "$CODE"
        pause "$RETRY_SECONDS"
    done
}

heed_signals() { :; } # they end this script, not the command

prepare_work
case $action in
create)
    create || fail "cannot make $name: $(because)"
    max_retries=0 ensure_ready 0
    ;;
run) run "$@" ;;
status)
    find_state || fail "cannot learn the state of $name: $(because)"
    if [ "$dry_run" = 0 ]; then echo "$name $STATE"; fi
    if [ "$STATE" = READY ]; then
        for i in "${!NODES[@]}"; do
            if [ "$slices" != 1 ]; then SLICE=$i; fi
            states || fail "not all hosts of ${NODES[$i]} answer: $(because)"
            if [ "$dry_run" = 1 ]; then continue; fi
            if [ "$slices" != 1 ]; then echo "slice $i:"; fi
            awk '{ print $2, $3, "code " $4 }' "$WORK/states"
        done
    fi
    ;;
logs)
    if [ "$follow" = 1 ]; then how=" follow"; else how=; fi
    at "$slice" "$worker"
    call "${REACH[@]}" ssh "$name" "${WHERE[@]}" "${AT[@]}" \
        --command="bash $WORKER log 1$how" || fail "cannot read the log: $(because)"
    ;;
stop)
    on_worker "$ASK_SECONDS" all "bash $WORKER stop" || fail "cannot stop on all hosts: $(because)"
    say "SIGTERM sent to all hosts; training saves and ends, see: tpu_run.sh status"
    ;;
delete) delete || fail "cannot delete $name: $(because)" ;;
esac
