#!/usr/bin/env bash
# A folder to publish, proven to answer as the model does here: alpacare_jax/release.py.
PYTHONPATH="$(cd "$(dirname "$0")/.." && pwd)" exec "${PYTHON:-python3}" -m alpacare_jax.release "$@"
