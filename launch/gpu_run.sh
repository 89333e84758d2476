#!/usr/bin/env bash
# Submits a command to SLURM as a job on GPU nodes.
#
#     bash launch/gpu_run.sh sbatch --nodes=2 --gpus_per_node=8 --time=24:00:00 -- \
#         python -m alpacare_jax.train --config=configs/alpacare.py:llama-7b --workdir=runs/7b
#
# Creates .venv here, writes runs/slurm/NAME.sbatch and submits it. COMMAND runs in this folder,
# which all nodes must share, as one process per node that uses all GPUs of the node. Before the
# time limit it gets SIGTERM, saves a checkpoint, and the job is requeued. The job is also requeued
# when a node fails, when a signal ended COMMAND (a crash, out of memory, the watchdog), and when it
# lost another node, a device or a bucket (exit code 75); another error
# of COMMAND itself is final. To save and end: scancel --signal=TERM JOB
#
# --name=NAME             name of the job (default alpacare)
# --nodes=N --gpus_per_node=N --time=T    (default 1, 8, 24:00:00)
# --partition=P --account=A --mem=M       (default: the cluster's)
# --cpus_per_node=N       (default: 8 for each GPU)
# --signal_seconds=N      how long before the time limit SIGTERM is sent (default 300)
# --max_retries=N         how often the job is requeued (default 20)
# --dry_run               prints the job and each command; runs nothing
set -euo pipefail
cd "$(dirname "$0")/.."
. launch/lib/command_line.sh

case ${1:-} in
sbatch) shift ;;
--help | -h) usage ;;
*) usage_error "unknown action '${1:-}'; the only one is sbatch; see gpu_run.sh --help" ;;
esac

name=alpacare nodes=1 gpus_per_node=8 time=24:00:00 partition='' account='' mem='' cpus_per_node=''
signal_seconds=300 max_retries=20
parse_flags "name nodes gpus_per_node time partition account mem cpus_per_node signal_seconds
max_retries" dry_run "$@"
for flag in name nodes gpus_per_node time partition account mem cpus_per_node; do
    [[ ${!flag} =~ ^[A-Za-z0-9_.:,-]*$ ]] ||
        usage_error "--$flag='${!flag}' has characters that SLURM does not accept"
done
check_positive nodes gpus_per_node
cpus_per_node=${cpus_per_node:-$((gpus_per_node * 8))}
check_whole signal_seconds max_retries cpus_per_node
check_command "${COMMAND[@]}"
[ "$dry_run" = 1 ] || command -v sbatch >/dev/null ||
    fail "sbatch is not installed here; run this on a login node, or add --dry_run"

job_script() { # COMMAND...
    local devices venv
    venv=$(quote "$(realpath -m "${VENV:-.venv}")")
    devices=$(seq -s, 0 $((gpus_per_node - 1)))
    cat <<JOB
#!/usr/bin/env bash
#SBATCH --job-name=$name
#SBATCH --nodes=$nodes
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=$gpus_per_node
#SBATCH --cpus-per-task=$cpus_per_node
#SBATCH --time=$time
${partition:+#SBATCH --partition=$partition
}${account:+#SBATCH --account=$account
}${mem:+#SBATCH --mem=$mem
}#SBATCH --signal=B:USR1@$signal_seconds
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=runs/slurm/$name-%j.log
set -euo pipefail
cd $(quote "$PWD")
. launch/lib/restart.sh
restarts=\${SLURM_RESTART_COUNT:-0}
requeue() { # REASON
    announce_retry "\$1" \$((restarts + 1)) --max_retries=$max_retries ||
        exit \$((code == 0 ? 1 : code))
    exec scontrol requeue "\$SLURM_JOB_ID"
}
if [ "\$restarts" -gt $max_retries ]; then # SLURM itself requeues a job when a node fails
    announce_retry "a node failed" "\$restarts" --max_retries=$max_retries || exit 1
fi
export PATH=$venv/bin:\$PATH PYTHONUNBUFFERED=1
# One process per node: by default JAX gives a SLURM task a single GPU.
export JAX_LOCAL_DEVICE_IDS=$devices
ALPACARE_RUN_TOKEN=\$(random_token)
export ALPACARE_RUN_TOKEN

# Of several exit codes srun returns the highest, often that of a task which it killed because
# another had failed. The first task to fail writes its own into a file that all nodes see.
first=runs/slurm/$name-\$SLURM_JOB_ID.code
rm -f "\$first"
task='trap : TERM; "\$@" && exit; code=\$?; (set -C; echo \$code >"\$0") 2>/dev/null; exit \$code'

# SLURM sends USR1 to this shell alone. scancel signals the command itself; a signal to srun would
# kill the command before it has saved.
time_over=0 terminated=0 note=\$(mktemp)
trap 'time_over=1; scancel --signal=TERM "\$SLURM_JOB_ID"' USR1
trap 'terminated=1' TERM
(
    trap : TERM USR1
    code=0
    srun --ntasks-per-node=1 --cpus-per-task=$cpus_per_node --kill-on-bad-exit=1 \\
        bash -c "\$task" "\$first" $(quote "$@") || code=\$?
    echo "\$code" >"\$note"
) &
step=\$!
# A signal ends a wait, not the command.
while kill -0 "\$step" 2>/dev/null; do wait "\$step" || true; done
code=\$(cat "\$note")
code=\${code:-1}
if [ "\$code" != 0 ] && [ -s "\$first" ]; then code=\$(cat "\$first"); fi
rm -f "\$note" "\$first"
if [ "\$time_over" = 1 ] && [ "\$code" = 0 ]; then requeue "the time limit was reached"; fi
if [ "\$terminated" = 0 ] && may_retry "\$code"; then
    requeue "the command failed with code \$code"
fi
# SLURM does not requeue a preempted job that ends before SLURM itself ends it.
if [ "\$terminated" = 1 ] && [ "\$code" = 0 ]; then sleep 900; fi
exit "\$code"
JOB
}

submit() { # COMMAND...
    local script=runs/slurm/$name.sbatch job
    if [ "$dry_run" = 1 ]; then
        echo ". launch/lib/environment.sh && prepare_environment gpu"
        echo "cat > $script <<'JOB'"
        job_script "$@"
        echo JOB
    else
        say "creating .venv (takes minutes the first time)" # here: nodes often have no network
        . launch/lib/environment.sh
        prepare_environment gpu
        mkdir -p runs/slurm
        job_script "$@" >"$script"
    fi
    job=$(call sbatch --parsable "$script") || fail "sbatch rejected the job: $(last_error)"
    if [ "$dry_run" = 1 ]; then return; fi
    say "submitted job ${job%%;*}; its log is runs/slurm/$name-${job%%;*}.log"
    say "to save and end it: scancel --signal=TERM ${job%%;*}"
}

prepare_work
submit "${COMMAND[@]}"
