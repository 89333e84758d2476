# shellcheck shell=bash disable=SC2034,SC2154
# Sourced by tpu_run.sh: the life of a TPU of one or more slices, in the gcloud commands that make,
# reach and end it.

TPU=(gcloud compute tpus tpu-vm)
REQUEST=(gcloud compute tpus queued-resources)
WHERE=(--zone="$zone")
if [ -n "$project" ]; then WHERE+=(--project="$project"); fi
WHERE+=(--quiet) # asks nothing
SPOT=()
if [ "$spot" = 1 ]; then SPOT=(--spot); fi
# Several slices are the nodes of one request, NAME-0, NAME-1 and so on (tpu_v2 MultisliceParams),
# and only what goes through the request reaches them all. Their VMs have MEGASCALE_NUM_SLICES,
# _SLICE_ID and _COORDINATOR_ADDRESS in the metadata `tpu-env`, where jax.distributed looks for them
# (jax/_src/clusters/cloud_tpu_cluster.py): nothing has to be set here.
NODES=("$name") REACH=("${TPU[@]}") SLICE=all
if [ "$slices" != 1 ]; then
    mapfile -t NODES < <(seq -f "$name-%.0f" 0 $((slices - 1)))
    REACH=("${REQUEST[@]}")
fi
WAIT_SECONDS=${ALPACARE_WAIT_SECONDS:-3600}

at() { # SLICE WORKER: sets AT, how gcloud ssh and scp are told of them
    AT=(--worker="$2")
    if [ "$slices" != 1 ]; then AT=(--node="$1" "${AT[@]}"); fi
}

on_worker() { # LIMIT N COMMAND; one N is a worker of the first slice, all are those of $SLICE
    if [ "$2" = all ]; then at "$SLICE" all; else at 0 "$2"; fi
    bounded "$1" "${REACH[@]}" ssh "$name" "${WHERE[@]}" "${AT[@]}" --command="$3"
}

ask_state() { # NAME KIND...: prints the state, or MISSING; false where gcloud does not say
    local text
    if text=$(bounded "$ASK_SECONDS" "${@:2}" describe "$1" "${WHERE[@]}" --format="$FORMAT"); then
        echo "$text"
    elif grep -qE 'NOT_FOUND|Resource .* not found' "${ERRORS:-$WORK/stderr}"; then
        echo MISSING
    else
        return 1
    fi
}

find_state() { # sets STATE: READY, MISSING, PREEMPTED, QUEUED, or another that gcloud tells
    local request=''
    if [ "$queued" = 1 ]; then
        request=$(FORMAT='value(state.state)' ask_state "$name" "${REQUEST[@]}") || return 1
    fi
    case $request in
    CREATING | ACCEPTED | WAITING_FOR_RESOURCES | PROVISIONING) STATE=QUEUED ;;
    SUSPENDED) STATE=PREEMPTED ;;
    SUSPENDING | DELETING | FAILED | MISSING) STATE=$request ;;
    *) find_state_of_nodes "$request" || return 1 ;;
    esac
    if [ "$dry_run" = 1 ]; then STATE=READY; fi
}

find_state_of_nodes() { # STATE OF REQUEST: the worst is that of all; one slice alone is of no use
    local node one is_spot
    STATE=READY
    for node in "${NODES[@]}"; do
        one=$(FORMAT='value(state,schedulingConfig.spot)' ask_state "$node" "${TPU[@]}") || return 1
        read -r one is_spot <<<"$one"
        # A request that was granted once gives no second TPU.
        if [ "$1" = ACTIVE ] && [ "$one" = MISSING ]; then one=PREEMPTED; fi
        if [ "$one" = TERMINATED ]; then one=PREEMPTED; fi
        if [ "$STATE" = READY ] || [ "$one" = PREEMPTED ]; then STATE=$one; fi
        if [ "$action$is_spot$spot" = runTrue0 ] && [ "$max_retries" != 0 ]; then
            fail "$node is a spot TPU; add --spot, or it would be made again at the full price"
        fi
    done
}

host_gone() { # a TPU that gcloud cannot be asked about is not known to be gone
    local ERRORS=$WORK/state_errors # `because` is still about what came before
    if [ "$dry_run" = 1 ]; then return 1; fi
    find_state && [ "$STATE" != READY ]
}

create() {
    local nodes=(--node-id="$name")
    if [ "$slices" != 1 ]; then nodes=(--node-count="$slices" --node-prefix="$name"); fi
    say "making $name, $accelerator_type$(if [ "$slices" != 1 ]; then echo " x $slices"; fi)"
    if [ "$queued" = 1 ]; then
        call "${REQUEST[@]}" create "$name" "${nodes[@]}" \
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
    at all all
    for try in 1 2 3; do
        if bounded "$INSTALL_SECONDS" "${REACH[@]}" scp "$ARCHIVE" "$name:alpacare-jax.tgz" \
            "${WHERE[@]}" "${AT[@]}"; then
            return
        fi
        if [ "$try" = 3 ] || host_gone; then return 1; fi
        pause "$POLL_SECONDS"
    done
}
