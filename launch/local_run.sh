#!/usr/bin/env bash
# Runs one command as several processes on this machine, as a pod would run it on several hosts.
#
#     bash launch/local_run.sh --processes=2 --devices=4 -- \
#         python -m alpacare_jax.train --config=configs/quickstart.py --workdir=run
#
# --processes=N  how many (default 2)
# --devices=N    CPU devices that each process pretends to have (default 1)
# --port=N       the port of process 0 (default: a free one)
# --restarts=N   starts all again, at most N times (default 0), where a signal ended one: it was
#                killed, it crashed, or the watchdog found it stuck. Exit codes such as 1 and 2 are
#                final.
#
# The first process that fails ends all others. SIGTERM and SIGINT reach every process, and end it
# all. Exit code: that of the first failure, 0 where all ended well.
set -euo pipefail
# shellcheck source=launch/lib/restart.sh
. "$(dirname "$0")/lib/restart.sh"

processes=2 devices=1 port='' restarts=0
while [ $# -gt 0 ]; do
    case $1 in
    --processes=*) processes=${1#*=} ;;
    --devices=*) devices=${1#*=} ;;
    --port=*) port=${1#*=} ;;
    --restarts=*) restarts=${1#*=} ;;
    --help | -h)
        awk 'NR > 1 { if (!/^#/) exit; sub(/^# ?/, ""); print }' "$0"
        exit 0
        ;;
    --)
        shift
        break
        ;;
    *)
        echo "error: unexpected argument '$1'; usage:" \
            "local_run.sh --processes=N --devices=N --restarts=N -- COMMAND" >&2
        exit 2
        ;;
    esac
    shift
done
for number in "$processes" "$devices" "${port:-1}"; do
    if ! [[ $number =~ ^[1-9][0-9]*$ ]]; then
        echo "error: '$number' is not a positive number" >&2
        exit 2
    fi
done
if ! [[ $restarts =~ ^[0-9]{1,9}$ ]]; then
    echo "error: --restarts=$restarts is not a whole number" >&2
    exit 2
fi
if [ $# = 0 ]; then
    echo "error: no command; write it after --" >&2
    exit 2
fi

# Should this script be killed outright, the kernel kills its processes too.
tie=()
if command -v setpriv >/dev/null; then tie=(setpriv --pdeathsig KILL); fi

alive() { kill -0 "$1" 2>/dev/null; }

free_port() { # a random one that nobody answers on, below those that the system hands out itself
    local port
    for _ in $(seq 50); do
        port=$((20000 + RANDOM % 10000))
        (exec 3<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null || break
    done
    echo "$port"
}

start_all() { # COMMAND...: sets `pids`
    local i address=127.0.0.1:${port:-$(free_port)}
    pids=()
    for ((i = 0; i < processes; i++)); do
        JAX_PLATFORMS=${JAX_PLATFORMS:-cpu} JAX_NUM_CPU_DEVICES=$devices \
            JAX_COORDINATOR_ADDRESS=$address JAX_NUM_PROCESSES=$processes JAX_PROCESS_ID=$i \
            "${tie[@]}" "$@" &
        pids+=($!)
    done
    # A signal that came while there was nobody to tell.
    if [ "$asked" = 1 ]; then kill -TERM "${pids[@]}" 2>/dev/null || true; fi
}

end_all() { # a failed run has nothing to save: 5 seconds to say goodbye
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
        # Until a process ends, or a signal comes; bash's own lines on who was killed say no more.
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

asked=0 pids=()
trap 'asked=1; kill -TERM "${pids[@]}" 2>/dev/null || true' TERM INT
count=0
while :; do
    start_all "$@"
    wait_for_all
    if [ "$asked" = 1 ] || [ "$restarts" = 0 ] || ! may_retry "$code"; then break; fi
    count=$((count + 1))
    announce_retry "a process ended with code $code" "$count" "--restarts=$restarts" || break
done
exit "$code"
