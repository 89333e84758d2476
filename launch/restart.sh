# shellcheck shell=bash
# Sourced by every script that starts a run of several processes: when the run is started again, and
# what is said then. It goes on from its checkpoint.

# CODE, of the first process that failed: true where the same command may well succeed next time.
# 128 + N means that signal N ended it: out of memory, a crash, JAX on missing another host (ABRT),
# the watchdog (ALRM). INT and TERM are how one asks for the end. Exit codes 1 (say, a bad input)
# and 2 (wrong flags) would only come again.
worth_another_try() {
    [ "$1" -gt 128 ] && [ "$1" != 130 ] && [ "$1" != 143 ]
}

# WHAT HAPPENED COUNT FLAG=BOUND: says in one line that this is another start, or that it is not.
another_try() {
    local bound=${3#*=}
    if [ "$2" -gt "$bound" ]; then
        echo "error: $1; interrupted $2 times, over $3;" \
            "run again to go on from the checkpoint" >&2
        return 1
    fi
    echo "$(basename "$0" .sh): $1; starting again, $2 of at most $bound times" >&2
}
