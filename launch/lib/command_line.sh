# shellcheck shell=bash disable=SC2034
# Sourced by tpu_run.sh and gpu_run.sh: flags, messages, and commands that a dry run only prints.

if [ "${BASH_VERSINFO[0]}" -lt 5 ]; then
    echo "error: this is bash $BASH_VERSION; install bash 5 and GNU coreutils first" >&2
    exit 1
fi

dry_run=0

say() { # progress
    if [ "$dry_run" = 0 ]; then printf '%s: %s\n' "$(basename "$0" .sh)" "$*" >&2; fi
}

fail() { # one line, exit 1
    printf 'error: %s\n' "$*" >&2
    exit 1
}

usage_error() { # one line, exit 2
    printf 'error: %s\n' "$*" >&2
    exit 2
}

usage() { # prints the comment at the top of the script
    awk 'NR > 1 { if (!/^#/) exit; sub(/^# ?/, ""); print }' "$0"
    exit 0
}

# Sets the variable of each flag that is given, and COMMAND to the words after `--`.
#   parse_flags "NAMES OF FLAGS WITH A VALUE" "NAMES OF SWITCHES" ARGUMENTS...
parse_flags() {
    local valued=" $1 " switches=" $2 " flag
    shift 2
    while [ $# -gt 0 ] && [ "$1" != -- ]; do
        if [ "$1" = --help ] || [ "$1" = -h ]; then usage; fi
        flag=${1%%=*} flag=${flag#--}
        if [[ $1 == --*=* && $valued == *" $flag "* ]]; then
            printf -v "$flag" %s "${1#*=}"
        elif [[ $1 == "--$flag" && $switches == *" $flag "* ]]; then
            printf -v "$flag" 1
        else
            usage_error "unexpected '$1'; flags are written --flag=value, COMMAND after --;" \
                "see --help"
        fi
        shift
    done
    COMMAND=("${@:2}")
}

check_whole_number() { # FLAG VALUE
    [[ $2 =~ ^[0-9]{1,9}$ ]] || usage_error "$1=$2 is not a whole number"
}

check_positive() { # FLAG VALUE
    check_whole_number "$@"
    [ "$2" -gt 0 ] || usage_error "$1=$2; give 1 or more"
}

check_command() { # COMMAND...
    local argument
    if [ $# = 0 ]; then
        usage_error "no command; write it after --: -- python -m alpacare_jax.train"
    fi
    for argument; do
        case $argument in
        *_API_KEY=* | *_TOKEN=* | *_SECRET=* | *_PASSWORD=*)
            usage_error "a secret in the command could be read by anyone who lists processes;" \
                "put it in a file on the hosts that only you can read"
            ;;
        esac
    done
}

quote() { # the arguments as one would type them
    local argument out=()
    for argument; do
        if [[ $argument =~ ^[A-Za-z0-9_@%+=:,./-]+$ ]]; then
            out+=("$argument")
        elif [[ $argument =~ ^(--[a-z._-]+=)(.*)$ ]]; then
            out+=("${BASH_REMATCH[1]}${BASH_REMATCH[2]@Q}")
        else
            out+=("${argument@Q}")
        fi
    done
    printf '%s' "${out[*]}"
}

prepare_work() { # a temporary folder, removed when the script ends
    exec 3>&1 # dry runs print here also where a command's output is captured
    WORK=$(mktemp -d)
    trap 'rm -rf "$WORK"' EXIT
    : >"$WORK/stderr"
}

call() { # COMMAND...: runs it, or prints it in a dry run; keeps its stderr for `last_error`
    if [ "$dry_run" = 1 ]; then
        printf '%s\n' "$(quote "$@")" >&3
        return
    fi
    "$@" 2>"${ERRORS:-$WORK/stderr}" </dev/null 3>&-
}

last_error() { # the most telling line of the last call's stderr
    { grep -m 1 -iE '^ *\(?(error|fatal)' "$WORK/stderr" ||
        grep -v '^ *$' "$WORK/stderr" | tail -n 1 || true; } | grep . || echo "no error message"
}
