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
set -uo pipefail
cd $(quote "$PWD") || exit 1
restarts=\${SLURM_RESTART_COUNT:-0}
if [ "\$restarts" -gt $max_retries ]; then
    echo "error: queued again \$restarts times, over --max_retries=$max_retries;" \\
        "submit it anew to go on" >&2
    exit 1
fi
export PATH=$venv/bin:\$PATH PYTHONUNBUFFERED=1
# One process a node: by itself JAX gives a SLURM task one GPU only.
export JAX_LOCAL_DEVICE_IDS=$devices

# SLURM sends USR1 to this shell alone. scancel reaches the command itself; srun, told to end, would
# kill it before it has saved.
over=0 told=0 note=\$(mktemp)
trap 'over=1; scancel --signal=TERM "\$SLURM_JOB_ID"' USR1
trap 'told=1' TERM
(
    trap : TERM USR1
    srun --ntasks-per-node=1 --cpus-per-task=$cpus_per_node --kill-on-bad-exit=1 $(quote "$@")
    echo \$? >"\$note"
) &
step=\$!
while kill -0 "\$step" 2>/dev/null; do wait "\$step"; done # a signal ends a wait, not the command
code=\$(cat "\$note")
rm -f "\$note"
code=\${code:-1}
if [ "\$over" = 1 ] && [ "\$code" = 0 ]; then
    echo "the time is over; queueing the job again, which was done \$restarts times before"
    exec scontrol requeue "\$SLURM_JOB_ID"
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
