# shellcheck shell=bash disable=SC2034,SC2154
# Sourced by tpu_run.sh: the gcloud commands that create, reach and delete a TPU of one or more
# slices.

TPU=(gcloud compute tpus tpu-vm)
QUEUED_RESOURCE=(gcloud compute tpus queued-resources)
LOCATION=(--zone="$zone")
if [ -n "$project" ]; then LOCATION+=(--project="$project"); fi
LOCATION+=(--quiet) # no questions
SPOT=() OWNER=("${TPU[@]}") FORCE=()
if [ "$spot" = 1 ]; then SPOT=(--spot); fi
if [ "$queued" = 1 ]; then OWNER=("${QUEUED_RESOURCE[@]}") FORCE=(--force); fi # with its TPU
# Several slices are the nodes of one queued resource, NAME-0, NAME-1 and so on (tpu_v2
# MultisliceParams), and only commands to the queued resource reach them all. jax.distributed finds
# MEGASCALE_NUM_SLICES and the like in the metadata of their VMs (cloud_tpu_cluster.py).
NODES=("$name") REACH=("${TPU[@]}")
if [ "$slices" != 1 ]; then
    mapfile -t NODES < <(seq -f "$name-%.0f" 0 $((slices - 1)))
    REACH=("${QUEUED_RESOURCE[@]}")
elif [[ " ${ssh_flags[*]}" =~ \ --(tunnel-through-iap|batch-size) ]]; then
    REACH=(gcloud alpha "${TPU[@]:1}") # the released commands have them for queued resources only
fi
UNATTENDED=0 # 1 once this has waited: then no error is final before --wait_hours are over

address() { # SLICE WORKER: sets ADDRESS, the flags for gcloud ssh and scp
    ADDRESS=(--worker="$2" "${ssh_flags[@]}")
    if [ "$slices" != 1 ]; then ADDRESS=(--node="$1" "${ADDRESS[@]}"); fi
}

on_hosts() { # LIMIT COMMAND: on the hosts of ADDRESS
    bounded "$1" "${REACH[@]}" ssh "$name" "${LOCATION[@]}" "${ADDRESS[@]}" --command="$2"
}

# NAME FIELDS KIND...: the values of FIELDS, separated by |, to $WORK/described; MISSING where there
# is no such thing; false where gcloud fails.
describe() {
    bounded "$ASK_SECONDS" "${@:3}" describe "$1" "${LOCATION[@]}" \
        --format="value[separator=\"|\"]($2)" >"$WORK/described" && return
    grep -qE 'NOT_FOUND|Resource .* not found' "${ERRORS:-$WORK/stderr}" || return 1
    echo MISSING >"$WORK/described"
}

# Sets STATE: READY, MISSING, PREEMPTED, QUEUED, or another of gcloud's; HEALTH where it is not
# good; CAUSE of a failed request; and writes ADDRESS NAME of each host to $WORK/hosts.
find_state() {
    local request='' node i
    STATE=READY HEALTH='' CAUSE=''
    if [ "$queued" = 1 ]; then
        describe "$name" state.state,state.failedData.error.message "${QUEUED_RESOURCE[@]}" || return 1
        IFS='|' read -r request CAUSE <"$WORK/described" || true
    fi
    : >"$WORK/hosts.new" # the list of before holds until this one is whole: by it hosts are counted
    case $request in
    CREATING | ACCEPTED | WAITING_FOR_RESOURCES | PROVISIONING) STATE=QUEUED ;;
    SUSPENDED) STATE=PREEMPTED ;;
    SUSPENDING | DELETING | FAILED | MISSING) STATE=$request ;;
    *) for i in "${!NODES[@]}"; do find_state_of_node "$i" "$request" || return 1; done ;;
    esac
    mv "$WORK/hosts.new" "$WORK/hosts"
    if [ "$dry_run" = 1 ]; then STATE=READY; fi
}

find_state_of_node() { # INDEX STATE-OF-REQUEST: the worst state counts; a single slice is of no use
    local state health is_spot addresses prefix='' worker=0
    describe "${NODES[$1]}" \
        'state,health,schedulingConfig.spot,networkEndpoints[].ipAddress' "${TPU[@]}" || return 1
    IFS='|' read -r state health is_spot addresses <"$WORK/described" || true
    # A queued resource that was granted once gives no second TPU.
    if [ "$2$state" = ACTIVEMISSING ] || [ "$state" = TERMINATED ]; then state=PREEMPTED; fi
    if [ "$STATE" = READY ] || [ "$state" = PREEMPTED ]; then STATE=$state; fi
    if [ "$health" != HEALTHY ]; then HEALTH=$health; fi
    if [ "$action$is_spot$spot" = runTrue0 ] && [ "$max_retries" != 0 ]; then
        fail "${NODES[$1]} is a spot TPU; add --spot, or it would be recreated at the full price"
    fi
    if [ "$slices" != 1 ]; then prefix="slice $1 "; fi
    for address in ${addresses//[^0-9a-f.:]/ }; do
        echo "$address ${prefix}worker $worker"
        worker=$((worker + 1))
    done >>"$WORK/hosts.new"
}

host_gone() { # false where gcloud does not know
    local ERRORS=$WORK/state_errors # keeps stderr of the call before for `last_error`
    if [ "$dry_run" = 1 ]; then return 1; fi
    if ! find_state; then STATE="in an unknown state" && return 1; fi
    [ "$STATE" != READY ]
}

create() {
    local nodes=() track=() runtime=version
    if [ "$queued" = 1 ]; then nodes=(--node-id="$name") runtime=runtime-version; fi
    if [ "$slices" != 1 ]; then nodes=(--node-count="$slices" --node-prefix="$name"); fi
    # The released commands have only --reserved.
    if [[ " ${create_flags[*]}" =~ \ --(reservation|provisioning-model)= ]]; then track=(alpha); fi
    say "creating $name, $accelerator_type$(if [ "$slices" != 1 ]; then echo " x $slices"; fi)"
    bounded "$INSTALL_SECONDS" gcloud "${track[@]}" "${OWNER[@]:1}" create "$name" "${nodes[@]}" \
        --accelerator-type="$accelerator_type" "--$runtime=$version" "${SPOT[@]}" \
        "${create_flags[@]}" "${LOCATION[@]}"
}

delete() {
    bounded "$INSTALL_SECONDS" "${OWNER[@]}" delete "$name" "${FORCE[@]}" "${LOCATION[@]}"
}

# ERROR: true where creating may succeed later. Zones are full for hours (code 8, also 9 with a
# reservation), which may be called an internal error (13); the service has outages (14).
# A quota does not come back by waiting.
no_room() {
    local why='"code": (8|9|13|14)[^0-9]|capacity|enough resources|stockout|exhausted|unavailable'
    why+='|internal error|per minute'
    [[ ${1,,} =~ $why && ! ( ${1,,} =~ quota && ! ${1,,} =~ "per minute" ) ]]
}

hold() { # MESSAGE: says it, once, and waits; fails where --wait_hours are over
    if [ "$SECONDS" -ge "$UNTIL" ]; then fail "$1; waited for --wait_hours=$wait_hours"; fi
    if [ "$1" != "$SHOWN" ]; then say "$1"; fi
    SHOWN=$1 UNATTENDED=1
    pause "$RETRY_SECONDS"
}

trouble() { # MESSAGE
    if [ "$UNATTENDED" = 0 ]; then fail "$1"; fi
    hold "$1"
}

ensure_ready() { # waits until the TPU is ready, and creates it where there is none
    local created=0
    SHOWN='' UNTIL=${UNTIL:-$((SECONDS + wait_hours * 3600))} # since COMMAND ran
    if [ "$dry_run" = 1 ] && [ "$max_retries" != 0 ]; then
        echo "# where $name does not exist:" >&3
        create
        echo "# where it was preempted; then all steps are repeated:" >&3
        delete && create
        echo "# in every case:" >&3
    fi
    while :; do
        if ! find_state; then
            trouble "cannot query the state of $name: $(last_error)"
            continue
        fi
        case $STATE in
        READY)
            if [ "$HEALTH" != UNHEALTHY_MAINTENANCE ] || query_states; then return; fi
            hold "$name is under maintenance, no answer from $MISSING"
            ;;
        MISSING | PREEMPTED | FAILED | UNKNOWN)
            [ "$max_retries" != 0 ] || fail "$name is $STATE, and --max_retries=0 does not recreate it"
            if [ "$created" = 1 ]; then
                hold "$name is $STATE as soon as it is created${CAUSE:+: $CAUSE}"
            fi
            created=0
            replace && created=1
            ;;
        STOPPED | HIDDEN) trouble "$name is $STATE; delete it with: tpu_run.sh delete, or start it" ;;
        *) hold "$name is $STATE" ;;
        esac
    done
}

replace() { # creates the TPU anew; false where that is tried again
    local error
    if [[ $STATE =~ FAILED|UNKNOWN ]] && [ "$UNATTENDED" = 0 ] && ! no_room "$CAUSE"; then
        fail "$name is $STATE${CAUSE:+: $CAUSE}; delete it with: tpu_run.sh delete"
    fi
    if [ "$STATE" != MISSING ]; then
        say "deleting $name, which is $STATE${CAUSE:+: $CAUSE}"
        if ! delete; then
            trouble "cannot delete $name, which is $STATE: $(last_error)"
            return 1
        fi
    fi
    if create; then UNATTENDED=1 && return; fi
    error="cannot create $name: $(last_error)"
    if no_room "$error"; then
        hold "$error; asking again for up to $wait_hours h"
    else
        trouble "$error"
    fi
    return 1
}

add_key() { # with other keys only in the agent, gcloud refuses to copy to several hosts (VerifyKeyInAgent)
    local key=$HOME/.ssh/google_compute_engine
    if [ "$dry_run" = 1 ] || [ -z "${SSH_AUTH_SOCK:-}" ] || [ ! -f "$key" ]; then return; fi
    call ssh-add -q "$key" || say "cannot add $key to the ssh agent: $(last_error)"
}

copy() { # a new VM does not accept ssh keys at once, and gcloud makes its own at the first use
    local try failed unpack="mkdir -p alpacare-jax/tree && tar -xzf alpacare-jax.tgz"
    unpack="echo $SUM alpacare-jax.tgz | sha256sum --check --status && $unpack -C alpacare-jax/tree"
    for try in 1 2 3; do
        add_key
        failed=
        address all all
        bounded "$INSTALL_SECONDS" "${REACH[@]}" scp "$ARCHIVE" "$name:alpacare-jax.tgz" \
            "${LOCATION[@]}" "${ADDRESS[@]}" || failed=1
        if grep -q "Could not prepare" "$WORK/stderr"; then failed=1; fi
        # Each host proves that all of it arrived. The error, if any, is that of scp.
        if ERRORS=${failed:+$WORK/state_errors} on_all "$ASK_SECONDS" "$unpack && bash $SCRIPT state"; then
            return
        fi
        if [ "$try" = 3 ] || host_gone; then return 1; fi
        pause "$POLL_SECONDS"
    done
}
