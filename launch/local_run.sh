#!/usr/bin/env bash
# Runs one command as several processes on this machine, as a pod would run it on several hosts.
#
#     bash launch/local_run.sh --processes=2 --devices=4 -- \
#         python -m alpacare_jax.train --config=configs/quickstart.py --workdir=run
#
# --processes=N  how many (default 2)
# --devices=N    CPU devices that each process pretends to have (default 1)
# --port=N       the port of process 0 (default: a free one)
#
# The first process that fails ends all others. SIGTERM and SIGINT reach every process. Exit code:
# that of the first failure, 0 where all ended well.
set -euo pipefail

processes=2 devices=1 port=
while [ $# -gt 0 ]; do
    case $1 in
    --processes=*) processes=${1#*=} ;;
    --devices=*) devices=${1#*=} ;;
    --port=*) port=${1#*=} ;;
    --help | -h)
        sed -n '2,12s/^# \{0,1\}//p' "$0"
        exit 0
        ;;
    --)
        shift
        break
        ;;
    *)
        echo "error: unexpected argument '$1'; usage:" \
            "local_run.sh --processes=N --devices=N -- COMMAND" >&2
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
if [ $# = 0 ]; then
    echo "error: no command; write it after --" >&2
    exit 2
fi

if [ -z "$port" ]; then
    # A random one that nobody answers on; below the range that the system hands out by itself.
    for _ in $(seq 50); do
        port=$((20000 + RANDOM % 10000))
        (exec 3<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null || break
    done
fi

# Should this script be killed outright, the kernel kills its processes too.
tie=()
if command -v setpriv >/dev/null; then tie=(setpriv --pdeathsig KILL); fi

pids=()
for ((i = 0; i < processes; i++)); do
    JAX_PLATFORMS=${JAX_PLATFORMS:-cpu} JAX_NUM_CPU_DEVICES=$devices \
        JAX_COORDINATOR_ADDRESS=127.0.0.1:$port JAX_NUM_PROCESSES=$processes JAX_PROCESS_ID=$i \
        "${tie[@]}" "$@" &
    pids+=($!)
done

alive() { kill -0 "$1" 2>/dev/null; }

end_all() { # a failed run has nothing to save: 5 seconds to say goodbye
    kill -TERM "$@" 2>/dev/null || true
    for _ in $(seq 50); do
        for pid in "$@"; do alive "$pid" && break; done || return 0
        sleep 0.1
    done
    kill -KILL "$@" 2>/dev/null || true
}
trap 'kill -TERM "${pids[@]}" 2>/dev/null || true' TERM INT

code=0
while [ ${#pids[@]} -gt 0 ]; do
    wait -n || true # until a process ends, or a signal comes
    left=()
    for pid in "${pids[@]}"; do
        if alive "$pid"; then
            left+=("$pid")
            continue
        fi
        status=0
        wait "$pid" || status=$?
        [ "$code" != 0 ] || code=$status
    done
    if [ "$code" != 0 ] && [ ${#left[@]} -gt 0 ]; then
        echo "local_run: a process ended with code $code; ending the other ${#left[@]}" >&2
        end_all "${left[@]}"
    fi
    pids=("${left[@]}")
done
exit "$code"
