#!/usr/bin/env bash
# What tpu_run.sh calls on every host. A host has one run, which outlives the connection that
# started it.
#
#     worker.sh install ARCHIVE EXTRA    finishes unpacking ARCHIVE; installs .[EXTRA]
#     worker.sh start KEY COMMAND...     starts COMMAND in the tree; KEY identifies the run
#     worker.sh state                    one line: alpacare-state HOST STATE CODE TIME KEY
#     worker.sh stop [SECONDS]           SIGTERM to COMMAND; SIGKILL if it still runs after SECONDS
#     worker.sh log BYTE [follow]        the log from that byte on, to its end or to that of COMMAND
#
# STATE is running, ended, stopped (by `stop`), interrupted (by a SIGTERM from elsewhere:
# maintenance or preemption), rebooted, lost (ended without a trace), killed (by `stop SECONDS`) or
# none.
#
# venv/ and run/ are next to the tree.
set -euo pipefail

BASE=$(cd "$(dirname "$0")/../../.." && pwd)
HOST=${HOSTNAME:-$(uname -n)}
RUN=$BASE/run

boot_id() { cat /proc/sys/kernel/random/boot_id; }

supervisor() { # prints the supervisor's process id, if it runs
    local pid
    pid=$(cat "$RUN/pid" 2>/dev/null) || return 1
    # Process ids are reused: after a while this one may be another process.
    grep -qs supervise "/proc/$pid/cmdline" || return 1
    echo "$pid"
}

install_python() { # TPU images have a Python that is too old for JAX
    echo "installing Python 3.11 with apt-get" >&2
    sudo -n apt-get -q -o DPkg::Lock::Timeout=600 update >&2 &&
        sudo -n apt-get -q -o DPkg::Lock::Timeout=600 install -y python3.11 python3.11-venv >&2
}

install_tree() { # ARCHIVE EXTRA
    local archive=$PWD/$1 extra=$2
    cd "$BASE"
    # Files of an earlier archive that this one lacks would still be imported. Nothing else is
    # removed: a run may have written its results into the tree.
    tar --quoting-style=literal -tzf "$archive" | LC_ALL=C sort >files.new
    if [ -f files ]; then
        LC_ALL=C comm -23 files files.new | (cd tree && xargs -r -d '\n' rm -f --)
    fi
    mv files.new files
    rm -f "$archive"
    cd tree
    VENV=$BASE/venv
    . launch/lib/environment.sh
    if ! find_python >/dev/null 2>&1 && command -v apt-get >/dev/null; then
        install_python || true # prepare_environment reports what is missing
    fi
    prepare_environment "$extra"
}

start() { # KEY COMMAND...
    if supervisor >/dev/null; then
        echo "error: $HOST: a command is already running; stop it first" >&2
        return 1
    fi
    mkdir -p "$RUN"
    rm -f "$RUN/exit" "$RUN/stopped" "$RUN/pid"
    if [ -f "$RUN/log" ]; then mv "$RUN/log" "$RUN/log.previous"; fi
    printf '%s %s\n' "$1" "$(boot_id)" >"$RUN/key"
    # A separate session, so that a dropped connection ends nothing.
    setsid nohup bash "$0" supervise "${@:2}" </dev/null >"$RUN/log" 2>&1 &
    for _ in $(seq 200); do
        if [ -s "$RUN/pid" ]; then return; fi
        sleep 0.05
    done
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
    local status="none 1 9999999999" key=- boot=
    if [ -f "$RUN/key" ]; then read -r key boot <"$RUN/key"; fi
    if [ -f "$RUN/exit" ]; then
        status=$(cat "$RUN/exit")
    elif [ -f "$RUN/pid" ]; then
        if supervisor >/dev/null; then
            status="running 0 $(stat -c %Y "$RUN/pid")"
        elif [ -f "$RUN/exit" ]; then # it ended in between
            status=$(cat "$RUN/exit")
        elif [ "$boot" != "$(boot_id)" ]; then
            status="rebooted 1 9999999999"
        else
            status="lost 137 9999999999" # nothing but SIGKILL leaves no trace
        fi
    fi
    echo "alpacare-state $HOST $status $key"
}

stop() { # [SECONDS]
    local pid seconds=${1:-}
    pid=$(supervisor) || return 0
    if [ -z "$seconds" ]; then touch "$RUN/stopped"; fi
    kill -TERM -- "-$pid" 2>/dev/null || true
    if [ -z "$seconds" ]; then return; fi
    for _ in $(seq $((seconds * 5))); do
        if ! supervisor >/dev/null; then return; fi
        sleep 0.2
    done
    kill -KILL -- "-$pid" 2>/dev/null || true
    record killed 137
}

show_log() { # BYTE [follow]
    local pid
    if [ ! -f "$RUN/log" ]; then
        echo "error: $HOST: no command has been started here" >&2
        return 1
    fi
    if [ "${2:-}" = follow ] && pid=$(supervisor); then
        exec tail -c "+$1" --pid="$pid" -s 0.5 -f "$RUN/log"
    fi
    exec tail -c "+$1" "$RUN/log"
}

case ${1:-} in
install) install_tree "$2" "$3" ;;
start) start "${@:2}" ;;
supervise) supervise "${@:2}" ;;
state) state ;;
stop) stop "${2:-}" ;;
log) show_log "$2" "${3:-}" ;;
--help | -h) sed -n '2,17s/^# \{0,1\}//p' "$0" ;;
*)
    echo "error: worker.sh takes install, start, state, stop or log" >&2
    exit 2
    ;;
esac
