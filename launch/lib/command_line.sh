# shellcheck shell=bash disable=SC2034
# Sourced by the other scripts: flags, messages, and commands that a dry run only prints.

if [ "${BASH_VERSINFO[0]}" -lt 5 ]; then
    echo "error: this is bash $BASH_VERSION; install bash 5 and GNU coreutils first" >&2
    exit 1
fi

dry_run=0

say() { # progress
    local script=${0##*/}
    if [ "$dry_run" = 0 ]; then printf '%s: %s\n' "${script%.sh}" "$*" >&2; fi
}

fail() { # one line, exit 1
    printf 'error: %s\n' "$*" >&2
    exit 1
}

usage_error() { # one line, exit 2
    printf 'error: %s\n' "$*" >&2
    exit 2
}

usage() { # prints the comment at the top of the script, which may have changed the folder
    awk 'NR > 1 { if (!/^#/) exit; sub(/^# ?/, ""); print }' "${BASH_SOURCE[0]%/lib/*}/${0##*/}"
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
            if [[ $flag == *_flags ]]; then set -- "--$flag=${!flag} ${1#*=}" "${@:2}"; fi # they add up
            printf -v "$flag" %s "${1#*=}"
        elif [[ $1 == "--$flag" && $switches == *" $flag "* ]]; then
            printf -v "$flag" 1
        else
            flag=${flag//-/_}
            if [[ $valued == *" $flag "* ]]; then usage_error "'$1': write --$flag=VALUE"; fi
            if [[ $switches == *" $flag "* ]]; then usage_error "'$1': write --$flag"; fi
            usage_error "unexpected '$1'; COMMAND is written after --; for flags see --help"
        fi
        shift
    done
    COMMAND=("${@:2}")
}

# NAME ONLY|NONE PATTERN: makes the variable NAME, flags for gcloud, an array. They must be, or must
# not be, among those of PATTERN.
split_flags() {
    local word
    local -n words=$1
    read -r -d '' -a words <<<"$words" || true
    for word in "${words[@]}"; do
        [[ $word =~ ^--[a-z] ]] || usage_error "--$1: '$word' is not a flag; write those of gcloud" \
            "as --flag or --flag=value, without spaces in a value"
        if [[ $word =~ ^--($3)(=|$) ]]; then
            [ "$2" = ONLY ] || usage_error "--$1: this script decides on ${word%%=*}; see --help"
        elif [ "$2" = ONLY ]; then
            usage_error "--$1: ${word%%=*} is none of ${3//|/, }"
        fi
    done
}

check_whole() { # NAMES OF FLAGS
    local flag
    for flag; do
        [[ ${!flag} =~ ^[0-9]{1,9}$ ]] || usage_error "--$flag=${!flag} is not a whole number"
    done
}

check_positive() { # NAMES OF FLAGS
    local flag
    check_whole "$@"
    for flag; do [ "${!flag}" -gt 0 ] || usage_error "--$flag=${!flag}; give 1 or more"; done
}

# Secrets by their names, as in OPENAI_API_KEY=, --password VALUE and x-api-key:, in lower case. What
# begins with $ or ` is filled in on the hosts.
SECRET_NAME='([a-z0-9_.-]*[_.-])?((api|access|auth|secret|private)?(key|token)|secret|passw(or)?d'
SECRET_NAME+='|passphrase|pat|credentials?)'
NAMED_SECRET="(^|[^a-z0-9])(${SECRET_NAME}[\"']?(=|: ?)|--?${SECRET_NAME} +)[\"']?[^]\$\`\"' )-]"
# And by their form: OpenAI, Anthropic; Hugging Face; AWS; GitHub; GitLab; Slack; Google; JWT; an HTTP
# header; a private key; a password in an address.
SECRET_FORM='(^|[^A-Za-z0-9])(sk-[A-Za-z0-9_-]{16}|hf_[A-Za-z0-9]{16}|A[KS]IA[A-Z0-9]{16}'
SECRET_FORM+='|gh[a-z]_[A-Za-z0-9]{16}|github_pat_|glpat-|xox[a-z]-|AIza[A-Za-z0-9_-]{16}|ya29\.'
SECRET_FORM+='|eyJ[A-Za-z0-9_-]{16}|(Bearer|Basic) +[A-Za-z0-9_.+/-]{8})|BEGIN [A-Z ]*PRIVATE KEY'
SECRET_FORM+='|://[^/@: ]*:[^/@ $]+@'

check_command() { # COMMAND...
    local text="$*"
    if [ $# = 0 ]; then
        usage_error "no command; write it after --: -- python -m alpacare_jax.train"
    fi
    if [[ ${text,,} =~ $NAMED_SECRET || $text =~ $SECRET_FORM ]]; then
        usage_error "a secret in the command could be read by anyone who lists processes; put it in" \
            "a file on the hosts that only you can read, and let the command read it:" \
            "-- bash -c 'OPENAI_API_KEY=\$(cat ~/key) python ...'"
    fi
}

quote() { # the arguments as one would type them
    local argument words=()
    for argument; do
        if [[ $argument =~ ^[A-Za-z0-9_@%+=:,./-]+$ ]]; then
            words+=("$argument")
        elif [[ $argument =~ ^(--[a-z._-]+=)(.*)$ ]]; then
            words+=("${BASH_REMATCH[1]}${BASH_REMATCH[2]@Q}")
        else
            words+=("${argument@Q}")
        fi
    done
    printf '%s' "${words[*]}"
}

prepare_work() { # a temporary folder, removed when the script ends
    exec 3>&1 # dry runs print here also where a command's output is captured
    WORK=$(mktemp -d)
    trap 'kill $(jobs -p) 2>/dev/null || true; rm -rf "$WORK"' EXIT
    : >"$WORK/stderr"
}

call() { # COMMAND...: runs it, or prints it in a dry run; keeps its stderr for `last_error`
    if [ "$dry_run" = 1 ]; then
        printf '%s\n' "$(quote "$@")" >&3 && return
    fi
    # In the background, so that a signal is handled at once.
    "$@" 2>"${ERRORS:-$WORK/stderr}" </dev/null 3>&- &
    wait $!
}

# What went wrong in the last call, on one line. gcloud prints JSON over several lines, an error in a
# thread as a traceback, and at the end at times that updates are available.
last_error() {
    awk '
        /^Updates are available|^ *\$ gcloud components/ { exit }
        tolower($0) ~ /^ *\(?(error|fatal)/ || /^[a-z]+(\.[A-Za-z_]+)+: / { found = 1 }
        found && /[^ ]/ && length(text) < 400 {
            sub(/^ +|^[a-z]+(\.[A-Za-z_]+)+: /, "")
            text = text separator $0; separator = " "
        }
        /[^ ]/ && !/^Completed execution/ { last = $0 }
        END { print text ? text : last ? last : "no error message" }' "$WORK/stderr"
}
