#!/usr/bin/env bash
# Runs a command on GPU machines: a SLURM job, or a list of hosts that ssh reaches.
#
#     bash launch/gpu_run.sh sbatch --nodes=2 --gpus_per_node=8 --time=24:00:00 -- \
#         python -m alpacare_jax.train --config=configs/alpacare.py:llama-7b --workdir=runs/7b
#     bash launch/gpu_run.sh ssh --hosts=gpu1,gpu2 -- COMMAND
#     bash launch/gpu_run.sh status --hosts=gpu1,gpu2
#     bash launch/gpu_run.sh stop --hosts=gpu1,gpu2
#
# sbatch  makes .venv here, writes runs/slurm/NAME.sbatch and submits it. COMMAND runs in this
#         folder, which all nodes must see, as one process a node that uses all its GPUs. Before the
#         time is over it gets SIGTERM, saves, and the job is queued again; so it is when a node
#         fails, and when a signal ended COMMAND (a crash, out of memory, the watchdog). A command
#         that fails by itself is not tried again. To save and end: scancel --signal=TERM JOB
# ssh     copies the working tree to every host, installs, starts COMMAND on all as one run, and
#         shows the first host's log. When one fails the others are ended; where a signal ended it,
#         or its host was restarted, all start again. SIGTERM and Ctrl-C pass on, and COMMAND saves;
#         a second one ends it. Without this terminal COMMAND goes on, but is not started again; the
#         same command again watches it again. Hosts need ssh without a password.
# status  what runs on the hosts.
# stop    sends SIGTERM to COMMAND on all hosts: training saves and ends.
#
# --name=NAME --nodes=N --gpus_per_node=N --time=T     (sbatch; alpacare, 1, 8, 24:00:00)
# --partition=P --account=A --mem=M                    (sbatch; the cluster's defaults)
# --cpus_per_node=N           (sbatch; default 8 for each GPU)
# --signal_seconds=N          (sbatch; SIGTERM so long before the end, default 300)
# --max_retries=N             (sbatch, ssh; how often it is queued or started again, default 20)
# --hosts=A,B,C               (ssh; as ssh knows them)
# --coordinator=HOST:PORT     (ssh; how the others reach the first host; default: its name, 8476)
# --dry_run                   prints each command, and the job; runs nothing
set -euo pipefail
cd "$(dirname "$0")/.."
. launch/remote.sh

action=${1:-}
case $action in
sbatch | ssh | status | stop) shift ;;
--help | -h) usage ;;
*) misuse "'$action' is none of sbatch, ssh, status, stop; see gpu_run.sh --help" ;;
esac

name=alpacare nodes=1 gpus_per_node=8 time=24:00:00 partition='' account='' mem='' cpus_per_node=''
signal_seconds=300 max_retries=20 hosts='' coordinator='' dry_run=0
while [ $# -gt 0 ]; do
    case $1 in
    --name=*) name=${1#*=} ;;
    --nodes=*) nodes=${1#*=} ;;
    --gpus_per_node=*) gpus_per_node=${1#*=} ;;
    --time=*) time=${1#*=} ;;
    --partition=*) partition=${1#*=} ;;
    --account=*) account=${1#*=} ;;
    --mem=*) mem=${1#*=} ;;
    --cpus_per_node=*) cpus_per_node=${1#*=} ;;
    --signal_seconds=*) signal_seconds=${1#*=} ;;
    --max_retries=*) max_retries=${1#*=} ;;
    --hosts=*) hosts=${1#*=} ;;
    --coordinator=*) coordinator=${1#*=} ;;
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
for flag in name nodes gpus_per_node time partition account mem cpus_per_node; do
    [[ ${!flag} =~ ^[A-Za-z0-9_.:,-]*$ ]] ||
        misuse "--$flag='${!flag}' has characters that SLURM does not take"
done
for flag in nodes gpus_per_node; do
    number "--$flag" "${!flag}"
    [ "${!flag}" != 0 ] || misuse "--$flag=0; give 1 or more"
done
number --signal_seconds "$signal_seconds"
number --max_retries "$max_retries"
cpus_per_node=${cpus_per_node:-$((gpus_per_node * 8))}
number --cpus_per_node "$cpus_per_node"
IFS=, read -ra HOSTS <<<"$hosts"
if [ "$action" != sbatch ]; then
    [ ${#HOSTS[@]} != 0 ] || misuse "$action needs --hosts=A,B,C"
    for host in "${HOSTS[@]}"; do
        [[ $host =~ ^[A-Za-z0-9][A-Za-z0-9_.@-]*$ ]] || misuse "--hosts: '$host' is no host name"
    done
    coordinator=${coordinator:-${HOSTS[0]#*@}:8476}
    [[ $coordinator =~ ^[^:]+:[0-9]+$ ]] || misuse "--coordinator='$coordinator' is not HOST:PORT"
fi
case $action in
sbatch | ssh) check_command "$@" ;;
*) if [ $# != 0 ]; then misuse "$action takes no command"; fi ;;
esac
needed=ssh
if [ "$action" = sbatch ]; then needed=sbatch; fi
if [ "$dry_run" = 0 ] && ! command -v "$needed" >/dev/null; then
    fail "$needed is not installed here; run this where it is, or add --dry_run"
fi

. launch/slurm_job.sh

on_host() { # LIMIT N COMMAND
    bounded "$1" ssh -o BatchMode=yes -o ConnectTimeout=20 \
        -o ServerAliveInterval=30 "${HOSTS[$2]}" "$3"
}

on_each() { # LIMIT MAKE: on all hosts at once, on host N the command that `MAKE N` prints
    local i code bad='' pids=()
    if [ "$dry_run" = 1 ]; then
        for i in "${!HOSTS[@]}"; do on_host "$1" "$i" "$("$2" "$i")"; done
        return
    fi
    for i in "${!HOSTS[@]}"; do
        rm -f "$WORK/code.$i"
        (
            code=0
            ERRORS=$WORK/stderr.$i on_host "$1" "$i" "$("$2" "$i")" >"$WORK/stdout.$i" || code=$?
            echo "$code" >"$WORK/code.$i"
        ) &
        pids+=($!)
    done
    for i in "${!HOSTS[@]}"; do
        while kill -0 "${pids[$i]}" 2>/dev/null; do wait "${pids[$i]}" || true; done # see `signals`
        code=$(cat "$WORK/code.$i")
        cat "$WORK/stdout.$i"
        if [ "$code" != 0 ] && [ -z "$bad" ]; then bad=$i; fi
    done
    if [ -z "$bad" ]; then return; fi
    cp "$WORK/stderr.$bad" "$WORK/stderr"
    echo "error: ${HOSTS[$bad]}: $(because)" >"$WORK/cause"
    mv "$WORK/cause" "$WORK/stderr"
    return 1
}

on_worker() { # LIMIT N COMMAND
    local same=$3
    if [ "$2" != all ]; then
        on_host "$@"
        return
    fi
    same_command() { echo "$same"; }
    on_each "$1" same_command
}

host_gone() { return 1; } # nobody takes these hosts away

signals=0 heeded=0 # a signal ends a wait, and is heeded when there is time
heed_signals() {
    if [ "$signals" = "$heeded" ]; then return; fi
    heeded=$signals
    if [ "$signals" = 1 ]; then
        say "SIGTERM passed on; waiting until all hosts have saved (again: ends them)"
        on_worker "$ASK_SECONDS" all "bash $WORKER stop" || say "not to all: $(because)"
    else
        end_all
    fi
}

end_all() { # for what has nothing to save, or does not end; a host that is gone cannot be told
    cp "$WORK/stderr" "$WORK/kept"
    on_worker "$ASK_SECONDS" all "bash $WORKER stop 20" || true
    cp "$WORK/kept" "$WORK/stderr"
}

copy_command() { echo "cat > alpacare-jax-$1.tgz"; }
unpack_command() { install_command "alpacare-jax-$1.tgz" gpu; }
start_command() {
    echo "bash $WORKER start $KEY $(quote env JAX_COORDINATOR_ADDRESS="$coordinator" \
        JAX_NUM_PROCESSES="${#HOSTS[@]}" JAX_PROCESS_ID="$1" ALPACARE_GIT_COMMIT="$COMMIT" \
        "${COMMAND[@]}")"
}

bring_up() { # copies, installs and starts
    say "copying the working tree to all hosts"
    INPUT=$ARCHIVE on_each "$INSTALL_SECONDS" copy_command ||
        fail "cannot copy the working tree: $(because)"
    say "installing on all hosts (minutes, the first time)"
    on_each "$INSTALL_SECONDS" unpack_command || fail "cannot install: $(because)"
    if [ "$signals" != 0 ]; then exit 143; fi
    say "starting on all hosts"
    if ! on_each "$ASK_SECONDS" start_command; then
        end_all
        fail "not all hosts started the command, so none runs it: $(because)"
    fi
}

start_again() { # COUNT: sees to the ends that may be tried again; false for all others
    local why="$HOST was restarted, or the command there got SIGTERM"
    if [ "$OUTCOME" = failed ]; then
        why="the command failed on $HOST with code $CODE"
        worth_another_try "$CODE" || return 1
    elif [ "$OUTCOME" != interrupted ]; then
        return 1
    fi
    if [ "$signals" != 0 ] || [ "$max_retries" = 0 ]; then return 1; fi
    end_all
    another_try "$why" "$1" "--max_retries=$max_retries" || exit "$CODE"
    pause "$RETRY_SECONDS"
    if [ "$signals" != 0 ]; then exit 143; fi
    bring_up
}

run() { # COMMAND...
    local retries=0
    ARCHIVE=$CACHE/gpu-$name.tgz COMMAND=("$@") KEY=$(run_key "$@")
    trap 'signals=$((signals + 1))' INT TERM
    states || fail "not all hosts answer: $(because)"
    pack "$ARCHIVE" # once: a retry runs what was asked for, not what was edited since
    if grep -q ' running ' "$WORK/states"; then
        if grep ' running ' "$WORK/states" | grep -qv " $KEY$"; then
            fail "another command runs there; end it first with: gpu_run.sh stop --hosts=$hosts"
        fi
        say "this command runs already; watching it"
    else
        bring_up
    fi
    watch
    while start_again $((retries + 1)); do
        retries=$((retries + 1))
        watch
    done
    case $OUTCOME in
    done) say "done" ;;
    stopped)
        say "stopped with code $CODE, as asked; run again to go on"
        exit "$CODE"
        ;;
    failed)
        end_all
        printf 'error: the command failed on %s with code %s; the other hosts were ended\n' \
            "$HOST" "$CODE" >&2
        exit "$CODE"
        ;;
    interrupted)
        end_all
        fail "$HOST was shut down or the command there got SIGTERM; run again to go on"
        ;;
    *)
        end_all
        fail "some hosts do not answer, the others were ended: $(because)"
        ;;
    esac
}

prepare_work
case $action in
sbatch) submit "$@" ;;
ssh) run "$@" ;;
status)
    states || fail "not all hosts answer: $(because)"
    if [ "$dry_run" = 0 ]; then awk '{ print $2, $3, "code " $4 }' "$WORK/states"; fi
    ;;
stop)
    on_worker "$ASK_SECONDS" all "bash $WORKER stop" || fail "cannot stop on all hosts: $(because)"
    say "SIGTERM sent to all hosts; training saves and ends, see: gpu_run.sh status"
    ;;
esac
