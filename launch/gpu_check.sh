#!/usr/bin/env bash
# All checks that need a GPU, in one call of about 10 minutes on one H200.
#
#     bash launch/gpu_check.sh [--try] [FOLDER]     logs go to FOLDER (default gpu_check)
#
# 1. attention: cuDNN against the definition, and that packed examples stay separate
# 2. a model of 7B's shape, full fine-tuning in bfloat16 with float32 master weights: that it fits,
#    MFU relative to a measured matrix product, then transformers with torch on the same card, also
#    with recomputed layers; FOLDER/profile gets a trace of two of our steps
# 3. the same for a 1B model, alternating with torch, eager and compiled, without recomputation
#
# --try runs the same steps for a tiny model on the CPU, as a check of the installation.
#
# Uses $PYTHON, by default python3, with the packages of setup.py, jax[cuda13] and pytest; for the
# comparison torch with CUDA and transformers. Installs nothing.
set -uo pipefail
cd "$(dirname "$0")/.." || exit
. launch/lib/command_line.sh
if [ "${1:-}" = --help ] || [ "${1:-}" = -h ]; then usage; fi
PYTHON=${PYTHON:-python3}
small=0
if [ "${1:-}" = --try ]; then
    small=1
    shift
fi
if [ $# -gt 1 ] || [[ ${1:-} == -* ]]; then
    usage_error "unknown argument '${*: -1}'; see gpu_check.sh --help"
fi
out=${1:-gpu_check}
mkdir -p "$out" || exit

"$PYTHON" -m launch.gpu_packages "$small" || exit

failed=()
step() { # NAME SECONDS COMMAND...: runs it, keeps its log, continues if it fails
    local name=$1 seconds=$2
    shift 2
    echo "== $name ($SECONDS s): $*"
    timeout --kill-after=20 "$seconds" "$@" 2>&1 | tee "$out/$name.log"
    [ "${PIPESTATUS[0]}" = 0 ] || failed+=("$name")
}

platform=cuda
options_7b=(--variant=llama-7b --remat=full --accumulation=4 --steps=2 --profile="$out/profile")
options_1b=()
if [ "$small" = 1 ]; then
    platform=cpu
    export JAX_PLATFORMS=cpu
    options_1b=(--anyway --variant=tiny --rows=1 --length=128 --steps=1 --skip=compile)
    options_7b=(--remat=full --accumulation=4 "${options_1b[@]}")
fi
# By default GPUs round the factors of float32 products to 10 bits. Deprecations in the installed
# versions are no failure here.
step attention 240 env JAX_PLATFORMS="$platform" JAX_DEFAULT_MATMUL_PRECISION=highest \
    "$PYTHON" -m pytest -q -p no:cacheprovider -W ignore::DeprecationWarning \
    tests/alpacare_jax/model/test_attention.py
step llama-7b 480 "$PYTHON" -m benchmarks.gpu "${options_7b[@]}" --rounds=3 --alone --checkpointing \
    --skip=compile
step llama-1b 420 "$PYTHON" -m benchmarks.gpu "${options_1b[@]}" --rounds=3
if [ ${#failed[@]} != 0 ]; then
    echo "FAILED: ${failed[*]}; logs are in $out"
    exit 1
fi
echo "all steps succeeded in $SECONDS s; logs are in $out"
