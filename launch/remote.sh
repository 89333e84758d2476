# shellcheck shell=bash disable=SC2034,SC2154
# Sourced by tpu_run.sh and gpu_run.sh: what running a command on several hosts needs, whatever they
# are. The script that sources it provides
#   on_worker LIMIT N COMMAND    COMMAND on worker N, or on all where N is `all`
#   host_gone                    true where a silent or failed host was taken away, not broken
#   heed_signals                 what to do, while watching, about the signals that came
# All hosts are asked by worker.sh, which lies in the tree that was copied to them.

. launch/restart.sh

POLL_SECONDS=${ALPACARE_POLL_SECONDS:-30}
SETTLE_SECONDS=${ALPACARE_SETTLE_SECONDS:-60}
RETRY_SECONDS=${ALPACARE_RETRY_SECONDS:-60}
ASK_SECONDS=${ALPACARE_ASK_SECONDS:-300}
INSTALL_SECONDS=1800
MISSES=10 # polls in a row that may fail, e.g. while this machine has no network
WORKER=alpacare-jax/tree/launch/worker.sh
CACHE=${XDG_CACHE_HOME:-$HOME/.cache}/alpacare-jax

if [ "${BASH_VERSINFO[0]}" -lt 5 ]; then
    echo "error: this is bash $BASH_VERSION; install bash 5 and GNU coreutils first" >&2
    exit 1
fi

say() { # progress
    if [ "$dry_run" = 0 ]; then printf '%s: %s\n' "$(basename "$0" .sh)" "$*" >&2; fi
}

fail() { # one line, exit 1
    printf 'error: %s\n' "$*" >&2
    exit 1
}

misuse() { # one line, exit 2
    printf 'error: %s\n' "$*" >&2
    exit 2
}

usage() { # the comment at the top of the script
    awk 'NR > 1 { if (!/^#/) exit; sub(/^# ?/, ""); print }' "$0"
    exit 0
}

number() { # FLAG VALUE
    [[ $2 =~ ^[0-9]{1,9}$ ]] || misuse "$1=$2 is not a whole number"
}

check_command() { # COMMAND...
    local argument
    if [ $# = 0 ]; then misuse "no command; write it after --: -- python -m alpacare_jax.train"; fi
    for argument; do
        case $argument in
        *_API_KEY=* | *_TOKEN=* | *_SECRET=* | *_PASSWORD=*)
            misuse "a secret in the command could be read by anyone who lists processes;" \
                "put it in a file on the hosts that only you can read"
            ;;
        esac
    done
}

quote() { # the arguments as one would type them
    local argument out=()
    for argument; do
        if [[ $argument =~ ^[A-Za-z0-9_@%+=:,./-]+$ ]]; then
            out+=("$argument")
        elif [[ $argument =~ ^(--[a-z._-]+=)(.*)$ ]]; then
            out+=("${BASH_REMATCH[1]}${BASH_REMATCH[2]@Q}")
        else
            out+=("${argument@Q}")
        fi
    done
    printf '%s' "${out[*]}"
}

pause() { # SECONDS; a signal is acted on at once, not when the time is over
    if [ "$dry_run" = 1 ]; then return; fi
    sleep "$1" >/dev/null 2>&1 3>&- &
    wait $! || true
}

note() { # what follows in a dry run happens only in this case
    if [ "$dry_run" = 1 ]; then printf '# %s\n' "$*" >&3; fi
}

call() { # COMMAND...: runs it, or prints it in a dry run; its errors are kept for `because`
    if [ "$dry_run" = 1 ]; then
        printf '%s\n' "$(quote "$@")${INPUT:+ < $(quote "$INPUT")}" >&3
        return
    fi
    "$@" 2>"${ERRORS:-$WORK/stderr}" <"${INPUT:-/dev/null}" 3>&-
}

bounded() { # SECONDS COMMAND...; in the foreground, so that Ctrl-C and end_stream reach it
    call timeout --foreground "$@"
}

because() { # the line of the last call's errors that says most
    { grep -m 1 -iE '^ *\(?(error|fatal)' "$WORK/stderr" ||
        grep -v '^ *$' "$WORK/stderr" | tail -n 1 || true; } | grep . || echo "it said nothing"
}

prepare_work() { # a place for notes, which goes when the script ends
    exec 3>&1 # commands are printed where their output is caught, too
    WORK=$(mktemp -d)
    trap 'end_stream; rm -rf "$WORK"' EXIT
    : >"$WORK/stderr"
}

# ARCHIVE: the working tree as git sees it, so without data, models and environments. Sets COMMIT,
# which a command gets as ALPACARE_GIT_COMMIT (see common/provenance.py): the copy has no .git.
pack() {
    local root command
    if ! root=$(git rev-parse --show-toplevel 2>"$WORK/stderr") ||
        ! COMMIT=$(git rev-parse HEAD 2>"$WORK/stderr"); then
        fail "the launch scripts copy what git knows; run them from a git clone"
    fi
    if [ -n "$(git status --porcelain)" ]; then COMMIT+=-dirty; fi
    command="cd $(quote "$root") && git ls-files -z --cached --others --exclude-standard |"
    # A tracked file may be deleted and not committed yet.
    command+=" while IFS= read -r -d '' f; do [ ! -e \"\$f\" ] || printf '%s\\0' \"\$f\"; done |"
    command+=" tar --no-recursion --null --files-from=- -czf $(quote "$1")"
    if [ "$dry_run" = 1 ]; then
        printf '(%s)\n' "$command" >&3
        return
    fi
    mkdir -p "$(dirname "$1")"
    bash -o pipefail -c "$command" 2>"$WORK/stderr" ||
        fail "cannot pack the working tree: $(because)"
}

install_command() { # ARCHIVE EXTRA; hosts that share a home take turns
    echo "mkdir -p alpacare-jax/tree && exec 9>alpacare-jax/lock && flock 9 &&" \
        "tar -xzf $1 -C alpacare-jax/tree && bash $WORKER install $1 $2"
}

state_command() { # also where nothing was installed yet
    echo "if [ -f $WORKER ]; then bash $WORKER state;" \
        "else echo alpacare-state \${HOSTNAME:-\$(uname -n)} none 1 9999999999 -; fi"
}

run_key() { # COMMAND...: the same for the same command
    printf '%s\0' "$@" | cksum | tr ' ' -
}

states() { # one line a host; false where one does not answer
    on_worker "$ASK_SECONDS" all "$(state_command)" >"$WORK/states" || return 1
    if [ "$dry_run" = 1 ]; then echo "alpacare-state dry ended 0 0 -" >"$WORK/states"; fi
    sed -i -n 's/.*alpacare-state /alpacare-state /p' "$WORK/states" # ssh may say more than we do
    [ -s "$WORK/states" ]
}

judge() { # sets OUTCOME, CODE and HOST from the last states
    read -r OUTCOME CODE HOST < <(awk '
        { count[$3]++ }
        ($3 == "ended" && $4 != 0) || $3 ~ /^(lost|killed|none)$/ {
            # The first to fail is the cause; the others fail because it is gone.
            if (!failed || $5 < first) { failed = 1; first = $5; code = $4; host = $2 }
        }
        $3 ~ /^(interrupted|rebooted)$/ && !gone { gone = $2 }
        $3 == "stopped" && $4 > worst { worst = $4 }
        END {
            if (count["stopped"] && !count["running"]) print "stopped", worst + 0, "-"
            else if (count["stopped"]) print "running 0 -"
            else if (gone) print "interrupted 1", gone
            else if (failed) print "failed", code, host
            else if (count["running"]) print "running 0 -"
            else print "done 0 -"
        }' "$WORK/states")
}

begin_stream() { # shows worker 0's log; a dropped connection loses nothing and repeats nothing
    : >"$WORK/shown"
    if [ "$dry_run" = 1 ]; then
        on_worker "$ASK_SECONDS" 0 "bash $WORKER log 1 follow"
        return
    fi
    set -m # a process group of its own, to be ended as a whole
    (
        ERRORS=/dev/null
        while :; do
            on_worker "$ASK_SECONDS" 0 "bash $WORKER log $(($(wc -c <"$WORK/shown") + 1)) follow" |
                tee -a "$WORK/shown" || true
            sleep "$POLL_SECONDS"
        done
    ) &
    STREAM=$!
    set +m
}

end_stream() {
    if [ -n "${STREAM:-}" ]; then
        kill -TERM -- "-$STREAM" 2>/dev/null || true
        wait "$STREAM" 2>/dev/null || true
        STREAM=
    fi
}

# Until COMMAND is over. Sets OUTCOME (done, stopped, failed, interrupted, silent), CODE, HOST.
watch() {
    local misses=0 suspicion=
    begin_stream
    while :; do
        pause "$POLL_SECONDS"
        heed_signals
        if ! states; then
            misses=$((misses + 1)) OUTCOME=silent CODE=1 HOST=-
            if host_gone; then
                OUTCOME=interrupted
            elif [ "$misses" -lt "$MISSES" ]; then
                continue
            fi
            break
        fi
        misses=0
        judge
        if [ "$OUTCOME" = running ]; then continue; fi
        if [ "$OUTCOME" != failed ]; then break; fi
        if host_gone; then
            OUTCOME=interrupted
            break
        fi
        # When one host is taken away the others fail, often before its state says so: look twice.
        if [ -n "$suspicion" ]; then break; fi
        suspicion=1
        pause "$SETTLE_SECONDS"
    done
    end_stream
    if [ "$OUTCOME" != silent ] && [ "$dry_run" = 0 ] && ! host_gone; then # the last lines
        on_worker "$ASK_SECONDS" 0 "bash $WORKER log $(($(wc -c <"$WORK/shown") + 1))" || true
    fi
}
