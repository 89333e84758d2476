#!/usr/bin/env bash
# Sets up an environment and runs all checks: lint, format, types, tests. Arguments go to pytest.
#
#     bash launch/test.sh                  everything, about 25 minutes on 2 slow cores
#     bash launch/test.sh -m 'not slow'    without the long ones
set -euo pipefail
cd "$(dirname "$0")/.."
. launch/lib/environment.sh
prepare_environment test

# Only parity tests use torch, and peft on top of it. Its CPU build is small; the CUDA build takes
# gigabytes and is never installed from here: those tests are skipped instead.
if ! "$PYTHON_BIN" -c 'import torch, peft' 2>/dev/null; then
    if "$PYTHON_BIN" -m pip install --quiet --dry-run --report - torch==2.13.0 2>/dev/null |
        grep -qiE '"name": "(nvidia|cuda|triton)'; then
        echo "torch's CPU build is not on this package index: parity tests against torch are skipped" >&2
    else
        "$PYTHON_BIN" -m pip install --quiet --disable-pip-version-check \
            --constraint constraints.txt torch==2.13.0 peft ||
            echo "torch 2.13.0 or peft is not on this package index: parity tests against torch are skipped" >&2
    fi
fi

"$PYTHON_BIN" -c 'from tests.support import browser; import sys; sys.exit(not browser.find())' ||
    echo "no Chromium or Chrome found: tests that open a report in a browser are skipped" >&2

"$PYTHON_BIN" -m ruff check .
"$PYTHON_BIN" -m ruff format --check .
"$PYTHON_BIN" -m basedpyright --level error
exec "$PYTHON_BIN" -m pytest -n 2 --dist worksteal "$@"
