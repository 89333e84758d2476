#!/usr/bin/env bash
# Everything that needs a GPU to be shown, in one call of about 10 minutes on one H200.
#
#     bash launch/gpu_check.sh [--try] [FOLDER]     logs go to FOLDER; gpu_check by default
#
# 1. attention: cuDNN against the definition, and packed examples kept apart
# 2. a model of 7B's shape, full fine-tuning in bfloat16 with float32 master weights: that it fits,
#    MFU against a measured matrix product, and transformers with torch on the same card afterwards,
#    which has to recompute its layers, too; FOLDER/profile gets a trace of two of our steps
# 3. the same of a 1B model, taking turns with torch, eager and compiled, nothing recomputed there
#
# --try runs the same steps for a tiny model on the CPU, to see that nothing is missing.
#
# Uses $PYTHON, by default python3, with the packages of setup.py, jax[cuda13] and pytest; for the
# comparison torch with CUDA and transformers. Nothing is installed.
set -uo pipefail
cd "$(dirname "$0")/.." || exit
PYTHON=${PYTHON:-python3}
small=0
if [ "${1:-}" = --try ]; then
    small=1
    shift
fi
out=${1:-gpu_check}
mkdir -p "$out" || exit

"$PYTHON" - "$small" <<'EOF' || exit
import importlib, importlib.metadata, pathlib, re, sys

missing = []
for name in (
    *("absl", "etils.epath", "flax.nnx", "jax", "ml_collections", "optax"),
    *("orbax.checkpoint", "tensorstore", "tokenizers", "pytest", "alpacare_jax.train"),
):
    try:
        importlib.import_module(name)
    except ImportError as error:
        missing.append(f"{name} ({error})")
if missing:
    what = "; ".join(missing)
    sys.exit(f"error: {sys.executable} lacks {what}; install them, constraints.txt has versions")
from packaging.requirements import Requirement  # pytest needs it, too

for asked in re.findall(r'"([\w.-]+[<>=][^"]*)"', pathlib.Path("setup.py").read_text()):
    wanted = Requirement(asked)
    try:
        found = importlib.metadata.version(wanted.name)
    except importlib.metadata.PackageNotFoundError:
        continue  # not needed here
    if found not in wanted.specifier:
        print(f"warning: {wanted.name} {found} is there, setup.py asks for {wanted}")
if sys.argv[1] == "0":
    import jax

    if (found := jax.default_backend()) != "gpu":
        sys.exit(f"error: jax sees {found} only; install jax[cuda13], or look at nvidia-smi")
EOF

failed=()
step() { # NAME SECONDS COMMAND...: runs it, keeps its log, goes on where it fails
    local name=$1 seconds=$2
    shift 2
    echo "== $name ($SECONDS s): $*"
    timeout --kill-after=20 "$seconds" "$@" 2>&1 | tee "$out/$name.log"
    [ "${PIPESTATUS[0]}" = 0 ] || failed+=("$name")
}

platform=cuda
of_7b=(--variant=llama-7b --remat=full --accumulation=4 --steps=2 --profile="$out/profile")
of_1b=()
if [ "$small" = 1 ]; then
    platform=cpu
    export JAX_PLATFORMS=cpu
    of_1b=(--anyway --variant=tiny --rows=1 --length=128 --steps=1 --skip=compile)
    of_7b=(--remat=full --accumulation=4 "${of_1b[@]}")
fi
# GPUs round the factors of float32 products to 10 bits unless told otherwise. What is deprecated in
# the versions at hand is no failure here.
step attention 240 env JAX_PLATFORMS="$platform" JAX_DEFAULT_MATMUL_PRECISION=highest \
    "$PYTHON" -m pytest -q -p no:cacheprovider -W ignore::DeprecationWarning \
    tests/alpacare_jax/model/test_attention.py
step llama-7b 480 "$PYTHON" -m benchmarks.gpu "${of_7b[@]}" --rounds=3 --alone --checkpointing \
    --skip=compile
step llama-1b 420 "$PYTHON" -m benchmarks.gpu "${of_1b[@]}" --rounds=3
if [ ${#failed[@]} != 0 ]; then
    echo "FAILED: ${failed[*]}; see the logs in $out"
    exit 1
fi
echo "all ran, in $SECONDS s; logs are in $out"
