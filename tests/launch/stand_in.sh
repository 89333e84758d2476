#!/bin/bash
# A stand-in for gcloud, sbatch, srun, scancel and scontrol, by the name it is called by; conftest.py
# has what it is for. What a test writes to $CLOUD says how it behaves:
#
#     fail/STEP      "TIMES MESSAGE": the step fails
#     tpu, tpu-0...  "STATE|HEALTH|SPOT" of a node: one line for each question to come
#     request        "STATE|CAUSE" of the queued resource, likewise
#     made_as        the state of a TPU that is created (READY); granted_as: those of its request
#     silent/HOST    ssh does not get through to this host
#     half/STEP      the connection breaks once, after half a line; twice/STEP: when all is done,
#                    lost/STEP: before the answer, not before the deed
#     agent          the keys in the ssh agent
#     before         is read as a part of this script
#     updates        gcloud says that there are updates
#
# gcloud's part is taken from its source, lib/googlecloudsdk of the Google Cloud SDK, 2026:
#
#     command_lib/compute/tpus/tpu_vm/ssh.py
#         ValidateTPUState        refuses a node that is STOPPED, DELETING, PREEMPTED or TERMINATED,
#                                 and tries one that is CREATING or REPAIRING
#         PrepareNodeForSSH       of UNHEALTHY_MAINTENANCE it only warns
#         VerifyKeyInAgent        scp to several workers: SSHKeyNotInAgent where `ssh-add -l` answers
#                                 and lacks the key
#         AttemptRunWithRetries   where ssh itself fails, by 255, runs the same command again, up to 10
#                                 times (here 3) after whatever it has printed; other codes are final
#         SSHIntoPreppedNodes, SCPIntoPreppedNodes   all workers at once; stdout is theirs
#         WaitForBatchCompletion  exits with the first code that is not 0
#     surface/compute/tpus/queued_resources/ssh.py and scp.py
#         Run                     prepares each node in a thread, whose exception is a traceback on
#                                 stderr and no more; "Could not prepare all N nodes, attempting to
#                                 ssh into the rest"; exits with 0 if these succeed, or none is left
#     calliope/exceptions.py      "ERROR: (gcloud.compute...) ..."; that of an operation is JSON
program=${0##*/}

record() { # STEP; then fails, if the test wants this: fail/STEP holds how often, and what to say
    printf '%s\x1f' "$program" "$1" "${@:2}" $'\x1e' >>"$CLOUD/calls"
    [ -f "$CLOUD/fail/$1" ] || return 0
    local times message
    IFS=' ' read -r -d '' times message <"$CLOUD/fail/$1"
    [ "$times" -gt 0 ] || return 0
    echo "$((times - 1)) $message" >"$CLOUD/fail/$1"
    printf '%s\n' "$message" >&2
    exit 1
}

if [ "$program" != gcloud ]; then
    record "$program" "$@"
    if [ "$program" = sbatch ]; then echo 77; fi
    exit
fi

kind=$3 verb=$4 name=${5%%:*} worker='' nodes=1 prefix='' node=0 command=''
for flag; do
    case $flag in
    --node=*) node=${flag#*=} ;;
    --node-count=*) nodes=${flag#*=} ;;
    --node-prefix=*) prefix=${flag#*=} ;;
    --command=*) command=${flag#*=} ;;
    --worker=*) worker=${flag#*=} ;;
    esac
done
step=$verb
if [ "$verb" = ssh ]; then
    if [[ $command == *sha256sum* ]]; then step=unpack; fi
    if [[ $command =~ worker.sh' '(install|start|stop|log) ]]; then step=${BASH_REMATCH[1]}; fi
    if [ "$step" = ssh ]; then step=state; fi
fi
record "$step" "$@"

next_state() { # FILE: one line for each question to come; the last one stays
    local lines
    if [ ! -f "$CLOUD/$1" ]; then
        echo "ERROR: (gcloud.compute.tpus.$kind.describe) NOT_FOUND: Resource '$name' was not found" >&2
        exit 1
    fi
    mapfile -t lines <"$CLOUD/$1"
    if [ ${#lines[@]} -gt 1 ]; then printf '%s\n' "${lines[@]:1}" >"$CLOUD/$1"; fi
    state=${lines[0]}
}

on_host() { # NODE WORKER
    local host=t1v-n-$(($1 + 1))-w-$2 home code tries=3
    home=$CLOUD/homes/$host
    mkdir -p "$home"
    if [ "$verb" = scp ]; then
        cp "$file" "$home/${target#*:}"
        return
    fi
    while :; do
        code=255
        if [ -f "$CLOUD/half/$step" ]; then # the connection breaks after half a line
            printf 'half a line of alpacare-state %s run' "$host"
            rm -f "$CLOUD/half/$step"
        elif [ ! -e "$CLOUD/silent/$host" ]; then
            code=0 lost=
            if rm "$CLOUD/lost/$step" 2>/dev/null; then lost=1; fi
            (cd "$home" && if [ "$lost" ]; then exec >/dev/null; fi && exec env -i HOME="$home" HOSTNAME="$host" CLOUD="$CLOUD" WORKER="$2" \
                ADDRESS="10.0.$1.$2" PATH="$CLOUD/host_bin:/usr/bin:/bin" bash -c "$command") || code=$?
            if [ "$lost" ]; then code=255; fi
        fi
        if [ "$code" = 0 ] && [ -f "$CLOUD/twice/$step" ]; then # it breaks when all is done
            rm -f "$CLOUD/twice/$step"
            code=255
        fi
        if [ "$code" != 255 ]; then return "$code"; fi
        echo "Retrying: SSH command error: [/usr/bin/ssh] exited with return code [255]." >&2
        tries=$((tries - 1))
        [ "$tries" != 0 ] || return 255
    done
}

if [ -f "$CLOUD/before" ]; then . "$CLOUD/before"; fi
case $kind$verb in
tpu-vmdescribe)
    next_state "tpu${5#alpaca}"
    IFS='|' read -r state health spot <<<"$state"
    node=${5#alpaca} node=${node#-}
    echo "$state|${health:-HEALTHY}|$spot|10.0.${node:-0}.0;10.0.${node:-0}.1"
    ;;
queued-resourcesdescribe)
    next_state request
    echo "$state"
    ;;
*create)
    compgen -G "$CLOUD/tpu*" >/dev/null || mv "$CLOUD/homes" "$CLOUD/lost-$$" # taken away
    if [[ " $* " = *" --spot "* ]]; then spot=True; else spot=; fi
    for ((i = 0; i < nodes; i++)); do
        printf '%s||%s\n' "$(cat "$CLOUD/made_as" 2>/dev/null || echo READY)" "$spot" \
            >"$CLOUD/tpu${prefix:+-$i}"
    done
    if [ "$kind" = queued-resources ]; then
        cat "$CLOUD/granted_as" >"$CLOUD/request" 2>/dev/null ||
            printf '%s\n' ACCEPTED WAITING_FOR_RESOURCES PROVISIONING ACTIVE >"$CLOUD/request"
    fi
    printf x >>"$CLOUD/made"
    ;;
*delete) rm -f "$CLOUD"/tpu* "$CLOUD/request" ;;
*)
    file='' target='' failed=0 hosts=()
    if [ "$verb" = scp ]; then file=$5 target=$6; fi
    if [ "$worker" = all ]; then worker="0 1"; fi
    if [ "$node" = all ]; then node="0 1"; fi
    if [ "$verb$worker" = "scp0 1" ] && [ -f "$CLOUD/agent" ] && ! grep -q compute_engine "$CLOUD/agent"; then
        error="The SSH key is not present in the SSH agent. Please run ssh-add and try again."
    fi
    for n in $node; do
        if [ "$kind" = queued-resources ]; then suffix=-$n; else suffix=; fi
        state=MISSING
        if [ -f "$CLOUD/tpu$suffix" ]; then read -r state <"$CLOUD/tpu$suffix"; fi
        case ${error:-$state} in
        READY* | CREATING* | REPAIRING*) for i in $worker; do hosts+=("$n $i"); done ;;
        *)
            error=${error:-This TPU has state ${state%%|*} and cannot be reached}
            if [ "$kind" = tpu-vm ]; then
                echo "ERROR: (gcloud.compute.tpus.tpu-vm.$verb) $error" >&2
                exit 1
            fi
            printf 'Exception in thread Thread-%s:\nTraceback (most recent call last):\n' "$n" >&2
            echo "googlecloudsdk.command_lib.compute.tpus.tpu_vm.exceptions.Error: $error" >&2
            failed=1
            error=
            ;;
        esac
    done
    if [ "$failed" = 1 ]; then
        echo "WARNING: Could not prepare all 2 nodes, attempting to ssh into the rest." >&2
    fi
    pids=() code=0
    for host in "${hosts[@]}"; do
        on_host "${host% *}" "${host#* }" &
        pids+=($!)
    done
    for pid in "${pids[@]}"; do
        wait "$pid" || { status=$? && if [ "$code" = 0 ]; then code=$status; fi; }
    done
    if [ -f "$CLOUD/updates" ]; then
        printf '\n\nUpdates are available for some Google Cloud CLI components.  To install them,\n' >&2
        printf 'please run:\n  $ gcloud components update\n\n' >&2
    fi
    exit "$code"
    ;;
esac
