# shellcheck shell=bash disable=SC2034,SC2154
# Sourced by tpu_run.sh: packs the working tree, runs commands on all hosts, and watches one. On the
# hosts worker.sh, in the tree that was copied to them, answers. tpu_vm.sh reaches them.

. launch/lib/restart.sh

POLL_SECONDS=${ALPACARE_POLL_SECONDS:-30}
SETTLE_SECONDS=${ALPACARE_SETTLE_SECONDS:-60}
RETRY_SECONDS=${ALPACARE_RETRY_SECONDS:-60}
ASK_SECONDS=${ALPACARE_ASK_SECONDS:-300}
SILENT_SECONDS=${ALPACARE_SILENT_SECONDS:-3600} # of a TPU that is ready and under no maintenance
INSTALL_SECONDS=1800
SCRIPT=alpacare-jax/tree/launch/lib/worker.sh

pause() { # SECONDS; a signal is handled at once, not after the pause
    if [ "$dry_run" = 1 ]; then return; fi
    sleep "$1" >/dev/null 2>&1 3>&- &
    wait $! || true
}

bounded() { # SECONDS COMMAND...; timeout also ends what the command has started, such as ssh
    local code=0
    call timeout --kill-after=10 "$@" || code=$?
    if [ "$code" = 124 ]; then echo "ERROR: no answer within $1 s" >>"${ERRORS:-$WORK/stderr}"; fi
    return "$code"
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
        SUM=SHA256 && return
    fi
    check_size
    mkdir -p "$(dirname "$1")"
    (umask 077 && bash -o pipefail -c "$command") 2>"$WORK/stderr" ||
        fail "cannot pack the working tree: $(last_error)"
    SUM=$(sha256sum <"$1" | cut -d ' ' -f 1)
}

check_size() { # says what is copied, and what not; fails where it is too much
    local files bytes megabytes new
    bash -c "$FILES | $EXISTING" | xargs -0 stat -c '%s %n' | sort -rn >"$WORK/sizes"
    read -r files bytes megabytes < <(
        awk '{ sum += $1 } END { printf "%d %d %.1f\n", NR, sum, sum / 1e6 }' "$WORK/sizes"
    )
    say "copying $files files, $megabytes MB"
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

worker_command() { # ACTION...: works also before anything was copied
    echo "if [ -f $SCRIPT ]; then bash $SCRIPT $*;" \
        "else echo alpacare-state \${HOSTNAME:-\$(uname -n)} none 1 9999999999 -" \
        "-,\$(hostname -I | tr -s ' ' ,) .; fi"
}

# LIMIT COMMAND: on all hosts, of which each ends with the line of `worker.sh state`. Only these
# lines count, and they must be complete: with slices gcloud exits with 0 though it reached only some
# of them, or none (queued_resources/ssh.py), and when a connection breaks it repeats the command
# (AttemptRunWithRetries in tpu_vm/ssh.py), after half a line. Writes STATE, CODE, TIME, KEY
# and HOST of each to $WORK/states, with tabs between. False where some are missing: MISSING names them.
on_all() {
    address all all
    on_hosts "$@" >"$WORK/output" || true
    MISSING=
    if [ "$dry_run" = 1 ]; then printf 'ended\t0\t0\t-\tdry\n' >"$WORK/states" && return; fi
    MISSING=$(awk -v states="$WORK/states" -f launch/lib/answers.awk "$WORK/hosts" "$WORK/output")
    [ -z "$MISSING" ]
}

query_states() {
    on_all "$ASK_SECONDS" "$(worker_command state)"
}

# Prints what is new in the log of host $worker of $slice, from byte NEXT on, in pieces. The line
# that follows a piece says how long it is, so what gcloud repeats before it does not count.
show_log() {
    local line count
    address "$slice" "$worker"
    while :; do
        on_hosts "$ASK_SECONDS" "bash $SCRIPT log $NEXT" >"$WORK/output" || return 1
        if [ "$dry_run" = 1 ]; then LOG=ended && return; fi
        line=$(tail -n 1 "$WORK/output")
        [[ $line =~ ^alpacare-log\ ([0-9]+)\ ([0-9]+)\ ([a-z]+)$ ]] || return 1
        count=${BASH_REMATCH[1]} NEXT=${BASH_REMATCH[2]} LOG=${BASH_REMATCH[3]}
        tail -c $((count + ${#line} + 2)) "$WORK/output" | head -c "$count"
        if [ "$LOG" != more ]; then return; fi
    done
}

# Watches until COMMAND has ended, or hosts have been silent for too long. Sets OUTCOME (done,
# stopped, failed, interrupted, gone), CODE, HOST, and REASON of an interruption.
watch() {
    local answered=$SECONDS seen_failed='' shown='' limit
    NEXT=1 UNTIL=''
    while :; do
        pause "$POLL_SECONDS"
        if ! query_states; then
            REASON="no answer from $MISSING: $(last_error)"
            limit=$((wait_hours * 3600)) # this machine may have no network, or the TPU maintenance
            if host_gone; then OUTCOME=gone && return; fi
            if [ "$STATE$HEALTH" = READY ]; then limit=$SILENT_SECONDS; fi
            if [ "$REASON" != "$shown" ]; then
                say "$REASON; $name is $STATE${HEALTH:+, $HEALTH}; waiting"
                shown=$REASON
            fi
            if [ $((SECONDS - answered)) -le "$limit" ]; then continue; fi
            OUTCOME=interrupted
            return
        fi
        answered=$SECONDS shown='' LOG=''
        read -r OUTCOME CODE HOST < <(awk -F '\t' -f launch/lib/outcome.awk "$WORK/states")
        show_log || true
        if [ "$OUTCOME" = running ]; then continue; fi
        if [ "$OUTCOME" = failed ]; then
            if host_gone; then OUTCOME=gone && return; fi
            # When one host is preempted the others fail, often before its state shows it: look twice.
            if [ -z "$seen_failed" ]; then
                seen_failed=1
                pause "$SETTLE_SECONDS"
                continue
            fi
        fi
        if [ -z "$LOG" ] && ! show_log; then say "the end of the log could not be read: $(last_error)"; fi
        REASON="the command was interrupted on $HOST"
        return
    done
}
