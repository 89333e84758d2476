#!/usr/bin/env bash
# The whole paper as one resumable pipeline: launch/paper/__main__.py, by $PYTHON or python3.
cd "$(dirname "$0")/.." && exec "${PYTHON:-python3}" -m launch.paper "$@"
