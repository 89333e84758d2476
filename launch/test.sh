#!/usr/bin/env bash
# Sets up an environment and runs all checks: lint, format, tests. Arguments go to pytest.
#
#     bash launch/test.sh                  everything, under 10 minutes on 2 cores
#     bash launch/test.sh -m 'not slow'    about 3 minutes
set -euo pipefail
cd "$(dirname "$0")/.."
. launch/environment.sh
prepare_environment test

# torch serves parity tests only. Its CPU build is small; the CUDA build brings gigabytes, so it is
# never installed from here: those tests skip instead.
if ! "$PYTHON_BIN" -c 'import torch' 2>/dev/null; then
    if "$PYTHON_BIN" -m pip install --quiet --dry-run --report - torch==2.13.0 2>/dev/null |
        grep -qiE '"name": "(nvidia|cuda|triton)'; then
        echo "torch's CPU build is not on this package index: parity tests against torch will skip" >&2
    else
        "$PYTHON_BIN" -m pip install --quiet --disable-pip-version-check \
            --constraint constraints.txt torch==2.13.0 ||
            echo "torch 2.13.0 is not to be had: parity tests against torch will skip" >&2
    fi
fi

"$PYTHON_BIN" -c 'from tests.support import browser; import sys; sys.exit(not browser.find())' ||
    echo "no Chromium or Chrome here: tests that look at a report in a browser will skip" >&2

"$PYTHON_BIN" -m ruff check .
"$PYTHON_BIN" -m ruff format --check .
exec "$PYTHON_BIN" -m pytest -n 2 --dist worksteal "$@"
