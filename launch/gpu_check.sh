#!/usr/bin/env bash
# Everything that needs a GPU to be shown, in one call of about 10 minutes on one H200.
#
#     bash launch/gpu_check.sh [FOLDER]        logs go there; gpu_check by default
#
# 1. attention: cuDNN against the definition, and packed examples kept apart
# 2. a 1B model and one of 7B's shape, full fine-tuning in bfloat16 with float32 master weights:
#    MFU against a measured matrix product, beside transformers and torch on the same card
# 3. a trace of two steps of the 7B shape is left in FOLDER/profile by benchmarks.gpu --profile
#
# Uses the Python that is active: jax[cuda], flax, optax, orbax-checkpoint; for the comparison torch
# with CUDA and transformers; pytest.
set -uo pipefail
cd "$(dirname "$0")/.." || exit
out=${1:-gpu_check}
mkdir -p "$out"

if ! python -c 'import jax, sys; sys.exit(jax.default_backend() != "gpu")' 2>/dev/null; then
    echo "error: jax sees no GPU here; install jax[cuda13] or look at nvidia-smi" >&2
    exit 1
fi

failed=0
step() { # NAME COMMAND...: runs it, keeps its log, goes on where it fails
    local name=$1
    shift
    echo "== $name: $*"
    "$@" 2>&1 | tee "$out/$name.log"
    [ "${PIPESTATUS[0]}" = 0 ] || { echo "FAILED: $name" && failed=1; }
}

step attention env JAX_PLATFORMS=cuda python -m pytest -q -p no:cacheprovider tests/test_attention.py
step llama-1b python -m benchmarks.gpu --rounds=3
step llama-7b python -m benchmarks.gpu --variant=llama-7b --rows=8 --remat=full --rounds=3 \
    --skip=compile --profile="$out/profile"
exit "$failed"
