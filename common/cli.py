"""How every command of this package starts and ends: exit codes and one-line errors."""

import errno
import re
import sys
from collections.abc import Callable, Sequence

from absl import app, flags, logging

from common import paths

USER_ERRORS = (ValueError, OSError, FloatingPointError)

REMEDIES = {
    errno.ENOENT: "no such file or folder",
    errno.EISDIR: "is a folder; give a file",
    errno.ENOTDIR: "lies below a file; give a folder",
    errno.EEXIST: "is a file that is there already; give a folder",
    errno.EACCES: "no permission; change its mode or owner, or give another path",
    errno.EPERM: "no permission; change its mode or owner, or give another path",
    errno.EROFS: "the file system is read-only; give another path",
    errno.ENOSPC: "no space left on the device; make room and run the same command again",
    errno.EDQUOT: "the disk quota is used up; make room and run the same command again",
}
"""What the system's errors of files mean here; others keep the system's words."""

NOT_LOADED = "Configuration is not available because of an earlier failure"
"""What ml_collections says of a --config that is not there, before the reason."""


def fail(error: Exception) -> int:
    """Prints `error` on stderr in one line and returns exit code 1."""
    text = " ".join(error_text(error).split()) or type(error).__name__
    if isinstance(error, paths.outages()):
        text = f"a bucket does not answer ({text}); once it does, the same command goes on"
    print(f"error: {text}", file=sys.stderr)
    return 1


def error_text(error: Exception) -> str:
    """What `error` says; those of the system without their number, and with a remedy.

    >>> error_text(IsADirectoryError(errno.EISDIR, "Is a directory", "data"))
    'data: is a folder; give a file'
    """
    if isinstance(error, OSError) and error.errno in REMEDIES and error.filename:
        return f"{error.filename}: {REMEDIES[error.errno]}"
    if NOT_LOADED in str(error) and isinstance(error.__cause__, Exception):
        return f"--config could not be loaded: {error_text(error.__cause__).rpartition('] ')[2]}"
    return str(error)


def require_entries(*names: str) -> None:
    """The flags of these names, lists that are defined already, need entries, none of them empty.

    `--outputs=` and `--outputs=a,,b` are wrong flags then.
    """
    for name in names:
        flags.register_validator(
            name,
            lambda given: given is None or (len(given) > 0 and all(given)),
            message="must be one or several, with commas between them",
        )


def run(main: Callable[[Sequence[str]], int | None], *, positional: bool = False) -> None:
    """Runs `main(argv)` under absl flags and exits the process.

    Only a command that is `positional` takes arguments that are no flags.

    Exit code 0: done. 1: failed, with one line on stderr that names the remedy (`--debug` shows
    the traceback instead). 2: wrong flags. 130: interrupted, by Ctrl-C as a rule.
    """
    flags.DEFINE_bool("debug", False, "Show the traceback of an error instead of one line.")

    def parse(argv: Sequence[str]) -> Sequence[str]:
        # Asked for help, a required flag must not be missed first.
        if {"--help", "-help", "-h", "--helpshort", "--helpfull"} & set(argv[1:]):
            app.usage(writeto_stdout=True)
            sys.exit(0)
        try:
            rest = flags.FLAGS(argv)
        except (
            *(flags.Error, AttributeError, KeyError, TypeError, ValueError),
            *(OSError, SyntaxError),
        ) as error:
            # ml_collections raises all of these for a bad --config or a bad key or value of one.
            # An error inside a config file brings its traceback, whose last line says it all.
            while error.args and isinstance(error.args[0], Exception):
                error = error.args[0]  # its AttributeError holds the KeyError that tells
            print(f"error: {wrong_flag(error)} (see --help)", file=sys.stderr)
            sys.exit(2)
        if rest[1:] and not positional:
            print(
                f"error: unexpected argument {rest[1]!r}; flags are written --name=value",
                file=sys.stderr,
            )
            sys.exit(2)
        return rest

    def guarded(argv: Sequence[str]) -> int:
        if not flags.FLAGS["verbosity"].present:
            # Orbax logs its whole story, failures with a traceback; they reach us as exceptions.
            logging.set_verbosity(logging.FATAL)
        return guard(main, argv, flags.FLAGS.debug)

    app.run(guarded, flags_parser=parse)


def wrong_flag(error: Exception) -> str:
    """What is wrong with the flags, in one line.

    >>> wrong_flag(ValueError("flag --a=None: Flag --a must have a value other than None."))
    'flag --a is required.'
    """
    if isinstance(error, (OSError, SyntaxError)):
        return " ".join(error_text(error).split())
    text = str(error.args[0] if error.args else error).strip()
    if "Traceback" in text:
        return text.splitlines()[-1]
    if isinstance(error, KeyError):
        return f"the config has no key {' '.join(text.split())}"
    missing = r"--(\w+)=None: Flag --\1 must have a value other than None"
    return " ".join(re.sub(missing, r"--\1 is required", text).split())


def guard(main: Callable[[Sequence[str]], int | None], argv: Sequence[str], debug: bool) -> int:
    """The exit code of `main(argv)`: what is no fault of ours ends in one line."""
    try:
        return main(argv) or 0
    except (*USER_ERRORS, *paths.outages()) as error:
        if debug:
            raise
        return fail(error)
    except KeyboardInterrupt:
        if debug:
            raise
        print("interrupted", file=sys.stderr)
        return 130
