# shellcheck shell=bash disable=SC2034,SC2154
# Sourced by tpu_run.sh: the gcloud commands that create, reach and delete a TPU of one or more
# slices.

TPU=(gcloud compute tpus tpu-vm)
QUEUED_RESOURCE=(gcloud compute tpus queued-resources)
LOCATION=(--zone="$zone")
if [ -n "$project" ]; then LOCATION+=(--project="$project"); fi
LOCATION+=(--quiet) # no questions
SPOT=()
if [ "$spot" = 1 ]; then SPOT=(--spot); fi
# Several slices are the nodes of one queued resource, NAME-0, NAME-1 and so on (tpu_v2
# MultisliceParams), and only commands to the queued resource reach them all. Their VMs have MEGASCALE_NUM_SLICES,
# _SLICE_ID and _COORDINATOR_ADDRESS in the metadata `tpu-env`, where jax.distributed finds them
# (jax/_src/clusters/cloud_tpu_cluster.py): nothing has to be set here.
NODES=("$name") REACH=("${TPU[@]}") SLICE=all
if [ "$slices" != 1 ]; then
    mapfile -t NODES < <(seq -f "$name-%.0f" 0 $((slices - 1)))
    REACH=("${QUEUED_RESOURCE[@]}")
elif [[ " ${ssh_flags[*]}" =~ \ --(tunnel-through-iap|batch-size) ]]; then
    REACH=(gcloud alpha "${TPU[@]:1}") # the released commands have them for queued resources only
fi
WAIT_SECONDS=${ALPACARE_WAIT_SECONDS:-3600}

address() { # SLICE WORKER: sets ADDRESS, the flags for gcloud ssh and scp
    ADDRESS=(--worker="$2" "${ssh_flags[@]}")
    if [ "$slices" != 1 ]; then ADDRESS=(--node="$1" "${ADDRESS[@]}"); fi
}

on_worker() { # LIMIT N COMMAND; a number is a worker of slice 0, `all` are those of $SLICE
    if [ "$2" = all ]; then address "$SLICE" all; else address 0 "$2"; fi
    bounded "$1" "${REACH[@]}" ssh "$name" "${LOCATION[@]}" "${ADDRESS[@]}" --command="$3"
}

query_state() { # NAME KIND...: prints the state, or MISSING; false where gcloud fails
    local text
    if text=$(bounded "$ASK_SECONDS" "${@:2}" describe "$1" "${LOCATION[@]}" --format="$FORMAT"); then
        echo "$text"
    elif grep -qE 'NOT_FOUND|Resource .* not found' "${ERRORS:-$WORK/stderr}"; then
        echo MISSING
    else
        return 1
    fi
}

find_state() { # sets STATE: READY, MISSING, PREEMPTED, QUEUED, or another of gcloud's
    local request=''
    if [ "$queued" = 1 ]; then
        request=$(FORMAT='value(state.state)' query_state "$name" "${QUEUED_RESOURCE[@]}") || return 1
    fi
    case $request in
    CREATING | ACCEPTED | WAITING_FOR_RESOURCES | PROVISIONING) STATE=QUEUED ;;
    SUSPENDED) STATE=PREEMPTED ;;
    SUSPENDING | DELETING | FAILED | MISSING) STATE=$request ;;
    *) find_state_of_nodes "$request" || return 1 ;;
    esac
    if [ "$dry_run" = 1 ]; then STATE=READY; fi
}

find_state_of_nodes() { # STATE OF REQUEST: the worst state counts; a single slice is of no use
    local node node_state is_spot
    STATE=READY
    for node in "${NODES[@]}"; do
        node_state=$(FORMAT='value(state,schedulingConfig.spot)' query_state "$node" "${TPU[@]}") ||
            return 1
        read -r node_state is_spot <<<"$node_state"
        # A queued resource that was granted once gives no second TPU.
        if [ "$1" = ACTIVE ] && [ "$node_state" = MISSING ]; then node_state=PREEMPTED; fi
        if [ "$node_state" = TERMINATED ]; then node_state=PREEMPTED; fi
        if [ "$STATE" = READY ] || [ "$node_state" = PREEMPTED ]; then STATE=$node_state; fi
        if [ "$action$is_spot$spot" = runTrue0 ] && [ "$max_retries" != 0 ]; then
            fail "$node is a spot TPU; add --spot, or it would be recreated at the full price"
        fi
    done
}

host_gone() { # false where gcloud does not know
    local ERRORS=$WORK/state_errors # keeps stderr of the call before for `last_error`
    if [ "$dry_run" = 1 ]; then return 1; fi
    find_state && [ "$STATE" != READY ]
}

create() {
    local group=("${TPU[@]}") nodes=() track=() runtime=version
    if [ "$queued" = 1 ]; then
        group=("${QUEUED_RESOURCE[@]}") nodes=(--node-id="$name") runtime=runtime-version
    fi
    if [ "$slices" != 1 ]; then nodes=(--node-count="$slices" --node-prefix="$name"); fi
    # The released commands have only --reserved.
    if [[ " ${create_flags[*]}" =~ \ --(reservation|provisioning-model)= ]]; then track=(alpha); fi
    say "creating $name, $accelerator_type$(if [ "$slices" != 1 ]; then echo " x $slices"; fi)"
    call gcloud "${track[@]}" "${group[@]:1}" create "$name" "${nodes[@]}" \
        --accelerator-type="$accelerator_type" "--$runtime=$version" "${SPOT[@]}" \
        "${create_flags[@]}" "${LOCATION[@]}"
}

delete() {
    if [ "$queued" = 1 ]; then
        call "${QUEUED_RESOURCE[@]}" delete "$name" --force "${LOCATION[@]}" # with its TPU
    else
        call "${TPU[@]}" delete "$name" "${LOCATION[@]}"
    fi
}

ensure_ready() { # RETRIES: false where no TPU is available now, but may be later
    local shown='' waited=0 created=0
    if [ "$max_retries" != 0 ]; then
        note "where $name does not exist:"
        if [ "$dry_run" = 1 ]; then create; fi
        note "where it was preempted, at most $max_retries times; then all steps are repeated:"
        if [ "$dry_run" = 1 ]; then delete && create; fi
        note "in every case:"
    fi
    while :; do
        find_state || fail "cannot query the state of $name: $(last_error)"
        if [ "$STATE" != "$shown" ]; then say "$name is $STATE" && shown=$STATE; fi
        case $STATE in
        READY) return ;;
        MISSING | PREEMPTED)
            if [ "$max_retries" = 0 ]; then
                fail "$name is $STATE, and --max_retries=0 does not recreate it"
            fi
            if [ "$created" = 1 ]; then return 1; fi # preempted at once; counts as a preemption, too
            created=1
            if [ "$STATE" = PREEMPTED ]; then
                say "deleting the preempted $name"
                delete || fail "cannot delete the preempted $name: $(last_error)"
            fi
            if ! create; then # after a preemption there is often no capacity for a while
                if [ "$1" = 0 ]; then fail "cannot create $name: $(last_error)"; fi
                say "cannot create $name: $(last_error)"
                return 1
            fi
            ;;
        FAILED | STOPPED | HIDDEN | UNKNOWN)
            fail "$name is $STATE; delete it with: tpu_run.sh delete, or repair it with gcloud" ;;
        QUEUED) pause "$POLL_SECONDS" ;;
        *)
            if [ "$waited" -gt "$WAIT_SECONDS" ]; then fail "$name is still $STATE"; fi
            waited=$((waited + ${POLL_SECONDS%.*} + 1))
            pause "$POLL_SECONDS"
            ;;
        esac
    done
}

copy() { # a new VM does not accept ssh keys at once
    local try
    address all all
    for try in 1 2 3; do
        if bounded "$INSTALL_SECONDS" "${REACH[@]}" scp "$ARCHIVE" "$name:alpacare-jax.tgz" \
            "${LOCATION[@]}" "${ADDRESS[@]}"; then
            return
        fi
        if [ "$try" = 3 ] || host_gone; then return 1; fi
        pause "$POLL_SECONDS"
    done
}
