#!/usr/bin/env bash
# What tpu_run.sh calls on every host. A host has one run, which outlives the connection that
# started it.
#
#     worker.sh install ARCHIVE EXTRA      finishes unpacking ARCHIVE; installs .[EXTRA]
#     worker.sh start KEY TOKEN COMMAND... in the tree; KEY identifies the command, TOKEN this start:
#                                          what is repeated does nothing
#     worker.sh stop [SECONDS]             SIGTERM; SIGKILL if COMMAND still runs after SECONDS
#     worker.sh state                      prints what all of these end with:
#                                          alpacare-state HOST STATE CODE TIME KEY ADDRESSES .
#     worker.sh log BYTE                   the log from there on, at most 1 MB, and a line:
#                                          alpacare-log LENGTH NEXT_BYTE running|ended|more
#
# STATE is running, ended, stopped (by `stop`), interrupted (by a SIGTERM from elsewhere:
# maintenance or preemption), rebooted, lost (ended without a trace), killed (by `stop SECONDS`) or
# none. venv/ and run/ are next to the tree.
set -euo pipefail

BASE=$(cd "$(dirname "$0")/../../.." && pwd)
HOST=${HOSTNAME:-$(uname -n)}
RUN=$BASE/run

read -r BOOT </proc/sys/kernel/random/boot_id

living() { # GROUP: whether any of its processes lives; zombies do not
    ps -eo pgid=,stat= | awk -v group="$1" '$1 == group && !/Z/ { n++ } END { exit !n }'
}

supervisor() { # whether it runs; sets PID, and WORDS: how that process was called
    PID='' WORDS=()
    read -r PID 2>/dev/null <"$RUN/pid" && mapfile -d '' WORDS 2>/dev/null <"/proc/$PID/cmdline"
    # Process ids are reused: after a while this one may be another process.
    [[ ${WORDS[*]} == *supervise* ]]
}

# TPU images have Python 3.10, too old for JAX, and Ubuntu 22.04's own 3.11 is a release candidate.
# uv's is a release, and needs neither sudo nor apt. Sets PYTHON.
install_python() {
    local uv=$HOME/.local/bin/uv apt=(sudo -n env LC_ALL=C DEBIAN_FRONTEND=noninteractive apt-get -q)
    echo "installing Python 3.11" >&2
    if python3 -m pip install --quiet --user --constraint constraints.txt uv >&2 &&
        "$uv" python install --quiet 3.11 >&2 &&
        PYTHON=$("$uv" python find --managed-python 3.11); then
        return
    fi
    echo "uv could not install it; trying apt-get" >&2
    # What a new VM does by itself holds apt's locks for minutes; `update` does not wait for its own.
    for _ in $(seq 60); do
        "${apt[@]}" update >"$BASE/apt.log" 2>&1 || true
        if ! grep -q "Could not get lock" "$BASE/apt.log"; then break; fi
        sleep 10
    done
    "${apt[@]}" -o DPkg::Lock::Timeout=600 install -y python3.11 python3.11-venv >&2
}

install_tree() { # ARCHIVE EXTRA
    local archive=$PWD/$1 extra=$2
    cd "$BASE"
    # gcloud repeats a command whose connection broke, while the first may be at it: the archive stays.
    exec 9>lock && flock 9
    # Files of an earlier archive that this one lacks would still be imported. Nothing else is
    # removed: a run may have written its results into the tree.
    tar --quoting-style=literal -tzf "$archive" | LC_ALL=C sort >files.new
    if [ -f files ]; then
        LC_ALL=C comm -23 files files.new | (cd tree && xargs -r -d '\n' rm -f --)
    fi
    mv files.new files
    cd tree
    VENV=$BASE/venv
    . launch/lib/environment.sh
    if "$VENV/bin/python" -m pip --version >/dev/null 2>&1; then
        PYTHON=$VENV/bin/python
    elif ! find_python >/dev/null 2>&1; then
        install_python || true # prepare_environment reports what is missing
    fi
    prepare_environment "$extra"
    # With huge pages a TPU of v5e or newer starts and stops faster (jax/_src/cloud_tpu_init.py).
    sudo -n sh -c 'echo always >/sys/kernel/mm/transparent_hugepage/enabled' 2>/dev/null || true
}

start() { # KEY TOKEN COMMAND...
    if [ -f "$RUN/token" ] && [ "$(cat "$RUN/token")" = "$2" ]; then return; fi
    if supervisor; then
        echo "error: $HOST: a command is already running; stop it first" >&2
        return 1
    fi
    mkdir -p "$RUN"
    stop 20 # what outlived its supervisor
    rm -f "$RUN/exit" "$RUN/stopped" "$RUN/pid"
    if [ -f "$RUN/log" ]; then mv "$RUN/log" "$RUN/log.previous"; fi
    printf '%s %s\n' "$1" "$BOOT" >"$RUN/key"
    echo "$2" >"$RUN/token"
    # A separate session, so that a dropped connection ends nothing.
    setsid nohup bash "$0" supervise "${@:3}" </dev/null >"$RUN/log" 2>&1 &
    for _ in $(seq 200); do
        if [ -s "$RUN/pid" ]; then return; fi
        sleep 0.05
    done
    rm "$RUN/token"
    echo "error: $HOST: the command did not start" >&2
    return 1
}

record() { # STATE CODE
    printf '%s %s %s\n' "$1" "$2" "$(date +%s.%3N)" >"$RUN/exit.new" # the time shows who was first
    mv "$RUN/exit.new" "$RUN/exit"
}

supervise() { # COMMAND...
    local signals=0 code=0 state=ended
    # A signal reaches the whole session. This shell only counts it, once the command has ended: the
    # command runs in the foreground, where bash returns its true exit code in every case.
    trap 'signals=$((signals + 1))' TERM
    cd "$BASE/tree"
    export VIRTUAL_ENV=$BASE/venv PATH=$BASE/venv/bin:$PATH PYTHONUNBUFFERED=1
    echo $$ >"$RUN/pid.new"
    mv "$RUN/pid.new" "$RUN/pid"
    "$@" || code=$?
    if [ "$signals" != 0 ]; then state=interrupted; fi
    if [ -f "$RUN/stopped" ]; then state=stopped; fi
    record "$state" "$code"
}

state() {
    local status="none 1 9999999999" key=- boot='' addresses
    if [ -f "$RUN/key" ]; then read -r key boot <"$RUN/key"; fi
    if supervisor; then
        status="running 0 $(stat -c %Y "$RUN/pid")"
    elif [ "$PID" ] && [ "$boot" != "$BOOT" ]; then
        status="rebooted 1 9999999999"
    elif [ "$PID" ]; then
        status="lost 137 9999999999" # nothing but SIGKILL leaves no trace
    fi
    if [ -f "$RUN/exit" ]; then read -r status <"$RUN/exit"; fi # it may have ended in between
    addresses=$(hostname -I) || true
    echo "alpacare-state $HOST $status $key -,${addresses// /,} ."
}

stop() { # [SECONDS]
    local seconds=${1:-}
    if ! supervisor && [ "${WORDS[*]}" ]; then return; fi # another process has its id
    [ "$PID" ] && living "$PID" || return 0 # of one that was killed the command may live on
    if [ -z "$seconds" ]; then touch "$RUN/stopped"; fi
    kill -TERM -- "-$PID" 2>/dev/null || true
    if [ -z "$seconds" ]; then return; fi
    for _ in $(seq $((seconds * 5))); do
        living "$PID" || return 0
        sleep 0.2
    done
    kill -KILL -- "-$PID" 2>/dev/null || true
    record killed 137
    for _ in $(seq 300); do # a device is free only when its process is gone
        living "$PID" || return 0
        sleep 0.2
    done
    echo "error: $HOST: process $PID does not end, even by SIGKILL; delete the TPU" >&2
    return 1
}

show_log() { # BYTE
    local from=$1 size count what=ended
    if [ ! -f "$RUN/log" ]; then
        echo "error: $HOST: no command has been started here" >&2
        return 1
    fi
    if supervisor && [ ! -f "$RUN/exit" ]; then what=running; fi
    size=$(stat -c %s "$RUN/log")
    if [ "$from" -gt $((size + 1)) ]; then from=1; fi # another command's, since
    count=$((size - from + 1))
    if [ "$count" -gt 1000000 ]; then count=1000000 what=more; fi
    tail -c "+$from" "$RUN/log" | head -c "$count" || true # tail's SIGPIPE
    printf '\nalpacare-log %s %s %s\n' "$count" $((from + count)) "$what"
}

case ${1:-} in
install) install_tree "$2" "$3" ;;
start) start "${@:2}" ;;
supervise) supervise "${@:2}" ;;
stop) stop "${2:-}" ;;
state) ;;
log) show_log "$2" ;;
*)
    echo "error: worker.sh takes install, start, stop, state or log" >&2
    exit 2
    ;;
esac
case $1 in install | start | stop | state) state ;; esac
