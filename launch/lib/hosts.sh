# shellcheck shell=bash disable=SC2034,SC2154
# Sourced by tpu_run.sh: runs one command on several hosts and watches it. The script that sources
# it provides
#   on_worker LIMIT N COMMAND    COMMAND on worker N, or on all where N is `all`
#   host_gone                    true where a silent or failed host was preempted, not broken
# On the hosts worker.sh, in the tree that was copied to them, answers.

. launch/lib/restart.sh

POLL_SECONDS=${ALPACARE_POLL_SECONDS:-30}
SETTLE_SECONDS=${ALPACARE_SETTLE_SECONDS:-60}
RETRY_SECONDS=${ALPACARE_RETRY_SECONDS:-60}
ASK_SECONDS=${ALPACARE_ASK_SECONDS:-300}
INSTALL_SECONDS=1800
MISSES=10 # polls in a row that may fail, e.g. while this machine has no network
WORKER=alpacare-jax/tree/launch/lib/worker.sh
CACHE=${XDG_CACHE_HOME:-$HOME/.cache}/alpacare-jax

pause() { # SECONDS; a signal is handled at once, not after the pause
    if [ "$dry_run" = 1 ]; then return; fi
    sleep "$1" >/dev/null 2>&1 3>&- &
    wait $! || true
}

note() { # in a dry run: the condition of what is printed next
    if [ "$dry_run" = 1 ]; then printf '# %s\n' "$*" >&3; fi
}

bounded() { # SECONDS COMMAND...; in the foreground, so that Ctrl-C and end_log_stream reach it
    call timeout --foreground "$@"
}

# The files that `pack` copies, each ended by NUL: those that git tracks and, with --untracked, new
# ones that it does not ignore. Data, models, environments and secrets are neither.
FILES='git ls-files -z --cached'
# A tracked file may be deleted and not committed yet.
EXISTING="while IFS= read -r -d '' f; do [ ! -e \"\$f\" ] || printf '%s\\0' \"\$f\"; done"
MAX_TREE_MB=100

# ARCHIVE: packs the working tree. Sets COMMIT, which the command gets as ALPACARE_GIT_COMMIT (see
# common/provenance.py): the copy has no .git.
pack() {
    local root command
    if ! root=$(git rev-parse --show-toplevel 2>"$WORK/stderr") ||
        ! COMMIT=$(git rev-parse HEAD 2>"$WORK/stderr"); then
        fail "the launch scripts copy the files that git tracks; run them from a git clone"
    fi
    if [ -n "$(git status --porcelain)" ]; then COMMIT+=-dirty; fi
    if [ "$untracked" = 1 ]; then FILES+=' --others --exclude-standard'; fi
    command="cd $(quote "$root") && $FILES | $EXISTING |"
    command+=" tar --no-recursion --null --files-from=- -czf $(quote "$1")"
    if [ "$dry_run" = 1 ]; then
        printf '(%s)\n' "$command" >&3
        return
    fi
    check_size
    mkdir -p "$(dirname "$1")"
    (umask 077 && bash -o pipefail -c "$command") 2>"$WORK/stderr" ||
        fail "cannot pack the working tree: $(last_error)"
}

check_size() { # says what is copied, and what not; fails where it is too much
    local bytes new
    bash -c "$FILES | $EXISTING" | xargs -0 stat -c '%s %n' | sort -rn >"$WORK/sizes"
    bytes=$(awk '{ sum += $1 } END { print sum + 0 }' "$WORK/sizes")
    say "copying $(wc -l <"$WORK/sizes") files, $(awk "BEGIN { printf \"%.1f\", $bytes / 1e6 }") MB"
    if [ "$bytes" -gt $((MAX_TREE_MB * 1000000)) ]; then
        fail "that is over $MAX_TREE_MB MB; keep data and models out of git; the largest are" \
            "$(head -n 3 "$WORK/sizes" | awk '{
                size = $1; sub(/^[0-9]+ /, "")
                printf "%s%s (%.1f MB)", separator, $0, size / 1e6; separator = ", "
            }')"
    fi
    new=$(git ls-files --others --exclude-standard | head -n 1)
    if [ "$untracked" = 0 ] && [ -n "$new" ]; then
        say "new files, such as $new, are not copied: git add them, or give --untracked"
    fi
}

install_command() { # ARCHIVE EXTRA
    echo "mkdir -p alpacare-jax/tree && tar -xzf $1 -C alpacare-jax/tree &&" \
        "bash $WORKER install $1 $2"
}

state_command() { # works also before anything is installed
    echo "if [ -f $WORKER ]; then bash $WORKER state;" \
        "else echo alpacare-state \${HOSTNAME:-\$(uname -n)} none 1 9999999999 -; fi"
}

run_key() { # COMMAND...: equal for equal commands
    printf '%s\0' "$@" | cksum | tr ' ' -
}

query_states() { # one line per host; false where one does not answer
    on_worker "$ASK_SECONDS" all "$(state_command)" >"$WORK/states" || return 1
    if [ "$dry_run" = 1 ]; then echo "alpacare-state dry ended 0 0 -" >"$WORK/states"; fi
    sed -i -n 's/.*alpacare-state /alpacare-state /p' "$WORK/states" # ssh may print more
    [ -s "$WORK/states" ]
}

evaluate_states() { # sets OUTCOME, CODE and HOST
    read -r OUTCOME CODE HOST < <(awk '
        { count[$3]++ }
        ($3 == "ended" && $4 != 0) || $3 ~ /^(lost|killed|none)$/ {
            # The first to fail is the cause; the others fail because they lost it.
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

begin_log_stream() { # prints worker 0's log; after a dropped connection it continues at the same byte
    : >"$WORK/shown"
    if [ "$dry_run" = 1 ]; then
        on_worker "$ASK_SECONDS" 0 "bash $WORKER log 1 follow"
        return
    fi
    set -m # a separate process group, to be ended as a whole
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

end_log_stream() {
    if [ -n "${STREAM:-}" ]; then
        kill -TERM -- "-$STREAM" 2>/dev/null || true
        wait "$STREAM" 2>/dev/null || true
        STREAM=
    fi
}

# Watches until COMMAND has ended. Sets OUTCOME (done, stopped, failed, interrupted, silent), CODE, HOST.
watch() {
    local misses=0 seen_failed=
    begin_log_stream
    while :; do
        pause "$POLL_SECONDS"
        if ! query_states; then
            misses=$((misses + 1)) OUTCOME=silent CODE=1 HOST=-
            if host_gone; then
                OUTCOME=interrupted
            elif [ "$misses" -lt "$MISSES" ]; then
                continue
            fi
            break
        fi
        misses=0
        evaluate_states
        if [ "$OUTCOME" = running ]; then continue; fi
        if [ "$OUTCOME" != failed ]; then break; fi
        if host_gone; then
            OUTCOME=interrupted
            break
        fi
        # When one host is preempted the others fail, often before its state shows it: look twice.
        if [ -n "$seen_failed" ]; then break; fi
        seen_failed=1
        pause "$SETTLE_SECONDS"
    done
    end_log_stream
    if [ "$OUTCOME" != silent ] && [ "$dry_run" = 0 ] && ! host_gone; then # the last lines
        on_worker "$ASK_SECONDS" 0 "bash $WORKER log $(($(wc -c <"$WORK/shown") + 1))" || true
    fi
}
