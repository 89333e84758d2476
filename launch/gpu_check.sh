#!/usr/bin/env bash
# All checks that need a GPU: launch/gpu_check.py, by $PYTHON or python3.
cd "$(dirname "$0")/.." && exec "${PYTHON:-python3}" -m launch.gpu_check "$@"
