# shellcheck shell=bash disable=SC2034,SC2154
# Sourced by tpu_run.sh: the life of a TPU, in the gcloud commands that make and end it.

TPU=(gcloud compute tpus tpu-vm)
REQUEST=(gcloud compute tpus queued-resources)
WHERE=(--zone="$zone")
if [ -n "$project" ]; then WHERE+=(--project="$project"); fi
WHERE+=(--quiet) # asks nothing
SPOT=()
if [ "$spot" = 1 ]; then SPOT=(--spot); fi
WAIT_SECONDS=${ALPACARE_WAIT_SECONDS:-3600}
RETRY_SECONDS=${ALPACARE_RETRY_SECONDS:-60}

on_worker() { # LIMIT N COMMAND
    bounded "$1" "${TPU[@]}" ssh "$name" "${WHERE[@]}" --worker="$2" --command="$3"
}

ask_state() { # KIND...: prints the state, or MISSING; false where gcloud does not say
    local text
    if text=$(bounded "$ASK_SECONDS" "$@" describe "$name" "${WHERE[@]}" --format="$FORMAT"); then
        echo "$text"
    elif grep -qE 'NOT_FOUND|Resource .* not found' "${ERRORS:-$WORK/stderr}"; then
        echo MISSING
    else
        return 1
    fi
}

find_state() { # sets STATE: READY, MISSING, PREEMPTED, QUEUED, or another that gcloud tells
    local request='' is_spot=''
    if [ "$queued" = 1 ]; then
        request=$(FORMAT='value(state.state)' ask_state "${REQUEST[@]}") || return 1
    fi
    case $request in
    CREATING | ACCEPTED | WAITING_FOR_RESOURCES | PROVISIONING) STATE=QUEUED ;;
    SUSPENDED) STATE=PREEMPTED ;;
    SUSPENDING | DELETING | FAILED | MISSING) STATE=$request ;;
    *)
        STATE=$(FORMAT='value(state,schedulingConfig.spot)' ask_state "${TPU[@]}") || return 1
        read -r STATE is_spot <<<"$STATE"
        # A request that was granted once gives no second TPU.
        if [ "$request" = ACTIVE ] && [ "$STATE" = MISSING ]; then STATE=PREEMPTED; fi
        ;;
    esac
    if [ "$STATE" = TERMINATED ]; then STATE=PREEMPTED; fi
    if [ "$action$is_spot$spot" = runTrue0 ] && [ "$max_retries" != 0 ]; then
        fail "$name is a spot TPU; add --spot, or it would be made again at the full price"
    fi
    if [ "$dry_run" = 1 ]; then STATE=READY; fi
}

host_gone() { # a TPU that gcloud cannot be asked about is not known to be gone
    local ERRORS=$WORK/state_errors # `because` is still about what came before
    if [ "$dry_run" = 1 ]; then return 1; fi
    find_state && [ "$STATE" != READY ]
}

create() {
    say "making $name, $accelerator_type"
    if [ "$queued" = 1 ]; then
        call "${REQUEST[@]}" create "$name" --node-id="$name" \
            --accelerator-type="$accelerator_type" --runtime-version="$version" "${SPOT[@]}" \
            "${WHERE[@]}"
    else
        call "${TPU[@]}" create "$name" --accelerator-type="$accelerator_type" \
            --version="$version" "${SPOT[@]}" "${WHERE[@]}"
    fi
}

delete() {
    if [ "$queued" = 1 ]; then
        call "${REQUEST[@]}" delete "$name" --force "${WHERE[@]}" # with its TPU
    else
        call "${TPU[@]}" delete "$name" "${WHERE[@]}"
    fi
}

ensure_ready() { # RETRIES: false where a TPU cannot be had now, but may be later
    local shown='' waited=0 made=0
    if [ "$max_retries" != 0 ]; then
        note "where $name does not exist:"
        if [ "$dry_run" = 1 ]; then create; fi
        note "where it was preempted, at most $max_retries times; then all of this again:"
        if [ "$dry_run" = 1 ]; then delete && create; fi
        note "in every case:"
    fi
    while :; do
        find_state || fail "cannot learn the state of $name: $(because)"
        if [ "$STATE" != "$shown" ]; then say "$name is $STATE" && shown=$STATE; fi
        case $STATE in
        READY) return ;;
        MISSING | PREEMPTED)
            if [ "$max_retries" = 0 ]; then
                fail "$name is $STATE, and with --max_retries=0 it is not made anew"
            fi
            if [ "$made" = 1 ]; then return 1; fi # gone at once; that counts as a preemption, too
            made=1
            if [ "$STATE" = PREEMPTED ]; then
                say "deleting what is left of $name"
                delete || fail "cannot delete the preempted $name: $(because)"
            fi
            if ! create; then # after a preemption there is often no room for a while
                if [ "$1" = 0 ]; then fail "cannot make $name: $(because)"; fi
                say "cannot make $name: $(because)"
                return 1
            fi
            ;;
        FAILED | STOPPED | HIDDEN | UNKNOWN)
            fail "$name is $STATE; delete it with: tpu_run.sh delete, or repair it with gcloud" ;;
        QUEUED) pause "$POLL_SECONDS" ;;
        *)
            if [ "$waited" -gt "$WAIT_SECONDS" ]; then fail "$name stays $STATE"; fi
            waited=$((waited + ${POLL_SECONDS%.*} + 1))
            pause "$POLL_SECONDS"
            ;;
        esac
    done
}

copy() { # a new VM does not take ssh keys at once
    local try
    for try in 1 2 3; do
        if bounded "$INSTALL_SECONDS" "${TPU[@]}" scp "$ARCHIVE" "$name:alpacare-jax.tgz" \
            "${WHERE[@]}" --worker=all; then
            return
        fi
        if [ "$try" = 3 ] || host_gone; then return 1; fi
        pause "$POLL_SECONDS"
    done
}
