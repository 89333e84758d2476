# shellcheck shell=bash
# Sourced by every script that starts a run of several processes: whether a failed run is restarted
# (it resumes from its checkpoint), and the message that reports it.

# CODE, of the first process that failed: true where a restart may succeed.
# 75 is common/exits.py's for another process, a device or a bucket that was lost. 128 + N means that
# signal N ended it: out of memory, a crash, JAX on losing another host (ABRT), the watchdog (ALRM).
# INT and TERM are requests to end. Exit codes 1 (an error, e.g. bad input) and 2 (wrong flags) would
# only occur again.
may_retry() {
    [ "$1" = 75 ] || { [ "$1" -gt 128 ] && [ "$1" != 130 ] && [ "$1" != 143 ]; }
}

# REASON COUNT FLAG=BOUND: reports restart number COUNT in one line; fails where the bound is
# exceeded, and reports that.
announce_retry() {
    local bound=${3#*=} script=${0##*/}
    if [ "$2" -gt "$bound" ]; then
        echo "error: $1; interrupted $2 times, over $3;" \
            "rerun the same command to resume from the checkpoint" >&2
        return 1
    fi
    echo "${script%.sh}: $1; restarting, $2 of at most $bound times" >&2
}

random_token() { # of a run, by which its processes know each other; the same in every dry run
    if [ "${dry_run:-0}" = 1 ]; then echo TOKEN && return; fi
    od -An -N16 -tx1 /dev/urandom | tr -d ' \n'
}
