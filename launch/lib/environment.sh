# shellcheck shell=bash
# Sourced by the other scripts: makes $VENV with this project in it, once for each set of pins.
#   prepare_environment EXTRAS     e.g. prepare_environment convert,test
# Sets PYTHON_BIN to the environment's Python. Variables a user may set: PYTHON, VENV.

find_python() {
    local candidate
    for candidate in "${PYTHON:-}" python3.11 python3.12 python3.13 python3 python; do
        if [ -n "$candidate" ] && "$candidate" -c \
            'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
            echo "$candidate" && return
        fi
    done
    echo "error: no Python 3.11 or newer with venv; install one (Debian: python3 python3-venv)" \
        "or set PYTHON to its path" >&2
    return 1
}

# Reads pip's output, which is silent for minutes: prints a dot for each package and each 5 seconds.
show_pip_progress() {
    local line
    while IFS= read -r -t 5 line || [ $? -gt 128 ]; do # 128: the time is over
        case $line in
        Collecting\ * | '') printf . ;;
        Installing\ collected\ packages:*) printf ' installing .' ;;
        esac
    done
    echo
}

prepare_environment() {
    local extras=$1 python stamp
    VENV=${VENV:-.venv}
    PYTHON_BIN=$VENV/bin/python
    stamp="$VENV/installed-$(cat setup.py constraints.txt | cksum | tr ' ' -)-$extras"
    if [ -f "$stamp" ]; then return; fi
    python=$(find_python) || return 1
    (
        mkdir -p "$VENV"
        exec 9>"$VENV/lock" # one at a time, also after a script that was killed while pip ran
        flock 9
        "$PYTHON_BIN" -m pip --version >/dev/null 2>&1 || "$python" -m venv "$VENV" # or half of one
        set -o pipefail
        "$PYTHON_BIN" -m pip install --disable-pip-version-check --constraint constraints.txt \
            --editable ".[$extras]" | show_pip_progress >&2
    ) || {
        echo "error: pip could not install the packages; is there a network or a package mirror?" >&2
        return 1
    }
    touch "$stamp" # last, so that a broken install is done again
}
