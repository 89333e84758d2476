#!/usr/bin/env bash
# Runs one command as several processes on this machine, as a pod runs it on several hosts.
#
#     bash launch/local_run.sh --processes=2 --devices=4 -- \
#         python -m alpacare_jax.train --config=configs/quickstart.py --workdir=run
#
# --processes=N  number of processes (default 2)
# --devices=N    virtual CPU devices of each process (default 1)
# --port=N       the port of process 0 (default: a free one)
# --restarts=N   restarts all, at most N times (default 0), if a signal ended one: it was killed, it
#                crashed, or the watchdog found it stuck; or if it ended with 75 (it lost another
#                process, a device or a bucket). Exit codes such as 1 and 2 are final.
#
# The first process that fails ends all others. SIGTERM and SIGINT are passed to every process.
# Exit code: that of the first failure, or 0.
set -euo pipefail
folder=$(dirname "$0")/lib
# shellcheck source=launch/lib/command_line.sh
. "$folder/command_line.sh"
# shellcheck source=launch/lib/restart.sh
. "$folder/restart.sh"

processes=2 devices=1 port='' restarts=0
parse_flags "processes devices port restarts" '' "$@"
check_positive processes devices ${port:+port}
check_whole restarts
check_command "${COMMAND[@]}"

# If this script is killed with SIGKILL, the kernel kills its processes too.
tie=()
if command -v setpriv >/dev/null; then tie=(setpriv --pdeathsig KILL); fi

alive() { kill -0 "$1" 2>/dev/null; }

free_port() { # a random one that is not in use, below the range that the system assigns from
    local port
    for _ in $(seq 50); do
        port=$((20000 + RANDOM % 10000))
        (exec 3<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null || break
    done
    echo "$port"
}

start_all() { # COMMAND...: sets `pids`
    local i token address=127.0.0.1:${port:-$(free_port)}
    token=$(random_token)
    pids=()
    for ((i = 0; i < processes; i++)); do
        JAX_PLATFORMS=${JAX_PLATFORMS:-cpu} JAX_NUM_CPU_DEVICES=$devices \
            JAX_COORDINATOR_ADDRESS=$address JAX_NUM_PROCESSES=$processes JAX_PROCESS_ID=$i \
            ALPACARE_RUN_TOKEN=$token "${tie[@]}" "$@" &
        pids+=($!)
    done
    # A signal that arrived before the processes were started.
    if [ "$terminated" = 1 ]; then kill -TERM "${pids[@]}" 2>/dev/null || true; fi
}

end_all() { # a failed run has nothing to save: 5 seconds are enough
    kill -TERM "$@" 2>/dev/null || true
    for _ in $(seq 50); do
        for pid in "$@"; do alive "$pid" && break; done || return 0
        sleep 0.1
    done
    kill -KILL "$@" 2>/dev/null || true
}

wait_for_all() { # sets `code`: that of the first that failed, or 0
    local left status
    code=0
    while [ ${#pids[@]} -gt 0 ]; do
        # Until a process ends or a signal arrives; bash's own messages add nothing.
        wait -n 2>/dev/null || true
        left=()
        for pid in "${pids[@]}"; do
            if alive "$pid"; then
                left+=("$pid")
                continue
            fi
            status=0
            wait "$pid" 2>/dev/null || status=$?
            [ "$code" != 0 ] || code=$status
        done
        if [ "$code" != 0 ] && [ ${#left[@]} -gt 0 ]; then
            echo "local_run: a process ended with code $code; ending the other ${#left[@]}" >&2
            end_all "${left[@]}"
        fi
        pids=("${left[@]}")
    done
}

terminated=0 pids=()
trap 'terminated=1; kill -TERM "${pids[@]}" 2>/dev/null || true' TERM INT
count=0
while :; do
    start_all "${COMMAND[@]}"
    wait_for_all
    if [ "$terminated" = 1 ] || [ "$restarts" = 0 ] || ! may_retry "$code"; then break; fi
    count=$((count + 1))
    announce_retry "a process ended with code $code" "$count" "--restarts=$restarts" || break
done
exit "$code"
