# shellcheck shell=bash disable=SC2154
# Sourced by gpu_run.sh: the job that SLURM runs, and handing it in.

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
. launch/restart.sh
restarts=\${SLURM_RESTART_COUNT:-0}
queue_again() { # WHY
    another_try "\$1" \$((restarts + 1)) --max_retries=$max_retries ||
        exit \$((code == 0 ? 1 : code))
    exec scontrol requeue "\$SLURM_JOB_ID"
}
if [ "\$restarts" -gt $max_retries ]; then # SLURM itself queues a job again when a node fails
    another_try "a node failed" "\$restarts" --max_retries=$max_retries || exit 1
fi
export PATH=$venv/bin:\$PATH PYTHONUNBUFFERED=1
# One process a node: by itself JAX gives a SLURM task one GPU only.
export JAX_LOCAL_DEVICE_IDS=$devices

# Of several codes srun tells the highest, often that of a task which it killed because another had
# failed. The first to fail writes its own into a file that all nodes see.
first=runs/slurm/$name-\$SLURM_JOB_ID.code
rm -f "\$first"
task='trap : TERM; "\$@" && exit; code=\$?; (set -C; echo \$code >"\$0") 2>/dev/null; exit \$code'

# SLURM sends USR1 to this shell alone. scancel reaches the command itself; srun, told to end, would
# kill it before it has saved.
over=0 told=0 note=\$(mktemp)
trap 'over=1; scancel --signal=TERM "\$SLURM_JOB_ID"' USR1
trap 'told=1' TERM
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
if [ "\$over" = 1 ] && [ "\$code" = 0 ]; then queue_again "the time is over"; fi
if [ "\$told" = 0 ] && worth_another_try "\$code"; then
    queue_again "the command failed with code \$code"
fi
# A job that is preempted, and over before SLURM takes it away, would not be queued again.
if [ "\$told" = 1 ] && [ "\$code" = 0 ]; then sleep 900; fi
exit "\$code"
JOB
}

submit() { # COMMAND...
    local script=runs/slurm/$name.sbatch job
    if [ "$dry_run" = 1 ]; then
        echo ". launch/environment.sh && prepare_environment gpu"
        echo "cat > $script <<'JOB'"
        job_script "$@"
        echo JOB
    else
        say "making .venv (minutes, the first time)" # here: nodes often have no network
        . launch/environment.sh
        prepare_environment gpu
        mkdir -p runs/slurm
        job_script "$@" >"$script"
    fi
    job=$(call sbatch --parsable "$script") || fail "sbatch refused the job: $(because)"
    if [ "$dry_run" = 1 ]; then return; fi
    say "job ${job%%;*}: its log is runs/slurm/$name-${job%%;*}.log"
    say "save and end it with: scancel --signal=TERM ${job%%;*}"
}
